"""Settled funding rates that are older than what REST gives, from the public archive's monthly files.

REST's have the settlement's mark price and kind, the archive's do not: so the archive is asked for the months
before a contract's oldest stored rate, and for nothing else. A month is asked for once, and again if refused.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.archive import Archive, funding_file, month_of
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import Instrument
from marketfeed.counters import CollectorCounters
from marketfeed.errors import ArchiveAbsentError, ArchiveError, ExchangeError
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

ASKED: Final = "archive_funding"
"""The document that keeps which months the archive was asked for: `_Months` by pair."""
FILE_AFTER_MS: Final = 8 * schema.DAY_MS
"""How long after its end a month's file is there."""
LONGEST_INTERVAL_MS: Final = schema.DAY_MS


class _Months(msgspec.Struct):
    """Months by their start (ms) that were read or are not there; and what was wanted of refused files."""

    done: list[int] = []
    refused: list[TimeRange] = []


class ArchiveRates:
    """Fills settled rates of `instruments()` from `archive` through `writer`, as far as `history_ms` back."""

    def __init__(
        self,
        archive: Archive,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
        instruments: Callable[[], Sequence[Instrument]],
        history_ms: int,
    ) -> None:
        self._archive = archive
        self._writer = writer
        self._clock = clock
        self._counters = counters
        self._instruments = instruments
        self._history_ms = history_ms

    async def fill(self) -> bool:
        """Fetch what lacks; returns whether all was asked for: else the archive does not answer now.

        Raises JournalError.
        """
        generation = self._writer.generation
        oldest_ms = await self._writer.call(Journal.oldest_settled)
        known = await self._writer.call(lambda journal: journal.load_document(ASKED))
        asked: dict[str, _Months] = {}
        if known is not None:
            with contextlib.suppress(msgspec.DecodeError):
                asked = msgspec.json.decode(known[0], type=dict[str, _Months])
        now_ms = self._clock.now_ms()
        since_ms = now_ms - self._history_ms
        for instrument in self._instruments():
            pair = instrument.pair
            months = asked.setdefault(pair, _Months())
            # They may have been put right there, or were spoilt on the way.
            refused = {month_of(part.start_ms).start_ms: part for part in months.refused}
            where = TimeRange(max(since_ms, instrument.listed_ms), oldest_ms.get(pair, now_ms))
            fresh = lacking(where, {*months.done, *refused}, now_ms)
            for part in [*fresh, *refused.values()]:
                month_ms = month_of(part.start_ms).start_ms
                try:
                    await self._take(instrument, part)
                except ArchiveError as error:
                    log.warning("archive file of settled rates refused error=%r", str(error))
                    refused[month_ms] = part
                except ExchangeError as error:
                    log.warning("archive of settled rates cannot be fetched error=%r", str(error))
                    return False
                else:
                    refused.pop(month_ms, None)
                    months.done.append(month_ms)
                months.refused = list(refused.values())
                await self._note(asked, generation)
        return True

    async def _take(self, instrument: Instrument, part: TimeRange) -> None:
        """Store what a month's file has of a part of it. Raises as `Archive.funding_rates`."""
        pair, file = instrument.pair, funding_file(instrument.symbol, part.start_ms)
        try:
            rates = await self._archive.funding_rates(pair, file)
        except ArchiveAbsentError:
            return
        stored = await self._writer.call(lambda journal: journal.settled_times(pair, part))
        batch = Batch()
        # What REST gave has more to it.
        batch.extend(
            rate
            for rate in rates
            if part.start_ms <= rate.time_ms < part.end_ms and rate.time_ms not in stored
        )
        if len(batch):
            changed = await self._writer.call(lambda journal: journal.write(batch))
            self._counters.records["funding_settled"] += len(batch)
            self._counters.rows_changed += changed

    async def _note(self, asked: Mapping[str, _Months], generation: int) -> None:
        body, now_ms = msgspec.json.encode(asked), self._clock.now_ms()

        def save(journal: Journal) -> None:
            # A journal that was begun anew holds nothing of it.
            if self._writer.generation == generation:
                journal.save_document(ASKED, body, now_ms)

        await self._writer.call(save)


def lacking(where: TimeRange, asked: Collection[int], now_ms: int) -> list[TimeRange]:
    """The parts of a range whose months' files may hold what lacks, the newest first.

    `asked` are months (by their start, ms) that are left out, as are those not published yet. In less than
    the longest interval nothing lacks.
    """
    found: list[TimeRange] = []
    if where.end_ms - where.start_ms <= LONGEST_INTERVAL_MS:
        return found
    end_ms = where.end_ms
    while end_ms > where.start_ms:
        month = month_of(end_ms - 1)
        if month.start_ms not in asked and month.end_ms + FILE_AFTER_MS <= now_ms:
            found.append(TimeRange(max(month.start_ms, where.start_ms), end_ms))
        end_ms = month.start_ms
    return found
