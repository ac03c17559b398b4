"""The status port: `/health`, `/metrics`, `/status` and the status page of a running collector.

Bound to 127.0.0.1 unless set otherwise; who may ask is `page.guard`'s to say. `/health` answers 200 while
all is well and 503 with the reasons when not; it is never a reason to restart the service by itself.
"""

import logging
from collections.abc import Callable
from typing import Protocol, Self

import msgspec
from aiohttp import web

from marketfeed.binance.turns import RestReport
from marketfeed.heal import HealReport
from marketfeed.history import HistoryState
from marketfeed.listening import listen
from marketfeed.page.guard import HEALTH, TRUSTED, Guard
from marketfeed.settings_status import StatusSettings
from marketfeed.settle import SettleReport
from marketfeed.ship import ShipReport
from marketfeed.tokens import Token

log = logging.getLogger(__name__)


class ConnectionReport(msgspec.Struct, frozen=True):
    """One WebSocket connection. `last_frame_age_s` is None before its first frame (wall seconds)."""

    name: str
    state: str
    streams: int
    opened: int
    frames: int
    last_frame_age_s: float | None
    last_error: str


class TimeframeReport(msgspec.Struct, frozen=True):
    """How far a timeframe has come: its newest closed candle's open time (ms), and who has it."""

    timeframe: str
    newest_open_time_ms: int | None
    pairs_with_newest: int
    pairs: int
    candles: int


class JournalReport(msgspec.Struct, frozen=True):
    """State of the journal. `set_aside` names a damaged predecessor found at the start.

    `generation` is 1, and rises with every damaged file that is replaced while it runs.
    """

    path: str
    generation: int
    bytes_used: int
    next_seq: int
    pending: int
    commits: int
    commit_failures: int
    records_given_up: dict[str, int]
    dead_letters: int
    refused_lines: int
    set_aside: str | None


class StatusReport(msgspec.Struct, frozen=True):
    """All that `marketfeed status` shows. Times in ms are exchange time."""

    version: str
    healthy: bool
    reasons: list[str]
    uptime_s: float
    exchange_time_ms: int
    clock_offset_ms: float
    speed: float
    pairs: int
    refused_pairs: dict[str, str]
    streams: int
    frames: int
    frames_per_s: float
    answers: int
    """To SUBSCRIBE and the like."""
    resubscribed: int
    """How often a silent stream was asked for again."""
    rollovers: dict[str, int]
    """Connections that were rolled over, by how that ended."""
    records: dict[str, int]
    rejects: dict[str, int]
    overdue: dict[str, int]
    """How many series are silent past their deadline, by channel (`mark_price` or timeframe)."""
    overdue_series: list[str]
    """The longest silent of them, as text."""
    missing_candles: int
    """Candles that are due and have not come, since the start or of an earlier run."""
    healing: HealReport | None
    """None before it has started to collect."""
    settled: SettleReport | None
    mark_price_age_s: float | None
    """Age of the oldest of all pairs' newest mark prices; None until every pair has one."""
    timeframes: list[TimeframeReport]
    connections: list[ConnectionReport]
    journal: JournalReport
    shipping: ShipReport | None
    """None without InfluxDB: the journal is the store."""
    rest: RestReport
    history: HistoryState | None
    """None until the collector has begun to collect."""
    rss_bytes: int
    cpu_s: float


class Report(Protocol):
    """What `/status` shows, of a collector or an aggregator; `/health` is part of it."""

    @property
    def healthy(self) -> bool:
        """Whether all is well."""

    @property
    def reasons(self) -> list[str]:
        """Why it is not."""


class Metrics(Protocol):
    """What `/metrics` shows."""

    def text(self) -> bytes:
        """All metrics now."""


class Page(Protocol):
    """Something to look at on a status port: routes beside `/health`, `/status` and `/metrics`."""

    def add_to(self, app: web.Application) -> None:
        """Serve it."""


class StatusServer:
    """Serves the reports of one service on one address. An async context manager.

    `url` tells which port was taken after entering. Whoever asks has to know the settings' token, if there
    is one; without one nothing but `/health` is told on an address that others reach. Raises ListenError.
    """

    def __init__(
        self,
        settings: StatusSettings,
        report: Callable[[], Report],
        exposition: Metrics,
        page: Page | None = None,
    ) -> None:
        self._settings = settings
        self._guard = Guard(settings.host, Token(settings.token, settings.token_file))
        self._page = page
        self._report = report
        self._exposition = exposition
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=16 * 1024)
        self._guard.add_to(app)
        app.router.add_get(HEALTH, self._health)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        if self._page is not None:
            self._page.add_to(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        host, port, section = self._settings.host, self._settings.port, self._settings.section
        self.url = await listen(self._runner, host, port, section)
        log.info("status listening status_url=%s", self.url)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        report = self._report()
        told: dict[str, object] = {"healthy": report.healthy}
        if request[TRUSTED]:
            # Reasons name pairs, servers and errors: not for everybody whom a balancer lets through.
            told["reasons"] = report.reasons
        return web.Response(
            body=msgspec.json.encode(told),
            status=200 if report.healthy else 503,
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(self._report()),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._exposition.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )
