"""The whole market moves: twelve feeders vote on 164 pairs within two seconds, at one bot with 15 slots.

Some trades are closed while decisions wait, so that places become free. Then every order is replayed from the
ledger's decisions and the proxy's notes: none was sent while a better one (share of votes, confidence, age),
decided 50 ms before, was queued or sent back for want of room; every other one has its reason in sight; the
bot never held more trades than its slots. Takes about two minutes.
"""

import argparse
import asyncio
import random
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade import judge
from tests.freqtrade.command import Figures, Progress, arguments, run
from tests.freqtrade.stage import PAIRS, Feeders, Stage, feeding, staged

FEEDERS: Final = tuple(str(number) for number in range(101, 113))
WITHIN_S: Final = 2.0
CLOSED: Final = 3
"""Trades that are closed while others wait, one after another."""


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Make a burst, and judge what came of it."""
    feeders = {"long": list(FEEDERS), "short": ["120", "121", "122"], "aliases": {}}
    progress(f"starting a {given.bots} bot with {given.slots} slots")
    async with staged(
        home,
        given.bots,
        max_open=given.slots,
        sides=("long",),
        bot={"order_s": 0.25} if given.bots == "scripted" else None,
        feeders=feeders,
        window_s=given.window_s,
    ) as stage:
        await stage.start()
        async with feeding(stage) as voting:
            progress(f"{len(FEEDERS)} feeders vote on {given.pairs} pairs within {WITHIN_S:g} s")
            took_s = await _vote(voting, random.Random(given.seed), given.pairs)
        held = Held()
        counting = asyncio.create_task(held.watch(stage))
        closing = asyncio.create_task(_close_some(stage, given.slots, progress))
        unwell = ""
        while stage.unresolved():
            _, health = await stage.health()
            unwell = unwell or "; ".join(health.get("reasons", []))
            await asyncio.sleep(0.5)
        closed = await closing
        counting.cancel()
        trades = await stage.trades()
        decisions, posts = stage.decisions(), stage.posts()
        await stage.stop()
    orders, findings = judge.orders_of(decisions, posts)
    findings += judge.worse_first(decisions, orders)
    findings += judge.sent_twice(decisions, orders)
    findings += judge.ends_wrongly(decisions, trades)
    if held.most > given.slots:
        findings.append(f"{held.most} trades at once, of {given.slots}")
    ends = Counter(one.state or f"skipped: {one.reasons[:40]}" for one in decisions)
    accepted = [one for one in decisions if one.state in ("accepted", "found")]
    others = [one for one in decisions if one.forwarded and one not in accepted]
    if len(accepted) < min(given.slots + closed, len(decisions)):
        findings.append(
            f"{len(accepted)} were traded, with {given.slots} slots and {closed} closed"
        )
    words = Counter(one.answer[:70] for one in others)
    return [
        ("votes answered, s", f"{voting.answered}, {took_s:.1f}"),
        ("decisions", len(decisions)),
        ("orders at the bot", len(posts)),
        *((f"  {end}", count) for end, count in sorted(ends.items())),
        *((f"    {text}", count) for text, count in words.most_common(6)),
        ("votes of 12, confidence of the traded, mean", _means(accepted)),
        ("… of those that were not", _means(others)),
        ("trades at once, at most", held.most),
        ("closed meanwhile", closed),
        ("what /health said", unwell[:80] or "well"),
    ], findings


def _means(found: list[judge.Decided]) -> str:
    if not found:
        return "-"
    votes = statistics.mean(12 * one.votes / one.of for one in found)
    return f"{votes:.1f}, {statistics.mean(one.confidence for one in found):.3f}"


async def _vote(voting: Feeders, random_: random.Random, count: int) -> float:
    """Each feeder goes through the pairs in an order of its own; a quarter of the pairs get all votes."""
    pairs = choose_pairs(count)
    wanted = {pair: 12 if random_.random() < 0.25 else random_.randint(3, 11) for pair in pairs}
    votes = {pair: set(random_.sample(FEEDERS, number)) for pair, number in wanted.items()}
    sure = {pair: random_.uniform(0.72, 0.97) for pair in pairs}
    loop = asyncio.get_running_loop()
    started_s = loop.time()

    async def feeder(name: str, own: list[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for number, pair in enumerate(own):
                due_s = started_s + WITHIN_S * number / len(own)
                await asyncio.sleep(max(due_s - loop.time(), 0.0))
                confidence = round(sure[pair] + draw[name], 2)
                group.create_task(voting.vote(pair, "long", name, confidence))

    draw = {name: random_.uniform(-0.02, 0.02) for name in FEEDERS}
    async with asyncio.TaskGroup() as group:
        for name in FEEDERS:
            own = [pair for pair in pairs if name in votes[pair]]
            group.create_task(feeder(name, random_.sample(own, len(own))))
    return loop.time() - started_s


class Held:
    """How many trades the bot held at most, by its own count."""

    def __init__(self) -> None:
        self.most = 0

    async def watch(self, stage: Stage) -> None:
        """Look again and again, until cancelled."""
        while True:
            answer = await asyncio.to_thread(stage.bots["long"].api, "GET", "count")
            if answer.status == 200:
                self.most = max(self.most, answer.body["current"])
            await asyncio.sleep(0.2)


async def _close_some(stage: Stage, slots: int, progress: Progress) -> int:
    """Close trades once the bot is full; how many were closed while decisions waited."""
    bot = stage.bots["long"]
    while stage.unresolved():
        answer = await asyncio.to_thread(bot.api, "GET", "count")
        if answer.status == 200 and answer.body["current"] >= slots:
            break
        await asyncio.sleep(0.2)
    closed = 0
    while closed < CLOSED and stage.unresolved() > CLOSED:
        await asyncio.sleep(3.0)
        trades = (await asyncio.to_thread(bot.api, "GET", "status")).body
        if not trades:
            break
        progress(f"full: closing trade {trades[0]['trade_id']}")
        number = str(trades[0]["trade_id"])
        answer = await asyncio.to_thread(bot.api, "POST", "forceexit", {"tradeid": number})
        closed += answer.status == 200
    return closed


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "burst",
        __doc__,
        slots={"type": int, "default": 15, "help": "the bot's max_open_trades"},
        pairs={"type": int, "default": PAIRS, "help": "how many pairs move"},
        window_s={
            "type": float,
            "default": 10.0,
            "help": "60 as shipped; a shorter one saves waiting",
        },
    )
    return run(prove, given, "burst: twelve feeders, the whole market, one bot")


if __name__ == "__main__":
    sys.exit(main())
