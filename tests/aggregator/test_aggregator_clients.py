"""The unchanged freqtrade-client (PyPI) against the aggregator, as a feeder's script uses it."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bot import CountingBot
from freqtrade_client import FtRestClient
from running import FLEET, PAIR, running, settings

from marketfeed import __version__
from marketfeed.aggregator.auth import hash_password
from tests.waiting import until


def test_freqtrade_client_drives_it(tmp_path: Path) -> None:
    accounts = [
        {"username": FLEET[0], "hash": hash_password(FLEET[1])},
        {"username": "f79", "hash": hash_password("invented-79"), "feeder": "79"},
    ]

    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(
                settings(
                    tmp_path,
                    {"long": bot.url},
                    window_s=600,
                    min_agreements=3,
                    accounts=accounts,
                    missing_confidence="0.8",
                )
            ) as aggregator,
        ):
            url = aggregator.aggregator.url

            def talk() -> None:
                fleet = FtRestClient(url, *FLEET)
                assert fleet.ping() == {"status": "pong"}
                assert fleet.status() == []
                assert fleet.version() == {"version": __version__}
                assert fleet.count()["current"] == 0
                assert fleet.whitelist()["length"] == 0
                assert fleet.health()["healthy"] is True
                for feeder, confidence in (("73", 0.85), ("74", 0.72), ("75b", 0.9), ("108", 0.7)):
                    answer = fleet.forceenter(
                        PAIR,
                        "long",
                        order_type="market",
                        stake_amount=50.0,
                        leverage=3.0,
                        enter_tag=f"long from {feeder} conf={confidence}",
                    )
                    assert f"feeder {feeder}" in answer["status"]
                refused = fleet.forceenter(PAIR, "short", enter_tag="from 73 conf=0.9")
                assert refused["detail"][0]["msg"] == "feeder 73 votes long only"
                # forcebuy says neither who nor how sure: an account of one feeder, a stated default.
                one = FtRestClient(url, "f79", "invented-79")
                assert "5/5 votes" in one.forcebuy(PAIR)["status"]
                wrong = FtRestClient(url, "f79", "invented")
                assert wrong.status() == {"detail": "Unauthorized"}

            await asyncio.to_thread(talk)
            await until(lambda: bot.posts, "an order")
            assert bot.posts == [
                {
                    "pair": PAIR,
                    "side": "long",
                    "ordertype": "market",
                    "entry_tag": "long ensemble 5/5 conf=0.79 from=75b",
                    "leverage": 3.0,
                }
            ]

    asyncio.run(scenario())


def test_what_is_posted_to_a_bot_is_what_freqtrade_client_posts(tmp_path: Path) -> None:
    """Equal orders have equal fields and headers: the client is the contract."""

    async def received(send: Callable[[str], Any]) -> tuple[dict[str, Any], str]:
        """Body and Authorization of one POST, taken from the raw request."""
        got: asyncio.Future[tuple[dict[str, Any], str]] = asyncio.get_running_loop().create_future()
        async with CountingBot("status_only") as bot:
            task = asyncio.create_task(send(bot.url))
            await until(lambda: bot.posts, "a post")
            got.set_result((bot.posts[0], bot.authorizations[0]))
            await task
        return await got

    async def ours(url: str) -> None:
        given = settings(tmp_path, {"long": url}, min_agreements=1, window_s=0.2)
        async with running(given) as aggregator:
            await aggregator.post("73", 0.9)
            await until(lambda: aggregator.aggregator.report().forwards, "an answer")

    async def theirs(url: str) -> None:
        pair = base64.b64decode(basic_of_ours.split()[1]).decode().split(":")
        client = FtRestClient(url, *pair)
        tag = "long ensemble 1/5 conf=0.90 from=73"
        await asyncio.to_thread(
            lambda: client.forceenter(
                PAIR, "long", order_type="market", leverage=3.0, enter_tag=tag
            )
        )

    async def scenario() -> None:
        nonlocal basic_of_ours
        our_body, basic_of_ours = await received(ours)
        their_body, their_basic = await received(theirs)
        assert (our_body, basic_of_ours) == (their_body, their_basic)

    basic_of_ours = ""
    asyncio.run(scenario())
