"""The journal: one SQLite file that holds everything the collector knows. The truth.

When `write` returns, its batch is on the disk (`storage/database.py` says how). One connection writes, from
one thread at a time; readers open the file themselves (`reader/stores/sqlite.py`).

Its rows are numbered, as `storage/numbered_file.py` says.
"""

import zlib
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final

from marketfeed import schema
from marketfeed.journal import retention, rows, tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.migrations import back_to_2, to_3
from marketfeed.journal.reads import READ_AT_START, READ_AT_START_3, READ_FIRST, JournalReads
from marketfeed.journal.retention import DeleteRange
from marketfeed.records import REGULAR, Candle, FundingSettled
from marketfeed.storage import acknowledged
from marketfeed.storage.database import Database, Kind
from marketfeed.storage.numbered_file import NumberedFile

REJECTED_FRAMES_KEPT: Final = 1_000
REJECTED_FRAME_BYTES: Final = 4_096

KIND: Final = Kind(
    name="journal",
    setting="journal.path",
    application_id=schema.APPLICATION_ID,
    version=schema.SCHEMA_VERSION,
    # Readers of the version before refuse a newer one: the operator says when all of them are new.
    kept=2,
    create=tables.CREATE + acknowledged.CREATE_SHIPPED,
    migrations=MappingProxyType({1: tables.FROM_1_TO_2, 2: to_3}),
    ways_back=MappingProxyType({3: back_to_2}),
    measurements=tables.MEASUREMENTS,
)


class Journal(NumberedFile, JournalReads):
    """The one writer of a journal file, which may ask it, too."""

    kind = KIND

    def __init__(self, database: Database) -> None:
        self._pair_ids: dict[str, int] = {}
        self._funding_written: dict[str, tuple[int, int]] = {}
        self._settled: dict[str, tuple[int, float]] = {}
        super().__init__(database)

    def require_whole(self, *, at_start: bool = False) -> None:
        """Look whether readers can still read the newest rows from the disk. From any thread.

        `at_start` looks at what a collector reads before its first commit, too. Raises
        JournalWriteError (`damaged`), as `Database.require_whole` says. A commit notices no damage to
        pages that it finds in memory.
        """
        begins = READ_AT_START if self.version < 3 else READ_AT_START_3
        self._database.require_whole((*READ_FIRST, *begins) if at_start else READ_FIRST)

    def write(self, batch: Batch) -> int:
        """Commit a batch durably, in one transaction. Returns how many rows were new or changed.

        All of it is stored or, when JournalWriteError is raised, none.
        """
        with self._transaction():
            ids = self._ids_of(batch)
            before = self.db.total_changes
            seq = self._next_seq
            seq = self._run(tables.CANDLE, rows.candle_rows(batch.candles, ids, seq), seq)
            if batch.candles:
                before += self.db.execute(tables.FORMING_CLOSED).rowcount
            seq = self._run(
                tables.FORMING, rows.forming_rows(batch.forming.values(), ids, seq), seq
            )
            seq = self._run(tables.MARK_PRICE, rows.mark_rows(batch, ids, seq), seq)
            funding, written = self._funding_rows(batch, ids, seq)
            seq = self._run(tables.FUNDING_RATE, funding, seq)
            seq = self._run(tables.FUNDING_SETTLED, rows.settled_rows(batch, ids, seq), seq)
            seq = self._run(tables.GAP, rows.gap_rows(batch, ids, seq), seq)
            if self.version >= schema.DROPPED_FROM:
                seq = self._run(tables.CATALOG, rows.catalog_rows(batch.catalog, ids, seq), seq)
            else:
                seq = self._run(tables.CATALOG_2, rows.catalog_rows_2(batch.catalog, ids, seq), seq)
            changed = self.db.total_changes - before
            self._write_rejected_frames(batch)
            self._save_seq(seq)
        self._next_seq = seq
        self._funding_written.update(written)
        self._note_settled(batch.settled)
        return changed

    def repair(self, candles: Sequence[Candle]) -> int:
        """Put these closed candles in place of those that are stored, whatever they count.

        On an operator's word only: everything else goes by `write`. Returns how many were new or changed.
        """
        batch = Batch(candles=candles)
        with self._transaction():
            ids = self._ids_of(batch)
            before = self.db.total_changes
            numbered = rows.candle_rows(batch.candles, ids, self._next_seq)
            seq = self._run(tables.CANDLE_REPAIR, numbered, self._next_seq)
            changed = self.db.total_changes - before
            self._save_seq(seq)
        self._next_seq = seq
        return changed

    def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document (a last-known copy of exchangeInfo, the chosen pairs …) under `name`."""
        with self._transaction():
            self.db.execute(
                """INSERT INTO document (name, saved, body) VALUES (?, ?, ?)
                   ON CONFLICT DO UPDATE SET saved = excluded.saved, body = excluded.body""",
                (name, saved_ms, zlib.compress(body)),
            )

    def delete(self, delete_range: DeleteRange, below_seq: int | None = None) -> int:
        """Delete what a range names. Returns the number of rows.

        Rows from `below_seq` on stay, whatever their age: they have not been shipped yet.
        """
        with self._transaction():
            return retention.delete(
                self.db, delete_range, self._next_seq if below_seq is None else below_seq
            )

    # --- inside -----------------------------------------------------------------------------------

    def _reload(self) -> None:
        # Empty until it is read: an id that was given in vain would name another pair.
        self._pair_ids = {}
        self._pair_ids = dict(self.db.execute("SELECT pair, id FROM pair"))
        super()._reload()
        self._funding_written.clear()
        self._settled = self.newest_settled()

    def _ids_of(self, batch: Batch) -> dict[str, int]:
        ids = self._pair_ids
        named = {candle.pair for candle in batch.candles}
        named.update(pair for pair, _ in batch.forming)
        named.update(pair for pair, _ in batch.mark_prices)
        named.update(pair for pair, _ in batch.funding_rates)
        named.update(settled.pair for settled in batch.settled)
        named.update(gap.pair for gap in batch.gaps.values() if gap.pair is not None)
        named.update(entry.pair for entry in batch.catalog)
        for pair in sorted(named.difference(ids)):
            ids[pair] = self.db.execute(
                "INSERT INTO pair (pair) VALUES (?) RETURNING id", (pair,)
            ).fetchone()[0]
        return ids

    def _run(self, upsert: tables.Upsert, numbered: rows.Rows, seq: int) -> int:
        for text, parameters in upsert.statements(numbered):
            self.db.execute(text, parameters)
        return seq + len(numbered)

    def _funding_rows(
        self, batch: Batch, ids: dict[str, int], seq: int
    ) -> tuple[rows.Rows, dict[str, tuple[int, int]]]:
        # Of the ~20 frames in a grid step the first one stays; the rest need not reach SQLite.
        numbered: rows.Rows = []
        written: dict[str, tuple[int, int]] = {}
        for (pair, time_ms), rate in batch.funding_rates.items():
            known = written.get(pair) or self._funding_written.get(pair)
            if known is not None and known[0] == time_ms and known[1] <= rate.event_time_ms:
                continue
            written[pair] = (time_ms, rate.event_time_ms)
            offset_ms = rate.event_time_ms - time_ms
            settled = self._settled.get(pair)
            numbered.append(
                (
                    ids[pair],
                    time_ms,
                    offset_ms,
                    rate.rate,
                    # A row that came late must not hold what was settled after it.
                    settled[1] if settled is not None and settled[0] <= time_ms else None,
                    rate.next_funding_time_ms,
                    seq + len(numbered),
                )
            )
        return numbered, written

    def _note_settled(self, settled: Iterable[FundingSettled]) -> None:
        for item in settled:
            known = self._settled.get(item.pair)
            # Of two at a time the reader shows the regular one, too.
            if (
                known is None
                or item.time_ms > known[0]
                or (item.time_ms == known[0] and item.kind == REGULAR)
            ):
                self._settled[item.pair] = item.time_ms, item.rate

    def _write_rejected_frames(self, batch: Batch) -> None:
        frames = batch.rejected_frames[-REJECTED_FRAMES_KEPT:]
        if not frames:
            return
        self.db.executemany(
            "INSERT INTO dead_letter (received, reason, frame) VALUES (?, ?, ?)",
            [(item.received_ms, item.reason, item.frame[:REJECTED_FRAME_BYTES]) for item in frames],
        )
        self.db.execute(
            "DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?",
            (REJECTED_FRAMES_KEPT,),
        )
