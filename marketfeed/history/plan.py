"""What to ask for, and in which order, to fill holes: the newest of every series first.

Times are ms of exchange time; ranges are half open and on their timeframe's grid.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from marketfeed import schema
from marketfeed.binance.symbols import Instrument
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in
from marketfeed.journal.coverage import Key
from marketfeed.records import Candle

PURE = True


class CandleSeries(NamedTuple):
    """One pair and timeframe of the exchange, or its mark candles (`mark_1h`)."""

    instrument: Instrument
    timeframe: str

    @property
    def key(self) -> Key:
        """What names it."""
        return self.instrument.pair, self.timeframe

    @property
    def name(self) -> str:
        """Its name in logs, for example `BTC/USDT:USDT 3m`."""
        return " ".join(self.key)

    @property
    def length_ms(self) -> int:
        """The length of its candles."""
        return schema.SERIES_MS[self.timeframe]


class Lacking(NamedTuple):
    """What a series lacks, oldest first."""

    series: CandleSeries
    time_ranges: tuple[TimeRange, ...]

    @property
    def candles(self) -> int:
        """How many candles are missing."""
        return sum(candles_in(time_range, self.series.length_ms) for time_range in self.time_ranges)


class TileRequest(NamedTuple):
    """One request for a series: at most 499 candles, the first and the last of which are missing."""

    wave: int
    series: CandleSeries
    time_range: TimeRange
    candles: int


def range_of(series: CandleSeries, since_ms: int, until_ms: int) -> TimeRange:
    """The series' range of [since, until): on its grid, from its listing's first candle to its end.

    That candle opens before the listing, unless this is on the grid.
    """
    length_ms = series.length_ms
    listed_ms = schema.floor_to(series.instrument.listed_ms, length_ms)
    last_ms = until_ms
    if series.instrument.ended_ms is not None:
        last_ms = min(last_ms, series.instrument.ended_ms)
    start_ms = max(schema.ceil_to(since_ms, length_ms), listed_ms)
    return TimeRange(start_ms, max(start_ms, schema.floor_to(last_ms, length_ms)))


def covering(
    holes: Sequence[TimeRange], length_ms: int, most: int = TILE_CANDLES
) -> list[tuple[TimeRange, int]]:
    """Cover holes (oldest first) with as few requests as can be, newest first.

    Each is a range of at most `most` candles that begins and ends with a missing one, and how many
    of its candles are missing; what lies between holes is asked along.
    """
    left = list(holes)
    found: list[tuple[TimeRange, int]] = []
    while left:
        end_ms = left[-1].end_ms
        floor_ms = end_ms - most * length_ms
        start_ms, count = end_ms, 0
        while left and left[-1].end_ms > floor_ms:
            hole = left.pop()
            start_ms = max(hole.start_ms, floor_ms)
            count += (hole.end_ms - start_ms) // length_ms
            if hole.start_ms < floor_ms:
                left.append(TimeRange(hole.start_ms, floor_ms))
                break
        found.append((TimeRange(start_ms, end_ms), count))
    return found


def in_order(lacking: Iterable[Lacking]) -> list[TileRequest]:
    """All requests: the newest one of every series, then the next of every series, and so on."""
    return sorted(
        (
            TileRequest(wave, holes.series, time_range, candles)
            for holes in lacking
            for wave, (time_range, candles) in enumerate(
                covering(holes.time_ranges, holes.series.length_ms)
            )
        ),
        key=lambda tile: tile.wave,
    )


def missing_days(time_ranges: Iterable[TimeRange]) -> Mapping[int, int]:
    """How many ms of each UTC day (by its start) are missing."""
    days: dict[int, int] = {}
    for start_ms, end_ms in time_ranges:
        for day_ms in range(schema.floor_to(start_ms, schema.DAY_MS), end_ms, schema.DAY_MS):
            part_ms = min(end_ms, day_ms + schema.DAY_MS) - max(start_ms, day_ms)
            days[day_ms] = days.get(day_ms, 0) + part_ms
    return days


def those_within(candles: Sequence[Candle], holes: Sequence[TimeRange]) -> Iterator[Candle]:
    """Those candles that lie in holes; both are in ascending order."""
    left = iter(holes)
    hole = next(left, None)
    for candle in candles:
        while hole is not None and hole.end_ms <= candle.open_time_ms:
            hole = next(left, None)
        if hole is not None and hole.start_ms <= candle.open_time_ms:
            yield candle
