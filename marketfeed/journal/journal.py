"""The journal: one SQLite file that holds everything the collector knows. The truth.

When `write` returns, its batch is on the disk (`database.py` says how). One connection writes, from one
thread at a time; readers open the file themselves (`reader/sqlite.py`).

Every stored row carries a `seq`, greater than any that was ever given before: one counter numbers the
rows of all tables and is saved in the same transaction, so that a shipped range covers all of them and a
number is never given twice, not even after retention has deleted the newest row.
"""

import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, NamedTuple, Self

from marketfeed import schema
from marketfeed.grid import Stretch, missing
from marketfeed.journal import rows, tables
from marketfeed.journal.batch import Batch
from marketfeed.records import (
    CANDLE_GAP,
    REGULAR,
    Candle,
    CatalogEntry,
    FundingSettled,
)
from marketfeed.storage import acknowledged
from marketfeed.storage.damage import damage
from marketfeed.storage.database import (
    CHECK_S,
    Database,
    FileFound,
    Kind,
    errors_told,
    inspect,
)
from marketfeed.storage.ranges import Ranges

log = logging.getLogger(__name__)

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


def inspect_journal(path: Path) -> FileFound | None:
    """Look at the journal at `path` without changing anything; None if there is none.

    Raises JournalForeignError, JournalNewerError, or JournalError when it is unreadable or damaged.
    """
    return inspect(KIND, path)


class Cut(NamedTuple):
    """Rows of one pair in one table that are older than `before_ms` (exchange time).

    `oldest_ms` is the oldest that the table has of any pair, where that was looked for.
    """

    table: str
    pair_id: int
    before_ms: int
    oldest_ms: int | None = None


class Journal:
    """The one writer of a journal file.

    Not safe for concurrent calls: give it to one thread. Whatever writes raises JournalWriteError when
    SQLite cannot (disk full, I/O error, damage); nothing of that call is stored then. What reads raises
    SQLite's errors as they are: call it within `errors_told`, as `JournalWriter` does.
    """

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self.set_aside = database.set_aside
        self._database = database
        self._db = database.db
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
        self._database.require_whole((*_READ_FIRST, *_READ_AT_START) if at_start else _READ_FIRST)

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
            before = self._db.total_changes
            seq = self._next_seq
            seq = self._run(tables.CANDLE, rows.candle_rows(batch.candles, ids, seq), seq)
            if batch.candles:
                before += self._db.execute(tables.FORMING_CLOSED).rowcount
            seq = self._run(
                tables.FORMING, rows.forming_rows(batch.forming.values(), ids, seq), seq
            )
            seq = self._run(tables.MARK_PRICE, rows.mark_rows(batch, ids, seq), seq)
            funding, written = self._funding_rows(batch, ids, seq)
            seq = self._run(tables.FUNDING_RATE, funding, seq)
            seq = self._run(tables.FUNDING_SETTLED, rows.settled_rows(batch, ids, seq), seq)
            seq = self._run(tables.GAP, rows.gap_rows(batch, ids, seq), seq)
            seq = self._run(tables.CATALOG, rows.catalog_rows(batch.catalog, ids, seq), seq)
            changed = self._db.total_changes - before
            self._write_dead_letters(batch)
            if seq != self._next_seq:
                self._db.execute("UPDATE sequence SET next = ?", (seq,))
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
            before = self._db.total_changes
            numbered = rows.candle_rows(batch.candles, ids, self._next_seq)
            seq = self._run(tables.CANDLE_REPAIR, numbered, self._next_seq)
            changed = self._db.total_changes - before
            self._db.execute("UPDATE sequence SET next = ?", (seq,))
        self._next_seq = seq
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
        """Return what was last saved under `name` and when (ms), or None: there is none, or it is spoilt."""
        row = self._db.execute(
            "SELECT body, saved FROM document WHERE name = ?", (name,)
        ).fetchone()
        try:
            return None if row is None else (zlib.decompress(row[0]), row[1])
        except zlib.error as error:
            # It can be had anew; the candles beside it cannot.
            log.error(
                "document cannot be read, going on without name=%s error=%r", name, str(error)
            )
            return None

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

    def open_gaps(self) -> list[tuple[str, str, Stretch]]:
        """The gaps of candles that are neither healed nor given up: pair, timeframe and where."""
        return self._gaps("'found', 'healing'")

    def given_up_gaps(self) -> list[tuple[str, str, Stretch]]:
        """The gaps of candles that were given up, as `open_gaps` tells those that were not."""
        return self._gaps("'unresolvable'")

    def missing(self, pair: str, timeframe: str, gap: Stretch) -> list[Stretch]:
        """What of a stretch on the timeframe's grid is not stored, oldest first."""
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        opens = self._db.execute(
            """SELECT open_time FROM candle JOIN pair ON pair.id = pair_id
               WHERE pair.pair = ? AND timeframe_ms = ? AND open_time >= ? AND open_time < ?
               ORDER BY open_time""",
            (pair, length_ms, *gap),
        )
        return missing((open_ms for (open_ms,) in opens), gap, length_ms)

    def newest_settled(self) -> dict[str, tuple[int, float]]:
        """Time (ms) and rate of each pair's newest settled funding rate."""
        return {
            pair: (time_ms, rate)
            for pair, time_ms, rate in self._db.execute(
                """SELECT pair.pair, s.time, s.rate FROM pair CROSS JOIN funding_settled AS s
                   ON s.pair_id = pair.id AND (s.time, s.kind) = (
                       SELECT time, kind FROM funding_settled WHERE pair_id = pair.id
                       ORDER BY time DESC, kind LIMIT 1
                   )"""
            )
        }

    def candles(self, pair: str, timeframe: str, since_ms: int, until_ms: int) -> list[Candle]:
        """The closed candles with since_ms <= open time < until_ms, oldest first, all numbers.

        `event_time_ms` is not kept of closed candles: it is the close time here.
        """
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        return [
            Candle(pair, timeframe, at_ms, o, h, lo, c, v, q, b, n, True, at_ms + length_ms)
            for at_ms, o, h, lo, c, v, q, b, n in self._db.execute(
                """SELECT open_time, open, high, low, close, volume, quote_volume, taker_buy_volume,
                          trades
                   FROM candle JOIN pair ON pair.id = pair_id
                   WHERE pair.pair = ? AND timeframe_ms = ? AND open_time >= ? AND open_time < ?
                   ORDER BY open_time""",
                (pair, length_ms, since_ms, until_ms),
            )
        ]

    def catalog(self) -> list[CatalogEntry]:
        """What this journal collects, ordered by pair."""
        return [
            CatalogEntry(pair, symbol, tuple(frames.split(",")), since, listed, ended, changed)
            for pair, symbol, frames, since, listed, ended, changed in self._db.execute(
                """SELECT pair, symbol, timeframes, since, listed, ended, changed
                   FROM catalog JOIN pair ON pair.id = pair_id ORDER BY pair"""
            )
        ]

    def row_counts(self) -> dict[str, int]:
        """How many rows each table of records holds. Reads every row: for reports, not for a timer."""
        return {
            table: self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in (
                schema.TABLE_CANDLE,
                schema.TABLE_FORMING,
                schema.TABLE_MARK_PRICE,
                schema.TABLE_FUNDING_RATE,
                schema.TABLE_FUNDING_SETTLED,
                schema.TABLE_GAP,
                schema.TABLE_DEAD_LETTER,
            )
        }

    def counts(self) -> dict[str, int]:
        """Bytes in use and dead letters; cheap enough for every scrape of the metrics."""
        page_bytes, pages, free = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        (letters,) = self._db.execute("SELECT count(*) FROM dead_letter").fetchone()
        (refused,) = self._db.execute("SELECT count(*) FROM refused_line").fetchone()
        return {
            "bytes": page_bytes * (pages - free),
            "dead_letters": letters,
            "refused_lines": refused,
        }

    # --- shipping ------------------------------------------------------------------------------------

    def shipped(self, target: str) -> Ranges:
        """What `target` (a server and bucket) has acknowledged, as ranges of seq."""
        return acknowledged.read_shipped(self._db, target)

    def note_shipped(self, target: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Save ranges that `target` has acknowledged; those within them are replaced."""
        with self._transaction():
            acknowledged.note_shipped(self._db, target, ranges)

    def forget_if_demanded(self, target: str) -> bool:
        """Forget what `target` has acknowledged if it is demanded that all be shipped again; says so."""
        with self._transaction():
            return acknowledged.take_demand(self._db, target)

    def put_aside(self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int) -> int:
        """Keep lines that `target` refused, each with its answer; the newest REFUSED_LINES_KEPT stay.

        Returns how many older ones are gone by that.
        """
        with self._transaction():
            return acknowledged.put_aside(self._db, target, refused, refused_ms)

    # --- retention ---------------------------------------------------------------------------------

    def expired(self, keep_ms: Mapping[str, int]) -> list[Cut]:
        """What is older than `keep_ms[table]`, counted back from the newest row of that table.

        Tables: candle, mark_price, funding_rate. Never from the wall clock: a wrong clock must not
        delete anything. One cut a pair, so that commits of new data can pass in between.
        """
        return [
            Cut(table, pair_id, newest - age_ms)
            for table, age_ms in keep_ms.items()
            if (newest := self._extreme(table, "max")) is not None
            for pair_id in self._pair_ids.values()
        ]

    def over_budget(self, max_bytes: int) -> list[Cut]:
        """What to delete first when the file's used pages exceed `max_bytes`; empty when all fits.

        A sixteenth of what there is of the first table that has more than an hour: mark prices give
        way first, then running funding rates, closed candles last.
        """
        if self.counts()["bytes"] <= max_bytes:
            return []
        for table in ("mark_price", "funding_rate", "candle"):
            oldest, newest = self._extreme(table, "min"), self._extreme(table, "max")
            if oldest is None or newest is None or newest - oldest <= schema.HOUR_MS:
                continue
            step_ms = max((newest - oldest) // 16, schema.MINUTE_MS)
            before_ms = min(oldest + step_ms, newest - schema.HOUR_MS)
            return [Cut(table, pair_id, before_ms, oldest) for pair_id in self._pair_ids.values()]
        return []

    def delete(self, cut: Cut, below_seq: int | None = None) -> int:
        """Delete what a cut names, in one transaction. Returns the number of rows.

        Rows from `below_seq` on stay, whatever their age: they have not been shipped yet.
        """
        text = f"DELETE FROM {cut.table} WHERE pair_id = ? AND {_TIME_COLUMN[cut.table]} < ? AND seq < ?"
        key = (cut.pair_id, cut.before_ms, self._next_seq if below_seq is None else below_seq)
        with self._transaction():
            if cut.table != "candle":
                return self._db.execute(text, key).rowcount
            # By the timeframe too: the key begins with both.
            return sum(
                self._db.execute(f"{text} AND timeframe_ms = ?", (*key, length_ms)).rowcount
                for length_ms in schema.TIMEFRAME_NAMES
            )

    def _gaps(self, states: str) -> list[tuple[str, str, Stretch]]:
        lengths = schema.TIMEFRAMES_MS
        return [
            (pair, kind.removeprefix(CANDLE_GAP), Stretch(start_ms, end_ms))
            for pair, kind, start_ms, end_ms in self._db.execute(
                f"""SELECT pair.pair, kind, start, "end" FROM gap JOIN pair ON pair.id = pair_id
                    WHERE state IN ({states}) AND "end" IS NOT NULL
                    ORDER BY start DESC"""
            )
            if kind.removeprefix(CANDLE_GAP) in lengths
        ]

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
        self._pair_ids = dict(self._db.execute("SELECT pair, id FROM pair"))
        sequence = self._db.execute("SELECT next FROM sequence").fetchone()
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
            ids[pair] = self._db.execute(
                "INSERT INTO pair (pair) VALUES (?) RETURNING id", (pair,)
            ).fetchone()[0]
        return ids

    def _run(self, upsert: tables.Upsert, numbered: rows.Rows, seq: int) -> int:
        for text, parameters in upsert.statements(numbered):
            self._db.execute(text, parameters)
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
        self._db.executemany(
            "INSERT INTO dead_letter (received, reason, frame) VALUES (?, ?, ?)",
            [(item.received_ms, item.reason, item.frame[:DEAD_LETTER_BYTES]) for item in letters],
        )
        self._db.execute(
            "DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?",
            (DEAD_LETTERS_KEPT,),
        )


_TIME_COLUMN: Final = {"candle": "open_time", "mark_price": "time", "funding_rate": "time"}

_READ_FIRST: Final = (
    "SELECT * FROM sequence",
    "SELECT * FROM catalog",
    "SELECT * FROM forming",
    f"""SELECT (SELECT close FROM candle WHERE pair_id = pair.id AND timeframe_ms = t.value
                ORDER BY open_time DESC LIMIT 1)
        FROM pair, json_each('{list(schema.TIMEFRAME_NAMES)}') AS t""",
    """SELECT (SELECT mark_price FROM mark_price WHERE pair_id = pair.id ORDER BY time DESC LIMIT 1),
              (SELECT rate FROM funding_rate WHERE pair_id = pair.id ORDER BY time DESC LIMIT 1)
       FROM pair""",
)
"""What reads every series' newest row."""

_READ_AT_START: Final = (
    "SELECT * FROM document",
    "SELECT * FROM shipped",
    "SELECT * FROM gap WHERE state IN ('found', 'healing')",
    "SELECT * FROM gap LIMIT 1",
)
"""What a start reads, beside what opening reads by itself: pairs, the newest settled rates, counts."""
