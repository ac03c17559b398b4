"""Compares what is stored with what the exchange has: its REST API, or its public archive.

The journal is read beside its writer. Completeness (what the grid of a timeframe asks for, and what is
there) is counted in the journal alone; values are compared with the exchange's, a random sample or all.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.archive import Archive, day_file
from marketfeed.binance.budget import Priority
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import remembered
from marketfeed.errors import ExchangeError
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in, subtract, tiles, without
from marketfeed.history.archive_fill import DAY_FILE_AFTER_MS
from marketfeed.history.comparison import CandleComparison, compare
from marketfeed.history.plan import CandleSeries, range_of
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.view import JournalView
from marketfeed.records import Candle, CatalogEntry

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
CLOSED_FOR_MS: Final = 10 * schema.SECOND_MS
"""What closed less than this ago may still be on its way, or being healed."""
NAMED: Final = 200
"""Differences that are reported with their values; all are counted."""
FILLING_KEPT: Final = 100_000
"""So many candles at most are filled at a time: of a whole journal they would be gigabytes in memory."""
_ASK_LEAST_CANDLES: Final = 100
_ASK_LEAST_WEIGHT: Final = 1
_WEIGHT: Final = 2


class AuditOptions(msgspec.Struct, frozen=True):
    """What to compare: candles with since_ms <= open time < until_ms of these series.

    `sample_weight` None compares all; a number as many random ranges as that weight buys.
    """

    since_ms: int
    until_ms: int
    sample_weight: int | None = None


class SeriesAudit(msgspec.Struct, frozen=True):
    """One pair and timeframe: candles asked for, there, not there; compared with the exchange, different."""

    pair: str
    timeframe: str
    expected: int
    stored: int
    missing: int
    compared: int
    different: int

    @property
    def good(self) -> bool:
        """Whether nothing is missing or different."""
        return not self.missing and not self.different


class AuditReport(msgspec.Struct, frozen=True):
    """What came of an audit. `percent` is the share of expected candles that are there and not different.

    `differences` and `errors` are texts; of each the first are kept. What could not be asked is an
    error: the audit is not good then. `lacking` candles are equal, but an older version has stored them
    without `taker_buy_quote_volume`; `filled` of them have it now.
    """

    source: str
    since_ms: int
    until_ms: int
    sampled: bool
    expected: int
    stored: int
    missing: int
    compared: int
    different: int
    repaired: int
    percent: float
    differences: list[str]
    errors: list[str]
    series: list[SeriesAudit]
    lacking: int = 0
    filled: int = 0

    @property
    def good(self) -> bool:
        """Whether something was expected, all of it is there (by now), and nothing differs."""
        left = self.missing + self.different - self.repaired
        return self.expected > 0 and left == 0 and not self.errors


class AuditProgress(msgspec.Struct, frozen=True):
    """How far an audit is."""

    pieces: int
    pieces_done: int
    compared: int
    wrong: int


class _Piece(NamedTuple):
    series: CandleSeries
    time_range: TimeRange


class _Sums(NamedTuple):
    expected: int = 0
    stored: int = 0
    missing: int = 0
    compared: int = 0
    different: int = 0


def _total(*parts: _Sums) -> _Sums:
    return _Sums(*map(sum, zip(*parts, strict=True)))


def audited_series(
    catalog: Sequence[CatalogEntry],
    pairs: Sequence[str] | None = None,
    timeframes: Sequence[str] | None = None,
    *,
    marks: Collection[str] = (),
) -> list[CandleSeries]:
    """The series that a journal's catalog says it holds; of these pairs and timeframes if given.

    Of pairs in `marks` their mark candles, too, unless timeframes are given.

    Pairs that the settings have dropped are audited when they are named.
    """
    return [
        CandleSeries(remembered(entry), timeframe)
        for entry in catalog
        if (not entry.dropped if pairs is None else entry.pair in pairs)
        for timeframe in (*entry.timeframes, *((schema.MARK_1H,) if entry.pair in marks else ()))
        if timeframes is None or timeframe in timeframes
    ]


class Audit:
    """One audit of the journal behind `view`. `now_ms` is exchange time."""

    def __init__(
        self,
        view: JournalView,
        series: Sequence[CandleSeries],
        options: AuditOptions,
        rest: BinanceRest,
        archive: Archive | None,
        now_ms: Callable[[], int],
        chance: random.Random | None = None,
    ) -> None:
        self.mending: list[Candle] = []
        """The exchange's candles in place of those that are missing or different."""
        self.filling: list[Candle] = []
        """Its candles for those that are equal, but lack `taker_buy_quote_volume`; `FILLING_KEPT` at most."""
        self._view = view
        self._series = series
        self._options = options
        self._rest = rest
        self._archive = archive
        self._now_ms = now_ms
        self._random = chance or random.Random()
        # The last candle that must be there is the last one that had closed by then.
        self._until_ms = min(options.until_ms, now_ms() - CLOSED_FOR_MS)
        self._coverage: Mapping[Key, Covered] = {}
        self._sums: dict[CandleSeries, _Sums] = {}
        self._lacking = 0
        self._differences: list[str] = []
        self._errors: list[str] = []
        self._pieces = 0
        self._done = 0

    def progress(self) -> AuditProgress:
        """How far it is now."""
        return AuditProgress(
            self._pieces,
            self._done,
            sum(one.compared for one in self._sums.values()),
            sum(one.missing + one.different for one in self._sums.values()),
        )

    async def run(self) -> AuditReport:
        """Compare. Raises JournalError."""
        self._coverage = await asyncio.to_thread(self._view.coverage)
        pieces = self._chosen(
            [piece for one in self._series for piece in self._pieces_of(one, self._range(one))]
        )
        self._pieces = len(pieces)
        chosen: dict[CandleSeries, list[TimeRange]] = {}
        for piece in pieces:
            chosen.setdefault(piece.series, []).append(piece.time_range)
        for series in self._series:
            # What is not compared is counted in the journal.
            for part in subtract(self._range(series), chosen.get(series, ())):
                self._add(series, await asyncio.to_thread(self._completeness, series, part))
        queue = iter(pieces)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE if self._archive is None else AT_ONCE // 2):
                group.create_task(self._work(queue), name="audit")
        return self._report()

    def _range(self, series: CandleSeries) -> TimeRange:
        since_ms, until_ms = self._options.since_ms, self._until_ms
        if series.timeframe == schema.MARK_1H:
            # Those of an hour may come ten minutes later: what is due is what the journal knows to be.
            known = self._coverage.get(series.key)
            if known is None:
                return TimeRange(0, 0)
            since_ms, until_ms = max(since_ms, known.from_ms), min(until_ms, known.end_ms)
        return range_of(series, since_ms, until_ms)

    def _completeness(self, series: CandleSeries, part: TimeRange) -> _Sums:
        pair, timeframe, length_ms = series.instrument.pair, series.timeframe, series.length_ms
        covered = self._coverage.get(series.key)
        holes = () if covered is None else covered.holes
        believed = [hole.time_range for hole in holes if hole.is_absent]
        wanted = sum(candles_in(one, length_ms) for one in without([part], believed))
        lacking = without(self._view.holes(pair, timeframe, part), believed)
        missing = sum(candles_in(hole, length_ms) for hole in lacking)
        return _Sums(wanted, wanted - missing, missing)

    def _add(self, series: CandleSeries, sums: _Sums) -> None:
        self._sums[series] = _total(self._sums.get(series, _Sums()), sums)

    def _pieces_of(self, series: CandleSeries, within: TimeRange) -> Iterator[_Piece]:
        if self._archive is None:
            for tile in tiles(within, series.length_ms, TILE_CANDLES):
                yield _Piece(series, tile)
            return
        first_ms = schema.ceil_to(within.start_ms, schema.DAY_MS)
        # Whole days whose files are there by now; the rest is counted only.
        until_ms = min(within.end_ms, self._now_ms() - DAY_FILE_AFTER_MS)
        for day_ms in range(first_ms, until_ms - schema.DAY_MS + 1, schema.DAY_MS):
            yield _Piece(series, TimeRange(day_ms, day_ms + schema.DAY_MS))

    def _chosen(self, pieces: list[_Piece]) -> list[_Piece]:
        """All, or as many at random as the weight buys."""
        weight = self._options.sample_weight
        if weight is None:
            return pieces
        self._random.shuffle(pieces)
        chosen: list[_Piece] = []
        for piece in pieces:
            few = candles_in(piece.time_range, piece.series.length_ms) <= _ASK_LEAST_CANDLES
            weight -= _ASK_LEAST_WEIGHT if few else _WEIGHT
            if weight < 0:
                break
            chosen.append(piece)
        return chosen

    async def _work(self, queue: Iterator[_Piece]) -> None:
        for piece in queue:
            await self._compare(piece)
            self._done += 1

    async def _compare(self, piece: _Piece) -> None:
        series, time_range = piece
        try:
            truth = await self._truth(series, time_range)
        except ExchangeError as error:
            if len(self._errors) < NAMED:
                self._errors.append(f"{series.name}: {error}")
            self._add(series, await asyncio.to_thread(self._completeness, series, time_range))
            return
        for part in truth.unclear:
            # Neither wrong nor proven: what is there of it is counted in the journal.
            if len(self._errors) < NAMED:
                self._errors.append(f"{series.name}: odd rows for {part.start_ms} to {part.end_ms}")
            self._add(series, await asyncio.to_thread(self._completeness, series, part))
        found = await compare_stored(self._view, series, time_range, truth)
        missing, different = len(found.missing), len(found.different)
        self._add(
            series,
            _Sums(found.stored + missing, found.stored, missing, found.stored, different),
        )
        self.mending += found.mending
        self._lacking += len(found.lacking)
        self.filling += found.lacking[: FILLING_KEPT - len(self.filling)]
        room = NAMED - len(self._differences)
        self._differences += [str(one) for one in found.different[: max(0, room)]]

    async def _truth(self, series: CandleSeries, time_range: TimeRange) -> Klines:
        if self._archive is None:
            return await self._rest.klines(
                series.instrument, series.timeframe, *time_range, Priority.AUDIT
            )
        file = day_file(series.instrument.symbol, series.timeframe, time_range.start_ms)
        return Klines(await self._archive.candles(series.instrument, file))

    def _report(self) -> AuditReport:
        counted = [(one, self._sums.get(one, _Sums())) for one in self._series]
        total = _total(_Sums(), *(sums for _, sums in counted))
        bad = total.missing + total.different
        return AuditReport(
            source="rest" if self._archive is None else "archive",
            since_ms=self._options.since_ms,
            until_ms=self._until_ms,
            sampled=self._options.sample_weight is not None,
            expected=total.expected,
            stored=total.stored,
            missing=total.missing,
            compared=total.compared,
            different=total.different,
            repaired=0,
            percent=100.0 * (1 - bad / total.expected) if total.expected else 0.0,
            differences=self._differences,
            errors=self._errors,
            series=[
                SeriesAudit(one.instrument.pair, one.timeframe, *sums) for one, sums in counted
            ],
            lacking=self._lacking,
        )


async def compare_stored(
    view: JournalView, series: CandleSeries, time_range: TimeRange, truth: Klines
) -> CandleComparison:
    """Compare what is stored of a range, read now, with what the exchange has. Raises JournalError."""
    stored = await asyncio.to_thread(
        view.candles, series.instrument.pair, series.timeframe, time_range
    )
    return compare(stored, truth.candles, truth.unclear)
