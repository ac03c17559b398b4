"""A status port's bounds over real sockets: idle, half-sent, unread; and what its log keeps of strangers."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.http import HttpProcessingError

from marketfeed.errors import ListenError
from marketfeed.service.connections import Connections, Limits, RequestLog
from marketfeed.service.descriptors import OWN, backlog, places
from marketfeed.service.listen import listen
from tests.waiting import until

WAIT_S = 60.0
LARGE = b"x" * (32 << 20)


@contextlib.asynccontextmanager
async def serving(limits: Limits) -> AsyncIterator[tuple[str, int, Connections]]:
    async def short(_: web.Request) -> web.Response:
        return web.Response(text="short")

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=LARGE)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)

    async def broken(_: web.Request) -> web.Response:
        raise RuntimeError("of our own")

    app = web.Application()
    for name, handler in (
        ("short", short),
        ("large", large),
        ("stream", stream),
        ("broken", broken),
    ):
        app.router.add_get(f"/{name}", handler)
    connections = Connections(limits)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, logger=RequestLog())
    url = await listen(runner, "127.0.0.1", 0, "status", connections=connections)
    try:
        yield url, runner.addresses[0][1], connections
    finally:
        await runner.cleanup()


async def connect(
    port: int, sent: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def cut(reader: asyncio.StreamReader) -> None:
    """Return when the server has ended this connection."""
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass


def test_of_many_idle_connections_the_oldest_give_way_and_who_asks_is_answered() -> None:
    async def run() -> None:
        async with (
            serving(Limits(8, WAIT_S, WAIT_S)) as (url, port, connections),
            aiohttp.ClientSession() as session,
        ):
            kept = []
            for number in range(100):
                kept.append(await connect(port, b"GET /sh" if number % 2 else b""))
                if number % 10 == 0:
                    async with session.get(f"{url}/short") as answer:
                        assert await answer.text() == "short"
            await until(lambda: len(connections) <= 8)
            for reader, _ in kept[:90]:
                await cut(reader)
            # Of those that never asked the newest are left.
            assert not kept[-1][0].at_eof()
            for _, writer in kept:
                writer.close()

    uvloop.run(run())


def test_who_is_being_answered_does_not_give_way_to_who_is_idle() -> None:
    async def run() -> None:
        async with (
            serving(Limits(4, WAIT_S, WAIT_S)) as (url, port, _),
            aiohttp.ClientSession() as session,
            session.get(f"{url}/stream") as answer,
        ):
            kept = [await connect(port) for _ in range(20)]
            for reader, _ in kept[:17]:
                await cut(reader)
            for _ in range(3):
                async with asyncio.timeout(WAIT_S):
                    assert await answer.content.readexactly(1) == b"."
            for _, writer in kept:
                writer.close()

    uvloop.run(run())


def test_when_all_are_being_answered_the_oldest_gives_way() -> None:
    async def run() -> None:
        async with (
            serving(Limits(2, WAIT_S, WAIT_S)) as (url, port, _),
            aiohttp.ClientSession() as session,
        ):
            head = b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"
            first, second = await connect(port, head), await connect(port, head)
            for reader, _ in (first, second):
                await reader.readuntil(b"\r\n\r\n")
            async with session.get(f"{url}/short") as answer:
                assert await answer.text() == "short"
            await cut(first[0])
            for _, writer in (first, second):
                writer.close()

    uvloop.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET /short HTTP/1.1\r\nHost: "])
def test_a_request_that_does_not_come_whole_is_cut(sent: bytes) -> None:
    async def run() -> None:
        async with serving(Limits(64, 0.2, WAIT_S)) as (_, port, connections):
            reader, writer = await connect(port, sent)
            await cut(reader)
            await until(lambda: len(connections) == 0)
            writer.close()

    uvloop.run(run())


def test_a_connection_is_kept_between_requests_and_the_next_one_has_its_own_time() -> None:
    async def run() -> None:
        async with serving(Limits(64, 1.0, WAIT_S)) as (_, port, _):
            reader, writer = await connect(port)
            for _ in range(3):
                writer.write(b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n")
                async with asyncio.timeout(WAIT_S):
                    assert (await reader.readuntil(b"short")).startswith(b"HTTP/1.1 200")
                # Longer than a head may take, with nothing on its way.
                await asyncio.sleep(1.2)
            writer.write(b"GET /sh")
            await cut(reader)
            writer.close()

    uvloop.run(run())


def test_who_does_not_read_its_answer_is_cut() -> None:
    async def run() -> None:
        async with serving(Limits(64, WAIT_S, 0.3)) as (_, port, connections):
            reader, writer = await connect(port, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.transport.pause_reading()
            await until(lambda: len(connections) == 0)
            writer.transport.resume_reading()
            await cut(reader)
            writer.close()
        # Who reads gets all of it. (The bound would cut an honest client of a busy machine.)
        async with (
            serving(Limits()) as (url, _, _),
            aiohttp.ClientSession() as session,
            session.get(f"{url}/large") as answer,
        ):
            assert len(await answer.read()) == len(LARGE)

    uvloop.run(run())


def test_malformed_requests_are_a_line_a_minute_and_no_header_is_in_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with serving(Limits()) as (_, port, _):
            for _ in range(50):
                reader, writer = await connect(
                    port,
                    b"GET /short HTTP/1.1\r\nHost: a\r\nAuthorization Basic c2VjcmV0\r\n\r\n",
                )
                assert (await reader.read(65_536)).startswith(b"HTTP/1.0 400")
                writer.close()

    uvloop.run(run())
    lines = [one.getMessage() for one in caplog.records if "malformed" in one.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("a malformed request was refused peer=127.0.0.1 error=")
    assert "c2VjcmV0" not in caplog.text
    assert "Authorization" not in caplog.text


def test_an_error_of_our_own_keeps_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with serving(Limits()) as (url, _, _), aiohttp.ClientSession() as session:
            for _ in range(5):
                async with session.get(f"{url}/broken") as answer:
                    assert answer.status == 500

    uvloop.run(run())
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count("of our own") >= 1


def test_the_log_counts_what_it_left_out_and_bounds_its_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    requests = RequestLog(now_s=lambda: now_s)

    def bad(peer: str) -> None:
        requests.exception("Error from %s", peer, exc_info=HttpProcessingError(message="x"))

    for _ in range(7):
        bad("192.0.2.1")
    now_s = 60.0
    bad("192.0.2.1")
    assert [one.getMessage().rpartition("=")[2] for one in caplog.records] == ["0", "6"]
    caplog.clear()
    now_s = 200.0
    for number in range(1_000):
        bad(f"198.51.100.{number}")
    assert len(caplog.records) <= 257
    assert "peer=others" in caplog.records[-1].getMessage()


def test_a_taken_port_is_named() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            runner = web.AppRunner(web.Application())
            with pytest.raises(ListenError, match=r"status\.port"):
                await listen(
                    runner, "127.0.0.1", taken.getsockname()[1], "status", connections=Connections()
                )

    uvloop.run(run())


@contextlib.asynccontextmanager
async def bare(limits: Limits) -> AsyncIterator[tuple[str, int, Connections]]:
    """A server without an application. A request to /known is one that has shown its password."""
    connections = Connections(limits)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection = connections.begin(request)
        try:
            return web.Response(text="short")
        finally:
            connections.end(connection, known=request.path == "/known")

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    url = await listen(runner, "127.0.0.1", 0, "aggregator", connections=connections)
    try:
        yield url, runner.addresses[0][1], connections
    finally:
        await runner.cleanup()


async def ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(port)
    await ask_again(reader, writer, path)
    return reader, writer


async def ask_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    writer.write(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readuntil(b"short")).startswith(b"HTTP/1.1 200")


def test_of_a_bare_server_who_has_shown_a_password_gives_way_last() -> None:
    async def run() -> None:
        async with bare(Limits(4, WAIT_S, WAIT_S)) as (_, port, connections):
            first = await ask(port, "known")
            lapsed = await ask(port, "known")
            await ask_again(*lapsed, "stranger")
            strangers = [await ask(port, "stranger") for _ in range(20)]
            await cut(lapsed[0])
            await ask_again(*first, "known")
            assert len(connections) <= 4
            # Of those alone the one that has asked nothing for longest.
            others = [await ask(port, "known") for _ in range(4)]
            await cut(first[0])
            await ask_again(*others[-1], "known")
            for _, writer in (first, lapsed, *strangers, *others):
                writer.close()
            await until(lambda: len(connections) == 0)
            assert not connections._of_address

    uvloop.run(run())


def test_strangers_of_one_address_have_a_share_of_the_places() -> None:
    async def run() -> None:
        async with bare(Limits(8, WAIT_S, WAIT_S, of_address=3)) as (_, port, connections):
            known = [await ask(port, "known") for _ in range(2)]
            strangers = [await connect(port) for _ in range(20)]
            for reader, _ in strangers[:-3]:
                await cut(reader)
            await until(lambda: len(connections) == 5)
            for one in known:
                await ask_again(*one, "known")
            for _, writer in (*known, *strangers):
                writer.close()
            await until(lambda: len(connections) == 0)
            assert not connections._of_address

    uvloop.run(run())


@pytest.mark.parametrize("descriptors", [16, 120, 256, 1_024, 8_192])
def test_a_port_leaves_descriptors_to_its_process(descriptors: int) -> None:
    taken = places(512, descriptors) + 2 * backlog(descriptors)
    assert places(512, descriptors) >= descriptors // 4
    assert taken <= max(descriptors - OWN, descriptors // 2)
    assert places(512, 1_024) == 512
    assert backlog(descriptors) <= 128
