"""A ledger that is fresh, restored from an old copy, or removed while it is used, beside bots that traded.

In each the pair was traded, or its order is still in the bot's lock, and is voted for again: it is not sent
twice, and what happened is named by /health, or by the log of a process that ends, within 2 s. Another pair
is traded, once nothing of the lost ledger can be under way any more. Takes about six minutes.
"""

import argparse
import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade.command import Figures, Progress, arguments, run
from tests.freqtrade.stage import Feeders, Stage, feeding, settings_that_are, staged
from tests.waiting import until

NOTICED_S: Final = 2.0
WINDOW_S: Final = 3.0
TIMEOUT_S: Final = 5.0
UNCONFIRMED_S: Final = 15.0
AGAIN_S: Final = 6.0
"""Pairs are voted for again so often (seconds), until the hold that a lost ledger begins is long over."""
TIMES: Final = 8
KNOWN: Final = ("ledger", "trade")
"""Words of which one stands in every reason that is about a lost or old ledger."""

Case = Callable[["Scene"], Awaitable[None]]


class Scene:
    """One case: a traded pair, one that is not, and what is found."""

    def __init__(self, stage: Stage, feeders: Feeders, traded: str, fresh: str) -> None:
        self.stage = stage
        self.feeders = feeders
        self.traded = traded
        self.fresh = fresh
        self.figures: list[str] = []
        self.findings: list[str] = []

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.stage.ledger

    def remove(self) -> None:
        """`rm ledger.db*`."""
        for path in self.ledger.parent.glob(f"{self.ledger.name}*"):
            path.unlink()

    def orders(self, pair: str) -> int:
        """How many orders of a pair reached the bots."""
        return sum(post.pair == pair for post in self.stage.posts()) + sum(
            proxy.open_posts for proxy in self.stage.proxies.values()
        )

    async def trade(self) -> None:
        """Let the pair be traded."""
        await self.feeders.votes(self.traded)
        await until(lambda: self.stage.ended(self.traded), f"{self.traded} is traded")
        one = self.stage.ended(self.traded)
        if one is not None and one.state == "skip" and not self.orders(self.traded):
            # Passwords are looked at for the first time, on a busy machine: the votes came one window late.
            await until(
                lambda: (found := self.stage.ended(self.traded)) is not None and found != one,
                f"{self.traded} is traded, its votes came late",
            )
            one = self.stage.ended(self.traded)
        if one is None or one.state != "accepted":
            self.findings.append(f"not traded to begin with: {one}")

    async def noticed(self, since_s: float) -> None:
        """Wait until it is named, or the process has ended; a finding if that takes too long."""
        deadline_s = since_s + 30.0
        process = self.stage.process
        assert process is not None
        while time.monotonic() < deadline_s:
            for line in process.lines:
                if "level=CRITICAL" in line and "ledger" in line:
                    return self._took(
                        since_s, "it ends: " + line.partition("aggregator ")[2].strip()
                    )
            if not self.stage.is_alive:
                return self._took(since_s, "the process has ended")
            _, health = await self.stage.health()
            for reason in health.get("reasons", []):
                if any(word in reason for word in KNOWN):
                    return self._took(since_s, reason)
            await asyncio.sleep(0.05)
        self.findings.append("nothing is said of it within 30 s")
        return None

    def _took(self, since_s: float, words: str) -> None:
        took_s = time.monotonic() - since_s
        self.figures.append(f"after {took_s:.1f} s: {words[:90]}")
        if took_s > NOTICED_S:
            self.findings.append(f"noticed after {took_s:.1f} s: {words[:90]}")

    async def keep_alive(self) -> None:
        """Start it again whenever it has ended, as systemd does; until cancelled."""
        while True:
            await asyncio.sleep(0.1)
            if not self.stage.is_alive:
                await self.stage.kill()
                await self.stage.start()

    async def vote_again(self) -> None:
        """Vote for both pairs again and again; the traded one must not be sent."""
        for _ in range(TIMES):
            await asyncio.gather(self.feeders.votes(self.traded), self.feeders.votes(self.fresh))
            await asyncio.sleep(AGAIN_S)


async def fresh_ledger(scene: Scene) -> None:
    """Removed while stopped: the trade is known to the bot alone."""
    await scene.trade()
    await scene.stage.stop()
    scene.remove()
    await scene.stage.start()
    await scene.noticed(time.monotonic())
    await scene.vote_again()


async def old_copy(scene: Scene) -> None:
    """A copy from before the trade is put in its place."""
    await scene.feeders.votes(scene.traded, count=1)
    await scene.stage.stop()
    copy = scene.stage.home / "copy"
    copy.mkdir(exist_ok=True)
    for path in scene.ledger.parent.glob(f"{scene.ledger.name}*"):
        shutil.copy2(path, copy)
    await scene.stage.start()
    await scene.trade()
    await scene.stage.stop()
    scene.remove()
    for path in copy.iterdir():
        shutil.copy2(path, scene.ledger.parent)
    await scene.stage.start()
    await scene.noticed(time.monotonic())
    await scene.vote_again()


async def removed_while_running(scene: Scene) -> None:
    """Removed under the running aggregator, which is started again when it ends."""
    await scene.trade()
    removed_s = time.monotonic()
    scene.remove()
    await scene.noticed(removed_s)
    keeping = asyncio.create_task(scene.keep_alive())
    await scene.vote_again()
    keeping.cancel()


async def removed_beside_an_order(scene: Scene) -> None:
    """Killed and its ledger removed while an order is in the bot's lock: it opens its trade later."""
    lock = scene.stage.bots["long"].directory / "lock"
    lock.touch()
    try:
        await scene.feeders.votes(scene.traded)
        await until(lambda: scene.orders(scene.traded), "an order is in the lock")
        await scene.stage.kill()
        scene.remove()
        await scene.stage.start()
        started_s = time.monotonic()
        await scene.noticed(started_s)
        # A window's time in the lock; the first votes for it come while it is there.
        await scene.feeders.votes(scene.traded)
        await asyncio.sleep(WINDOW_S)
    finally:
        lock.unlink()
    await scene.vote_again()


CASES: Final[dict[str, Case]] = {
    "fresh": fresh_ledger,
    "old copy": old_copy,
    "rm while running": removed_while_running,
    "an order in the lock": removed_beside_an_order,
}


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Play each case with its own two pairs at the same bots."""
    figures: list[tuple[str, object]] = []
    findings: list[str] = []
    pairs = iter(choose_pairs(20))
    more = None if given.bots == "scripted" else {"strategy": "Held"}
    progress(f"starting a {given.bots} bot")
    for name, case in CASES.items():
        if given.only and given.only not in name:
            continue
        place = home / name.replace(" ", "-")
        async with staged(
            place,
            given.bots,
            sides=("long",),
            bot=more,
            window_s=WINDOW_S,
            expire_s=10,
            bot_settings={"timeout_s": TIMEOUT_S},
            **settings_that_are(unconfirmed_s=UNCONFIRMED_S),
        ) as stage:
            await stage.start()
            async with feeding(stage) as feeders:
                progress(f"{name}: {(case.__doc__ or '').strip()}")
                scene = Scene(stage, feeders, next(pairs), next(pairs))
                await case(scene)
                with contextlib.suppress(TimeoutError):
                    await stage.settled(60.0)
            sent = sum(post.pair == scene.traded for post in stage.posts())
            trades = [one for one in await stage.trades() if one.pair == scene.traded]
            if sent != 1:
                scene.findings.append(f"{scene.traded} was sent {sent} times")
            if len(trades) != 1:
                scene.findings.append(f"{len(trades)} trades of {scene.traded}")
            other = sum(post.pair == scene.fresh for post in stage.posts())
            await stage.stop()
        figures += [(f"{name}: noticed", "; ".join(scene.figures) or "-")]
        figures += [(f"{name}: orders of the pair, of another", f"{sent}, {other}")]
        if other != 1:
            scene.findings.append(f"the other pair, {scene.fresh}, was sent {other} times")
        findings += [f"{name}: {text}" for text in scene.findings]
    return figures, findings


def main() -> int:
    """See the module's docstring."""
    given = arguments(
        "ledgers", __doc__, only={"default": "", "help": "cases with this in their name"}
    )
    return run(prove, given, "ledgers: fresh, old, removed")


if __name__ == "__main__":
    sys.exit(main())
