"""One worker per bot: takes decisions of its side there, one request at a time, each order at most once.

Before the POST the ledger holds `sending`, durably; the outcome is noted after it. The bot's own answer about
the order is final. Connect refused: nothing was sent, and it is tried again until the decision expires.
Anything else after the POST began (a time-out, a cut, an error that is not about the order, a crash of
ours) is `unknown`: never sent again, but resolved by looking for a trade of this pair with this tag, opened
at or after the send time. If there is none within `lost_after_s`, it is `lost`, which alarms. Until then no
other order is sent to this bot: it may still be at that one, and looks at its limits before it queues.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from marketfeed.aggregator.freqtrade_bot import (
    CLOCK_TOLERANCE_MS,
    Answer,
    Bot,
    BotError,
    NotSentError,
    Trade,
)
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Forward, State, found_words
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.timing import DEFAULT_PACE, Pace
from marketfeed.aggregator.unconfirmed import Item, Unconfirmed, alarm, sent_ahead
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError, LedgerError, backoff_s

log = logging.getLogger(__name__)

WRONG_ADDRESS: Final = (301, 302, 307, 308, 401, 403, 404, 405)
"""Statuses that concern address or password, not the order."""


class Forwarder:
    """The worker of one side's bot. `now_ms` is the time of the ledger, driven by the monotonic clock.

    `heard` is told of every forward whose step has been committed, before anything else is done. `waits`
    says why nothing may be sent now, `forbids` why a forward may never be sent, and `gone` what is
    missing of the ledger: empty when nothing is.
    """

    def __init__(
        self,
        side: Side,
        bot: Bot,
        ledger: LedgerThread,
        now_ms: Callable[[], int],
        counters: AggregatorCounters,
        pace: Pace = DEFAULT_PACE,
        heard: Callable[[Forward], None] = lambda _: None,
        waits: Callable[[], str] = lambda: "",
        forbids: Callable[[Forward], str] = lambda _: "",
        gone: Callable[[], str] = lambda: "",
    ) -> None:
        self.side = side
        self.trouble = Trouble(
            log, f"bot in trouble side={side}", f"bot answers again side={side}", logging.ERROR
        )
        """What is wrong with the bot, for `/health`, since it answered well last."""
        self.ledger_trouble = Trouble(
            log,
            f"ledger cannot be used, trying again side={side}",
            f"ledger can be used again side={side}",
            logging.ERROR,
        )
        """Why nothing can be noted, and so nothing sent, for `/health`."""
        self.turned_s = time.monotonic()
        """When it last was at the head of its loop (monotonic): every wait in it has an end."""
        self._bot = bot
        self._ledger = ledger
        self._now_ms = now_ms
        self._counters = counters
        self._pace = pace
        self._heard = heard
        self._waits = waits
        self._forbids = forbids
        self._gone = gone
        self._queue: deque[Forward] = deque()
        self._queued: set[int] = set()
        self._unconfirmed = Unconfirmed(pace)
        self._silent = False
        """Whether the bot has not answered anything since it left an order without an answer."""
        self._failures = 0
        self._retry_at_s = 0.0
        self._probe_at_s = 0.0
        self._woken = asyncio.Event()
        self._ending = False

    @property
    def waiting(self) -> int:
        """Forwards that have not been sent yet."""
        return len(self._queue)

    @property
    def unconfirmed(self) -> int:
        """Forwards of which it is not known yet whether they were received."""
        return self._unconfirmed.open

    @property
    def lost(self) -> dict[int, str]:
        """Windows whose orders may or may not have been executed, and what is known of each."""
        return self._unconfirmed.lost

    def wake(self) -> None:
        """There are new forwards in the ledger."""
        self._woken.set()

    def end(self) -> None:
        """Finish the request that is under way, and return from `run`. What waits stays in the ledger."""
        self._ending = True
        self._woken.set()

    async def run(self) -> None:
        """Work until `end`. No answer of the bot and no state of the disk ends it before."""
        await self._take_over()
        self._woken.set()
        while not self._ending:
            self.turned_s = time.monotonic()
            if self._woken.is_set():
                self._woken.clear()
                await self._fetch()
            wait_s = await self._next_step()
            if wait_s > 0 and not self._ending:
                await wait_at_most(wait_s, self._woken)

    # --- what there is to do --------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """After a start: what stands at `sending` was cut off in the middle, so nobody knows.

        What was lost lately is looked for again, too, and its alarm lives on.
        """
        while not self._ending:
            try:
                found = await self._ledger.call(
                    lambda ledger: ledger.forwards(("sending", "unknown", "lost"))
                )
                break
            except JournalError as error:
                await self._no_ledger(error)
        else:
            return
        for forward in found:
            if forward.bot != self.side:
                continue
            age_s = (self._now_ms() - forward.changed_ms) / 1000
            if forward.state == "lost" and age_s >= self._pace.recall_s:
                continue
            ahead = sent_ahead(forward, self._now_ms())
            if ahead:
                log.warning(
                    "forward sent by a clock that was ahead, nobody knows when window=%d pair=%s",
                    forward.window,
                    forward.pair,
                )
            unknown: Forward | None = forward
            if forward.state == "sending":
                words = "the aggregator was stopped before the bot's answer came"
                if ahead:
                    words += "; its clock was ahead, nobody knows when it was sent"
                unknown = await self._note(forward, "unknown", words)
            if unknown is not None:
                self._unconfirmed.take(unknown, self._now_ms(), time.monotonic())
                self._silent = True

    async def _fetch(self) -> None:
        try:
            found = await self._ledger.call(lambda ledger: ledger.forwards(("queued",)))
        except JournalError as error:
            await self._no_ledger(error)
            self._woken.set()
            return
        for forward in found:
            if forward.bot == self.side and forward.window not in self._queued:
                self._queued.add(forward.window)
                self._queue.append(forward)
        if not self._queue:
            # Otherwise the next step shows whether it can be written, too.
            self.ledger_trouble.end()

    async def _next_step(self) -> float:
        """Do one thing that is due; returns how long there is nothing to do."""
        now_s = time.monotonic()
        await self._expire()
        if self._unconfirmed.due(now_s):
            await self._look()
            return 0.0
        held = self._silent or self._unconfirmed.holding or bool(self._waits())
        if self._queue and not held and self._retry_at_s <= now_s:
            await self._send(self._queue[0])
            return 0.0
        # While orders are tried, they show how the bot is.
        trying = bool(self._queue) and not held
        if self._probe_at_s <= now_s and not trying:
            await self._probe()
            return 0.0
        times_s: list[float] = [] if trying else [self._probe_at_s]
        times_s.extend(item.look_at_s for item in self._unconfirmed)
        if self._queue:
            expires_s = (self._queue[0].expires_ms - self._now_ms()) / 1000
            times_s.append(now_s + max(expires_s, 0.0) + 0.001)
            if not held:
                times_s.append(self._retry_at_s)
        return max(min(times_s) - time.monotonic(), 0.001)

    async def _expire(self) -> None:
        now_ms = self._now_ms()
        for forward in tuple(self._queue):
            forbidden = self._forbids(forward)
            if not (forbidden or _is_over(forward, now_ms)):
                continue
            why = self.trouble.why or "others went first"
            if self._unconfirmed.holding:
                doing = self.trouble.why or "looking for it"
                why = f"the outcome of another order is not known, {doing}"
            if _decided_ahead(forward, now_ms):
                why = "it was decided by a clock that was ahead, nobody knows how long ago"
            why = forbidden or self._waits() or why
            await self._end_unsent(forward, why)
            self._drop(forward)

    async def _end_unsent(self, forward: Forward, why: str) -> None:
        if await self._note(forward, "expired", f"not sent before it expired: {why}") is not None:
            log.error(
                "forward expired window=%d pair=%s side=%s tag=%r why=%r",
                forward.window,
                forward.pair,
                forward.side,
                forward.tag,
                why,
            )

    # --- sending --------------------------------------------------------------------------------------

    async def _send(self, forward: Forward) -> None:
        if forward.bot != self.side:
            raise LedgerError(
                f"window {forward.window} goes to bot {forward.bot}, this is {self.side}"
            )
        now_ms = self._now_ms()
        try:
            sending = await self._ledger.call(
                lambda ledger: ledger.step(forward.window, forward.bot, "sending", now_ms)
            )
        except LedgerError as error:
            log.error("forward not sent error=%r", str(error))
            self.ledger_trouble.end()
            self._drop(forward)
            return
        except JournalError as error:
            # Without `sending` on the disk nothing may be sent.
            await self._no_ledger(error)
            return
        self._heard(sending)
        self.ledger_trouble.end()
        now_ms = self._now_ms()
        if now_ms >= forward.expires_ms:
            # However long the disk took, nothing has been sent.
            self._drop(forward)
            await self._end_unsent(sending, "the ledger took too long to note that it is sent")
            return
        if words := self._gone():
            # What was noted may stand in a file that nobody reads any more.
            self._drop(forward)
            await self._end_unsent(sending, words)
            return
        self._counters.close_to_send.add(max(now_ms - forward.decided_ms, 0))
        try:
            answer = await self._bot.enter(sending)
        except NotSentError as error:
            await self._not_sent(sending, str(error))
        except BotError as error:
            await self._unknown(sending, f"its answer did not come: {error}")
        except Exception as error:
            # Whatever it was, it may have been sent.
            log.exception("forward failed in an unforeseen way window=%d", forward.window)
            await self._unknown(sending, repr(error))
        else:
            await self._answered(sending, answer)

    async def _answered(self, forward: Forward, answer: Answer) -> None:
        if answer.meaning == "unknown":
            # With a 500 of its own it has ended with the order, if not well; a proxy knows nothing.
            over = answer.status == 500
            await self._unknown(forward, f"it answered {answer.status}: {answer.words}", over=over)
            return
        self._recovered()
        if answer.status in WRONG_ADDRESS:
            self.trouble.met(f"it answers {answer.status}: {answer.words}")
        self._drop(forward)
        log.log(
            logging.INFO if answer.meaning == "accepted" else logging.WARNING,
            "forward %s window=%d pair=%s tag=%r status=%d words=%r",
            answer.meaning,
            forward.window,
            forward.pair,
            forward.tag,
            answer.status,
            answer.words,
        )
        await self._note(forward, answer.meaning, answer.words, answer.status, answer.trade_id)

    async def _not_sent(self, forward: Forward, words: str) -> None:
        self.trouble.met(f"not reachable: {words}")
        if await self._note(forward, "queued", words) is None:
            self._drop(forward)
            return
        self._failures += 1
        pace = self._pace
        delay_s = backoff_s(self._failures, pace.retry_first_s, pace.retry_cap_s)
        self._retry_at_s = time.monotonic() + delay_s

    async def _unknown(self, forward: Forward, words: str, *, over: bool = False) -> None:
        self._drop(forward)
        # Lost or not, nothing else is sent to it until it answers something.
        self._silent = not over
        self.trouble.met(words)
        log.error(
            "forward unknown, looking for it in the bot window=%d pair=%s tag=%r words=%r",
            forward.window,
            forward.pair,
            forward.tag,
            words,
        )
        unknown = await self._note(forward, "unknown", words)
        if unknown is not None:
            self._unconfirmed.take(unknown, self._now_ms(), time.monotonic(), holds=not over)

    # --- looking ----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        words, answered = "no such trade in the bot", False
        trades: list[Trade] = []
        try:
            trades = await self._bot.trades(self._now_ms)
            answered = True
            self._recovered()
        except BotError as error:
            words = f"the bot could not be asked: {error}"
            self.trouble.met(_trouble_of(error))
        except Exception as error:
            # Whatever it has answered, the other bot's worker lives in the same process.
            words = f"the bot could not be asked: {error!r}"
            self._unforeseen(error)
        now_s = time.monotonic()
        for item in self._unconfirmed.due(now_s):
            try:
                trade = await self._trade_of(item, trades)
            except JournalError as error:
                await self._no_ledger(error)
                return
            if trade is not None:
                await self._found(item, trade)
                continue
            if self._unconfirmed.is_out_of_time(item, now_s):
                await self._lose(item, words)
            self._unconfirmed.put_off(item, now_s, answered=answered)

    async def _trade_of(self, item: Item, trades: list[Trade]) -> Trade | None:
        """The trade that this order led to. Raises JournalError."""
        forward = item.forward
        for trade in filter(item.may_have_opened, trades):
            question = partial(
                Ledger.is_another_s,
                forward=forward,
                trade_id=trade.trade_id,
                opened_by_ms=trade.opened_ms + CLOCK_TOLERANCE_MS,
                since_ms=item.since_ms,
                added=trade.added,
            )
            if not await self._ledger.call(question):
                return trade
        return None

    async def _found(self, item: Item, trade: Trade) -> None:
        forward = item.forward
        words = found_words(trade.trade_id, trade.opened_ms, added=trade.added)
        opened = None if trade.added else trade.trade_id
        if await self._note(forward, "found", words, trade_id=opened) is not None:
            log.warning(
                "forward settled: found in the bot window=%d pair=%s tag=%r trade=%d",
                forward.window,
                forward.pair,
                forward.tag,
                trade.trade_id,
            )
        self._unconfirmed.resolve(item)

    async def _lose(self, item: Item, words: str) -> None:
        forward = item.forward
        text = f"{words}; before that: {forward.answer}" if forward.answer else words
        alarm(forward, text)
        item.lose(words)
        await self._note(forward, "lost", text)

    async def _probe(self) -> None:
        try:
            await self._bot.probe()
            self._recovered()
        except BotError as error:
            self.trouble.met(_trouble_of(error))
        except Exception as error:
            self._unforeseen(error)
        soon = self._silent or self._queue
        pause_s = self._pace.look_s if soon else self._pace.probe_s
        self._probe_at_s = time.monotonic() + pause_s

    # --- inside -----------------------------------------------------------------------------------------

    async def _note(
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
            try:
                noted = await self._ledger.call(step)
            except LedgerError as error:
                log.error("ledger disagrees error=%r", str(error))
                self.ledger_trouble.end()
                return None
            except JournalError as error:
                if self._ending:
                    return None
                await self._no_ledger(error)
            else:
                self._heard(noted)
                self.ledger_trouble.end()
                if state != "queued":
                    self._counters.forwards[self.side, state] += 1
                return noted

    async def _no_ledger(self, error: JournalError) -> None:
        self._counters.ledger_failures += 1
        self.ledger_trouble.met(error)
        await asyncio.sleep(self._pace.ledger_retry_s)

    def _drop(self, forward: Forward) -> None:
        self._queue = deque(item for item in self._queue if item.window != forward.window)
        self._queued.discard(forward.window)

    def _recovered(self) -> None:
        self._silent = False
        self._failures = 0
        self._retry_at_s = 0.0
        self._probe_at_s = time.monotonic() + self._pace.probe_s
        self.trouble.end()

    def _unforeseen(self, error: Exception) -> None:
        if (words := f"not well: {error!r}") != self.trouble.why:
            log.error("asking failed in an unforeseen way side=%s", self.side, exc_info=error)
        self.trouble.met(words)


def _trouble_of(error: BotError) -> str:
    return f"not reachable: {error}" if isinstance(error, NotSentError) else f"not well: {error}"


def _is_over(forward: Forward, now_ms: int) -> bool:
    return now_ms >= forward.expires_ms or _decided_ahead(forward, now_ms)


def _decided_ahead(forward: Forward, now_ms: int) -> bool:
    """Whether it was decided, before a restart, by a clock that was ahead."""
    return forward.decided_ms > now_ms
