"""Sending one bot the best of what waits for it: from the last look at it to the note of what became of it.

Before the POST the ledger holds `sending`, durably; the outcome is noted after it. Connect refused: nothing
was sent, and it waits again. So it does if the bot says that it is full or paused. By the bot's own answer
an order is accepted or refused. Anything else after the POST began is `unknown`: a time-out, a cut, an
answer that is not the bot's own word on the order, a crash of ours.
"""

import logging
import time
from collections.abc import Callable

import msgspec

from marketfeed.aggregator.access import Access
from marketfeed.aggregator.expired import Expired
from marketfeed.aggregator.freqtrade_bot import Answer, Bot
from marketfeed.aggregator.gate import Why
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_forwards import PairAtWorkError
from marketfeed.aggregator.ledger_tables import META, BotName, Forward
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.notes import Notes
from marketfeed.aggregator.queue import Queue, chosen_again, decided_ahead
from marketfeed.aggregator.refusals import Refusals
from marketfeed.aggregator.search import Search
from marketfeed.errors import LedgerError
from marketfeed.service.freqtrade_api import BotError, NotSentError

log = logging.getLogger(__name__)


class Hooks(msgspec.Struct, frozen=True):
    """What the worker tells of its forwards, and asks for before it sends one. No words: it may be sent.

    `heard` is told of every forward as it stands in the ledger, once a step of it has been committed.
    `contested`: why a forward may not be sent any more, because of what was decided; `forbids`: because of
    anything else. `held`: whether another order of a pair than that of a window is at work, to whichever bot.
    `waits`: why nothing is sent yet. `may_send`, asked between the commit of `sending` and its POST: why
    it may not be sent after all. `fetched` is told of all that is queued, whenever that is read.
    """

    heard: Callable[[Forward], None] = lambda _: None
    contested: Callable[[Forward], str | None] = lambda _: None
    forbids: Callable[[Forward], str | None] = lambda _: None
    held: Callable[[str, int], bool] = lambda _pair, _window: False
    waits: Callable[[], str | None] = lambda: None
    may_send: Callable[[], str | None] = lambda: None
    fetched: Callable[[list[Forward]], None] = lambda _: None


class Sender:
    """The orders to one side's bot. `now_ms` is the time of the ledger, driven by the monotonic clock."""

    def __init__(
        self,
        side: BotName,
        bot: Bot,
        queue: Queue,
        access: Access,
        search: Search,
        notes: Notes,
        hooks: Hooks,
        counters: AggregatorCounters,
        now_ms: Callable[[], int],
        why: Callable[[Forward], Why],
    ) -> None:
        """`why` says for what a forward waits."""
        self.expired = Expired()
        """What expired while it waited for the bot."""
        self.refusals = Refusals()
        """What the bot refused, or opened on the other side."""
        self._side = side
        self._bot = bot
        self._queue = queue
        self._access = access
        self._search = search
        self._notes = notes
        self._hooks = hooks
        self._counters = counters
        self._now_ms = now_ms
        self._why = why

    async def send_best(self) -> bool:
        """Send the best one that may go, and nothing else; False: none may."""
        for forward in self._queue:
            # What has ended has its turn afterwards: each takes a commit.
            if self.is_held(forward) or self.ends_by(forward) is not None:
                continue
            if await self._is_free(forward) and await self._has_room(forward):
                sending = await self._commit(forward)
                if sending is not None and await self._may_go(sending):
                    await self._send(sending)
            return True
        return False

    def ends_by(self, forward: Forward) -> str | Why | None:
        """What ends it: words that speak against it, or what it has waited for too long. None: nothing."""
        if words := self.speaks_against(forward):
            return words
        now_ms = self._now_ms()
        if decided_ahead(forward, now_ms):
            words = "it was decided by a clock that was ahead, nobody knows how long ago"
            return f"not sent before it expired: {words}"
        return self._why(forward) if self._queue.is_over(forward, now_ms) else None

    async def end(self, forward: Forward, by: str | Why) -> None:
        """It is not sent any more, by what `ends_by` says."""
        if isinstance(by, str):
            await self._end_unsent(forward, by)
        elif await self._end_unsent(forward, f"not sent before it expired: {by.words}"):
            self.expired.add(by.cause, time.monotonic())

    def speaks_against(self, forward: Forward) -> str | None:
        """Why it may not be sent any more."""
        if words := self._hooks.contested(forward):
            return words
        words = self._hooks.forbids(forward)
        return f"not sent before it expired: {words}" if words else None

    def is_held(self, forward: Forward) -> bool:
        """Whether another order of its pair is at work."""
        pairs = self._search.orders.pairs
        return forward.pair in pairs or self._hooks.held(forward.pair, forward.window)

    async def _end_unsent(self, forward: Forward, words: str) -> bool:
        """It is not sent any more; whether the ledger has taken that."""
        self._queue.drop(forward.window)
        if await self._notes.note(forward, "expired", words) is None:
            return False
        log.error(
            "forward expired window=%d pair=%s side=%s tag=%r why=%r",
            forward.window,
            forward.pair,
            forward.side,
            forward.tag,
            words,
        )
        return True

    # --- before the POST --------------------------------------------------------------------------------

    async def _is_free(self, forward: Forward) -> bool:
        """Whether the other side's bot does not hold its pair; it is not sent if nobody knows."""
        try:
            taken = await self._access.pair_taken(forward)
        except BotError:
            return False
        if taken is not None:
            await self._end_unsent(forward, taken)
            return False
        words = "the other side's bot took too long to say whether it holds the pair"
        return not await self._is_over(forward, Why("other bot", words))

    async def _has_room(self, forward: Forward) -> bool:
        if not await self._access.has_room():
            return False
        words = "the bot took too long to say whether it has room"
        return not await self._is_over(forward, Why("room unknown", words))

    async def _is_over(self, forward: Forward, why: Why) -> bool:
        """Whether it has waited too long, for this; then it has ended."""
        over = self._queue.is_over(forward, self._now_ms())
        if over:
            await self.end(forward, why)
        return over

    async def _commit(self, forward: Forward) -> Forward | None:
        """Note durably that it is sent; None if it was not: another one is better now, or it waits no more.

        It is chosen within the transaction: what is queued then and better may not go. Nor may it beside
        another of its pair, which the other side's worker may have sent a moment ago.
        """
        now_ms, known = self._now_ms(), self._queue.windows

        def commit(ledger: Ledger) -> tuple[list[Forward], Forward | None]:
            queued = ledger.forwards(("queued",), self._side)
            if chosen_again(forward, known, queued):
                return queued, None
            return queued, ledger.step(forward.window, forward.bot, "sending", now_ms)

        try:
            found = await self._notes.try_once(commit)
        except PairAtWorkError as error:
            # It waits, and others go: from here on it is known that the pair is held.
            self._notes.tell(error.forward)
            return None
        except LedgerError as error:
            log.error("forward not sent error=%r", str(error))
            self._queue.drop(forward.window)
            return None
        if found is None:
            # Without `sending` on the disk nothing may be sent.
            return None
        queued, sending = found
        self._queue.take(queued)
        if sending is not None:
            self._queue.drop(sending.window)
            self._notes.tell(sending)
        return sending

    async def _may_go(self, sending: Forward) -> bool:
        """Whether nothing has come up while the ledger noted it. If so, nothing is awaited until the POST."""
        if words := self._hooks.may_send():
            await self._end_unsent(sending, f"not sent before it expired: {words}")
            return False
        if words := self.speaks_against(sending):
            await self._end_unsent(sending, words)
            return False
        if self.is_held(sending):
            await self._send_back(sending, f"another order of {sending.pair} is at work")
            return False
        if self._access.is_overtaken(sending.pair):
            words = f"the other side's bot has got an order of {sending.pair} since it was asked"
            await self._send_back(sending, words)
            return False
        # However long the disk took, nothing has been sent.
        why = Why("ledger", "the ledger took too long to note that it is sent")
        return not await self._is_over(sending, why)

    # --- the POST, and what follows ---------------------------------------------------------------------

    async def _send(self, sending: Forward) -> None:
        gate, began_s, began_ms = self._access.gate, time.monotonic(), self._now_ms()
        if self._side != META:
            # A copy is left alone for a moment: it would hide what the two others' orders take.
            self._counters.close_to_send.add(max(began_ms - sending.decided_ms, 0))
        try:
            answer = await self._bot.enter(sending)
        except NotSentError as error:
            self._access.failed(error)
            await self._send_back(sending, str(error))
            return
        except BotError as error:
            words = f"its answer did not come: {error}"
        except Exception as error:
            # Whatever it was, it may have been sent.
            log.exception("forward failed in an unforeseen way window=%d", sending.window)
            words = repr(error)
        else:
            now_s = time.monotonic()
            gate.took(now_s - began_s, now_s)
            if answer.meaning != "unknown":
                await self._answered(sending, answer)
                return
            words = f"it answered {answer.status}: {answer.words}"
        self._access.unclear(words)
        await self._search.take(sending, words)
        # What waits behind it loses neither the time of its POST nor that of the search.
        self._queue.stall(began_ms, self._now_ms())

    async def _answered(self, sending: Forward, answer: Answer) -> None:
        self._search.orders.own_word()
        words = f"{answer.status}: {answer.words}"
        self._access.answered()
        self._access.shut_by(answer.meaning, words)
        log.log(
            logging.INFO if answer.meaning == "accepted" else logging.WARNING,
            "forward %s window=%d pair=%s tag=%r status=%d words=%r",
            answer.meaning,
            sending.window,
            sending.pair,
            sending.tag,
            answer.status,
            answer.words,
        )
        now_s = time.monotonic()
        self.refusals.answered(answer.meaning, answer.words, sending.pair)
        if answer.meaning == "refused":
            self.refusals.refused(answer.words, sending.pair, now_s)
            if self.refusals.of_all(now_s):
                self._access.ask_now()
        elif answer.meaning == "accepted":
            self.refusals.accepted()
            if answer.side not in (None, sending.side):
                words = (
                    f"it opened {sending.pair} {answer.words} {answer.side}, ordered {sending.side}"
                )
                log.critical(
                    "ALARM the bot opened a trade of the other side window=%d words=%r",
                    sending.window,
                    words,
                )
                self.refusals.wrong_side(words, now_s)
        if answer.meaning in ("full", "paused"):
            await self._send_back(sending, answer.words, answer.status)
        elif answer.meaning == "accepted":
            await self._notes.note(
                sending, "accepted", answer.words, answer.status, answer.trade_id
            )
        else:
            await self._notes.note(sending, "refused", answer.words, answer.status)

    async def _send_back(self, sending: Forward, words: str, status: int | None = None) -> None:
        """It waits again: surely nothing was opened."""
        queued = await self._notes.note(sending, "queued", words, status)
        if queued is not None:
            self._queue.put(queued)
