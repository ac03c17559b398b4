"""Fills what is promised and missing, from REST or the public archive, too: all but the newest candles.

What is missing is known by the journal itself (`coverage`), so that it may be killed at any point: the next
run asks for what is missing then. The newest candles of every series are left to healing, and come first.
Only holes are filled: what is stored is never touched here.

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
from marketfeed.gaps.holes import Holes
from marketfeed.grid import TimeRange, candles_in, missing, overlap, without
from marketfeed.history.plan import (
    CandleSeries,
    Lacking,
    TileRequest,
    covering,
    in_order,
    missing_days,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import AGAIN_AFTER_MS, Key
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

T = TypeVar("T")
Source = Literal["auto", "archive", "rest"]

AT_ONCE: Final = 8
"""Requests under way; files of the archive, which are larger, half as many."""
ROWS_PER_COMMIT: Final = 1_000
DOUBTED_FOR_S: Final = AGAIN_AFTER_MS / 1000
"""Exchange seconds until what the exchange does not have is asked for again: a like answer is believed."""
FEW_DAYS: Final = 3
"""The archive is asked when more days than these are missing of a series …"""
FILE_WORTH: Final = 200
"""… for files that bring at least so many candles: fewer are fetched from REST for a weight of 1 or 2."""
DAY_FILE_AFTER_MS: Final = 6 * schema.HOUR_MS
MONTH_FILE_AFTER_MS: Final = 3 * schema.DAY_MS
"""How long after its end a file is there."""
ATTEMPTS: Final = 6
RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 32.0
SKIPPED_IN_A_ROW: Final = 8
"""After so many requests in a row that failed for good a pass ends: it is not the requests' fault."""
AGAIN_S: Final = 60.0
ODD_CAP_S: Final = 3_600.0
"""Exchange seconds until the next pass; after passes that only met odd rows twice as long each time."""
PROGRESS_S: Final = 600.0
"""Exchange seconds for which filling that stores nothing is still under way."""
ROOM_KEPT: Final = 0.9
"""Share of `journal.max_bytes` up to which history is filled: beyond it would soon be deleted again."""
_STOCK_EVERY: Final = 50


class HistoryReport(msgspec.Struct, frozen=True):
    """How filling goes. `state`: `waiting` (not begun), `scanning`, `filling`, `complete`, `incomplete`.

    `candles_left` are promised and missing, `candles` those at the beginning of the pass; `absent` ones
    are not there on the exchange either. `left_s` are wall seconds, None while that is not known.
    `trouble` is empty when all is well.
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
        """Whether nothing is left."""
        return self.state == "complete"


class Backfill:
    """Fills what `holes` says of `series()` in the journal that `writer` writes.

    `days` is what the settings ask for, `max_bytes` the journal's disk budget. `archive` None: REST alone.
    `newest_too`: nobody else heals the newest candles.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        archive: Archive | None,
        clock: ExchangeClock,
        series: Callable[[], Sequence[tuple[Instrument, Sequence[str]]]],
        holes: Holes,
        days: int,
        max_bytes: int,
        source: Source = "auto",
        doubted_for_s: float = DOUBTED_FOR_S,
        *,
        newest_too: bool = False,
    ) -> None:
        self._writer = writer
        self._rest = rest
        self._archive = archive
        self._clock = clock
        self._series = series
        self._holes = holes
        self._days = days
        self._max_bytes = max_bytes
        self._source = source
        self._file_worth = 1 if source == "archive" else FILE_WORTH
        self._newest_too = newest_too
        self._doubted_for_s = doubted_for_s
        self._woken = asyncio.Event()
        self._storing = asyncio.Lock()
        self._stores = 0
        self._odd_passes = 0
        self._is_filling = False
        self._passes = 0
        self._progressed_s = clock.elapsed_s()
        # Promised and missing, at the last look; and since nothing was, how many were in all, and are absent.
        self._left_before = 0
        self._wanted = 0
        self._found_absent = 0
        self.first_pass = asyncio.Event()
        """Set when a pass has ended, whatever it has left."""
        self._trouble = Trouble(log, "history waits, trying again", "history goes on")
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._generation = self._writer.generation
        self._given_up = ""
        self._skipped_in_a_row = 0
        self._stored = 0
        self._files: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._met_odd = False
        self._started_s = time.monotonic()

    def report(self) -> HistoryReport:
        """How filling goes now."""
        names = self._names()
        left = self._left(names)
        total = left.total()
        self._note_left(total)
        done = self._wanted - total
        passed_s = time.monotonic() - self._started_s
        state = self._state(names, total)
        pairs = {one.instrument.pair for one in names}
        return HistoryReport(
            state=state,
            days=self._days,
            pairs=len(pairs),
            pairs_done=sum(left[pair] <= 0 for pair in pairs),
            candles=self._wanted,
            candles_left=total,
            stored=max(0, done - self._found_absent),
            absent=self._found_absent,
            files=self._files["read"],
            files_refused=self._files["refused"],
            files_absent=self._files["absent"],
            left_s=passed_s / done * total if state == "filling" and done > 0 else None,
            trouble=self._given_up or self._trouble.why,
        )

    @property
    def is_stuck(self) -> bool:
        """Whether something is left to fill, and for ten minutes nothing was, by healing neither."""
        self._note_left(self._left(self._names()).total())
        return self._clock.elapsed_s() - self._progressed_s > PROGRESS_S

    def _note_left(self, left: int) -> None:
        """Count what is left, whoever has stored the rest."""
        if left and not self._left_before:
            self._wanted, self._found_absent = left, 0
        elif left > self._left_before:
            self._wanted += left - self._left_before
        if not left or left < self._left_before:
            self._progressed_s = self._clock.elapsed_s()
        self._left_before = left

    def wake(self) -> None:
        """Have the next pass begin at once: the pairs have changed, or the journal was replaced.

        One that is under way ends for it: the newest candles of all series go first.
        """
        self._note_left(self._left(self._names()).total())
        self._woken.set()

    async def run(self) -> None:
        """Fill, and look again now and then, until cancelled."""
        while True:
            self._woken.clear()
            await self.fill()
            odd = self._met_odd and not self._stored and not self._given_up
            self._odd_passes = self._odd_passes + 1 if odd else 0
            wait_s = backoff_s(max(1, self._odd_passes), AGAIN_S, ODD_CAP_S)
            await self._until_woken(self._clock.wall_s(wait_s, RETRY_FIRST_S))

    async def _until_woken(self, timeout_s: float) -> None:
        await wait_at_most(timeout_s, self._woken)

    async def fill(self) -> None:
        """One pass: fill every hole. Never raises for what the exchange or the disk does."""
        self._begin_pass()
        self._is_filling = True
        try:
            await self._fill()
        except (ExchangeError, JournalError) as error:
            self._give_up(str(error))
        finally:
            self._is_filling = False
        if self._woken.is_set():
            # Broken off: the next one begins at once.
            return
        self._passes += 1
        left = self._left(self._names()).total()
        if not left:
            # What failed before may have been had otherwise.
            self._trouble.end()
        self.first_pass.set()
        if self._stored or self._given_up:
            log.info(
                "history stored=%d absent=%d left=%d files=%d files_refused=%d trouble=%r",
                self._stored,
                self._found_absent,
                left,
                self._files["read"],
                self._files["refused"],
                self._given_up,
            )

    async def _fill(self) -> None:
        lacking = self._lacking()
        if not lacking:
            self._progressed_s = self._clock.elapsed_s()
            return
        log.info(
            "history to fill series=%d candles=%d",
            len(lacking),
            sum(one.candles for one in lacking),
        )
        plan = in_order(lacking)
        files = self._files_for(lacking)
        if files and self._archive is not None:
            # The newest of each series from REST, whatever the archive has: bots wait for it.
            await self._all(itertools.takewhile(lambda t: t.wave == 0, plan), self._ask, AT_ONCE)
            await self._all(files, self._take_file, AT_ONCE // 2)
            plan = in_order(self._lacking())
        await self._all(plan, self._ask, AT_ONCE)
        if not self._is_over() and any(self._is_doubted(name) for name in self._names()):
            await self._until_woken(self._clock.wall_s(self._doubted_for_s) + 0.01)
            await self._all(in_order(self._lacking()), self._ask, AT_ONCE)

    # --- what is missing --------------------------------------------------------------------------

    def _names(self) -> list[CandleSeries]:
        return [
            CandleSeries(one, timeframe) for one, names in self._series() for timeframe in names
        ]

    def _state(self, names: Sequence[CandleSeries], left: int) -> str:
        known = self._holes.series()
        if not self._passes and not self._is_filling:
            return "waiting"
        for one in names:
            covered = known.get((one.instrument.pair, one.timeframe))
            if covered is None or not covered.is_looked_through:
                return "scanning"
        if not left:
            return "complete"
        return "filling" if self._is_filling else "incomplete"

    def _left(self, names: Iterable[CandleSeries]) -> Counter[str]:
        """How many candles each pair lacks: of what is filled here, and of a first filling all."""
        now_ms = self._clock.now_ms()
        left = Counter[str]()
        for one in names:
            key = one.instrument.pair, one.timeframe
            newest_ms = self._holes.newest(key, now_ms).start_ms
            for hole in self._holes.lacking(key, now_ms):
                if not hole.is_absent and (
                    hole.is_first or hole.start_ms < newest_ms or self._newest_too
                ):
                    left[one.instrument.pair] += candles_in(hole.time_range, one.length_ms)
        return left

    def _lacking(self) -> list[Lacking]:
        found = [Lacking(one, self._holes_of(one)) for one in self._names()]
        return [one for one in found if one.time_ranges]

    def _holes_of(
        self, series: CandleSeries, within: TimeRange | None = None
    ) -> tuple[TimeRange, ...]:
        """What is to be filled of a series now (the feed and healing fill holes, too)."""
        key = series.instrument.pair, series.timeframe
        holes = self._holes.for_history(key, self._clock.now_ms(), newest_too=self._newest_too)
        return holes if within is None else tuple(overlap(holes, within))

    def _is_doubted(self, series: CandleSeries) -> bool:
        """Whether the exchange has answered once without something that is to be filled."""
        key = series.instrument.pair, series.timeframe
        wanted = self._holes_of(series)
        return any(
            hole.empty_1_ms is not None
            and not hole.is_absent
            and any(overlap(wanted, hole.time_range))
            for hole in self._holes.lacking(key, self._clock.now_ms())
        )

    def _files_for(self, lacking: Sequence[Lacking]) -> list[tuple[CandleSeries, ArchiveFile]]:
        """The files of the archive that are worth asking for, the newest first."""
        few_ms = FEW_DAYS * schema.DAY_MS
        longest_ms = max(holes.candles * holes.series.length_ms for holes in lacking)
        if self._source == "rest" or (self._source == "auto" and longest_ms <= few_ms):
            return []
        found = [(holes.series, file) for holes in lacking for file in self._files_of(holes)]
        return sorted(found, key=lambda item: -item[1].time_range.end_ms)

    def _files_of(self, holes: Lacking) -> Iterator[ArchiveFile]:
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
        """Fill what is missing of its range by now (the feed and healing fill holes, too)."""
        series = request.series
        key = series.key
        if key in self._refused:
            return
        holes = self._holes_of(series, request.time_range)
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
            await self._store(answer.candles, holes)
            await self._note_absent(series, time_range, answer)

    async def _note_absent(
        self, series: CandleSeries, time_range: TimeRange, answer: Klines
    ) -> None:
        """Have it stored what the exchange has answered without. An odd row is no answer."""
        opens = [candle.open_time_ms for candle in answer.candles]
        absent = without(missing(opens, time_range, series.length_ms), answer.unclear)
        if not absent:
            return
        key = series.instrument.pair, series.timeframe
        before = self._absent_ms(key, time_range)
        batch = Batch()
        batch.absent = [(key, part, self._clock.now_ms()) for part in absent]
        await self._commit(batch)
        newly_ms = self._absent_ms(key, time_range) - before
        self._found_absent += newly_ms // series.length_ms

    def _absent_ms(self, key: Key, within: TimeRange) -> int:
        covered = self._holes.series().get(key)
        holes = () if covered is None else covered.holes
        parts = overlap([hole.time_range for hole in holes if hole.is_absent], within)
        return sum(end_ms - start_ms for start_ms, end_ms in parts)

    async def _take_file(self, item: tuple[CandleSeries, ArchiveFile]) -> None:
        """Fill from one file what it holds of the holes. A bad or absent file is left to REST."""
        series, file = item
        archive = self._archive
        if archive is None or self._files["unreachable"] >= SKIPPED_IN_A_ROW:
            return
        # Only so much of it as is wanted.
        holes = self._holes_of(series, file.time_range)
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
            await self._store(candles, holes)

    def _days_instead(
        self, series: CandleSeries, file: ArchiveFile, holes: Sequence[TimeRange]
    ) -> list[ArchiveFile]:
        days = missing_days(overlap(holes, file.time_range))
        return [
            day_file(series.instrument.symbol, series.timeframe, day_ms)
            for day_ms, missing_ms in sorted(days.items(), reverse=True)
            if missing_ms // series.length_ms >= self._file_worth
        ]

    async def _store(self, candles: Sequence[Candle], holes: Sequence[TimeRange]) -> None:
        """Commit those candles that lie in holes. Raises JournalError."""
        wanted = list(_within(candles, holes))
        for start in range(0, len(wanted), ROWS_PER_COMMIT):
            await self._commit(Batch(candles=wanted[start : start + ROWS_PER_COMMIT]))

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
            await self._writer.call(lambda journal: journal.write(batch))
            self._stored += len(batch.candles)
            self._progressed_s = self._clock.elapsed_s()
            self._stores += 1
            if self._stores % _STOCK_EVERY == 0:
                await self._writer.take_stock()


def _within(candles: Sequence[Candle], holes: Sequence[TimeRange]) -> Iterator[Candle]:
    """Those candles that lie in holes; both are in ascending order."""
    left = iter(holes)
    hole = next(left, None)
    for candle in candles:
        while hole is not None and hole.end_ms <= candle.open_time_ms:
            hole = next(left, None)
        if hole is not None and hole.start_ms <= candle.open_time_ms:
            yield candle
