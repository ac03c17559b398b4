"""Keeps the journal as old and as large as the settings say: what is too much goes slice by slice."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from marketfeed import schema
from marketfeed.collector.wal_watch import WalWatch
from marketfeed.errors import JournalError
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal import retention
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import Sweep, Taken
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Gap
from marketfeed.settings.model import JournalSettings
from marketfeed.storage.wal import HELD_S

log = logging.getLogger(__name__)

EVERY_S: Final = 600.0
_UNCERTAIN_S: Final = 0.5
PAUSE: Final = 5.0
"""So many times as long as a slice took nothing is deleted after it: commits of new data go first."""
PAUSE_AT_MOST_S: Final = 1.0
FRUITLESS_TURNS: Final = 5
"""After so many turns in a row that free no page no more is taken: one alone may leave pages half full."""
_NAMES: Final = {
    schema.TABLE_MARK_PRICE: ("mark prices", "mark_price"),
    schema.TABLE_FUNDING_RATE: ("running funding rates", "funding_rate"),
    schema.TABLE_CANDLE: ("closed candles", "candles"),
}
"""What the disk budget takes, for people, and the setting that would keep it."""


class Trimming:
    """Retention of one journal. JournalError does not end it."""

    def __init__(
        self,
        settings: JournalSettings,
        writer: JournalWriter,
        wal: WalWatch,
        certain_ms: Callable[[], int] | None = None,
    ) -> None:
        self._certain_ms = certain_ms
        self._ahead: list[str] = []
        self._settings = settings
        self._writer = writer
        self._wal = wal
        self._taken: list[Taken] = []
        self._is_too_small = False
        keep = settings.retention
        self._keep_ms = {
            schema.TABLE_CANDLE: keep.candles.ms,
            schema.TABLE_MARK_1H: keep.candles.ms,
            schema.TABLE_MARK_PRICE: keep.mark_price.ms,
            schema.TABLE_FUNDING_RATE: keep.funding_rate.ms,
        }

    @property
    def waits(self) -> str:
        """Why nothing is deleted now; empty when nothing hinders it."""
        if not self._wal.is_above:
            return ""
        return f"nothing is deleted while the -wal is above {self._wal.bound_bytes / 1e6:,.0f} MB"

    def warnings(self) -> list[str]:
        """What `journal.max_bytes` has taken that `journal.retention` keeps, or that it is too small."""
        return (
            [
                f"journal.max_bytes ({self._settings.max_bytes:,} bytes) has taken the {name} of before "
                f"{datetime.fromtimestamp(one.before_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC: "
                f"journal.retention.{setting} would keep them; a larger max_bytes does"
                for one in self._taken
                for name, setting in (_NAMES[one.table],)
            ]
            + [
                f"the journal holds a row of {table} from the future, as a bad page gives: it is not "
                "counted for the age of others, and not deleted; look at the disk"
                for table in self._ahead
            ]
            + self._too_small()
        )

    def _too_small(self) -> list[str]:
        if not self._is_too_small:
            return []
        return [
            (
                f"the journal uses more than journal.max_bytes ({self._settings.max_bytes:,} bytes), and "
                "nothing of it may be deleted for that: the last hour of each table stays, and so do gaps "
                "and rejected frames; set a larger max_bytes"
            )
        ]

    async def run(self, shipper: Shipper | None) -> None:
        """Delete what is older than the settings keep, and what the disk budget does not hold; on and on.

        What has not been shipped stays, whatever its age; only the disk budget goes before that. Nothing is
        deleted while the `-wal` is above its bound: that would make it grow, and free nothing on the disk.
        """
        while True:
            if self._certain_ms is not None and not self._certain_ms():
                # Until the first frames: a journal above its budget takes no history before it is trimmed.
                await asyncio.sleep(_UNCERTAIN_S)
                continue
            try:
                await self.trim(shipper)
            except JournalError as error:
                log.warning("retention failed, trying again later error=%r", str(error))
            await self._pause()

    async def trim(self, shipper: Shipper | None) -> None:
        """Do so once. Raises JournalError."""
        below_seq = None if shipper is None else shipper.shipped_below()
        generation = self._writer.generation
        until = {} if self._certain_ms is None else {"certain_ms": self._certain_ms()}
        if until.get("certain_ms") == 0:
            # Nothing tells a row of the future yet: beside one all others would be old.
            return
        for sweep in await self._writer.call(
            lambda journal: retention.expired(journal, self._keep_ms, below_seq, **until)
        ):
            await self._sweep(sweep, generation)
        await self._fit(generation, until)
        await self._writer.take_stock()
        self._taken = await self._writer.call(
            lambda journal: retention.taken(journal, self._keep_ms, **until)
        )
        if until:
            self._ahead = await self._writer.call(
                lambda journal: retention.ahead(journal, self._keep_ms, **until)
            )

    async def _pause(self) -> None:
        """Wait for the next time; where the `-wal` was in the way, until it is not."""
        hindered = self._wal.is_above
        if not hindered:
            await asyncio.sleep(EVERY_S)
            return
        while True:
            await asyncio.sleep(HELD_S)
            if not self._wal.is_above:
                return

    async def _sweep(self, sweep: Sweep, generation: int) -> None:
        def go_on(journal: Journal) -> bool:
            # A fresh file in the place of a damaged one has other rows, and none too many.
            if self._writer.generation != generation:
                return False
            journal.sweep(sweep)
            return not sweep.is_done

        more = not sweep.is_done
        while more and not self._wal.is_above:
            started_s = time.monotonic()
            more = await self._writer.call(go_on)
            took_s = time.monotonic() - started_s
            await asyncio.sleep(min(PAUSE * took_s, PAUSE_AT_MOST_S))

    async def _fit(self, generation: int, until: Mapping[str, int]) -> None:
        """Delete what the disk budget does not hold, a hundredth of a table at a time."""
        rows = fruitless = 0
        table, before_ms = "", 0
        while not self._wal.is_above and self._writer.generation == generation:
            sweep = await self._writer.call(
                lambda journal: retention.over_budget(journal, self._settings.max_bytes, **until)
            )
            if sweep is None:
                await self._note_whether_it_fits()
                break
            await self._note_gap(sweep, generation)
            await self._sweep(sweep, generation)
            rows += sweep.rows
            table, before_ms = sweep.table, sweep.before_ms
            fruitless = 0 if sweep.pages_freed > 0 else fruitless + 1
            if fruitless == FRUITLESS_TURNS:
                # What fills the file is something else: to go on would take everything, and free nothing.
                log.error("deleting frees nothing, the journal stays over its disk budget")
                break
        if rows:
            log.error(
                "journal over its disk budget, deleted rows=%d last_table=%s before_ms=%d",
                rows,
                table,
                before_ms,
            )

    async def _note_whether_it_fits(self) -> None:
        """Know, and log once, that nothing more may be taken of a journal over its disk budget."""
        most_bytes = self._settings.max_bytes
        used = await self._writer.call(lambda journal: journal.counts()["bytes"])
        was_too_small, self._is_too_small = self._is_too_small, used > most_bytes
        if self._is_too_small and not was_too_small:
            log.error(
                "journal over its disk budget, nothing of it may be deleted bytes=%d max_bytes=%d",
                used,
                most_bytes,
            )

    async def _note_gap(self, sweep: Sweep, generation: int) -> None:
        """Store what is to go: after a stop or a kill in between, no row is gone of which no gap tells."""
        kind = retention.budget_gap(sweep.table)
        reason = f"{sweep.table} deleted: journal.max_bytes"

        def note(journal: Journal) -> None:
            known = retention.last_taken(journal, sweep)
            start_ms, end_ms = (sweep.oldest_ms, sweep.before_ms) if known is None else known
            batch = Batch()
            batch.add(Gap(kind, None, start_ms, end_ms, "unresolvable", reason))
            journal.write(batch)

        await self._writer.call(note, generation)
