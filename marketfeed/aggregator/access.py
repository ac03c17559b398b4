"""Whether one bot takes orders now: what it has answered, and what it is asked for to know."""

import asyncio
import logging
import time
from typing import Final

from marketfeed.aggregator.asking import Asking, BrokenOffError
from marketfeed.aggregator.bot_answers import Meaning
from marketfeed.aggregator.bot_config import BotConfig
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.gate import Cause, Gate, Question
from marketfeed.aggregator.ledger_tables import BotName, Forward
from marketfeed.aggregator.reasons import Kind, Reason
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unconfirmed import Unconfirmed
from marketfeed.aggregator.whitelists import Whitelists
from marketfeed.counters import Trouble
from marketfeed.service.freqtrade_api import AnsweredError, BotError, NotSentError

log = logging.getLogger(__name__)

BARRED: Final = (401, 403, 404)
"""Whoever is answered with these has the wrong password or address, or comes to a proxy that bars it."""


class Access:
    """The way to one bot. Of a pair that the `other` side's bot holds nothing goes; None: all does.

    The other one of the meta bot, which gets both sides, is itself. The bot's whitelist is told to
    `whitelists`; None: it is not asked for it.
    """

    def __init__(
        self,
        side: BotName,
        bot: Bot,
        other: Bot | None,
        orders: Unconfirmed,
        ask: Asking,
        pace: Pace,
        whitelists: Whitelists | None = None,
    ) -> None:
        self.gate = Gate(pace)
        """What keeps orders back."""
        self.trouble = Trouble(
            log, f"bot in trouble side={side}", f"bot answers again side={side}", logging.ERROR
        )
        """What is wrong with the bot, for `/health`, since it answered well last."""
        self.config = BotConfig()
        """What it said of itself last."""
        self.told_config_s = 0.0
        """When it was asked for that (monotonic)."""
        self.ask_at_s = 0.0
        """When to ask it next how it is, while nothing waits for it."""
        self._ail = Kind.ODD
        self._whitelists = whitelists
        self._whitelist_asked_s: float | None = None
        self._told_s = 0.0
        self._shut_since_s: float | None = None
        self._asked_other_of = ""
        self._overtaken = False
        self._side = side
        self._bot = bot
        self._other = other
        self._orders = orders
        self._ask = ask
        self._pace = pace

    @property
    def barred(self) -> bool:
        """Whether it does not let us in."""
        return bool(self.trouble) and self._ail is Kind.BARRED

    @property
    def unlisted(self) -> str:
        """Why orders wait for its whitelist; empty: they do not."""
        return "" if self._whitelists is None else self._whitelists.waits(self._side)

    def reason(self) -> Reason | None:
        """What is wrong with it, as far as it keeps it from answering; None: nothing."""
        if not self.trouble:
            return None
        return Reason(self._ail, f"bot of {self._side}: {self.trouble.why}")

    async def look(self, *, others_wait: bool, unless: asyncio.Event) -> None:
        """Ask how it is; not to the end if nothing waits for the answer, and `unless` is set."""
        idle, question = not others_wait and not self.gate.shut, self.gate.question
        answered = await self._answers(question, unless if idle else None)
        if (not others_wait or self.unlisted) and not self.trouble and not unless.is_set():
            if question != "config":
                # A bot that is full may be stopped as well.
                answered = await self._answers("config", unless)
            if answered:
                await self._ask_whitelist(unless)
        now_s = time.monotonic()
        if not others_wait and not (idle and unless.is_set()):
            self.ask_at_s = now_s + self._pace.probe_s
        elif not self.gate.shut:
            self.ask_at_s = now_s + self._pace.again_s

    def ask_now(self) -> None:
        """An order has shown that it is not as it said: it is asked in its next idle moment."""
        self.ask_at_s = 0.0

    def ask_soon(self) -> None:
        """Something has come to wait: what the bot said a while ago may not be so any more."""
        if self.gate.shut or self.unlisted:
            self.ask_at_s = min(self.ask_at_s, self._told_s + self._pace.again_s)

    async def has_room(self) -> bool:
        """Whether there is room for one more, and for those of which nobody knows whether they are open."""
        return not self._orders.open or await self._answers("count")

    async def pair_taken(self, forward: Forward) -> str | None:
        """How the other side's bot holds the pair of a forward: None, it does not.

        A bot that gets both sides holds a pair on one of them at a time: an order of the other side would be
        refused, or would enlarge what it holds. Of the same side it is sent, as to any bot.

        Raises BotError when nobody knows; nothing goes for a moment then.
        """
        if self._other is None:
            return None
        if self._other is self._bot:
            return await self._other_side_taken(forward)
        side = "short" if self._side == "long" else "long"
        self._asked_other_of, self._overtaken = forward.pair, False
        try:
            trade = await self._ask(self._other.open_trade(forward.pair))
        except BrokenOffError:
            raise
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

    async def _other_side_taken(self, forward: Forward) -> str | None:
        """How this bot itself holds the pair on the other side."""
        try:
            trade = await self._ask(self._bot.open_trade(forward.pair, but=forward.side))
        except BrokenOffError:
            raise
        except Exception as error:
            self.failed(error)
            # As of the other side's bot: the same reason in `/health`.
            words = f"the bot of {self._side} could not be asked whether it holds the pair: {error}"
            if not self.gate.shut:
                self.gate.wait("other bot", words, time.monotonic())
            raise BotError(words) from error
        self.answered()
        self.gate.over("other bot")
        return None if trade is None else f"it holds {forward.pair} on the other side: {trade}"

    def other_sent(self, pair: str) -> None:
        """The other side's bot has been sent an order of this pair."""
        self._overtaken |= pair == self._asked_other_of

    def is_overtaken(self, pair: str) -> bool:
        """Whether it has been since it was asked last whether it holds this pair: its answer is old."""
        return self._overtaken and pair == self._asked_other_of

    # --- what it has answered ---------------------------------------------------------------------------

    def answered(self) -> None:
        """It has answered something well."""
        self.gate.answered(None)
        if not self.gate.shut:
            self._shut_since_s = None
        if self.trouble:
            # It may have been started anew, with another list.
            self._whitelist_asked_s = None
        self.trouble.end()

    def shut_by(self, meaning: Meaning, words: str) -> None:
        """An order was answered with this."""
        self.gate.shut_by(meaning, words)
        self._see()
        if meaning == "barred":
            self._meet(Kind.BARRED, words)

    def failed(self, error: Exception) -> None:
        """It has not, or in a way that nobody foresaw."""
        if isinstance(error, NotSentError):
            self._meet(Kind.UNREACHABLE, str(error))
            if not self.gate.shut or self._cause == "unreachable":
                self._see(self.gate.unreachable(self.trouble.why))
            return
        if isinstance(error, BotError):
            self._meet(Kind.BARRED if _is_barred(error) else Kind.ODD, str(error))
            return
        if Kind.ODD.of_bot(repr(error)) != self.trouble.why:
            log.error("asking failed in an unforeseen way side=%s", self._side, exc_info=error)
        self._meet(Kind.ODD, repr(error))

    def unclear(self, words: str) -> None:
        """Of an order nobody knows what became of it."""
        self._meet(Kind.ODD, words)

    def _meet(self, ail: Kind, words: str) -> None:
        self._ail = ail
        self.trouble.met(ail.of_bot(words))

    async def _answers(self, question: Question, unless: asyncio.Event | None = None) -> bool:
        """Ask; whether it answers as a bot that takes orders."""
        good = True
        try:
            if question == "count":
                good = await self._asked_for_room()
            else:
                asked_s = time.monotonic()
                config = await self._ask(self._bot.config(), unless)
                if config != self.config:
                    self._whitelist_asked_s = None
                self.config, self.told_config_s = config, asked_s
                good = not config.not_running
        except BrokenOffError:
            return False
        except Exception as error:
            # Whatever it has answered, the other bot's worker lives in the same process.
            self.failed(error)
            if not isinstance(error, NotSentError):
                if question == "config" and _is_barred(error):
                    # Before an order is refused for it.
                    self.gate.shut_by("barred", str(error))
                elif question == "count":
                    self.gate.room_unknown(f"the bot could not be asked: {error}")
                self._see()
                self._end_of_asking(error)
            elif self._cause != "unreachable":
                self._see()
            return False
        self.answered()
        self.gate.answered(question, good=good)
        if question == "config" and not good:
            self.gate.not_running(self.config.not_running)
        self._see()
        return good

    async def _ask_whitelist(self, unless: asyncio.Event) -> None:
        """Ask for it, if it is time. Nothing waits for it: what fails is asked again with the next probe."""
        whitelists, now_s = self._whitelists, time.monotonic()
        if whitelists is None:
            return
        every_s = self._pace.whitelist_s
        if self.unlisted:
            every_s = 0.0
        elif whitelists.in_doubt(self._side):
            every_s = min(every_s, self._pace.whitelist_again_s)
        if self._whitelist_asked_s is not None and now_s - self._whitelist_asked_s < every_s:
            return
        try:
            pairs = await self._ask(self._bot.whitelist(), unless)
        except Exception as error:
            log.debug("whitelist not told side=%s error=%r", self._side, str(error))
            return
        self._whitelist_asked_s = now_s
        whitelists.take(self._side, pairs)

    async def _asked_for_room(self) -> bool:
        unknown = self._orders.open
        count = await self._ask(self._bot.count())
        if count is not None:
            good, words = count.has_room(unknown), f"{count.current} trades of {count.max}"
            if not good:
                self.gate.no_room(f"{words}, and {unknown} unknown" if unknown else words)
            return good
        if unknown:
            self.gate.room_unknown(f"the bot does not say, and {unknown} unknown")
        # An order will tell, if there is none of which nobody knows.
        return not unknown

    def _end_of_asking(self, error: Exception) -> None:
        """Let an order try, now and then, where the question alone fails: it would fail for ever."""
        since_s = self._shut_since_s
        if since_s is None or not isinstance(error, AnsweredError):
            return
        # Of a bot that does not let us in only the first order is refused.
        patient = self._cause == "password" or self._orders.open > 0
        there = self._cause == "unreachable" and error.says_no
        if there or (not patient and time.monotonic() - since_s >= self._pace.probe_s):
            self.gate.let_one_try()
            self._see()

    @property
    def _cause(self) -> Cause | None:
        why = self.gate.why
        return None if why is None else why.cause

    def _see(self, pause_s: float | None = None) -> None:
        """It has said how it is, or has not: when to ask again if that keeps orders back."""
        self._told_s = time.monotonic()
        if not self.gate.shut:
            self._shut_since_s = None
            return
        if self._shut_since_s is None:
            self._shut_since_s = self._told_s
        self.ask_at_s = self._told_s + (self._pace.again_s if pause_s is None else pause_s)


def _is_barred(error: Exception) -> bool:
    return isinstance(error, AnsweredError) and error.status in BARRED
