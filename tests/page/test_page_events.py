"""Server-sent events over real sockets: one snapshot for all, none for nobody, and no wait for the slow."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

from marketfeed.page.events import EVERY_S, MAX_LISTENERS, Events, Snapshot
from tests.waiting import until

WAIT_S = 180.0


@contextlib.asynccontextmanager
async def serving(events: Events) -> AsyncIterator[tuple[str, web.AppRunner]]:
    app = web.Application()
    events.add_to(app)
    runner = web.AppRunner(app, shutdown_timeout=WAIT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/events", runner
    finally:
        await runner.cleanup()


async def event(answer: aiohttp.ClientResponse) -> tuple[str, str]:
    """The next event's name and data."""
    name = ""
    async with asyncio.timeout(WAIT_S):
        while True:
            line = (await answer.content.readline()).decode().rstrip("\n")
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                return name, value


def test_what_seldom_changes_is_refused_when_it_has_changed_and_one_snapshot_does_for_all() -> None:
    seldom = b"one"
    taken = 0

    def take() -> Snapshot:
        nonlocal taken
        taken += 1
        return Snapshot(seldom, b"%d" % taken)

    async def run() -> None:
        nonlocal seldom
        async with serving(Events("/events", take)) as (url, _), aiohttp.ClientSession() as session:
            await asyncio.sleep(EVERY_S / 4)
            assert taken == 0
            async with session.get(url) as first, session.get(url) as second:
                assert first.content_type == "text/event-stream"
                for answer in (first, second):
                    assert [await event(answer), await event(answer)] == [
                        ("seldom", "one"),
                        ("now", "1"),
                    ]
                assert [await event(first), await event(second)] == [("now", "2")] * 2
                seldom = b"two"
                assert [await event(first), await event(first)] == [("seldom", "two"), ("now", "3")]

    uvloop.run(run())


def test_when_all_have_gone_nothing_is_done() -> None:
    async def run() -> None:
        events = Events("/events", lambda: Snapshot(b"{}", b"{}"))
        async with serving(events) as (url, _), aiohttp.ClientSession() as session:
            async with session.get(url) as answer:
                await event(answer)
            await until(lambda: events.listeners == 0)
            taken = events.taken
            await asyncio.sleep(1.5 * EVERY_S)
            assert events.taken == taken

    uvloop.run(run())


def test_there_are_only_so_many_listeners() -> None:
    async def run() -> None:
        events = Events("/events", lambda: Snapshot(b"{}", b"{}"))
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            serving(events) as (url, _),
            aiohttp.ClientSession(connector=connector) as session,
            contextlib.AsyncExitStack() as stack,
        ):
            answers = [
                await stack.enter_async_context(session.get(url)) for _ in range(MAX_LISTENERS)
            ]
            assert {answer.status for answer in answers} == {200}
            async with session.get(url) as one_more:
                assert one_more.status == 503
            answers[0].close()
            await until(lambda: events.listeners == MAX_LISTENERS - 1)
            async with session.get(url) as again:
                assert again.status == 200

    uvloop.run(run())


def test_who_takes_no_events_is_dropped_and_the_others_go_on() -> None:
    async def run() -> None:
        events = Events("/events", lambda: Snapshot(b"{}", b"x" * 1_000_000), write_within_s=0.5)
        async with serving(events) as (url, runner), aiohttp.ClientSession() as session:
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, runner.addresses[0])
            await loop.sock_sendall(slow, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: events.listeners == 1)
            async with session.get(url, read_bufsize=1 << 21) as answer:
                await until(lambda: events.listeners == 2)
                reading = asyncio.create_task(_read_on(answer))
                await until(lambda: events.listeners == 1)
                assert not reading.done()
                reading.cancel()
            slow.close()

    uvloop.run(run())


def test_who_reads_nothing_of_small_events_is_dropped_too() -> None:
    async def run() -> None:
        events = Events("/events", lambda: Snapshot(b"{}", b"x" * 3_000), write_within_s=1.5)
        async with serving(events) as (url, runner), aiohttp.ClientSession() as session:
            silent = socket.socket()
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            silent.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(silent, runner.addresses[0])
            await loop.sock_sendall(silent, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with session.get(url) as answer:
                await until(lambda: events.listeners == 2)
                reading = asyncio.create_task(_read_on(answer))
                await until(lambda: events.listeners == 1)
                assert not reading.done()
                reading.cancel()
            silent.close()

    uvloop.run(run())


async def _read_on(answer: aiohttp.ClientResponse) -> None:
    async for _ in answer.content.iter_any():
        pass


def test_a_stop_ends_the_stream_cleanly() -> None:
    async def run() -> None:
        events = Events("/events", lambda: Snapshot(b"{}", b"{}"))
        async with serving(events) as (url, runner), aiohttp.ClientSession() as session:
            async with session.get(url) as answer:
                await event(answer)
                stopping = asyncio.create_task(runner.cleanup())
                # Without an error: a stream that was cut off would raise.
                async with asyncio.timeout(WAIT_S / 2):
                    await answer.content.read()
                await stopping
            assert events.listeners == 0

    uvloop.run(run())
