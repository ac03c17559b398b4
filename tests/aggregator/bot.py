"""A Freqtrade bot's REST API on loopback that counts: answers, statuses and trades as Freqtrade 2026.9's.

In a test: `async with CountingBot() as bot`, then set `bot.behaviour`. As a process, for runs in which the
aggregator is killed: `python -m tests.aggregator.bot --port 0 --log posts.jsonl`; prints its url and appends
every order that it receives to the file, before it does anything else with it.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Self

from aiohttp import web

from tests.ports import held_port

USERNAME = "freqtrader"
PASSWORD = "invented-b0t-password"  # noqa: S105 - invented

Behaviour = Literal[
    "ok",  # opens a trade and answers 200
    "status_only",  # opens none, answers 200 {"status": …} in Freqtrade's words
    "slow",  # opens a trade, answers after `slow_s`
    "already_open",  # 502 in Freqtrade's words
    "full",  # 502 in Freqtrade's words, whatever it has
    "paused",  # 502 in Freqtrade's words
    "unknown_words",  # opens a trade, 502 with an error that Freqtrade has no words for
    "error_500",  # opens a trade, 500 in Freqtrade's words: the wallets could not be read after it
    "error_500_empty",  # opens none, 500 in Freqtrade's words
    "bad_gateway",  # opens none, 502 as a proxy's
    "gateway_timeout",  # opens a trade, 504 as a proxy's
    "error_json",  # opens none, 503 with an "error" in JSON, as no Freqtrade answers
    "redirect",  # 302
    "unauthorized",  # 401 to everything
    "hang",  # opens a trade and never answers; looks are answered
    "hang_empty",  # opens none and never answers; looks are answered
    "freeze",  # opens a trade and answers nothing at all any more
    "cut",  # opens a trade and cuts the connection
    "cut_empty",  # opens none and cuts the connection
    "cut_adding",  # enlarges the newest trade and cuts the connection
    "cut_body",  # opens a trade, cuts in the middle of the answer
    "garbage",  # opens a trade, 200 with something that is no JSON
    "web_page",  # opens none, 200 with a page
    "nested",  # opens a trade, 200 with JSON that is nested too deeply; so to looks
    "mixed",  # one of `MIX` for each order
]
MIX: dict[Behaviour, int] = {
    "ok": 12,
    "status_only": 1,
    "slow": 10,
    "already_open": 1,
    "error_500": 1,
    "error_500_empty": 1,
    "bad_gateway": 1,
    "gateway_timeout": 1,
    "hang": 1,
    "hang_empty": 1,
    "cut": 1,
    "cut_empty": 1,
    "cut_body": 1,
}
"""How often each is drawn. One that opens none and answers otherwise holds up all orders until it is lost."""
OPEN_AT_MOST = 200
"""Older trades are closed, as a bot's are sooner or later."""


class CountingBot:
    """One bot. `posts` are the bodies of all orders that reached it, `trades` what they opened."""

    def __init__(
        self,
        behaviour: Behaviour = "ok",
        *,
        port: int = 0,
        password: str = PASSWORD,
        slow_s: float = 1.0,
        look_s: float = 0.0,
        log: Path | None = None,
        emit: Callable[[bytes], object] = len,
        asked: bool = False,
    ) -> None:
        """`asked`: no question of an aggregator's start comes, or it is not answered well either."""
        self.asked = asked
        """Until an aggregator's start has asked what it has opened, it behaves well towards questions."""
        self.behaviour: Behaviour = behaviour
        self.slow_s = slow_s
        self.look_s = look_s
        self.posts: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.received_ms: list[int] = []
        self.trades: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.most_at_once = 0
        self.url = ""
        self.clock_ahead_ms = 0
        self.lock = asyncio.Event()
        """Cleared, an order waits in here before it opens its trade, as in Freqtrade's `_exit_lock`."""
        self.lock.set()
        self.ignores_offset = False
        self.ignores_order = False
        self.refuses: str | None = None
        """With which words of Freqtrade's it refuses every order."""
        self.opens_short: bool | None = None
        """What its trades are, whatever it is ordered; None: what is ordered."""
        self.denied: dict[str, int] = {}
        """Address -> the HTTP status that it is answered, as by a proxy that lets only some through."""
        self.config: dict[str, Any] = {}
        """What its `/show_config` says, over what it would."""
        self.whitelist: list[str] | None = None
        """None: it does not know the question."""
        self.hung: set[str] = set()
        """Addresses that are not answered."""
        self.max_open_trades = -1
        """Negative: any number."""
        self.turn_s = 0.01
        """How long a turn of its loop takes; 0: it stands still."""
        self._turned_s = 0.0
        self._at_once = 0
        self._password = password
        self._port = port or held_port()
        self._log = log
        self._emit = emit
        self._runner: web.AppRunner | None = None
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        for method, path, handler in (
            ("POST", "forceenter", self._forceenter),
            ("GET", "status", self._status),
            ("GET", "trades", self._trades),
            ("GET", "version", self._version),
            ("GET", "count", self._count),
            ("GET", "health", self._health),
            ("GET", "show_config", self._show_config),
            ("GET", "whitelist", self._whitelist),
        ):
            app.router.add_route(method, f"/api/v1/{path}", self._counted(path, handler))
        app.router.add_get("/api/v1/ping", self._ping)
        self._released.clear()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Go away: connections are refused from now on. `start` comes back at the same port."""
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def close_trades(self) -> None:
        for trade in self.trades:
            self._close(trade)

    def _close(self, trade: dict[str, Any]) -> None:
        if trade["is_open"]:
            trade["is_open"] = False
            trade["close_timestamp"] = self._now_ms()

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.clock_ahead_ms

    def add(
        self, pair: str, tag: str, ago_s: float = 0.0, *, closed: bool = False
    ) -> dict[str, Any]:
        """A trade that is here already, opened `ago_s` ago."""
        trade = self._open({"pair": pair, "side": tag.split(maxsplit=1)[0], "entry_tag": tag})
        trade["open_timestamp"] -= round(ago_s * 1000)
        if closed:
            self._close(trade)
        return trade

    def _counted(
        self, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def counted(request: web.Request) -> web.StreamResponse:
            self.requests[path] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                response = await self._allowed(request, handler)
            finally:
                self._at_once -= 1
            now_s = time.time() + self.clock_ahead_ms / 1000
            response.headers["Date"] = time.strftime(
                "%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now_s)
            )
            return response

        return counted

    async def _allowed(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        pair = base64.b64encode(f"{USERNAME}:{self._password}".encode()).decode()
        given = request.headers.get("Authorization")
        begun = self.asked
        if (self.behaviour == "unauthorized" and begun) or given != f"Basic {pair}":
            return web.json_response({"detail": "Unauthorized"}, status=401)
        if self.behaviour == "freeze" and begun and request.method == "GET":
            await self._released.wait()
        if (name := request.path.rpartition("/")[2]) in self.hung:
            await self._released.wait()
        if (status := self.denied.get(name)) is not None:
            return web.json_response({"detail": "denied"}, status=status)
        response = await handler(request)
        if "offset" in request.query:
            self.asked = True
        if self.behaviour == "nested" and begun:
            return web.Response(body=b"[" * 5_000, content_type="application/json")
        return response

    async def _forceenter(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        now_ms = time.time_ns() // 1_000_000
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps({"received_ms": now_ms, **body}) + "\n")
        self.authorizations.append(request.headers["Authorization"])
        self.posts.append(body)
        self.received_ms.append(now_ms)
        self._emit(b"o")
        behaviour = self.behaviour
        if self.refuses is not None:
            return _error(self.refuses)
        if behaviour == "mixed":
            (behaviour,) = random.choices(list(MIX), list(MIX.values()))
        match behaviour:
            case "already_open":
                return _error(f"position for {body['pair']} already open - id: 1")
            case "full":
                return _error("Maximum number of trades is reached.")
            case "paused":
                return _error("trader is not running")
            case "status_only":
                words = f"Error entering {body['side']} trade for pair {body['pair']}."
                return web.json_response({"status": words})
            case "error_500_empty":
                return web.Response(status=500, text="Internal Server Error")
            case "bad_gateway":
                return web.Response(status=502, text="<html>502 Bad Gateway</html>")
            case "error_json":
                return web.json_response({"error": "upstream"}, status=503)
            case "redirect":
                return web.Response(status=302, headers={"Location": "https://other.example/"})
            case "web_page":
                return web.Response(text="<html>Welcome to nginx!</html>")
            case "cut_empty":
                return _cut(request)
            case "cut_adding":
                trade = self.trades[-1]
                trade["orders"].append(self._order(trade, body["entry_tag"]))
                return _cut(request)
            case "hang_empty":
                await self._released.wait()
                return _cut(request)
        # Whoever waits for its answer may be gone by then.
        await self.lock.wait()
        if 0 <= self.max_open_trades <= len(self._open_trades()):
            return _error("Maximum number of trades is reached.")
        trade = self._open(body)
        match behaviour:
            case "unknown_words":
                return _error("Could not place order")
            case "slow":
                await asyncio.sleep(self.slow_s)
            case "hang" | "freeze":
                await self._released.wait()
            case "cut":
                return _cut(request)
            case "cut_body":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"trade_id": 1,')
                return _cut(request)
            case "garbage":
                return web.Response(body=b"\xff\x00 no JSON\n at all")
            case "error_500":
                return web.Response(status=500, text="Internal Server Error")
            case "gateway_timeout":
                return web.Response(status=504, text="<html>504 Gateway Time-out</html>")
        return web.json_response(trade)

    def _open(self, body: dict[str, Any]) -> dict[str, Any]:
        trade = {
            "trade_id": len(self.trades) + 1,
            "pair": body["pair"],
            "is_open": True,
            "is_short": body.get("side") == "short"
            if self.opens_short is None
            else self.opens_short,
            "enter_tag": body.get("entry_tag", "force_entry"),
            "leverage": body.get("leverage"),
            "open_rate": 1.0,
            "open_timestamp": self._now_ms(),
            "close_timestamp": None,
            "orders": [],
        }
        trade["orders"].append(self._order(trade, trade["enter_tag"]))
        self.trades.append(trade)
        if len(self.trades) > OPEN_AT_MOST:
            self._close(self.trades[-OPEN_AT_MOST - 1])
        return trade

    def _order(self, trade: dict[str, Any], tag: str) -> dict[str, Any]:
        """An entry of now, as an exchange times it."""
        return {
            "pair": trade["pair"],
            "ft_order_side": "sell" if trade["is_short"] else "buy",
            "ft_order_tag": tag,
            "order_timestamp": time.time_ns() // 1_000_000,
        }

    async def _status(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.look_s)
        return web.json_response(self._open_trades())

    def _open_trades(self) -> list[dict[str, Any]]:
        return [trade for trade in self.trades if trade["is_open"]]

    async def _count(self, request: web.Request) -> web.StreamResponse:
        current = len(self._open_trades())
        most = current if self.behaviour == "full" else self.max_open_trades
        return web.json_response({"current": current, "max": most, "total_stake": 0.0})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if self.turn_s:
            self._turned_s = time.time() // self.turn_s * self.turn_s
        # As `datetime` writes it, to the microsecond.
        return web.json_response({"last_process": f"{self._turned_s:.6f}"})

    async def _show_config(self, request: web.Request) -> web.StreamResponse:
        state = "paused" if self.behaviour == "paused" else "running"
        found = {
            "state": state,
            "force_entry_enable": self.refuses != "Force_entry not enabled.",
            "max_open_trades": self.max_open_trades,
            "stake_currency": "USDT",
            "trading_mode": "futures",
        }
        return web.json_response(found | self.config)

    async def _whitelist(self, request: web.Request) -> web.StreamResponse:
        if self.whitelist is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        found = {"whitelist": self.whitelist, "length": len(self.whitelist), "method": []}
        return web.json_response(found)

    async def _trades(self, request: web.Request) -> web.StreamResponse:
        # The first of its order are given: by id, the oldest by default, else by when they closed.
        closed = [trade for trade in self.trades if not trade["is_open"]]
        if request.query.get("order_by_id", "true") == "false" and not self.ignores_order:
            closed.sort(
                key=lambda trade: (trade["close_timestamp"], trade["trade_id"]), reverse=True
            )
        offset = 0 if self.ignores_offset else int(request.query.get("offset", "0"))
        found = closed[offset:][: int(request.query.get("limit", "500"))]
        return web.json_response(
            {
                "trades": found,
                "trades_count": len(found),
                "offset": offset,
                "total_trades": len(closed),
            }
        )

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "2026.9"})

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "pong"})


def _error(words: str) -> web.Response:
    text = f"Error querying /api/v1/forceenter: {words}"
    return web.json_response({"error": text}, status=502)


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _serve(arguments: argparse.Namespace) -> None:
    bot = CountingBot(arguments.behaviour, port=arguments.port, log=arguments.log)
    async with bot:
        sys.stderr.write(f"{bot.url}\n")
        sys.stderr.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", default="ok")
    parser.add_argument("--log", type=Path, default=None)
    asyncio.run(_serve(parser.parse_args()))
