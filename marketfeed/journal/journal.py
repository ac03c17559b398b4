"""The journal: one SQLite file that holds everything the collector knows. The truth.

When `write` returns, its batch is on the disk (`storage/database.py` says how). One connection writes, from
one thread at a time; readers open the file themselves (`reader/stores/sqlite.py`).

Its rows are numbered, as `storage/numbered_file.py` says.
"""

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from marketfeed import schema
from marketfeed.journal import marks, quotes, refused_candles, rejected, rows, stamps, tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import HISTORY_GAP, Covered, Key, Promise
from marketfeed.journal.covering import Change, Covering
from marketfeed.journal.migrations import back_to_2, grow, to_3
from marketfeed.journal.reads import READ_AT_START, READ_AT_START_3, READ_FIRST, JournalReads
from marketfeed.journal.retention import Sweep
from marketfeed.records import REGULAR, Candle, FundingSettled, Gap, Life
from marketfeed.storage import acknowledged
from marketfeed.storage.database import Database, Kind
from marketfeed.storage.numbered_file import NumberedFile

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
    grow=grow,
    refillable=True,
)


class Journal(NumberedFile, JournalReads):
    """The one writer of a journal file, which may ask it, too."""

    kind = KIND

    def __init__(self, database: Database) -> None:
        self._covering = Covering(JournalReads(database.db), database.version)
        self._marks = (
            marks.MarkCovering(JournalReads(database.db), database.version)
            if marks.has_table(database.db)
            else None
        )
        # Of this transaction; None when it saves all of coverage.
        self._deleted_candles: int | None = 0
        self._pair_ids: dict[str, int] = {}
        self.has_quotes = quotes.is_accounted(database.db)
        """Whether candles are stored with `taker_buy_quote_volume`."""
        self.keeps_lives = JournalReads(database.db).has_lives()
        """Whether the file has a table for lives."""
        self._keeps_stamps = stamps.has_columns(database.db)
        self._funding_written: dict[str, tuple[int, int]] = {}
        self._settled: dict[str, tuple[int, float]] = {}
        super().__init__(database)

    def require_whole(self, *, at_start: bool = False) -> str:
        """Look whether readers can still read the newest rows from the disk. From any thread.

        `at_start` looks at what a collector reads before its first commit, too. Returns and raises what
        `Database.require_whole` does. A commit notices no damage to pages that it finds in memory.
        """
        begins = READ_AT_START if self.version < 3 else READ_AT_START_3
        if self.has_quotes:
            begins = (*begins, "SELECT * FROM quote_asked")
        if self.keeps_lives:
            begins = (*begins, "SELECT * FROM life")
        if self.has_marks:
            begins = (*begins, *marks.READ_AT_START)
        return self._database.require_whole((*READ_FIRST, *begins) if at_start else READ_FIRST)

    @property
    def coverage(self) -> Mapping[Key, Covered]:
        """What is promised of each series, and missing, as of the last commit. From any thread."""
        return self._covering.series

    @property
    def has_marks(self) -> bool:
        """Whether hourly candles of mark prices are stored."""
        return self._marks is not None

    @property
    def mark_coverage(self) -> Mapping[Key, Covered]:
        """As `coverage`, of the hourly candles of mark prices. From any thread."""
        return {} if self._marks is None else self._marks.series

    @property
    def gap_states(self) -> Counter[str]:
        """How many gaps of candles were found, healed and given up: counted on in what it is set to."""
        return self._covering.gap_states

    @gap_states.setter
    def gap_states(self, counted: Counter[str]) -> None:
        self._covering.gap_states = counted

    def write(self, batch: Batch) -> int:
        """Commit a batch durably, in one transaction. Returns how many rows were new or changed.

        All of it is stored or, when JournalWriteError is raised, none.
        """
        with self._transaction():
            ids = self._ids_of(batch)
            before = self.db.total_changes
            seq = self._next_seq
            numbered = rows.candle_rows(batch.candles, ids, seq)
            seq = self._run_candles(tables.CANDLE, tables.CANDLE_2, numbered, seq)
            if batch.candles:
                before += self.db.execute(tables.FORMING_CLOSED).rowcount
            numbered = rows.forming_rows(batch.forming.values(), ids, seq)
            seq = self._run_candles(tables.FORMING, tables.FORMING_2, numbered, seq)
            seq = self._run(tables.MARK_PRICE, rows.mark_rows(batch, ids, seq), seq)
            funding, written = rows.funding_rows(
                batch, ids, seq, self._funding_written, self._settled
            )
            seq = self._run(tables.FUNDING_RATE, funding, seq)
            seq = self._run(tables.FUNDING_SETTLED, rows.settled_rows(batch, ids, seq), seq)
            change = self._covering.change()
            self._covering.take_batch(change, batch)
            seq = self._write_change(self._covering, change, seq, batch.gaps.values())
            seq, marks_change = self._write_marks(batch, ids, seq)
            if self.version >= schema.DROPPED_FROM:
                seq = self._run(tables.CATALOG, rows.catalog_rows(batch.catalog, ids, seq), seq)
            else:
                seq = self._run(tables.CATALOG_2, rows.catalog_rows_2(batch.catalog, ids, seq), seq)
            changed = self.db.total_changes - before
            rejected.write(self.db, batch.rejected_frames)
            if batch.stamp is not None and self._keeps_stamps:
                self.db.execute(stamps.STAMP, batch.stamp)
            self._save_seq(seq)
        self._next_seq = seq
        self._covering.publish(change)
        self._publish_marks(marks_change)
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
            seq = self._run_candles(
                tables.CANDLE_REPAIR, tables.CANDLE_REPAIR_2, numbered, self._next_seq
            )
            changed = self.db.total_changes - before
            change = self._covering.change()
            self._covering.take_batch(change, batch)
            seq = self._write_change(self._covering, change, seq)
            before = self.db.total_changes
            seq, marks_change = self._write_marks(batch, ids, seq)
            # Holes that close with them are no rows that were asked for.
            changed += min(self.db.total_changes - before, len(batch.marks))
            self._save_seq(seq)
        self._next_seq = seq
        self._covering.publish(change)
        self._publish_marks(marks_change)
        return changed

    def add_rows(
        self, upsert: tables.Upsert, pair: str | None, others: Sequence[tuple[object, ...]]
    ) -> int:
        """Add rows of a pair (None: of all) as another journal has them; returns how many are new here.

        Each without the pair, which is its first column, and the number, its last. Raises JournalWriteError.
        """
        with self._transaction():
            pair_id = tables.NO_PAIR if pair is None else self._id_of(pair)
            before, first = self.db.total_changes, self._next_seq
            seq = self._run(
                upsert, [(pair_id, *row, n) for n, row in enumerate(others, first)], first
            )
            changed = self.db.total_changes - before
            self._save_seq(seq)
        self._next_seq = seq
        self._settled = self.newest_settled()
        return changed

    def fill_quotes(self, candles: Sequence[Candle], asked: Mapping[Key, int]) -> int:
        """Give stored candles the `taker_buy_quote_volume` that they lack; returns how many have changed.

        One that has another value gets this one. Nothing else of them changes: one that differs in other
        numbers stays as it is. `asked` notes down to where (ms) series have been asked for again. Only where
        `has_quotes`. Raises JournalWriteError.
        """
        seq = self._next_seq
        with self._transaction():
            pairs = {key[0] for key in asked} | {candle.pair for candle in candles}
            ids = {pair: self._id_of(pair) for pair in pairs}
            before = self.db.total_changes
            seq = self._run(tables.CANDLE_QUOTE, rows.candle_rows(candles, ids, seq), seq)
            changed = self.db.total_changes - before
            self.db.executemany(
                quotes.ASKED,
                [(ids[p], schema.TIMEFRAMES_MS[name], ms) for (p, name), ms in asked.items()],
            )
            self._save_seq(seq)
        self._next_seq = seq
        return changed

    def note_shipped(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Save ranges (measurement, first, last) that `target` has acknowledged, for those within them."""
        super().note_shipped(target, quotes.acknowledged(ranges) if self.has_quotes else ranges)

    def promise(self, promises: Sequence[Promise], *, only: bool = False) -> None:
        """Keep these series from now on, and with `only` no others. Raises JournalWriteError.

        Those of mark candles have no place in a journal without them.
        """
        keys = {(promise.pair, promise.timeframe) for promise in promises}
        for covering in self._coverings():
            with self._changing_coverage(covering) as change:
                for one in promises:
                    if self._covering_of(one.timeframe) is covering:
                        self._id_of(one.pair)
                        covering.promise(change, one)
                if only:
                    covering.release_others(change, keys)

    def release(self, keys: Iterable[Key]) -> None:
        """Promise no more of these series; their rows stay. Raises JournalWriteError."""
        released = list(keys)
        for covering in self._coverings():
            with self._changing_coverage(covering) as change:
                covering.release(change, released)

    def look_through(self, keys: Iterable[Key], candles: int) -> None:
        """Look through rows of which it is not known whether they are whole: so many of each series.

        The newest go first. Raises JournalWriteError.
        """
        wanted = list(keys)
        for covering in self._coverings():
            with self._changing_coverage(covering) as change:
                for key in wanted:
                    covering.look_through(change, key, candles)

    def save_lives(self, lives: Mapping[str, Sequence[Life]]) -> None:
        """Keep which contracts pairs have been the names of, in place of what was kept of these pairs.

        Where the file has no table for it, nothing is kept. Raises JournalWriteError.
        """
        if not self.keeps_lives:
            return
        with self._transaction():
            for pair, every in lives.items():
                pair_id = self._id_of(pair)
                self.db.execute("DELETE FROM life WHERE pair_id = ?", (pair_id,))
                self.db.executemany(
                    tables.LIFE,
                    [
                        (pair_id, one.symbol, one.listed_ms, one.ended_ms, one.evidence)
                        for one in every
                    ],
                )

    def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document (a last-known copy of exchangeInfo, the chosen pairs …) under `name`."""
        with self._transaction():
            self._save(name, body, saved_ms)

    def sweep(self, sweep: Sweep) -> int:
        """Delete what comes next of a sweep, in one transaction of a few ms; returns how many rows.

        Raises JournalWriteError: nothing is gone then, and the same comes next.
        """
        started_s = time.perf_counter()
        of_marks = sweep.table == schema.TABLE_MARK_1H
        covering = self._covering if self._marks is None or not of_marks else self._marks
        with self._changing_coverage(covering) as change:
            done = sweep.delete(self.db, self._next_seq)
            if sweep.table == schema.TABLE_CANDLE:
                self._deleted_candles = done.rows
            elif of_marks and done.rows:
                self.db.execute(marks.DELETED, (done.rows,))
            names = ((pair, done.had.get(number)) for pair, number in self._pair_ids.items())
            had = {pair: had for pair, had in names if had is not None}
            covering.delete(change, had, done.before_ms)
        sweep.commit(done, time.perf_counter() - started_s)
        return done.rows

    # --- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing_coverage(self, covering: Covering) -> Iterator[Change]:
        """A transaction that changes coverage, and no rows that are numbered but gaps."""
        change = covering.change()
        with self._transaction():
            yield change
            seq = self._write_change(covering, change, self._next_seq)
            self._save_seq(seq)
        self._next_seq = seq
        covering.publish(change)

    def _coverings(self) -> list[Covering]:
        return [self._covering] if self._marks is None else [self._covering, self._marks]

    def _covering_of(self, timeframe: str) -> Covering | None:
        return self._marks if timeframe == schema.MARK_1H else self._covering

    def _write_marks(
        self, batch: Batch, ids: dict[str, int], seq: int
    ) -> tuple[int, Change | None]:
        """Write mark candles, and what a batch tells of their series; returns the next number."""
        if self._marks is None or not (batch.marks or batch.due or batch.absent):
            return seq, None
        seq = self._run(tables.MARK_1H, rows.mark_candle_rows(batch.marks, ids, seq), seq)
        change = self._marks.change()
        self._marks.take_batch(change, batch)
        return self._write_change(self._marks, change, seq), change

    def _publish_marks(self, change: Change | None) -> None:
        if self._marks is not None and change is not None:
            self._marks.publish(change)

    def _write_change(
        self, covering: Covering, change: Change, seq: int, gaps: Iterable[Gap] = ()
    ) -> int:
        """Write what a change does to coverage, and other gaps; returns the next number."""
        every = [*((gap, None) for gap in gaps), *change.gaps]
        if covering.is_durable:
            covering.write_promises(change, self._pair_ids)
            if not covering.is_saved and covering is self._covering:
                self._deleted_candles = None
            covering.is_saved = True
        else:
            # What is missing of a first filling is known in memory, until the file is version 3.
            every = [row for row in every if not row[0].kind.startswith(HISTORY_GAP)]
        if not every:
            return seq
        upsert = tables.GAP if covering.is_durable else tables.GAP_2
        numbered = rows.gap_rows(every, self._pair_ids, seq, version=self.version)
        return self._run(upsert, numbered, seq)

    def _note_begun_again(self, target: str, gone_before: int) -> None:
        (last,) = self.db.execute("SELECT coalesce(max(id), 0) FROM refused_line").fetchone()
        document = self._refused_candles(gone_before)
        document.begin_again(target, last, self._notes.lines_gone())
        self._save(refused_candles.DOCUMENT, refused_candles.encode(document), 0)

    def _note_gone(self, lines: Sequence[tuple[int, str, str]]) -> None:
        document = self._refused_candles(self._notes.lines_gone() - len(lines))
        document.push_out(lines)
        self._save(refused_candles.DOCUMENT, refused_candles.encode(document), 0)

    def _refused_candles(self, lines_gone: int) -> refused_candles.RefusedCandles:
        found = self.load_document(refused_candles.DOCUMENT)
        body = None if found is None else found[0]
        return refused_candles.decode(body, lines_gone=lines_gone)

    def _count_commit(self) -> None:
        deleted, self._deleted_candles = self._deleted_candles, 0
        if not self._covering.is_durable or not self._covering.is_saved:
            super()._count_commit()
        elif deleted is None:
            self.db.execute(tables.COUNT_SAVED)
        else:
            self.db.execute(tables.COUNT_COVERED, (deleted,))

    def _reload(self) -> None:
        self._covering.is_saved = False
        self._deleted_candles = 0
        # Empty until it is read: an id that was given in vain would name another pair.
        self._pair_ids = {}
        self._pair_ids = dict(self.db.execute("SELECT pair, id FROM pair"))
        super()._reload()
        self._covering.load()
        if self._marks is not None:
            self._marks.is_saved = False
            self._marks.load()
        self._funding_written.clear()
        self._settled = self.newest_settled()

    def _ids_of(self, batch: Batch) -> dict[str, int]:
        ids = self._pair_ids
        named = {candle.pair for candle in batch.candles}
        named.update(candle.pair for candle in batch.marks)
        named.update(pair for pair, _ in batch.forming)
        named.update(pair for pair, _ in batch.mark_prices)
        named.update(pair for pair, _ in batch.funding_rates)
        named.update(settled.pair for settled in batch.settled)
        named.update(gap.pair for gap in batch.gaps.values() if gap.pair is not None)
        named.update(entry.pair for entry in batch.catalog)
        for pair in sorted(named.difference(ids)):
            self._id_of(pair)
        return ids

    def _id_of(self, pair: str) -> int:
        if pair not in self._pair_ids:
            self._pair_ids[pair] = self.db.execute(
                "INSERT INTO pair (pair) VALUES (?) RETURNING id", (pair,)
            ).fetchone()[0]
        return self._pair_ids[pair]

    def _save(self, name: str, body: bytes, saved_ms: int) -> None:
        self.db.execute(tables.DOCUMENT, (name, saved_ms, zlib.compress(body)))

    def _run_candles(
        self, upsert: tables.Upsert, upsert_2: tables.Upsert, numbered: rows.Rows, seq: int
    ) -> int:
        if self.has_quotes:
            return self._run(upsert, numbered, seq)
        return self._run(upsert_2, rows.without_quotes(numbered), seq)

    def _save_seq(self, seq: int) -> None:
        if self.has_quotes and seq != self._next_seq:
            self.db.execute("UPDATE sequence SET next = ?, quoted = ?", (seq, seq))
        else:
            super()._save_seq(seq)

    def _run(self, upsert: tables.Upsert, numbered: rows.Rows, seq: int) -> int:
        for text, parameters in upsert.statements(numbered):
            self.db.execute(text, parameters)
        return seq + len(numbered)

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
