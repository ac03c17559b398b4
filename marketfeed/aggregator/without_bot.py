"""At a start: the forwards of a side whose bot has been taken out of the settings.

Nobody sends them, and there is nobody who could be asked: they end here, with the alarm if need be.
"""

import logging
import time
from collections.abc import Iterable
from functools import partial

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import OPEN_STATES, Forward, State
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unconfirmed import alarm, lost_words

log = logging.getLogger(__name__)


class Orphans:
    """The forwards of `sides`, which have no bot."""

    def __init__(self, sides: Iterable[Side], counters: AggregatorCounters, pace: Pace) -> None:
        self._lost: dict[Side, list[tuple[float, str]]] = {side: [] for side in sides}
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

    async def end(self, ledger: LedgerThread, now_ms: int) -> None:
        """End what stands in an open state. Raises JournalError."""
        states: tuple[State, ...] = (*OPEN_STATES, "lost")
        for forward in await ledger.call(lambda ledger: ledger.forwards(states)):
            if forward.bot in self._lost:
                await ledger.call(partial(self._end, forward, now_ms))

    def _end(self, forward: Forward, now_ms: int, ledger: Ledger) -> None:
        why = f"no bot is set for {forward.bot}"
        age_s = 0.0
        if forward.state == "queued":
            ledger.step(
                forward.window, forward.bot, "expired", now_ms, f"not sent before it expired: {why}"
            )
            self._counters.forwards[forward.side, "expired"] += 1
            log.error("forward expired window=%d pair=%s why=%r", forward.window, forward.pair, why)
            return
        if forward.state == "sending":
            words = "the aggregator was stopped before the bot's answer came"
            forward = ledger.step(forward.window, forward.bot, "unknown", now_ms, words)
        if forward.state == "lost":
            age_s = max(now_ms - forward.changed_ms, 0) / 1000
        else:
            why = f"{why} that could be asked; before that: {forward.answer}"
            alarm(forward, why)
            forward = ledger.step(forward.window, forward.bot, "lost", now_ms, why)
            self._counters.forwards[forward.side, "lost"] += 1
        until_s = time.monotonic() + self._pace.forget_s - age_s
        self._lost[forward.side].append((until_s, lost_words(forward, forward.answer)))
