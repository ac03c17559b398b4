"""The journal: one SQLite file that holds everything the collector knows. The truth.

When `write` returns, its batch is on the disk (`storage/database.py` says how). One connection writes, from
one thread at a time; readers open the file themselves (`reader/stores/sqlite.py`).

Every stored row carries a `seq`, greater than any that was ever given before: one counter numbers the
rows of all tables and is saved in the same transaction, so that a shipped range covers all of them and a
number is never given twice, not even after retention has deleted the newest row.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from marketfeed import schema
from marketfeed.journal import retention, rows, tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.reads import READ_AT_START, READ_FIRST, JournalReads
from marketfeed.journal.retention import Cut
from marketfeed.records import REGULAR, Candle, FundingSettled
from marketfeed.storage import acknowledged
from marketfeed.storage.damage import damage
from marketfeed.storage.database import (
    CHECK_S,
    Database,
    Kind,
    errors_told,
)
from marketfeed.storage.ranges import Ranges

DEAD_LETTERS_KEPT: Final = 1_000
DEAD_LETTER_BYTES: Final = 4_096

KIND: Final = Kind(
    name="journal",
    setting="journal.path",
    application_id=schema.APPLICATION_ID,
    version=schema.SCHEMA_VERSION,
    create=tables.CREATE + acknowledged.CREATE_SHIPPED,
    migrations=MappingProxyType({1: tables.FROM_1_TO_2}),
)


class Journal(JournalReads):
    """The one writer of a journal file.

    Not safe for concurrent calls: give it to one thread. Whatever writes raises JournalWriteError when
    SQLite cannot (disk full, I/O error, damage); nothing of that call is stored then. What reads raises
    SQLite's errors as they are: call it within `errors_told`, as `JournalWriter` does.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database.db)
        self.path = database.path
        self.set_aside = database.set_aside
        self._database = database
        self._pair_ids: dict[str, int] = {}
        self._next_seq = 1
        self._funding_written: dict[str, tuple[int, int]] = {}
        self._settled: dict[str, tuple[int, float]] = {}
        self._reload()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        wait_lock_s: float = 0.0,
        distrusted: bool = False,
        proven: bool = False,
        check_s: float = CHECK_S,
    ) -> Self:
        """Open or create the journal at `path` and take its lock, as `Database.open` says.

        Raises JournalWriteError, too, when it cannot be read though the check has found nothing.
        """
        database = Database.open(
            KIND,
            path,
            wait_lock_s=wait_lock_s,
            distrusted=distrusted,
            proven=proven,
            check_s=check_s,
        )
        try:
            with errors_told(KIND, path):
                return cls(database)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Checkpoint, close the file and give the lock back. Safe to call twice."""
        self._database.close()

    def require_whole(self, *, at_start: bool = False) -> None:
        """Look whether readers can still read the newest rows from the disk. From any thread.

        `at_start` looks at what a collector reads before its first commit, too. Raises
        JournalWriteError (`damaged`), as `Database.require_whole` says. A commit notices no damage to
        pages that it finds in memory.
        """
        self._database.require_whole((*READ_FIRST, *READ_AT_START) if at_start else READ_FIRST)

    # --- writing ---------------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """The number that the next stored row gets; every stored one is smaller."""
        return self._next_seq

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
            seq = self._run(tables.CATALOG, rows.catalog_rows(batch.catalog, ids, seq), seq)
            changed = self.db.total_changes - before
            self._write_dead_letters(batch)
            if seq != self._next_seq:
                self.db.execute("UPDATE sequence SET next = ?", (seq,))
        self._next_seq = seq
        self._funding_written.update(written)
        self._note_settled(batch.settled)
        return changed

    def repair(self, candles: Sequence[Candle]) -> int:
        """Put these closed candles in place of those that are stored, whatever they count.

        On an operator's word only: everything else goes by `write`. Returns how many were new or changed.
        """
        batch = Batch()
        batch.candles = list(candles)
        with self._transaction():
            ids = self._ids_of(batch)
            before = self.db.total_changes
            numbered = rows.candle_rows(batch.candles, ids, self._next_seq)
            seq = self._run(tables.CANDLE_REPAIR, numbered, self._next_seq)
            changed = self.db.total_changes - before
            self.db.execute("UPDATE sequence SET next = ?", (seq,))
        self._next_seq = seq
        return changed

    def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document (a last-known copy of exchangeInfo, the chosen pairs …) under `name`."""
        with self._transaction():
            self.db.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?)",
                (name, saved_ms, zlib.compress(body)),
            )

    # --- shipping ------------------------------------------------------------------------------------

    def shipped(self, target: str) -> Ranges:
        """What `target` (a server and bucket) has acknowledged, as ranges of seq."""
        return acknowledged.read_shipped(self.db, target)

    def note_shipped(self, target: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Save ranges that `target` has acknowledged; those within them are replaced."""
        with self._transaction():
            acknowledged.note_shipped(self.db, target, ranges)

    def forget_if_demanded(self, target: str) -> bool:
        """Forget what `target` has acknowledged if it is demanded that all be shipped again; says so."""
        with self._transaction():
            return acknowledged.take_demand(self.db, target)

    def put_aside(self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int) -> int:
        """Keep lines that `target` refused, each with its answer; the newest REFUSED_LINES_KEPT stay.

        Returns how many older ones are gone by that.
        """
        with self._transaction():
            return acknowledged.put_aside(self.db, target, refused, refused_ms)

    # --- retention ---------------------------------------------------------------------------------

    def delete(self, cut: Cut, below_seq: int | None = None) -> int:
        """Delete what a cut names. Returns the number of rows.

        Rows from `below_seq` on stay, whatever their age: they have not been shipped yet.
        """
        with self._transaction():
            return retention.delete(
                self.db, cut, self._next_seq if below_seq is None else below_seq
            )

    # --- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database.transaction():
                yield
        except BaseException:
            # What was numbered in vain must be numbered anew.
            with contextlib.suppress(sqlite3.Error):
                self._reload()
            raise

    def _reload(self) -> None:
        # Empty until it is read: an id that was given in vain would name another pair.
        self._pair_ids = {}
        self._pair_ids = dict(self.db.execute("SELECT pair, id FROM pair"))
        sequence = self.db.execute("SELECT next FROM sequence").fetchone()
        if sequence is None:
            raise damage("no row in table sequence")
        (self._next_seq,) = sequence
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

    def _write_dead_letters(self, batch: Batch) -> None:
        letters = batch.dead_letters[-DEAD_LETTERS_KEPT:]
        if not letters:
            return
        self.db.executemany(
            "INSERT INTO dead_letter (received, reason, frame) VALUES (?, ?, ?)",
            [(item.received_ms, item.reason, item.frame[:DEAD_LETTER_BYTES]) for item in letters],
        )
        self.db.execute(
            "DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?",
            (DEAD_LETTERS_KEPT,),
        )
