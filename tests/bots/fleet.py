"""An executor bot on loopback: `/trades`, custom data and `/show_config` as Freqtrade 2026.9 answers them."""

import base64
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from marketfeed.settings.model import Settings

USERNAME = "freqtrader"
PASSWORD = "invented-fl33t-password"  # noqa: S105 - invented
START_MS = 1_764_547_200_000
"""2025-12-01 00:00 UTC."""


def trade(trade_id: int, closed_ms: int | None = None, **changes: Any) -> dict[str, Any]:
    """A closed trade as `to_json` of Freqtrade 2026.9 gives it, consistent in itself."""
    closed_ms = START_MS + trade_id * 60_000 if closed_ms is None else closed_ms
    draw = random.Random(trade_id)
    short, leverage = bool(trade_id % 2), 3.0
    open_rate = 100.0 + draw.random()
    position = draw.uniform(-0.02, 0.02)
    close_rate = open_rate * (1 - position if short else 1 + position)
    profit = position * leverage - 0.003
    row = {
        "trade_id": trade_id,
        "pair": f"{draw.choice('ABC')}COIN/USDT:USDT",
        "is_open": False,
        "is_short": short,
        "leverage": leverage,
        "enter_tag": f"{'short' if short else 'long'} ensemble 3/5 conf=0.82 from=79",
        "exit_reason": "roi",
        "open_timestamp": closed_ms - 9_540_000,
        "close_timestamp": closed_ms,
        "open_rate": open_rate,
        "close_rate": close_rate,
        "close_profit": profit,
        "close_profit_pct": round(profit * 100, 2) or None,
        "close_profit_abs": profit * 50.0,
        "fee_open_cost": 0.075,
        "fee_close_cost": 0.075,
        "funding_fees": 0.01,
        "min_rate": min(open_rate, close_rate) * 0.999,
        "max_rate": max(open_rate, close_rate) * 1.001,
    }
    return row | changes


class RecordedBot:
    """One bot; `trades` are its closed ones, in any order."""

    def __init__(self, trades: list[dict[str, Any]] | None = None) -> None:
        self.trades = trades or []
        self.custom: dict[int, Any] = {}
        self.config: dict[str, Any] = {"dry_run": True, "stoploss_on_exchange": False}
        self.total_more = 0
        """So many more it counts than it lists."""
        self.down = False
        self.knows_custom_data = True
        self.pages = 0
        self.asked_custom: list[int] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["RecordedBot"]:
        app = web.Application()
        app.router.add_get("/api/v1/trades", self._trades)
        app.router.add_get("/api/v1/trades/{id}/custom-data", self._custom)
        app.router.add_get("/api/v1/show_config", self._config)
        app.middlewares.append(self._allowed)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _allowed(self, request: web.Request, handler: Any) -> web.StreamResponse:
        pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        if self.down:
            return web.json_response({"error": "down"}, status=503)
        if request.headers.get("Authorization") != f"Basic {pair}":
            return web.json_response({"detail": "Unauthorized"}, status=401)
        found: web.StreamResponse = await handler(request)
        return found

    async def _trades(self, request: web.Request) -> web.Response:
        assert request.query["order_by_id"] == "false"
        self.pages += 1
        limit, offset = int(request.query["limit"]), int(request.query["offset"])
        closed = [row for row in self.trades if not row["is_open"]]
        closed.sort(key=lambda row: -row["close_timestamp"])
        page = closed[offset : offset + limit]
        body = {
            "trades": page,
            "trades_count": len(page),
            "offset": offset,
            "total_trades": len(closed) + self.total_more,
        }
        # Python writes NaN as it is.
        return web.Response(text=json.dumps(body), content_type="application/json")

    async def _custom(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        self.asked_custom.append(number)
        if not self.knows_custom_data or number not in self.custom:
            return web.json_response({"detail": f"No custom-data for {number}"}, status=404)
        entry = {"key": "marketfeed_exits", "type": "dict", "value": self.custom[number]}
        return web.json_response([{"trade_id": number, "custom_data": [entry]}])

    async def _config(self, _request: web.Request) -> web.Response:
        return web.json_response(self.config)


def settings_for(
    home: Path, bots: dict[str, str], influx: dict[str, Any] | None = None, **of_each: Any
) -> Settings:
    """Settings of a fleet at these addresses, with its books below `home`."""
    password = home / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    fleet = {
        name: {"url": url, "password_file": str(password)} | of_each for name, url in bots.items()
    }
    return Settings.model_validate(
        {
            "influxdb": influx or {},
            "aggregator": {"ledger": {"path": str(home / "ledger.db")}},
            "bots": {
                "books": {"path": str(home / "books.db")},
                "fleet": fleet,
                "poll": "1s",
                "status": {"port": 0},
            },
        }
    )
