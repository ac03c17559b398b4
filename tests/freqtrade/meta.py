"""A third bot for both sides (`aggregator.bots.meta`) refuses half of all, hangs, and is killed at.

The same decisions are made three times at the same two bots: without the third one; with it, its strategy
refusing half of the pairs; and while an order of its own is under way and the bot is stopped (SIGSTOP). In
the first part each decision follows the end of the one before, in the second all are made at once. The two
others get the same orders in the same order each time, and how long they take from the decision to the POST
is compared. While the third bot stands still, all of theirs are answered.

Then the third bot holds a pair on one side while the other side is decided: nothing of that is sent to it. At
last the aggregator is killed (SIGKILL) while an order of the third bot is under way, again and again: each is
found or lost, and none is sent twice; the two others trade on meanwhile. Takes about six minutes.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade import judge
from tests.freqtrade.command import Figures, Progress, arguments, require, run
from tests.freqtrade.stage import PAIRS, SIDES, AnyBot, Feeders, Stage, feeding, staged
from tests.waiting import until

BOTS: Final = (*SIDES, "meta")
SLOWER_MS: Final = 100.0
"""An order may take so much longer with the third bot, in the middle, before a real run reports it."""
TIMEOUT_S: Final = 5.0
UNCONFIRMED_S: Final = 15.0
LONG_S: Final = 300.0
"""Longer than anything here takes."""
_COPIES: Final = """
SELECT d.window, d.pair, d.side, d.opened, d.decided, d.outcome, d.reasons, d.votes, d.of, d.confidence,
       d.tag, coalesce(f.state, ''), f.sent, f.changed, coalesce(f.answer, ''), f.trade_id
FROM decision d LEFT JOIN meta_forward f ON f.window = d.window ORDER BY d.window"""
_OPEN_COPIES: Final = (
    "SELECT count(*) FROM meta_forward WHERE state IN ('queued', 'sending', 'unknown')"
)


def refuses(pair: str) -> bool:
    """Whether the third bot's strategy refuses a pair (`strategies/held.py`)."""
    return bool(zlib.crc32(pair.encode()) % 2)


class Plan(msgspec.Struct, frozen=True):
    """What is voted for in each round: one after another, then all at once; half of each is refused."""

    calm: Sequence[tuple[str, str]]
    burst: Sequence[tuple[str, str]]


class Round(msgspec.Struct, frozen=True):
    """What a round came to, at the two bots and in the copies for the third."""

    name: str
    calm: list[judge.Decided]
    burst: list[judge.Decided]
    copies: list[judge.Decided]
    orders: dict[str, list[judge.Posted]]
    """Bot -> its orders, as they arrived."""

    def sequence(self, side: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """The pairs of a side's orders, in the order of their arrival, of these."""
        wanted = {pair for pair, of in pairs if of == side}
        return [post.pair for post in self.orders[side] if post.pair in wanted]

    def waits_ms(self, decided: Sequence[judge.Decided]) -> list[float]:
        """From each decision to the arrival of its order at the proxy."""
        at = {(post.pair, post.side): post.at_ms for post in self.orders["long"]}
        at |= {(post.pair, post.side): post.at_ms for post in self.orders["short"]}
        return [
            float(at[one.pair, one.side] - one.decided_ms)
            for one in decided
            if (one.pair, one.side) in at
        ]


# --- the scene ------------------------------------------------------------------------------------


class Scene:
    """The stage, and what is done on it."""

    def __init__(self, stage: Stage, progress: Progress) -> None:
        self.stage = stage
        self.progress = progress
        self.third = stage.bots["meta"]
        self.lock = self.third.directory / "lock"

    def configure(self, *, meta: bool) -> None:
        """Have the next start know of the third bot, or not."""
        file = self.stage.home / "config.yaml"
        settings = json.loads(file.read_text())
        url = self.stage.proxies["meta"].url if meta else None
        settings["aggregator"]["bots"]["meta"]["url"] = url
        file.write_text(json.dumps(settings))

    def copies(self) -> list[judge.Decided]:
        """All decisions, as their copies for the third bot stand; state "" of one that has none."""
        names = judge.Decided.__struct_fields__
        return [
            judge.Decided(**dict(zip(names, row, strict=True))) for row in self.stage.rows(_COPIES)
        ]

    def copy(self, pair: str, side: str) -> judge.Decided:
        """The newest one of a pair and side."""
        return [one for one in self.copies() if (one.pair, one.side) == (pair, side)][-1]

    async def copies_settled(self) -> None:
        """Wait until every copy has ended."""

        def underway() -> int:
            ((count,),) = self.stage.rows(_OPEN_COPIES)
            return int(count)

        await until(lambda: not underway(), lambda: f"{underway()} copies", timeout_s=LONG_S)

    async def ended(self, pair: str, side: str, since_ms: int) -> judge.Decided:
        """Wait until a decision of now has ended at the bot of its side."""

        def there() -> bool:
            one = self.stage.ended(pair, side)
            return one is not None and one.decided_ms >= since_ms

        await until(there, f"{pair} {side} has ended", timeout_s=LONG_S)
        one = self.stage.ended(pair, side)
        require(one is not None, f"{pair}: no decision")
        assert one is not None
        return one

    async def under_way(self) -> None:
        """Wait until an order is at the third bot."""
        proxy = self.stage.proxies["meta"]
        await until(lambda: proxy.open_posts > 0, "an order of the third bot", timeout_s=LONG_S)

    async def close_all(self) -> None:
        """Close every trade, so that the next round finds the bots as the first one did."""
        for bot in self.stage.bots.values():
            await asyncio.to_thread(_close_all, bot)


def _close_all(bot: AnyBot) -> None:
    deadline_s = time.monotonic() + LONG_S
    while True:
        answer = bot.api("GET", "count")
        if answer.status == 200 and answer.body["current"] == 0:
            return
        require(time.monotonic() < deadline_s, f"{bot.directory.name}: trades do not close")
        bot.api("POST", "forceexit", {"tradeid": "all"})
        time.sleep(0.2)


@contextlib.contextmanager
def _stopped(bot: AnyBot) -> Iterator[None]:
    os.kill(bot.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(bot.pid, signal.SIGCONT)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- the rounds -----------------------------------------------------------------------------------


async def play(scene: Scene, name: str, plan: Plan, apart: str) -> Round:
    """Make the plan's decisions. `apart`: a pair of which an order hangs at the third bot, if it is to."""
    stage = scene.stage
    scene.configure(meta=name != "without")
    await stage.start()
    before = {bot: len(proxy.posts) for bot, proxy in stage.proxies.items()}
    async with feeding(stage) as feeders, contextlib.AsyncExitStack() as stack:
        if name == "hung":
            scene.lock.touch()
            stack.callback(scene.lock.unlink)
            began_ms = _now_ms()
            await feeders.votes(apart)
            await scene.ended(apart, "long", began_ms)
            await scene.under_way()
            stack.enter_context(_stopped(scene.third))
        began_ms = _now_ms()
        scene.progress(f"{name}: {len(plan.calm)} decisions, one after another")
        calm = []
        for pair, side in plan.calm:
            since_ms = _now_ms()
            await feeders.votes(pair, side)
            calm.append(await scene.ended(pair, side, since_ms))
        scene.progress(f"{name}: {len(plan.burst)} at once")
        burst_ms = _now_ms()
        await asyncio.gather(*(_vote_at_once(feeders, *each) for each in enumerate(plan.burst)))
        burst = [await scene.ended(pair, side, burst_ms) for pair, side in plan.burst]
        if name == "hung":
            open_posts = stage.proxies["meta"].open_posts
            require(open_posts == 1, f"hung: {open_posts} orders stand at the third bot, not one")
    await scene.copies_settled()
    await stage.settled()
    await stage.stop()
    orders = {
        bot: sorted(proxy.posts[before[bot] :], key=lambda post: post.at_ms)
        for bot, proxy in stage.proxies.items()
    }
    copies = [one for one in scene.copies() if one.decided_ms >= began_ms]
    return Round(name, calm, burst, copies, orders)


async def _vote_at_once(feeders: Feeders, number: int, each: tuple[str, str]) -> None:
    # Each as sure as no other: which one is better is no matter of time.
    await feeders.votes(*each, confidence=0.7 + number / 100)


def compare(plan: Plan, first: Round, other: Round) -> list[str]:
    """What of the two bots' orders differs from a round without the third bot."""
    found = []
    for side in SIDES:
        expected, got = first.sequence(side, plan.calm), other.sequence(side, plan.calm)
        if got != expected:
            found.append(f"{other.name}: orders of {side} {got}, without a third bot {expected}")
        burst = [sorted(each.sequence(side, plan.burst)) for each in (first, other)]
        if burst[0] != burst[1]:
            found.append(f"{other.name}: burst of {side} {burst[1]}, without {burst[0]}")
    return found


def at_the_two(each: Round) -> list[str]:
    """What is not as it should be at the two bots in a round."""
    decided = [*each.calm, *each.burst]
    found = [f"{each.name}: {one} {one.answer}" for one in decided if one.state != "accepted"]
    posts = [post for side in SIDES for post in each.orders[side]]
    known = [post for post in posts if post.pair in {one.pair for one in decided}]
    orders, strays = judge.orders_of(decided, known)
    found += strays + judge.sent_twice(decided, orders)
    for side in SIDES:
        # By when each was chosen: on a busy machine the proxy gets it later.
        chosen = {
            one.window: [msgspec.structs.replace(post, at_ms=one.sent_ms) for post in posts]
            for one in each.burst
            if one.sent_ms is not None and (posts := orders.get(one.window, ()))
        }
        found += judge.worse_first([one for one in each.burst if one.side == side], chosen)
    return found


def at_the_third(each: Round, trades: Sequence[judge.Opened]) -> list[str]:
    """What is not as it should be in the copies of a round in which the third bot is well."""
    found = [f"{one} has no copy" for one in each.copies if one.forwarded and not one.state]
    for one in each.copies:
        expected = "refused" if refuses(one.pair) else "accepted"
        if one.state != expected:
            found.append(f"meta: {one} is to be {expected}: {one.answer}")
        if one.state == "refused" and f"Failed to enter position for {one.pair}." not in one.answer:
            found.append(f"meta: {one} was refused with {one.answer}")
    orders, strays = judge.orders_of(each.copies, each.orders["meta"])
    found += strays + judge.sent_twice(each.copies, orders)
    since_ms = min((one.decided_ms for one in each.copies), default=0)
    mine = [one for one in trades if one.bot == "meta" and one.opened_ms >= since_ms]
    return found + judge.ends_wrongly(each.copies, mine)


# --- the other side, and kills --------------------------------------------------------------------


async def other_side(scene: Scene, pair: str) -> tuple[str, list[str]]:
    """A pair that the third bot holds long is decided short: nothing is sent to it."""
    found = []
    async with feeding(scene.stage) as feeders:
        for side in SIDES:
            since_ms = _now_ms()
            await feeders.votes(pair, side)
            one = await scene.ended(pair, side, since_ms)
            if one.state != "accepted":
                found.append(f"other side: {one} {one.answer}")
            await scene.copies_settled()
    copies = [scene.copy(pair, side) for side in SIDES]
    posts = [post.side for post in scene.stage.proxies["meta"].posts if post.pair == pair]
    if [one.state for one in copies] != ["accepted", "expired"] or posts != ["long"]:
        found.append(f"other side: {[(one.state, one.answer) for one in copies]}, orders {posts}")
    return f"{copies[1].state}: {copies[1].answer}", found


async def kill(scene: Scene, pairs: Sequence[str], random_: random.Random) -> list[str]:
    """Kill the aggregator while orders of the third bot are under way; the two others trade on."""
    stage, found = scene.stage, []
    proxy = stage.proxies["meta"]
    for number, (pair, next_pair) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        side = random_.choice(SIDES)
        scene.progress(
            f"kill {number + 1}: an order of {pair} {side} is under way at the third bot"
        )
        scene.lock.touch()
        try:
            async with feeding(stage) as feeders:
                since_ms = _now_ms()
                await feeders.votes(pair, side)
                await scene.ended(pair, side, since_ms)
                await scene.under_way()
                await asyncio.sleep(random_.uniform(0.0, 0.5))
                await stage.kill()
                await stage.start()
                since_ms = _now_ms()
                await feeders.votes(next_pair, side)
                one = await scene.ended(next_pair, side, since_ms)
                if one.state != "accepted":
                    found.append(f"kill: the two others: {one} {one.answer}")
        finally:
            scene.lock.unlink()
        await scene.copies_settled()
        await until(lambda: not proxy.open_posts, "no order under way", timeout_s=LONG_S)
        copy, posts = scene.copy(pair, side), [one for one in proxy.posts if one.pair == pair]
        expected = "lost" if refuses(pair) else "found"
        if copy.state != expected:
            found.append(f"kill: {copy} is to be {expected}: {copy.answer}")
        if len(posts) != 1:
            found.append(f"kill: {copy} was sent {len(posts)} times")
    return found


# --- the proof ------------------------------------------------------------------------------------


def plan_of(pairs: Sequence[str], given: argparse.Namespace) -> tuple[Plan, list[str], list[str]]:
    """The plan, by the seed; pairs for kills, a few of them refused; pairs that are left, none refused."""
    random_ = random.Random(given.seed)
    mixed = random_.sample(list(pairs), len(pairs))
    taken, passed = [p for p in mixed if refuses(p)], [p for p in mixed if not refuses(p)]

    def half(count: int) -> list[tuple[str, str]]:
        chosen = [(taken if number % 2 else passed).pop() for number in range(count)]
        return [
            (pair, SIDES[number % 2]) for number, pair in enumerate(random_.sample(chosen, count))
        ]

    plan = Plan(half(given.calm), half(given.burst))
    killed = []
    for number in range(given.kills):
        killed += [(taken if number % 3 == 2 else passed).pop(), passed.pop()]
    return plan, killed, passed


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Play the rounds, and judge what came of them."""
    plan, killed, left = plan_of(choose_pairs(PAIRS), given)
    progress(f"starting three {given.bots} bots")
    async with staged(
        home,
        given.bots,
        sides=BOTS,
        bot=None if given.bots == "scripted" else {"strategy": "Held"},
        on_conflict="both",
        cooldown_s=1,
        window_s=10,
        unconfirmed_s=UNCONFIRMED_S,
        bot_settings={"timeout_s": TIMEOUT_S},
    ) as stage:
        scene = Scene(stage, progress)
        (scene.third.directory / "half").touch()
        rounds, findings = [], []
        for name in ("without", "with", "hung"):
            each = await play(scene, name, plan, left[0])
            rounds.append(each)
            findings += at_the_two(each)
            if name == "with":
                findings += at_the_third(each, await stage.trades())
            await scene.close_all()
        without, with_it, hung = rounds
        if any(one.state for one in without.copies) or without.orders["meta"]:
            findings.append("without: the third bot got something")
        findings += compare(plan, without, with_it) + compare(plan, without, hung)
        await stage.start()
        words, found = await other_side(scene, left[1])
        findings += found
        findings += await kill(scene, killed, random.Random(given.seed))
        copies, posts = scene.copies(), stage.proxies["meta"].posts
        orders, _ = judge.orders_of(copies, posts)
        findings += judge.sent_twice(copies, orders)
        _, health = await stage.health()
        await stage.stop()
    figures: list[tuple[str, object]] = []
    middle = []
    for each in rounds:
        for part, decided in (("one by one", each.calm), ("at once", each.burst)):
            waits = each.waits_ms(decided)
            middle += [statistics.median(waits)] if part == "one by one" else []
            figures.append(
                (
                    f"{each.name}, {part}: decision to POST, ms: median, most",
                    f"{statistics.median(waits):.0f}, {max(waits):.0f} of {len(waits)} orders",
                )
            )
        answers = [post.done_ms - post.at_ms for side in SIDES for post in each.orders[side]]
        figures.append(
            (f"{each.name}: the two bots' answers, ms: median", statistics.median(answers))
        )
    if given.bots == "real" and max(middle[1:]) > middle[0] + SLOWER_MS:
        findings.append(f"the two others wait longer with a third bot: {middle} ms")
    ends = Counter(one.state for one in with_it.copies)
    stood = Counter(one.state for one in hung.copies)
    figures += [
        ("with: copies accepted, refused", f"{ends['accepted']}, {ends['refused']}"),
        ("hung: what became of the copies", dict(stood)),
        ("hung: orders of the two others answered meanwhile", len(hung.calm) + len(hung.burst)),
        ("of the other side of a pair that it holds", words[:90]),
        ("kills while its order was under way", given.kills),
        ("  found, lost", f"{_count(scene, killed, 'found')}, {_count(scene, killed, 'lost')}"),
        ("orders sent twice", 0 if not judge.sent_twice(copies, orders) else "some"),
        ("what /health said at the end", "; ".join(health.get("reasons", []))[:90] or "well"),
    ]
    return figures, findings


def _count(scene: Scene, killed: Sequence[str], state: str) -> int:
    return sum(one.state == state and one.pair in killed[::2] for one in scene.copies())


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "meta",
        __doc__,
        calm={"type": int, "default": 20, "help": "decisions of a round that follow each other"},
        burst={"type": int, "default": 20, "help": "decisions of a round that are made at once"},
        kills={"type": int, "default": 6, "help": "kills while an order is at the third bot"},
    )
    return run(prove, given, "meta: a third bot that refuses half of all, hangs, and is killed at")


if __name__ == "__main__":
    sys.exit(main())
