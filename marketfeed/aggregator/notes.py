"""The steps of one bot's forwards, noted in the ledger, and told to who depends on them."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import BotName, Forward, State
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError, LedgerError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Notes:
    """What one worker notes and reads. `heard` is told of every step as soon as it has been committed."""

    def __init__(
        self,
        side: BotName,
        ledger: LedgerThread,
        now_ms: Callable[[], int],
        counters: AggregatorCounters,
        heard: Callable[[Forward], None],
        retry_s: float,
    ) -> None:
        self.trouble = Trouble(
            log,
            f"ledger cannot be used, trying again side={side}",
            f"ledger can be used again side={side}",
            logging.ERROR,
        )
        """Why nothing can be noted, and so nothing sent, for `/health`."""
        self._side = side
        self._ledger = ledger
        self._now_ms = now_ms
        self._counters = counters
        self._heard = heard
        self._retry_s = retry_s
        self._ending = False

    def end(self) -> None:
        """Try no more what the disk does not take."""
        self._ending = True

    async def note(
        self,
        forward: Forward,
        state: State,
        answer: str,
        status: int | None = None,
        trade_id: int | None = None,
    ) -> Forward | None:
        """Note what has happened, however long the disk does not take it; None when it was refused.

        Given up at a stop: then the ledger holds `sending`, and the next start looks into the bot.
        """
        now_ms = self._now_ms()

        def step(ledger: Ledger) -> Forward:
            return ledger.step(forward.window, forward.bot, state, now_ms, answer, status, trade_id)

        while True:
            noted: Forward | None = None
            try:
                noted = await self._ledger.call(step)
            except LedgerError as error:
                log.error("ledger disagrees error=%r", str(error))
            except JournalError as error:
                if self._ending:
                    return None
                await self.failed(error)
                continue
            self.trouble.end()
            if noted is not None:
                self._heard(noted)
                if state != "queued":
                    self._counters.forwards[self._side, state] += 1
            return noted

    async def try_once(self, function: Callable[[Ledger], T]) -> T | None:
        """Do something with the ledger, once; None when the disk does not let it, after a pause.

        Raises LedgerError. What has been noted is not told: that is for who calls (`tell`).
        """
        try:
            found = await self._ledger.call(function)
        except LedgerError:
            self.trouble.end()
            raise
        except JournalError as error:
            await self.failed(error)
            return None
        return found

    def tell(self, forward: Forward) -> None:
        """A step that `try_once` took has been committed."""
        self.trouble.end()
        self._heard(forward)

    async def failed(self, error: JournalError) -> None:
        """The ledger could not be used: count it, and let some time pass."""
        self._counters.ledger_failures += 1
        self.trouble.met(error)
        await asyncio.sleep(self._retry_s)
