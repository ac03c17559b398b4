"""The collector's page: its files, its events, and the candles of the chart.

GET / the page · GET /events tiles and the status report, live · GET /candles?pair=&timeframe=&limit= a series
as the journal has it
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from marketfeed.collector.pair_states import PairTile
from marketfeed.collector.reporter import Reporter
from marketfeed.collector.status_report import StatusReport
from marketfeed.counters import CollectorCounters
from marketfeed.errors import JournalError
from marketfeed.journal.view import ChartRow, JournalView
from marketfeed.page.events import Events, Snapshot
from marketfeed.page.files import SHARED, Files
from marketfeed.page.reads import Reads, answer, refuse
from marketfeed.schema import TIMEFRAMES_MS
from marketfeed.settings.model import Settings

MAX_CANDLES: Final = 1_000
USUAL_CANDLES: Final = 300

FILES: Final = {
    "/": "static/collector.html",
    **SHARED,
    **{f"/page/{name}": f"static/{name}" for name in ("collector.js", "chart.js", "tiles.js")},
    "/page/vendor/lightweight-charts.js": "vendor/lightweight-charts.js",
    "/page/vendor/LICENSE": "vendor/LICENSE",
    "/page/vendor/NOTICE": "vendor/NOTICE",
}


class Seldom(msgspec.Struct, frozen=True):
    """What the page needs once, and when it has changed."""

    version: str
    pairs: tuple[str, ...]
    timeframes: tuple[str, ...]


class Now(msgspec.Struct, frozen=True):
    """What the page shows of this second. `close_lag_ms` is how long after their close candles came lately.

    It is exchange time and a mean over those that have come since the page was sent last; None before any.
    """

    tiles: list[PairTile]
    close_lag_ms: float | None
    status: StatusReport


class Candles(msgspec.Struct, frozen=True):
    """The answer of `/candles`: rows as `ChartRow`, settled funding rates as time (ms) and rate."""

    pair: str
    timeframe: str
    length_ms: int
    candles: list[ChartRow]
    forming: ChartRow | None
    settled: list[tuple[int, float]]


class CollectorPage:
    """The page of one collector, for its StatusServer."""

    def __init__(self, settings: Settings, reporter: Reporter, counters: CollectorCounters) -> None:
        self._timeframes = settings.exchange.timeframes
        self._reporter = reporter
        self._lag = _Lag(counters)
        self._files = Files(FILES)
        self.events = Events("/events", self._snapshot)
        self._charts = _Charts(settings.journal.path, self._timeframes)

    def add_to(self, app: web.Application) -> None:
        """Serve it."""
        self._files.add_to(app)
        self.events.add_to(app)
        self._charts.add_to(app)

    def _snapshot(self) -> Snapshot:
        status = self._reporter.report()
        seldom = Seldom(status.version, self._reporter.pairs(), self._timeframes)
        now = Now(self._reporter.tiles(), self._lag.mean_ms(), status)
        return Snapshot(msgspec.json.encode(seldom), msgspec.json.encode(now))


class _Lag:
    """The mean lag of the closed candles since it was asked for last; the one before while none came."""

    def __init__(self, counters: CollectorCounters) -> None:
        self._tally = counters.close_lag
        self._count = 0
        self._sum_ms = 0
        self._mean_ms: float | None = None

    def mean_ms(self) -> float | None:
        count, sum_ms = sum(self._tally.counts), self._tally.sum_ms
        if count > self._count:
            self._mean_ms = (sum_ms - self._sum_ms) / (count - self._count)
            self._count, self._sum_ms = count, sum_ms
        return self._mean_ms


class _Charts:
    """Answers `/candles` from the journal."""

    def __init__(self, path: Path, timeframes: Sequence[str]) -> None:
        self._view = JournalView(path)
        self._timeframes = timeframes
        self._reads = Reads("chart")

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/candles", self._get)
        self._reads.add_to(app)

    async def _get(self, request: web.Request) -> web.Response:
        pair, timeframe = request.query.get("pair", ""), request.query.get("timeframe", "")
        asked = request.query.get("limit", str(USUAL_CANDLES))
        if timeframe not in self._timeframes:
            return refuse(400, f"timeframe: one of {', '.join(self._timeframes)} is expected")
        limit = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0
        if not 1 <= limit <= MAX_CANDLES:
            return refuse(400, f"limit: a number from 1 to {MAX_CANDLES} is expected")
        try:
            chart = await self._reads.ask(partial(self._view.chart, pair, timeframe, limit))
        except JournalError as error:
            # The intake and the watch over the journal say so in the log.
            return refuse(503, str(error))
        if chart is None:
            return refuse(404, "pair: the journal has none of this name")
        return answer(Candles(pair, timeframe, TIMEFRAMES_MS[timeframe], *chart))
