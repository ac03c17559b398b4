"""Which pairs a closed candle is still awaited of: looked for by itself, promised or not by coverage."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from marketfeed import schema
from reader import ohlcv
from reader.arguments import timestamp
from reader.coverage import is_awaited, stands_still
from reader.errors import ArgumentError, nothing_live
from reader.life import current
from reader.rows import CatalogRow
from reader.stores.store import Store

LOOK_S: Final = 1.0
"""Wall seconds for which it is believed which pairs will not have the candle."""


class Awaited:
    """The candle of `timeframe` that opens at `open_ms`, awaited of every live pair of `store`."""

    def __init__(self, store: Store, timeframe: str, open_ms: int) -> None:
        self._store = store
        self._timeframe = timeframe
        self._open_ms = open_ms
        self._not_awaited: set[str] = set()
        self.again_s = 0.0
        """When to ask again (monotonic), though nothing may have been stored since."""

    def without(self, now_ms: int) -> tuple[str, ...]:
        """The pairs whose candle is not stored, and is awaited, at `now_ms`.

        Raises StaleDataError when there is no live pair at all, UnknownTimeframeError, ArgumentError.
        """
        catalog = [row.of(current(row.lives)) for row in self._store.catalog()]
        entries = [row for row in catalog if not row.has_ended(now_ms)]
        groups = ohlcv.sources_of_any(entries, self._timeframe)
        if not groups:
            raise nothing_live(collected=bool(catalog))
        length_ms = schema.TIMEFRAMES_MS[self._timeframe]
        if self._open_ms % length_ms:
            raise ArgumentError(
                f"open_time: a candle of {self._timeframe} opens on a multiple of {length_ms} ms, "
                f"found {timestamp(self._open_ms).isoformat()}"
            )
        close_ms = self._open_ms + length_ms
        due = {row.pair for row in entries if _may_have(row, close_ms)}
        absent: dict[str, list[str]] = {}
        for source, members in groups.items():
            there = self._store.with_candle(source, close_ms - schema.TIMEFRAMES_MS[source])
            lacking = [pair for pair in members if pair in due and pair not in there]
            if lacking:
                absent[source] = lacking
        if absent and time.monotonic() >= self.again_s:
            self._look(absent, close_ms)
        lacking = [pair for members in absent.values() for pair in members]
        return tuple(sorted(pair for pair in lacking if pair not in self._not_awaited))

    def _look(self, absent: Mapping[str, Sequence[str]], close_ms: int) -> None:
        """Note of which pairs the exchange has no such candle, twice asked, or nothing after the newest one.

        Where the candle was stored since it was looked for, it is not awaited any more either.
        """
        self._not_awaited = set()
        for source, pairs in absent.items():
            length_ms = schema.TIMEFRAMES_MS[source]
            open_ms = close_ms - length_ms
            told = self._store.coverage(pairs, source)
            self._not_awaited |= {
                pair for pair in pairs if not is_awaited(told.get(pair), open_ms, length_ms)
            }
            halted = {
                pair
                for pair, interval in told.items()
                # Of pairs that trade, all before this candle is told, or nearly.
                if pair not in self._not_awaited and interval.until_ms < open_ms
            }
            if halted:
                newest = self._store.newest(source)
                self._not_awaited |= {
                    pair for pair in halted if stands_still(told[pair], newest.get(pair), length_ms)
                }
        self.again_s = time.monotonic() + LOOK_S


def _may_have(row: CatalogRow, close_ms: int) -> bool:
    return (row.listed_ms is None or row.listed_ms < close_ms) and (
        row.ended_ms is None or row.ended_ms >= close_ms
    )
