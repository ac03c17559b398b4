"""Fills what is promised and missing, from REST or the public archive: all but what healing brings.

What is missing is known by the journal itself (`coverage`), so that it may be killed at any point: the next
run asks for what is missing then. The newest candles of every series come first, as bots wait for them.
Only holes are filled: what is stored is never touched here.

REST requests wait for their turn behind everything more urgent (`Priority.HISTORY`); at most one commit of
history stands before a live one.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from marketfeed.binance.archive import Archive
from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import (
    ExchangeError,
    ExchangeRefusedError,
    JournalError,
    OddAnswerError,
    backoff_s,
)
from marketfeed.gaps.holes import Holes
from marketfeed.grid import TimeRange, missing, without
from marketfeed.history.archive_fill import ArchiveFill, Source
from marketfeed.history.lacking import HistoryHoles
from marketfeed.history.plan import (
    CandleSeries,
    TileRequest,
    covering,
    in_order,
    those_within,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import AGAIN_AFTER_MS
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE: Final = 8
"""Requests under way; files of the archive, which are larger, half as many."""
ROWS_PER_COMMIT: Final = 1_000
DOUBTED_FOR_S: Final = AGAIN_AFTER_MS / 1000
"""Exchange seconds until what the exchange does not have is asked for again: a like answer is believed."""
ATTEMPTS: Final = 6
RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 32.0
SKIPPED_IN_A_ROW: Final = 8
"""After so many requests in a row that failed for good a pass ends: it is not the requests' fault."""
AGAIN_S: Final = 60.0
ODD_CAP_S: Final = 3_600.0
"""Exchange seconds until the next pass; after passes that only met odd rows twice as long each time."""
_REPLACED: Final = "the journal was replaced meanwhile"
PROGRESS_S: Final = 600.0
"""Exchange seconds for which filling that stores nothing is still under way."""
ROOM_KEPT: Final = 0.9
"""Share of `journal.max_bytes` up to which history is filled: beyond it would soon be deleted again."""
_STOCK_EVERY: Final = 50


class HistoryReport(msgspec.Struct, frozen=True):
    """How filling goes. `state`: `waiting` (not begun), `scanning`, `filling`, `complete`, `incomplete`.

    `candles_left` are promised and missing, of `candles` since nothing was. Others were `stored`, be it by
    healing; `absent` ones are not there on the exchange either. `left_s` are wall seconds, None while that
    is not known. `trouble` is empty when all is well.
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
    What has `ended` is filled, too, and no part of the report.
    `within` (exchange time): this is filled and nothing else, the newest candles too, as nobody else heals
    them; what closes later is not waited for. `newest_too`: the newest as they come, for the same reason.
    `first` is run before anything is asked for: another source, which fills what it has.
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
        ended: Callable[[], Sequence[tuple[Instrument, Sequence[str]]]] = lambda: (),
        within: TimeRange | None = None,
        newest_too: bool = False,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._writer = writer
        self._rest = rest
        self._clock = clock
        self._holes = HistoryHoles(holes, clock, series, within, ended, newest_too=newest_too)
        self._days = days
        self._max_bytes = max_bytes
        self._first = first
        self._archive = (
            None if archive is None else ArchiveFill(archive, source, self._holes.of, self._store)
        )
        self._doubted_for_s = doubted_for_s
        self._woken = asyncio.Event()
        self._storing = asyncio.Lock()
        self._stores = 0
        self._odd_passes = 0
        self._named_refused: set[str] = set()
        self._is_filling = False
        self._progressed_s = clock.elapsed_s()
        # Promised and missing, at the last look; since nothing was, how many were in all, and are absent.
        self._left_before = 0
        self._wanted = 0
        self._found_absent = 0
        self.first_pass = asyncio.Event()
        """Set when a pass has ended of which everything was known, whatever it has left."""
        self._trouble = Trouble(log, "history waits, trying again", "history goes on")
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._generation = self._writer.generation
        self._given_up = ""
        self._skipped_in_a_row = 0
        self._stored = 0
        if self._archive is not None:
            self._archive.begin()
        self._refused: set[str] = set()
        self._met_odd = False
        self._started_s = time.monotonic()

    def report(self) -> HistoryReport:
        """How filling goes now."""
        left, healings = self._holes.left()
        total = left.total()
        self._note_left(total)
        done = self._wanted - total
        passed_s = time.monotonic() - self._started_s
        state = self._state(total, healings)
        files = self._files()
        return HistoryReport(
            state=state,
            days=self._days,
            pairs=len(left),
            pairs_done=sum(not count for count in left.values()),
            candles=self._wanted,
            candles_left=total,
            stored=max(0, done - self._found_absent),
            absent=self._found_absent,
            files=files["read"],
            files_refused=files["refused"],
            files_absent=files["absent"],
            left_s=passed_s / done * total if state == "filling" and done > 0 else None,
            trouble=self._given_up or self._trouble.why,
        )

    def _state(self, left: int, healings: int) -> str:
        if not self.first_pass.is_set() and not self._is_filling:
            return "waiting"
        if not self._holes.are_known():
            return "scanning"
        if not left:
            return "complete"
        # What healing alone has still to bring is no reason to end with less.
        return "filling" if self._is_filling or left == healings else "incomplete"

    @property
    def is_filling(self) -> bool:
        """Whether a pass is under way."""
        return self._is_filling

    def _files(self) -> Counter[str]:
        return Counter() if self._archive is None else self._archive.files

    def is_stuck(self, pairs: Container[str]) -> bool:
        """Whether something of `pairs` is left to fill, and nothing was for ten minutes, by whomever."""
        left = self._holes.left()[0]
        self._note_left(left.total())
        is_late = self._clock.elapsed_s() - self._progressed_s > PROGRESS_S
        return is_late and any(count and pair in pairs for pair, count in left.items())

    def _note_left(self, left: int) -> None:
        """Count what is left, whoever stores the rest."""
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
        self._note_left(self._holes.left()[0].total())
        self._woken.set()

    async def run(self) -> None:
        """Fill, and look again now and then, until cancelled."""
        while True:
            self._woken.clear()
            await self.fill()
            if self._stored and not self._given_up and not self._met_odd and self._holes.lacking():
                # What healing was to bring as the pass began, and is too old for it by now.
                continue
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
        left = self._holes.left()[0].total()
        if not left:
            # What failed before may have been had otherwise.
            self._trouble.end()
        if self._holes.are_known():
            self.first_pass.set()
        if self._stored or self._given_up:
            log.info(
                "history stored=%d absent=%d left=%d files=%d files_refused=%d trouble=%r",
                self._stored,
                self._found_absent,
                left,
                self._files()["read"],
                self._files()["refused"],
                self._given_up,
            )

    async def _fill(self) -> None:
        if self._first is not None and self._holes.lacking():
            await self._first()
        lacking = self._holes.lacking()
        if not lacking:
            self._progressed_s = self._clock.elapsed_s()
            return
        self._note_left(self._holes.left()[0].total())
        log.info(
            "history to fill series=%d candles=%d",
            len(lacking),
            sum(one.candles for one in lacking),
        )
        plan = in_order(lacking)
        archive = self._archive
        if archive is not None and (files := archive.files_for(lacking, self._clock.now_ms())):
            if self._holes.newest_too:
                # The newest of each series from REST, whatever the archive has: bots wait for it.
                newest = itertools.takewhile(lambda request: request.wave == 0, plan)
                await self._all(newest, self._ask, AT_ONCE)
            await self._all(files, archive.take, AT_ONCE // 2)
            plan = in_order(self._holes.lacking())
        await self._all(plan, self._ask, AT_ONCE)
        if not self._is_over() and self._holes.any_doubted():
            await self._until_woken(self._clock.wall_s(self._doubted_for_s) + 0.01)
            await self._all(in_order(self._holes.lacking()), self._ask, AT_ONCE)

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
        name = series.name
        if name in self._refused:
            return
        holes = self._holes.of(series, request.time_range)
        for time_range, _ in covering(holes, series.length_ms):
            try:
                answer = await self._rest.klines(
                    series.instrument, series.timeframe, *time_range, Priority.HISTORY
                )
            except ExchangeRefusedError as error:
                if error.status != 400:
                    raise
                if self._holes.have_ended(series):
                    # That is an answer: it does not know the pair any more.
                    await self._take_answer(series, time_range, Klines([]))
                    continue
                if name not in self._named_refused:
                    log.error("history is refused series=%r error=%r", name, str(error))
                self._named_refused.add(name)
                self._refused.add(name)
                return
            except OddAnswerError:
                # Asked for in another pass: now it would only keep others waiting.
                answer = Klines([], [time_range])
            self._met_odd |= bool(answer.unclear)
            await self._take_answer(series, time_range, answer)

    async def _take_answer(
        self, series: CandleSeries, time_range: TimeRange, answer: Klines
    ) -> None:
        """Commit what the exchange has answered for a range, and what it does not have.

        An odd row is no answer.
        """
        opens = [candle.open_time_ms for candle in answer.candles]
        absent = without(missing(opens, time_range, series.length_ms), answer.unclear)
        before_ms = self._holes.absent_ms(series, absent)
        await self._store(series, answer.candles, self._holes.of(series, time_range), absent)
        if not self._holes.have_ended(series):
            newly_ms = self._holes.absent_ms(series, absent) - before_ms
            self._found_absent += newly_ms // series.length_ms

    async def _store(
        self,
        series: CandleSeries,
        candles: Sequence[Candle],
        holes: Sequence[TimeRange],
        absent: Sequence[TimeRange] = (),
    ) -> None:
        """Commit those candles that lie in holes, and where the exchange has none. Raises JournalError."""
        wanted = list(those_within(candles, holes))
        parts = [wanted[at : at + ROWS_PER_COMMIT] for at in range(0, len(wanted), ROWS_PER_COMMIT)]
        batches = [Batch(candles=part) for part in parts]
        if absent:
            batches = batches or [Batch()]
            batches[-1].absent = [(series.key, part, self._clock.now_ms()) for part in absent]
        for batch in batches:
            await self._commit(batch)

    async def _commit(self, batch: Batch) -> None:
        # One at a time, so that a live commit waits for one of these at most.
        async with self._storing:
            if self._writer.generation != self._generation:
                self._give_up(_REPLACED)
            elif self._writer.bytes_used > ROOM_KEPT * self._max_bytes:
                used, most = self._writer.bytes_used, self._max_bytes
                self._give_up(f"no room for more: {used:,} of journal.max_bytes {most:,} are used")
            if self._given_up:
                raise JournalError(self._given_up)
            try:
                # Of that file: one that has taken its place meanwhile lacks other things.
                await self._writer.call(lambda journal: journal.write(batch), self._generation)
            except JournalError:
                if self._writer.generation != self._generation:
                    self._give_up(_REPLACED)
                raise
            self._stored += len(batch.candles) + len(batch.marks)
            self._progressed_s = self._clock.elapsed_s()
            self._stores += 1
            if self._stores % _STOCK_EVERY == 0:
                await self._writer.take_stock()
