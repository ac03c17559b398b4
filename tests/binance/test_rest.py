"""REST answers arrive in pieces, late, wrong or not at all: each is read whole or is a typed error."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import pytest
from aiohttp import web

from marketfeed.binance.rest import BinanceRest
from marketfeed.errors import ExchangeError, ExchangeRefusedError

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ask(
    handler: Handler, question: Callable[[BinanceRest], Awaitable[T]], timeout_s: float = 10.0
) -> T:
    async def run() -> T:
        app = web.Application()
        app.router.add_get("/{tail:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            async with aiohttp.ClientSession() as session:
                return await question(BinanceRest(session, f"http://{host}:{port}", timeout_s))
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_an_answer_in_many_pieces_is_read_whole() -> None:
    # As large as the real exchangeInfo, which never arrives in one piece.
    body = b"".join(b'{"number":%d}' % number for number in range(100_000))

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(body), 100_000):
            await response.write(body[start : start + 100_000])
            await asyncio.sleep(0.001)
        await response.write_eof()
        return response

    assert len(body) > 1_200_000
    assert ask(in_pieces, BinanceRest.exchange_info) == body


def test_server_time_and_volumes() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/fapi/v1/time":
            return web.json_response({"serverTime": 1_791_362_591_474, "more": 1})
        rows = [{"symbol": "BTCUSDT", "quoteVolume": "17.5", "count": 3}]
        return web.json_response(rows)

    time = ask(answer, BinanceRest.server_time)
    assert (time.time_ms, time.speed) == (1_791_362_591_474, 1.0)
    assert time.round_trip_s > 0
    assert ask(answer, BinanceRest.quote_volumes) == {"BTCUSDT": 17.5}


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[1]"])
def test_another_answer_than_documented_is_an_error(body: bytes) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    with pytest.raises(ExchangeError, match="not the documented answer"):
        ask(answer, BinanceRest.server_time)
    with pytest.raises(ExchangeError, match="not the documented answer"):
        ask(answer, BinanceRest.quote_volumes)


@pytest.mark.parametrize("status", [400, 403, 418, 429, 500])
def test_a_refusal_tells_its_status_and_retry_after(status: int) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no", headers={"Retry-After": "7"})

    with pytest.raises(ExchangeRefusedError, match=f"status {status}: no") as caught:
        ask(refuse, BinanceRest.exchange_info)
    assert caught.value.status == status
    assert caught.value.retry_after_s == 7.0


def test_an_answer_that_does_not_come_is_an_error() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    with pytest.raises(ExchangeError, match=r"no answer in 0\.1 s"):
        ask(hang, BinanceRest.exchange_info, 0.1)


def test_a_cut_answer_is_an_error() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response

    with pytest.raises(ExchangeError, match="exchangeInfo"):
        ask(cut, BinanceRest.exchange_info)
