"""A bot for measurements: it notes when an order's first bytes come, and answers at once.

As little as there can be between its socket and the clock: no HTTP server, no task of its own.
"""

import asyncio
import json
import re
import time
from collections.abc import Collection
from typing import Any, Final, Self, cast

from tests.waiting import until

PASSWORD: Final = "invented-b0t-password"  # noqa: S105 - invented
_PATH: Final = re.compile(rb"^(GET|POST) /api/v1/(\w+)")
_LOOKS: Final[dict[str, object]] = {
    # What an aggregator asks a bot that has no trades open: orders are closed as soon as they are opened.
    "status": [],
    "trades": {"trades": [], "trades_count": 0, "offset": 0, "total_trades": 0},
    "count": {"current": 0, "max": 1_000_000, "total_stake": 0.0},
    "version": {"version": "2026.9"},
    "ping": {"status": "pong"},
    "show_config": {"state": "running", "force_entry_enable": True},
}


class OrderSink:
    """One such bot. `received_ns` are the wall times of the first order of each pair."""

    def __init__(self) -> None:
        self.received_ns: dict[str, int] = {}
        self.orders = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._server is not None:
            self._server.close()

    async def arrived(self, pairs: Collection[str], timeout_s: float) -> None:
        """Wait for an order of each pair."""

        def missing() -> str:
            return f"orders of {len(set(pairs) - self.received_ns.keys())} pairs"

        await until(lambda: self.received_ns.keys() >= set(pairs), missing, timeout_s=timeout_s)

    def answer(self, request: bytes, at_ns: int) -> object:
        """What a whole request is answered."""
        found = _PATH.match(request)
        if found is None:
            return {}
        if found[1] == b"GET":
            now_s = time.time()
            health = {"last_process": "", "last_process_ts": int(now_s)}
            return _LOOKS.get(found[2].decode(), health)
        order: dict[str, Any] = json.loads(request.partition(b"\r\n\r\n")[2])
        self.received_ns.setdefault(order["pair"], at_ns)
        self.orders += 1
        return {
            "trade_id": self.orders,
            "pair": order["pair"],
            "is_open": True,
            "is_short": order["side"] == "short",
            "enter_tag": order["entry_tag"],
            "open_rate": 1.0,
            "open_timestamp": at_ns // 1_000_000,
            "orders": [],
        }


class _Connection(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self, sink: OrderSink) -> None:
        self._sink = sink
        self._transport: asyncio.Transport | None = None
        self._taken = b""
        self._at_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no children of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._taken:
            self._at_ns = time.time_ns()
        self._taken += data
        head, found, body = self._taken.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not found or len(body) < int(length or 0) or self._transport is None:
            return
        answer = json.dumps(self._sink.answer(self._taken, self._at_ns)).encode()
        self._taken = b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )
