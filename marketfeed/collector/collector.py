"""The collector: brings up journal, status port and its parts, and takes them down in order.

One TaskGroup holds every task, so that a dead one ends the process instead of going unnoticed. A stop
(SIGTERM) follows the data: sockets first, then the last commit, then the journal, the status port last,
so that nothing that was received is lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final

import aiohttp

from marketfeed import __version__
from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import TIMEOUT_S, BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.rollover import Ages
from marketfeed.collector.metrics import CollectorExposition
from marketfeed.collector.page import CollectorPage
from marketfeed.collector.parts import CollectorParts
from marketfeed.collector.reasons import SHIPPING_TROUBLE_S
from marketfeed.collector.reporter import Reporter
from marketfeed.collector.status_report import StatusReport
from marketfeed.collector.upkeep import Upkeep
from marketfeed.counters import CollectorCounters
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.service.status_port import StatusServer
from marketfeed.service.systemd import SystemdNotifier, extending_start
from marketfeed.settings.model import Settings
from marketfeed.storage.database import recovery_s

log = logging.getLogger(__name__)

HEARTBEAT: Final = "heartbeat"
"""The document that is committed before each feeding of systemd's watchdog."""


class Collector:
    """One run of the collector, from settings to a clean stop.

    `rest_timeout_s` are wall seconds, and `shipping_trouble_s` after which `/health` speaks of InfluxDB;
    `ages` says how old connections may become.
    """

    def __init__(
        self,
        settings: Settings,
        clock: ExchangeClock | None = None,
        rest_timeout_s: float = TIMEOUT_S,
        ages: Ages | None = None,
        shipping_trouble_s: float = SHIPPING_TROUBLE_S,
    ) -> None:
        self._settings = settings
        self._rest_timeout_s = rest_timeout_s
        self._ages = ages
        self._clock = clock or ExchangeClock()
        self._clock.await_frames()
        self._counters = CollectorCounters()
        self._writer = JournalWriter(settings.journal.path)
        self._writer.gap_states = self._counters.gaps
        self._looks_proven = -1
        self._turns = Turns(Budget(settings.history.weight_per_minute), self._clock)
        self._upkeep = Upkeep(settings.journal, self._clock, self._writer, self._turns)
        self._reporter = Reporter(
            settings.exchange.timeframes,
            self._clock,
            self._counters,
            self._writer,
            self._turns,
            self._upkeep,
            shipping_trouble_s,
            settings.status.filling_is,
        )

    def report(self) -> StatusReport:
        """What the collector knows of itself now."""
        return self._reporter.report()

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until `stop` is set. Raises JournalError and its children, and whatever kills a task.

        The exchange being down raises nothing: it is asked again until it answers.
        """
        status = self._settings.status
        reporter = self._reporter
        exposition = CollectorExposition(
            self._counters, reporter.report, reporter.mark_price_ages_s
        )
        page = CollectorPage(self._settings, reporter, self._counters)
        async with (
            StatusServer(status, self.report, exposition, page),
            self._journal(),
            aiohttp.ClientSession() as session,
            SystemdNotifier(self._prove_alive, reporter.headline, stop),
        ):
            await self._upkeep.restore_budget()
            rest = BinanceRest(
                session, self._settings.exchange.rest_url, self._rest_timeout_s, self._turns
            )
            source = InstrumentSource(
                self._settings.exchange, rest, self._clock, self._writer, self._heard_ms
            )
            reporter.source = source
            beside = [
                asyncio.create_task(self._upkeep.keep_budget(), name="budget"),
                asyncio.create_task(self._upkeep.look_beside(), name="set aside"),
                asyncio.create_task(self._upkeep.wal.run(), name="wal"),
                asyncio.create_task(self._upkeep.folding.run(), name="folding"),
            ]
            try:
                listing = await source.load(stop)
                if listing is not None:
                    parts = CollectorParts(
                        self._settings,
                        self._clock,
                        self._counters,
                        self._writer,
                        rest,
                        session,
                        source,
                        listing,
                        self._ages,
                    )
                    await parts.pair_lifecycle.start(listing)
                    await self._collect(parts, stop)
            finally:
                for task in beside:
                    task.cancel()
                # What fails here must not hide what has ended the run.
                await asyncio.gather(*beside, return_exceptions=True)
        log.info("stopped frames=%d rows=%d", self._counters.frames, self._counters.rows_changed)

    @contextlib.asynccontextmanager
    async def _journal(self) -> AsyncIterator[None]:
        """The journal open; systemd is asked for time while a large wal is recovered."""
        async with contextlib.AsyncExitStack() as stack:
            async with extending_start(recovery_s(self._writer.path)):
                await stack.enter_async_context(self._writer)
            yield

    def _heard_ms(self, pair: str) -> int:
        parts = self._reporter.parts
        return 0 if parts is None else parts.pair_lifecycle.heard_ms(pair)

    async def _prove_alive(self) -> str:
        """Commit a heartbeat; name what has not turned since the last one. Raises JournalError."""
        parts, proven = self._reporter.parts, self._looks_proven
        if parts is not None:
            self._looks_proven = parts.supervisor.looks
        await self._writer.save_document(HEARTBEAT, __version__.encode(), self._clock.now_ms())
        return "supervisor" if parts is not None and parts.supervisor.looks == proven else ""

    async def _collect(self, parts: CollectorParts, stop: asyncio.Event) -> None:
        intake, feed, supervisor, shipper = (
            parts.intake,
            parts.feed,
            parts.supervisor,
            parts.shipper,
        )
        upkeep = self._upkeep
        self._reporter.parts = parts
        self._reporter.stage = "running"
        async with asyncio.TaskGroup() as outer:
            # In a group of its own: when the feed dies, what it has delivered is still committed.
            committing = outer.create_task(intake.run(), name="intake")
            if shipper is not None:
                outer.create_task(shipper.run(), name="ship")
            try:
                async with asyncio.TaskGroup() as group:
                    supervisor.start()
                    feeding = group.create_task(feed.run(), name="feed")
                    background = [
                        group.create_task(supervisor.run(feed), name="supervisor"),
                        group.create_task(self._once_stamped(parts.promises.run), name="promises"),
                        group.create_task(self._once_stamped(parts.healer.run), name="heal"),
                        group.create_task(parts.settled_rates.run(), name="settled rates"),
                        group.create_task(self._once_stamped(parts.history.run), name="history"),
                        group.create_task(parts.pair_lifecycle.run(), name="pairs"),
                        group.create_task(upkeep.keep_clock(parts.rest), name="clock"),
                        group.create_task(upkeep.trimming.run(shipper), name="retention"),
                        group.create_task(upkeep.watch_journal(intake), name="damage"),
                        group.create_task(upkeep.keep_stock(), name="stock"),
                        group.create_task(upkeep.check.run(), name="check"),
                    ]
                    if parts.reconciler is not None:
                        comparing = parts.reconciler.run()
                        background.append(group.create_task(comparing, name="compare"))
                    await stop.wait()
                    self._reporter.stage = "stopping"
                    log.info("stopping")
                    supervisor.stopping()
                    await feed.stop()
                    await feeding
                    for task in background:
                        task.cancel()
            finally:
                intake.end()
                await committing
                if shipper is not None:
                    shipper.end()

    async def _once_stamped(self, run: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run what takes candles from REST: nothing is known to have closed before the first frame."""
        await self._clock.stamped.wait()
        await run()
