"""Fills the journal's holes back to the beginning of its history, from REST or the public archive, too.

What is missing is found in the journal itself, so that it may be killed at any point: the next run asks
for what is missing then. The newest candles of every series come first, feeders need not wait for the
rest. Only holes are filled: what is stored is never touched here.

REST requests wait for their turn behind everything more urgent (`Priority.HISTORY`); at most one commit of
history stands before a live one.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, TypeVar

import msgspec

from marketfeed import schema
from marketfeed.binance.archive import Archive, ArchiveFile, day_file, month_file, month_of
from marketfeed.binance.budget import Priority
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import ExchangeClock, wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import (
    ArchiveAbsentError,
    ArchiveError,
    ExchangeError,
    ExchangeRefusedError,
    JournalError,
    OddAnswerError,
    backoff_s,
)
from marketfeed.gaps.deadlines import WATCHED_BEFORE_MS
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in, missing, overlap, without
from marketfeed.history.absent import Absent, SuspectedAbsent
from marketfeed.history.plan import (
    CandleSeries,
    Holes,
    TileRequest,
    covering,
    in_order,
    missing_days,
    range_of,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

T = TypeVar("T")
Source = Literal["auto", "archive", "rest"]

ABSENT: Final = "history_absent"
"""The journal's document of what the exchange does not have."""
AT_ONCE: Final = 8
"""Requests under way; files of the archive, which are larger, half as many."""
ROWS_PER_COMMIT: Final = 1_000
LEAVE_NEWEST_MS: Final = WATCHED_BEFORE_MS
"""What closed less than this ago is left to the feed and to healing, which await it from the start."""
MAY_BE_LATE_MS: Final = schema.HOUR_MS
"""For so long after its close a candle that the exchange does not have may still come."""
DOUBTED_FOR_S: Final = 60.0
"""Exchange seconds until what the exchange does not have is asked for again: a like answer is believed."""
FEW_DAYS: Final = 3
"""The archive is asked when more days than these are missing of a series …"""
FILE_WORTH: Final = 200
"""… for files that bring at least so many candles: fewer are fetched from REST for a weight of 1 or 2."""
DAY_FILE_AFTER_MS: Final = 6 * schema.HOUR_MS
MONTH_FILE_AFTER_MS: Final = 3 * schema.DAY_MS
"""How long after its end a file is there."""
GIVEN_UP_AFTER_S: Final = 600.0
"""Exchange seconds for which a series counts as unfilled for what the exchange answers without."""
ATTEMPTS: Final = 6
RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 32.0
SKIPPED_IN_A_ROW: Final = 8
"""After so many requests in a row that failed for good a pass ends: it is not the requests' fault."""
AGAIN_S: Final = 60.0
LOOK_AGAIN_S: Final = 3_600.0
"""Exchange seconds until the next pass: after one that left or stored something; after one that found all.

After passes that only met odd rows it is twice as long each time, from the one to the other.
"""
ROOM_KEPT: Final = 0.9
"""Share of `journal.max_bytes` up to which history is filled: beyond it would soon be deleted again."""
_STOCK_EVERY: Final = 50


class HistoryReport(msgspec.Struct, frozen=True):
    """How filling goes. `state`: `waiting` (not begun), `scanning`, `filling`, `complete`, `incomplete`.

    Candles are those missing at the beginning of the pass; `absent` ones are not there on the exchange
    either. `left_s` are wall seconds, None while that is not known. `trouble` is empty when all is well.
    """

    state: str
    days: int
    pairs: int
    pairs_done: int
    candles: int
    candles_left: int
    stored: int
    absent: int
    files: int
    files_refused: int
    files_absent: int
    left_s: float | None
    trouble: str

    @property
    def complete(self) -> bool:
        """Whether the last pass has left nothing."""
        return self.state == "complete"


class Backfill:
    """Fills the history of `series()` in the journal that `writer` writes.

    `keep_ms` is how far back; `max_bytes` the journal's disk budget. `archive` None: REST alone.
    `on_stored` hears of what was stored. A pass is not complete while any of `left_to_healing()` candles,
    which are newer than what is filled here, are not there.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        archive: Archive | None,
        clock: ExchangeClock,
        series: Callable[[], Sequence[tuple[Instrument, Sequence[str]]]],
        keep_ms: int,
        max_bytes: int,
        source: Source = "auto",
        leave_newest_ms: int = LEAVE_NEWEST_MS,
        doubted_for_s: float = DOUBTED_FOR_S,
        on_stored: Callable[[Sequence[Candle]], None] = lambda _: None,
        left_to_healing: Callable[[], int] = lambda: 0,
    ) -> None:
        self._writer = writer
        self._view = JournalView(writer.path)
        self._rest = rest
        self._archive = archive
        self._clock = clock
        self._series = series
        self._keep_ms = keep_ms
        self._max_bytes = max_bytes
        self._source = source
        self._file_worth = 1 if source == "archive" else FILE_WORTH
        self._leave_newest_ms = leave_newest_ms
        self._doubted_for_s = doubted_for_s
        self._on_stored = on_stored
        self._left_to_healing = left_to_healing
        # How many of its newest candles a series lacks, by the journal's generation and its key; and since
        # when (s) the exchange answers without them.
        self._newest_lacking: dict[tuple[int, str], int] = {}
        self._without_s: dict[str, float] = {}
        self._absent = Absent()
        self._suspected = SuspectedAbsent()
        self._woken = asyncio.Event()
        self._storing = asyncio.Lock()
        self._stores = 0
        self._odd_passes = 0
        self._state = "waiting"
        self.first_pass = asyncio.Event()
        """Set when a pass has ended, whatever it has left."""
        self._trouble = Trouble(log, "history waits, trying again", "history goes on")
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._generation = self._writer.generation
        self._given_up = ""
        self._skipped_in_a_row = 0
        self._left: Counter[str] = Counter()
        self._pairs: set[str] = set()
        self._wanted = 0
        self._stored = 0
        self._found_absent = 0
        self._files: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._met_odd = False
        self._scanned = False
        self._started_s = time.monotonic()

    def report(self) -> HistoryReport:
        """How filling goes now."""
        left = self._left.total()
        done = self._wanted - left
        awaited = self._left_to_healing()
        state = "filling" if awaited and self._state == "complete" else self._state
        passed_s = time.monotonic() - self._started_s
        known = self._state == "filling" and done > 0
        replaced = self._writer.generation != self._generation
        return HistoryReport(
            # Nothing of what was reported of the file before holds for a fresh one.
            state="waiting" if replaced else state,
            days=self._keep_ms // schema.DAY_MS,
            pairs=len(self._pairs),
            pairs_done=sum(self._left[pair] <= 0 for pair in self._pairs),
            candles=self._wanted + awaited,
            candles_left=left + awaited,
            stored=self._stored,
            absent=self._found_absent,
            files=self._files["read"],
            files_refused=self._files["refused"],
            files_absent=self._files["absent"],
            left_s=passed_s / done * left if known else None,
            trouble=self._given_up or self._trouble.why,
        )

    def unfilled(self) -> list[str]:
        """The series that lack some of their newest 499 candles, or were not looked through yet.

        What the exchange answers without for ten minutes does not count.
        """
        generation = self._writer.generation
        given_up_s = self._clock.elapsed_s() - GIVEN_UP_AFTER_S
        keys = [CandleSeries(one, name).key for one, names in self._series() for name in names]
        return [
            key
            for key in keys
            if self._newest_lacking.get((generation, key), 1)
            and self._without_s.get(key, given_up_s) >= given_up_s
        ]

    def is_complete(self, pair: str) -> bool:
        """Whether the last pass has left nothing of a pair, whatever it has left of others."""
        ended = self._state in ("complete", "incomplete") and self._scanned
        return ended and self._writer.generation == self._generation and self._left[pair] <= 0

    def wake(self) -> None:
        """Have the next pass begin at once: the pairs have changed, or the journal was replaced.

        One that is under way ends for it: the newest candles of all series go first.
        """
        self._woken.set()

    async def run(self) -> None:
        """Fill, and look again now and then, until cancelled."""
        while True:
            self._woken.clear()
            await self.fill()
            # After one that stored something, too: what closed within its last minute was left out, and
            # at a first start the feed has not brought it.
            done = self.report().complete and not self._stored
            odd = self._met_odd and not self._stored and not self._given_up
            self._odd_passes = self._odd_passes + 1 if odd else 0
            wait_s = LOOK_AGAIN_S if done else AGAIN_S
            if odd:
                wait_s = backoff_s(self._odd_passes, AGAIN_S, LOOK_AGAIN_S)
            await self._until_woken(self._clock.wall_s(wait_s, RETRY_FIRST_S))

    async def _until_woken(self, timeout_s: float) -> None:
        await wait_at_most(timeout_s, self._woken)

    async def fill(self) -> None:
        """One pass: find every hole and fill it. Never raises for what the exchange or the disk does."""
        self._begin_pass()
        try:
            await self._fill()
        except (ExchangeError, JournalError) as error:
            self._give_up(str(error))
        if self._woken.is_set():
            # Broken off: the next one begins at once.
            return
        left = self._left.total()
        self._state = "incomplete" if left or self._given_up else "complete"
        if self._state == "complete":
            # What failed before may have been had otherwise.
            self._trouble.end()
        self.first_pass.set()
        if self._stored or self._found_absent or self._given_up:
            log.info(
                "history %s stored=%d absent=%d left=%d files=%d files_refused=%d trouble=%r",
                self._state,
                self._stored,
                self._found_absent,
                left,
                self._files["read"],
                self._files["refused"],
                self._given_up,
            )

    async def _fill(self) -> None:
        self._absent = Absent(await asyncio.to_thread(self._view.document, ABSENT))
        lacking = await self._scan()
        self._suspected.keep({holes.series.key for holes in lacking})
        if not lacking:
            return
        log.info(
            "history to fill pairs=%d series=%d candles=%d",
            len(self._pairs),
            len(lacking),
            self._wanted,
        )
        self._state = "filling"
        plan = in_order(lacking)
        files = self._files_for(lacking)
        if files and self._archive is not None:
            # The newest of each series from REST, whatever the archive has: bots wait for it.
            await self._all(itertools.takewhile(lambda t: t.wave == 0, plan), self._ask, AT_ONCE)
            await self._all(files, self._take_file, AT_ONCE // 2)
            plan = in_order(await self._scan())
            self._state = "filling"
        await self._all(plan, self._ask, AT_ONCE)
        if self._suspected and self._left.total() and not self._is_over():
            await self._until_woken(self._clock.wall_s(self._doubted_for_s) + 0.01)
            plan = in_order(await self._scan())
            self._state = "filling"
            await self._all(plan, self._ask, AT_ONCE)
        if self._found_absent:
            now_ms = self._clock.now_ms()
            await self._writer.save_document(ABSENT, self._absent.document(now_ms), now_ms)

    # --- what is missing --------------------------------------------------------------------------

    async def _scan(self) -> list[Holes]:
        """Look through the journal for holes, and count them."""
        self._state, self._scanned = "scanning", False
        now_ms = self._clock.now_ms()
        found: list[Holes] = []
        self._left.clear()
        for instrument, timeframes in self._series():
            self._pairs.add(instrument.pair)
            for timeframe in timeframes:
                series = CandleSeries(instrument, timeframe)
                within = range_of(series, now_ms - self._keep_ms, now_ms - self._leave_newest_ms)
                holes = await self._holes(series, within)
                newest_ms = within.end_ms - TILE_CANDLES * series.length_ms
                self._note_newest(series, overlap(holes, TimeRange(newest_ms, within.end_ms)))
                if holes:
                    found.append(Holes(series, within, holes))
                    self._left[instrument.pair] += found[-1].candles
        self._wanted = max(self._wanted, self._stored + self._found_absent + self._left.total())
        self._scanned = True
        return found

    def _note_newest(
        self, series: CandleSeries, holes: Iterable[TimeRange], *, answered: bool = False
    ) -> None:
        """Note what is lacking of a series' newest candles; `answered`: the exchange was asked for it."""
        lacking = _candles(holes, series)
        self._newest_lacking[self._generation, series.key] = lacking
        if not lacking:
            self._without_s.pop(series.key, None)
        elif answered:
            self._without_s.setdefault(series.key, self._clock.elapsed_s())

    async def _holes(self, series: CandleSeries, within: TimeRange) -> tuple[TimeRange, ...]:
        pair, timeframe = series.instrument.pair, series.timeframe
        holes = await asyncio.to_thread(self._view.holes, pair, timeframe, within)
        return without(holes, self._absent.of(series.key, self._clock.now_ms()))

    def _files_for(self, lacking: Sequence[Holes]) -> list[tuple[CandleSeries, ArchiveFile]]:
        """The files of the archive that are worth asking for, the newest first."""
        few_ms = FEW_DAYS * schema.DAY_MS
        longest_ms = max(holes.candles * holes.series.length_ms for holes in lacking)
        if self._source == "rest" or (self._source == "auto" and longest_ms <= few_ms):
            return []
        found = [(holes.series, file) for holes in lacking for file in self._files_of(holes)]
        return sorted(found, key=lambda item: -item[1].time_range.end_ms)

    def _files_of(self, holes: Holes) -> Iterator[ArchiveFile]:
        series, now_ms = holes.series, self._clock.now_ms()
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

    # --- doing it ---------------------------------------------------------------------------------

    async def _all(
        self, items: Iterable[T], take: Callable[[T], Awaitable[None]], at_once: int
    ) -> None:
        """Take all items in their order, a few at a time; what fails for good is left for another pass."""
        queue = iter(items)
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._work(queue, take), name="history")

    async def _work(self, queue: Iterator[T], take: Callable[[T], Awaitable[None]]) -> None:
        for item in queue:
            for attempt in range(1, ATTEMPTS + 1):
                if self._is_over():
                    return
                try:
                    await take(item)
                    self._skipped_in_a_row = 0
                    self._trouble.end()
                    break
                except (ExchangeError, JournalError) as error:
                    self._trouble.met(error)
                if self._is_over():
                    return
                await asyncio.sleep(backoff_s(attempt, RETRY_FIRST_S, RETRY_CAP_S))
            else:
                self._skipped_in_a_row += 1
                if self._skipped_in_a_row >= SKIPPED_IN_A_ROW:
                    self._give_up(self._trouble.why)

    def _is_over(self) -> bool:
        return bool(self._given_up) or self._woken.is_set()

    def _give_up(self, why: str) -> None:
        if not self._given_up:
            self._given_up = why or "given up"
            log.warning("history pass given up error=%r", why)

    async def _ask(self, request: TileRequest) -> None:
        """Fill what a request is for, and note what its series' newest candles lack then."""
        await self._fill_tile_request(request)
        if request.wave == 0 and self._newest_lacking[self._generation, request.series.key]:
            holes = await self._holes(request.series, request.time_range)
            self._note_newest(request.series, holes, answered=True)

    async def _fill_tile_request(self, request: TileRequest) -> None:
        """Fill what is missing of its range by now (the feed and healing fill holes, too)."""
        series = request.series
        pair, key = series.instrument.pair, series.key
        if key in self._refused:
            return
        holes = await self._holes(series, request.time_range)
        self._left[pair] -= request.candles - _candles(holes, series)
        for time_range, _ in covering(holes, series.length_ms):
            try:
                answer = await self._rest.klines(
                    series.instrument, series.timeframe, *time_range, Priority.HISTORY
                )
            except ExchangeRefusedError as error:
                if error.status != 400:
                    raise
                if key not in self._refused:
                    log.error("history is refused series=%r error=%r", key, str(error))
                self._refused.add(key)
                return
            except OddAnswerError:
                # Asked for in another pass: now it would only keep others waiting.
                answer = Klines([], [time_range])
            self._met_odd |= bool(answer.unclear)
            stored = await self._store(answer.candles, holes)
            absent = self._note_absent(series, time_range, answer)
            self._left[pair] -= stored + absent

    def _note_absent(self, series: CandleSeries, time_range: TimeRange, answer: Klines) -> int:
        """Remember what the exchange does not have; returns how many candles of the range that are.

        It has a row for every interval of a listed pair, and what is new may only be late. So it must
        have answered so a while ago, too: until then these candles are left. An odd row is no answer.
        """
        now_ms = self._clock.now_ms()
        opens = [candle.open_time_ms for candle in answer.candles]
        lacking = [
            part
            for part in without(missing(opens, time_range, series.length_ms), answer.unclear)
            if part.end_ms <= now_ms - MAY_BE_LATE_MS
        ]
        absent = self._suspected.take(
            series.key, time_range, lacking, self._clock.elapsed_s(), self._doubted_for_s
        )
        if absent:
            self._absent.note(series, absent, now_ms)
        count = _candles(absent, series)
        self._found_absent += count
        return count

    async def _take_file(self, item: tuple[CandleSeries, ArchiveFile]) -> None:
        """Fill from one file what it holds of the holes. A bad or absent file is left to REST."""
        series, file = item
        archive = self._archive
        if archive is None or self._files["unreachable"] >= SKIPPED_IN_A_ROW:
            return
        # Only so much of it as is wanted.
        now_ms = self._clock.now_ms()
        within = range_of(series, now_ms - self._keep_ms, now_ms - self._leave_newest_ms)
        holes = await self._holes(series, next(overlap([within], file.time_range), TimeRange(0, 0)))
        if not holes:
            return
        try:
            candles = await archive.candles(series.instrument, file)
            self._files["unreachable"] = 0
        except ArchiveAbsentError:
            self._files["absent"] += 1
            if file.time_range.end_ms - file.time_range.start_ms > schema.DAY_MS:
                for day in self._days_instead(series, file, holes):
                    await self._take_file((series, day))
        except ArchiveError as error:
            self._files["refused"] += 1
            log.warning("archive file refused, REST instead error=%r", str(error))
        except ExchangeError as error:
            self._files["unreachable"] += 1
            if self._files["unreachable"] == SKIPPED_IN_A_ROW:
                log.warning("archive cannot be fetched, REST instead error=%r", str(error))
        else:
            self._files["read"] += 1
            self._left[series.instrument.pair] -= await self._store(candles, holes)

    def _days_instead(
        self, series: CandleSeries, file: ArchiveFile, holes: Sequence[TimeRange]
    ) -> list[ArchiveFile]:
        days = missing_days(overlap(holes, file.time_range))
        return [
            day_file(series.instrument.symbol, series.timeframe, day_ms)
            for day_ms, missing_ms in sorted(days.items(), reverse=True)
            if missing_ms // series.length_ms >= self._file_worth
        ]

    async def _store(self, candles: Sequence[Candle], holes: Sequence[TimeRange]) -> int:
        """Commit those candles that lie in holes. Returns how many. Raises JournalError."""
        wanted = list(_within(candles, holes))
        for start in range(0, len(wanted), ROWS_PER_COMMIT):
            await self._commit(Batch(candles=wanted[start : start + ROWS_PER_COMMIT]))
        return len(wanted)

    async def _commit(self, batch: Batch) -> None:
        # One at a time, so that a live commit waits for one of these at most.
        async with self._storing:
            if self._writer.generation != self._generation:
                self._give_up("the journal was replaced meanwhile")
            elif self._writer.bytes_used > ROOM_KEPT * self._max_bytes:
                used, most = self._writer.bytes_used, self._max_bytes
                self._give_up(f"no room for more: {used:,} of journal.max_bytes {most:,} are used")
            if self._given_up:
                raise JournalError(self._given_up)
            self._stored += await self._writer.call(lambda journal: journal.write(batch))
            self._on_stored(batch.candles)
            self._stores += 1
            if self._stores % _STOCK_EVERY == 0:
                await self._writer.take_stock()


def _candles(time_ranges: Iterable[TimeRange], series: CandleSeries) -> int:
    return sum(candles_in(time_range, series.length_ms) for time_range in time_ranges)


def _within(candles: Sequence[Candle], holes: Sequence[TimeRange]) -> Iterator[Candle]:
    """Those candles that lie in holes; both are in ascending order."""
    left = iter(holes)
    hole = next(left, None)
    for candle in candles:
        while hole is not None and hole.end_ms <= candle.open_time_ms:
            hole = next(left, None)
        if hole is not None and hole.start_ms <= candle.open_time_ms:
            yield candle
