"""Asks once more for candles that an older version has stored without `taker_buy_quote_volume`.

By REST, in history's budget and after its holes, of all series the newest first. The journal keeps down to
where a series has been asked for, so that a stop costs nothing, and what the exchange does not give is not
asked for again. Only that number is taken of an answer: what differs otherwise is the audit's business.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.odd_rows import Klines
from marketfeed.binance.rest import BinanceRest
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import (
    ExchangeError,
    ExchangeRefusedError,
    JournalError,
    OddAnswerError,
    backoff_s,
)
from marketfeed.grid import TimeRange, candles_in
from marketfeed.history.backfill import (
    AGAIN_S,
    AT_ONCE,
    ATTEMPTS,
    RETRY_CAP_S,
    RETRY_FIRST_S,
    ROOM_KEPT,
)
from marketfeed.history.plan import CandleSeries
from marketfeed.journal.coverage import Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.quotes import Unquoted
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

_WAIT_S: Final = 0.5
"""Wall seconds between two looks at whether history has holes to fill, which goes first."""


class QuotesReport(msgspec.Struct, frozen=True):
    """How asking for `taker_buy_quote_volume` goes.

    `state`: `off` (the journal has no such column), `waiting` (not begun), `filling`, `complete`, or
    `incomplete`: something is left for the next pass. `candles_left` have yet to be looked at; those that
    have it are passed over. Of this run: `asked` are candles that lacked it, of which `filled` have it now.
    `left_s` are wall seconds, None while that is not known. `trouble` is empty when all is well.
    """

    state: str
    candles_left: int
    asked: int
    filled: int
    left_s: float | None
    trouble: str


class QuoteVolumes:
    """Fills what candles of `series()` lack in the journal of `writer`.

    `is_busy()` is whether history has holes to fill, which go first. `max_bytes` is the journal's disk
    budget: filled rows are a little larger.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        clock: ExchangeClock,
        series: Callable[[], Sequence[CandleSeries]],
        is_busy: Callable[[], bool],
        max_bytes: int,
    ) -> None:
        self._writer = writer
        self._view = JournalView(writer.path)
        self._rest = rest
        self._clock = clock
        self._series = series
        self._is_busy = is_busy
        self._max_bytes = max_bytes
        self._woken = asyncio.Event()
        self._asked_down_to: dict[Key, int] = {}
        self._passed: dict[Key, int] = {}
        self._refused: set[Key] = set()
        self._generation = -1
        self._has_begun = False
        self._is_filling = False
        self._asked = self._filled = 0
        self._began_s = 0.0
        self._began_with = 0
        self._trouble = Trouble(log, "quote volumes wait, trying again", "quote volumes go on")

    def report(self) -> QuotesReport:
        """How it goes now."""
        left = self._left()
        done = self._began_with - left
        passed_s = time.monotonic() - self._began_s
        state = self._state(left)
        return QuotesReport(
            state=state,
            candles_left=left if state != "off" else 0,
            asked=self._asked,
            filled=self._filled,
            left_s=passed_s / done * left if state == "filling" and done > 0 else None,
            trouble=self._trouble.why,
        )

    def _state(self, left: int) -> str:
        if not self._writer.has_quotes:
            return "off"
        if not self._has_begun:
            return "waiting"
        if self._is_filling:
            return "filling"
        return "incomplete" if left else "complete"

    def _left(self) -> int:
        """How many candles are promised, and have not been looked at."""
        coverage = self._writer.coverage
        left = 0
        for one in self._series():
            covered = coverage.get(one.key)
            if covered is not None:
                end_ms = min(self._asked_down_to.get(one.key, covered.end_ms), covered.end_ms)
                if end_ms > covered.from_ms:
                    left += candles_in(TimeRange(covered.from_ms, end_ms), one.length_ms)
        return left

    def wake(self) -> None:
        """Look at once: the pairs have changed, or the journal was replaced."""
        self._woken.set()

    async def run(self) -> None:
        """Fill, and look again now and then, until cancelled."""
        while True:
            self._woken.clear()
            await self.fill()
            await wait_at_most(self._clock.wall_s(AGAIN_S, RETRY_FIRST_S), self._woken)

    async def fill(self) -> None:
        """One pass over all series. Never raises for what the exchange or the disk does."""
        if not self._writer.has_quotes:
            return
        try:
            await self._begin()
            self._is_filling = bool(self._open())
            # A tile of every series, then the next of every series: the newest of all go first.
            while (wave := self._open()) and not self._woken.is_set():
                if not await self._wave(wave):
                    break
        except JournalError as error:
            self._trouble.met(error)
        else:
            if not self._open():
                self._trouble.end()
        finally:
            self._is_filling = False

    # --- inside -----------------------------------------------------------------------------------

    async def _begin(self) -> None:
        if self._generation != self._writer.generation:
            self._generation = self._writer.generation
            self._asked_down_to = await asyncio.to_thread(self._view.quotes_asked)
            self._passed = {}
            self._refused = set()
        self._has_begun = True
        self._began_s, self._began_with = time.monotonic(), self._left()

    def _open(self) -> list[CandleSeries]:
        """The series that have not been asked for down to their beginning."""
        return [
            one
            for one in self._series()
            if self._asked_down_to.get(one.key, 1) > 0 and one.key not in self._refused
        ]

    async def _wave(self, wave: Sequence[CandleSeries]) -> bool:
        """Take the newest tile of each; returns whether to go on. Raises JournalError."""
        queue = iter(wave)
        stopped = asyncio.Event()

        async def work() -> None:
            for series in queue:
                if not stopped.is_set() and not await self._tried(series):
                    stopped.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE // 2):
                group.create_task(work(), name="quote volumes")
        if self._passed:
            await self._store([], {})
        return not stopped.is_set()

    async def _tried(self, series: CandleSeries) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            while not self._woken.is_set() and self._is_busy():
                await wait_at_most(_WAIT_S, self._woken)
            if self._woken.is_set():
                return False
            try:
                await self._take(series)
            except (ExchangeError, JournalError) as error:
                self._trouble.met(error)
                await wait_at_most(backoff_s(attempt, RETRY_FIRST_S, RETRY_CAP_S), self._woken)
            else:
                return True
        return False

    async def _take(self, series: CandleSeries) -> None:
        """Ask for the newest candles of a series that lack it."""
        key = series.key
        found = await asyncio.to_thread(
            self._view.newest_without_quote, key, self._asked_down_to.get(key)
        )
        if found is None:
            self._passed[key] = self._asked_down_to[key] = 0
            return
        used, most = self._writer.bytes_used, self._max_bytes
        if used > ROOM_KEPT * most:
            raise JournalError(f"no room for more: {used:,} of journal.max_bytes {most:,} are used")
        answer = await self._answer(series, found)
        if answer is None:
            return
        filled = await self._store(answer.candles, {key: found.down_to_ms})
        self._asked += found.candles
        self._filled += filled
        self._trouble.end()

    async def _answer(self, series: CandleSeries, found: Unquoted) -> Klines | None:
        try:
            return await self._rest.klines(
                series.instrument, series.timeframe, *found.within, Priority.HISTORY
            )
        except ExchangeRefusedError as error:
            if error.status != 400:
                raise
            log.error("quote volumes are refused series=%r error=%r", series.name, str(error))
            self._refused.add(series.key)
            return None
        except OddAnswerError:
            # Named by the client. It was asked for: others are not to wait for it.
            return Klines([])

    async def _store(self, candles: Sequence[Candle], asked: Mapping[Key, int]) -> int:
        """Commit it, with what was passed over before. Raises JournalError."""
        generation, passed = self._generation, self._passed
        noted = {**passed, **asked}

        def fill(journal: Journal) -> int:
            # What an earlier file held is not in this one.
            if self._writer.generation != generation:
                raise JournalError("the journal was replaced meanwhile")
            return journal.fill_quotes(candles, noted)

        self._passed = {}
        try:
            filled = await self._writer.call(fill)
        except JournalError:
            self._passed |= passed
            raise
        self._asked_down_to |= asked
        return filled
