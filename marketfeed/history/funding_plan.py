"""How settled funding rates of the past are asked for: with the fewest requests."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.binance.rest import MAX_SETTLEMENTS
from marketfeed.binance.symbols import TRADING_STATUSES, ExchangeInfo
from marketfeed.grid import TimeRange, joined, tiles
from marketfeed.history.awaited import EARLIER_MS

USUAL_HOURS: Final = 8
ROWS_AIMED_AT: Final = 800
"""Rows that a request for all contracts should bring: settlements come in heaps, 1,000 at most."""
STEP_MS: Final = schema.MINUTE_MS
"""The grid of settlements."""
REPORTED_WITHIN_MS: Final = schema.HOUR_MS
"""What was settled within this may not be published yet: history does not take it for absent."""


class Plan(NamedTuple):
    """How history is asked: symbol by symbol, or all at once in `parts`, the newest first."""

    singly: bool
    parts: list[TimeRange]
    requests: int


def plan(
    wanted: Mapping[str, Sequence[TimeRange]], hours: Mapping[str, int], listed: Iterable[str]
) -> Plan:
    """Choose what needs the fewest requests for `wanted`: ranges that are missing, by symbol.

    `hours` are funding intervals, 8 where none is given; `listed` are all symbols of the exchange that
    trade, which one request for all of them tells.
    """
    singly = sum(
        math.ceil(_rows(part, hours.get(symbol, USUAL_HOURS)) / MAX_SETTLEMENTS)
        for symbol, parts in wanted.items()
        for part in parts
    )
    union = joined((part for parts in wanted.values() for part in parts), STEP_MS, 0)
    per_ms = sum(1 / (hours.get(symbol, USUAL_HOURS) * schema.HOUR_MS) for symbol in listed)
    step_hours = max(1, int(ROWS_AIMED_AT / max(per_ms, 1e-12) / schema.HOUR_MS))
    together = [
        tile
        for part in reversed(union)
        for tile in tiles(part, STEP_MS, step_hours * (schema.HOUR_MS // STEP_MS))
    ]
    if len(together) <= singly:
        return Plan(False, together, len(together))
    return Plan(True, [], singly)


def asked(part: TimeRange, ends_ms: Collection[int], now_ms: int) -> TimeRange:
    """What is asked for a part of history: with the newest one also what may be published just now.

    `ends_ms` are where complete ranges end: what follows one begins earlier, see `EARLIER_MS`.
    """
    start_ms, end_ms = part
    if start_ms in ends_ms:
        start_ms -= EARLIER_MS
    if now_ms - end_ms <= REPORTED_WITHIN_MS:
        end_ms = schema.to_minute(now_ms) + STEP_MS
    return TimeRange(start_ms, end_ms)


class Step(NamedTuple):
    """One question for a part of history: for one `symbol`, or for all (None); whose history it is for."""

    symbol: str | None
    symbols: tuple[str, ...]
    part: TimeRange


def requests(
    wanted: Mapping[str, Sequence[TimeRange]],
    untold: Collection[str],
    hours: Mapping[str, int],
    listed: Iterable[str],
) -> list[Step]:
    """The questions for `wanted` by `plan`, those for all first.

    `untold` are symbols that an answer for all may leave out: they are asked for one by one.
    """
    together = {symbol: parts for symbol, parts in wanted.items() if symbol not in untold}
    chosen = plan(together, hours, listed)
    return [
        *(Step(None, tuple(together), part) for part in chosen.parts),
        *(
            Step(symbol, (symbol,), part)
            for symbol, parts in wanted.items()
            if chosen.singly or symbol in untold
            for part in parts
        ),
    ]


def untold(info: ExchangeInfo, pairs: Mapping[str, str], now_ms: int) -> set[str]:
    """Which of `pairs` (by symbol) an answer for all contracts may leave out: who does not trade by the list.

    By a list of more than ten minutes ago these are all: what has halted since it does not say.
    """
    if info.at_ms and now_ms - info.at_ms > schema.SETTLED_LATE_MS:
        return set(pairs.values())
    rows = ((pair, info.contract(pair, symbol)) for symbol, pair in pairs.items())
    return {pair for pair, row in rows if row is None or row.status not in TRADING_STATUSES}


def _rows(part: TimeRange, hours: int) -> int:
    return (part.end_ms - part.start_ms) // (hours * schema.HOUR_MS) + 1
