"""Settled funding rates that are older than what REST gives, from the public archive's monthly files.

REST's have the settlement's mark price and kind, the archive's do not: so the archive is asked for the months
before a contract's oldest stored rate, and for nothing else. A month is asked for once.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.archive import Archive, funding_file, month_of
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.errors import ArchiveAbsentError, ArchiveError, ExchangeError
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

ASKED: Final = "archive_funding"
"""The document that keeps which months (by their start, ms) the archive was asked for, by pair."""
FILE_AFTER_MS: Final = 8 * schema.DAY_MS
"""How long after its end a month's file is there."""
LONGEST_INTERVAL_MS: Final = schema.DAY_MS


class ArchiveRates:
    """Fills settled rates from `archive` through `writer`."""

    def __init__(
        self,
        archive: Archive,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
    ) -> None:
        self._archive = archive
        self._writer = writer
        self._clock = clock
        self._counters = counters

    async def fill(self, listed_ms: Mapping[tuple[str, str], int], since_ms: int) -> bool:
        """Fetch what was settled from `since_ms` on; `listed_ms` is of what is collected, by symbol and pair.

        Returns whether all was asked for; else the archive does not answer now. Raises JournalError.
        """
        generation = self._writer.generation
        oldest_ms = await self._writer.call(Journal.oldest_settled)
        known = await self._writer.call(lambda journal: journal.load_document(ASKED))
        asked: dict[str, list[int]] = {}
        if known is not None:
            with contextlib.suppress(msgspec.DecodeError):
                asked = msgspec.json.decode(known[0], type=dict[str, list[int]])
        now_ms = self._clock.now_ms()
        for (symbol, pair), from_ms in listed_ms.items():
            where = TimeRange(max(since_ms, from_ms), oldest_ms.get(pair, now_ms))
            for month_ms in months_before(where, asked.get(pair, ()), now_ms):
                try:
                    await self._take(symbol, pair, month_ms, where)
                except ArchiveAbsentError:
                    pass
                except ArchiveError as error:
                    # It may be put right there, or was spoilt on the way: asked for at the next start.
                    log.warning("archive file of settled rates refused error=%r", str(error))
                    continue
                except ExchangeError as error:
                    log.warning("archive of settled rates cannot be fetched error=%r", str(error))
                    return False
                asked.setdefault(pair, []).append(month_ms)
                await self._note(asked, generation)
        return True

    async def _take(self, symbol: str, pair: str, month_ms: int, where: TimeRange) -> None:
        rates = await self._archive.funding_rates(pair, funding_file(symbol, month_ms))
        batch = Batch()
        batch.extend(rate for rate in rates if where.start_ms <= rate.time_ms < where.end_ms)
        if len(batch):
            changed = await self._writer.call(lambda journal: journal.write(batch))
            self._counters.records["funding_settled"] += len(batch)
            self._counters.rows_changed += changed

    async def _note(self, asked: Mapping[str, list[int]], generation: int) -> None:
        body, now_ms = msgspec.json.encode(asked), self._clock.now_ms()

        def save(journal: Journal) -> None:
            # A journal that was begun anew holds nothing of it.
            if self._writer.generation == generation:
                journal.save_document(ASKED, body, now_ms)

        await self._writer.call(save)


def months_before(where: TimeRange, asked: Iterable[int], now_ms: int) -> list[int]:
    """The months (by their start, ms) whose files hold what is lacking in a range, the newest first.

    `asked` are left out, and those not published yet. In less than the longest interval nothing lacks.
    """
    found: list[int] = []
    if where.end_ms - where.start_ms <= LONGEST_INTERVAL_MS:
        return found
    done = frozenset(asked)
    end_ms = where.end_ms
    while end_ms > where.start_ms:
        month = month_of(end_ms - 1)
        if month.start_ms not in done and month.end_ms + FILE_AFTER_MS <= now_ms:
            found.append(month.start_ms)
        end_ms = month.start_ms
    return found
