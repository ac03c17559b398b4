"""Ships the journal into InfluxDB, by a cursor: what was acknowledged is remembered, nothing is queued.

Each turn takes the newest rows that have not been acknowledged, as they stand now; so after an outage live
data is live at once and the backlog takes the rest of each turn. A batch that is sent twice is harmless.
Memory holds two batches at most and one in doubt (`unanswered.py`), however long the outage.
"""

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from marketfeed.clock import wait_at_most
from marketfeed.counters import Lately, Trouble
from marketfeed.errors import JournalError, backoff_s
from marketfeed.grid import TimeRange
from marketfeed.influxdb.answers import Verdict
from marketfeed.influxdb.coverage_points import Coverage, CoveragePoints, LivesOf
from marketfeed.influxdb.delivery import Delivery, NotNowError
from marketfeed.influxdb.doubts import Doubts
from marketfeed.influxdb.held_back import HeldBack, is_state
from marketfeed.influxdb.holds import ALL, Again
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.latest_states import Fresh, States
from marketfeed.influxdb.line_protocol import LineError
from marketfeed.influxdb.mends import Mends
from marketfeed.influxdb.outbox import Outbox, Place, ShipBatch
from marketfeed.influxdb.pace import DEFAULT_PACE, Pace
from marketfeed.influxdb.ship_report import HELD_NAMED, ShipReport
from marketfeed.influxdb.shipped_file import Documents, Shipped, Writer
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.storage.ranges import Acknowledged

log = logging.getLogger(__name__)

T = TypeVar("T")

FEWEST_LINES: Final = 100
"""A request that fails is tried again with half its lines, down to so many."""
COUNT_EVERY_S: Final = 15.0
LAST_BATCHES: Final = 20
"""What is shipped at a stop at the most; a longer backlog waits in the journal for the next start."""


class _Look(NamedTuple):
    """What is read beside a batch: whether all is to be shipped again, what is fresh, when (monotonic)."""

    is_demanded: bool
    fresh: Fresh
    now_s: float


class _Taken(NamedTuple):
    """What is to be shipped next, of how many rows, whether there may be more, and what goes beside it."""

    batch: ShipBatch
    rows: int
    is_full: bool
    look: _Look | None


class Shipper:
    """Ships what `writer` has stored to `influx`; `run` goes on until `end` and one last turn.

    `now_ms` is the exchange's time, at which a catalog is shipped again, `coverage` tells what the file
    holds of candles, and `lives` of which contracts: a ledger has none of these. In `documents` it is kept
    what the bucket refuses as a whole, and `keeps_ms` asks for how long it keeps points.
    """

    def __init__(
        self,
        writer: Writer,
        influx: InfluxWriter,
        pace: Pace = DEFAULT_PACE,
        open_outbox: Callable[[Path, str], Outbox] = JournalOutbox,
        now_ms: Callable[[], int] | None = None,
        coverage: Callable[[], Coverage] | None = None,
        lives: Callable[[], LivesOf] | None = None,
        documents: Documents | None = None,
        keeps_ms: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        self._writer = writer
        self._open_file = open_outbox
        self._influx = influx
        self._pace = pace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ship")
        self._outbox: Outbox | None = None
        self._generation = 0
        self.shipped = Acknowledged({})
        self.mends = Mends()
        self._unanswered = UnansweredLines(pace.recheck_after_s)
        self.held = HeldBack(influx.target, documents, now_ms, keeps_ms)
        self._delivery = Delivery(
            influx, self._unanswered, self.held.hold, lambda: self.held.book.keeps_ms
        )
        self._states = States(pace.forming_every_s, now_ms)
        self._coverage = CoveragePoints(
            influx.target, pace.coverage_every_s, coverage, now_ms, lives
        )
        self._ending = asyncio.Event()
        self._limit: asyncio.Timeout | None = None
        self._is_demanded = False
        self._batch_size = pace.max_lines
        self._state = "shipping"
        self._trouble = Trouble(log, "shipping waits, all is kept", "shipping again")
        self._doubts = Doubts(
            self._unanswered,
            self._delivery,
            self._as_they_stand,
            self._put_aside,
            lambda: self._trouble.failures,
        )
        self._unshipped = 0
        self._counted_s = -COUNT_EVERY_S
        self.lines = 0
        self.refused = 0
        self.refusals = Lately()
        """When lines were refused last, with the answer."""

    def report(self) -> ShipReport:
        """How shipping goes now."""
        now_s = time.monotonic()
        acknowledged_s = self._delivery.acknowledged_s
        holds = self.held.book.holds
        return ShipReport(
            target=self._influx.target,
            state=self._state,
            trouble=self._trouble.why,
            trouble_for_s=self._trouble.for_s,
            unshipped=self._unshipped,
            lines=self.lines,
            refused=self.refused,
            batches=self._delivery.requests,
            acknowledged_ago_s=None if acknowledged_s is None else now_s - acknowledged_s,
            in_doubt=len(self._unanswered),
            held=[str(hold) for hold in holds[:HELD_NAMED]],
            held_shards=len(holds),
        )

    def shipped_below(self) -> int:
        """All rows with a smaller seq have been acknowledged: retention may delete them."""
        return self.shipped.first_gap(self._writer.next_seq)

    def end(self) -> None:
        """Prepare for the collector's stop: one last turn is tried, within the pace's `last_s`."""
        self._ending.set()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._pace.last_s)

    async def run(self) -> None:
        """Ship until `end`; no answer of the server and no state of the disk ends it before."""
        try:
            async with asyncio.timeout(None) as self._limit:
                if self._ending.is_set():
                    self.end()
                while not self._ending.is_set():
                    await self._turns()
                await self._last_turn()
        except TimeoutError:
            if not self._ending.is_set():
                raise
            log.info("stopping with rows unshipped: they are in the journal error='no answer'")
        finally:
            self._limit = None
            await self._in_thread(self._close_outbox)
            self._thread.shutdown(wait=False)

    async def _turns(self) -> None:
        """Ship turn after turn; returns after a failure, once it has been waited for."""
        try:
            await self._begin()
            await self._doubts.probe(self._batch_size)
            await self._doubts.recheck(time.monotonic(), self._batch_size)
            if (hold_s := self._unanswered.hold_s(time.monotonic())) > 0:
                await self._rest(hold_s)
                return
            ahead = asyncio.create_task(self._take(self.shipped))
            noting = asyncio.create_task(self._note([]))
            try:
                while not (
                    self._ending.is_set()
                    or self._is_demanded
                    or self._generation != self._writer.generation
                ):
                    started_s = time.monotonic()
                    batch, rows, full, look = await ahead
                    if full:
                        # The next batch is read while this one travels.
                        assumed = self.shipped.copy()
                        for piece in batch.covers:
                            assumed.add(piece)
                        ahead = asyncio.create_task(self._take(assumed))
                    await self._doubts.recheck(started_s, self._batch_size)
                    acknowledged = await self._ship(batch, rows)
                    if look is not None:
                        await self._ship_states(look)
                    await self._tend(started_s, full=full)
                    self._recovered()
                    await noting
                    # Saved while the next batch travels: what is not saved is sent again, harmlessly.
                    noting = asyncio.create_task(self._note(acknowledged))
                    if not full:
                        await noting
                        await self._rest(self._pace.turn_s - (time.monotonic() - started_s))
                        ahead = asyncio.create_task(self._take(self.shipped))
            finally:
                ahead.cancel()
                # Ranges that could not be saved are saved with the next ones, or their rows sent again.
                await asyncio.gather(ahead, noting, return_exceptions=True)
        except NotNowError as error:
            await self._rest(self._delay_s(error.verdict))
        except JournalError as error:
            await self._rest(self._delay_s(Verdict("retryable", str(error))))

    async def _begin(self) -> None:
        """Find out where shipping stands: at first, in another journal, and when it is to begin again."""
        if self._generation == self._writer.generation and not self._is_demanded:
            return
        generation = self._writer.generation
        # In the thread, after whatever still reads there: a read must not outlive the file it began with.
        await self._in_thread(self._open_outbox)

        def stand(file: Shipped) -> tuple[bool, Acknowledged]:
            target = self._influx.target
            return file.forget_if_demanded(target), file.shipped(target)

        begins_again, self.shipped = await self._writer.call(stand)
        if begins_again:
            log.warning(
                "everything is shipped again, as was demanded target=%r", self._influx.target
            )
            self._counted_s = -COUNT_EVERY_S
        await self.held.begin(anew=begins_again)
        self._is_demanded = False
        self._states.begin_anew()
        self._coverage.begin_anew()
        self._generation = generation

    async def _last_turn(self) -> None:
        try:
            await self._begin()
            for _ in range(LAST_BATCHES):
                batch, rows, full, _ = await self._take(self.shipped)
                await self._note(await self._ship(batch, rows))
                if not full:
                    break
            # There will be no better time for it.
            await self._doubts.recheck(math.inf, self._batch_size)
        except (NotNowError, JournalError) as error:
            log.info("stopping with rows unshipped: they are in the journal error=%r", str(error))

    async def _take(self, shipped: Acknowledged) -> _Taken:
        """Read what is to be shipped next."""
        batch_size, target = self._batch_size, self._influx.target

        def take() -> _Taken:
            outbox = self._the_outbox()
            look = None
            if self._states.are_due(now_s := time.monotonic()):
                # Before the batch, and shipped after it: no forming candle arrives before the closed one
                # that it follows.
                look = _Look(outbox.is_demanded_again(target), self._states.take(outbox), now_s)
            if time.monotonic() - self._counted_s >= COUNT_EVERY_S:
                self._unshipped = outbox.count_unshipped(shipped)
                self._counted_s = time.monotonic()
            batch = outbox.newest(shipped, batch_size)
            rows = len(batch.lines)
            sent = batch._replace(lines=self.held.sent(batch.lines))
            return _Taken(sent, rows, rows >= batch_size, look)

        return await self._in_thread(take)

    async def _ship(self, batch: ShipBatch, rows: int) -> list[tuple[str, int, int]]:
        """Have the server take a batch; returns the ranges to note, grown together."""
        if batch.lines:
            refused = await self._delivery.rows(batch.lines, self._batch_size)
            if refused:
                await self._put_aside(refused)
            self.lines += len(batch.lines) - len(refused)
        self._unshipped = max(0, self._unshipped - rows)
        await self.held.save()
        return [grown for piece in batch.covers for grown in self.shipped.add(piece)]

    async def _as_they_stand(self, lines: list[str]) -> list[str | None]:
        return await self._in_thread(lambda: self._the_outbox().as_they_stand(lines))

    async def _note(self, acknowledged: list[tuple[str, int, int]]) -> None:
        """Save what has been acknowledged, in the journal whose numbers these are."""
        if not acknowledged:
            return
        generation = self._generation

        def note(file: Shipped) -> None:
            # Replaced while the lines travelled: a fresh journal gives the same numbers to other rows,
            # which would never be shipped. Files are replaced in this thread alone.
            if self._writer.generation == generation:
                file.note_shipped(self._influx.target, acknowledged)

        await self._writer.call(note)

    async def _ship_states(self, look: _Look) -> None:
        self._is_demanded, fresh, now_s = look
        # After the candles of which it speaks.
        texts = self.held.sent([*fresh.texts, *await self._coverage_lines(now_s)])
        refused = await self._delivery.states(texts, self._batch_size)
        # Counted, not put aside: the next state comes, they would push out all other lines, and sent
        # again one day they would undo a later state.
        if refused:
            self.refusals.met(refused[0][1])
        self.refused += len(refused)
        self._states.note_refused(refused)
        self.lines += len(texts) - len(refused)
        self._states.note(fresh, now_s)
        self._coverage.written(now_s)

    async def _coverage_lines(self, now_s: float) -> list[str]:
        if not self._coverage.is_due:
            return []
        await self._in_thread(lambda: self._coverage.look(self._the_outbox(), self.shipped))
        # A commit whose rows were seen is known of once the writer's thread is done with it.
        await self._writer.call(lambda _: None)
        if self._is_demanded or self._generation != self._writer.generation:
            # Rows of one file say nothing of another.
            return []
        return await self._in_thread(lambda: self._coverage.lines(now_s, self.held.lacking))

    async def _tend(self, started_s: float, *, full: bool) -> None:
        """See to what is held back: first what is new, then for the rest of a turn what is sent again."""
        await self.held.look(started_s)
        every_s = self._pace.probe_every_s
        released = await self.held.probe(self._delivery, self._as_they_stand, started_s, every_s)
        if any(map(is_state, released)):
            # Noted as shipped, and never taken: a catalog would come tomorrow.
            self._states.begin_anew()
        self.lines += await self.mends.send(
            self._delivery, self._as_they_stand, self.held.sent, self._put_aside, self._batch_size
        )
        # One batch at least: a server that needs a turn for what is new would never get what waited.
        while not (full or self._ending.is_set()):
            sent = await self.held.send_again(
                self._delivery, self._between, self._put_aside, self._batch_size
            )
            self.lines += sent
            if not sent or time.monotonic() - started_s >= self._pace.turn_s:
                break
        await self.held.save()

    async def _between(
        self, again: Again, place: Place, max_lines: int
    ) -> tuple[list[str], Place | None]:
        measurement = None if again.measurement == ALL else again.measurement
        span = TimeRange(again.start_ms, again.end_ms)
        return await self._in_thread(
            lambda: self._the_outbox().between(measurement, span, place, max_lines)
        )

    async def _put_aside(self, refused: list[tuple[str, str]]) -> None:
        log.error(
            "lines refused and put aside lines=%d first_answer=%r first_line=%r",
            len(refused),
            refused[0][1],
            refused[0][0],
        )
        self.refusals.met(refused[0][1])
        now_ms = time.time_ns() // 1_000_000
        gone = await self._writer.call(
            lambda journal: journal.put_aside(self._influx.target, refused, now_ms)
        )
        if gone:
            log.error("refused lines gone, too many to keep lines=%d", gone)
        self.refused += len(refused)

    def _recovered(self) -> None:
        self._batch_size = min(2 * self._batch_size, self._pace.max_lines)
        self._trouble.end()
        self._state = "shipping"

    def _delay_s(self, verdict: Verdict) -> float:
        parked = verdict.action == "misconfigured"
        self._trouble.met(verdict.text, logging.ERROR if parked else logging.WARNING)
        self._state = "parked" if parked else "waiting"
        if parked:
            return self._pace.parked_s
        # Full jitter, so that two collectors do not try at the same time.
        pace = self._pace
        delay_s = random.uniform(
            0.0, backoff_s(self._trouble.failures, pace.backoff_first_s, pace.backoff_cap_s)
        )
        if verdict.after_s is not None:
            # A server that wishes no time, or one that is past, is not tried without end.
            return max(verdict.after_s, delay_s)
        # It may be the size: some servers hang up on large requests, or need too long for them.
        self._batch_size = max(self._batch_size // 2, min(FEWEST_LINES, self._pace.max_lines))
        return delay_s

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            await wait_at_most(seconds, self._ending)

    def _open_outbox(self) -> None:
        self._close_outbox()
        self._outbox = self._open_file(self._writer.path, socket.gethostname())

    def _close_outbox(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None

    def _the_outbox(self) -> Outbox:
        if self._outbox is None:
            raise JournalError(f"journal {self._writer.path}: not open for shipping")
        return self._outbox

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except LineError as error:
            # No row of the journal can hold such a number; if one does, nothing may be skipped silently.
            raise NotNowError(
                Verdict("misconfigured", f"a row cannot be written as a line: {error}")
            ) from error
