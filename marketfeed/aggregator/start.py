"""What happens at every start before anything is forwarded: the bots are asked what they have opened.

A ledger may be lost, or be an older copy. Then the bots know of orders that it does not know, and an order
that was sent right before may open only now. So:

- Each bot is asked for the trades that carry a tag of ours (`ensemble_tag`), as far back as a cool-down or a
  conflict reaches. It gets no order before it has answered. Those that the ledger does not know are
  cool-downs and passed decisions, and are named in `/health` for as long.
- A ledger that is fresh, is not the one that sent the last order from here, or does not know such a trade, is
  held: nothing is forwarded for `quiet_ms`, in which an order that was under way opens or never does. Then
  the bots are asked once more. The ledger remembers that it is held: a restart holds anew.
- What waits in such a ledger may have been sent after the copy was made, and have closed again. It is never
  sent, and ends before the ledger is held no more.
- If this host's clock was set between two starts, nothing is forwarded until no conflict and no cool-down of
  before could matter any more: `clock_quiet_ms`.

`now_ms` is the time of the ledger, driven by the monotonic clock.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

import msgspec

from marketfeed.aggregator.ensemble_tag import ensemble_side
from marketfeed.aggregator.freqtrade_bot import CLOCK_TOLERANCE_MS, Bot, Trade
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_beginning import CLOCK_SET
from marketfeed.aggregator.ledger_tables import META, BotName, Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.reasons import Kind, Reason
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.unknown_trades import unknown_trades
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError
from marketfeed.schema import DAY_MS
from marketfeed.service.freqtrade_api import BotError

log = logging.getLogger(__name__)

SLOW_S: Final = 5.0
"""A first answer that takes longer is shown in `/health`."""
NAMED: Final = 3
"""How many unknown trades of a bot `/health` names."""
BEHIND: Final = "there are trades of ours in the bots that this ledger does not know"
LACKS: Final = "the ledger may lack what became of it"
"""Why what was decided in an earlier run is never sent by a ledger that is held."""


class Holding(Protocol):
    """Who decides (`Desk`)."""

    def merge_trades(self, trades: Iterable[tuple[str, Side, int]]) -> None:
        """Take in trades: (pair, side, when each opened)."""

    def hold(self, until_ms: int, why: str) -> None:
        """Forward nothing until then."""


class Spans(msgspec.Struct, frozen=True):
    """How long what was before a start matters, in ms.

    A ledger that is held forwards nothing for `quiet_ms`, and for `clock_quiet_ms` when the clock was set.
    Bots are asked for what they opened within `asked_ms`.
    """

    quiet_ms: int
    clock_quiet_ms: int
    asked_ms: int


class _Unknown(msgspec.Struct, frozen=True):
    """A trade that the ledger does not know: `side` is that of its tag, `found_ms` when it was met."""

    trade: Trade
    side: Side
    found_ms: int

    @property
    def name(self) -> tuple[int, bool, str, str]:
        """What it is known by from one look to the next."""
        return self.trade.trade_id, self.trade.added, self.trade.pair, self.trade.tag

    def words(self) -> str:
        """What `/health` and the log say of it."""
        what = "enlarged" if self.trade.added else "opened"
        return (
            f"{self.trade.pair} trade {self.trade.trade_id} {self.trade.tag!r}, {what} "
            f"{_words_of(self.trade.opened_ms)}"
        )


def _words_of(time_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        # Of no calendar: whoever looks into the bot finds it by its number.
        return f"at {time_ms}"


class Book(NamedTuple):
    """What of the ledger a start is about: the bots of both sides, or the meta bot.

    `held` is why nothing may be forwarded, and what of it is noted; `hold` notes it. `bot` is whose queued
    forwards end in a ledger that is held; None: those of both sides.
    """

    held: Callable[[LedgerThread], tuple[str, str]]
    hold: Callable[[Ledger, str], None]
    bot: BotName | None


SIDES_BOOK: Final = Book(lambda ledger: (ledger.held, ledger.held), Ledger.hold, None)
META_BOOK: Final = Book(
    lambda ledger: (ledger.held or ledger.copies_held, ledger.copies_held), Ledger.hold_copies, META
)
"""A doubtful ledger is one for the meta bot, too. The two others do not wait for its answers."""


class _Asked:
    """How far it has come with one bot."""

    def __init__(self, side: BotName, bot: Bot) -> None:
        self.bot = bot
        self.asked_ms: int | None = None
        """When the last question was put that has been answered."""
        self.until_ms = 0
        """Until when nothing is forwarded to it; then it is asked once more."""
        self.unknown: list[_Unknown] = []
        self.trouble = Trouble(
            log,
            f"bot cannot be asked what it has opened, nothing is forwarded to it side={side}",
            f"bot has been asked what it has opened side={side}",
        )


class Start:
    """What is asked and waited for at a start, for these bots: those of the sides, or the meta bot."""

    def __init__(
        self,
        bots: Mapping[BotName, Bot],
        ledger: LedgerThread,
        holding: Holding,
        now_ms: Callable[[], int],
        spans: Spans,
        pace: Pace,
        counters: AggregatorCounters,
        heard: Callable[[Forward], None],
        book: Book = SIDES_BOOK,
    ) -> None:
        self._book = book
        self._sides = {side: _Asked(side, bot) for side, bot in bots.items()}
        self._ledger = ledger
        self._holding = holding
        self._now_ms = now_ms
        self._spans = spans
        self._quiet_ms = spans.quiet_ms
        self._pace = pace
        self._counters = counters
        self._heard = heard
        self._why = ""
        """Why the ledger is held; empty: it is not."""
        self._noted = ""
        """What of it the ledger has noted."""
        self._ended = False
        """Whether what waited in a ledger that is held has ended."""
        self._until_ms = 0
        self._refused: dict[str, tuple[int, str]] = {}
        """Pair -> up to when a decision of it knew nothing of a trade there, and of which."""
        self._began_s = time.monotonic()

    def begin(self) -> None:
        """Before a signal is taken: hold everything if the ledger is held, and have `holding` know."""
        why, self._noted = self._book.held(self._ledger)
        if CLOCK_SET in why:
            self._quiet_ms = max(self._spans.quiet_ms, self._spans.clock_quiet_ms)
        if why:
            self._hold_all(why)

    # --- what follows from it -------------------------------------------------------------------------

    def waits(self, side: BotName) -> str:
        """Why no order may be sent to the bot of `side` now; empty: nothing here speaks against it."""
        item = self._sides[side]
        left_ms = self._held_until_ms(item) - self._now_ms()
        if left_ms > 0:
            return f"{self._why}: nothing is forwarded for another {left_ms / 1000:.0f} s"
        if self._must_ask(item):
            why = item.trouble.why or "no answer yet"
            return f"it has to be asked first what it has opened: {why}"
        return ""

    def may_not_send(self, side: BotName) -> str:
        """The same between the commit of `sending` and its POST: that may stand in a deleted file."""
        return self._ledger.gone() or self.waits(side)

    def forbids(self, forward: Forward) -> str:
        """Why a queued order may never be sent; empty: nothing here speaks against it.

        An earlier run decided it, and the ledger is held; or it was decided before a trade of its pair was
        met that the ledger does not know.
        """
        if self._why and forward.window < self._ledger.first_window:
            return LACKS
        found_ms, words = self._refused.get(forward.pair, (0, ""))
        return words if forward.decided_ms <= found_ms else ""

    def reasons(self) -> list[Reason]:
        """Why the aggregator is not well, as far as it is seen here. Each ends by itself."""
        found = []
        now_ms = self._now_ms()
        if (left_ms := self._until_ms - now_ms) > 0:
            found.append(Kind.HELD.reason(more=self._why, N=f"{left_ms / 1000:.0f}"))
        slow = time.monotonic() - self._began_s > SLOW_S
        for side, item in self._sides.items():
            shown = slow or bool(item.trouble) or item.asked_ms is not None
            held_ms = self._held_until_ms(item) - now_ms
            if left_ms <= 0 and shown and held_ms > 0:
                why = f"bot of {side}: {self._why}"
                found.append(Kind.HELD.reason(more=why, N=f"{held_ms / 1000:.0f}"))
            elif left_ms <= 0 and shown and self._must_ask(item):
                why = item.trouble.why or "no answer yet"
                found.append(Kind.UNASKED.reason(SIDE=side, more=why))
            named = [
                it.words() for it in item.unknown if now_ms < it.found_ms + self._spans.asked_ms
            ]
            if named:
                more = f", and {len(named) - NAMED} more" if len(named) > NAMED else ""
                words = f"{'; '.join(named[:NAMED])}{more}"
                found.append(Kind.UNKNOWN_TRADES.reason(SIDE=side, more=words))
        return found

    # --- the asking -----------------------------------------------------------------------------------

    async def run(self, side: BotName, opened: Callable[[], None]) -> None:
        """Ask the bot of `side`, however long it takes; `opened` is called when orders may go to it.

        Returns when that is so for all sides, and is noted.
        """
        item = self._sides[side]
        await self._note()
        while not self._is_over():
            left_s = (self._held_until_ms(item) - self._now_ms()) / 1000
            if item.asked_ms is None or (left_s <= 0 and self._must_ask(item)):
                await self._ask(side, item)
                if not self.waits(side):
                    opened()
            await self._note()
            if not self._is_over():
                pause_s = self._pace.look_s
                await asyncio.sleep(pause_s if left_s <= 0 else min(left_s, pause_s))

    async def _ask(self, side: BotName, item: _Asked) -> None:
        began_ms = self._now_ms()
        since_ms = began_ms - self._spans.asked_ms
        try:
            trades = await item.bot.trades_since(since_ms, self._now_ms)
            # After the answer: what is sent now has its `sending` in here.
            sent = await self._ledger.call(
                lambda ledger: ledger.sent_since(side, since_ms - DAY_MS)
            )
            self._take(side, item, trades, sent, began_ms)
        except (BotError, JournalError) as error:
            item.trouble.met(error)
        except Exception as error:
            # Whatever it has answered: nothing is sent to it, and the other bot's orders go on.
            if repr(error) != item.trouble.why:
                log.exception("asking failed in an unforeseen way side=%s", side)
            item.trouble.met(repr(error))
        else:
            item.trouble.end()

    def _take(
        self,
        side: BotName,
        item: _Asked,
        trades: list[Trade],
        sent: Sequence[Forward],
        began_ms: int,
    ) -> None:
        """Take in what a bot has answered to the question of `began_ms`: all of it, or it is asked again."""
        # Nothing is awaited in here: no decision and no order comes in between.
        now_ms = self._now_ms()
        since_ms = began_ms - self._spans.asked_ms - CLOCK_TOLERANCE_MS
        ours = [it for it in trades if ensemble_side(it.tag) and it.opened_ms >= since_ms]
        unknown = unknown_trades(ours, sent, now_ms)
        known = {it.name for it in item.unknown}
        found = [_Unknown(t, ensemble_side(t.tag) or t.side, now_ms) for t in unknown]
        found = [it for it in found if it.name not in known]
        named = [(it, it.words()) for it in found]
        self._holding.merge_trades((it.trade.pair, it.side, it.trade.opened_ms) for it in found)
        first, item.asked_ms = item.asked_ms is None, began_ms
        item.unknown += found
        log.info(
            "bot asked what it has opened side=%s trades=%d unknown=%d",
            side,
            len(ours),
            len(unknown),
        )
        for it, words in named:
            log.error("trade of ours that the ledger does not know side=%s what=%s", side, words)
            self._refused[it.trade.pair] = (now_ms, f"the bot of {side} has {words}")
        if first and found and not self._why:
            self._hold_all(BEHIND)
        if first and self._why:
            # From now, and not from the start: one that was frozen goes on with an order only now.
            item.until_ms = now_ms + self._spans.quiet_ms

    def _hold_all(self, why: str) -> None:
        self._why = why
        self._until_ms = self._now_ms() + self._quiet_ms
        log.warning(
            "nothing is forwarded for a while to=%s why=%r for_s=%.1f",
            self._book.bot or "both",
            why,
            self._quiet_ms / 1000,
        )
        self._holding.hold(self._until_ms, why)

    async def _note(self) -> None:
        """Have the ledger know whether it is held. What cannot be noted is tried again."""
        ended = self._ended or not self._why or await self._end_queued()
        wanted = "" if ended and self._is_settled() else self._why
        if wanted == self._noted:
            return
        try:
            await self._ledger.call(lambda ledger: self._book.hold(ledger, wanted))
        except JournalError as error:
            log.debug("not noted whether the ledger is held error=%r", str(error))
            return
        self._noted = wanted
        if not wanted:
            log.warning(
                "the bots have been asked, orders are forwarded to=%s", self._book.bot or "both"
            )

    async def _end_queued(self) -> bool:
        """End what an earlier run left queued; whether that is done. It is tried again until it is."""
        words, now_ms = f"not sent before it expired: {LACKS}", self._now_ms()
        try:
            ended = await self._ledger.call(
                lambda ledger: ledger.end_queued(
                    self._ledger.first_window, now_ms, words, self._book.bot
                )
            )
        except JournalError as error:
            log.debug("not noted that what waited has ended error=%r", str(error))
            return False
        self._ended = True
        for forward in ended:
            self._counters.forwards[forward.bot, "expired"] += 1
            log.error(
                "forward expired window=%d pair=%s side=%s tag=%r why=%r",
                forward.window,
                forward.pair,
                forward.side,
                forward.tag,
                words,
            )
            self._heard(forward)
        return True

    # --- inside ---------------------------------------------------------------------------------------

    def _held_until_ms(self, item: _Asked) -> int:
        return max(self._until_ms, item.until_ms)

    def _must_ask(self, item: _Asked) -> bool:
        return item.asked_ms is None or item.asked_ms < self._held_until_ms(item)

    def _is_settled(self) -> bool:
        return not any(self._must_ask(item) for item in self._sides.values())

    def _is_over(self) -> bool:
        return self._is_settled() and not self._noted
