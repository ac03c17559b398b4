"""Decisions in a ledger as a desk leaves them, and a worker that takes them to a bot, without the rest."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from bot import CountingBot
from running import QUICK, one_vote

from marketfeed.aggregator.ballots import Decision
from marketfeed.aggregator.forwarder import Forwarder, Terms
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.timing import Pace


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def decision(window: int, *, votes: int = 3, expire_ms: int = 60_000) -> Decision:
    """One of now, for a pair of its own."""
    at_ms = now_ms()
    return Decision(
        window=window,
        pair=f"P{window}/USDT:USDT",
        side="long",
        opened_ms=at_ms,
        decided_ms=at_ms,
        expires_ms=at_ms + expire_ms,
        outcome="forward",
        passed=True,
        reasons=(f"{votes} of 5 votes",),
        votes=votes,
        electorate_size=5,
        confidence=0.9,
        primary="73",
        feeders=("73",),
        tag=f"long ensemble {votes}/5 conf=0.90 from=73",
        leverage=3.0,
        ordertype="market",
        price=None,
    )


def record(path: Path, *decisions: Decision) -> None:
    """A ledger with these decisions, queued."""
    with Ledger.open(path / "ledger.db") as ledger:
        ledger.record([], decisions, now_ms())


@contextlib.asynccontextmanager
async def working(
    path: Path,
    bot: CountingBot,
    hooks: Hooks,
    ledger: LedgerThread | None = None,
    pace: Pace = QUICK,
    unconfirmed_s: float = 0.8,
) -> AsyncIterator[Forwarder]:
    """A worker on the ledger in `path`, until the block ends. No start has asked the bot before it."""
    bot.asked = True
    async with (
        aiohttp.ClientSession() as session,
        ledger or LedgerThread(path / "ledger.db") as thread,
    ):
        worker = Forwarder(
            "long",
            Bot(one_vote(path, bot.url).aggregator.bots.long, session),
            thread,
            now_ms,
            AggregatorCounters(),
            Terms(expire_ms=60_000, unconfirmed_s=unconfirmed_s),
            hooks,
            pace,
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.end()
            await task
