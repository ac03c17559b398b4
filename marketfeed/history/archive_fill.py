"""Fills holes from files of the public archive: which of them are worth asking for, and what they hold.

A file that is bad or not there costs nothing: its holes are left to REST.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

from marketfeed import schema
from marketfeed.binance.archive import Archive, ArchiveFile, day_file, month_file, month_of
from marketfeed.errors import ArchiveAbsentError, ArchiveError, ExchangeError
from marketfeed.grid import TimeRange, overlap
from marketfeed.history.plan import CandleSeries, Lacking, missing_days
from marketfeed.records import Candle

log = logging.getLogger(__name__)

Source: TypeAlias = Literal["auto", "archive", "rest"]

FEW_DAYS: Final = 3
"""The archive is asked when more days than these are missing of a series …"""
FILE_WORTH: Final = 200
"""… for files that bring at least so many candles: fewer are fetched from REST for a weight of 1 or 2."""
DAY_FILE_AFTER_MS: Final = 6 * schema.HOUR_MS
MONTH_FILE_AFTER_MS: Final = 3 * schema.DAY_MS
"""How long after its end a file is there."""
UNREACHABLE_IN_A_ROW: Final = 8
"""After so many files in a row that could not be fetched the rest of a pass is left to REST."""


class ArchiveFill:
    """Fills from `archive`. `holes_of` gives what is missing by now of a part of a series, `store` commits.

    `source` is the operator's word: `archive` asks for every file there is, `rest` for none.
    """

    def __init__(
        self,
        archive: Archive,
        source: Source,
        holes_of: Callable[[CandleSeries, TimeRange], Sequence[TimeRange]],
        store: Callable[[CandleSeries, Sequence[Candle], Sequence[TimeRange]], Awaitable[None]],
    ) -> None:
        self.files = Counter[str]()
        """How many files of this pass were `read`, `refused` or `absent`."""
        self._archive = archive
        self._source = source
        self._file_worth = 1 if source == "archive" else FILE_WORTH
        self._holes_of = holes_of
        self._store = store
        self._unreachable = 0

    def begin(self) -> None:
        """Begin a pass."""
        self.files = Counter[str]()
        self._unreachable = 0

    def files_for(
        self, lacking: Sequence[Lacking], now_ms: int
    ) -> list[tuple[CandleSeries, ArchiveFile]]:
        """The files that are worth asking for, the newest first."""
        few_ms = FEW_DAYS * schema.DAY_MS
        longest_ms = max(holes.candles * holes.series.length_ms for holes in lacking)
        if self._source == "rest" or (self._source == "auto" and longest_ms <= few_ms):
            return []
        found = [(one.series, file) for one in lacking for file in self._files_of(one, now_ms)]
        return sorted(found, key=lambda item: -item[1].time_range.end_ms)

    async def take(self, item: tuple[CandleSeries, ArchiveFile]) -> None:
        """Fill from one file what it holds of the holes. Raises JournalError."""
        series, file = item
        if self._unreachable >= UNREACHABLE_IN_A_ROW:
            return
        # Only so much of it as is wanted.
        holes = self._holes_of(series, file.time_range)
        if not holes:
            return
        try:
            candles = await self._archive.candles(series.instrument, file)
            self._unreachable = 0
        except ArchiveAbsentError:
            self.files["absent"] += 1
            if file.time_range.end_ms - file.time_range.start_ms > schema.DAY_MS:
                for day in self._days_instead(series, file, holes):
                    await self.take((series, day))
        except ArchiveError as error:
            self.files["refused"] += 1
            log.warning("archive file refused, REST instead error=%r", str(error))
        except ExchangeError as error:
            self._unreachable += 1
            if self._unreachable == UNREACHABLE_IN_A_ROW:
                log.warning("archive cannot be fetched, REST instead error=%r", str(error))
        else:
            self.files["read"] += 1
            await self._store(series, candles, holes)

    def _files_of(self, holes: Lacking, now_ms: int) -> Iterator[ArchiveFile]:
        series = holes.series
        symbol, length_ms = series.instrument.symbol, series.length_ms
        days = missing_days(holes.time_ranges)
        for month in sorted({month_of(day_ms) for day_ms in days}):
            of_month = {d: ms for d, ms in days.items() if month.start_ms <= d < month.end_ms}
            if (
                month.end_ms + MONTH_FILE_AFTER_MS <= now_ms
                and sum(of_month.values()) > FEW_DAYS * schema.DAY_MS
                and sum(of_month.values()) // length_ms >= self._file_worth
            ):
                yield month_file(symbol, series.timeframe, month.start_ms)
                continue
            for day_ms, missing_ms in of_month.items():
                there = day_ms + schema.DAY_MS + DAY_FILE_AFTER_MS <= now_ms
                if there and missing_ms // length_ms >= self._file_worth:
                    yield day_file(symbol, series.timeframe, day_ms)

    def _days_instead(
        self, series: CandleSeries, file: ArchiveFile, holes: Sequence[TimeRange]
    ) -> list[ArchiveFile]:
        days = missing_days(overlap(holes, file.time_range))
        return [
            day_file(series.instrument.symbol, series.timeframe, day_ms)
            for day_ms, missing_ms in sorted(days.items(), reverse=True)
            if missing_ms // series.length_ms >= self._file_worth
        ]
