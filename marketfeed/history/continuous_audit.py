"""The service's own audit: a random range of a random series against REST, over and over, at little weight.

What is missing is stored, and what differs gives way, under the journal's own rule (a closed candle gives
way only to one with as many trades); what is left different shows in `/health` until it agrees.

That the exchange has no such candle is believed of a second answer, some minutes after the first, and of the
same contract alone: a symbol may have become another's in between.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.counters import Trouble
from marketfeed.errors import ExchangeError, JournalError, OddAnswerError
from marketfeed.grid import TimeRange, subtract
from marketfeed.history.audit import CLOSED_FOR_MS, compare_stored
from marketfeed.history.comparison import Different
from marketfeed.history.plan import CandleSeries, range_of
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Covered
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

WEIGHT_PER_MINUTE: Final = 30
CANDLES: Final = 99
"""As many as a weight of 1 buys."""
AT_LEAST_S: Final = 0.25
"""Wall seconds between two requests, however fast a simulator's minutes are."""
CLOSED_FOR: Final = 6 * CLOSED_FOR_MS
"""Healing has had its time: what is missing after that is found here first."""
NEWEST_SHARE: Final = 0.5
"""How often the newest candles are looked at, and not any of the whole history."""
KEPT: Final = 100
AGAIN_AFTER_S: Final = 600.0
"""Exchange seconds until a range is asked for again whose answer lacked what is stored.

exchangeInfo answers meanwhile, which tells whether it is the same contract.
"""
DOUBTED_AT_ONCE: Final = 1_000
"""So many ranges at most wait to be asked for again; what comes on top is met again by chance."""


class _Doubted(NamedTuple):
    """A range to be asked for again at `due_s` (monotonic exchange s): an answer lacked `open_ms` of it."""

    series: CandleSeries
    time_range: TimeRange
    open_ms: frozenset[int]
    due_s: float


class _Chosen(NamedTuple):
    """A range to be compared; `lacked_ms` are open times that an earlier answer lacked."""

    series: CandleSeries
    time_range: TimeRange
    lacked_ms: frozenset[int] = frozenset()


class AuditingReport(msgspec.Struct, frozen=True):
    """What the continuous audit has seen since the start: candles compared, missing, different, mended.

    `unmended` are those differences that the journal's rule keeps, the newest `KEPT` of them as text.
    """

    audited: int
    missing: int
    different: int
    mended: int
    errors: int
    unmended: list[str]

    @property
    def mismatch_rate(self) -> float:
        """Share of the audited candles that were missing or different."""
        return (self.missing + self.different) / self.audited if self.audited else 0.0


class Auditor:
    """Audits `series()` in the journal of `writer`; `run` goes on until cancelled.

    What is promised is audited. A candle that lies in a hole is known to be missing: only one that lies in
    none counts as missing here.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        clock: ExchangeClock,
        series: Callable[[], Sequence[CandleSeries]],
        weight_per_minute: int = WEIGHT_PER_MINUTE,
        chance: random.Random | None = None,
    ) -> None:
        self._writer = writer
        self._view = JournalView(writer.path)
        self._rest = rest
        self._clock = clock
        self._series = series
        self._pause_s = 60.0 / max(1, min(weight_per_minute, WEIGHT_PER_MINUTE))
        self._random = chance or random.Random()
        self._audited = self._missing = self._different = self._mended = self._errors = 0
        # By what it is, so that one candle is reported once however often it is met.
        self._unmended: dict[tuple[str, str, int], str] = {}
        # In the order of `due_s`.
        self._doubted: deque[_Doubted] = deque()
        self._trouble = Trouble(log, "audit waits, trying again", "audit goes on")

    def report(self) -> AuditingReport:
        """What it has seen."""
        self._forget_gone()
        return AuditingReport(
            self._audited,
            self._missing,
            self._different,
            self._mended,
            self._errors,
            list(self._unmended.values()),
        )

    def _forget_gone(self) -> None:
        """Forget what differed of candles that nobody audits any more: of pairs that ended, or deleted."""
        audited, known = {one.key for one in self._series()}, self._writer.all_coverage
        for key in list(self._unmended):
            covered = known.get(key[:2])
            if key[:2] not in audited or covered is None or key[2] < covered.from_ms:
                del self._unmended[key]

    async def run(self) -> None:
        """Audit at a steady pace."""
        while True:
            await asyncio.sleep(self._clock.wall_s(self._pause_s, AT_LEAST_S))
            try:
                await self.look()
                self._trouble.end()
            except OddAnswerError:
                # It concerns that series alone, and was named.
                self._errors += 1
            except (ExchangeError, JournalError) as error:
                self._errors += 1
                self._trouble.met(error)

    async def look(self) -> None:
        """Compare one range. Raises ExchangeError, JournalError."""
        chosen = self._choose()
        if chosen is None:
            return
        series, time_range, lacked_ms = chosen
        generation = self._writer.generation
        before = self._writer.all_coverage.get(series.key)
        stored = await asyncio.to_thread(self._view.holes, *series.key, time_range)
        if stored == [time_range]:
            # Nothing of it is there (yet): that is for backfill to fill, and to report.
            return
        try:
            truth = await self._rest.klines(
                series.instrument, series.timeframe, *time_range, Priority.AUDIT
            )
        except ExchangeError:
            self._ask_again(series, time_range, lacked_ms)
            raise
        self._errors += bool(truth.unclear)
        found = await compare_stored(self._view, series, time_range, truth)
        if generation != self._writer.generation or not self._is_audited(series):
            return
        after = self._writer.all_coverage.get(series.key)
        missing = [
            candle
            for candle in found.missing
            if _is_stored(before, candle.open_time_ms) and _is_stored(after, candle.open_time_ms)
        ]
        self._audited += found.stored + len(missing)
        self._missing += len(missing)
        different = self._believed(found.different, lacked_ms)
        doubted = [item for item in found.different if item not in different]
        opens = frozenset(item.stored.open_time_ms for item in doubted)
        self._ask_again(series, time_range, opens)
        # What is known to differ is counted and named once, however often it is met.
        fresh = [item for item in different if _key(item.stored) not in self._unmended]
        self._different += len(fresh)
        for item in fresh:
            log.error("audit: a candle differs %s", item)
        for candle in missing:
            name = f"{candle.pair} {candle.timeframe} {candle.open_time_ms}"
            log.error("audit: a candle was missing, storing it candle=%r", name)
        mending = [*missing, *(d.truth for d in different if d.truth is not None)]
        if mending:
            batch = Batch(candles=mending)
            self._mended += await self._writer.call(lambda journal: journal.write(batch))
        if found.lacking and self._writer.has_quotes:
            await self._writer.call(lambda journal: journal.fill_quotes(found.lacking, {}))
        await self._look_again(chosen, truth)

    def _is_audited(self, series: CandleSeries) -> bool:
        """Whether it is still to be audited, and of the contract that it was chosen of."""
        return any(_is_same(one, series) for one in self._series())

    def _believed(
        self, different: Sequence[Different], lacked_ms: Collection[int]
    ) -> list[Different]:
        """Without those that the exchange lacks by this answer alone."""
        return [
            item
            for item in different
            if item.truth is not None
            or item.stored.open_time_ms in lacked_ms
            or _key(item.stored) in self._unmended
        ]

    def _ask_again(
        self, series: CandleSeries, time_range: TimeRange, lacked_ms: frozenset[int]
    ) -> None:
        """Have a range asked for again some time later, if there is something that an answer lacked."""
        if lacked_ms and len(self._doubted) < DOUBTED_AT_ONCE:
            due_s = self._clock.elapsed_s() + AGAIN_AFTER_S
            self._doubted.append(_Doubted(series, time_range, lacked_ms, due_s))

    def _choose(self) -> _Chosen | None:
        """What is to be asked for again, else what chance says."""
        while self._doubted and self._doubted[0].due_s <= self._clock.elapsed_s():
            doubted = self._doubted.popleft()
            if self._is_audited(doubted.series):
                return _Chosen(doubted.series, doubted.time_range, doubted.open_ms)
        return self._choose_any()

    def _choose_any(self) -> _Chosen | None:
        """A range of at most `CANDLES`: the newest half of the time, else any one of the history."""
        every = self._series()
        if not every:
            return None
        series = self._random.choice(every)
        now_ms = self._clock.certain_ms()
        covered = self._writer.all_coverage.get(series.key)
        if covered is None:
            return None
        within = range_of(series, covered.from_ms, now_ms - CLOSED_FOR)
        size_ms = CANDLES * series.length_ms
        end_ms = within.end_ms
        if self._random.random() >= NEWEST_SHARE and end_ms - within.start_ms > size_ms:
            end_ms = self._random.randrange(
                within.start_ms + size_ms, end_ms + series.length_ms, series.length_ms
            )
        time_range = TimeRange(max(within.start_ms, end_ms - size_ms), end_ms)
        return None if time_range.start_ms >= time_range.end_ms else _Chosen(series, time_range)

    async def _look_again(self, chosen: _Chosen, truth: Klines) -> None:
        """Look again: what still differs is kept until it agrees."""
        series, time_range, lacked_ms = chosen
        found = await compare_stored(self._view, series, time_range, truth)
        different = self._believed(found.different, lacked_ms)
        still = {_key(item.stored): str(item) for item in different}
        for key in list(self._unmended):
            unclear = any(
                part.start_ms <= key[2] < part.end_ms
                for part in subtract(time_range, truth.unclear)
            )
            if key[:2] == series.key and unclear and key not in still:
                del self._unmended[key]
        self._unmended.update(still)
        for key in list(self._unmended)[:-KEPT]:
            del self._unmended[key]


def _is_stored(covered: Covered | None, open_ms: int) -> bool:
    """Whether a candle is stored, by what is known of its series."""
    return (
        covered is not None
        and max(covered.from_ms, covered.looked_ms) <= open_ms < covered.end_ms
        and not any(hole.start_ms <= open_ms < hole.end_ms for hole in covered.holes)
    )


def _is_same(one: CandleSeries, other: CandleSeries) -> bool:
    """Whether two series are of one contract, with the same beginning and end."""
    return one.key == other.key and _contract(one.instrument) == _contract(other.instrument)


def _contract(instrument: Instrument) -> tuple[str, int, int | None]:
    return instrument.symbol, instrument.listed_ms, instrument.ended_ms


def _key(candle: Candle) -> tuple[str, str, int]:
    return candle.pair, candle.timeframe, candle.open_time_ms
