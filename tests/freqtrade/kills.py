"""Decisions under kills of the aggregator and of bots, and a faulty proxy between them: none is sent twice.

Feeders vote for random pairs of both sides, with conflicts and votes during cool-downs among them. Meanwhile
the aggregator and the bots are killed (SIGKILL) at random moments, many of them while an order is on its way,
and started again; about an eighth of all orders meet a fault of the proxy (`order_proxy.py`): resets, cuts,
delays, 5xx, gateways' pages and JSON, redirects, 200 without a trade. Settings are the shipped ones.

In the end, of the ledger's decisions, the orders at the proxies, and the trades in the bots: no decision was
sent twice, no pair was traded twice within a cool-down, never both sides within a window, every `lost` is
really without a trade, every end is true, and every cool-down follows from an outcome, right after restarts,
too.

1,000 decisions take about an hour with real bots on two cores: votes go on until half as many have reached an
order. `--quick` makes 40 decisions with short times in two minutes; `--bots scripted` needs no Freqtrade.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade import judge
from tests.freqtrade.command import Figures, Progress, arguments, run
from tests.freqtrade.order_proxy import PASS, Fault, draw
from tests.freqtrade.stage import (
    PAIRS,
    SIDES,
    Feeders,
    Stage,
    feeding,
    running,
    settings_that_are,
    staged,
)

FAULTY: Final = 0.12
LOOKS_FAULTY: Final = 0.03
TIMEOUT_S: Final = 20.0
"""The bots' `timeout_s` as shipped."""
QUICK: Final[dict[str, Any]] = {
    "decisions": 40,
    "kills": 3,
    "every_s": 1.0,
    "window_s": 3.0,
    "cooldown_s": 20.0,
    "expire_s": 20.0,
    "timeout_s": 3.0,
    "unconfirmed_s": 15.0,
}
MOSTLY_OPEN_S: Final = 40.0
"""Trades are closed at about this age, so that pairs can be traded again."""
SOON_MS: Final = 15_000
AT_MOST: Final = 2
"""Votings for each decision that is wanted, before a run is given up."""
_CONFIDENCES: Final = tuple(round(0.7 + number / 100, 2) for number in range(30))


class Campaign:
    """One run: its tasks, and what they count."""

    def __init__(
        self, given: argparse.Namespace, stage: Stage, feeders: Feeders, progress: Progress
    ) -> None:
        self.given = given
        self.stage = stage
        self.feeders = feeders
        self.progress = progress
        self.kills: Counter[str] = Counter()
        self.while_ordering: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.done = asyncio.Event()
        self._random = random.Random(given.seed)
        self._ordered = {side: asyncio.Event() for side in SIDES}
        self._sure: dict[tuple[str, str], Iterator[float]] = {}
        self._recent: list[tuple[str, str]] = []
        for side, proxy in stage.proxies.items():
            proxy.faults = self._fault
            proxy.look_fault = self._look_fault
            proxy.on_order = self._ordered[side].set

    @property
    def seconds(self) -> float:
        """How long votes are posted, about."""
        return float(self.given.decisions * self.given.every_s)

    def _fault(self, _: dict[str, Any]) -> Fault:
        if self._random.random() >= self.given.faulty:
            return PASS
        fault = draw(self._random, self.given.timeout_s)
        self.faults[fault.name] += 1
        return fault

    def _look_fault(self) -> str:
        if self._random.random() >= LOOKS_FAULTY:
            return ""
        return self._random.choice(("reset", "502 page", "half", "200 page"))

    # --- votes ----------------------------------------------------------------------------------------

    async def vote(self) -> None:
        """Let pairs be voted for until there are so many decisions."""
        pairs = choose_pairs(PAIRS)
        random_ = random.Random(f"votes {self.given.seed}")
        number = 0
        async with asyncio.TaskGroup() as group:
            while number < self.given.decisions or self._is_short(number):
                pair, side = self._pick(pairs, random_)
                self._recent.append((pair, side))
                count = random_.choice((3, 4, 5, 5, 5))
                over_s = random_.uniform(0.0, min(4.0, self.given.window_s / 2))
                group.create_task(
                    self.feeders.votes(pair, side, count, self._confidence(pair, side), over_s)
                )
                number += 1
                if number % 50 == 0:
                    self.progress(f"{number} votings for {self.given.decisions}, {self.words()}")
                await asyncio.sleep(random_.uniform(0.5, 1.5) * self.given.every_s)
        self.done.set()

    def _is_short(self, votings: int) -> bool:
        """Whether decisions lack, as two votings for a pair may be one window, or orders, as many expire."""
        if votings >= AT_MOST * self.given.decisions:
            return False
        ((windows,),) = self.stage.rows("SELECT count(DISTINCT window) FROM vote")
        sent = {(post.pair, post.side, post.tag) for post in self.stage.posts()}
        return int(windows) < self.given.decisions or len(sent) < self.given.reached

    def _pick(self, pairs: Sequence[str], random_: random.Random) -> tuple[str, str]:
        """A pair and side: one in its cool-down or under way, the other side of one, or any other."""
        kind = random_.random()
        if kind < 0.12 and self._recent:
            return random_.choice(self._recent[-12:])
        if kind < 0.22 and self._recent:
            pair, side = random_.choice(self._recent[-6:])
            return pair, judge.OTHER[side]
        lately = {pair for pair, _ in self._recent[-len(pairs) // 2 :]}
        return random_.choice([pair for pair in pairs if pair not in lately]), random_.choice(SIDES)

    def _confidence(self, pair: str, side: str) -> float:
        """All votes of a voting are equally sure, and those for a pair differ: so do its tags."""
        known = self._sure.setdefault((pair, side), iter(_CONFIDENCES))
        found = next(known, None)
        if found is None:
            del self._sure[pair, side]
            return self._confidence(pair, side)
        return found

    # --- kills ----------------------------------------------------------------------------------------

    async def kill_aggregator(self) -> None:
        """Kill it and start it again; half of the times while an order is on its way."""
        random_ = random.Random(f"aggregator {self.given.seed}")
        each_s = self.seconds / (self.given.kills + 5)
        while not self.done.is_set() or self.kills["aggregator"] < self.given.kills:
            await asyncio.sleep(random_.uniform(0.1, 1.3) * each_s)
            await self._moment(random_, random_.choice(SIDES), each_s)
            self.while_ordering["aggregator"] += any(
                proxy.open_posts for proxy in self.stage.proxies.values()
            )
            await self.stage.kill()
            self.kills["aggregator"] += 1
            if random_.random() < 0.2:
                await asyncio.sleep(random_.uniform(0.0, 5.0))
            await self.stage.start()

    async def kill_bots(self) -> None:
        """Kill a bot and start it again; mostly nobody listens at its address meanwhile."""
        random_ = random.Random(f"bots {self.given.seed}")
        each_s = self.seconds / (self.given.kills + 5)
        loops = [
            self._kill_one(side, random.Random(random_.random()), 2 * each_s) for side in SIDES
        ]
        await asyncio.gather(*loops)

    async def _kill_one(self, side: str, random_: random.Random, each_s: float) -> None:
        bot, proxy = self.stage.bots[side], self.stage.proxies[side]
        next_s = time.monotonic()
        while not self.done.is_set() or self.kills["bots"] < self.given.kills:
            next_s += random_.uniform(0.6, 1.4) * each_s
            await asyncio.sleep(max(next_s - time.monotonic(), random_.uniform(0.5, 2.0)))
            await self._moment(random_, side, each_s)
            refuses = random_.random() < 0.8
            if refuses:
                proxy.close()
            self.while_ordering["bots"] += proxy.open_posts > 0
            await asyncio.to_thread(bot.kill)
            self.kills["bots"] += 1
            bot.start()
            await running(bot)
            await proxy.open()

    async def _moment(self, random_: random.Random, side: str, each_s: float) -> None:
        """Wait for a moment to kill at: half of the times just after an order has arrived."""
        if random_.random() < 0.5:
            return
        self._ordered[side].clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(each_s):
                await self._ordered[side].wait()
        await asyncio.sleep(random_.choice((0.0, 0.01, 0.1, 0.3, 0.6)) * random_.random())

    # --- trades end -----------------------------------------------------------------------------------

    async def close_trades(self) -> None:
        """Close trades of some age, as strategies do."""
        random_ = random.Random(f"closing {self.given.seed}")
        while True:
            await asyncio.sleep(2.0)
            for bot in self.stage.bots.values():
                answer = await asyncio.to_thread(bot.api, "GET", "status")
                now_ms = time.time_ns() // 1_000_000
                for trade in answer.body if answer.status == 200 else ():
                    age_s = (now_ms - trade["open_timestamp"]) / 1000
                    if age_s > MOSTLY_OPEN_S * random_.uniform(0.5, 1.5):
                        number = str(trade["trade_id"])
                        await asyncio.to_thread(bot.api, "POST", "forceexit", {"tradeid": number})

    def words(self) -> str:
        """How far it is."""
        orders = sum(len(proxy.posts) for proxy in self.stage.proxies.values())
        return (
            f"{orders} orders, {self.faults.total()} faults, "
            f"{self.kills['aggregator']} + {self.kills['bots']} kills"
        )


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Run the campaign, let everything end, and judge it."""
    progress(f"starting two {given.bots} bots")
    settings: dict[str, Any] = {
        "window_s": given.window_s,
        "cooldown_s": given.cooldown_s,
        "expire_s": given.expire_s,
    }
    if given.quick:
        settings["bot_settings"] = {"timeout_s": given.timeout_s}
        settings |= settings_that_are(unconfirmed_s=given.unconfirmed_s, early_grace_s=0.5)
    async with staged(home, given.bots, **settings) as stage:
        await stage.start()
        async with feeding(stage) as feeders:
            campaign = Campaign(given, stage, feeders, progress)
            closing = asyncio.create_task(campaign.close_trades())
            async with asyncio.TaskGroup() as group:
                group.create_task(campaign.vote())
                group.create_task(campaign.kill_aggregator())
                group.create_task(campaign.kill_bots())
            progress(f"all is left to end: {campaign.words()}")
            for proxy in stage.proxies.values():
                proxy.faults, proxy.look_fault = (lambda _: PASS), str
            await stage.settled()
            closing.cancel()
        # An order that a proxy held may reach its bot now.
        decisions, posts, trades = stage.decisions(), stage.posts(), await stage.trades()
        starts_ms = stage.starts_ms[1:]
        await stage.stop()
    findings = judged(given, decisions, posts, trades)
    orders, _ = judge.orders_of(decisions, posts)
    reached = len(orders)
    held = [one for one in decisions if "cool-down" in one.reasons]
    if reached < given.reached:
        findings.append(f"only {reached} decisions reached an order")
    for name in ("aggregator", "bots"):
        if campaign.kills[name] < given.kills:
            findings.append(f"only {campaign.kills[name]} kills of {name}")
    return [
        ("votings, decisions", f"{given.decisions}, {len(decisions)}"),
        ("votes answered", feeders.answered),
        ("decisions that reached an order, orders", f"{reached}, {len(posts)}"),
        *((f"  {state}", count) for state, count in sorted(Counter(_end(one) for one in decisions).items())),
        ("kills of the aggregator, with an order under way", _kills(campaign, "aggregator")),
        ("kills of bots, with an order under way", _kills(campaign, "bots")),
        ("orders that met a fault", sum(bool(post.fault) for post in posts)),
        *((f"  {name}", count) for name, count in sorted(campaign.faults.items())),
        ("trades in the bots", len(trades)),
        ("decided within 15 s of a restart", _soon(decisions, starts_ms)),
        ("… held by a cool-down then", _soon(held, starts_ms)),
    ], findings  # fmt: skip


def judged(
    given: argparse.Namespace,
    decisions: list[judge.Decided],
    posts: list[judge.Posted],
    trades: list[judge.Opened],
) -> list[str]:
    """All findings."""
    cooldown_ms, window_ms = round(given.cooldown_s * 1000), round(given.window_s * 1000)
    orders, findings = judge.orders_of(decisions, posts)
    findings += judge.sent_twice(decisions, orders)
    findings += judge.traded_twice(trades, cooldown_ms)
    findings += judge.ends_wrongly(decisions, trades)
    findings += judge.opposite(decisions, orders, window_ms)
    findings += judge.wrong_cooldowns(decisions, trades, cooldown_ms)
    return findings


def _end(one: judge.Decided) -> str:
    if one.forwarded:
        return one.state
    for word in ("cool-down", "within one window", "votes", "confidence", "expired"):
        if word in one.reasons:
            return f"skipped: {word}"
    return f"skipped: {one.reasons[:50]}"


def _kills(campaign: Campaign, name: str) -> str:
    return f"{campaign.kills[name]}, {campaign.while_ordering[name]}"


def _soon(decisions: list[judge.Decided], starts_ms: list[int]) -> int:
    return sum(
        any(0 <= one.decided_ms - start_ms <= SOON_MS for start_ms in starts_ms)
        for one in decisions
    )


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "kills",
        __doc__,
        decisions={"type": int, "default": 1_000, "help": "how often pairs are voted for"},
        kills={"type": int, "default": 100, "help": "of the aggregator, and of bots, at least"},
        every_s={"type": float, "default": 3.0, "help": "between two votings, on average"},
        faulty={"type": float, "default": FAULTY, "help": "share of orders that meet a fault"},
        window_s={"type": float, "default": 60.0, "help": "as shipped"},
        cooldown_s={"type": float, "default": 300.0, "help": "as shipped"},
        quick={"action": "store_true", "help": "a trial with short times"},
    )
    given.expire_s, given.timeout_s = 30.0, TIMEOUT_S
    if given.quick:
        vars(given).update(QUICK)
    # On a host that is busy with other tests, most of a short run's time goes by while processes start.
    given.reached = given.decisions // (10 if given.quick else 2)
    return run(prove, given, f"kills: {given.decisions} votings under kills and faults")


if __name__ == "__main__":
    sys.exit(main())
