"""The proxy that fails: what the sender gets of each fault, what the bot gets, and what is written down."""

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.freqtrade.order_proxy import PASS, Fault, OrderProxy, draw
from tests.freqtrade.scripted_freqtrade import AUTHORIZATION, ScriptedFreqtrade
from tests.ports import held_port
from tests.waiting import until

ORDER = {"pair": "BTC/USDT:USDT", "side": "long", "entry_tag": "a tag"}


async def _ordered(
    path: Path, fault: Fault, timeout_s: float = 30.0
) -> tuple[str, int, OrderProxy]:
    """Send an order through a proxy with this fault: what came of it, and the bot's trades."""
    bot = ScriptedFreqtrade(path / "trades", 10, 0.0, None)
    runner = web.AppRunner(bot.app())
    await runner.setup()
    port = held_port()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    headers = {"Authorization": AUTHORIZATION}
    async with (
        OrderProxy(f"http://127.0.0.1:{port}", lambda _: fault) as proxy,
        aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
    ):
        try:
            async with session.post(
                f"{proxy.url}/api/v1/forceenter", json=ORDER, allow_redirects=False
            ) as answer:
                got = f"{answer.status} {(await answer.text())[:12]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            got = type(error).__name__
        await until(lambda: proxy.posts)
        async with session.get(f"{proxy.url}/api/v1/count") as answer:
            trades: dict[str, Any] = await answer.json()
    await runner.cleanup()
    return got, trades["current"], proxy


@pytest.mark.parametrize(
    ("fault", "got", "trades", "status"),
    [
        (PASS, '200 {"trade_id":', 1, 200),
        (Fault("reset", reaches=False, answer="reset"), "ClientOSError", 0, 0),
        (Fault("cut", answer="cut"), "ServerDisconnectedError", 1, 0),
        (Fault("half", answer="half"), "ClientPayloadError", 1, 0),
        (Fault("late", wait_s=0.1, late_s=0.1), '200 {"trade_id":', 1, 200),
        (Fault("502 page", reaches=False, answer="502 page"), "502 <html><head>", 0, 502),
        (Fault("502 JSON", answer="502 JSON"), '502 {"error": "u', 1, 502),
        (Fault("302", answer="302"), "302 <html><head>", 1, 302),
        (Fault("200 status", reaches=False, answer="200 status"), '200 {"status": "', 0, 200),
    ],
    ids=lambda value: value.name or "none" if isinstance(value, Fault) else None,
)
def test_a_fault_is_what_it_says(
    tmp_path: Path, fault: Fault, got: str, trades: int, status: int
) -> None:
    found, opened, proxy = asyncio.run(_ordered(tmp_path, fault))
    assert (found, opened) == (got, trades)
    (post,) = proxy.posts
    assert (post.pair, post.side, post.tag) == tuple(ORDER.values())
    assert (post.fault, post.reached, post.status) == (fault.name, fault.reaches, status)
    assert not post.opened_nothing


def test_an_answer_that_nobody_waits_for_is_none(tmp_path: Path) -> None:
    found, opened, proxy = asyncio.run(_ordered(tmp_path, Fault("slow", late_s=0.6), 0.2))
    assert (found, opened) == ("TimeoutError", 1)
    assert proxy.posts[0].status == 0


def test_draws_are_repeated_by_their_seed_and_are_of_all_kinds() -> None:
    def drawn() -> list[Fault]:
        random_ = random.Random(7)
        return [draw(random_, 20.0) for _ in range(600)]

    faults = drawn()
    assert faults == drawn()
    assert len({fault.name for fault in faults}) > 30
    assert 0.5 < sum(fault.reaches for fault in faults) / len(faults) < 0.85
