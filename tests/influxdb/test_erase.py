"""One point is taken out of a bucket of InfluxDB 2.x; the words of a refusal come without the token."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from marketfeed.influxdb.erase import EraseError, erase
from marketfeed.settings.model import InfluxSettings

TAGS = {"bot": "BOT1", "pair": "BTC/USDT:USDT", "side": "long"}
TOKEN = "invented-t0ken"  # noqa: S105 - invented


def ask(status: int, body: str = "") -> dict[str, Any]:
    asked: dict[str, Any] = {}

    async def answer(request: web.Request) -> web.Response:
        asked.update(path=request.path, query=dict(request.query), body=await request.text())
        return web.Response(status=status, text=body)

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        try:
            async with aiohttp.ClientSession() as session:
                settings = InfluxSettings.model_validate(
                    {"url": f"http://{host}:{port}", "org": "o", "bucket": "b", "token": TOKEN}
                )
                await erase(settings, session, "closed_trades", TAGS, 1_764_547_200_007)
        finally:
            await runner.cleanup()

    asyncio.run(main())
    return asked


def test_it_names_the_one_point() -> None:
    asked = ask(204)
    assert (asked["path"], asked["query"]) == ("/api/v2/delete", {"org": "o", "bucket": "b"})
    body = json.loads(asked["body"])
    assert body["predicate"] == (
        '_measurement="closed_trades" AND bot="BOT1" AND pair="BTC/USDT:USDT" AND side="long"'
    )
    assert (body["start"], body["stop"]) == (
        "2025-12-01T00:00:00.007000Z",
        "2025-12-01T00:00:00.007100Z",
    )


def test_a_refusal_is_said_without_the_token() -> None:
    with pytest.raises(EraseError, match="status 403: no right for ") as caught:
        ask(403, f"no right for {TOKEN}")
    assert TOKEN not in str(caught.value)
