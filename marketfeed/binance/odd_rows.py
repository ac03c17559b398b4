"""Lists of the exchange, row by row: an odd row costs itself, is named, and proves nothing absent. Pure.

Odd is a row that is not as documented or makes no sense, and each of two rows that differ about the
same key: neither is to be trusted then, and the next answer may show which one holds. A row that
comes again as it was is left out once.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from marketfeed.errors import ExchangeError, OddAnswerError
from marketfeed.grid import TimeRange, joined, missing
from marketfeed.records import Candle
from marketfeed.schema import floor_to

PURE = True

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
T = TypeVar("T")


class OddRowError(ValueError):
    """A row makes no sense; the text is the reason."""


class OddRow(NamedTuple, Generic[K]):
    """A row that was left out: its key, as far as that can be read (else None), and why."""

    key: K | None
    why: str


class Rows(NamedTuple, Generic[K, T]):
    """The good rows of a list, in its order, by key; and the odd ones."""

    good: dict[K, T]
    odd: list[OddRow[K]]

    def require_some(self, endpoint: str) -> None:
        """Raise OddAnswerError when there were rows and none of them is good."""
        if self.odd and not self.good:
            raise OddAnswerError(
                f"{endpoint}: not the documented answer: all {len(self.odd)} rows are odd, "
                f"the first: {self.odd[0].why}"
            )


def documented(endpoint: str, body: bytes, kind: type[T]) -> T:
    """An answer as `kind`. Raises ExchangeError when it is none."""
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExchangeError(f"{endpoint}: not the documented answer: {error}") from error


def listed(endpoint: str, body: bytes) -> list[msgspec.Raw]:
    """The rows of an answer. Raises ExchangeError when it is no list."""
    return documented(endpoint, body, list[msgspec.Raw])


def row_by_row(
    rows: Iterable[R], read: Callable[[R], tuple[K, T] | None], key_of: Callable[[R], K | None]
) -> Rows[K, T]:
    """Read rows. `read` gives a row's key and value, None for one that is to be passed over in silence.

    It raises OddRowError or msgspec.DecodeError for an odd one, of which `key_of` returns the key.
    """
    good: dict[K, T] = {}
    odd: list[OddRow[K]] = []
    spoilt: set[K] = set()
    for row in rows:
        try:
            item = read(row)
        except (OddRowError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            key = key_of(row)
            odd.append(OddRow(key, str(error)))
            if key is not None:
                spoilt.add(key)
            continue
        if item is None:
            continue
        key, value = item
        if key not in good:
            good[key] = value
        elif good[key] == value:
            odd.append(OddRow(key, "comes twice"))
        else:
            odd.append(OddRow(key, "comes twice, with different values"))
            spoilt.add(key)
    for key in spoilt:
        good.pop(key, None)
    return Rows(good, odd)


def tried(row: msgspec.Raw, kind: type[T]) -> T | None:
    """A row, or a part of it, as `kind`; None when it cannot be read as that."""
    try:
        return msgspec.json.decode(row, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Named(msgspec.Struct):
    symbol: str


def symbol_of(row: msgspec.Raw) -> str | None:
    """The `symbol` of a row, if that can be read."""
    named = tried(row, _Named)
    return None if named is None else named.symbol


class Klines(NamedTuple):
    """Candles of one series, oldest first. What lies in `unclear` may yet come, odd rows or none were there.

    So what is lacking there is not absent: it is to be asked for again.
    """

    candles: Sequence[Candle]
    unclear: Sequence[TimeRange] = ()


def klines_of(rows: Rows[int, Candle], within: TimeRange, length_ms: int, closed_ms: int) -> Klines:
    """The candles of an answer for a range, by open time; odd rows may have None for a key.

    What had not closed by `closed_ms` is unclear. Raises OddAnswerError when there are odd rows and no good
    one, or rows are out of order.
    """
    rows.require_some("klines")
    opens = list(rows.good)
    if opens != sorted(opens):
        raise OddAnswerError("klines: rows out of order")
    lacking = [odd.key for odd in rows.odd if odd.key not in rows.good]
    if None in lacking:
        # It may be any of those that are not there.
        return Klines(list(rows.good.values()), missing(opens, within, length_ms))
    unclear = [TimeRange(ms, ms + length_ms) for ms in lacking if ms is not None]
    if closed_ms < within.end_ms:
        open_ms = max(within.start_ms, floor_to(closed_ms, length_ms))
        unclear.append(TimeRange(open_ms, within.end_ms))
    return Klines(list(rows.good.values()), joined(unclear, length_ms, 0))
