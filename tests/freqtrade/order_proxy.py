"""A proxy between the aggregator and a bot that writes every order down, and fails as gateways do.

It takes one request per connection. `faults` draws what happens to an order; without any it passes all on.
While it is `closed`, connections are refused, as they are by a host on which no bot runs.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from tests.freqtrade.judge import Posted
from tests.ports import held_port

HTML: Final = "<html><head><title>{0}</title></head><body><h1>{0}</h1>nginx</body></html>"
_PAGES: Final[dict[str, tuple[int, str, str]]] = {
    # What gateways answer by themselves: status, content type, body.
    "500": (500, "text/plain", "Internal Server Error"),
    "502 page": (502, "text/html", HTML.format("502 Bad Gateway")),
    "502 JSON": (502, "application/json", '{"error": "upstream connect error or disconnect"}'),
    "502 JSON message": (502, "application/json", '{"error": {"message": "no healthy upstream"}}'),
    "503 JSON": (503, "application/json", '{"error": "Service Unavailable", "code": 503}'),
    "504 page": (504, "text/html", HTML.format("504 Gateway Time-out")),
    "301": (301, "text/html", HTML.format("301 Moved Permanently")),
    "302": (302, "text/html", HTML.format("302 Found")),
    "307": (307, "text/html", HTML.format("307 Temporary Redirect")),
    "403 page": (403, "text/html", HTML.format("403 Forbidden")),
    "404 page": (404, "text/html", HTML.format("404 Not Found")),
    "200 page": (200, "text/html", HTML.format("Welcome to nginx!")),
    "200 status": (200, "application/json", '{"status": "ok"}'),
    "200 list": (200, "application/json", "[]"),
}
Where = Literal["before", "after"]


class Fault(msgspec.Struct, frozen=True):
    """What happens to an order: waits, whether the bot gets it, and what is answered instead of its answer.

    `answer` "" passes the bot's own on; "reset", "cut" and "half" end the connection; else a page of a
    gateway. `wait_s` passes before the bot gets it, `late_s` before the answer.
    """

    name: str = ""
    reaches: bool = True
    answer: str = ""
    wait_s: float = 0.0
    late_s: float = 0.0


PASS: Final = Fault()


def draw(random_: random.Random, timeout_s: float) -> Fault:
    """Draw a fault: most of them let the bot have the order, and keep its answer."""
    kind = random_.choice(
        ("reset", "cut", "half", "late", "slow", "too late", "page", "page", "page")
    )
    reaches = random_.random() < 0.5
    where = "after" if reaches else "before"
    if kind in ("reset", "cut"):
        return Fault(f"{kind} {where}", reaches, kind)
    if kind == "half":
        return Fault("half an answer", answer="half")
    if kind == "late":
        return Fault("order late", wait_s=random_.uniform(0.5, 6.0))
    if kind == "slow":
        return Fault("answer late", late_s=random_.uniform(0.5, 6.0))
    if kind == "too late":
        beyond_s = timeout_s + random_.uniform(0.5, 4.0)
        if reaches:
            return Fault("answer too late", late_s=beyond_s)
        return Fault("order too late", wait_s=beyond_s)
    page = random_.choice(sorted(_PAGES))
    return Fault(f"{page} {where}", reaches, page)


class OrderProxy:
    """One such proxy. `posts` are the orders, as the sender got them answered; `requests` counts the rest."""

    def __init__(
        self,
        bot_url: str,
        faults: Callable[[dict[str, Any]], Fault] = lambda _: PASS,
        *,
        look_fault: Callable[[], str] = lambda: "",
        on_order: Callable[[], object] = lambda: None,
    ) -> None:
        self.posts: list[Posted] = []
        self.open_posts = 0
        """Orders that have arrived and are not answered yet."""
        self.requests: Counter[str] = Counter()
        self.faults = faults
        self.look_fault = look_fault
        self.on_order = on_order
        self._port = held_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._bot = urlsplit(bot_url)
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def open(self) -> None:
        """Listen, again or for the first time."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self._port, limit=1 << 20
            )

    def close(self) -> None:
        """Refuse connections from now on; those that stand go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._handle(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError, asyncio.LimitOverrunError):
            _reset(writer)
        finally:
            self._running.discard(task)
            await _closed(writer)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        at_ms = time.time_ns() // 1_000_000
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        body = await reader.readexactly(length)
        request = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) + body
        if method != "POST":
            self.requests[path.partition("?")[0].rpartition("/")[2]] += 1
            fault = self.look_fault()
            told = Fault("", answer=fault) if fault else PASS
            await self._answer(reader, writer, told, request)
            return
        order = json.loads(body)
        with self._order(order, at_ms) as note:
            self.on_order()
            fault = self.faults(order)
            note["fault"], note["reached"] = fault.name, fault.reaches
            note["status"], note["words"] = await self._answer(reader, writer, fault, request)

    @contextlib.contextmanager
    def _order(self, order: dict[str, Any], at_ms: int) -> Iterator[dict[str, Any]]:
        """Write an order down when it is over, whatever became of it."""
        note: dict[str, Any] = {"fault": "", "reached": False, "status": 0, "words": ""}
        self.open_posts += 1
        try:
            yield note
        finally:
            self.open_posts -= 1
            self.posts.append(
                Posted(
                    pair=str(order.get("pair")),
                    side=str(order.get("side", "long")),
                    tag=str(order.get("entry_tag", "")),
                    at_ms=at_ms,
                    done_ms=time.time_ns() // 1_000_000,
                    **note,
                )
            )

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault,
        request: bytes,
    ) -> tuple[int, str]:
        """Answer as the fault has it; returns the status and words that were sent."""
        await asyncio.sleep(fault.wait_s)
        answer = b""
        if fault.reaches:
            try:
                answer = await self._of_bot(request)
            except (OSError, EOFError):
                # As nginx answers for a bot that is gone, or was killed at it.
                answer = _page("502 page")
        await asyncio.sleep(fault.late_s)
        if fault.answer == "reset":
            _reset(writer)
            return 0, ""
        if fault.answer == "cut":
            return 0, ""
        if fault.answer == "half":
            writer.write(answer[: len(answer) - max(len(answer) // 10, 2)])
            await writer.drain()
            return 0, ""
        if fault.answer:
            answer = _page(fault.answer)
        # Its sender has gone away meanwhile: what nobody reads is no answer.
        if reader.at_eof() or writer.transport.is_closing():
            return 0, ""
        writer.write(answer)
        await writer.drain()
        return _status(answer), words_of(answer)

    async def _of_bot(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._bot.hostname, self._bot.port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            await _closed(writer)
        if not answer:
            raise EOFError
        return answer


def _page(name: str) -> bytes:
    status, kind, body = _PAGES[name]
    more = "Location: https://elsewhere.invalid/\r\n" if 300 <= status < 400 else ""
    return (
        f"HTTP/1.1 {status} {name}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset instead of an end."""
    with contextlib.suppress(OSError, AttributeError):
        found: socket.socket = writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def words_of(answer: bytes) -> str:
    """The words of an answer to an order, by the field they stand in: an error's as they are."""
    body = answer.partition(b"\r\n\r\n")[2]
    try:
        data = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")[:200]
    if isinstance(data, dict):
        if "trade_id" in data:
            return f"trade {data['trade_id']}"
        if isinstance(data.get("error"), str):
            return str(data["error"])
        for name in ("detail", "status"):
            if name in data:
                return f"{name}: {data[name]}"
    return str(data)[:200]
