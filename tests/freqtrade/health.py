"""What is wrong with a bot shows in `/health` while nothing is sent to it, and goes when it is over.

One bot, and for each trouble: how long until its reason was there, and until none was. A bot is asked every
30 s, so that both take 30 s at most, and the time of the trouble itself. Takes about five minutes.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade.command import Figures, Progress, arguments, require, run
from tests.freqtrade.recovery import Step, down, let_in, lock_out, started, told, up
from tests.freqtrade.stage import RealBot, Stage, feeding, running, staged
from tests.waiting import until

SIDE: Final = "long"
SEEN_S: Final = 120.0
SLOTS: Final = 4


def _force_entry(enabled: bool) -> Step:
    """Change the bot's config, and have it read that."""

    async def step(stage: Stage, side: str) -> None:
        bot = stage.bots[side]
        assert isinstance(bot, RealBot)
        file = bot.directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"force_entry_enable": enabled}))
        await told("reload_config")(stage, side)
        await running(bot)

    return step


TROUBLES: Final[dict[str, tuple[str, Step, Step]]] = {
    "paused (/pause)": ("it is not running: its state is paused", told("pause"), started),
    "stopped (/stop)": ("it is not running: its state is stopped", told("stop"), started),
    "force_entry_enable false": (
        "it refuses every order: force_entry_enable is false",
        _force_entry(False),
        _force_entry(True),
    ),
    "wrong password": ("it does not let us in: status 401", lock_out, let_in),
    "down": ("not reachable: ", down, up),
}


async def _seen(stage: Stage, good: Callable[[list[str]], object], what: str) -> float:
    """Wait until the reasons are good; how many seconds that took."""
    began_s = time.monotonic()
    reasons: list[str] = []
    while time.monotonic() - began_s < SEEN_S:
        status, health = await stage.health()
        reasons = health.get("reasons", [f"/health answers {status}"])
        if good(reasons):
            require(status == (503 if reasons else 200), f"{what}: /health answers {status}")
            return time.monotonic() - began_s
        await asyncio.sleep(0.1)
    require(False, f"{what}: not within {SEEN_S:.0f} s: {reasons}")
    return 0.0


async def _report(stage: Stage) -> dict[str, Any]:
    """What `/status` says of the bot."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{stage.status_port}/status") as answer,
    ):
        found: dict[str, Any] = (await answer.json())["bots"][SIDE]
        return found


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Meet each trouble, and an order for a pair that the bot does not list."""
    figures: list[tuple[str, object]] = []
    progress(f"starting a {given.bots} bot")
    # A scripted one has no config to change.
    chosen = [name for name in TROUBLES if given.bots == "real" or "force" not in name]
    async with staged(home, given.bots, max_open=SLOTS, sides=(SIDE,), window_s=2.0) as stage:
        await stage.start()
        await _seen(stage, lambda found: not found, "a start")
        for name in chosen:
            words, begin, mend = TROUBLES[name]
            reason = f"bot of {SIDE}: {words}"
            progress(name)
            await begin(stage, SIDE)
            shown_s = await _seen(
                stage,
                lambda found, reason=reason: len(found) == 1 and found[0].startswith(reason),
                name,
            )
            text = (await stage.health())[1]["reasons"]
            await mend(stage, SIDE)
            over_s = await _seen(stage, lambda found: not found, f"{name}, mended")
            figures += [
                (f"{name}: shown after, over after", f"{shown_s:.1f} s, {over_s:.1f} s"),
                (f"{name}: the reason", text[0] if text else "over already"),
            ]
        posts = stage.posts()
        require(not posts, f"orders were sent: {posts}")
        report = await _report(stage)
        figures.append(("what it says of itself", {**report, "refusals": "…"}))
        pair = choose_pairs(60)[-1]
        async with feeding(stage) as feeders:
            began_s = time.monotonic()
            await feeders.votes(pair, SIDE)
            await until(lambda: stage.ended(pair, SIDE), f"an end of {pair}", timeout_s=SEEN_S)
        end = stage.ended(pair, SIDE)
        assert end is not None
        figures.append((f"an order for {pair}", f"{end.state}: {end.reasons.splitlines()[-1]}"))
        figures.append(("from its first vote to its end", f"{time.monotonic() - began_s:.2f} s"))
        require(end.state == "accepted", f"{pair}: {end}")
        if given.bots == "real":
            require(report["whitelist"] == 2, f"whitelist: {report}")
            require(report["trading_mode"] == "futures", f"trading_mode: {report}")
            require("not on the whitelist" in end.reasons, f"{pair}: {end.reasons}")
            require((await _report(stage))["outside_pairs"] == [pair], "it is not shown")
        await stage.stop()
    return figures, []


def main() -> int:
    """See the module's docstring."""
    return run(prove, arguments("health", __doc__), "health: a bot's trouble is seen, and its end")


if __name__ == "__main__":
    sys.exit(main())
