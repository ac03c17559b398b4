"""History in the service: fills it in the background, and then asks again and audits what is stored."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from typing import Final

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.binance.archive import TERMS, Archive
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import Instrument
from marketfeed.gaps.holes import Holes
from marketfeed.grid import TimeRange
from marketfeed.history.archive_fill import Source
from marketfeed.history.aside_fill import AsideFill
from marketfeed.history.backfill import Backfill, HistoryReport
from marketfeed.history.continuous_audit import AuditingReport, Auditor
from marketfeed.history.marks import MarkCandles
from marketfeed.history.plan import CandleSeries
from marketfeed.history.quotes import QuotesReport, QuoteVolumes
from marketfeed.journal.writer import JournalWriter
from marketfeed.settings.model import ExchangeSettings, Settings

log = logging.getLogger(__name__)

_BINANCE: Final = ExchangeSettings()
AUDIT_SHARE: Final = 20
"""The audit takes at most this fraction of the weight that may be used."""


class HistoryState(msgspec.Struct, frozen=True):
    """How history stands in a running collector; `history` None: `history.days` is 0."""

    history: HistoryReport | None
    audit: AuditingReport
    quote_volumes: QuotesReport
    """Of candles that an older version has stored without `taker_buy_quote_volume`."""
    mark_candles: HistoryReport | None = None
    """Of the hourly candles of mark prices; None where the journal has no place for them."""


def kept_ms(settings: Settings, days: int | None = None) -> int:
    """How far back history is filled: what the settings ask for, or `days`, and retention keeps."""
    wanted_ms = (settings.history.days if days is None else days) * schema.DAY_MS
    return min(wanted_ms, settings.journal.retention.candles.ms)


def uses_archive(settings: Settings, source: Source = "auto") -> bool:
    """Whether history may come from the archive: as the settings say, or `source` as the operator's word.

    Never from that of another exchange: a `rest_url` of another place (a simulator) beside the archive's own
    default would fill a journal with candles of two worlds.
    """
    exchange = settings.exchange
    if exchange.rest_url != _BINANCE.rest_url and exchange.archive_url == _BINANCE.archive_url:
        return False
    return source == "archive" or (source == "auto" and exchange.archive)


def open_archive(settings: Settings, session: aiohttp.ClientSession) -> Archive:
    """A client of the archive; the log names its terms."""
    log.warning("%s", TERMS)
    return Archive(session, settings.exchange.archive_url)


def make_backfill(
    settings: Settings,
    writer: JournalWriter,
    rest: BinanceRest,
    session: aiohttp.ClientSession,
    clock: ExchangeClock,
    instruments: Callable[[], Sequence[Instrument]],
    holes: Holes,
    days: int | None = None,
    source: Source = "auto",
    *,
    ended: Callable[[], Sequence[Instrument]] = lambda: (),
    within: TimeRange | None = None,
    first: Callable[[], Awaitable[None]] | None = None,
) -> Backfill:
    """A backfill of these instruments in all timeframes of the settings.

    `source` auto: as `exchange.archive` says. `ended`, `within` and `first` as in Backfill.
    """
    return Backfill(
        writer,
        rest,
        open_archive(settings, session) if uses_archive(settings, source) else None,
        clock,
        lambda: [(one, settings.exchange.timeframes) for one in instruments()],
        holes,
        kept_ms(settings, days) // schema.DAY_MS,
        settings.journal.max_bytes,
        source,
        ended=lambda: [(one, settings.exchange.timeframes) for one in ended()],
        within=within,
        first=first,
    )


class History:
    """Fills and audits the history of `instruments()` in the journal of `writer`.

    Of what has `ended` while this runs it fills what is missing, and audits nothing. Of pairs that are
    `perhaps_replaced` REST's answers may be another contract's: they are not audited, and their mark candles
    not fetched, as rows from before the other's listing would be stored as the older one's.
    `are_promised` as in `AsideFill`.
    """

    def __init__(
        self,
        settings: Settings,
        writer: JournalWriter,
        rest: BinanceRest,
        session: aiohttp.ClientSession,
        clock: ExchangeClock,
        instruments: Callable[[], Sequence[Instrument]],
        holes: Holes,
        ended: Callable[[], Sequence[Instrument]] = lambda: (),
        perhaps_replaced: Callable[[], Container[str]] = lambda: (),
        are_promised: Callable[[], bool] = lambda: True,
    ) -> None:
        kept = settings.journal.retention
        self.aside = AsideFill(
            writer,
            settings.journal.max_bytes,
            clock.certain_ms,
            are_promised,
            {
                schema.TABLE_CANDLE: kept.candles.ms,
                schema.TABLE_MARK_PRICE: kept.mark_price.ms,
                schema.TABLE_FUNDING_RATE: kept.funding_rate.ms,
            },
        )
        self._is_wanted = settings.history.days > 0
        # Without history, too: what an outage has left may reach further back than healing does.
        self.backfill = make_backfill(
            settings,
            writer,
            rest,
            session,
            clock,
            instruments,
            holes,
            ended=ended,
            first=self.aside.fill,
        )
        timeframes = settings.exchange.timeframes

        def series() -> list[CandleSeries]:
            return [
                CandleSeries(one, timeframe) for one in instruments() for timeframe in timeframes
            ]

        def sure() -> list[Instrument]:
            unsure = perhaps_replaced()
            return [one for one in instruments() if one.pair not in unsure]

        def audited() -> list[CandleSeries]:
            marks = (schema.MARK_1H,) if writer.has_marks else ()
            return [CandleSeries(one, name) for one in sure() for name in (*timeframes, *marks)]

        self.marks = MarkCandles(
            writer,
            rest,
            clock,
            sure,
            holes.ended_ms,
            kept_ms(settings) // schema.DAY_MS,
            settings.journal.max_bytes,
            ended,
            self.aside.fill,
        )
        share = settings.history.weight_per_minute // AUDIT_SHARE
        self._auditor = Auditor(writer, rest, clock, audited, share)
        self._quote_volumes = QuoteVolumes(
            writer,
            rest,
            clock,
            series,
            lambda: self.backfill.is_filling,
            settings.journal.max_bytes,
        )

    def report(self) -> HistoryState:
        """How it stands."""
        history = self.backfill.report() if self._is_wanted else None
        return HistoryState(
            history, self._auditor.report(), self._quote_volumes.report(), self.marks.report()
        )

    def wake(self) -> None:
        """Look for holes at once: the pairs have changed, or the journal was replaced."""
        self.backfill.wake()
        self.marks.wake()
        self._quote_volumes.wake()

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.backfill.run(), name="backfill")
            group.create_task(self.marks.run(), name="mark candles")
            group.create_task(self.aside.run(), name="set aside")
            # Their weight is for history while there is any to fill.
            group.create_task(self._after_history(self._auditor.run), name="audit")
            group.create_task(self._after_history(self._quote_volumes.run), name="quote volumes")

    async def _after_history(self, run: Callable[[], Coroutine[None, None, None]]) -> None:
        await self.backfill.first_pass.wait()
        await run()
