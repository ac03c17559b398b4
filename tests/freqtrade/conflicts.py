"""Long and short of a pair, their windows opened 0.1 s to 59.9 s apart: the two bots never get both.

Many pairs side by side, both sides first, with all votes (decided early) and with three (decided when the
window closes), cool-down 0, in four rounds: undisturbed; the aggregator stopped (SIGSTOP) for 25 s; killed
and started again three times; and started with a ledger whose times are an hour ahead, as after the host's
clock was set back. Of windows that opened more than `window_s` apart both are sent, so both bots do trade.
In a round of its own, with a stop and a start in it, pairs are voted for at random moments, several times.
A round takes two and a half minutes, the random one four.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade import judge
from tests.freqtrade.command import Figures, Progress, arguments, run
from tests.freqtrade.stage import (
    FEEDERS,
    PAIRS,
    SIDES,
    Feeders,
    Stage,
    feeding,
    settings_that_are,
    staged,
)

GAPS: Final = (0.1, 0.6, 2.9, 3.1, 12.0, 29.9, 44.0, 59.0, 59.9)
"""Of a window of 60 s; all are scaled with `--window-s`."""
ROUNDS: Final = ("plain", "stopped", "restarts", "random", "clock")
RANDOM_PAIRS: Final = 40
STOPPED_S: Final = 25.0
AHEAD_MS: Final = 3_600_000
_TIMES: Final = {
    "signal": ("received",),
    "decision": ("opened", "decided", "expires"),
    "forward": ("changed", "sent", "answered"),
}


class Case(msgspec.Struct, frozen=True):
    """A pair: which side votes first, how many of five vote, and when the other side's window opens."""

    pair: str
    first: str
    votes: int
    gap_s: float


class Opening(msgspec.Struct):
    """When a window opened, by the feeders' own clock: not before, not after (ms)."""

    not_before_ms: int = 0
    not_after_ms: int = 0


def cases(pairs: Sequence[str], window_s: float, *, apart: bool) -> list[Case]:
    """The cases of a round; with some that are no conflict if `apart`."""
    gaps = [gap * window_s / 60 for gap in GAPS[1:-1]]
    # At the edges as they are: the shortest and the longest gap that is one.
    gaps = [min(0.1, window_s / 60), *gaps, window_s - 0.1]
    wanted = [(first, votes, gap) for gap in gaps for first in judge.OTHER for votes in (5, 3)]
    if apart:
        wanted += [(first, votes, window_s + 2.0) for first in judge.OTHER for votes in (5, 3)]
    return [Case(pair, *each) for pair, each in zip(pairs, wanted, strict=False)]


async def _play(
    case: Case, feeders: Feeders, opened: dict[tuple[str, str], Opening], window_s: float
) -> None:
    started_s = time.monotonic()
    for side, after_s in ((case.first, 0.0), (judge.OTHER[case.first], case.gap_s)):
        await asyncio.sleep(max(started_s + after_s - time.monotonic(), 0.0))
        opening = opened[case.pair, side] = Opening()
        opening.not_before_ms = time.time_ns() // 1_000_000
        await feeders.votes(case.pair, side, 1)
        opening.not_after_ms = time.time_ns() // 1_000_000
        if side == case.first and case.gap_s > window_s:
            # On a busy machine the first may have opened this late, and the other is to be no conflict.
            started_s = time.monotonic()
        await feeders.votes(case.pair, side, case.votes - 1, feeders=FEEDERS[side][1:])


async def _play_randomly(
    pair: str, feeders: Feeders, random_: random.Random, window_s: float
) -> None:
    for _ in range(6):
        await asyncio.sleep(random_.uniform(0.0, 0.8) * window_s)
        side = random_.choice(SIDES)
        await feeders.votes(pair, side, random_.choice((3, 5)), over_s=random_.uniform(0.0, 1.0))


async def _randomly(stage: Stage, window_s: float, seed: int, progress: Progress) -> list[str]:
    """Vote for pairs at random moments; findings, by when the ledger says that windows opened."""
    began_ms = time.time_ns() // 1_000_000
    async with feeding(stage) as feeders, asyncio.TaskGroup() as group:
        for pair in choose_pairs(RANDOM_PAIRS):
            own = random.Random(f"{pair} {seed}")
            group.create_task(_play_randomly(pair, feeders, own, window_s))
        group.create_task(_disturb("random", stage, window_s, progress))
    await stage.settled()
    decisions = [one for one in stage.decisions() if one.opened_ms >= began_ms]
    posts = [post for post in stage.posts() if post.at_ms >= began_ms]
    orders, _ = judge.orders_of(decisions, posts)
    progress(f"random: {len(decisions)} decisions, {len(orders)} of them sent")
    return judge.opposite(decisions, orders, round(window_s * 1000)) + judge.sent_twice(
        decisions, orders
    )


async def _disturb(round_: str, stage: Stage, window_s: float, progress: Progress) -> None:
    if round_ in ("stopped", "random"):
        await asyncio.sleep(window_s / 4)
        progress(f"SIGSTOP for {STOPPED_S * window_s / 60:.1f} s")
        stage.signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S * window_s / 60)
        stage.signal(signal.SIGCONT)
    if round_ in ("restarts", "random"):
        for at in (0.06, 0.5, 0.45):
            await asyncio.sleep(at * window_s)
            progress("SIGKILL and a start")
            await stage.kill()
            await stage.start()
    if round_ == "clock":
        await asyncio.sleep(window_s / 2)
        progress("a start with a ledger that is an hour ahead")
        await stage.kill()
        set_ahead(stage.home / "ledger.db", AHEAD_MS)
        await stage.start()


def set_ahead(path: Path, by_ms: int) -> None:
    """Take every time of a ledger that nobody uses ahead: the host's clock is set back against it."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for table, columns in _TIMES.items():
            changes = ", ".join(f"{column} = {column} + {by_ms}" for column in columns)
            db.execute(f"UPDATE {table} SET {changes}")  # noqa: S608 - constants


def judged(
    decisions: Sequence[judge.Decided],
    posts: Sequence[judge.Posted],
    opened: dict[tuple[str, str], Opening],
    window_ms: int,
) -> list[str]:
    """Findings, by when the windows opened for the feeders: each pair has one window of each side."""
    ours = []
    orders: dict[int, list[judge.Posted]] = {}
    for one in decisions:
        if (opening := opened.get((one.pair, one.side))) is None:
            continue
        other = opened.get((one.pair, judge.OTHER[one.side]), opening)
        # As far apart as they may have been.
        first = opening.not_before_ms <= other.not_before_ms
        at_ms = opening.not_before_ms if first else opening.not_after_ms
        ours.append(msgspec.structs.replace(one, opened_ms=at_ms))
        found = [post for post in posts if (post.pair, post.side) == (one.pair, one.side)]
        if found:
            orders[one.window] = found
    return judge.opposite(ours, orders, window_ms) + judge.sent_twice(ours, orders)


def sent_sides(posts: Sequence[judge.Posted], pair: str) -> set[str]:
    """The sides of a pair that were sent."""
    return {post.side for post in posts if post.pair == pair}


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Play the rounds, one after another, at the same two bots."""
    figures: list[tuple[str, object]] = []
    findings: list[str] = []
    window_ms = round(given.window_s * 1000)
    pairs = list(choose_pairs(PAIRS))
    progress(f"starting two {given.bots} bots")
    async with staged(
        home,
        given.bots,
        window_s=given.window_s,
        cooldown_s=0,
        **settings_that_are(early_grace_s=given.window_s / 20),
    ) as stage:
        await stage.start()
        for round_ in given.rounds.split(","):
            if round_ == "random":
                before = len(stage.decisions())
                progress(f"random: {RANDOM_PAIRS} pairs")
                found = await _randomly(stage, given.window_s, given.seed, progress)
                findings += [f"{round_}: {text}" for text in found]
                figures.append(("random: decisions", len(stage.decisions()) - before))
                continue
            wanted = cases(pairs, given.window_s, apart=round_ in ("plain", "stopped"))
            del pairs[: len(wanted)]
            opened: dict[tuple[str, str], Opening] = {}
            progress(f"{round_}: {len(wanted)} pairs")
            async with feeding(stage) as feeders, asyncio.TaskGroup() as group:
                for case in wanted:
                    group.create_task(_play(case, feeders, opened, given.window_s))
                group.create_task(_disturb(round_, stage, given.window_s, progress))
            await stage.settled()
            posts = stage.posts()
            decisions = [one for one in stage.decisions() if (one.pair, one.side) in opened]
            found = judged(decisions, posts, opened, window_ms)
            found += [
                f"{case.pair}: windows {case.gap_s:g} s apart are no conflict, and {sent or 'none'} was sent"
                for case in wanted
                if case.gap_s > given.window_s
                and len(sent := sent_sides(posts, case.pair)) < len(judge.OTHER)
            ]
            findings += [f"{round_}: {text}" for text in found]
            conflicts = [case for case in wanted if case.gap_s < given.window_s]
            sides = [len(sent_sides(posts, case.pair)) for case in conflicts]
            figures.append(
                (
                    f"{round_}: pairs with a conflict; sent none, one, both",
                    f"{len(sides)}; {sides.count(0)}, {sides.count(1)}, {sides.count(2)}",
                )
            )
            if len(wanted) > len(conflicts):
                both = sum(
                    len(sent_sides(posts, case.pair)) == 2
                    for case in wanted
                    if case.gap_s > given.window_s
                )
                figures.append(
                    (f"{round_}: no conflict; sent both", f"{len(wanted) - len(conflicts)}; {both}")
                )
        figures.append(("orders at the proxies", len(stage.posts())))
        figures.append(("trades in the bots", len(await stage.trades())))
        await stage.stop()
    return figures, findings


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "conflicts",
        __doc__,
        window_s={"type": float, "default": 60.0, "help": "60 as shipped; gaps are scaled with it"},
        rounds={"default": ",".join(ROUNDS), "help": "which rounds, comma between"},
    )
    return run(prove, given, "conflicts: long and short of a pair within one window")


if __name__ == "__main__":
    sys.exit(main())
