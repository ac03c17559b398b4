"""A bot that answers as Freqtrade 2026.9 does, and keeps its trades over a kill: for runs without Freqtrade.

`python -m tests.freqtrade.scripted_freqtrade --port 8081 --trades trades.jsonl`. As Freqtrade it looks at its
state, the pair and its limits before it waits for the lock under which a trade is opened; `--order-s` is how
long that takes, and while the file `--lock` exists nobody gets it. While a file `half` is beside that, it
refuses the pairs that the strategy `Held` refuses. `/health` tells that its loop goes on.
"""

import argparse
import asyncio
import base64
import json
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from tests.freqtrade.harness_config import PASSWORD, USER

LOOP_S: Final = 1.0
"""How often its loop passes; Freqtrade's every 5 s."""
AUTHORIZATION: Final = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class ScriptedFreqtrade:
    """See the module's docstring."""

    def __init__(self, trades: Path, max_open: int, order_s: float, lock: Path | None) -> None:
        self._file = trades
        self._max_open = max_open
        self._order_s = order_s
        self._hold = lock
        self._lock = asyncio.Lock()
        self._state = "running"
        self._processed_s = time.time()
        self._trades: list[dict[str, Any]] = []
        if trades.exists():
            for line in trades.read_text().splitlines():
                self._take(json.loads(line))

    @property
    def _open(self) -> list[dict[str, Any]]:
        return [trade for trade in self._trades if trade["is_open"]]

    def app(self) -> web.Application:
        """Its REST API, and its loop."""
        app = web.Application(middlewares=[_allowed])
        for method, path, handler in (
            ("POST", "forceenter", self._enter),
            ("POST", "forceexit", self._exit),
            ("POST", "start", self._become("running", "starting trader ...")),
            ("POST", "stop", self._become("stopped", "stopping trader ...")),
            ("POST", "pause", self._become("paused", "paused, no more entries will occur")),
            ("POST", "stopentry", self._become("paused", "paused, no more entries will occur")),
            ("GET", "status", self._status),
            ("GET", "trades", self._history),
            ("GET", "count", self._count),
            ("GET", "health", self._health),
            ("GET", "show_config", self._config),
            ("GET", "version", _always({"version": "2026.9"})),
            ("GET", "ping", _always({"status": "pong"})),
        ):
            app.router.add_route(method, f"/api/v1/{path}", handler)
        app.cleanup_ctx.append(self._loop)
        return app

    async def _loop(self, _: web.Application) -> Any:
        async def turn() -> None:
            while True:
                async with self._lock:
                    self._processed_s = time.time()
                await asyncio.sleep(LOOP_S)

        task = asyncio.create_task(turn())
        yield
        task.cancel()

    def _take(self, trade: dict[str, Any]) -> None:
        """A trade as it stands now."""
        self._trades = [one for one in self._trades if one["trade_id"] != trade["trade_id"]]
        self._trades.append(trade)

    def _keep(self, trade: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(trade) + "\n")
        self._take(trade)

    async def _enter(self, request: web.Request) -> web.Response:
        try:
            order = await request.json()
            pair, side = order["pair"], order.get("side", "long")
        except (ValueError, KeyError):
            return web.json_response({"detail": [{"type": "missing"}]}, status=422)
        if self._state != "running":
            return _error("trader is not running")
        for trade in self._open:
            if trade["pair"] == pair:
                return _error(f"position for {pair} already open - id: {trade['trade_id']}")
        if len(self._open) >= self._max_open:
            return _error("Maximum number of trades is reached.")
        # Its client may go away: the order goes on, as in a thread of Freqtrade's.
        return await asyncio.shield(self._enter_locked(order, pair, side))

    async def _enter_locked(self, order: dict[str, Any], pair: str, side: str) -> web.Response:
        async with self._lock:
            while self._hold is not None and self._hold.exists():
                await asyncio.sleep(0.02)
            await asyncio.sleep(self._order_s)
            half = self._hold is not None and (self._hold.parent / "half").exists()
            if half and zlib.crc32(pair.encode()) % 2:
                return _error(f"Failed to enter position for {pair}.")
            now_ms = time.time_ns() // 1_000_000
            tag = order.get("entry_tag") or "force_entry"
            trade = {
                "trade_id": len(self._trades) + 1,
                "pair": pair,
                "is_open": True,
                "is_short": side == "short",
                "enter_tag": tag,
                "leverage": order.get("leverage") or 1.0,
                "open_rate": 1.0,
                "open_timestamp": now_ms,
                "close_timestamp": None,
                "orders": [
                    {
                        "pair": pair,
                        "ft_order_side": "sell" if side == "short" else "buy",
                        "ft_order_tag": tag,
                        "order_timestamp": now_ms,
                    }
                ],
            }
            self._keep(trade)
        return web.json_response(trade)

    async def _exit(self, request: web.Request) -> web.Response:
        wanted = str((await request.json())["tradeid"])
        async with self._lock:
            for trade in self._open:
                if wanted in ("all", str(trade["trade_id"])):
                    closed_ms = time.time_ns() // 1_000_000
                    self._keep(trade | {"is_open": False, "close_timestamp": closed_ms})
                    if wanted != "all":
                        words = f"Created exit order for trade {wanted}."
                        return web.json_response({"result": words})
        if wanted == "all":
            return web.json_response({"result": "Created exit orders for all open trades."})
        return _error("invalid argument", "forceexit")

    def _become(self, state: str, words: str) -> Any:
        async def handler(_: web.Request) -> web.Response:
            self._state = state
            return web.json_response({"status": words})

        return handler

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._open)

    async def _history(self, request: web.Request) -> web.Response:
        closed = [trade for trade in self._trades if not trade["is_open"]]
        if request.query.get("order_by_id", "true") == "false":
            closed.sort(key=lambda trade: -int(trade["close_timestamp"]))
        offset = int(request.query.get("offset", "0"))
        found = closed[offset : offset + int(request.query.get("limit", "500"))]
        return web.json_response(
            {
                "trades": found,
                "trades_count": len(found),
                "offset": offset,
                "total_trades": len(closed),
            }
        )

    async def _count(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"current": len(self._open), "max": self._max_open, "total_stake": 0.0}
        )

    async def _health(self, _: web.Request) -> web.Response:
        at = datetime.fromtimestamp(self._processed_s, UTC)
        return web.json_response(
            {"last_process": str(at), "last_process_ts": int(self._processed_s)}
        )

    async def _config(self, _: web.Request) -> web.Response:
        found = {
            "state": self._state,
            "force_entry_enable": True,
            "max_open_trades": self._max_open,
        }
        return web.json_response(found)


@web.middleware
async def _allowed(request: web.Request, handler: Any) -> Any:
    if request.path != "/api/v1/ping" and request.headers.get("Authorization") != AUTHORIZATION:
        return web.json_response({"detail": "Unauthorized"}, status=401)
    return await handler(request)


def _always(answer: dict[str, str]) -> Any:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return handler


def _error(words: str, path: str = "forceenter") -> web.Response:
    return web.json_response({"error": f"Error querying /api/v1/{path}: {words}"}, status=502)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--trades", type=Path, required=True)
    parser.add_argument("--max-open-trades", type=int, default=1_000)
    parser.add_argument("--order-s", type=float, default=0.05)
    parser.add_argument("--lock", type=Path)
    given = parser.parse_args()
    bot = ScriptedFreqtrade(given.trades, given.max_open_trades, given.order_s, given.lock)
    web.run_app(
        bot.app(), host="127.0.0.1", port=given.port, print=None, access_log=None,
        reuse_address=True, shutdown_timeout=0.1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
