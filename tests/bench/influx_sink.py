"""Stands for InfluxDB: answers every write with 204 after a millisecond, and counts the points."""

import asyncio
import sys
import time
from typing import Final

import msgspec
import uvloop
from aiohttp import web

from tests.bench import jobs

ANSWER_AFTER_S: Final = 0.001
STALLED_AFTER_S: Final = 3.0
"""Wall seconds without a further point after which nobody waits for more."""


class _Sink:
    def __init__(self) -> None:
        self._points = 0
        self._requests = 0
        self._last_s = time.monotonic()

    async def write(self, request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(ANSWER_AFTER_S)
        self._points += body.count(b"\n") + (not body.endswith(b"\n"))
        self._requests += 1
        self._last_s = time.monotonic()
        return web.Response(status=204)

    async def wait(self, request: web.Request) -> web.Response:
        """Answer when there are as many points as asked for, or no more of them come."""
        wanted = int(request.query["points"])
        self._last_s = time.monotonic()
        while self._points < wanted and time.monotonic() - self._last_s < STALLED_AFTER_S:
            await asyncio.sleep(0.01)
        counts = jobs.Points(self._points, self._requests)
        return web.Response(body=msgspec.json.encode(counts))


async def _serve() -> None:
    sink = _Sink()
    application = web.Application()
    application.add_routes([web.post("/api/v2/write", sink.write), web.get("/wait", sink.wait)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    jobs.send(jobs.Listening(runner.addresses[0][1]))
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve())
