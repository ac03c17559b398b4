"""The collector: wires exchange, feed, intake, journal and status together, and takes them down in order.

One TaskGroup holds every task, so that a dead one ends the process instead of going unnoticed. A stop
(SIGTERM) goes along the line: sockets first, then the last commit, then the journal, the status port last,
so that nothing that was received is lost.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Final

import aiohttp
import msgspec

from marketfeed import __version__, schema
from marketfeed.binance.backoff import ConnectLimiter, FeedOptions
from marketfeed.binance.budget import Budget
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.feed import Feed, OnFrame
from marketfeed.binance.generations import Generations
from marketfeed.binance.market_socket import OnState
from marketfeed.binance.rest import TIMEOUT_S, BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.rollover import Ages
from marketfeed.binance.server_time import PRECISE_S, sync_clock
from marketfeed.binance.symbols import parse_exchange_info, stream_names
from marketfeed.clock import ExchangeClock
from marketfeed.collector.metrics import Exposition
from marketfeed.collector.page import CollectorPage
from marketfeed.collector.reporter import SHIPPING_TROUBLE_S, Line, Reporter
from marketfeed.collector.status_report import StatusReport
from marketfeed.counters import Counters
from marketfeed.errors import ExchangeError, JournalError
from marketfeed.gaps.healer import Healer
from marketfeed.gaps.supervisor import Supervisor
from marketfeed.history.background import History
from marketfeed.history.funding import Settling
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.ingest.intake import Intake
from marketfeed.journal.journal import Cut, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.catalog import Catalog
from marketfeed.pairs.lifecycle import Keeper
from marketfeed.pairs.listing import RETRY_CAP_S, InstrumentSource
from marketfeed.pairs.roster import Roster
from marketfeed.pairs.selection import Listing
from marketfeed.records import Gap
from marketfeed.service.status_port import StatusServer
from marketfeed.service.systemd import Told
from marketfeed.settings.model import Settings

log = logging.getLogger(__name__)

CLOCK_SYNC_EVERY_S: Final = 300.0
CLOCK_DOUBT_EVERY_S: Final = 3.0
"""Wall seconds until the exchange's time is asked again when it could not be had, or frames contradict it."""
RETENTION_EVERY_S: Final = 600.0
REST_BUDGET: Final = "rest_budget"
HEARTBEAT: Final = "heartbeat"
"""The document that is committed before each feeding of systemd's watchdog."""
KEEP_BUDGET_EVERY_S: Final = 1.0
LOOK_AT_JOURNAL_EVERY_S: Final = 3.0
"""Wall seconds between two looks at the journal as a reader sees it; two bad ones in a row are damage."""
SILENT_AFTER_S: Final = 10.0
"""Exchange seconds without any frame after which a connection is replaced, and `/health` says so."""
SILENT_AT_LEAST_S: Final = 1.0
"""The same in wall seconds, at least: against a fast simulator 10 s would be over in a moment."""


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
        self._counters = Counters()
        self._writer = JournalWriter(settings.journal.path)
        self._looks_proven = -1
        self._turns = Turns(Budget(settings.history.weight_per_minute), self._clock)
        self._reporter = Reporter(
            settings.exchange.timeframes,
            self._clock,
            self._counters,
            self._writer,
            self._turns,
            shipping_trouble_s,
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
        exposition = Exposition(self._counters, reporter.report, reporter.mark_price_ages_s)
        page = CollectorPage(self._settings, reporter, self._counters)
        async with (
            StatusServer(status, self.report, exposition, page),
            self._writer,
            aiohttp.ClientSession() as session,
            Told(self._prove_alive, reporter.headline, stop),
        ):
            await self._restore_budget()
            rest = BinanceRest(
                session, self._settings.exchange.rest_url, self._rest_timeout_s, self._turns
            )
            source = InstrumentSource(self._settings.exchange, rest, self._clock, self._writer)
            reporter.source = source
            keeping = asyncio.create_task(self._keep_budget(), name="budget")
            looking = asyncio.create_task(self._look_beside(), name="set aside")
            try:
                listing = await source.load(stop)
                if listing is not None:
                    await self._collect(listing, source, rest, session, stop)
            finally:
                keeping.cancel()
                looking.cancel()
                await asyncio.gather(keeping, looking, return_exceptions=True)
                await self._save_budget()
        log.info("stopped frames=%d rows=%d", self._counters.frames, self._counters.rows_changed)

    async def _prove_alive(self) -> str:
        """Commit a heartbeat; name what has not turned since the last one. Raises JournalError."""
        line, proven = self._reporter.line, self._looks_proven
        if line is not None:
            self._looks_proven = line.supervisor.looks
        await self._writer.save_document(HEARTBEAT, __version__.encode(), self._clock.now_ms())
        return "supervisor" if line is not None and line.supervisor.looks == proven else ""

    async def _collect(
        self,
        listing: Listing,
        source: InstrumentSource,
        rest: BinanceRest,
        session: aiohttp.ClientSession,
        stop: asyncio.Event,
    ) -> None:
        line, catalog, history = self._make_line(listing, source, rest, session)
        intake, feed, supervisor, shipper = line.intake, line.feed, line.supervisor, line.shipper

        def on_pairs_changed() -> None:
            line.settling.set_instruments(line.roster.instruments)
            history.wake()

        keeper = Keeper(
            self._settings.exchange,
            source,
            line.roster,
            feed,
            supervisor,
            intake,
            catalog,
            self._clock,
            self._writer,
            on_pairs_changed,
        )
        await keeper.start(listing)
        self._reporter.line = line
        self._reporter.history = history
        self._reporter.stage = "running"
        async with asyncio.TaskGroup() as outer:
            # In a group of its own: when the feed dies, what it has delivered is still committed.
            committing = outer.create_task(intake.run(), name="intake")
            if shipper is not None:
                outer.create_task(shipper.run(), name="ship")
            try:
                async with asyncio.TaskGroup() as group:
                    stored = await self._writer.call(Journal.newest_candles)
                    supervisor.start(stored, self._fill_ms())
                    feeding = group.create_task(feed.run(), name="feed")
                    stamped = partial(_once_stamped, supervisor.stamped, line.silent_after_s)
                    background = [
                        group.create_task(supervisor.run(feed), name="supervisor"),
                        group.create_task(stamped(line.healer.run), name="heal"),
                        group.create_task(line.settling.run(), name="settle"),
                        group.create_task(stamped(history.run), name="history"),
                        group.create_task(keeper.run(), name="pairs"),
                        group.create_task(self._keep_clock(rest, supervisor), name="clock"),
                        group.create_task(self._keep_journal(intake, shipper), name="retention"),
                        group.create_task(self._watch_journal(intake), name="damage"),
                    ]
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

    def _fill_ms(self) -> int:
        """How far back what is absent since the last run is filled; a day at least (exchange time)."""
        days = max(1, self._settings.history.days)
        return min(days * schema.DAY_MS, self._settings.journal.retention.candles.ms)

    def _make_line(
        self,
        listing: Listing,
        source: InstrumentSource,
        rest: BinanceRest,
        session: aiohttp.ClientSession,
    ) -> tuple[Line, Catalog, History]:
        exchange = self._settings.exchange
        roster = Roster(listing.selection)
        instruments = roster.instruments
        streams = stream_names(instruments, exchange.timeframes, exchange.mark_price_every.ms)

        def on_replaced() -> None:
            catalog.note_all()
            source.on_journal_replaced()
            supervisor.on_journal_replaced()
            history.wake()

        intake = Intake(
            self._writer,
            FrameDecoder(roster.pairs),
            self._counters,
            self._clock.now_ms,
            exchange.funding_rate_every.ms,
            on_replaced,
        )
        self._writer.on_damage = intake.on_damage
        catalog = Catalog(exchange.timeframes, intake, self._clock)
        supervisor = Supervisor(
            intake,
            self._clock,
            self._counters,
            instruments,
            exchange.timeframes,
            exchange.mark_price_every.ms,
        )
        healer = Healer(
            supervisor, rest, intake, self._writer, self._clock, self._counters, roster.known
        )
        history = History(
            self._settings,
            self._writer,
            rest,
            session,
            self._clock,
            lambda: roster.instruments,
            healer.on_stored,
            lambda: supervisor.unfilled().total(),
        )
        settling = Settling(
            rest,
            intake,
            self._writer,
            self._clock,
            self._counters,
            lambda: parse_exchange_info((source.newest or listing).exchange_info),
            instruments,
            self._fill_ms() if self._settings.history.days else 0,
        )
        # A deadline of the market: every connection carries mark prices, which come every 1 or 3 s.
        silent_after_s = max(SILENT_AFTER_S / self._clock.speed, SILENT_AT_LEAST_S)
        options = FeedOptions(ws_url=exchange.ws_url, idle_timeout_s=silent_after_s)
        limiter = ConnectLimiter()

        def make_feed(
            name: str, names: Sequence[str], on_frame: OnFrame, on_state: OnState
        ) -> Feed:
            newest = msgspec.json.decode((source.newest or listing).exchange_info)
            return Feed(options, newest, names, on_frame, on_state, limiter, name)

        feed = Generations(
            make_feed,
            streams,
            on_frame=lambda frame, _: intake.on_frame(frame),
            on_connection=supervisor.on_connection,
            on_replaced=supervisor.on_replaced,
            clock=self._clock,
            timeframes=exchange.timeframes,
            counters=self._counters,
            ages=self._ages,
        )
        log.info(
            "collecting pairs=%d streams=%d timeframes=%s",
            len(instruments),
            len(streams),
            ",".join(exchange.timeframes),
        )
        shipper = None
        if self._settings.influxdb.url is not None:
            influx = InfluxWriter(self._settings.influxdb, session)
            shipper = Shipper(self._writer, influx, now_ms=self._clock.now_ms)
            log.info("shipping to target=%r", influx.target)
        line = Line(intake, feed, supervisor, healer, settling, roster, silent_after_s, shipper)
        return line, catalog, history

    # --- beside the line --------------------------------------------------------------------------

    async def _keep_clock(self, rest: BinanceRest, supervisor: Supervisor) -> None:
        asked_s = time.monotonic()
        wait_s = CLOCK_DOUBT_EVERY_S
        while True:
            await asyncio.sleep(wait_s)
            error_ms = self._clock.error_ms
            vague = error_ms is None or error_ms > PRECISE_S / 2 * 1000 * self._clock.speed
            doubted = vague or supervisor.stamps_off_s or self._reporter.clock_problem
            if not doubted and time.monotonic() - asked_s < CLOCK_SYNC_EVERY_S:
                continue
            asked_s = time.monotonic()
            try:
                await sync_clock(rest, self._clock, supervisor.contradicts)
                self._reporter.clock_problem = ""
                wait_s = CLOCK_DOUBT_EVERY_S
            except ExchangeError as error:
                if not self._reporter.clock_problem:
                    log.warning("clock not compared with the exchange's error=%r", str(error))
                self._reporter.clock_problem = str(error)
                wait_s = min(wait_s * 2, RETRY_CAP_S)

    async def _restore_budget(self) -> None:
        known = await self._writer.load_document(REST_BUDGET)
        if known is not None:
            self._turns.budget.restore(self._turns.now(), known[0])

    async def _keep_budget(self) -> None:
        """Save what was asked of the exchange: a restart must not begin a ban."""
        saved = self._turns.changes
        while True:
            await asyncio.sleep(KEEP_BUDGET_EVERY_S)
            changes = self._turns.changes
            if changes != saved and await self._save_budget():
                saved = changes

    async def _save_budget(self) -> bool:
        at = self._turns.now()
        try:
            await self._writer.save_document(REST_BUDGET, self._turns.budget.state(at), at.now_ms)
        except JournalError:
            # The intake has said so; what counts here is the next attempt.
            return False
        return True

    async def _keep_journal(self, intake: Intake, shipper: Shipper | None) -> None:
        """Delete what is older than the settings keep, and what the disk budget does not hold.

        What has not been shipped stays, whatever its age; only the disk budget goes before that.
        """
        settings = self._settings.journal
        keep_ms = {
            schema.TABLE_CANDLE: settings.retention.candles.ms,
            schema.TABLE_MARK_PRICE: settings.retention.mark_price.ms,
            schema.TABLE_FUNDING_RATE: settings.retention.funding_rate.ms,
        }
        while True:
            try:
                expired = await self._writer.call(lambda journal: journal.expired(keep_ms))
                await self._delete(expired, None if shipper is None else shipper.shipped_below())
                while cuts := await self._writer.call(
                    lambda journal: journal.over_budget(settings.max_bytes)
                ):
                    rows = await self._delete(cuts, None)
                    self._note_given_up(intake, cuts[0], rows)
                await self._writer.take_stock()
            except JournalError as error:
                log.warning("retention failed, trying again later error=%r", str(error))
            await asyncio.sleep(RETENTION_EVERY_S)

    async def _look_beside(self) -> None:
        """Know of damaged journals that were set aside, by this run or an earlier, until they are removed."""
        while True:
            await asyncio.sleep(LOOK_AT_JOURNAL_EVERY_S)
            await self._writer.look_beside()

    async def _watch_journal(self, intake: Intake) -> None:
        """Find damage that no commit meets: SQLite writes on from memory while readers fail."""
        bad_looks = 0
        while True:
            await asyncio.sleep(LOOK_AT_JOURNAL_EVERY_S)
            try:
                await self._writer.require_whole()
                bad_looks = 0
            except JournalError as error:
                bad_looks += 1
                if bad_looks == 2:
                    intake.on_damage(error)
                    bad_looks = 0

    async def _delete(self, cuts: Sequence[Cut], below_seq: int | None) -> int:
        # Call by call, so that commits of new data pass in between.
        rows = 0
        for cut in cuts:
            rows += await self._writer.call(partial(Journal.delete, cut=cut, below_seq=below_seq))
        return rows

    def _note_given_up(self, intake: Intake, cut: Cut, rows: int) -> None:
        start_ms = cut.before_ms if cut.oldest_ms is None else cut.oldest_ms
        log.error(
            "journal over its disk budget, deleted table=%s rows=%d from_ms=%d before_ms=%d",
            cut.table,
            rows,
            start_ms,
            cut.before_ms,
        )
        reason = f"{rows} rows of {cut.table} deleted: journal.max_bytes"
        kind = f"disk_budget_{cut.table}"
        intake.add(Gap(kind, None, start_ms, cut.before_ms, "unresolvable", reason))


async def _once_stamped(
    stamped: asyncio.Event, timeout_s: float, run: Callable[[], Coroutine[None, None, None]]
) -> None:
    """Run what takes candles from REST: they are closed by a time that frames can contradict first.

    Without any frame for `timeout_s` wall seconds, what the exchange tells of its time is believed.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await stamped.wait()
    await run()
