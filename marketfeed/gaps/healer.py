"""Closes holes among the newest candles: they are fetched by REST and take the way of all candles.

A fetched candle goes through the intake into the journal, where it gives way to none with fewer trades, and
its hole shrinks in the same commit. The newest holes go first. While REST fails, one request at a time asks
whether it is back; holes stay holes. What REST answers without is asked for again with growing pauses until
`coverage` believes it; what it answers an odd row for is asked for on and on.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import wait_at_most
from marketfeed.counters import CollectorCounters, Trouble
from marketfeed.errors import (
    ExchangeError,
    ExchangeRefusedError,
    JournalError,
    OddAnswerError,
    backoff_s,
)
from marketfeed.gaps.deadlines import MARK_PRICE, Series
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.supervisor import candle_due_ms
from marketfeed.grid import JOIN_WITHIN, TimeRange, missing, overlap, tiles, without
from marketfeed.ingest.intake import Intake
from marketfeed.journal.coverage import Hole, Key
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, differing_fields
from marketfeed.schema import TIMEFRAMES_MS, floor_to

log = logging.getLogger(__name__)

REQUESTS: Final = 16
"""Requests under way at a time: the holes of one boundary of all pairs are closed in some round trips."""
PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 180.0, 180.0, 61.0)
"""Exchange seconds until a candle that REST answered without is asked for again; ten minutes in all."""
LOOK_EVERY_S: Final = 0.5
"""Exchange seconds between two looks; never closer than `WALL_AT_LEAST_S` wall seconds."""
FAILURE_PAUSE_S: Final = 1.0
FAILURE_CAP_S: Final = 15.0
"""Exchange seconds until REST is asked again when it has failed: after the first failure, and at most."""
RECHECKED: Final = 3
"""Candles of each series that are compared after its connection was lost."""
RECHECKS: Final = 4
"""Requests for that under way at a time."""


class HealReport(msgspec.Struct, frozen=True):
    """What is being healed. `trouble` is why REST cannot be asked now, empty if it can.

    `open_gaps` are gaps by state: of `healing` series REST was asked, `found` wait for that. `ended` are
    those of the journal that were healed or given up; `backlog` candles are missing, `rechecks` series are to
    be compared after a reconnect. A first filling is none of these.
    """

    open_gaps: dict[str, int]
    ended: dict[str, int]
    backlog: int
    rechecks: int
    trouble: str


class _Pause(msgspec.Struct, eq=False):
    """Candles that REST answered without: how often, and when (s) they may be asked for again."""

    asked: int
    due_s: float


class Healer:
    """Heals what is missing among the newest candles; `run` goes on until it is cancelled.

    `instruments` gives the contract of a pair, None if it is not known any more.
    """

    def __init__(
        self,
        holes: Holes,
        rest: BinanceRest,
        intake: Intake,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
        instruments: Callable[[str], Instrument | None],
    ) -> None:
        self.trouble = Trouble(log, "healing waits for REST", "REST answers again, healing goes on")
        """Why REST cannot be asked now."""
        self._holes = holes
        self._rest = rest
        self._intake = intake
        self._writer = writer
        self._clock = clock
        self._counters = counters
        self._instruments = instruments
        self._asking: dict[Key, TimeRange] = {}
        # Those that lack something, and were asked for.
        self._asked: set[Key] = set()
        # By where they end: their beginning leaves the newest candles with time.
        self._pauses: dict[Key, dict[int, _Pause]] = {}
        self._to_ask: list[Key] = []
        self._looked_s = 0.0
        self._again_s = 0.0
        self._wake = asyncio.Event()
        self._rechecks: dict[Series, float] = {}
        self._rechecked_ms: dict[Series, int] = {}
        self._recheck_wake = asyncio.Event()

    def report(self) -> HealReport:
        """What is being healed now."""
        now_ms = self._clock.now_ms()
        open_gaps = Counter[str]()
        for key, gaps in self._holes.open_gaps(now_ms).items():
            open_gaps["healing" if key in self._asked else "found"] += gaps
        return HealReport(
            open_gaps=dict(open_gaps),
            ended=self._writer.ended_gaps(),
            backlog=self._holes.count(now_ms).total(),
            rechecks=len(self._rechecks),
            trouble=self.trouble.why,
        )

    async def run(self) -> None:
        """Heal until cancelled. Raises nothing that REST or the journal is the cause of."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_rechecking(), name="heal-recheck")
            while True:
                self._wake.clear()
                self._start_due(group)
                await wait_at_most(self._clock.wall_s(LOOK_EVERY_S), self._wake)

    # --- holes ------------------------------------------------------------------------------------

    def _start_due(self, group: asyncio.TaskGroup) -> None:
        """Start what is due and may be asked, the newest first."""
        if self.trouble and (self._asking or self._clock.elapsed_s() < self._again_s):
            return
        room = (1 if self.trouble else REQUESTS) - len(self._asking)
        if room <= 0:
            return
        now_s, past_ms = self._clock.elapsed_s(), self._clock.past().confirmed_ms
        if not self._to_ask or now_s - self._looked_s >= LOOK_EVERY_S:
            # Not with every answer: after an outage each series has a hole, and each is answered.
            self._looked_s = now_s
            self._to_ask = [key for key, _ in reversed(self._tiles())]
        while room > 0 and self._to_ask:
            key = self._to_ask.pop()
            tile = self._tile(key, now_s, past_ms)
            if tile is None:
                continue
            room -= 1
            self._asking[key] = tile
            self._asked.add(key)
            group.create_task(self._ask(key, tile), name="heal")

    def _tiles(self) -> list[tuple[Key, TimeRange]]:
        """What to ask for of all series, the newest first."""
        now_s, past_ms = self._clock.elapsed_s(), self._clock.past().confirmed_ms
        every = ((key, self._tile(key, now_s, past_ms)) for key in self._holes.series())
        found = [(key, tile) for key, tile in every if tile is not None]
        return sorted(found, key=lambda one: (-one[1].end_ms, one[0]))

    def _tile(self, key: Key, now_s: float, past_ms: int) -> TimeRange | None:
        """The newest that is missing of a series, as much as one request may hold, if it may be asked for."""
        if key in self._asking:
            return None
        # Of what may not have closed REST would be without.
        holes = self._holes.for_healing(key, past_ms)
        if not holes:
            self._asked.discard(key)
            self._pauses.pop(key, None)
            return None
        if key in self._pauses:
            holes = self._not_paused(key, holes, now_s)
            if not holes:
                return None
        length_ms = TIMEFRAMES_MS[key[1]]
        start_ms, end_ms = holes[-1].time_range
        for hole in reversed(holes):
            # Up to so far apart, asking for all of it costs no more than asking twice.
            if start_ms - hole.end_ms > JOIN_WITHIN * length_ms:
                break
            start_ms = hole.start_ms
        return next(tiles(TimeRange(start_ms, end_ms), length_ms))

    def _not_paused(self, key: Key, holes: Sequence[Hole], now_s: float) -> list[Hole]:
        """Those of a series' holes that may be asked for; pauses of what is no hole any more are over."""
        pauses = self._pauses[key]
        for end_ms in pauses.keys() - {hole.end_ms for hole in holes}:
            del pauses[end_ms]
        return [
            hole
            for hole in holes
            if hole.end_ms not in pauses or now_s >= pauses[hole.end_ms].due_s
        ]

    async def _ask(self, key: Key, tile: TimeRange) -> None:
        pair, timeframe = key
        try:
            instrument = self._instruments(pair)
            if instrument is None:
                await self._writer.call(lambda journal: journal.release([key]))
                return
            try:
                answer = await self._rest.klines(instrument, timeframe, *tile, Priority.HEAL)
            except ExchangeRefusedError as error:
                if error.status != HTTPStatus.BAD_REQUEST:
                    raise
                # That is an answer.
                answer = Klines([])
            except OddAnswerError:
                # REST is there: the trouble is this series' alone.
                answer = Klines([], [tile])
            self._take_answer(key, tile, answer)
        except ExchangeError as error:
            self._failed(error)
        except JournalError as error:
            log.warning("pair not released pair=%s error=%r", pair, str(error))
            self._pause(key, tile.end_ms, odd=True)
        finally:
            del self._asking[key]
            self._wake.set()

    def _take_answer(self, key: Key, tile: TimeRange, answer: Klines) -> None:
        self.trouble.end()
        now_ms, past_ms = self._clock.now_ms(), self._clock.past().confirmed_ms
        if (due := self._holes.overdue_of(key, now_ms)) is not None:
            # It was missing, though it comes now; what the answer lacks needs a hole to be counted by.
            self._intake.expect(key, due)
        lacking = [hole.time_range for hole in self._holes.for_healing(key, past_ms)]
        for candle in answer.candles:
            if any(part.start_ms <= candle.open_time_ms < part.end_ms for part in lacking):
                self._counters.healed_lag.add(max(0, now_ms - candle.close_time_ms))
            self._intake.add(candle)
        length_ms = TIMEFRAMES_MS[key[1]]
        opens = [candle.open_time_ms for candle in answer.candles]
        absent = [
            part
            for one in without(missing(opens, tile, length_ms), answer.unclear)
            for part in overlap(lacking, one)
        ]
        for part in absent:
            self._intake.answered_without(key, part)
            self._pause(key, part.end_ms)
        for part in answer.unclear:
            # An odd row is no answer, nor is a candle that may still form: it is asked for on and on.
            for cut in overlap(lacking, part):
                self._pause(key, cut.end_ms, odd=True)

    def _pause(self, key: Key, end_ms: int, *, odd: bool = False) -> None:
        pauses = self._pauses.setdefault(key, {})
        known = pauses.get(end_ms)
        asked = 0 if known is None else known.asked + 1
        if odd or asked >= len(PAUSES_S):
            asked = len(PAUSES_S) - 1
        pauses[end_ms] = _Pause(asked, self._clock.elapsed_s() + PAUSES_S[asked])

    def _failed(self, error: ExchangeError) -> None:
        now_s = self._clock.elapsed_s()
        # Requests that were under way together fail once.
        if not self.trouble or now_s >= self._again_s:
            self.trouble.met(error)
            pause_s = backoff_s(self.trouble.failures, FAILURE_PAUSE_S, FAILURE_CAP_S)
            self._again_s = now_s + pause_s

    # --- after a reconnect ------------------------------------------------------------------------

    def recheck(self, series: Iterable[Series]) -> None:
        """Compare the last candles of these series with REST: their connection was lost."""
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
