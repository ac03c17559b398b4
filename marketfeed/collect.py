"""The collector: wires exchange, feed, intake, journal and status together, and takes them down in order.

One TaskGroup holds every task, so that a dead one ends the process instead of going unnoticed. A stop
(SIGTERM) goes along the line: sockets first, then the last commit, then the journal, the status port last,
so that nothing that was received is lost.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import aiohttp
import msgspec

from marketfeed import __version__, schema
from marketfeed.binance.connect import ConnectLimiter, FeedOptions
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.feed import Feed
from marketfeed.binance.liveness import Overdue
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import (
    ExchangeInfo,
    Instrument,
    Selection,
    parse_exchange_info,
    select_all,
    select_named,
    select_top,
    stream_names,
)
from marketfeed.clock import ExchangeClock
from marketfeed.config import Settings, TopPairs
from marketfeed.errors import ExchangeError, JournalError
from marketfeed.intake import Intake
from marketfeed.journal import Journal
from marketfeed.metrics import Counters, Exposition, Gauges, cpu_s, rss_bytes
from marketfeed.records import CatalogEntry, Gap
from marketfeed.status import (
    ConnectionReport,
    JournalReport,
    StatusReport,
    StatusServer,
    TimeframeReport,
)
from marketfeed.supervise import Supervisor

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOCK_SYNC_EVERY_S: Final = 300.0
RETENTION_EVERY_S: Final = 600.0
FETCH_RETRY_FIRST_S: Final = 1.0
FETCH_RETRY_CAP_S: Final = 60.0
SILENT_AFTER_S: Final = 10.0
"""Exchange seconds without any frame after which a connection is replaced, and `/health` says so."""
SILENT_AT_LEAST_S: Final = 1.0
"""The same in wall seconds, at least: against a fast simulator 10 s would be over in a moment."""
NAMED_SERIES: Final = 20
_EXCHANGE_INFO: Final = "exchange_info"
_CHOSEN_PAIRS: Final = "chosen_pairs"


class Collector:
    """One run of the collector, from settings to a clean stop."""

    def __init__(self, settings: Settings, clock: ExchangeClock | None = None) -> None:
        self._settings = settings
        self._clock = clock or ExchangeClock()
        self._counters = Counters()
        self._started_s = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal_counts = {"bytes": 0, "dead_letters": 0}
        self._journal_set_aside: str | None = None
        self._documents: dict[str, bytes] = {}
        self._selection = Selection((), {})
        self._streams: Sequence[str] = ()
        self._intake: Intake | None = None
        self._feed: Feed | None = None
        self._supervisor: Supervisor | None = None
        self._stage = "starting"
        self._rate_frames = 0
        self._rate_s = self._started_s
        self._frames_per_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until `stop` is set. Raises JournalError and its children, and whatever kills a task.

        The exchange being down raises nothing: it is asked again until it answers.
        """
        journal = await self._in_writer(self._open_journal)
        try:
            status = self._settings.status
            exposition = Exposition(self._counters, self.gauges)
            async with (
                StatusServer(status.host, status.port, self.report, exposition),
                aiohttp.ClientSession() as session,
            ):
                await self._collect(journal, BinanceRest(session, self._rest_url()), stop)
        finally:
            intake = self._intake
            await self._in_writer((journal if intake is None else intake.journal).close)
            self._writer.shutdown()
        log.info("stopped frames=%d rows=%d", self._counters.frames, self._counters.rows_changed)

    async def _collect(self, journal: Journal, rest: BinanceRest, stop: asyncio.Event) -> None:
        info = await self._first_exchange_info(journal, rest, stop)
        if info is None:
            return
        selection = await self._select(journal, rest, info, stop)
        if selection is None:
            return
        self._selection = selection
        exchange = self._settings.exchange
        self._streams = stream_names(
            selection.instruments, exchange.timeframes, exchange.mark_price_every.ms
        )
        intake = Intake(
            journal,
            self._writer,
            FrameDecoder({i.symbol: i.pair for i in selection.instruments}),
            self._counters,
            self._clock.now_ms,
            exchange.funding_rate_every.ms,
            lambda: self._reopen_journal(intake),
        )
        self._intake = intake
        self._note_catalog(intake, selection.instruments)
        self._supervisor = supervisor = Supervisor(
            intake,
            self._clock,
            self._counters,
            selection.instruments,
            exchange.timeframes,
            exchange.mark_price_every.ms,
        )
        self._feed = feed = Feed(
            FeedOptions(ws_url=exchange.ws_url, idle_timeout_s=self._idle_timeout_s()),
            msgspec.json.decode(info.body),
            self._streams,
            on_frame=lambda frame, _: intake.on_frame(frame),
            on_state=supervisor.on_connection,
            limiter=ConnectLimiter(),
        )
        log.info(
            "collecting pairs=%d streams=%d timeframes=%s",
            len(selection.instruments),
            len(self._streams),
            ",".join(exchange.timeframes),
        )
        self._stage = "running"
        async with asyncio.TaskGroup() as outer:
            # In a group of its own: when the feed dies, what it has delivered is still committed.
            committing = outer.create_task(intake.run(), name="intake")
            try:
                async with asyncio.TaskGroup() as group:
                    supervisor.start(await self._in_writer(journal.newest_candles))
                    feeding = group.create_task(feed.run(), name="feed")
                    background = [
                        group.create_task(supervisor.run(feed), name="supervisor"),
                        group.create_task(self._keep_clock(rest), name="clock"),
                        group.create_task(self._keep_journal(intake), name="retention"),
                    ]
                    await stop.wait()
                    self._stage = "stopping"
                    log.info("stopping")
                    await feed.stop()
                    await feeding
                    for task in background:
                        task.cancel()
            finally:
                intake.end()
                await committing

    # --- start ------------------------------------------------------------------------------------

    def _open_journal(self) -> Journal:
        journal = Journal.open(self._settings.journal.path)
        if journal.set_aside is not None:
            self._journal_set_aside = str(journal.set_aside)
        self._journal_counts = journal.counts()
        return journal

    async def _reopen_journal(self, intake: Intake) -> Journal:
        """Start a fresh journal after damage, with the documents and the catalog that it must hold."""
        await self._in_writer(intake.journal.close)
        journal = await self._in_writer(self._open_journal)
        for name, body in self._documents.items():
            await self._save(journal, name, body)
        self._note_catalog(intake, self._selection.instruments)
        return journal

    def _idle_timeout_s(self) -> float:
        # A deadline of the market: every connection carries mark prices, which come every 1 or 3 s.
        return max(SILENT_AFTER_S / self._clock.speed, SILENT_AT_LEAST_S)

    def _rest_url(self) -> str:
        return self._settings.exchange.rest_url

    async def _first_exchange_info(
        self, journal: Journal, rest: BinanceRest, stop: asyncio.Event
    ) -> "_LoadedInfo | None":
        """Fetch exchangeInfo and the time, or take the last known copy; None when stopped meanwhile."""
        delay_s = FETCH_RETRY_FIRST_S
        while not stop.is_set():
            try:
                await self._sync_clock(rest)
                body = await rest.exchange_info()
                parsed = parse_exchange_info(body)
                await self._save(journal, _EXCHANGE_INFO, body)
                return _LoadedInfo(parsed, body)
            except ExchangeError as error:
                known = await self._in_writer(lambda: journal.load_document(_EXCHANGE_INFO))
                if known is not None:
                    body, saved_ms = known
                    self._documents[_EXCHANGE_INFO] = body
                    log.warning(
                        "exchangeInfo not to be had, using the last known copy error=%r age_h=%.1f",
                        str(error),
                        (self._clock.now_ms() - saved_ms) / schema.HOUR_MS,
                    )
                    return _LoadedInfo(parse_exchange_info(body), body)
                log.warning(
                    "exchangeInfo not to be had, asking again error=%r in_s=%.0f",
                    str(error),
                    delay_s,
                )
            await _sleep_unless(stop, delay_s)
            delay_s = min(delay_s * 2, FETCH_RETRY_CAP_S)
        return None

    async def _select(
        self, journal: Journal, rest: BinanceRest, loaded: "_LoadedInfo", stop: asyncio.Event
    ) -> Selection | None:
        exchange = self._settings.exchange
        wanted = exchange.pairs
        if wanted == "all":
            return self._warned(select_all(loaded.info, exchange.quote))
        if not isinstance(wanted, TopPairs):
            return self._warned(select_named(loaded.info, wanted))
        # The top pairs are chosen once and kept: a set that changed with each start would tear holes.
        name = f"{_CHOSEN_PAIRS}:{exchange.quote}:{wanted.count}"
        known = await self._in_writer(lambda: journal.load_document(name))
        if known is not None:
            self._documents[name] = known[0]
            names = msgspec.json.decode(known[0], type=list[str])
            return self._warned(select_named(loaded.info, names))
        delay_s = FETCH_RETRY_FIRST_S
        while not stop.is_set():
            try:
                volumes = await rest.quote_volumes()
            except ExchangeError as error:
                log.warning("24 h volumes not to be had, asking again error=%r", str(error))
                await _sleep_unless(stop, delay_s)
                delay_s = min(delay_s * 2, FETCH_RETRY_CAP_S)
                continue
            selection = select_top(loaded.info, exchange.quote, wanted.count, volumes)
            body = msgspec.json.encode([i.pair for i in selection.instruments])
            await self._save(journal, name, body)
            return self._warned(selection)
        return None

    async def _save(self, journal: Journal, name: str, body: bytes) -> None:
        self._documents[name] = body
        await self._in_writer(lambda: journal.save_document(name, body, self._clock.now_ms()))

    def _warned(self, selection: Selection) -> Selection:
        for pair, reason in selection.refused.items():
            log.warning("configured pair is not traded, left out pair=%s reason=%r", pair, reason)
        if not selection.instruments:
            log.error("none of the configured pairs is traded: nothing to collect")
        return selection

    def _note_catalog(self, intake: Intake, instruments: Sequence[Instrument]) -> None:
        now_ms = self._clock.now_ms()
        for instrument in instruments:
            intake.add(
                CatalogEntry(
                    pair=instrument.pair,
                    symbol=instrument.symbol,
                    timeframes=tuple(self._settings.exchange.timeframes),
                    since_ms=now_ms,
                    listed_ms=instrument.listed_ms or None,
                    ended_ms=instrument.ended_ms,
                    changed_ms=now_ms,
                )
            )

    # --- while running ----------------------------------------------------------------------------

    async def _keep_clock(self, rest: BinanceRest) -> None:
        while True:
            await asyncio.sleep(CLOCK_SYNC_EVERY_S)
            try:
                await self._sync_clock(rest)
            except ExchangeError as error:
                log.warning("clock not compared with the exchange's error=%r", str(error))

    async def _sync_clock(self, rest: BinanceRest) -> None:
        answer = await rest.server_time()
        self._clock.set_server_time(answer.time_ms, answer.round_trip_s, answer.speed)

    async def _keep_journal(self, intake: Intake) -> None:
        settings = self._settings.journal
        keep_ms = {
            schema.TABLE_CANDLE: settings.retention.candles.ms,
            schema.TABLE_MARK_PRICE: settings.retention.mark_price.ms,
            schema.TABLE_FUNDING_RATE: settings.retention.funding_rate.ms,
        }

        def turn() -> dict[str, int]:
            intake.journal.retain(keep_ms)
            gone = intake.journal.shrink_to(settings.max_bytes)
            self._journal_counts = intake.journal.counts()
            return gone

        while True:
            try:
                gone = await self._in_writer(turn)
            except JournalError as error:
                log.warning("retention failed, trying again later error=%r", str(error))
            else:
                now_ms = self._clock.now_ms()
                for table, rows in gone.items():
                    log.error("journal over its disk budget, deleted table=%s rows=%d", table, rows)
                    reason = f"{rows} rows of {table} deleted: journal.max_bytes"
                    intake.add(Gap("disk_budget", None, now_ms, now_ms, False, reason))
            await asyncio.sleep(RETENTION_EVERY_S)

    # --- reports ----------------------------------------------------------------------------------

    def report(self) -> StatusReport:
        """What the collector knows of itself now."""
        counters, intake = self._counters, self._intake
        reasons = self._reasons()
        return StatusReport(
            version=__version__,
            healthy=not reasons,
            reasons=reasons,
            uptime_s=time.monotonic() - self._started_s,
            exchange_time_ms=self._clock.now_ms(),
            clock_offset_ms=self._clock.offset_ms(),
            speed=self._clock.speed,
            pairs=len(self._selection.instruments),
            refused_pairs=dict(self._selection.refused),
            streams=len(self._streams),
            frames=counters.frames,
            frames_per_s=self._rate(),
            records=dict(counters.records),
            rejects=dict(counters.rejects),
            overdue=dict(Counter(item.series.channel for item in self._overdue())),
            overdue_series=[_silent(item) for item in self._overdue()[:NAMED_SERIES]],
            missing_candles=self._missing_candles(),
            mark_price_age_s=self._oldest_mark_age_s(),
            timeframes=[self._timeframe(name) for name in self._settings.exchange.timeframes],
            connections=self._connections(),
            journal=JournalReport(
                path=str(self._settings.journal.path),
                bytes_used=self._journal_counts["bytes"],
                next_seq=0 if intake is None else intake.journal.next_seq,
                pending=0 if intake is None else intake.pending,
                commits=counters.commits,
                commit_failures=counters.commit_failures,
                records_given_up=dict(counters.records_given_up),
                dead_letters=self._journal_counts["dead_letters"],
                set_aside=self._journal_set_aside,
            ),
            rss_bytes=rss_bytes(),
            cpu_s=cpu_s(),
        )

    def gauges(self) -> Gauges:
        """What a scrape of the metrics reads."""
        now_ms = self._clock.now_ms()
        intake = self._intake
        marks = {} if intake is None else intake.freshness.mark_event_ms
        newest = {} if intake is None else intake.freshness.newest_open_ms
        oldest_close_ms: dict[str, int] = {}
        for (_, timeframe), open_ms in newest.items():
            close_ms = open_ms + schema.TIMEFRAMES_MS[timeframe]
            oldest_close_ms[timeframe] = min(close_ms, oldest_close_ms.get(timeframe, close_ms))
        return Gauges(
            connections=dict(Counter(c.state for c in self._connections())),
            streams=len(self._streams),
            pairs=len(self._selection.instruments),
            pending=0 if intake is None else intake.pending,
            journal_bytes=self._journal_counts["bytes"],
            dead_letters=self._journal_counts["dead_letters"],
            clock_offset_ms=self._clock.offset_ms(),
            overdue=dict(Counter(item.series.channel for item in self._overdue())),
            missing_candles=self._missing_candles(),
            mark_price_age_s={p: (now_ms - at_ms) / 1000 for p, at_ms in marks.items()},
            newest_close_age_s={t: (now_ms - ms) / 1000 for t, ms in oldest_close_ms.items()},
        )

    def _reasons(self) -> list[str]:
        reasons = []
        if self._stage != "running":
            reasons.append(f"the collector is {self._stage}")
        intake, feed = self._intake, self._feed
        if intake is not None and intake.failing_for_s is not None:
            reasons.append(f"the journal cannot be written for {intake.failing_for_s:.0f} s")
        if feed is None:
            return reasons
        now_s = time.monotonic()
        for connection in feed.connections():
            if connection.state != "open":
                reasons.append(f"{connection.name} is {connection.state} {connection.last_error}")
            elif now_s - (connection.last_frame_s or connection.since_s) > self._idle_timeout_s():
                reasons.append(f"{connection.name} is silent")
        overdue = self._overdue()
        if overdue:
            names = ", ".join(_silent(item) for item in overdue[:3])
            reasons.append(f"{len(overdue)} series are silent: {names}{', …' * (len(overdue) > 3)}")
        if not self._streams:
            reasons.append("none of the configured pairs is traded")
        return reasons

    def _overdue(self) -> list[Overdue]:
        return [] if self._supervisor is None else self._supervisor.overdue

    def _missing_candles(self) -> int:
        return 0 if self._supervisor is None else self._supervisor.missing_candles

    def _rate(self) -> float:
        now_s = time.monotonic()
        if now_s - self._rate_s >= 1.0:
            frames = self._counters.frames
            self._frames_per_s = (frames - self._rate_frames) / (now_s - self._rate_s)
            self._rate_frames, self._rate_s = frames, now_s
        return self._frames_per_s

    def _oldest_mark_age_s(self) -> float | None:
        if self._intake is None:
            return None
        marks = self._intake.freshness.mark_event_ms
        if not marks or len(marks) < len(self._selection.instruments):
            return None
        return max(0.0, (self._clock.now_ms() - min(marks.values())) / 1000)

    def _timeframe(self, name: str) -> TimeframeReport:
        pairs = len(self._selection.instruments)
        if self._intake is None:
            return TimeframeReport(name, None, 0, pairs, 0)
        fresh = self._intake.freshness
        opens = [at_ms for (_, frame), at_ms in fresh.newest_open_ms.items() if frame == name]
        newest = max(opens, default=None)
        count = sum(at_ms == newest for at_ms in opens)
        return TimeframeReport(name, newest, count, pairs, fresh.candles.get(name, 0))

    def _connections(self) -> list[ConnectionReport]:
        if self._feed is None:
            return []
        now_s = time.monotonic()
        return [
            ConnectionReport(
                name=c.name,
                state=c.state,
                streams=len(c.streams),
                opened=c.opened,
                frames=c.frames,
                last_frame_age_s=None if c.last_frame_s is None else now_s - c.last_frame_s,
                last_error=c.last_error,
            )
            for c in self._feed.connections()
        ]

    async def _in_writer(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, call)


def _silent(item: Overdue) -> str:
    return f"{item.series.pair} {item.series.channel} for {item.late_s:.0f} s"


class _LoadedInfo(msgspec.Struct, frozen=True):
    info: ExchangeInfo
    body: bytes


async def _sleep_unless(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
