"""The parts of a collector, put together: from the exchange's frames to what readers have."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp

from marketfeed import schema
from marketfeed.binance.archive import Archive
from marketfeed.binance.backoff import ConnectLimiter, FeedOptions
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.feed import Feed, OnFrame
from marketfeed.binance.generations import Generations
from marketfeed.binance.market_socket import OnState
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rollover import Ages
from marketfeed.binance.symbols import stream_names
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.healer import Healer
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import Promises
from marketfeed.gaps.supervisor import Supervisor, candle_due_ms
from marketfeed.history.archive_rates import ArchiveRates
from marketfeed.history.background import History, kept_ms, uses_archive
from marketfeed.history.funding import SettledRates
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.both_sides import BothSides
from marketfeed.influxdb.bucket_numbers import BucketNumbers
from marketfeed.influxdb.expiry import Expiry
from marketfeed.influxdb.reconciler import Reconciler
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.ingest.intake import Intake
from marketfeed.journal.coverage import Key
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.catalog import Catalog
from marketfeed.pairs.lifecycle import PairLifecycle
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.pairs.roster import Roster
from marketfeed.pairs.selection import Listing
from marketfeed.settings.model import Settings

log = logging.getLogger(__name__)

SILENT_AFTER_S: Final = 10.0
"""Exchange seconds without any frame after which a connection is replaced, and `/health` says so."""
SILENT_AT_LEAST_S: Final = 1.0
"""Wall seconds of silence that are needed, too: against a fast simulator 10 s would be over in a moment."""


class CollectorParts:
    """Collects what `listing` has selected, once its parts are run; nothing is done before that."""

    def __init__(
        self,
        settings: Settings,
        clock: ExchangeClock,
        counters: CollectorCounters,
        writer: JournalWriter,
        rest: BinanceRest,
        session: aiohttp.ClientSession,
        source: InstrumentSource,
        listing: Listing,
        ages: Ages | None,
    ) -> None:
        exchange = settings.exchange
        timeframes, mark_price_every_ms = exchange.timeframes, exchange.mark_price_every.ms
        # A deadline of the market: every connection carries mark prices, which come every 1 or 3 s.
        self.silent_after_s = clock.wall_s(SILENT_AFTER_S, SILENT_AT_LEAST_S)
        self.rest = rest
        self._source = source
        self.roster = Roster(listing.selection)
        instruments = self.roster.instruments
        self.intake = Intake(
            writer,
            FrameDecoder(self.roster.pairs),
            counters,
            clock,
            exchange.funding_rate_every.ms,
            self._on_journal_replaced,
        )
        writer.on_damage = self.intake.on_damage
        self._catalog = Catalog(timeframes, self.intake, clock)
        self.holes = Holes(
            lambda: writer.coverage,
            lambda: self.intake.received,
            lambda: candle_due_ms(clock.speed),
        )
        self.promises = Promises(
            writer,
            clock,
            lambda: self.roster.instruments,
            timeframes,
            kept_ms(settings),
            self._on_promised,
            lambda: self.roster.ended,
            lambda: (schema.MARK_1H,) if writer.has_marks else (),
            self._aside_from_ms,
        )
        self.supervisor = Supervisor(
            self.intake, clock, counters, instruments, timeframes, mark_price_every_ms, self.holes
        )
        self.healer = Healer(
            self.holes, rest, self.intake, writer, clock, counters, self.roster.known
        )
        self.supervisor.on_reconnected = self.healer.recheck
        self.supervisor.on_clock_back = self.promises.wake_anew
        self.history = History(
            settings,
            writer,
            rest,
            session,
            clock,
            lambda: self.roster.instruments,
            self.holes,
            lambda: self.roster.ended,
            lambda: source.book.perhaps_replaced,
            lambda: not self.promises.unpromised(),
        )
        self.settled_rates = SettledRates(
            rest,
            self.intake,
            writer,
            clock,
            counters,
            lambda: (source.newest or listing).info,
            instruments,
            kept_ms(settings),
            self._older_rates(settings, session, writer, clock, counters),
        )
        self._options = FeedOptions(ws_url=exchange.ws_url, idle_timeout_s=self.silent_after_s)
        self._limiter = ConnectLimiter()
        self.feed = Generations(
            self._make_feed,
            stream_names(instruments, timeframes, mark_price_every_ms),
            on_frame=lambda frame, _: self.intake.on_frame(frame),
            on_connection=self.supervisor.on_connection,
            on_replaced=self.supervisor.on_replaced,
            clock=clock,
            timeframes=timeframes,
            counters=counters,
            ages=ages,
        )
        log.info(
            "collecting pairs=%d streams=%d timeframes=%s",
            len(instruments),
            self.streams,
            ",".join(timeframes),
        )
        self.pair_lifecycle = PairLifecycle(
            exchange,
            source,
            self.roster,
            self.feed,
            self.supervisor,
            self.intake,
            self._catalog,
            clock,
            writer,
            self._on_pairs_changed,
        )
        self.shipper: Shipper | None = None
        self.reconciler: Reconciler | None = None
        if settings.influxdb.url is not None:
            influx = InfluxWriter(settings.influxdb, session)
            self.shipper = Shipper(
                writer,
                influx,
                now_ms=clock.now_ms,
                coverage=lambda: writer.all_coverage,
                lives=lambda: source.book.lives,
                documents=writer,
                keeps_ms=Expiry(settings.influxdb, session).keeps_ms,
            )
            bucket = BucketNumbers(
                InfluxAdmin(settings.influxdb, session), settings.influxdb.bucket
            )
            sides = BothSides(writer, self.shipper, bucket, influx.target, clock.now_ms)
            self.reconciler = Reconciler(
                writer, self.shipper, sides, influx.target, is_wanted=settings.influxdb.compare
            )
            log.info("shipping to target=%r", influx.target)

    def _older_rates(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
    ) -> ArchiveRates | None:
        if not settings.history.days or not uses_archive(settings):
            return None
        archive = Archive(session, settings.exchange.archive_url)
        return ArchiveRates(
            archive, writer, clock, counters, lambda: self.roster.instruments, kept_ms(settings)
        )

    @property
    def streams(self) -> int:
        """How many streams are subscribed."""
        return len(self.feed.streams)

    def perhaps_halted(self) -> str:
        """The pair that alone brings nothing, until exchangeInfo has answered that it trades; else empty.

        Of several the exchange is the trouble, or the network.
        """
        told = self.set_apart()
        quiet = {p: at_s for p, at_s in self.supervisor.quiet_since_s.items() if p not in told}
        if len(quiet) != 1:
            return ""
        ((pair, since_s),) = quiet.items()
        return "" if self.pair_lifecycle.has_traded_since(pair, since_s) else pair

    def accountable(self) -> set[str]:
        """The pairs of which what is missing is a reason: those that trade, as far as is known."""
        collected = {one.pair for one in self.roster.instruments}
        return collected - self.set_apart() - {self.perhaps_halted()}

    def set_apart(self) -> set[str]:
        """The pairs that are told of by themselves: halted, or not known to the exchange any more."""
        return {*self.roster.halted, *self.pair_lifecycle.absent.pairs}

    def mark_event_ms(self) -> dict[str, int]:
        """The newest stored mark price of each pair that is collected: event time by pair."""
        marks = self.intake.freshness.mark_event_ms
        return {pair: at_ms for pair, at_ms in marks.items() if pair in self.roster}

    def newest_open_ms(self) -> dict[tuple[str, str], int]:
        """The newest stored candle of each series that is collected: open time by pair and timeframe."""
        newest = self.intake.freshness.newest_open_ms
        return {key: at_ms for key, at_ms in newest.items() if key[0] in self.roster}

    async def _aside_from_ms(self) -> Mapping[Key, int]:
        return await self.history.aside.promised_from_ms()

    def _on_journal_replaced(self) -> None:
        self._catalog.note_all()
        self._source.on_journal_replaced()
        self.promises.wake()

    def _on_promised(self) -> None:
        self.history.wake()

    def _on_pairs_changed(self) -> None:
        self.settled_rates.set_instruments(self.roster.instruments)
        self.promises.wake()

    def _make_feed(
        self, name: str, streams: Sequence[str], on_frame: OnFrame, on_state: OnState
    ) -> Feed:
        return Feed(
            self._options,
            self.roster.instruments,
            streams,
            on_frame,
            on_state,
            self._limiter,
            name,
        )
