"""A WebSocket server on loopback that does what a test scripts, and notes what it saw.

A script is a coroutine that takes a Session. `market` is the well-behaved one: it acknowledges commands
and sends one frame for every stream that is subscribed.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


class Happenings:
    """Lets a test wait until something is so, woken by whatever happens on either side."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    def note(self) -> None:
        self._happened.set()

    async def until(self, so: Callable[[], object]) -> None:
        while not so():
            self._happened.clear()
            await self._happened.wait()


class Session:
    """One connection as the server sees it."""

    def __init__(self, exchange: "ScriptedExchange", socket: ServerConnection, number: int) -> None:
        self.exchange = exchange
        self.socket = socket
        self.number = number
        self.path = socket.request.path if socket.request is not None else ""
        self.opened_s = time.monotonic()
        self.streams: set[str] = set()
        self.commands: list[tuple[str, list[str], float]] = []
        """Method, names and when it came (monotonic)."""
        self.closed = False

    async def command(self) -> tuple[str, list[str]]:
        """Take in one command and acknowledge it."""
        command = json.loads(await self.socket.recv())
        method, names = command["method"], command["params"]
        self.commands.append((method, names, time.monotonic()))
        if method == "SUBSCRIBE":
            self.streams.update(names)
        else:
            self.streams.difference_update(names)
        await self.socket.send(json.dumps({"result": None, "id": command["id"]}))
        self.exchange.happenings.note()
        return method, names


Script = Callable[[Session], Awaitable[None]]


def frame(stream: str, number: int = 0) -> str:
    """A frame that is distinguished by its number; the feed does not look further."""
    return json.dumps({"stream": stream, "data": {"n": number}}, ensure_ascii=False)


async def market(session: Session) -> None:
    while True:
        method, names = await session.command()
        if method == "SUBSCRIBE":
            for name in names:
                await session.socket.send(frame(name))


async def silent(session: Session) -> None:
    while True:
        await session.command()


class ScriptedExchange:
    """The server. `script` may be changed at any time and holds for connections that come later."""

    def __init__(self, happenings: Happenings, script: Script) -> None:
        self.happenings = happenings
        self.script = script
        self.refusing = False
        self.requests: list[str] = []
        self.sessions: list[Session] = []
        self.url = ""

    async def answer(self, socket: ServerConnection) -> None:
        session = Session(self, socket, len(self.sessions))
        self.sessions.append(session)
        self.happenings.note()
        with contextlib.suppress(ConnectionClosed):
            await self.script(session)
        await socket.close()
        session.closed = True
        self.happenings.note()

    def request(self, socket: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request.path)
        self.happenings.note()
        if self.refusing:
            return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not now")
        return None


@contextlib.asynccontextmanager
async def scripted_exchange(
    happenings: Happenings, script: Script = market, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedExchange]:
    exchange = ScriptedExchange(happenings, script)
    server: Server
    async with serve(
        exchange.answer,
        "127.0.0.1",
        0,
        process_request=exchange.request,
        ssl=tls,
        compression=None,
        max_size=None,
        ping_interval=None,
        close_timeout=0.5,
    ) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        exchange.url = f"{'ws' if tls is None else 'wss'}://{host}:{port}"
        yield exchange
