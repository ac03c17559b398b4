"""Which contracts a pair has been the name of, one after the other: its lives.

A symbol can come back as another coin (LITUSDT: Litentry until 2025-01-31, Lighter from 2025-12-23), and
`onboardDate` has been wrong for contracts that went on living. So a later `onboardDate` alone begins no
life: an end before it must be on record, or the exchange must have no candle of the day before it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import ENDED_STATUSES, Instrument
from marketfeed.records import Life

PURE = True

LISTED: Final = "onboardDate"
DELIVERED: Final = "deliveryDate"
NO_CANDLE_BEFORE: Final = "no candle the day before"
TRADED_BEFORE: Final = "candles before onboardDate"

Lives = tuple[Life, ...]
"""The lives of one pair, oldest first. They do not overlap, and the last one is the current one."""


class Seen(NamedTuple):
    """What a row of exchangeInfo says of a contract at some time."""

    pair: str
    symbol: str
    listed_ms: int
    ended_ms: int | None
    end_evidence: str = ""


class Doubt(NamedTuple):
    """Whether the exchange has candles of the day before `listed_ms` decides; `symbol` is to be asked for."""

    pair: str
    symbol: str
    listed_ms: int

    @property
    def day_ms(self) -> int:
        """When the day begins of which a candle is to be asked for."""
        return schema.floor_to(self.listed_ms, schema.DAY_MS) - schema.DAY_MS


def seen(row: Instrument, now_ms: int) -> Seen:
    """What a row says: a contract ends by a `deliveryDate` that is past, or by its status.

    An announced end is in the future, and is known with it. One by its status alone is now.
    """
    ended_ms, evidence = row.ended_ms, DELIVERED
    if row.status in ENDED_STATUSES and (ended_ms is None or ended_ms > now_ms):
        ended_ms, evidence = now_ms, f"status {row.status}"
    elif ended_ms is None:
        evidence = ""
    return Seen(row.pair, row.symbol, row.listed_ms, ended_ms, evidence)


def after(
    lives: Lives, row: Seen, traded_before: bool | None = None, newest_ms: int | None = None
) -> tuple[Lives, Doubt | None]:
    """The lives once a row of exchangeInfo is known, and what is to be asked before it can be believed.

    `traded_before` is the answer to that: whether there is a candle of the day before; None when it has
    not been asked. `newest_ms` is when the newest candle closed that is stored of a life which then turns
    out to be over without a record of its end. A date that was wrong stays in doubt: the caller keeps the
    answer, so as not to ask again.
    """
    if not lives:
        return (_begun(row, LISTED),), None
    last = lives[-1]
    if row.symbol == last.symbol and _is_same_day(row.listed_ms, last.listed_ms):
        return (*lives[:-1], _ended(last, row)), None
    if row.listed_ms < last.listed_ms:
        return _moved_back(lives, row), None
    if not _can_begin(row):
        # Over, with a date of listing that makes no sense: of another contract nothing is known.
        return ((*lives[:-1], _ended(last, row)) if row.symbol == last.symbol else lives), None
    if last.ended_ms is not None and last.ended_ms <= row.listed_ms:
        return (*lives, _begun(row, LISTED)), None
    if row.symbol != last.symbol:
        # Two contracts at a time of one name: the first one has it.
        return lives, None
    if traded_before is None:
        return lives, Doubt(row.pair, row.symbol, row.listed_ms)
    if traded_before:
        return (*lives[:-1], _ended(last, row)), None
    day_ms = schema.floor_to(row.listed_ms, schema.DAY_MS)
    over_ms = day_ms if newest_ms is None else min(newest_ms, day_ms)
    over_ms = max(over_ms, last.listed_ms)
    over = msgspec.structs.replace(
        last, ended_ms=over_ms, evidence=_with(last.evidence, NO_CANDLE_BEFORE)
    )
    return (*lives[:-1], over, _begun(row, NO_CANDLE_BEFORE)), None


def life_at(lives: Lives, open_ms: int, length_ms: int) -> Life | None:
    """The life that owns the candle of a timeframe that opens at `open_ms`."""
    for life in reversed(lives):
        first_ms, end_ms = life.owned(length_ms)
        if first_ms <= open_ms and (end_ms is None or open_ms < end_ms):
            return life
    return None


def mistakes(lives: Sequence[Life]) -> list[str]:
    """What is wrong with the lives of one pair; empty when nothing is."""
    found = []
    for one, following in pairwise(lives):
        if one.ended_ms is None:
            found.append(f"not the last one, and without an end: {one}")
        elif one.ended_ms > following.listed_ms:
            found.append(f"ends after the next one began: {one}, {following}")
    found += [f"ends before it began: {one}" for one in lives if _ends_early(one)]
    return found


def _begun(row: Seen, why: str) -> Life:
    ended_ms = row.ended_ms
    if ended_ms is not None:
        ended_ms = max(ended_ms, row.listed_ms)
    return Life(row.pair, row.symbol, row.listed_ms, ended_ms, _with(why, row.end_evidence))


def _ended(life: Life, row: Seen) -> Life:
    """The same life with the end that the row gives: also another one than before, or none any more."""
    if row.ended_ms is None:
        return _replaced(life, None, "")
    by_status = row.end_evidence != DELIVERED
    if by_status and life.ended_ms is not None and life.ended_ms <= row.ended_ms:
        # By its status it is over at each answer's own time: the first one counts.
        return life
    return _replaced(life, max(row.ended_ms, life.listed_ms), row.end_evidence)


def _replaced(life: Life, ended_ms: int | None, why: str) -> Life:
    begin = life.evidence.partition("; ")[0]
    return msgspec.structs.replace(life, ended_ms=ended_ms, evidence=_with(begin, why))


def _moved_back(lives: Lives, row: Seen) -> Lives:
    """The current life began earlier than it was known to, unless it is another one that the row is of."""
    *older, last = lives
    is_of_older = any(one.listed_ms >= row.listed_ms for one in older) or (
        bool(older) and (older[-1].ended_ms or 0) > row.listed_ms
    )
    if is_of_older or row.symbol != last.symbol:
        return lives
    return (*older, _ended(msgspec.structs.replace(last, listed_ms=row.listed_ms), row))


def _can_begin(row: Seen) -> bool:
    """Whether a life may begin with a row: it has no end, or one by its date, after the beginning."""
    by_date = row.end_evidence == DELIVERED
    return row.ended_ms is None or (by_date and row.ended_ms > row.listed_ms)


def _is_same_day(one_ms: int, other_ms: int) -> bool:
    day_ms = schema.DAY_MS
    return schema.floor_to(one_ms, day_ms) == schema.floor_to(other_ms, day_ms)


def _ends_early(life: Life) -> bool:
    return life.ended_ms is not None and life.ended_ms < life.listed_ms


def _with(begin: str, end: str) -> str:
    return f"{begin}; {end}" if end else begin
