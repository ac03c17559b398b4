"""What of a durable file a server has acknowledged or refused: the SQL of three tables in each such file.

`CREATE_SHIPPED` creates them. `shipped` names ranges of `seq` for each measurement, so that what a later
version adds to a file is shipped from its first row on, whoever has shipped the rest. Files of the version
before have them for all measurements together, with the notes about a target among them (`OlderNotes`).
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from marketfeed.storage.damage import damage
from marketfeed.storage.database import Kind, recognise, transaction, translate_sqlite_errors
from marketfeed.storage.ranges import Acknowledged, Ranges
from marketfeed.storage.reading import inspect

REFUSED_LINES_KEPT: Final = 10_000

CREATE_SHIPPED: Final = """
CREATE TABLE shipped(
    target TEXT NOT NULL, measurement TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, measurement, first)
) WITHOUT ROWID;
CREATE TABLE shipping(
    target TEXT PRIMARY KEY, again INTEGER NOT NULL, lines_gone INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE refused_line(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refused INTEGER NOT NULL, target TEXT NOT NULL, line TEXT NOT NULL, answer TEXT NOT NULL
);
"""
"""The tables, in the journal as in the ledger. `shipping`: whether everything is to be shipped again, and
how many refused lines newer ones have pushed out."""


class Notes:
    """The notes about shipping in the file that `db` is open on. Raises SQLite's errors as they are.

    `measurements` are those whose rows the file holds. What changes something belongs in a transaction.
    """

    def __init__(self, db: sqlite3.Connection, measurements: Sequence[str]) -> None:
        self._db = db
        self._measurements = tuple(measurements)

    def shipped(self, target: str) -> Acknowledged:
        """What `target` (a server and bucket) has acknowledged."""
        found: dict[str, Ranges] = {name: Ranges() for name in self._measurements}
        for name, first, last in self._db.execute(
            "SELECT measurement, first, last FROM shipped WHERE target = ?", (target,)
        ):
            # Of a measurement that this version does not know a newer one keeps its own account.
            if name in found:
                found[name].add(first, last)
        return Acknowledged(found)

    def has_shipped(self, target: str) -> bool:
        """Whether `target` has acknowledged anything."""
        text = "SELECT 1 FROM shipped WHERE target = ?"
        return self._db.execute(text, (target,)).fetchone() is not None

    def note(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Save ranges (measurement, first, last) that `target` has acknowledged, for those within them."""
        # One by one: a range may lie within one that comes after it.
        for row in ranges:
            self._db.execute(
                "DELETE FROM shipped WHERE target = ? AND measurement = ? AND first > ? AND first <= ?",
                (target, *row),
            )
            self._db.execute(
                """INSERT INTO shipped (target, measurement, first, last) VALUES (?, ?, ?, ?)
                   ON CONFLICT DO UPDATE SET last = excluded.last""",
                (target, *row),
            )

    def is_demanded(self, target: str) -> bool:
        """Whether everything is to be shipped again to `target`."""
        text = "SELECT 1 FROM shipping WHERE target = ? AND again"
        return self._db.execute(text, (target,)).fetchone() is not None

    def demand(self, target: str) -> None:
        """Note that everything is to be shipped again. A second demand is the same one."""
        self._db.execute(
            """INSERT INTO shipping (target, again, lines_gone) VALUES (?, 1, 0)
               ON CONFLICT DO UPDATE SET again = 1""",
            (target,),
        )

    def withdraw(self, target: str) -> None:
        """Take a demand back, if nobody has taken it up yet."""
        self._db.execute("UPDATE shipping SET again = 0 WHERE target = ?", (target,))

    def forget(self, target: str) -> bool:
        """Forget everything about a target; whether it had acknowledged anything."""
        self._db.execute("DELETE FROM shipping WHERE target = ?", (target,))
        return self._db.execute("DELETE FROM shipped WHERE target = ?", (target,)).rowcount > 0

    def count_gone(self, target: str, lines: int) -> None:
        """Add refused lines that newer ones have pushed out."""
        self._db.execute(
            """INSERT INTO shipping (target, again, lines_gone) VALUES (?, 0, ?)
               ON CONFLICT DO UPDATE SET lines_gone = lines_gone + excluded.lines_gone""",
            (target, lines),
        )

    def lines_gone(self) -> int:
        """How many refused lines newer ones have pushed out since everything was last shipped again."""
        (count,) = self._db.execute("SELECT coalesce(sum(lines_gone), 0) FROM shipping").fetchone()
        return int(count)

    def put_aside(
        self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int
    ) -> list[tuple[int, str, str]]:
        """Keep lines that `target` refused, each with its answer; the newest REFUSED_LINES_KEPT stay.

        Returns older ones that are gone by that: number, target and line of each.
        """
        self._db.executemany(
            "INSERT INTO refused_line (refused, target, line, answer) VALUES (?, ?, ?, ?)",
            [(refused_ms, target, line, answer) for line, answer in refused],
        )
        gone = self._db.execute(
            """DELETE FROM refused_line
               WHERE id <= (SELECT id FROM refused_line ORDER BY id DESC LIMIT 1 OFFSET ?)
               RETURNING id, target, line""",
            (REFUSED_LINES_KEPT,),
        ).fetchall()
        if gone:
            self.count_gone(target, len(gone))
        return gone

    def take_demand(self, target: str) -> bool:
        """Forget what `target` has acknowledged, and the demand with it, if there is one.

        In one transaction: a kill leaves both or neither, so that a demand is met once. Returns whether
        there was something to forget.
        """
        return self.is_demanded(target) and self.forget(target)


class OlderNotes(Notes):
    """The notes about shipping in journals up to version 2 and ledgers of version 1.

    A range counts for all measurements; notes stand as ranges under names that no target has.
    """

    AGAIN: Final = "ship again: "
    GONE: Final = "refused lines gone: "

    def shipped(self, target: str) -> Acknowledged:
        """What `target` has acknowledged: the same of every measurement."""
        ranges = Ranges(
            self._db.execute("SELECT first, last FROM shipped WHERE target = ?", (target,))
        )
        return Acknowledged.alike(self._measurements, ranges)

    def note(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Save ranges; they come for all measurements alike, as `shipped` gives them."""
        for row in dict.fromkeys((first, last) for _, first, last in ranges):
            self._db.execute(
                "DELETE FROM shipped WHERE target = ? AND first > ? AND first <= ?", (target, *row)
            )
            self._db.execute(
                """INSERT INTO shipped (target, first, last) VALUES (?, ?, ?)
                   ON CONFLICT DO UPDATE SET last = excluded.last""",
                (target, *row),
            )

    def is_demanded(self, target: str) -> bool:
        """Whether everything is to be shipped again to `target`."""
        return self.has_shipped(self.AGAIN + target)

    def demand(self, target: str) -> None:
        """Note that everything is to be shipped again. A second demand is the same one."""
        self._db.execute(
            """INSERT INTO shipped (target, first, last) VALUES (?, 1, 1)
               ON CONFLICT DO NOTHING""",
            (self.AGAIN + target,),
        )

    def withdraw(self, target: str) -> None:
        """Take a demand back, if nobody has taken it up yet."""
        self._db.execute("DELETE FROM shipped WHERE target = ?", (self.AGAIN + target,))

    def forget(self, target: str) -> bool:
        """Forget everything about a target; whether it had acknowledged anything."""
        names = (target, self.AGAIN + target, self.GONE + target)
        text = "DELETE FROM shipped WHERE target = ?"
        forgotten, *_ = [self._db.execute(text, (name,)).rowcount for name in names]
        return forgotten > 0

    def count_gone(self, target: str, lines: int) -> None:
        """Add refused lines that newer ones have pushed out."""
        self._db.execute(
            """INSERT INTO shipped (target, first, last) VALUES (?, 1, ?)
               ON CONFLICT DO UPDATE SET last = shipped.last + excluded.last""",
            (self.GONE + target, lines),
        )

    def lines_gone(self) -> int:
        """How many refused lines newer ones have pushed out since everything was last shipped again."""
        (count,) = self._db.execute(
            "SELECT coalesce(sum(last), 0) FROM shipped WHERE substr(target, 1, ?) = ?",
            (len(self.GONE), self.GONE),
        ).fetchone()
        return int(count)


def notes_of(kind: Kind, db: sqlite3.Connection) -> Notes:
    """The notes of a file of `kind`, whichever of its versions it is of."""
    older = db.execute(
        "SELECT 1 FROM pragma_table_info('shipped') WHERE name = 'measurement'"
    ).fetchone()
    return (OlderNotes if older is None else Notes)(db, kind.measurements)


# --- from one version to the next ------------------------------------------------------------------------


def name_measurements(db: sqlite3.Connection, measurements: Sequence[str]) -> None:
    """Make `Notes` of `OlderNotes`, with what was acknowledged for each of these measurements.

    Those that a file of the older version holds: what it has acknowledged proves nothing about others.
    """
    older = db.execute("SELECT target, first, last FROM shipped").fetchall()
    db.execute("DROP TABLE shipped")
    for statement in CREATE_SHIPPED.split(";")[:2]:
        db.execute(statement)
    notes = Notes(db, measurements)
    ranges: list[tuple[str, str, int, int]] = []
    for target, first, last in older:
        if target.startswith(OlderNotes.AGAIN):
            notes.demand(target.removeprefix(OlderNotes.AGAIN))
        elif target.startswith(OlderNotes.GONE):
            notes.count_gone(target.removeprefix(OlderNotes.GONE), last)
        else:
            ranges += [(target, name, first, last) for name in measurements]
    # At once: noted one by one, ten thousand of them would take a second.
    db.executemany(
        "INSERT INTO shipped (target, measurement, first, last) VALUES (?, ?, ?, ?)", ranges
    )


def name_no_measurements(db: sqlite3.Connection, measurements: Sequence[str]) -> None:
    """Make `OlderNotes` of `Notes`: acknowledged is what was so of each of these measurements."""
    notes = Notes(db, measurements)
    targets = [target for (target,) in db.execute("SELECT DISTINCT target FROM shipped")]
    sequence = db.execute("SELECT next FROM sequence").fetchone()
    if sequence is None:
        raise damage("no row in table sequence")
    (end,) = sequence
    shipped = {
        target: Ranges((piece.first, piece.last) for piece in notes.shipped(target).pieces(end))
        for target in targets
    }
    states = db.execute("SELECT target, again, lines_gone FROM shipping").fetchall()
    db.execute("DROP TABLE shipped")
    db.execute("DROP TABLE shipping")
    db.execute(
        """CREATE TABLE shipped(
            target TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
            PRIMARY KEY (target, first)
        ) WITHOUT ROWID"""
    )
    older = OlderNotes(db, measurements)
    for target, lacking in shipped.items():
        older.note(target, [("", first, last) for first, last in lacking.gaps(end)])
    for target, again, gone in states:
        if again:
            older.demand(target)
        if gone:
            older.count_gone(target, gone)


# --- shipping everything again ---------------------------------------------------------------------------


class Demand(NamedTuple):
    """What was found when a demand was noted: whether anything had been shipped, and who writes the file.

    `known`: it had been demanded already.
    """

    shipped_before: bool
    holder: str
    known: bool = False


def demand_again(kind: Kind, path: Path, target: str) -> Demand | None:
    """Note in a file that everything in it is to be shipped to `target` again; None if there is no file.

    Whoever ships it takes the demand up, now or at its next start: the file may have a writer. Raises
    JournalError when the file cannot be written, and what `inspect` raises.
    """
    found = inspect(kind, path, writing=True)
    if found is None or found.version == 0:
        return None
    with _opened(kind, path) as notes:
        before, known = notes.has_shipped(target), notes.is_demanded(target)
        notes.demand(target)
    return Demand(before, found.holder, known)


def withdraw(kind: Kind, path: Path, target: str) -> None:
    """Take a demand back, if nobody has taken it up yet. Raises JournalError."""
    with _opened(kind, path) as notes:
        notes.withdraw(target)


@contextlib.contextmanager
def _opened(kind: Kind, path: Path) -> Iterator[Notes]:
    """The notes in one short transaction on a connection of its own: the file may have a writer."""
    with (
        translate_sqlite_errors(kind, path),
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as db,
        transaction(db),
    ):
        recognise(kind, path, db, writing=True)
        yield notes_of(kind, db)
