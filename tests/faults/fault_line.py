"""The real collector against the simulated exchange, in one event loop, while that has faults."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
from fault_truth import Gap, Verdict, judge, read_gaps
from prometheus_client.parser import text_string_to_metric_families

from marketfeed.binance.rest import TIMEOUT_S
from marketfeed.collector.collector import Collector
from marketfeed.collector.status_report import StatusReport
from marketfeed.gaps.supervisor import candle_due_ms
from marketfeed.schema import MINUTE_MS
from marketfeed.settings.model import Settings
from marketfeed.simulator.fault_kinds import Fault
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

START_MS: Final = 1_790_000_160_000
"""A full minute, at whose end nothing but 1m candles close: 3m a minute later, 5m three."""
WAIT_S: Final = 180.0
_LOOK_S: Final = 0.005


def settings_for(path: Path, sim: Simulator, **exchange: Any) -> Settings:
    """Settings of a collector against `sim` that takes all of its pairs."""
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "pairs": [one.pair for one in sim.market.instruments],
                "timeframes": list(sim.options.timeframes),
                **exchange,
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": {"days": 0},
        }
    )


class _StatusUrl(logging.Handler):
    """Catches the address that the collector logs."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("status listening"):
            self.url = record.getMessage().partition("status_url=")[2]


class Line:
    """A collector that runs, its exchange, and what a test asks of them. Times are exchange time."""

    def __init__(
        self, sim: Simulator, collector: Collector, path: Path, session: aiohttp.ClientSession
    ) -> None:
        self.sim = sim
        self.collector = collector
        self.path = path
        self.stall_s = 0.0
        """The longest time that the event loop was busy without a pause (wall seconds)."""
        self._session = session
        self._status = _StatusUrl()

    # --- looking ----------------------------------------------------------------------------------

    @property
    def report(self) -> StatusReport:
        """The collector's report now."""
        return self.collector.report()

    @property
    def delivering(self) -> bool:
        """Whether all is well and every pair has a mark price."""
        report = self.report
        ready = report.ready_pairs == report.pairs
        return report.healthy and ready and report.mark_price_age_s is not None

    @property
    def flowing(self) -> bool:
        """Whether everything comes again; what went missing may still be reported."""
        report = self.report
        return (
            report.mark_price_age_s is not None
            and not report.overdue
            and all(connection.state == "open" for connection in report.connections)
        )

    def reports(self, *words: str) -> bool:
        """Whether one of the reasons for being unhealthy holds all of `words`."""
        return any(all(word in reason for word in words) for reason in self.report.reasons)

    async def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> int:
        """Wait until `condition` holds; return the exchange time (ms) at which it did."""
        await until(condition, lambda: self.report.reasons, timeout_s=timeout_s)
        return self.sim.now_ms()

    async def settled(self, until_ms: int) -> None:
        """Wait until every candle that closes by `until_ms` is stored, or stored as missing."""
        due_ms = until_ms + candle_due_ms(self.sim.options.speed)
        await self.until(lambda: self.sim.now_ms() >= due_ms + 1_000 * self.margin_s())
        # A commit may be under way: what was found meanwhile is in the next one.
        commits = self.report.journal.commits
        await self.until(lambda: self.report.journal.commits >= commits + 2)

    async def healed(self, until_ms: int) -> None:
        """Wait until every candle that closes by `until_ms` is stored."""
        await self.settled(until_ms)
        await self.until(lambda: self.report.missing_candles == 0)
        commits = self.report.journal.commits
        await self.until(lambda: self.report.journal.commits >= commits + 2)

    async def health(self) -> tuple[int, list[str]]:
        """What `/health` answers: status and reasons."""
        async with self._session.get(self._status.url + "/health") as response:
            return response.status, (await response.json())["reasons"]

    async def metric(self, name: str, **labels: str) -> float | None:
        """The value of a metric, None if there is none with these labels."""
        async with self._session.get(self._status.url + "/metrics") as response:
            text = await response.text()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    async def assert_shown(self, *words: str) -> None:
        """`/health` answers 503, and one of its reasons holds all of `words`."""
        status, reasons = await self.health()
        assert status == 503
        assert any(all(word in reason for word in words) for reason in reasons), reasons

    # --- faults -----------------------------------------------------------------------------------

    async def start(self, fault: Fault) -> int:
        """Start a fault; return the exchange time (ms) at which it began."""
        await self.sim.faults.start(fault)
        return self.sim.now_ms()

    def margin_s(self) -> float:
        """What a deadline may be exceeded by: the look that finds it, and stalls of this machine."""
        speed = self.sim.options.speed
        return max(1.0, 0.05 * speed) + (2 * self.stall_s + 2 * _LOOK_S) * speed

    # --- afterwards -------------------------------------------------------------------------------

    def gaps(self) -> list[Gap]:
        """The gaps in the journal as it stands now."""
        return read_gaps(self.path)

    def judge(self, since_ms: int, until_ms: int) -> Verdict:
        """Compare the journal with what was published of candles that lie in a range of time."""
        return judge(self.path, self.sim.published(), since_ms, until_ms)

    async def feel_stalls(self) -> None:
        """Measure, until cancelled, how long the event loop is busy without a pause."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            self.stall_s = max(self.stall_s, time.monotonic() - before_s - _LOOK_S)


@contextlib.asynccontextmanager
async def _running(
    path: Path,
    before: Sequence[Fault],
    exchange: Mapping[str, Any],
    options: SimulatorOptions,
    rest_timeout_s: float,
) -> AsyncIterator[Line]:
    async with Simulator(options) as sim, aiohttp.ClientSession() as session:
        for fault in before:
            await sim.faults.start(fault)
        collector = Collector(settings_for(path, sim, **exchange), None, rest_timeout_s)
        line = Line(sim, collector, path, session)
        logger = logging.getLogger("marketfeed.service.status_port")
        logger.addHandler(line._status)
        logger.setLevel(logging.INFO)
        stop = asyncio.Event()
        running = asyncio.create_task(collector.run(stop))
        feeling = asyncio.create_task(line.feel_stalls())
        try:
            yield line
        finally:
            feeling.cancel()
            stop.set()
            await sim.faults.end()
            await running
            logger.removeHandler(line._status)


def run_line(
    path: Path,
    check: Callable[[Line], Awaitable[None]],
    *,
    before: Sequence[Fault] = (),
    exchange: Mapping[str, Any] | None = None,
    rest_timeout_s: float = TIMEOUT_S,
    **options: Any,
) -> None:
    """Run `check` beside a collector; `before` are faults that are there from the start.

    `exchange` are settings of the collector, `rest_timeout_s` its patience with REST (wall seconds),
    `options` those of the simulator. Afterwards no task may be left.
    """
    chosen = {"pairs": 8, "timeframes": ("1m",), "start_ms": START_MS + MINUTE_MS // 2, **options}

    async def run() -> None:
        at_first = asyncio.all_tasks()
        wanted = SimulatorOptions(**chosen)
        async with _running(path, before, exchange or {}, wanted, rest_timeout_s) as line:
            await check(line)
        assert asyncio.all_tasks() == at_first

    # The jitter between attempts to connect: short waits, and the same in every run.
    random.seed(158_798)
    uvloop.run(run())
