"""Pairs come and go: what exchangeInfo tells is carried out here, while everything else runs on.

`Roster` knows what is collected; by `PairLifecycle` subscriptions, deadlines and the catalog follow it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.generations import Generations
from marketfeed.binance.symbols import (
    Instrument,
    Selection,
    remembered,
    stream_names,
)
from marketfeed.errors import JournalError
from marketfeed.gaps.supervisor import Supervisor
from marketfeed.ingest.intake import Intake
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.absent import AbsentPairs
from marketfeed.pairs.catalog import Catalog, not_wanted, to_drop
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.pairs.roster import Changes, Ended, Roster
from marketfeed.pairs.selection import Listing
from marketfeed.records import CatalogEntry
from marketfeed.settings.model import ExchangeSettings, TopPairs

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""Exchange seconds between two looks; never closer than `WALL_AT_LEAST_S` wall seconds."""


class PairLifecycle:
    """Keeps one collector's pairs in step with the exchange; `run` lasts until it is cancelled.

    `on_change` is called when the roster has changed, for who else has to follow.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        source: InstrumentSource,
        roster: Roster,
        feed: Generations,
        supervisor: Supervisor,
        intake: Intake,
        catalog: Catalog,
        clock: ExchangeClock,
        writer: JournalWriter,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._source = source
        self._roster = roster
        self._feed = feed
        self._supervisor = supervisor
        self._intake = intake
        self._catalog = catalog
        self._clock = clock
        self._writer = writer
        self._on_change = on_change
        self.absent = AbsentPairs(
            writer, source.turns, roster, clock, can_drop=settings.pairs != "all"
        )
        # When the last answer of exchangeInfo was taken in (monotonic exchange s).
        self._listed_s = 0.0
        # Of which pairs, that had become quiet, it was asked meanwhile.
        self._asked_for: set[str] = set()
        # Since when (ms): joined, and no data yet.
        self._joining: dict[str, int] = {}

    async def start(self, listing: Listing) -> None:
        """Store the catalog; take in what ended while nobody looked, and what the settings have dropped.

        Raises JournalError.
        """
        stored = await self._writer.call(Journal.catalog)
        now_ms = self._clock.now_ms()
        info = listing.info
        self._catalog.remember(stored)
        for instrument in self._roster.instruments:
            self._catalog.note(instrument, instrument.ended_ms)
        dropped = not_wanted(stored, self._settings, listing.selection)
        self._source.book.forget(dropped)
        self._drop(to_drop(dropped.values(), info, now_ms))
        self._roster.remember(
            remembered(entry)
            for entry in stored
            if entry.pair not in dropped and (entry.ended_ms is None or entry.ended_ms > now_ms)
        )
        await self.absent.load(listing.selection)
        if not self._source.problem:
            # A copy of exchangeInfo tells nothing of now.
            await self.absent.look(info, listing.selection)
        changes = self._roster.update(info, listing.selection, now_ms)
        self._report(changes)
        for instrument in changes.dated:
            self._catalog.note(instrument, instrument.ended_ms)
        if changes.doubted:
            # What has halted is known by a second answer.
            self._source.ask_soon()

    async def run(self) -> None:
        """Follow the exchange's list, and the announced ends that come in between."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._source.follow(self._on_listing), name="exchangeInfo")
            group.create_task(self._source.book.run(), name="lives")
            while True:
                await asyncio.sleep(self._clock.wall_s(LOOK_EVERY_S))
                self._note_joined()
                self._ask_for_quiet()
                self.absent.check()
                ended = self._roster.expire(
                    self._clock.certain_ms(), self.heard_ms, self._source.book.silent_for_ms
                )
                if ended:
                    await self._leave(ended)

    def heard_ms(self, pair: str) -> int:
        """When the last frame of a pair came (exchange ms); 0 for none since the start."""
        return self._supervisor.heard_ms.get(pair, 0)

    def has_traded_since(self, pair: str, since_s: float) -> bool:
        """Whether exchangeInfo has answered since then (monotonic exchange s) that a pair trades."""
        return self._listed_s > since_s and self._roster.still_trades(pair)

    # --- inside -----------------------------------------------------------------------------------

    def _drop(self, entries: Sequence[CatalogEntry]) -> None:
        """Have the catalog end what is collected no more: to readers it would be live for ever, and stale."""
        for entry in entries:
            self._catalog.drop(entry)
        if entries:
            log.warning(
                "pairs dropped: the settings name them no more count=%d first=%s",
                len(entries),
                entries[0].pair,
            )

    async def _on_listing(self, listing: Listing) -> None:
        info = listing.info
        await self._drop_unchosen(listing.selection)
        await self.absent.look(info, listing.selection)
        changes = self._roster.update(info, listing.selection, self._clock.now_ms())
        self._report(changes)
        self._listed_s = self._clock.elapsed_s()
        for instrument in changes.dated:
            self._supervisor.expect_until(instrument.pair, instrument.ended_ms)
            self._catalog.note(instrument, instrument.ended_ms)
        if changes.dated:
            self._on_change()
        if changes.joined:
            await self._join(changes.joined)

    async def _drop_unchosen(self, selection: Selection) -> None:
        """Let go of what `marketfeed pairs --drop` has taken out of the kept choice meanwhile."""
        if not isinstance(self._settings.pairs, TopPairs):
            return
        collected = self._roster.drop_unchosen(selection)
        if not collected:
            return
        self._on_change()
        now_ms = self._clock.now_ms()
        self._supervisor.leave({instrument.pair: now_ms for instrument in collected})
        for instrument in collected:
            self._joining.pop(instrument.pair, None)
            self._catalog.drop_by_name(instrument.pair)
            log.warning("pair dropped by hand pair=%s now=%d", instrument.pair, len(self._roster))
        await self._feed.unsubscribe(self._streams(collected))
        keys = [
            (one.pair, name)
            for one in collected
            for name in (*self._settings.timeframes, schema.MARK_1H)
        ]
        try:
            await self._writer.call(lambda journal: journal.release(keys))
        except JournalError as error:
            # Healing, or the next start, releases what it cannot ask for.
            log.warning("pairs dropped by hand are not released error=%r", str(error))

    async def _join(self, joined: Sequence[Instrument]) -> None:
        now_ms = self._clock.now_ms()
        self._joining.update((instrument.pair, now_ms) for instrument in joined)
        self._supervisor.join(joined)
        self._on_change()
        await self._feed.subscribe(self._streams(joined))
        log.info(
            "pairs joined count=%d first=%s now=%d", len(joined), joined[0].pair, len(self._roster)
        )

    async def _leave(self, ended: Sequence[Ended]) -> None:
        instruments = [one.instrument for one in ended]
        self._on_change()
        self._supervisor.leave({one.instrument.pair: one.ended_ms for one in ended})
        for one in ended:
            self._joining.pop(one.instrument.pair, None)
            self._catalog.note(one.instrument, one.ended_ms)
            log.warning(
                "pair ended pair=%s ended_ms=%d status=%r",
                one.instrument.pair,
                one.ended_ms,
                one.instrument.status,
            )
        await self._feed.unsubscribe(self._streams(instruments))

    def _ask_for_quiet(self) -> None:
        """Ask once whether a pair trades of which nothing comes any more: it may have halted."""
        told = {*self._roster.halted, *self.absent.pairs}
        quiet = {
            pair: at_s for pair, at_s in self._supervisor.quiet_since_s.items() if pair not in told
        }
        self._asked_for &= quiet.keys()
        for pair, since_s in quiet.items():
            # Of several the exchange is the trouble, or the network.
            if len(quiet) == 1 and self._listed_s <= since_s and pair not in self._asked_for:
                self._asked_for.add(pair)
                self._source.ask_soon()

    def _note_joined(self) -> None:
        """Show a pair to readers once it has brought data: an ACK proves nothing, nor does a listing."""
        marks = self._intake.freshness.mark_event_ms
        for instrument in self._roster.instruments if self._joining else ():
            since_ms = self._joining.get(instrument.pair)
            if since_ms is not None and marks.get(instrument.pair, 0) >= since_ms:
                del self._joining[instrument.pair]
                self._catalog.note(instrument, instrument.ended_ms)

    def _streams(self, instruments: Sequence[Instrument]) -> list[str]:
        settings = self._settings
        return stream_names(instruments, settings.timeframes, settings.mark_price_every.ms)

    def _report(self, changes: Changes) -> None:
        for pair, status in changes.doubted.items():
            log.warning("pair may have halted, asking again pair=%s status=%r", pair, status)
        for pair, status in changes.halted.items():
            log.warning("pair has halted pair=%s status=%r", pair, status)
        for pair in changes.resumed:
            log.warning("pair trades again pair=%s", pair)
        for instrument in changes.dated:
            log.warning(
                "pair begins or ends at another time than known pair=%s listed_ms=%d ends_ms=%s",
                instrument.pair,
                instrument.listed_ms,
                instrument.ended_ms,
            )
        for pair, one in changes.returned.items():
            log.warning("pair is back pair=%s ended_ms=%d", pair, one.ended_ms)
        for old, new in changes.renamed:
            log.warning("pair may have been renamed, nothing is stitched old=%s new=%s", old, new)
