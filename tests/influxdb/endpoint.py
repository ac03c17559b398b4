"""A scripted InfluxDB on loopback, and a shipper at work on a journal towards it."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from filled import QUICK

from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.writer import JournalWriter
from marketfeed.settings.model import InfluxSettings

Answer = Callable[[list[str]], tuple[int, bytes, dict[str, str]]]


def stored(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
    return 204, b"", {}


class Server:
    """A write endpoint whose answers are scripted; keeps what it acknowledged, by series and time.

    `before` is awaited before a request is looked at, `after` called when one has been stored.
    """

    def __init__(self) -> None:
        self.answer: Answer = stored
        self.points: dict[tuple[str, str], str] = {}
        self.requests: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.before: Callable[[web.Request], Awaitable[None]] | None = None
        self.after: Callable[[], None] | None = None
        self.url = ""

    async def write(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.before is not None:
            await self.before(request)
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        lines = body.decode().split("\n")
        self.requests.append(lines)
        self.headers.append({**request.headers, "path": request.path_qs})
        status, text, headers = self.answer(lines)
        if status == 204:
            for line in lines:
                series, fields, time = line.rsplit(" ", 2)
                self.points[series, time] = fields
            if self.after is not None:
                self.after()
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 500, body=text, headers=headers)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/api/v2/write", server.write)
    app.router.add_post("/write", server.write)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


Scenario = Callable[[Server, JournalWriter, Shipper], Awaitable[None]]


def run(
    path: Path,
    scenario: Scenario,
    pace: Pace = QUICK,
    now_ms: Callable[[], int] | None = None,
    **influx: object,
) -> Server:
    """Run a shipper beside a scenario; it is ended when the scenario is over."""

    async def main() -> Server:
        async with serving() as server, aiohttp.ClientSession() as session:
            options = InfluxSettings.model_validate(
                {"url": server.url, "org": "fleet", "token": "canary-token"} | influx
            )
            async with JournalWriter(path) as writer:
                shipper = Shipper(
                    writer,
                    InfluxWriter(options, session),
                    pace,
                    now_ms=now_ms,
                    coverage=lambda: writer.coverage,
                )
                task = asyncio.create_task(shipper.run())
                await scenario(server, writer, shipper)
                shipper.end()
                await task
            return server

    return uvloop.run(main())
