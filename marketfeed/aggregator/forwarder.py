"""One worker per bot: takes decisions of its side there, one request at a time, the best one first.

It sends what waits (`sending.py`), each order at most once, until it expires. An order of which nobody knows
what became is never sent again, but looked for in the bot (`search.py`), which gets no other order meanwhile
unless `release.py` says so. A bot that is full, paused or does not let us in is asked until it does
(`access.py`).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from marketfeed.aggregator.access import Access
from marketfeed.aggregator.asking import Asking
from marketfeed.aggregator.bot_answers import COUNTS
from marketfeed.aggregator.bot_config import unsuited
from marketfeed.aggregator.expired import Expired
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.gate import Why
from marketfeed.aggregator.ledger_tables import BotName, Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.notes import Notes
from marketfeed.aggregator.queue import Queue
from marketfeed.aggregator.reasons import Kind, Reason
from marketfeed.aggregator.search import Search
from marketfeed.aggregator.sending import Hooks, Sender
from marketfeed.aggregator.status_report import BotReport
from marketfeed.aggregator.timing import DEFAULT_PACE, Pace
from marketfeed.aggregator.whitelists import Whitelists
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble


class Terms(msgspec.Struct, frozen=True):
    """What may be sent to a bot, and until when.

    What waits behind an order of which nobody knows what became may expire up to `expire_ms` later. Such an
    order is lost `unconfirmed_s` after it was sent. Of a pair that the `other` side's bot holds nothing is
    sent; None: it is not asked. `whitelists` is told the bot's; None: it is not asked. Pairs are quoted in
    `quote`. With `own_pairs` this bot itself is asked for its open trades, and of a pair that it holds on one
    side nothing is sent for the other: see `Access.pair_taken`.
    """

    expire_ms: int
    unconfirmed_s: float
    other: Bot | None = None
    whitelists: Whitelists | None = None
    quote: str = "USDT"
    own_pairs: bool = False


NO_HOOKS = Hooks()
NAMED: Final = 3
"""How many pairs outside the whitelist are named."""
END_S: Final = 0.05
"""For so long (wall s) at a time what has expired is noted, each in a commit; orders wait meanwhile."""


class Forwarder:
    """The worker of one bot, of a side or the meta bot.

    `now_ms` is the time of the ledger, driven by the monotonic clock.
    """

    def __init__(
        self,
        side: BotName,
        bot: Bot,
        ledger: LedgerThread,
        now_ms: Callable[[], int],
        counters: AggregatorCounters,
        terms: Terms,
        hooks: Hooks = NO_HOOKS,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self.side = side
        self.turned_s = time.monotonic()
        """When it last was at the head of its loop (monotonic): every wait in it has an end."""
        self._hooks = hooks
        self._now_ms = now_ms
        self._pace = pace
        self._ask = Asking()
        self._queue = Queue(terms.expire_ms)
        self._notes = Notes(side, ledger, now_ms, counters, hooks.heard, pace.ledger_retry_s)
        self._search = Search(side, bot, self._notes, self._ask, now_ms, pace, terms.unconfirmed_s)
        self._terms = terms
        other = bot if terms.own_pairs else terms.other
        self._access = Access(
            side, bot, other, self._search.orders, self._ask, pace, terms.whitelists
        )
        self._sender = Sender(
            side,
            bot,
            self._queue,
            self._access,
            self._search,
            self._notes,
            hooks,
            counters,
            now_ms,
            self._why_waits,
        )
        self._woken = asyncio.Event()
        self._ending = False

    # --- what it reports --------------------------------------------------------------------------------

    @property
    def trouble(self) -> Trouble:
        """What is wrong with the bot, for `/health`, since it answered well last."""
        return self._access.trouble

    @property
    def waiting(self) -> int:
        """Forwards that have not been sent yet."""
        return len(self._queue)

    @property
    def unconfirmed(self) -> int:
        """Forwards of which it is not known yet whether they were received."""
        return self._search.orders.open

    @property
    def lost(self) -> dict[int, str]:
        """Windows whose orders may or may not have been executed, and what is known of each."""
        return self._search.orders.lost

    @property
    def expired(self) -> Expired:
        """What expired while it waited for the bot."""
        return self._sender.expired

    @property
    def why(self) -> Why | None:
        """What keeps orders back from this bot, as far as it is known; None: nothing."""
        if self._search.orders.holding:
            doing = self.trouble.why or "looking for it"
            return Why("unknown order", f"the outcome of another order is not known, {doing}")
        if words := self._hooks.waits():
            return Why("start", words)
        if words := self._access.unlisted:
            return Why("whitelist", words)
        return self._access.gate.why

    @property
    def waits_for(self) -> tuple[str, str]:
        """What keeps back those that are waiting, in a word and in words; empty when nothing does."""
        why = self.why if self._queue else None
        return ("", "") if why is None else (why.cause, why.words)

    def reasons(self) -> list[Reason]:
        """What is not well with the bot and its orders. That it is full is as it should be."""
        access, refusals, now_s = self._access, self._sender.refusals, time.monotonic()
        found = [] if (ail := access.reason()) is None else [ail]
        why, waits = self.why, f", {self.waiting} wait" if self._queue else ""
        if why is not None and why.cause == "paused" and not self.trouble:
            found.append(self._reason(Kind.NOT_RUNNING, f"{_of(Kind.NOT_RUNNING, why)}{waits}"))
        if why is not None and self._queue and why.cause == "unknown order":
            found.append(self._reason(Kind.UNKNOWN_ORDER, f"{_of(Kind.UNKNOWN_ORDER, why)}{waits}"))
        if why is not None and self._queue and why.cause == "other bot":
            found.append(Reason(Kind.OTHER_BOT, f"bot of {self.side}: {why.words}{waits}"))
        if access.config.force_entry_enable:
            refusals.takes_all(access.told_config_s)
        if words := refusals.of_all(now_s):
            found.append(self._reason(Kind.FORCE_OFF, words))
        elif access.config.force_entry_enable is False:
            found.append(self._reason(Kind.FORCE_OFF, "force_entry_enable is false in its config"))
        elif (several := refusals.several(now_s)) is not None:
            found.append(self._reason(Kind.REFUSES, several[1], N=several[0]))
        if words := refusals.other_side(now_s):
            found.append(Reason(Kind.WRONG_SIDE, f"bot of {self.side}: {words}"))
        if expired := self.expired.lately(now_s):
            causes = ", ".join(f"{cause} {count}" for cause, count in expired.most_common())
            found.append(self._reason(Kind.EXPIRED, causes, N=expired.total()))
        if self._notes.trouble:
            found.append(self._reason(Kind.UNNOTED, self._notes.trouble.why))
        return found

    def _reason(self, kind: Kind, more: str, **values: object) -> Reason:
        return kind.reason(SIDE=self.side, more=more, **values)

    def warnings(self) -> list[str]:
        """What does not suit the orders, though the bot answers well."""
        bot = f"bot of {self.side}"
        found = [
            f"{bot}: {words}"
            for words in unsuited(self._access.config, self.side, self._terms.quote)
        ]
        lists = self._terms.whitelists
        # With `send` they are traded: shown, and no warning.
        skipped = lists is not None and lists.rule == "skip"
        if lists is not None and skipped and (met := lists.met(self.side, self._now_ms())):
            more = f" and {len(met) - NAMED} more" if len(met) > NAMED else ""
            found.append(
                f"{bot}: nothing is sent for pairs that are not on its whitelist, within a day "
                f"{', '.join(met[:NAMED])}{more}"
            )
        if (words := self._access.unlisted) and self._access.told_config_s:
            found.append(f"{bot}: {words}")
        return found

    def report(self) -> BotReport:
        """What it says of itself, and what it answered to orders."""
        config, lists = self._access.config, self._terms.whitelists
        return BotReport(
            state=config.state,
            force_entry_enable=config.force_entry_enable,
            max_open_trades=config.max_open_trades,
            stake_currency=config.stake_currency,
            trading_mode=config.trading_mode,
            barred=self._access.barred,
            whitelist=None if lists is None else lists.size(self.side),
            outside_whitelist=0 if lists is None else lists.outside[self.side],
            outside_pairs=[] if lists is None else lists.met(self.side, self._now_ms()),
            refusals={what: self._sender.refusals.counts[what] for what in COUNTS},
            expired_with_room=self.expired.with_room,
        )

    # --- from outside -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """There are new forwards in the ledger, or an order has ended for which some waited."""
        self._woken.set()

    def other_sent(self, pair: str) -> None:
        """The other side's bot has been sent an order of this pair."""
        self._access.other_sent(pair)

    def end(self) -> None:
        """Finish the order that is under way, and return from `run`. What waits stays in the ledger."""
        self._ending = True
        self._notes.end()
        self._ask.end()
        self._woken.set()

    async def run(self) -> None:
        """Work until `end`. No answer of the bot and no state of the disk ends it before."""
        while not self._ending and not await self._search.take_over():
            pass
        self._woken.set()
        while not self._ending:
            self.turned_s = time.monotonic()
            if self._woken.is_set():
                self._woken.clear()
                await self._fetch()
            wait_s = await self._next_step()
            if wait_s > 0 and not self._ending:
                await wait_at_most(wait_s, self._woken)

    # --- what there is to do ----------------------------------------------------------------------------

    async def _fetch(self) -> None:
        found = await self._notes.try_once(lambda ledger: ledger.forwards(("queued",), self.side))
        if found is None:
            self._woken.set()
            return
        self._queue.take(found)
        self._hooks.fetched(found)
        if found:
            self._search.orders.look_soon(time.monotonic())
            self._access.ask_soon()
        else:
            # Otherwise the next step shows whether it can be written, too.
            self._notes.trouble.end()

    async def _next_step(self) -> float:
        """Do one thing that is due; returns how long there is nothing to do."""
        now_s = time.monotonic()
        self._mark_stall()
        if self._search.is_due(now_s):
            failure = await self._search.look(others_wait=bool(self._queue))
            if self._ask.ended:
                return 0.0
            if failure is None:
                self._access.answered()
            else:
                self._access.failed(failure)
            return 0.0
        gate, waits = self._access.gate, bool(self._hooks.waits())
        held = self._search.orders.holding or self._access.unlisted
        may_go = not (held or gate.shut or waits)
        if may_go and self._queue and now_s >= gate.opens_at_s:
            # The best one goes before those that have ended are noted.
            sent = await self._sender.send_best()
            if not await self._end_what_is_over() or sent:
                return 0.0
            # Each of them waits for another order of its pair: whoever hears of its end wakes this one.
            return self._until(self._pace.again_s)
        if not await self._end_what_is_over():
            return 0.0
        if not self._queue:
            gate.over("other bot")
        if self._search.orders.holding:
            # Looks show how the bot is.
            return self._until()
        if self._queue and may_go:
            # Orders show it.
            return self._until(gate.opens_at_s - now_s)
        if self._access.ask_at_s <= now_s:
            await self._access.look(others_wait=bool(self._queue) and not waits, unless=self._woken)
            return 0.0
        return self._until(self._access.ask_at_s - now_s)

    def _until(self, *waits_s: float) -> float:
        """So long there is nothing to do, of `waits_s` and what else is to come."""
        found = list(waits_s)
        now_ms = self._now_ms()
        if (end_ms := self._queue.next_end_ms(now_ms)) is not None:
            found.append((end_ms - now_ms) / 1000 + 0.001)
        if (look_at_s := self._search.orders.look_at_s) is not None:
            found.append(look_at_s - time.monotonic())
        return max(min(found, default=self._pace.probe_s), 0.001)

    def _mark_stall(self) -> None:
        now_ms = self._now_ms()
        if self._search.orders.holding:
            self._queue.stall(now_ms, now_ms)
        else:
            self._queue.go_on(now_ms)

    async def _end_what_is_over(self) -> bool:
        """End what may not be sent any more, one after another; False: there is more, and others join."""
        until_s = time.monotonic() + END_S
        for forward in self._queue:
            if (by := self._sender.ends_by(forward)) is None:
                continue
            if time.monotonic() >= until_s or self._woken.is_set():
                return False
            await self._sender.end(forward, by)
        return True

    def _why_waits(self, forward: Forward) -> Why:
        why, held = self.why, self._sender.is_held(forward)
        if why is not None and not (held and why.cause == "other bot"):
            return why
        if held:
            return Why("same pair", f"another order of {forward.pair} has not ended")
        if self.trouble:
            return Why("unreachable", self.trouble.why)
        return Why("busy", "others went first")


def _of(kind: Kind, why: Why) -> str:
    """What a reason goes on with, of words that begin as it does."""
    return why.words.removeprefix(kind.of_bot(""))
