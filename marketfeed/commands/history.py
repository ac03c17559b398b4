"""What `marketfeed backfill` and `marketfeed audit` do, beside a running collector or without one.

A journal has one writer. A collector that runs on it fills its history by itself: `backfill` then shows its
progress until it is done, instead of failing on the lock. `audit` reads beside it; only to repair does it
need the journal for itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import RestReport, Turns
from marketfeed.binance.symbols import Instrument
from marketfeed.collector.status_report import StatusReport
from marketfeed.collector.upkeep import REST_BUDGET, save_budget
from marketfeed.commands.status_client import NoCollectorError, fetch_status, status_url
from marketfeed.errors import JournalLockedError, MarketfeedError, SettingsError
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import look_through, promises
from marketfeed.grid import TimeRange
from marketfeed.history.archive_fill import Source
from marketfeed.history.audit import (
    Audit,
    AuditOptions,
    AuditProgress,
    AuditReport,
    audited_series,
)
from marketfeed.history.backfill import HistoryReport
from marketfeed.history.background import kept_ms, make_backfill, open_archive
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Covered, Key, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.records import CatalogEntry
from marketfeed.settings.model import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY_S: Final = 0.5
NOW_CLOSED_MS: Final = 5 * schema.SECOND_MS
"""What has closed so long before a backfill begins is filled by it."""

FillProgress = Callable[[HistoryReport, RestReport], None]


class CollectorRunsError(MarketfeedError):
    """A collector holds the journal, and does not do what was asked for."""


class BackfillOutcome(msgspec.Struct, frozen=True):
    """The outcome of a backfill; `by` is who has filled."""

    by: Literal["this command", "the running collector"]
    history: HistoryReport

    @property
    def good(self) -> bool:
        """Whether nothing is left to fill."""
        return self.history.complete


# --- backfill ---------------------------------------------------------------------------------------


async def run_backfill(
    settings: Settings,
    days: int,
    pairs: Sequence[str] | None,
    source: Source,
    report_progress: FillProgress,
) -> BackfillOutcome:
    """Fill `days` of history, of these pairs alone if given; `report_progress` is called with it.

    `source` auto: as `exchange.archive` says. The log names the archive's terms where it is used.
    Raises CollectorRunsError when a collector holds the journal and will not fill that, ExchangeError,
    JournalError, SettingsError.
    """
    writer = JournalWriter(settings.journal.path)
    try:
        await writer.__aenter__()
    except JournalLockedError as error:
        return await _follow(settings, days, pairs, error, report_progress)
    try:
        return await _fill(settings, writer, days, pairs, source, report_progress)
    finally:
        await writer.__aexit__(None, None, None)


async def _fill(
    settings: Settings,
    writer: JournalWriter,
    days: int,
    pairs: Sequence[str] | None,
    source: Source,
    report_progress: FillProgress,
) -> BackfillOutcome:
    async with _rest(settings, settings.history.weight_per_minute) as (rest, clock, session):
        listing = await InstrumentSource(settings.exchange, rest, clock, writer).load_once()
        instruments = _named(listing.selection.instruments, pairs)
        timeframes = settings.exchange.timeframes
        now_ms, keep_ms = clock.now_ms(), kept_ms(settings, days)
        await _note_catalog(writer, instruments, timeframes, now_ms)
        kept = [
            _no_less(promise, writer.coverage)
            for promise in promises(instruments, timeframes, now_ms, keep_ms)
        ]
        await writer.call(lambda journal: journal.promise(kept))
        await look_through(writer)
        backfill = make_backfill(
            settings,
            writer,
            rest,
            session,
            clock,
            lambda: instruments,
            Holes(lambda: writer.coverage, dict),
            days,
            source,
            # The newest too: nobody else brings them.
            within=TimeRange(now_ms - keep_ms, now_ms - NOW_CLOSED_MS),
        )
        try:
            await _watched(
                backfill.fill(),
                lambda: report_progress(backfill.report(), rest.turns.report()),
                LOOK_EVERY_S,
            )
        finally:
            await save_budget(writer, rest.turns)
        report_progress(backfill.report(), rest.turns.report())
        return BackfillOutcome("this command", backfill.report())


def _named(instruments: Sequence[Instrument], pairs: Sequence[str] | None) -> list[Instrument]:
    if pairs is None:
        return list(instruments)
    unknown = set(pairs) - {instrument.pair for instrument in instruments}
    if unknown:
        raise SettingsError(
            f"--pairs: not collected by these settings: {', '.join(sorted(unknown))}"
        )
    return [instrument for instrument in instruments if instrument.pair in pairs]


def _no_less(promise: Promise, known: Mapping[Key, Covered]) -> Promise:
    """A promise that takes nothing back: of a collector whose settings ask for more than this command."""
    before = known.get((promise.pair, promise.timeframe))
    if before is None:
        return promise
    return promise._replace(keep_ms=max(promise.keep_ms, before.promised_ms))


async def _note_catalog(
    writer: JournalWriter, instruments: Sequence[Instrument], timeframes: Sequence[str], now_ms: int
) -> None:
    """Let readers know of these pairs, as a collector does at its start."""
    batch = Batch()
    batch.catalog = [
        CatalogEntry(
            pair=one.pair,
            symbol=one.symbol,
            timeframes=tuple(timeframes),
            since_ms=now_ms,
            listed_ms=one.listed_ms or None,
            ended_ms=one.ended_ms,
            changed_ms=now_ms,
        )
        for one in instruments
    ]
    await writer.call(lambda journal: journal.write(batch))


async def _follow(
    settings: Settings,
    days: int,
    pairs: Sequence[str] | None,
    locked: JournalLockedError,
    report_progress: FillProgress,
) -> BackfillOutcome:
    """Show how the collector that holds the journal fills it, until it is done."""
    url = status_url(settings.status.host, settings.status.port)
    report = await _status_of(settings, url, locked)
    filled_days = (
        0
        if report.history is None or report.history.history is None
        else (report.history.history.days)
    )
    if report.history is not None and filled_days < days:
        raise CollectorRunsError(
            f"the collector that runs on this journal fills {filled_days} days of history by itself; "
            f"for {days} days set history.days and start it again, or stop it for this command"
        )
    log.info("the collector fills the history by itself url=%s", url)
    while True:
        state = report.history
        if state is not None and state.history is not None:
            report_progress(state.history, report.rest)
            if state.history.state in ("complete", "incomplete"):
                return BackfillOutcome("the running collector", state.history)
        await asyncio.sleep(LOOK_EVERY_S)
        report = await _status_of(settings, url, locked)


async def _status_of(settings: Settings, url: str, locked: JournalLockedError) -> StatusReport:
    try:
        report = await fetch_status(url)
    except NoCollectorError as error:
        raise CollectorRunsError(f"{locked}; {error}") from error
    if report.journal.path != str(settings.journal.path):
        raise CollectorRunsError(f"{locked}; the collector at {url} has another one")
    return report


# --- audit ------------------------------------------------------------------------------------------


class AuditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to audit, and with whom to compare it.

    Without `days` and `since_ms` (exchange time): as far back as the settings fill history; without
    `until_ms`: until now. None of `pairs` or `timeframes` is all. `sample_weight` None compares everything.
    """

    days: float | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    pairs: Sequence[str] | None = None
    timeframes: Sequence[str] | None = None
    sample_weight: int | None = None
    weight_per_minute: int
    source: Literal["rest", "archive"] = "rest"
    repair: bool = False


async def run_audit(
    settings: Settings, request: AuditRequest, report_progress: Callable[[AuditProgress], None]
) -> AuditReport:
    """Audit the journal of these settings. Raises ExchangeError, JournalError, SettingsError."""
    view = JournalView(settings.journal.path)
    view.require()
    catalog = view.catalog()
    # Those that are promised, and by REST: the archive's are not read.
    promised = view.coverage() if request.source == "rest" else ()
    marks = [pair for pair, name in promised if name == schema.MARK_1H]
    series = audited_series(catalog, request.pairs, request.timeframes, marks=marks)
    unknown = set(request.pairs or ()) - {entry.pair for entry in catalog}
    if unknown or not series:
        raise SettingsError(
            f"the journal does not collect {', '.join(sorted(unknown))}"
            if unknown
            else "the journal has no series of what is to be audited; has a collector run on it?"
        )
    async with _rest(settings, request.weight_per_minute) as (rest, clock, session):
        now_ms = clock.now_ms()
        since_ms = request.since_ms
        if since_ms is None:
            days = request.days
            wanted_days = settings.history.days if days is None else days
            since_ms = now_ms - int(wanted_days * schema.DAY_MS)
            if days is None and not settings.history.days:
                # No history is kept: what was collected since the start has to be there.
                since_ms = min(entry.since_ms for entry in catalog)
            since_ms = max(since_ms, now_ms - settings.journal.retention.candles.ms)
        options = AuditOptions(
            since_ms,
            now_ms if request.until_ms is None else request.until_ms,
            request.sample_weight,
        )
        archive = open_archive(settings, session) if request.source == "archive" else None
        audit = Audit(view, series, options, rest, archive, clock.now_ms)
        report = await _watched(
            audit.run(), lambda: report_progress(audit.progress()), LOOK_EVERY_S / 2
        )
    if request.repair and (audit.mending or audit.filling):
        return await _repair(settings, audit, report)
    return report


async def _repair(settings: Settings, audit: Audit, report: AuditReport) -> AuditReport:
    """Put the exchange's candles into the journal, on the operator's word: whatever they count."""
    candles = [*audit.mending, *audit.filling]
    filled = 0
    try:
        async with JournalWriter(settings.journal.path) as writer:
            for start in range(0, len(candles), 2_000):
                part = candles[start : start + 2_000]
                await writer.call(partial(Journal.repair, candles=part))
            if writer.has_quotes:
                filled = len(audit.filling)
    except JournalLockedError as error:
        text = f"not repaired: {error}. It mends by its own audit what counts as many trades"
        return msgspec.structs.replace(report, errors=[*report.errors, text])
    return msgspec.structs.replace(report, repaired=len(audit.mending), filled=filled)


async def _watched(work: Coroutine[Any, Any, T], look: Callable[[], None], every_s: float) -> T:
    """Do the work, with a `look` at it at the start and every so often."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            look()
            await asyncio.wait((task,), timeout=every_s)
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _rest(
    settings: Settings, weight_per_minute: int
) -> AsyncIterator[tuple[BinanceRest, ExchangeClock, aiohttp.ClientSession]]:
    """A client with a budget of its own, its clock set to the exchange's.

    It goes on from what the journal's collector has asked last: a ban holds for a command, too.
    """
    clock = ExchangeClock()
    view = JournalView(settings.journal.path)
    known = await asyncio.to_thread(view.document, REST_BUDGET)
    async with aiohttp.ClientSession() as session:
        turns = Turns(Budget(weight_per_minute), clock)
        rest = BinanceRest(session, settings.exchange.rest_url, turns=turns)
        if known is not None:
            turns.budget.restore(turns.now(), known)
        await rest.server_time()
        yield rest, clock, session
