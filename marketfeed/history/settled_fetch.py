"""Settled funding rates as REST answers them: page by page, and each page stored before it counts."""

from collections.abc import Callable, Mapping, Sequence
from http.client import BAD_REQUEST

from marketfeed import errors
from marketfeed.binance.budget import Priority
from marketfeed.binance.rest import BinanceRest, Settlement
from marketfeed.counters import CollectorCounters
from marketfeed.errors import OddAnswerError
from marketfeed.grid import TimeRange
from marketfeed.history.awaited import FetchedRates
from marketfeed.history.funding_plan import STEP_MS
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import FundingSettled


class SettledFetch:
    """Fetches settled rates by `rest` and stores those of `pairs()` (by symbol) through `writer`."""

    def __init__(
        self,
        rest: BinanceRest,
        writer: JournalWriter,
        counters: CollectorCounters,
        pairs: Callable[[], Mapping[str, str]],
    ) -> None:
        self._rest = rest
        self._writer = writer
        self._counters = counters
        self._pairs = pairs

    async def fetch(self, symbol: str | None, where: TimeRange, priority: Priority) -> FetchedRates:
        """Fetch and store what was settled in a range, of all contracts or of `symbol`.

        Raises ExchangeError and JournalError. That a symbol is invalid is an answer: it has none.
        """
        fetched = FetchedRates(set(), set(), [])
        start_ms = where.start_ms
        while True:
            # A settlement's time is off by some ms, here rounded to the minute.
            try:
                answer = await self._rest.settlements(
                    start_ms - STEP_MS // 2, where.end_ms - STEP_MS // 2 - 1, priority, symbol
                )
            except errors.ExchangeRefusedError as error:
                if symbol is None or error.status != BAD_REQUEST:
                    raise
                return fetched  # that is an answer: it does not know the symbol any more
            except OddAnswerError:
                if symbol is None:
                    raise
                # Others are fetched all the same.
                if symbol in self._pairs():
                    fetched.odd.append((self._pairs()[symbol], None))
                return fetched
            fetched.take(await self._store(answer.rates))
            for odd in answer.odd:
                name = odd.symbol or symbol
                if name is None or name in self._pairs():
                    pair = None if name is None else self._pairs()[name]
                    fetched.odd.append((pair, odd.time_ms))
            if not answer.full:
                return fetched
            if answer.rates[-1].time_ms > start_ms:
                start_ms = answer.rates[-1].time_ms
                continue
            # More at one time than a request returns: one by one.
            if symbol is None:
                only = TimeRange(start_ms, start_ms + STEP_MS)
                for one in list(self._pairs()):
                    fetched.add(await self.fetch(one, only, priority))
            start_ms += STEP_MS
            if start_ms >= where.end_ms:
                return fetched

    async def _store(self, rows: Sequence[Settlement]) -> Sequence[FundingSettled]:
        batch, pairs = Batch(), self._pairs()
        batch.extend(
            FundingSettled(pair, row.time_ms, row.rate, row.mark_price, row.kind)
            for row in rows
            if (pair := pairs.get(row.symbol)) is not None
        )
        if len(batch):
            # Not by the intake: that it is stored must be known before it counts as complete.
            changed = await self._writer.call(lambda journal: journal.write(batch))
            self._counters.records["funding_settled"] += len(batch)
            self._counters.rows_changed += changed
        return batch.settled
