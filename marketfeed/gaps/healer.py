"""Closes holes: what the supervisor finds missing is fetched by REST and takes the way of all candles.

A fetched candle goes through the intake into the journal, where it gives way to none with fewer trades; the
supervisor sees it there, and the gap is healed in the same commit. The newest holes go first. While REST
fails, one request at a time asks whether it is back; holes stay holes, and nothing is given up for that.
What REST answers without is asked for again with growing pauses, and is `unresolvable` in the end; what it
answers an odd row for is asked for on and on.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec

from marketfeed.binance.budget import Priority
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import ExchangeClock, wait_at_most
from marketfeed.counters import CollectorCounters, Trouble
from marketfeed.errors import (
    ExchangeError,
    ExchangeRefusedError,
    JournalError,
    OddAnswerError,
    backoff_s,
)
from marketfeed.gaps.deadlines import MARK_PRICE, Missing, Series
from marketfeed.gaps.supervisor import Supervisor, candle_due_ms
from marketfeed.grid import TimeRange, joined, missing, subtract, tiles, without
from marketfeed.ingest.intake import Intake
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, differing_fields
from marketfeed.schema import TIMEFRAMES_MS, floor_to

log = logging.getLogger(__name__)

REQUESTS: Final = 16
"""Requests under way at a time: the holes of one boundary of all pairs are closed in some round trips."""
PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 180.0, 180.0)
"""Exchange seconds until a candle that REST answered without is asked for again; ten minutes in all."""
FAILURE_PAUSE_S: Final = 1.0
FAILURE_CAP_S: Final = 15.0
"""Exchange seconds until REST is asked again when it has failed: after the first failure, and at most."""
RECHECKED: Final = 3
"""Candles of each series that are compared after its connection was lost."""
RECHECKS: Final = 4
"""Requests for that under way at a time."""
RESUME_EVERY_S: Final = 600.0
"""Exchange seconds between two looks at the journal for holes that were too many to be remembered."""
NO_CANDLE: Final = "the exchange's REST has no such candle"
ENDED: Final = "the pair ended"
NOT_COLLECTED: Final = "the pair is not collected any more"


class HealReport(msgspec.Struct, frozen=True):
    """What is being healed. `trouble` is why REST cannot be asked now, empty if it can.

    `open_gaps` are gaps by state (`found`, `healing`), `ended` those that were healed or given up since
    the start; `backlog` candles are missing, `rechecks` series are to be compared after a reconnect.
    """

    open_gaps: dict[str, int]
    ended: dict[str, int]
    backlog: int
    rechecks: int
    trouble: str


class _Gap(msgspec.Struct, eq=False):
    """A gap on its way: `without` are ranges that this round's answers lacked, `pauses` past rounds.

    For those that are `unclear`, too, there were odd rows.
    """

    end_ms: int
    due_s: float
    pauses: int = 0
    without: list[TimeRange] = []
    unclear: list[TimeRange] = []


class _Queue(msgspec.Struct, eq=False):
    """The gaps of one series by their start; one request at a time asks for it.

    `due_s` tells when the first one is due (at the earliest), `newest_ms` where the newest ends (at most).
    """

    gaps: dict[int, _Gap] = {}
    busy: bool = False
    due_s: float = 0.0
    newest_ms: int = 0

    def add(self, start_ms: int, gap: _Gap) -> None:
        first = not self.gaps
        self.gaps[start_ms] = gap
        self.due_s = gap.due_s if first else min(self.due_s, gap.due_s)
        self.newest_ms = gap.end_ms if first else max(self.newest_ms, gap.end_ms)

    def refresh(self) -> None:
        self.due_s = min((gap.due_s for gap in self.gaps.values()), default=0.0)
        self.newest_ms = max((gap.end_ms for gap in self.gaps.values()), default=0)


class Healer:
    """Heals what `supervisor` finds missing; `run` goes on until it is cancelled.

    `instruments` gives the contract of a pair, None if it is not known any more.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        rest: BinanceRest,
        intake: Intake,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
        instruments: Callable[[str], Instrument | None],
    ) -> None:
        self.trouble = Trouble(log, "healing waits for REST", "REST answers again, healing goes on")
        """Why REST cannot be asked now."""
        self._supervisor = supervisor
        self._rest = rest
        self._intake = intake
        self._writer = writer
        self._clock = clock
        self._counters = counters
        self._instruments = instruments
        self._queues: dict[Series, _Queue] = {}
        self._under_way = 0
        self._again_s = 0.0
        self._wake = asyncio.Event()
        self._rechecks: dict[Series, float] = {}
        self._rechecked_ms: dict[Series, int] = {}
        self._stored_otherwise = False
        self._recheck_wake = asyncio.Event()
        supervisor.on_missing = self._on_missing
        supervisor.on_reconnected = self._on_reconnected

    def report(self) -> HealReport:
        """What is being healed now."""
        states = self._counters.gaps
        return HealReport(
            open_gaps=dict(self._supervisor.open_gaps),
            ended={state: states[state] for state in ("healed", "unresolvable")},
            backlog=self._supervisor.missing_candles,
            rechecks=len(self._rechecks),
            trouble=self.trouble.why,
        )

    def on_stored(self, candles: Iterable[Candle]) -> None:
        """Take note of closed candles that history or its audit has stored, of gaps given up perhaps."""
        self._supervisor.stored(candles)
        self._stored_otherwise = True

    async def run(self) -> None:
        """Heal until cancelled. Raises nothing that REST or the journal is the cause of."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_resuming(), name="heal-resume")
            group.create_task(self._keep_rechecking(), name="heal-recheck")
            while True:
                self._wake.clear()
                wait_s = self._start_due(group)
                await wait_at_most(
                    None if wait_s is None else self._clock.wall_s(wait_s), self._wake
                )

    # --- gaps -------------------------------------------------------------------------------------

    def _on_missing(self, item: Missing) -> None:
        if item.series.channel == MARK_PRICE:
            return
        queue = self._queues.setdefault(item.series, _Queue())
        if item.healed:
            queue.gaps.pop(item.start_ms, None)
        else:
            queue.add(item.start_ms, _Gap(item.end_ms, self._clock.elapsed_s()))
            self._wake.set()

    def _start_due(self, group: asyncio.TaskGroup) -> float | None:
        """Start what is due and may be asked; returns the exchange seconds until more is, if anything."""
        now_s = self._clock.elapsed_s()
        if self.trouble and (self._under_way or now_s < self._again_s):
            return None if self._under_way else self._again_s - now_s
        room = (1 if self.trouble else REQUESTS) - self._under_way
        waiting = [(q, s) for s, q in self._queues.items() if q.gaps and not q.busy]
        due = sorted(
            ((q.newest_ms, s) for q, s in waiting if q.due_s <= now_s),
            key=lambda one: (-one[0], one[1]),
        )
        for _, series in due:
            if room <= 0:
                return None
            tile = self._next_tile(series, now_s)
            if tile is not None:
                room -= 1
                self._under_way += 1
                self._queues[series].busy = True
                group.create_task(self._ask(series, tile), name="heal")
        later = [q.due_s - now_s for q, _ in waiting if not q.busy and q.gaps]
        return max(0.0, min(later)) if later else None

    def _next_tile(self, series: Series, now_s: float) -> TimeRange | None:
        """What to ask of a series next: its newest holes that are due, as many as one request may hold."""
        queue = self._queues[series]
        length_ms = TIMEFRAMES_MS[series.channel]
        left: list[TimeRange] = []
        for start_ms, gap in list(queue.gaps.items()):
            if gap.due_s > now_s:
                continue
            rest = self._supervisor.left(series, start_ms)
            if not rest:
                # Nobody waits for it any more.
                del queue.gaps[start_ms]
                continue
            left += without(rest, gap.without)
        if not left:
            queue.refresh()
            return None
        return next(tiles(joined(left, length_ms)[-1], length_ms))

    async def _ask(self, series: Series, tile: TimeRange) -> None:
        queue = self._queues[series]
        for start_ms, gap in queue.gaps.items():
            if start_ms < tile.end_ms and gap.end_ms > tile.start_ms:
                self._supervisor.healing(series, start_ms)
        try:
            instrument = self._instruments(series.pair)
            if instrument is None:
                for start_ms in list(queue.gaps):
                    self._supervisor.give_up(series, start_ms, NOT_COLLECTED)
                queue.gaps.clear()
                return
            reason = NO_CANDLE
            try:
                answer = await self._rest.klines(instrument, series.channel, *tile, Priority.HEAL)
            except ExchangeRefusedError as error:
                if error.status != HTTPStatus.BAD_REQUEST:
                    raise
                # That is an answer.
                answer, reason = Klines([]), str(error)
            except OddAnswerError:
                # REST is there: the trouble is this series' alone.
                answer = Klines([], [tile])
            ended_ms = instrument.ended_ms
            if ended_ms is not None and ended_ms < tile.end_ms:
                reason = ENDED
            self._take_answer(series, tile, answer, reason)
        except ExchangeError as error:
            self._failed(error)
        finally:
            queue.busy = False
            self._under_way -= 1
            self._wake.set()

    def _take_answer(self, series: Series, tile: TimeRange, answer: Klines, reason: str) -> None:
        self.trouble.end()
        for candle in answer.candles:
            self._intake.add(candle)
        self._supervisor.take_in()
        length_ms = TIMEFRAMES_MS[series.channel]
        absent = missing((candle.open_time_ms for candle in answer.candles), tile, length_ms)
        now_s = self._clock.elapsed_s()
        queue = self._queues[series]
        for start_ms, gap in list(queue.gaps.items()):
            if start_ms >= tile.end_ms or gap.end_ms <= tile.start_ms:
                continue
            gap.without += absent
            gap.unclear += answer.unclear
            left = self._supervisor.left(series, start_ms)
            if not left:
                queue.gaps.pop(start_ms, None)
            elif not without(left, gap.without):
                # All of it was asked for.
                is_unclear = any(
                    subtract(time_range, gap.unclear) != [time_range] for time_range in left
                )
                gap.without, gap.unclear = [], []
                if gap.pauses < len(PAUSES_S):
                    gap.due_s = now_s + PAUSES_S[gap.pauses]
                    gap.pauses += 1
                elif is_unclear:
                    gap.due_s = now_s + PAUSES_S[-1]
                else:
                    queue.gaps.pop(start_ms, None)
                    self._supervisor.give_up(series, start_ms, reason)
        queue.refresh()

    def _failed(self, error: ExchangeError) -> None:
        now_s = self._clock.elapsed_s()
        # Requests that were under way together fail once.
        if not self.trouble or now_s >= self._again_s:
            self.trouble.met(error)
            pause_s = backoff_s(self.trouble.failures, FAILURE_PAUSE_S, FAILURE_CAP_S)
            self._again_s = now_s + pause_s

    # --- what an earlier run left -----------------------------------------------------------------

    async def _keep_resuming(self) -> None:
        """Take up the journal's open gaps: at the start, and when there were too many to be remembered.

        Then, and when candles were stored otherwise, what was given up is looked for in the journal.
        """
        resume = True
        while True:
            try:
                if resume:
                    await self._resume()
                resume = False
            except JournalError as error:
                log.warning("open gaps not read, trying again later error=%r", str(error))
            await asyncio.sleep(self._clock.wall_s(RESUME_EVERY_S if not resume else 10.0))
            resume |= self._supervisor.forgotten() > 0 or self._stored_otherwise

    async def _resume(self) -> None:
        self._stored_otherwise = False
        gaps = await self._writer.call(Journal.open_gaps)
        given_up = await self._writer.call(Journal.given_up_gaps)
        taken: Counter[str] = Counter()
        for number, (pair, timeframe, gap) in enumerate([*gaps, *given_up]):
            # Call by call, so that commits of new data pass in between.
            look = partial(Journal.holes, pair=pair, timeframe=timeframe, time_range=gap)
            left = await self._writer.call(look)
            if left and number >= len(gaps):
                continue
            taken["open" if left else "stored"] += 1
            self._supervisor.resume(Series(pair, timeframe), gap, left)
        if taken:
            log.info("open gaps taken up open=%d stored=%d", taken["open"], taken["stored"])

    # --- after a reconnect ------------------------------------------------------------------------

    def _on_reconnected(self, series: Iterable[Series]) -> None:
        due_s = self._clock.elapsed_s() + candle_due_ms(self._clock.speed) / 1000
        self._rechecks.update((one, due_s) for one in series if one.channel != MARK_PRICE)
        self._recheck_wake.set()

    async def _keep_rechecking(self) -> None:
        while True:
            self._recheck_wake.clear()
            now_s = self._clock.elapsed_s()
            due = sorted(one for one, due_s in self._rechecks.items() if due_s <= now_s)
            for start in range(0, len(due), RECHECKS):
                if self.trouble:
                    break
                await asyncio.gather(*map(self._recheck, due[start : start + RECHECKS]))
            wait_s = min((due_s - now_s for due_s in self._rechecks.values()), default=None)
            await wait_at_most(
                None if wait_s is None else self._clock.wall_s(max(wait_s, 1.0)), self._recheck_wake
            )

    async def _recheck(self, series: Series) -> None:
        """Compare the last candles of a series with REST, if any has closed since that was done last."""
        length_ms = TIMEFRAMES_MS[series.channel]
        due_s = self._rechecks.get(series)
        end_ms = floor_to(self._clock.certain_ms() - candle_due_ms(self._clock.speed), length_ms)
        where = TimeRange(end_ms - RECHECKED * length_ms, end_ms)
        instrument = self._instruments(series.pair)
        try:
            if instrument is not None and self._rechecked_ms.get(series, 0) < end_ms:
                fetched = await self._rest.klines(
                    instrument, series.channel, *where, Priority.AUDIT
                )
                await self._compare(series, where, fetched.candles)
                self._rechecked_ms[series] = end_ms
        except (ExchangeError, JournalError) as error:
            if isinstance(error, ExchangeRefusedError) and error.status == HTTPStatus.BAD_REQUEST:
                # The exchange does not know it any more: nothing to compare with.
                self._rechecks.pop(series, None)
            else:
                log.debug("not rechecked pair=%s error=%r", series.pair, str(error))
                self._rechecks[series] = self._clock.elapsed_s() + FAILURE_CAP_S
        else:
            # Unless it was lost once more meanwhile.
            if self._rechecks.get(series) == due_s:
                del self._rechecks[series]

    async def _compare(self, series: Series, where: TimeRange, fetched: Sequence[Candle]) -> None:
        stored = {
            candle.open_time_ms: candle
            for candle in await self._writer.call(
                lambda journal: journal.candles(series.pair, series.channel, *where)
            )
        }
        for candle in fetched:
            self._counters.rechecked += 1
            known = stored.get(candle.open_time_ms)
            if known is None:
                # It may be on its way to the journal, or missing: a repeat changes nothing.
                self._intake.add(candle)
            elif differing_fields(known, candle):
                self._counters.rechecked_different += 1
                self._intake.add(candle)
                log.warning(
                    "candle differs from REST pair=%s timeframe=%s open_ms=%d trades=%d rest_trades=%d",
                    series.pair,
                    series.channel,
                    candle.open_time_ms,
                    known.trades,
                    candle.trades,
                )
