"""Whether one bot takes orders now: what it has answered, and what it is asked for to know."""

import logging
import time
from typing import Final

from marketfeed.aggregator.asking import Asking
from marketfeed.aggregator.bot_answers import Meaning
from marketfeed.aggregator.freqtrade_bot import Bot, BotError, NotSentError
from marketfeed.aggregator.gate import Gate, Question
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unconfirmed import Unconfirmed
from marketfeed.counters import Trouble

log = logging.getLogger(__name__)

RUNNING: Final = "running"
"""The state of a Freqtrade bot that takes orders."""


class Access:
    """The way to one side's bot. Of a pair that the `other` side's bot holds nothing goes; None: all does."""

    def __init__(
        self, side: Side, bot: Bot, other: Bot | None, orders: Unconfirmed, ask: Asking, pace: Pace
    ) -> None:
        self.gate = Gate(pace)
        """What keeps orders back."""
        self.trouble = Trouble(
            log, f"bot in trouble side={side}", f"bot answers again side={side}", logging.ERROR
        )
        """What is wrong with the bot, for `/health`, since it answered well last."""
        self.ask_at_s = 0.0
        """When to ask it next how it is, if no order and no look shows it."""
        self._side = side
        self._bot = bot
        self._other = other
        self._orders = orders
        self._ask = ask
        self._pace = pace

    async def look(self, *, others_wait: bool) -> None:
        """Ask how it is."""
        await self._answers(self.gate.question)
        pause_s = self._pace.again_s if others_wait else self._pace.probe_s
        self.ask_at_s = time.monotonic() + pause_s

    async def has_room(self) -> bool:
        """Whether there is room for one more, and for those of which nobody knows whether they are open."""
        return not self._orders.open or await self._answers("count")

    async def pair_taken(self, forward: Forward) -> str | None:
        """How the other side's bot holds the pair of a forward: None, it does not.

        Raises BotError when nobody knows; nothing goes for a moment then.
        """
        if self._other is None:
            return None
        side = "short" if self._side == "long" else "long"
        try:
            trade = await self._ask(self._other.open_trade(forward.pair))
        except Exception as error:
            words = f"the bot of {side} could not be asked whether it holds the pair: {error}"
            self.gate.wait("other bot", words, time.monotonic())
            raise BotError(words) from error
        self.gate.over("other bot")
        log.info(
            "asked whether the other bot holds the pair window=%d pair=%s bot=%s answer=%r",
            forward.window,
            forward.pair,
            side,
            trade or "no",
        )
        return None if trade is None else f"the bot of {side} holds {forward.pair}: {trade}"

    # --- what it has answered ---------------------------------------------------------------------------

    def answered(self) -> None:
        """It has answered something well."""
        self.gate.answered(None)
        if not self.gate.shut:
            self.ask_at_s = time.monotonic() + self._pace.probe_s
        self.trouble.end()

    def shut_by(self, meaning: Meaning, words: str) -> None:
        """An order was answered with this."""
        self.gate.shut_by(meaning, words)
        if self.gate.shut:
            self.ask_at_s = time.monotonic() + self._pace.again_s
        if meaning == "barred":
            self.trouble.met(f"it answers {words}")

    def failed(self, error: Exception) -> None:
        """It has not, or in a way that nobody foresaw."""
        if isinstance(error, BotError):
            reached = "not reachable" if isinstance(error, NotSentError) else "not well"
            self.trouble.met(f"{reached}: {error}")
            return
        words = f"not well: {error!r}"
        if words != self.trouble.why:
            log.error("asking failed in an unforeseen way side=%s", self._side, exc_info=error)
        self.trouble.met(words)

    async def _answers(self, question: Question) -> bool:
        """Ask; whether it answers as a bot that takes orders."""
        good = True
        try:
            if question == "count":
                good = await self._asked_for_room()
            elif question == "state":
                good = await self._ask(self._bot.state()) in (RUNNING, None)
            else:
                await self._ask(self._bot.probe())
        except Exception as error:
            # Whatever it has answered, the other bot's worker lives in the same process.
            self.failed(error)
            if question == "count":
                self._no_room(f"the bot could not be asked: {error}")
            return False
        self.answered()
        self.gate.answered(question, good=good)
        if self.gate.shut:
            self.ask_at_s = time.monotonic() + self._pace.again_s
        return good

    async def _asked_for_room(self) -> bool:
        unknown = self._orders.open
        count = await self._ask(self._bot.count())
        if count is None:
            # An order will tell, if there is none of which nobody knows.
            good, words = not unknown, "the bot does not say how many trades it has"
        else:
            good, words = count.has_room(unknown), f"{count.current} trades of {count.max}"
        if not good:
            self._no_room(f"{words}, and {unknown} unknown" if unknown else words)
        return good

    def _no_room(self, words: str) -> None:
        self.gate.no_room(words)
        self.ask_at_s = time.monotonic() + self._pace.again_s
