"""The hourly candles of mark prices: each hour's is fetched after its close, and their history, by REST.

A backfill of their own asks for them, in its order and within history's budget: the newest of every pair
first. What is missing ten minutes after its hour is put down as a gap, and is a reason then.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import JournalError
from marketfeed.gaps.holes import MARK_1H_DUE_MS, MARK_1H_LATE_MS, Holes
from marketfeed.history.backfill import Backfill, HistoryReport
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Key
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 30.0
"""Exchange seconds between two looks for hours that are missing by now."""
SERIES: Final = (schema.MARK_1H,)


class MarkCandles:
    """Fetches the mark candles of `instruments()`; `run` goes on until cancelled.

    `days` is how far back, `max_bytes` the journal's disk budget, `ended_ms` when pairs end or have ended.
    Of what has `ended` while this runs the last hours are fetched, too. In a journal that has no place for
    them (version 2) nothing is asked.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        clock: ExchangeClock,
        instruments: Callable[[], Sequence[Instrument]],
        ended_ms: dict[str, int],
        days: int,
        max_bytes: int,
        ended: Callable[[], Sequence[Instrument]] = lambda: (),
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._holes = Holes(lambda: writer.mark_coverage, dict, lambda: MARK_1H_DUE_MS)
        self._late = Holes(lambda: writer.mark_coverage, dict, lambda: MARK_1H_LATE_MS)
        self._holes.ended_ms = self._late.ended_ms = ended_ms
        self._started_s = clock.elapsed_s()
        self._backfill = Backfill(
            writer,
            rest,
            None,
            clock,
            lambda: [(one, SERIES) for one in instruments()] if writer.has_marks else [],
            self._holes,
            days,
            max_bytes,
            ended=lambda: [(one, SERIES) for one in ended()] if writer.has_marks else [],
            newest_too=True,
            first=first,
        )

    def report(self) -> HistoryReport | None:
        """How it goes; None where the journal has no place for them."""
        return self._backfill.report() if self._writer.has_marks else None

    def late(self, pairs: Container[str]) -> Counter[Key]:
        """How many hours of these pairs are late; none in the first ten minutes of this run.

        Those of a first filling are none of these, nor what the exchange does not have.
        """
        if (self._clock.elapsed_s() - self._started_s) * 1000 < MARK_1H_LATE_MS:
            return Counter()
        missing = self._late.count(self._clock.now_ms())
        return Counter({key: count for key, count in missing.items() if key[0] in pairs})

    @property
    def backfill(self) -> Backfill:
        """What fetches them."""
        return self._backfill

    @property
    def trouble(self) -> str:
        """Why they cannot be fetched now, empty if they can."""
        return self._backfill.report().trouble

    def is_filling(self, pairs: Container[str]) -> bool:
        """Whether a first filling of `pairs` is under way."""
        return self._holes.is_filling(pairs)

    def wake(self) -> None:
        """Look for what is missing at once."""
        self._backfill.wake()

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._backfill.run(), name="mark candles")
            while True:
                await asyncio.sleep(self._clock.wall_s(LOOK_EVERY_S))
                await self._put_down()

    async def _put_down(self) -> None:
        """Put down what is missing by now: only of that it is counted that the exchange has it not."""
        batch = Batch()
        for key, due in self._late.overdue(self._clock.now_ms()):
            batch.expect(key, due)
        if len(batch):
            try:
                await self._writer.call(lambda journal: journal.write(batch))
            except JournalError as error:
                log.warning("late mark candles not put down error=%r", str(error))
