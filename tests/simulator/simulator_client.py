"""A WebSocket client for the simulator, and a way to run a check beside one."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

from marketfeed.simulator.server import Simulator, SimulatorOptions

DATA = Path(__file__).parents[1] / "data"
CONTROL = (DATA / "control_frames.jsonl").read_text("utf-8").splitlines()
START_MS = 1_790_000_040_000
WAIT_S = 180.0
PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT", "币安人生/USDT:USDT", "SIM001/USDT:USDT")
SYMBOLS = ("btcusdt", "ethusdt", "币安人生usdt", "sim001usdt")


class Client:
    """One WebSocket to the simulator."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def text(self) -> str:
        message = await self.socket.receive(WAIT_S)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        text: str = message.data
        return text

    async def ask(self, method: str, *names: str, request_id: int = 1) -> None:
        request = {"method": method, "params": names, "id": request_id}
        await self.socket.send_str(json.dumps(request))

    async def subscribe(self, *names: str) -> None:
        await self.ask("SUBSCRIBE", *names)
        assert await self.text() == CONTROL[0]

    async def assert_silent(self, *names: str) -> None:
        """Nothing has been sent before the answer to this."""
        await self.ask("LIST_SUBSCRIPTIONS", request_id=2)
        assert json.loads(await self.text()) == {"result": list(names), "id": 2}

    async def closed_with(self) -> int | None:
        """Read on until the server closes."""
        while True:
            message = await self.socket.receive(WAIT_S)
            if message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}:
                return self.socket.close_code


Connect: TypeAlias = Callable[..., Awaitable[Client]]


def with_sockets(check: Callable[[Simulator, Connect], Awaitable[None]], **options: Any) -> None:
    """Run `check` beside a fast simulator; afterwards no task may be left."""

    async def run() -> None:
        chosen = {"pairs": PAIRS, "start_ms": START_MS, "timeframes": ("1m", "3m"), **options}
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            simulator = await stack.enter_async_context(Simulator(SimulatorOptions(**chosen)))

            async def connect(path: str = "/market/stream", **more: Any) -> Client:
                socket = await session.ws_connect(simulator.ws_url + path, **more)
                stack.push_async_callback(socket.close)
                return Client(socket)

            await check(simulator, connect)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
