"""The meta bot: a third one, for both sides, that gets a copy of each forward. Its strategy may refuse some.

A copy is sent by the rules of the two others, at most once, and by what this bot alone has done: it has a
queue, cool-downs, slots and unknown orders of its own. Nothing of the two others waits for it or looks at it.
The commit of a decision stores its copy, unlooked at; all else happens here, in a task of its own. If that
dies it is started again here, and finds in the ledger what was under way, as after a kill.

`now_ms` is the time of the ledger, driven by the monotonic clock.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from marketfeed.aggregator.ballots import Key, Rules
from marketfeed.aggregator.forwarder import Forwarder, Terms
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.from_settings import spans_of
from marketfeed.aggregator.ledger_tables import META, Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.reasons import Kind, Reason
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.start import META_BOOK, Start
from marketfeed.aggregator.timing import Pace
from marketfeed.clock import wait_at_most
from marketfeed.errors import JournalError
from marketfeed.settings.aggregator import AggregatorSettings

log = logging.getLogger(__name__)

END_S: Final = 5.0
"""A stop waits so long (wall s) for its order: one that hangs must not put off the two others' next start."""
AFTER_S: Final = 0.1
"""So long (wall s) a copy is left alone after its decision: the order to the bot of its side leaves first."""
SHOWN_S: Final = 300.0
"""A failure of its worker is a reason in `/health` for so long."""
STUCK_S: Final = 300.0
"""Monotonic s: as of the two others, but without an end of the service."""


class Meta:
    """The meta bot's worker and start. `contested` is why a decision may not be sent any more."""

    def __init__(
        self,
        bot: Bot,
        ledger: LedgerThread,
        rules: Rules,
        settings: AggregatorSettings,
        quote: str,
        contested: Callable[[Forward], str | None],
        now_ms: Callable[[], int],
        pace: Pace,
        counters: AggregatorCounters,
    ) -> None:
        self._bot = bot
        self._ledger = ledger
        self._rules = rules
        self._contested = contested
        self._now_ms = now_ms
        self._pace = pace
        self._counters = counters
        self._terms = Terms(rules.expire_ms, settings.unconfirmed_s, quote=quote, own_pairs=True)
        self._trades: list[tuple[str, Side, int]] = []
        self._start = Start(
            {META: bot},
            ledger,
            self,
            now_ms,
            spans_of(settings),
            pace,
            counters,
            self._hear,
            META_BOOK,
        )
        self._standing = Standing(rules.cooldown_ms)
        self._newest: dict[Key, int] = {}
        self._failed: tuple[float, str] | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waking: asyncio.TimerHandle | None = None
        self.worker = self._new_worker()
        """What sends its orders, for the report."""

    # --- what it reports --------------------------------------------------------------------------------

    def reasons(self) -> Iterator[Reason]:
        """What is not well with the bot and its orders. It holds nothing but its own copies."""
        now_s = time.monotonic()
        if self._failed is not None and now_s - self._failed[0] < SHOWN_S:
            yield Kind.META_FAILED.reason(more=self._failed[1])
        elif (stood_s := now_s - self.worker.turned_s) > STUCK_S:
            yield Kind.META_STANDS.reason(N=f"{stood_s:.0f}")
        if not self._ledger.keeps_copies:
            yield Kind.NO_COPIES.reason()
        yield from self.worker.reasons()
        for kind, text in self._start.reasons():
            yield Reason(kind, text if f"bot of {META}" in text else f"bot of {META}: {text}")

    # --- from outside -----------------------------------------------------------------------------------

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Work until `end`, in a task of the group that no failure ends."""
        self._start.begin()
        self._task = group.create_task(self._run(), name=f"forward {META}")

    def wake(self) -> None:
        """There are new copies in the ledger. They are looked at in a moment."""
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(AFTER_S, self._wake)

    def _wake(self) -> None:
        self._waking = None
        self.worker.wake()

    def end(self) -> None:
        """Finish the order that is under way, if that does not take long. What waits stays in the ledger.

        An order that is cut off stands at `sending`, and the next start looks for it in the bot.
        """
        self._ended.set()
        self.worker.end()
        if self._task is not None:
            asyncio.get_running_loop().call_later(END_S, self._task.cancel)

    # --- as `Start` wants it ----------------------------------------------------------------------------

    def merge_trades(self, trades: Iterable[tuple[str, Side, int]]) -> None:
        """Take in trades that the bot has and the ledger does not know: each is a cool-down."""
        found = list(trades)
        self._trades += found
        for pair, side, opened_ms in found:
            self._standing.merge_trade(pair, side, opened_ms, self._now_ms())

    def hold(self, until_ms: int, why: str) -> None:
        """Copies wait, and expire, as `Start.waits` says: there is no decision here to hold."""

    # --- the work ---------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._ended.is_set():
            try:
                await self._work()
            except JournalError as error:
                log.warning("ledger cannot be read for the meta bot error=%r", str(error))
                self._failed = (time.monotonic(), str(error))
            except Exception as error:
                # Whatever it is: the two others' orders go on, and what was under way is found by the next.
                log.exception("worker of the meta bot failed, starting it again")
                self._failed = (time.monotonic(), repr(error))
            await wait_at_most(self._pace.again_s, self._ended)

    async def _work(self) -> None:
        now_ms = self._now_ms()
        cooled_ms = now_ms - self._rules.cooldown_ms
        stored = await self._ledger.call(lambda ledger: ledger.standing_since(cooled_ms, META))
        self._standing = Standing.of(stored, self._rules.cooldown_ms, now_ms)
        for pair, side, opened_ms in self._trades:
            self._standing.merge_trade(pair, side, opened_ms, now_ms)
        # A fresh one: of the last nobody knows how far it has come, but the ledger.
        worker = self.worker = self._new_worker()
        if self._ended.is_set():
            return
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._start.run(META, worker.wake), name=f"ask {META}")
            await worker.run()
            asking.cancel()

    def _new_worker(self) -> Forwarder:
        return Forwarder(
            META,
            self._bot,
            self._ledger,
            self._now_ms,
            self._counters,
            self._terms,
            Hooks(
                heard=self._hear,
                contested=self._speaks_against,
                forbids=self._start.forbids,
                held=lambda pair, window: self._standing.held(pair, but_window=window),
                waits=partial(self._start.waits, META),
                may_send=partial(self._start.may_not_send, META),
                fetched=self._fetched,
            ),
            self._pace,
        )

    def _hear(self, forward: Forward) -> None:
        now_ms = self._now_ms()
        self._standing.heard(forward, now_ms)
        self._standing.forget(now_ms)

    def _fetched(self, queued: list[Forward]) -> None:
        # Oldest first: of a pair and side the newest stays.
        self._newest = {(forward.pair, forward.side): forward.window for forward in queued}

    def _speaks_against(self, forward: Forward) -> str | None:
        """Why a copy is not sent: a newer one, the other side, or a cool-down of this bot's own orders."""
        newest = self._newest.get((forward.pair, forward.side), forward.window)
        if newest > forward.window:
            return f"replaced by window {newest}"
        if words := self._contested(forward):
            return words
        return self._standing.cools(forward.pair, forward.side, forward.decided_ms)
