"""What callers ask for, checked before any query.

Nothing is guessed: a time without a zone, seconds in place of milliseconds or a pair as the exchange
writes it is refused, with the argument's name, what was found and what is expected.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from numbers import Real
from typing import Final, Literal

import pandas as pd

from marketfeed import schema
from reader.errors import ArgumentError, UnknownPairError

PURE = True

DEFAULT_LIMIT: Final = 500
"""Candles returned when neither `limit` nor `since` is given."""

MORE_COLUMNS: Final = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
"""What a frame of candles has only when it is asked for."""

MAX_LIMIT: Final = 2**31 - 1
MAX_TIME_MS: Final = 9_223_372_036_854
"""The end of what pandas can date in nanoseconds: 2262-04-11."""

_SECONDS_BEFORE: Final = 100_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Default(Enum):
    """A value that stands for the documented default, since None has a meaning of its own."""

    MAX_AGE = "default"

    def __repr__(self) -> str:
        return self.value


DEFAULT: Final = Default.MAX_AGE
MaxAge = float | Literal[Default.MAX_AGE] | None
Time = datetime | int


@dataclass(frozen=True, slots=True)
class CandleRequest:
    """A request for candles, checked.

    `since_ms` is inclusive and `until_ms` exclusive on the open time, None where open. `limit` counts
    closed candles of `timeframe`, None for all. `max_age_s` None: age does not matter. `columns` are
    those of MORE_COLUMNS that are wanted.
    """

    timeframe: str
    since_ms: int | None
    until_ms: int | None
    limit: int | None
    include_forming: bool
    strict: bool
    max_age_s: float | None
    columns: tuple[str, ...] = ()

    @property
    def length_ms(self) -> int:
        """Length of the timeframe."""
        return schema.TIMEFRAMES_MS[self.timeframe]


def candle_request(
    timeframe: str,
    limit: int | None,
    since: Time | None,
    until: Time | None,
    *,
    include_forming: bool,
    strict: bool,
    max_age_s: MaxAge,
    columns: Iterable[str] = (),
) -> CandleRequest:
    """Check a request. Raises ArgumentError; `timeframe` must be one of the schema's."""
    since_ms = None if since is None else time_ms("since", since)
    until_ms = None if until is None else time_ms("until", until)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise ArgumentError(f"since: must lie before until; found since={since!r}, until={until!r}")
    if limit is not None:
        limit = candles("limit", limit)
    elif since_ms is None:
        limit = DEFAULT_LIMIT
    default_s = 2 * schema.TIMEFRAMES_MS[timeframe] / 1000 + 30
    age_s = max_age(max_age_s, default_s)
    return CandleRequest(
        timeframe,
        since_ms,
        until_ms,
        limit,
        bool(include_forming),
        bool(strict),
        age_s,
        _more_columns(columns),
    )


def candles(name: str, value: int) -> int:
    """Return a number of candles, 1 or more."""
    count = _whole(name, value, "a whole number of candles, 1 or more")
    if not 1 <= count <= MAX_LIMIT:
        raise ArgumentError(f"{name}: 1 to {MAX_LIMIT} is expected, found {count}")
    return count


def _more_columns(columns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise ArgumentError(f"columns: a list of names is expected, found {columns!r}")
    names = tuple(dict.fromkeys(columns))
    for name in names:
        if name not in MORE_COLUMNS:
            raise ArgumentError(
                f"columns: of {', '.join(MORE_COLUMNS)} any are expected, found {name!r}"
            )
    return names


def time_ms(name: str, value: Time) -> int:
    """Return `value` in ms since the epoch; what is finer than a millisecond rounds up.

    Rounding up fits both ends of a range: open times are whole milliseconds, the start is included
    and the end is not.
    """
    expected = "a datetime with a time zone, or whole milliseconds since the epoch"
    if isinstance(value, datetime):
        if value.tzinfo is None:  # NaT, too, is a datetime without a zone
            raise ArgumentError(f"{name}: {expected} is expected, found {value!r} without a zone")
        ms = -int((_EPOCH - value) // _MILLISECOND)
    else:
        ms = _whole(name, value, expected)
        if 0 < ms < _SECONDS_BEFORE:
            raise ArgumentError(
                f"{name}: milliseconds since the epoch are expected; {ms} looks like seconds"
            )
    if not 0 <= ms <= MAX_TIME_MS:
        raise ArgumentError(f"{name}: a time between 1970 and 2262 is expected, found {value!r}")
    return ms


def max_age(value: MaxAge, default_s: float) -> float | None:
    """Return the allowed age in seconds, or None for any."""
    if value is None:
        return None
    if isinstance(value, Default):
        return default_s
    return seconds("max_age_s", value)


def seconds(name: str, value: object) -> float:
    """Return a number of seconds, 0 or more."""
    # numpy's numbers are Real, too.
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if is_number else -1.0  # type: ignore[arg-type]  # that is what is asked
    if not number >= 0:
        raise ArgumentError(f"{name}: a number of seconds, 0 or more, is expected, found {value!r}")
    return number


def pair_name(pair: object) -> str:
    """Return `pair` if it is written as a pair; raise UnknownPairError before anything is queried."""
    if isinstance(pair, str) and schema.is_pair(pair):
        return pair
    found = repr(pair)
    if len(found) > 80:
        found = found[:77] + "..."
    raise UnknownPairError(
        f"not a pair: {found}; pairs are written BASE/QUOTE:SETTLE, as {schema.PAIR_EXAMPLE}", pair
    )


def pair_names(pairs: Iterable[str]) -> list[str]:
    """Return the pairs in their order, each once."""
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise ArgumentError(f"pairs: a list of pairs is expected, found {pairs!r}")
    return list(dict.fromkeys(pair_name(pair) for pair in pairs))


def timestamp(ms: int) -> pd.Timestamp:
    """The instant `ms` (since the epoch) as pandas has it, in UTC."""
    return pd.Timestamp(ms, unit="ms", tz="UTC")


def _whole(name: str, value: object, expected: str) -> int:
    # operator.index takes numpy's integers too, and no float, string or None.
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # that is what is being asked
        except TypeError:
            pass
    raise ArgumentError(f"{name}: {expected} is expected, found {value!r}")
