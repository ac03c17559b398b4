"""A bot that is down, refuses the password, is paused, stopped or full: the next signal after it is traded.

Each trouble twice: mended while the decision waits, and after it has expired. Then the pair is traded, by the
next signal at the latest, with a cool-down of 300 s: an order that surely opened nothing holds no pair.
Takes about seven minutes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade import judge
from tests.freqtrade.command import Figures, Progress, arguments, require, run
from tests.freqtrade.harness_config import PASSWORD
from tests.freqtrade.judge import Decided
from tests.freqtrade.stage import Feeders, Stage, feeding, running, staged
from tests.waiting import until

SLOTS: Final = 4
EARLY_S: Final = 1.5
"""Mended so long after the trouble was met: the decision still waits."""
ANSWERED_S: Final = 120.0

Step = Callable[[Stage, str], Awaitable[None]]


class Trouble(NamedTuple):
    """How a bot is made to refuse, and to take orders again."""

    name: str
    begin: Step
    mend: Step


async def down(stage: Stage, side: str) -> None:
    """Kill it; nobody listens any more."""
    stage.proxies[side].close()
    await asyncio.to_thread(stage.bots[side].kill)


async def up(stage: Stage, side: str) -> None:
    """Start it again."""
    stage.bots[side].start()
    await running(stage.bots[side])
    await stage.proxies[side].open()


async def lock_out(stage: Stage, _: str) -> None:
    """Give the aggregator a wrong password."""
    stage.password.write_text("an-invented-wrong-one")


async def let_in(stage: Stage, _: str) -> None:
    """Give it the right one."""
    stage.password.write_text(PASSWORD)


def told(path: str) -> Step:
    """A POST to the bot's own API."""

    async def step(stage: Stage, side: str) -> None:
        answer = await asyncio.to_thread(stage.bots[side].api, "POST", path)
        if answer.status != 200:
            raise AssertionError(answer)

    return step


async def started(stage: Stage, side: str) -> None:
    """Start a bot that is paused or stopped."""
    await told("start")(stage, side)
    await running(stage.bots[side])


async def _fill(stage: Stage, side: str) -> None:
    """Open trades by hand until there is no room."""
    bot = stage.bots[side]
    for pair in reversed(choose_pairs(60)):
        answer = await asyncio.to_thread(bot.api, "GET", "count")
        if answer.body["current"] >= SLOTS:
            return
        order = {"pair": pair, "side": side, "entry_tag": "by hand"}
        await asyncio.to_thread(bot.api, "POST", "forceenter", order)


async def _make_room(stage: Stage, side: str) -> None:
    """Close every trade; what waits for room is traded at once then."""
    bot = stage.bots[side]
    open_ = {
        trade["trade_id"] for trade in (await asyncio.to_thread(bot.api, "GET", "status")).body
    }
    give_up_s = time.monotonic() + ANSWERED_S
    while left := open_ & {
        trade["trade_id"] for trade in (await asyncio.to_thread(bot.api, "GET", "status")).body
    }:
        require(time.monotonic() < give_up_s, f"trades {left} are not closed")
        for number in left:
            await asyncio.to_thread(bot.api, "POST", "forceexit", {"tradeid": str(number)})


TROUBLES: Final = (
    Trouble("down", down, up),
    Trouble("401", lock_out, let_in),
    Trouble("paused (/pause)", told("pause"), started),
    Trouble("paused (/stopentry)", told("stopentry"), started),
    Trouble("stopped (/stop)", told("stop"), started),
    Trouble("full", _fill, _make_room),
)


async def _ended(stage: Stage, pair: str, side: str, after: int) -> Decided:
    """The next decision of the pair after window `after`, once it has ended."""

    def found() -> bool:
        one = stage.ended(pair, side)
        return one is not None and one.window > after

    await until(found, f"an end of {pair}", timeout_s=ANSWERED_S)
    one = stage.ended(pair, side)
    assert one is not None
    return one


async def _meet(
    stage: Stage, feeders: Feeders, trouble: Trouble, pair: str, side: str, *, late: bool
) -> tuple[str, list[str]]:
    """One trouble; how it went, and findings."""
    await trouble.begin(stage, side)
    await feeders.votes(pair, side)
    if late:
        first = await _ended(stage, pair, side, 0)
    else:
        proxy = stage.proxies[side]
        known = len(proxy.posts)
        # Met: an order was answered, or (nobody listens) the decision is there for a while.
        waits = time.monotonic() + 12.0
        await until(
            lambda: len(proxy.posts) > known or time.monotonic() > waits, timeout_s=ANSWERED_S
        )
        await asyncio.sleep(EARLY_S)
    mended_s = time.monotonic()
    await trouble.mend(stage, side)
    if not late:
        first = await _ended(stage, pair, side, 0)
    path = [f"{first.state or 'skipped'} ({(first.answer or first.reasons)[:48]})"]
    last = first
    if first.state not in ("accepted", "found"):
        await feeders.votes(pair, side)
        last = await _ended(stage, pair, side, first.window)
        path.append(f"then {last.state or 'skipped'}")
        if last.state not in ("accepted", "found"):
            path.append(f"({last.answer or last.reasons})")
    findings = []
    if last.state not in ("accepted", "found"):
        findings.append(f"{trouble.name}: the next signal was not traded: {', '.join(path)}")
    path.append(f"{time.monotonic() - mended_s:.1f} s after it was mended began")
    return ", ".join(path), findings


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Meet each trouble, in turn at the long bot and at the short one."""
    figures: list[tuple[str, object]] = []
    findings: list[str] = []
    pairs = iter(choose_pairs(60))
    progress(f"starting two {given.bots} bots with {SLOTS} slots")
    chosen = [one for one in TROUBLES if not given.only or given.only in one.name]
    async with staged(home, given.bots, max_open=SLOTS, window_s=given.window_s) as stage:
        await stage.start()
        async with feeding(stage) as feeders:
            for number, (trouble, late) in enumerate(
                (trouble, late) for trouble in chosen for late in (False, True)
            ):
                side = ("long", "short")[number % 2]
                when = "after it expired" if late else "while it waits"
                progress(f"{trouble.name}, mended {when} ({side})")
                went, found = await _meet(stage, feeders, trouble, next(pairs), side, late=late)
                figures.append((f"{trouble.name}, mended {when}", went))
                findings += found
                await _make_room(stage, side)
        await stage.settled()
        decisions = stage.decisions()
        orders, found = judge.orders_of(decisions, stage.posts())
        findings += found + judge.sent_twice(decisions, orders)
        trades = [one for one in await stage.trades() if one.tag != "by hand"]
        findings += judge.ends_wrongly(decisions, trades)
        await stage.stop()
    return figures, findings


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "recovery",
        __doc__,
        window_s={
            "type": float,
            "default": 5.0,
            "help": "60 as shipped; a shorter one saves waiting",
        },
        only={"default": "", "help": "troubles with this in their name, such as full"},
    )
    return run(prove, given, "recovery: the next signal is traded")


if __name__ == "__main__":
    sys.exit(main())
