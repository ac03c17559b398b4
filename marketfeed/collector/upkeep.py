"""What a collector does beside collecting: it keeps the exchange's time, the REST budget and the journal."""

import asyncio
import contextlib
import logging
import time
from typing import Final

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.checking import JournalCheck
from marketfeed.collector.trimming import Trimming
from marketfeed.collector.wal_watch import WalWatch
from marketfeed.counters import Trouble
from marketfeed.errors import ExchangeError, JournalError, backoff_s
from marketfeed.ingest.intake import Intake
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import RETRY_CAP_S
from marketfeed.settings.model import JournalSettings
from marketfeed.storage.folding import Folding

log = logging.getLogger(__name__)

CLOCK_SYNC_EVERY_S: Final = 600.0
CLOCK_DOUBT_EVERY_S: Final = 3.0
"""Wall seconds until the exchange's time is asked again: at most, and when it is not known or doubted."""
REST_BUDGET: Final = "rest_budget"
"""The document in which a journal keeps what was asked of the exchange: a ban holds for whoever asks next."""
KEEP_BUDGET_EVERY_S: Final = 1.0
LOOK_AT_JOURNAL_EVERY_S: Final = 3.0
"""Wall seconds between two looks at the journal as a reader sees it; two bad ones in a row are damage."""
STOCK_EVERY_S: Final = 60.0
"""Wall seconds until what the journal holds is counted again: rejected frames, refused lines, gaps."""


class Upkeep:
    """Each `keep_`, `look_` and `watch_` goes on until it is cancelled; JournalError ends none of them."""

    def __init__(
        self,
        settings: JournalSettings,
        clock: ExchangeClock,
        writer: JournalWriter,
        turns: Turns,
    ) -> None:
        self.clock_trouble = Trouble(
            log, "exchange's time not known", "exchange's time known again"
        )
        """Why the exchange's time could not be taken over, when it was asked last."""
        self.folding = Folding(writer)
        self.wal = WalWatch(settings.path, is_held=lambda: self.folding.is_held)
        self.trimming = Trimming(settings, writer, self.wal, clock.certain_ms)
        self.check = JournalCheck(writer, clock)
        """The check that runs behind."""
        self._clock = clock
        self._writer = writer
        self._turns = turns

    async def keep_clock(self, rest: BinanceRest) -> None:
        """Ask the exchange for its time: every few minutes, every few seconds while in doubt."""
        asked_s = time.monotonic()
        while True:
            await asyncio.sleep(
                backoff_s(max(self.clock_trouble.failures, 1), CLOCK_DOUBT_EVERY_S, RETRY_CAP_S)
            )
            doubted = self._clock.is_doubted() or self.clock_trouble
            if not doubted and time.monotonic() - asked_s < CLOCK_SYNC_EVERY_S:
                continue
            asked_s = time.monotonic()
            try:
                await rest.server_time()
                self.clock_trouble.end()
            except ExchangeError as error:
                self.clock_trouble.met(error)

    async def restore_budget(self) -> None:
        """Take up what an earlier run has asked of the exchange. Raises JournalError."""
        known = await self._writer.load_document(REST_BUDGET)
        if known is not None:
            self._turns.budget.restore(self._turns.now(), known[0])

    async def keep_budget(self) -> None:
        """Save what was asked of the exchange, at the end too: a restart must not begin a ban."""
        saved = self._turns.changes
        try:
            while True:
                await asyncio.sleep(KEEP_BUDGET_EVERY_S)
                changes = self._turns.changes
                if changes != saved and await save_budget(self._writer, self._turns):
                    saved = changes
        finally:
            await save_budget(self._writer, self._turns)

    async def keep_stock(self) -> None:
        """Count now and then what the journal holds."""
        while True:
            await asyncio.sleep(STOCK_EVERY_S)
            with contextlib.suppress(JournalError):
                await self._writer.take_stock()

    async def look_beside(self) -> None:
        """Know of damaged journals that were set aside, by this run or an earlier, until they are removed."""
        while True:
            await asyncio.sleep(LOOK_AT_JOURNAL_EVERY_S)
            await self._writer.look_beside()

    async def watch_journal(self, intake: Intake) -> None:
        """Find damage that no commit meets: SQLite writes on from memory while readers fail."""
        bad_looks = 0
        while True:
            await asyncio.sleep(LOOK_AT_JOURNAL_EVERY_S)
            try:
                await self._writer.require_whole()
                bad_looks = 0
            except JournalError as error:
                bad_looks += 1
                if bad_looks == 2:
                    intake.on_damage(error)
                    bad_looks = 0


async def save_budget(writer: JournalWriter, turns: Turns) -> bool:
    """Save what was asked of the exchange; whether that could be done."""
    at = turns.now()
    try:
        await writer.save_document(REST_BUDGET, turns.budget.state(at), at.now_ms)
    except JournalError:
        # A collector's intake has logged it; what counts here is the next attempt.
        return False
    return True
