"""What of a durable file a server has acknowledged or refused: the SQL of two tables in each such file.

`CREATE_SHIPPED` creates them. In `shipped` stand, besides the ranges of a target, two notes about it
under names that no target has: that everything is to be shipped again, and how many refused lines are gone.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from marketfeed.storage.database import Kind, errors_told, recognise, transaction
from marketfeed.storage.ranges import Ranges
from marketfeed.storage.reading import inspect

REFUSED_LINES_KEPT: Final = 10_000
_AGAIN: Final = "ship again: "
_GONE: Final = "refused lines gone: "


def read_shipped(db: sqlite3.Connection, target: str) -> Ranges:
    """What `target` (a server and bucket) has acknowledged, as ranges of seq."""
    return Ranges(db.execute("SELECT first, last FROM shipped WHERE target = ?", (target,)))


def note_shipped(db: sqlite3.Connection, target: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Save ranges that `target` has acknowledged; those within them are replaced. In a transaction."""
    for first, last in ranges:
        db.execute(
            "DELETE FROM shipped WHERE target = ? AND first > ? AND first <= ?",
            (target, first, last),
        )
        db.execute(
            """INSERT INTO shipped (target, first, last) VALUES (?, ?, ?)
               ON CONFLICT DO UPDATE SET last = excluded.last""",
            (target, first, last),
        )


def put_aside(
    db: sqlite3.Connection, target: str, refused: Iterable[tuple[str, str]], refused_ms: int
) -> int:
    """Keep lines that `target` refused, each with its answer; the newest REFUSED_LINES_KEPT stay.

    Returns how many older ones are gone by that. In a transaction.
    """
    db.executemany(
        "INSERT INTO refused_line (refused, target, line, answer) VALUES (?, ?, ?, ?)",
        [(refused_ms, target, line, answer) for line, answer in refused],
    )
    gone = db.execute(
        """DELETE FROM refused_line
           WHERE id <= (SELECT id FROM refused_line ORDER BY id DESC LIMIT 1 OFFSET ?)""",
        (REFUSED_LINES_KEPT,),
    ).rowcount
    if gone:
        db.execute(
            """INSERT INTO shipped (target, first, last) VALUES (?, 1, ?)
               ON CONFLICT DO UPDATE SET last = shipped.last + excluded.last""",
            (_GONE + target, gone),
        )
    return gone


def lines_gone(db: sqlite3.Connection) -> int:
    """How many refused lines newer ones have pushed out since everything was last shipped again."""
    (count,) = db.execute(
        "SELECT coalesce(sum(last), 0) FROM shipped WHERE substr(target, 1, ?) = ?",
        (len(_GONE), _GONE),
    ).fetchone()
    return int(count)


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
    with _opened(kind, path) as db:
        before = db.execute("SELECT 1 FROM shipped WHERE target = ?", (target,)).fetchone()
        known = is_demanded(db, target)
        # A second demand is the same one.
        db.execute(
            """INSERT INTO shipped (target, first, last) VALUES (?, 1, 1)
               ON CONFLICT DO NOTHING""",
            (_AGAIN + target,),
        )
    return Demand(before is not None, found.holder, known)


def withdraw(kind: Kind, path: Path, target: str) -> None:
    """Take a demand back, if nobody has taken it up yet. Raises JournalError."""
    with _opened(kind, path) as db:
        db.execute("DELETE FROM shipped WHERE target = ?", (_AGAIN + target,))


@contextlib.contextmanager
def _opened(kind: Kind, path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one short transaction: the file may have a writer."""
    with (
        errors_told(kind, path),
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as db,
        transaction(db),
    ):
        recognise(kind, path, db, writing=True)
        yield db


def is_demanded(db: sqlite3.Connection, target: str) -> bool:
    """Whether everything is to be shipped again to `target`."""
    text = "SELECT 1 FROM shipped WHERE target = ?"
    return db.execute(text, (_AGAIN + target,)).fetchone() is not None


def take_demand(db: sqlite3.Connection, target: str) -> bool:
    """Forget what `target` has acknowledged, and the demand with it, if there is one.

    In one transaction: a kill leaves both or neither, so that a demand is met once. Returns whether
    there was something to forget.
    """
    if not is_demanded(db, target):
        return False
    names = (target, _AGAIN + target, _GONE + target)
    text = "DELETE FROM shipped WHERE target = ?"
    forgotten, *_ = [db.execute(text, (name,)).rowcount for name in names]
    return forgotten > 0


CREATE_SHIPPED: Final = """
CREATE TABLE shipped(
    target TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, first)
) WITHOUT ROWID;
CREATE TABLE refused_line(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refused INTEGER NOT NULL, target TEXT NOT NULL, line TEXT NOT NULL, answer TEXT NOT NULL
);
"""
"""The two tables, in the journal as in the ledger."""
