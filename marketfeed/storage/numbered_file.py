"""A durable file whose rows are numbered: its open end, its counter, and what of it a server has.

Every stored row carries a `seq`, greater than any that was ever given before: one counter numbers the
rows of all tables and is saved in the same transaction, so that a shipped range covers all of them and a
number is never given twice, not even after retention has deleted the newest row.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from marketfeed.storage.acknowledged import notes_of
from marketfeed.storage.damage import damage
from marketfeed.storage.database import Database, Kind
from marketfeed.storage.opening import AGAIN_AFTER_S
from marketfeed.storage.ranges import Acknowledged


class NumberedFile:
    """The one writer of a file of `kind`.

    Not safe for concurrent calls: give it to one thread. Whatever writes raises JournalWriteError when
    SQLite cannot (disk full, I/O error, damage); nothing of that call is stored then. What reads raises
    SQLite's errors as they are: call it within `translate_sqlite_errors`, as `FileThread` does.
    """

    kind: ClassVar[Kind]

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self.set_aside: Path | None = None
        self.db = database.db
        self.version = database.version
        self.identity = database.identity
        """Which file that is, as it was opened."""
        self._database = database
        self._notes = notes_of(self.kind, self.db)
        # Files of older versions do not count.
        self._counts_commits = (
            self.db.execute(
                "SELECT 1 FROM pragma_table_info('sequence') WHERE name = 'commits'"
            ).fetchone()
            is not None
        )
        self._next_seq = 1
        self._reload()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        wait_lock_s: float = 0.0,
        distrusted: bool = False,
        again_after_s: Sequence[float] = AGAIN_AFTER_S,
        look: Callable[[Self], None] = lambda _: None,
    ) -> Self:
        """Open or create the file at `path` and take its lock, as `Database.open` says.

        Raises JournalWriteError, too, when a fresh one cannot be read.
        """
        opened: list[Self] = []

        def begin(database: Database) -> None:
            # Of an attempt before nothing is left.
            opened[:] = [cls(database)]
            look(opened[0])

        database = Database.open(
            cls.kind,
            path,
            wait_lock_s=wait_lock_s,
            distrusted=distrusted,
            again_after_s=again_after_s,
            look=begin,
        )
        opened[0].set_aside = database.set_aside
        return opened[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Checkpoint, close the file and give the lock back. Safe to call twice."""
        self._database.close()

    @property
    def next_seq(self) -> int:
        """The number that the next stored row gets; every stored one is smaller."""
        return self._next_seq

    # --- shipping ------------------------------------------------------------------------------------

    def shipped(self, target: str) -> Acknowledged:
        """What `target` (a server and bucket) has acknowledged."""
        return self._notes.shipped(target)

    def note_shipped(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Save ranges (measurement, first, last) that `target` has acknowledged, for those within them."""
        with self._transaction():
            self._notes.note(target, ranges)

    def forget_if_demanded(self, target: str) -> bool:
        """Forget what `target` has acknowledged if all is to be shipped again; return whether it is."""
        with self._transaction():
            demanded, gone = self._notes.is_demanded(target), self._notes.lines_gone()
            forgotten = self._notes.take_demand(target)
            if demanded:
                self._note_begun_again(target, gone)
        return forgotten

    def put_aside(self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int) -> int:
        """Keep lines that `target` refused, each with its answer; returns how many older ones are gone."""
        with self._transaction():
            gone = self._notes.put_aside(target, refused, refused_ms)
            if gone:
                self._note_gone(gone)
        return len(gone)

    # --- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database.transaction():
                before = self.db.total_changes
                yield
                # So that readers of what is derived from the rows, and kept, see that another version wrote.
                # Not for nothing: retention that finds nothing would have the disk synced for each pair.
                if self._counts_commits and self.db.total_changes != before:
                    self._count_commit()
        except BaseException:
            # What was numbered in vain must be numbered anew.
            with contextlib.suppress(sqlite3.Error):
                self._reload()
            raise

    def _note_begun_again(self, target: str, gone_before: int) -> None:
        """Take in, within the transaction, that everything is shipped to `target` again.

        `gone_before`: how many refused lines had been pushed out.
        """

    def _note_gone(self, lines: Sequence[tuple[int, str, str]]) -> None:
        """Take in, within the transaction, refused lines that newer ones have pushed out: as `put_aside`."""

    def _count_commit(self) -> None:
        """Count a transaction that has written something."""
        self.db.execute("UPDATE sequence SET commits = commits + 1")

    def _save_seq(self, seq: int) -> None:
        if seq != self._next_seq:
            self.db.execute("UPDATE sequence SET next = ?", (seq,))

    def _reload(self) -> None:
        sequence = self.db.execute("SELECT next FROM sequence").fetchone()
        if sequence is None:
            raise damage("no row in table sequence")
        (self._next_seq,) = sequence
