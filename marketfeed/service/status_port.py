"""The status port: `/health`, `/metrics`, `/status` and the status page of a running service.

Bound to 127.0.0.1 unless set otherwise; who may ask is decided by `guard`. `/health` answers 200 while
all is well and 503 with the reasons when not; it is never a reason to restart the service by itself.
"""

import logging
from collections.abc import Callable
from typing import Protocol, Self

import msgspec
from aiohttp import web

from marketfeed.service.connections import (
    DEFAULT_LIMITS,
    KEEP_ALIVE_S,
    Connections,
    Limits,
    RequestLog,
)
from marketfeed.service.guard import HEALTH, TRUSTED, Guard
from marketfeed.service.listen import listen
from marketfeed.settings.secrets import SecretSource
from marketfeed.settings.status import StatusSettings

log = logging.getLogger(__name__)


class Report(Protocol):
    """What `/status` shows, of a collector or an aggregator; `/health` is part of it."""

    @property
    def healthy(self) -> bool:
        """Whether all is well."""

    @property
    def reasons(self) -> list[str]:
        """Why it is not."""

    def health(self) -> dict[str, object]:
        """What `/health` says to everybody: `state` and `healthy` at least."""


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

    `url` holds the port that was taken, after entering. Whoever asks has to know the settings' token, if
    there is one; without one only `/health` is answered where others reach it. Raises ListenError.
    """

    def __init__(
        self,
        settings: StatusSettings,
        report: Callable[[], Report],
        exposition: Metrics,
        page: Page | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._settings = settings
        self._guard = Guard(settings.host, SecretSource(settings.token, settings.token_file))
        self._page = page
        self._connections = Connections(limits)
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
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=KEEP_ALIVE_S,
            logger=RequestLog(),
        )
        host, port, section = self._settings.host, self._settings.port, self._settings.section
        self.url = await listen(self._runner, host, port, section, connections=self._connections)
        log.info("status listening status_url=%s", self.url)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        report = self._report()
        answer = report.health()
        if request[TRUSTED]:
            # Reasons name pairs, servers and errors: not for everybody whom a balancer lets through.
            answer["reasons"] = report.reasons
            # Only while there are any.
            if warnings := getattr(report, "warnings", []):
                answer["warnings"] = warnings
        return web.Response(
            body=msgspec.json.encode(answer),
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
