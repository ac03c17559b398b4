"""The aggregator's page: its files, its events, and what the ledger holds last.

GET / the page · GET /events its report, live · GET /recent the last signals, decisions and forwards
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from marketfeed import __version__
from marketfeed.aggregator.events import recent
from marketfeed.errors import JournalError
from marketfeed.page.events import Events, Snapshot
from marketfeed.page.files import SHARED, Files
from marketfeed.page.reads import Reads, answer, refuse

SHOWN: Final = 50
"""Signals, and decisions."""
FILES: Final = {
    "/": "static/aggregator.html",
    "/page/aggregator.js": "static/aggregator.js",
    **SHARED,
}


class AggregatorPage:
    """The page of one aggregator: `report` is what `/status` shows, `next_seq` rises with every change."""

    def __init__(
        self, report: Callable[[], msgspec.Struct], ledger: Path, next_seq: Callable[[], int]
    ) -> None:
        self._report = report
        self._ledger = ledger
        self._next_seq = next_seq
        self._files = Files(FILES)
        self._events = Events("/events", self._snapshot)
        self._reads = Reads("recent")

    def add_to(self, app: web.Application) -> None:
        """Serve it."""
        self._files.add_to(app)
        self._events.add_to(app)
        self._reads.add_to(app)
        app.router.add_get("/recent", self._recent)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            msgspec.json.encode({"version": __version__}),
            msgspec.json.encode({"next_seq": self._next_seq(), "status": self._report()}),
        )

    async def _recent(self, _: web.Request) -> web.Response:
        try:
            found = await self._reads.ask(partial(recent, self._ledger, SHOWN))
        except JournalError as error:
            return refuse(503, str(error))
        return answer(found._asdict())
