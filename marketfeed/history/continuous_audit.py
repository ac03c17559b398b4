"""The service's own audit: a random range of a random series against REST, over and over, at little weight.

What is missing is stored, and what differs gives way, under the journal's own rule (a closed candle gives
way only to one with as many trades); what is left different shows in `/health` until it agrees.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.counters import Trouble
from marketfeed.errors import ExchangeError, JournalError, OddAnswerError
from marketfeed.grid import TimeRange, subtract
from marketfeed.history.audit import CLOSED_FOR_MS, compare_stored
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
        series, time_range = chosen
        generation = self._writer.generation
        before = self._writer.all_coverage.get(series.key)
        stored = await asyncio.to_thread(self._view.holes, *series.key, time_range)
        if stored == [time_range]:
            # Nothing of it is there (yet): that is for backfill to fill, and to report.
            return
        truth = await self._rest.klines(
            series.instrument, series.timeframe, *time_range, Priority.AUDIT
        )
        self._errors += bool(truth.unclear)
        found = await compare_stored(self._view, series, time_range, truth)
        if generation != self._writer.generation:
            return
        after = self._writer.all_coverage.get(series.key)
        missing = [
            candle
            for candle in found.missing
            if _is_stored(before, candle.open_time_ms) and _is_stored(after, candle.open_time_ms)
        ]
        self._audited += found.stored + len(missing)
        self._missing += len(missing)
        # What is known to differ is counted and named once, however often it is met.
        fresh = [item for item in found.different if _key(item.stored) not in self._unmended]
        self._different += len(fresh)
        for item in fresh:
            log.error("audit: a candle differs %s", item)
        for candle in missing:
            name = f"{candle.pair} {candle.timeframe} {candle.open_time_ms}"
            log.error("audit: a candle was missing, storing it candle=%r", name)
        mending = [*missing, *(d.truth for d in found.different if d.truth is not None)]
        if mending:
            batch = Batch(candles=mending)
            self._mended += await self._writer.call(lambda journal: journal.write(batch))
        if found.lacking and self._writer.has_quotes:
            await self._writer.call(lambda journal: journal.fill_quotes(found.lacking, {}))
        await self._look_again(series, time_range, truth)

    def _choose(self) -> tuple[CandleSeries, TimeRange] | None:
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
        return None if time_range.start_ms >= time_range.end_ms else (series, time_range)

    async def _look_again(self, series: CandleSeries, time_range: TimeRange, truth: Klines) -> None:
        """Look again: what still differs is kept until it agrees."""
        found = await compare_stored(self._view, series, time_range, truth)
        still = {_key(item.stored): str(item) for item in found.different}
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


def _key(candle: Candle) -> tuple[str, str, int]:
    return candle.pair, candle.timeframe, candle.open_time_ms
