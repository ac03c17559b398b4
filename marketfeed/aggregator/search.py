"""Looking into one bot for the orders of which nobody knows what became, until each is found or lost."""

import logging
import time
from collections.abc import Callable
from functools import partial

from marketfeed.aggregator.asking import Asking
from marketfeed.aggregator.freqtrade_bot import CLOCK_TOLERANCE_MS, Bot, Trade
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import BotName, Forward, State, found_words
from marketfeed.aggregator.notes import Notes
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unconfirmed import Item, Unconfirmed, alarm, sent_ahead
from marketfeed.service.freqtrade_api import AnsweredError, BotError

log = logging.getLogger(__name__)


class Search:
    """The search in one side's bot. `unconfirmed_s` after it was sent, an order that is not found is lost."""

    def __init__(
        self,
        side: BotName,
        bot: Bot,
        notes: Notes,
        ask: Asking,
        now_ms: Callable[[], int],
        pace: Pace,
        unconfirmed_s: float,
    ) -> None:
        self.orders = Unconfirmed(pace, unconfirmed_s)
        """Those that are looked for."""
        self._side = side
        self._bot = bot
        self._notes = notes
        self._ask = ask
        self._now_ms = now_ms
        self._pace = pace

    def is_due(self, now_s: float) -> bool:
        """Whether to look now."""
        look_at_s = self.orders.look_at_s
        return look_at_s is not None and look_at_s <= now_s

    async def take_over(self) -> bool:
        """After a start: what stands at `sending` was cut off in the middle, so nobody knows.

        What was lost lately is looked for again, too, and its alarm lives on. False: the ledger could not be
        read, and it is to be tried again.
        """
        states: tuple[State, ...] = ("sending", "unknown", "lost")
        found = await self._notes.try_once(lambda ledger: ledger.forwards(states, self._side))
        if found is None:
            return False
        for forward in found:
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
                unknown = await self._notes.note(forward, "unknown", words)
            if unknown is not None:
                self.orders.take(unknown, self._now_ms(), time.monotonic())
        return True

    async def take(self, sending: Forward, words: str) -> None:
        """An order was sent, and its answer leaves open what became of it."""
        log.error(
            "forward unknown, looking for it in the bot window=%d pair=%s tag=%r words=%r",
            sending.window,
            sending.pair,
            sending.tag,
            words,
        )
        unknown = await self._notes.note(sending, "unknown", words)
        if unknown is not None:
            self.orders.take(unknown, self._now_ms(), time.monotonic())

    async def look(self, *, others_wait: bool) -> Exception | None:
        """Look for all of them; returns what kept the bot from answering, unless that was a stop."""
        words = "no such trade in the bot"
        failure: Exception | None = None
        trades: list[Trade] = []
        last_turn: str | None = None
        try:
            trades = await self._ask(self._bot.trades(self._now_ms))
            last_turn = await self._last_turn()
        except BotError as error:
            words, failure = f"the bot could not be asked: {error}", error
        except Exception as error:
            # Whatever it has answered, the other bot's worker lives in the same process.
            words, failure = f"the bot could not be asked: {error!r}", error
        if self._ask.ended:
            return None
        if await self._settle(trades, words):
            now_s = time.monotonic()
            if failure is None:
                self.orders.answered(now_s, last_turn)
            else:
                self.orders.unanswered()
            self.orders.looked(now_s, others_wait=others_wait)
        return failure

    async def _last_turn(self) -> str | None:
        try:
            return await self._ask(self._bot.last_turn())
        except AnsweredError as error:
            if error.status == 401:
                raise
            # It has answered the look: that it never says this must not hold up its orders for ever.
            return None

    # --- inside -----------------------------------------------------------------------------------------

    async def _settle(self, trades: list[Trade], words: str) -> bool:
        """Note what was found, and what is lost; False: the ledger could not be asked for something."""
        now_s = time.monotonic()
        for item in self.orders:
            asked, trade = await self._trade_of(item, trades)
            if not asked:
                return False
            if trade is not None:
                await self._found(item, trade)
            elif self.orders.is_out_of_time(item, now_s):
                await self._lose(item, words)
        return True

    async def _trade_of(self, item: Item, trades: list[Trade]) -> tuple[bool, Trade | None]:
        """The trade that this order led to, and before it whether the ledger could be asked."""
        for trade in filter(item.may_have_opened, trades):
            question = partial(
                Ledger.is_another_s,
                forward=item.forward,
                trade_id=trade.trade_id,
                opened_by_ms=trade.opened_ms + CLOCK_TOLERANCE_MS,
                since_ms=item.since_ms,
                added=trade.added,
            )
            another_s = await self._notes.try_once(question)
            if another_s is None:
                return False, None
            if not another_s:
                return True, trade
        return True, None

    async def _found(self, item: Item, trade: Trade) -> None:
        forward = item.forward
        words = found_words(trade.trade_id, trade.opened_ms, added=trade.added)
        opened = None if trade.added else trade.trade_id
        if await self._notes.note(forward, "found", words, trade_id=opened) is not None:
            log.warning(
                "forward settled: found in the bot window=%d pair=%s tag=%r trade=%d",
                forward.window,
                forward.pair,
                forward.tag,
                trade.trade_id,
            )
        self.orders.found(item)

    async def _lose(self, item: Item, words: str) -> None:
        forward = item.forward
        text = f"{words}; before that: {forward.answer}" if forward.answer else words
        alarm(forward, text)
        item.lose(words)
        await self._notes.note(forward, "lost", text)
