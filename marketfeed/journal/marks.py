"""The hourly candles of the mark price in a journal: the tables that hold them, and what is promised of them.

They have tables of their own beside those of candles: `mark_1h`, and `series_coverage` for what is promised
of a series that is no timeframe. A journal of version 3 gets them when a writer opens it, without a row
being read; one of version 2 has to be upgraded, and loses them on the way back: they can be fetched again.

A writer of version 3 that does not know them leaves them alone. What a hand deletes is told by
`series_deleted`, which a trigger counts in.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal import tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.covering import Change, Covering, covered_series
from marketfeed.journal.reads import JournalReads
from marketfeed.records import Candle

ALL_COVERED: Final = "UPDATE series_deleted SET covered = deleted"
"""What has been deleted is known: all rows are to be looked through."""
DELETED: Final = "UPDATE series_deleted SET covered = covered + ?"
READ_AT_START: Final = (
    "SELECT * FROM series_coverage",
    "SELECT * FROM series_deleted",
    """SELECT (SELECT close FROM mark_1h WHERE pair_id = pair.id ORDER BY open_time DESC LIMIT 1)
       FROM pair""",
)
_SAVE: Final = """
INSERT INTO series_coverage (pair_id, series, "from", looked, promised, released)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    "from" = excluded."from", looked = excluded.looked, promised = excluded.promised,
    released = excluded.released"""
_PROMISES: Final = """SELECT pair, series, "from", looked, promised, released
    FROM series_coverage JOIN pair ON pair.id = pair_id WHERE series = ?"""


def has_table(db: sqlite3.Connection) -> bool:
    """Whether a journal has the tables."""
    (found,) = db.execute(schema.HAS_MARK_1H).fetchone()
    return bool(found)


def add(db: sqlite3.Connection) -> None:
    """Add the tables to a journal of version 3 that lacks them. In a transaction."""
    if has_table(db):
        return
    for statement in tables.CREATE_MARK_1H:
        db.execute(statement)
    # Nothing of it was there that a server could lack.
    db.execute(
        """INSERT INTO shipped (target, measurement, first, last)
           SELECT target, ?, first, last FROM shipped WHERE measurement = ?""",
        (schema.MARK_1H, tables.MEASUREMENTS_3[0]),
    )


def remove(db: sqlite3.Connection) -> None:
    """Take them away, with the gaps that tell of them and what was acknowledged: for a version 2."""
    if not has_table(db):
        return
    for table in ("mark_1h", "series_coverage", "series_deleted"):
        db.execute(f"DROP TABLE {table}")
    kinds = (schema.gap_kind(schema.MARK_1H), schema.HISTORY_GAP + schema.MARK_1H)
    db.execute("DELETE FROM gap WHERE kind IN (?, ?)", kinds)
    db.execute("DELETE FROM shipped WHERE measurement = ?", (schema.MARK_1H,))


def is_trusted(db: sqlite3.Connection) -> bool:
    """Whether nobody else has deleted mark candles since coverage was saved."""
    return bool(db.execute("SELECT deleted = covered FROM series_deleted").fetchone()[0])


class MarkCovering(Covering):
    """The coverage of the series `mark_1h`: as that of candles, in tables of its own."""

    def write_promises(self, change: Change, ids: Mapping[str, int]) -> None:
        """Save what a change does to promises."""
        promises = [
            (ids[pair], series, covered.from_ms, covered.looked_ms, covered.promised_ms, released)
            for (pair, series), covered, released in change.changed_promises()
        ]
        if promises:
            self._reads.db.executemany(_SAVE, promises)
        if not self.is_saved:
            self._reads.db.execute(ALL_COVERED)

    def _newest(self) -> dict[Key, int]:
        return self._reads.newest_marks()

    def _read(self) -> tuple[dict[Key, Covered], set[Key]]:
        return read_coverage(self._reads)

    def _is_trusted(self) -> bool:
        return is_trusted(self._reads.db)

    def _gaps(self) -> list[tuple[str, str, TimeRange]]:
        return self._reads.open_gaps(marks=True)

    def _candles(self, batch: Batch) -> Sequence[Candle]:
        return batch.marks


def read_coverage(reads: JournalReads) -> tuple[dict[Key, Covered], set[Key]]:
    """What is promised of mark candles and missing, and which series are promised no more."""
    promises = reads.db.execute(_PROMISES, (schema.MARK_1H,)).fetchall()
    newest = reads.newest_marks()
    return covered_series(reads, promises, newest, trusted=is_trusted(reads.db))
