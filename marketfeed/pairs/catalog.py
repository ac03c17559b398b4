"""The catalog of what is collected, as readers see it."""

from collections.abc import Iterable, Sequence

import msgspec

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import (
    ExchangeInfo,
    Instrument,
    Selection,
    quote_of,
)
from marketfeed.ingest.intake import Intake
from marketfeed.records import CatalogEntry
from marketfeed.settings.model import ExchangeSettings


class Catalog:
    """The catalog's rows for what a roster holds, and for what has ended since the start."""

    def __init__(self, timeframes: Sequence[str], intake: Intake, clock: ExchangeClock) -> None:
        self._timeframes = tuple(timeframes)
        self._intake = intake
        self._clock = clock
        self._entries: dict[str, CatalogEntry] = {}
        self._before: dict[str, CatalogEntry] = {}

    def remember(self, entries: Iterable[CatalogEntry]) -> None:
        """Take in the rows of earlier runs, for those that are found to have ended meanwhile."""
        self._before.update((entry.pair, entry) for entry in entries)

    def note(self, instrument: Instrument, ended_ms: int | None) -> None:
        """Store what is collected of an instrument, and when it ends or ended."""
        now_ms = self._clock.now_ms()
        known = self._entries.get(instrument.pair)
        before = known or self._before.get(instrument.pair)
        collected = before is None or ended_ms is None or ended_ms > now_ms
        self._entries[instrument.pair] = entry = CatalogEntry(
            pair=instrument.pair,
            symbol=instrument.symbol,
            timeframes=self._timeframes if before is None or collected else before.timeframes,
            since_ms=now_ms if before is None else before.since_ms,
            listed_ms=instrument.listed_ms or None,
            ended_ms=ended_ms,
            changed_ms=now_ms,
        )
        self._intake.add(entry)

    def drop(self, entry: CatalogEntry) -> None:
        """Store that a pair is collected no more, by the settings; `entry` is its row of earlier runs."""
        now_ms = self._clock.now_ms()
        self._entries[entry.pair] = dropped = msgspec.structs.replace(
            entry,
            ended_ms=now_ms,
            changed_ms=now_ms,
            dropped=True,
        )
        self._intake.add(dropped)

    def drop_by_name(self, pair: str) -> None:
        """Store the same of a pair, if readers have been shown it."""
        entry = self._entries.get(pair) or self._before.get(pair)
        if entry is not None:
            self.drop(entry)

    def note_all(self) -> None:
        """Store everything again, in a journal that was begun anew."""
        for entry in self._entries.values():
            self._intake.add(entry)


def not_wanted(
    stored: Iterable[CatalogEntry], settings: ExchangeSettings, selection: Selection
) -> dict[str, CatalogEntry]:
    """What the settings do not ask for, traded or not, by pair; `selection` is what they select now."""
    if settings.pairs == "all":
        # What is not selected and could be does not trade just now: that is for the roster to judge.
        return {
            entry.pair: entry
            for entry in stored
            if quote_of(entry.pair) != settings.quote or entry.pair in selection.of_other_types
        }
    # What is named, or was once chosen, and does not trade is refused.
    wanted = {one.pair for one in selection.instruments} | selection.refused.keys()
    wanted -= selection.of_other_types
    return {entry.pair: entry for entry in stored if entry.pair not in wanted}


def to_drop(
    not_wanted: Iterable[CatalogEntry], info: ExchangeInfo, now_ms: int
) -> list[CatalogEntry]:
    """Which of these the catalog does not tell the end of yet.

    What the exchange has ended stays so, unless it trades again and nobody would notice.
    """

    def is_live(entry: CatalogEntry) -> bool:
        row = info.contract(entry.pair, entry.symbol)
        has_ended = entry.ended_ms is not None and entry.ended_ms <= now_ms
        return not has_ended or (row is not None and row.trades)

    return [entry for entry in not_wanted if not entry.dropped and is_live(entry)]
