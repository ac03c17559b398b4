"""At a start: the forwards of a side, or copies, whose bot has been taken out of the settings.

Nobody sends them, and there is nobody who could be asked: they end here, with the alarm if need be.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from marketfeed.aggregator.ledger_tables import META, OPEN_STATES, BotName, Forward, State
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unconfirmed import alarm, lost_words
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError

log = logging.getLogger(__name__)


class Orphans:
    """The forwards of `sides`, which have no bot."""

    def __init__(self, sides: Iterable[BotName], counters: AggregatorCounters, pace: Pace) -> None:
        self.trouble = Trouble(
            log,
            "forwards of a side without a bot not ended, trying again",
            "forwards of sides without a bot have ended",
            logging.ERROR,
        )
        """Why they have not ended, for `/health`: until then, such an order may hold its pair."""
        self._lost: dict[BotName, list[tuple[float, str]]] = {side: [] for side in sides}
        self._counters = counters
        self._pace = pace

    def lost(self) -> dict[str, list[str]]:
        """What was lost within `forget_s`, by side, for `/health`."""
        now_s = time.monotonic()
        return {
            side: [words for until_s, words in found if now_s < until_s]
            for side, found in self._lost.items()
            if found
        }

    async def end(
        self, ledger: LedgerThread, now_ms: Callable[[], int], heard: Callable[[Forward], None]
    ) -> bool:
        """End what stands in an open state; whether that is done. `heard` is told of each that has ended.

        What the disk does not take is told in `trouble`: try again.
        """
        states: tuple[State, ...] = (*OPEN_STATES, "lost")
        try:
            found = await ledger.call(
                lambda ledger: [*ledger.forwards(states), *ledger.forwards(states, META)]
            )
            for forward in found:
                if forward.bot in self._lost:
                    heard(await self._end(forward, now_ms(), ledger))
        except JournalError as error:
            self.trouble.met(error)
            return False
        self.trouble.end()
        return True

    async def end_at_last(
        self, ledger: LedgerThread, now_ms: Callable[[], int], heard: Callable[[Forward], None]
    ) -> None:
        """The same, again and again, however long the disk does not take it."""
        ended = False
        while not ended:
            await asyncio.sleep(self._pace.ledger_retry_s)
            ended = await self.end(ledger, now_ms, heard)

    async def _end(self, forward: Forward, now_ms: int, ledger: LedgerThread) -> Forward:
        """One of them, as it stands then. Raises JournalError: it may have come half the way."""

        def step(state: State, words: str) -> Awaitable[Forward]:
            return ledger.call(
                lambda ledger: ledger.step(forward.window, forward.bot, state, now_ms, words)
            )

        why = f"no bot is set for {forward.bot}"
        if forward.state == "queued":
            ended = await step("expired", f"not sent before it expired: {why}")
            self._counters.forwards[forward.bot, "expired"] += 1
            log.error("forward expired window=%d pair=%s why=%r", forward.window, forward.pair, why)
            return ended
        if forward.state == "sending":
            words = "the aggregator was stopped before the bot's answer came"
            forward = await step("unknown", words)
        age_s = 0.0
        if forward.state == "lost":
            age_s = max(now_ms - forward.changed_ms, 0) / 1000
        else:
            why = f"{why} that could be asked; before that: {forward.answer}"
            forward = await step("lost", why)
            alarm(forward, why)
            self._counters.forwards[forward.bot, "lost"] += 1
        words = lost_words(forward, forward.answer)
        if words not in [known for _, known in self._lost[forward.bot]]:
            until_s = time.monotonic() + self._pace.forget_s - age_s
            self._lost[forward.bot].append((until_s, words))
        return forward
