"""What has been committed last of each series, and what the supervisor has yet to see."""

import msgspec

from marketfeed.journal.batch import Batch
from marketfeed.records import Candle


class Freshness:
    """The newest that is *stored* of each series. Times in ms, exchange time."""

    def __init__(self) -> None:
        self.mark_event_ms: dict[str, int] = {}
        self.newest_open_ms: dict[tuple[str, str], int] = {}
        self.candles: dict[str, int] = {}

    def note(self, batch: Batch) -> None:
        """Take over what a commit has just stored."""
        marks = self.mark_event_ms
        for (pair, _), mark in batch.mark_prices.items():
            if mark.event_time_ms > marks.get(pair, 0):
                marks[pair] = mark.event_time_ms
        newest = self.newest_open_ms
        for candle in batch.candles:
            key = (candle.pair, candle.timeframe)
            if candle.open_time_ms > newest.get(key, -1):
                newest[key] = candle.open_time_ms
            self.candles[candle.timeframe] = self.candles.get(candle.timeframe, 0) + 1


class Seen(msgspec.Struct):
    """What has come, stored or not: a full disk is no silence.

    `marks` are pairs with mark prices, `closed` candles as (pair, timeframe, open time in ms), `forming`
    the open time that each series last had an open frame of, by pair and timeframe. `fetched` are closed
    candles that came otherwise than by frames.
    """

    marks: set[str] = set()
    closed: list[tuple[str, str, int]] = []
    forming: dict[tuple[str, str], int] = {}
    fetched: list[Candle] = []
