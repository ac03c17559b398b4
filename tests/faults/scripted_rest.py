"""A simulated exchange behind a REST server that a test scripts: its own answers, or changed ones."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from marketfeed.simulator.server import Simulator, SimulatorOptions


class Asked(NamedTuple):
    """A request: when it came (monotonic wall seconds), to which endpoint, with what."""

    at_s: float
    endpoint: str
    query: dict[str, str]


class ScriptedRest:
    """`instead` may give an answer to a request, `changed` another list than the exchange's own."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession) -> None:
        self.sim = sim
        self.asked: list[Asked] = []
        self.instead: Callable[[Asked], web.Response | None] = lambda _: None
        self.changed: Callable[[Asked, Any], Any] = lambda _, body: body
        self.url = ""
        self._session = session

    def count(self, endpoint: str) -> int:
        """How many requests an endpoint has had."""
        return sum(one.endpoint == endpoint for one in self.asked)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request to /fapi/v1."""
        endpoint = request.path.removeprefix("/fapi/v1/")
        asked = Asked(time.monotonic(), endpoint, dict(request.query))
        self.asked.append(asked)
        if (answer := self.instead(asked)) is not None:
            return answer
        url = self.sim.rest_url + request.path
        async with self._session.get(url, params=request.query) as response:
            body = await response.json(content_type=None)
            return web.json_response(self.changed(asked, body), status=response.status)


@contextlib.asynccontextmanager
async def scripted_rest(options: SimulatorOptions) -> AsyncIterator[ScriptedRest]:
    """Serve a simulator, and one of these before it, on loopback."""
    async with Simulator(options) as sim, scripted_rest_of(sim) as exchange:
        yield exchange


@contextlib.asynccontextmanager
async def scripted_rest_of(sim: Simulator) -> AsyncIterator[ScriptedRest]:
    """Serve one more before a simulator that runs: another client's answers."""
    async with aiohttp.ClientSession() as session:
        exchange = ScriptedRest(sim, session)
        app = web.Application()
        app.router.add_get("/fapi/v1/{endpoint:.*}", exchange.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        exchange.url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield exchange
        finally:
            await runner.cleanup()
