"""
The journal: one SQLite file that holds everything the collector knows. The truth.

WAL with `synchronous=FULL`: when `write` returns, its batch is on the disk (the WAL is fdatasync'ed).
One connection writes, from one thread at a time; readers open the file themselves (`reader/sqlite.py`).

Every stored row carries a `seq`, greater than any that was ever given before: one counter numbers the
rows of all tables and is saved in the same transaction, so that a shipped range covers all of them and a
number is never given twice, not even after retention has deleted the newest row.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from marketfeed import schema, tables
from marketfeed.batch import Batch
from marketfeed.errors import (
    JournalError,
    JournalForeignError,
    JournalLockedError,
    JournalNewerError,
)
from marketfeed.records import Candle, CatalogEntry

log = logging.getLogger(__name__)

DEAD_LETTERS_KEPT: Final = 1_000
DEAD_LETTER_BYTES: Final = 4_096
_CHECK_S: Final = 5.0
"""Wall seconds that the consistency check at start may take; a large file is checked as far as it comes."""

# A migration takes a journal of version N (the key) to N + 1, inside one transaction.
_MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {}


class Journal:
    """
    The one writer of a journal file.

    Not safe for concurrent calls: give it to one thread. Raises `JournalError` and its children from
    `open`, and sqlite3's own errors from `write`, after which the batch is not stored and may be
    written again.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lock_fd: int) -> None:
        self.path = path
        self.set_aside: Path | None = None
        """Where a corrupt predecessor was put when this journal was opened."""
        self._db = db
        self._lock_fd = lock_fd
        self._pair_ids: dict[str, int] = {}
        self._next_seq = 1
        self._funding_written: dict[str, tuple[int, int]] = {}
        self._reload()

    @classmethod
    def open(cls, path: Path, *, wait_lock_s: float = 0.0) -> Self:
        """
        Open or create the journal at `path` and take its lock.

        A file that SQLite finds damaged is renamed to `<name>.corrupt-<UTC time>` and a fresh journal
        started, with an error in the log and the new name in `set_aside`.

        Raises JournalLockedError (another collector holds it; `wait_lock_s` wall seconds are waited for
        it), JournalForeignError, JournalNewerError, JournalError.
        """
        path = path.absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_fd = _take_lock(path, wait_lock_s)
        except OSError as error:
            raise JournalError(f"journal {path}: {error.strerror or error}") from error
        try:
            set_aside = None
            try:
                db = _open_database(path)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise JournalError(f"journal {path}: {error}") from error
                set_aside = _put_aside(path)
                log.error(
                    "journal damaged, set aside, starting a fresh one path=%s error=%r set_aside=%s",
                    path,
                    str(error),
                    set_aside,
                )
                db = _open_database(path)
            journal = cls(path, db, lock_fd)
            journal.set_aside = set_aside
            return journal
        except sqlite3.Error as error:
            os.close(lock_fd)
            raise JournalError(f"journal {path}: {error}") from error
        except BaseException:
            os.close(lock_fd)
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
        if self._lock_fd < 0:
            return
        self._db.close()
        os.close(self._lock_fd)
        self._lock_fd = -1

    # --- writing ---------------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """The number that the next stored row gets; every stored one is smaller."""
        return self._next_seq

    def write(self, batch: Batch) -> int:
        """
        Commit a batch durably, in one transaction. Returns how many rows were new or changed.

        All of it is stored or, when sqlite3 raises (disk full, I/O error), none.
        """
        with self._transaction():
            before = self._db.total_changes
            ids = self._ids_of(batch)
            seq = self._next_seq
            seq = self._run(tables.CANDLE, _candle_rows(batch.candles, ids, seq), seq)
            if batch.candles:
                self._db.execute(tables.FORMING_CLOSED)
            seq = self._run(tables.FORMING, _forming_rows(batch.forming.values(), ids, seq), seq)
            seq = self._run(tables.MARK_PRICE, _mark_rows(batch, ids, seq), seq)
            funding, written = self._funding_rows(batch, ids, seq)
            seq = self._run(tables.FUNDING_RATE, funding, seq)
            seq = self._run(tables.FUNDING_SETTLED, _settled_rows(batch, ids, seq), seq)
            seq = self._run(tables.GAP, _gap_rows(batch, ids, seq), seq)
            seq = self._run(tables.CATALOG, _catalog_rows(batch.catalog, ids, seq), seq)
            changed = self._db.total_changes - before
            self._write_dead_letters(batch)
            if seq != self._next_seq:
                self._db.execute("UPDATE sequence SET next = ?", (seq,))
        self._next_seq = seq
        self._funding_written.update(written)
        return changed

    def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document (a last-known copy of exchangeInfo, the chosen pairs …) under `name`."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?)",
                (name, saved_ms, zlib.compress(body)),
            )

    # --- reading, for the collector itself ----------------------------------------------------------

    def load_document(self, name: str) -> tuple[bytes, int] | None:
        """Return what was last saved under `name` and when (ms), or None."""
        row = self._db.execute(
            "SELECT body, saved FROM document WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else (zlib.decompress(row[0]), row[1])

    def newest_candles(self) -> dict[tuple[str, str], int]:
        """The newest closed candle's open time (ms) of each series (pair, timeframe)."""
        names = schema.TIMEFRAME_NAMES
        return {
            (pair, names[length_ms]): open_time
            for pair, length_ms, open_time in self._db.execute(
                """SELECT pair.pair, t.value, (
                       SELECT max(open_time) FROM candle
                       WHERE pair_id = pair.id AND timeframe_ms = t.value
                   ) AS newest
                   FROM pair, json_each(?) AS t WHERE newest IS NOT NULL""",
                (str(list(names)),),
            )
        }

    def catalog(self) -> list[CatalogEntry]:
        """What this journal collects, ordered by pair."""
        return [
            CatalogEntry(pair, symbol, tuple(frames.split(",")), since, listed, ended, changed)
            for pair, symbol, frames, since, listed, ended, changed in self._db.execute(
                """SELECT pair, symbol, timeframes, since, listed, ended, changed
                   FROM catalog JOIN pair ON pair.id = pair_id ORDER BY pair"""
            )
        ]

    def counts(self) -> dict[str, int]:
        """Bytes in use and dead letters; cheap enough for every scrape of the metrics."""
        page_bytes, pages, free = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        (letters,) = self._db.execute("SELECT count(*) FROM dead_letter").fetchone()
        return {"bytes": page_bytes * (pages - free), "dead_letters": letters}

    # --- retention ---------------------------------------------------------------------------------

    def retain(self, keep_ms: Mapping[str, int]) -> int:
        """
        Delete rows older than `keep_ms[table]`, counted back from the newest row of that table.

        Tables: candle, mark_price, funding_rate. Never from the wall clock: a wrong clock must not
        delete anything. One transaction a pair, so that commits of new data pass in between. Returns
        the number of rows deleted.
        """
        deleted = 0
        for table, age_ms in keep_ms.items():
            column = _TIME_COLUMN[table]
            newest = self._newest(table)
            if newest is not None:
                deleted += self._delete_before(table, column, newest - age_ms)
        return deleted

    def shrink_to(self, max_bytes: int) -> dict[str, int]:
        """
        Delete the oldest rows until the file's used pages fit into `max_bytes`.

        Mark prices give way first, then running funding rates, closed candles last; each table keeps
        its newest hour. Returns how many rows of each table went (empty when all fits).
        """
        gone: dict[str, int] = {}
        for table in ("mark_price", "funding_rate", "candle"):
            while self.counts()["bytes"] > max_bytes:
                oldest, newest = self._oldest(table), self._newest(table)
                if oldest is None or newest is None or newest - oldest <= schema.HOUR_MS:
                    break
                step_ms = max((newest - oldest) // 16, schema.MINUTE_MS)
                cut_ms = min(oldest + step_ms, newest - schema.HOUR_MS)
                count = self._delete_before(table, _TIME_COLUMN[table], cut_ms)
                gone[table] = gone.get(table, 0) + count
        return gone

    def _delete_before(self, table: str, column: str, cut_ms: int) -> int:
        deleted = 0
        for pair_id in self._pair_ids.values():
            lengths: Iterable[int] = schema.TIMEFRAME_NAMES if table == "candle" else (0,)
            with self._transaction():
                for length_ms in lengths:
                    series = "AND timeframe_ms = ?3" if length_ms else ""
                    deleted += self._db.execute(
                        f"DELETE FROM {table} WHERE pair_id = ?1 AND {column} < ?2 {series}",
                        (pair_id, cut_ms, length_ms) if length_ms else (pair_id, cut_ms),
                    ).rowcount
        return deleted

    def _newest(self, table: str) -> int | None:
        return self._extreme(table, "max")

    def _oldest(self, table: str) -> int | None:
        return self._extreme(table, "min")

    def _extreme(self, table: str, function: str) -> int | None:
        # One seek a series: max() over the whole table would read all of it.
        column = _TIME_COLUMN[table]
        if table == "candle":
            inner = f"""(SELECT {function}({column}) FROM candle
                         WHERE pair_id = pair.id AND timeframe_ms = t.value)"""
            text = f"SELECT {function}({inner}) FROM pair, json_each(?) AS t"
            row = self._db.execute(text, (str(list(schema.TIMEFRAME_NAMES)),)).fetchone()
        else:
            inner = f"(SELECT {function}({column}) FROM {table} WHERE pair_id = pair.id)"
            row = self._db.execute(f"SELECT {function}({inner}) FROM pair").fetchone()
        value: int | None = row[0]
        return value

    # --- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled the transaction back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._reload()
            raise

    def _reload(self) -> None:
        self._pair_ids = dict(self._db.execute("SELECT pair, id FROM pair"))
        (self._next_seq,) = self._db.execute("SELECT next FROM sequence").fetchone()
        self._funding_written.clear()

    def _ids_of(self, batch: Batch) -> dict[str, int]:
        ids = self._pair_ids
        named = {candle.pair for candle in batch.candles}
        named.update(pair for pair, _ in batch.forming)
        named.update(pair for pair, _ in batch.mark_prices)
        named.update(pair for pair, _ in batch.funding_rates)
        named.update(settled.pair for settled in batch.settled)
        named.update(gap.pair for gap in batch.gaps if gap.pair is not None)
        named.update(entry.pair for entry in batch.catalog)
        for pair in sorted(named.difference(ids)):
            ids[pair] = self._db.execute(
                "INSERT INTO pair (pair) VALUES (?) RETURNING id", (pair,)
            ).fetchone()[0]
        return ids

    def _run(self, upsert: tables.Upsert, rows: list[tuple[Any, ...]], seq: int) -> int:
        for text, parameters in upsert.statements(rows):
            self._db.execute(text, parameters)
        return seq + len(rows)

    def _funding_rows(
        self, batch: Batch, ids: dict[str, int], seq: int
    ) -> tuple[list[tuple[Any, ...]], dict[str, tuple[int, int]]]:
        # Of the ~20 frames in a grid step the first one stays; the rest need not reach SQLite.
        rows: list[tuple[Any, ...]] = []
        written: dict[str, tuple[int, int]] = {}
        for (pair, time_ms), rate in batch.funding_rates.items():
            known = written.get(pair) or self._funding_written.get(pair)
            if known is not None and known[0] == time_ms and known[1] <= rate.event_time_ms:
                continue
            written[pair] = (time_ms, rate.event_time_ms)
            offset_ms = rate.event_time_ms - time_ms
            rows.append(
                (
                    ids[pair],
                    time_ms,
                    offset_ms,
                    rate.rate,
                    None,
                    rate.next_funding_time_ms,
                    seq + len(rows),
                )
            )
        return rows, written

    def _write_dead_letters(self, batch: Batch) -> None:
        letters = batch.dead_letters[-DEAD_LETTERS_KEPT:]
        if not letters:
            return
        self._db.executemany(
            "INSERT INTO dead_letter (received, reason, frame) VALUES (?, ?, ?)",
            [(item.received_ms, item.reason, item.frame[:DEAD_LETTER_BYTES]) for item in letters],
        )
        self._db.execute(
            "DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?",
            (DEAD_LETTERS_KEPT,),
        )


_TIME_COLUMN: Final = {"candle": "open_time", "mark_price": "time", "funding_rate": "time"}


# --- rows ------------------------------------------------------------------------------------------


def _candle_rows(candles: list[Candle], ids: dict[str, int], seq: int) -> list[tuple[Any, ...]]:
    lengths = schema.TIMEFRAMES_MS
    return [
        (
            ids[c.pair],
            lengths[c.timeframe],
            c.open_time_ms,
            c.open,
            c.high,
            c.low,
            c.close,
            c.volume,
            c.quote_volume,
            c.taker_buy_volume,
            c.trades,
            number,
        )
        for number, c in enumerate(candles, seq)
    ]


def _forming_rows(
    candles: Iterable[Candle], ids: dict[str, int], seq: int
) -> list[tuple[Any, ...]]:
    rows = _candle_rows(list(candles), ids, seq)
    return [
        (*row[:-1], candle.event_time_ms, row[-1])
        for row, candle in zip(rows, candles, strict=True)
    ]


def _mark_rows(batch: Batch, ids: dict[str, int], seq: int) -> list[tuple[Any, ...]]:
    return [
        (ids[pair], time_ms, m.event_time_ms - time_ms, m.mark_price, m.index_price, number)
        for number, ((pair, time_ms), m) in enumerate(batch.mark_prices.items(), seq)
    ]


def _settled_rows(batch: Batch, ids: dict[str, int], seq: int) -> list[tuple[Any, ...]]:
    return [
        (ids[s.pair], s.time_ms, s.kind, s.rate, s.mark_price, number)
        for number, s in enumerate(batch.settled, seq)
    ]


def _gap_rows(batch: Batch, ids: dict[str, int], seq: int) -> list[tuple[Any, ...]]:
    return [
        (
            g.kind,
            tables.NO_PAIR if g.pair is None else ids[g.pair],
            g.start_ms,
            g.end_ms,
            g.healed,
            g.reason,
            number,
        )
        for number, g in enumerate(batch.gaps, seq)
    ]


def _catalog_rows(
    entries: list[CatalogEntry], ids: dict[str, int], seq: int
) -> list[tuple[Any, ...]]:
    return [
        (
            ids[e.pair],
            e.symbol,
            ",".join(e.timeframes),
            e.since_ms,
            e.listed_ms,
            e.ended_ms,
            e.changed_ms,
            number,
        )
        for number, e in enumerate(entries, seq)
    ]


# --- the file ---------------------------------------------------------------------------------------


def _take_lock(path: Path, wait_s: float) -> int:
    # A file of its own: SQLite's POSIX locks on the database vanish when any descriptor of it closes.
    deadline_s = time.monotonic() + wait_s
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline_s:
                time.sleep(0.05)
                continue
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
            os.close(lock_fd)
            raise JournalLockedError(
                f"journal {path}: another collector is writing it (process {holder or 'unknown'}); "
                "stop that one first, or give this one a journal of its own (journal.path)"
            ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, str(os.getpid()).encode(), 0)
    return lock_fd


def _open_database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        db.execute("PRAGMA locking_mode = NORMAL")
        version = _recognise(path, db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -16000")
        if version == 0:
            _create(db)
        else:
            _check(db)
            _migrate(path, db, version)
        return db
    except BaseException:
        db.close()
        raise


def _recognise(path: Path, db: sqlite3.Connection) -> int:
    """Return the schema version, 0 for an empty file; refuse what is not ours or newer."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if objects == 0:
        return 0
    if application != schema.APPLICATION_ID:
        raise JournalForeignError(
            f"journal {path}: this is an SQLite file, but not a journal of marketfeed "
            f"(application_id {application:#x}, expected {schema.APPLICATION_ID:#x}); nothing was changed"
        )
    if version > schema.SCHEMA_VERSION:
        raise JournalNewerError(
            f"journal {path}: written by a newer marketfeed (schema version {version}, this one knows "
            f"{schema.SCHEMA_VERSION}); install that version again, or use another file"
        )
    return int(version)


def _create(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA page_size = 4096")
    with _schema_change(db):
        for statement in tables.CREATE.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")


def _migrate(path: Path, db: sqlite3.Connection, version: int) -> None:
    for step in range(version, schema.SCHEMA_VERSION):
        with _schema_change(db):
            _MIGRATIONS[step](db)
            db.execute(f"PRAGMA user_version = {step + 1}")
        log.info("journal migrated path=%s from=%d to=%d", path, step, step + 1)


@contextlib.contextmanager
def _schema_change(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN EXCLUSIVE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check(db: sqlite3.Connection) -> None:
    """Let SQLite look over the file for at most `_CHECK_S`; raise DatabaseError on damage."""
    deadline_s = time.monotonic() + _CHECK_S
    db.set_progress_handler(lambda: time.monotonic() > deadline_s, 100_000)
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        verdict = "ok"
    finally:
        db.set_progress_handler(None, 0)
    if verdict != "ok":
        damage = sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _put_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = Path(f"{path}.corrupt-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        source = Path(f"{path}{suffix}")
        if source.exists():
            source.rename(f"{target}{suffix}")
    return target
