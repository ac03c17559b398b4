"""The whole line on real sockets: a signal in, a vote, one order at the right bot. The issue's examples."""

import asyncio
import time
from pathlib import Path

import pytest
from bot import CountingBot
from running import PAIR, rows, running, settings, states

from tests.waiting import until


@pytest.mark.parametrize("path", ["forceenter", "forcebuy"])
def test_three_of_five_are_forwarded_with_the_ensemble_s_tag(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot1,
            CountingBot() as bot2,
            running(settings(tmp_path, {"long": bot1.url, "short": bot2.url})) as aggregator,
        ):
            for feeder, confidence in (("73", 0.85), ("74", 0.72), ("79", 0.88)):
                status, answer = await aggregator.post(feeder, confidence, path=path)
                assert status == 200
                assert f"feeder {feeder}" in answer["status"]
            await until(lambda: bot1.posts, "an order")
            assert bot1.posts == [
                {
                    "pair": PAIR,
                    "side": "long",
                    "ordertype": "market",
                    "entry_tag": "long ensemble 3/5 conf=0.82 from=79",
                    "leverage": 3.0,
                }
            ]
            await until(lambda: states(tmp_path) == ["accepted"], "the answer noted")
            assert bot2.posts == []

    asyncio.run(scenario())


def test_two_of_five_at_quorum_three_are_skipped_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"long": bot.url})) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await aggregator.post("74", 0.9)
            await until(lambda: rows(tmp_path, "SELECT 1 FROM decision"), "a decision")
            assert rows(tmp_path, "SELECT outcome, reasons FROM decision") == [
                ("skip", "2 of 5 votes, 3 needed")
            ]
            assert bot.posts == []
            assert states(tmp_path) == []

    asyncio.run(scenario())


def test_one_feeder_at_quorum_one_is_forwarded_when_the_window_closes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"long": bot.url}, min_agreements=1)) as aggregator,
        ):
            before_ms = time.time_ns() // 1_000_000
            await aggregator.post("75b", 0.89)
            after_ms = time.time_ns() // 1_000_000
            await until(lambda: bot.posts, "an order")
            assert bot.posts[0]["entry_tag"] == "long ensemble 1/5 conf=0.89 from=75b"
            assert bot.received_ms[0] >= before_ms + 1000
            ((opened, decided),) = rows(tmp_path, "SELECT opened, decided FROM decision")
            assert before_ms - 50 <= opened <= after_ms + 50
            assert decided >= opened + 1000

    asyncio.run(scenario())


def test_a_side_goes_to_its_own_bot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot1,
            CountingBot() as bot2,
            running(settings(tmp_path, {"long": bot1.url, "short": bot2.url})) as aggregator,
        ):
            for feeder in ("120", "121", "122", "123", "124"):
                await aggregator.post(feeder, 0.8, side="short", pair="ETH/USDT:USDT")
            await until(lambda: bot2.posts, "an order")
            assert bot2.posts[0]["side"] == "short"
            assert bot2.posts[0]["entry_tag"] == "short ensemble 5/5 conf=0.80 from=120"
            assert bot1.posts == []

    asyncio.run(scenario())
