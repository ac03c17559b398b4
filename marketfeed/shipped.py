"""What of a durable file a server has acknowledged or refused: the SQL of two tables in each such file.

`tables.CREATE_SHIPPED` creates them.
"""

from collections.abc import Iterable
from sqlite3 import Connection
from typing import Final

from marketfeed.ranges import Ranges

REFUSED_LINES_KEPT: Final = 10_000


def read_shipped(db: Connection, target: str) -> Ranges:
    """What `target` (a server and bucket) has acknowledged, as ranges of seq."""
    return Ranges(db.execute("SELECT first, last FROM shipped WHERE target = ?", (target,)))


def note_shipped(db: Connection, target: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Save ranges that `target` has acknowledged; those within them are replaced. In a transaction."""
    for first, last in ranges:
        db.execute(
            "DELETE FROM shipped WHERE target = ? AND first >= ? AND first <= ?",
            (target, first, last),
        )
        db.execute("INSERT INTO shipped VALUES (?, ?, ?)", (target, first, last))


def put_aside(
    db: Connection, target: str, refused: Iterable[tuple[str, str]], refused_ms: int
) -> None:
    """Keep lines that `target` refused, each with its answer; the newest REFUSED_LINES_KEPT stay."""
    db.executemany(
        "INSERT INTO refused_line (refused, target, line, answer) VALUES (?, ?, ?, ?)",
        [(refused_ms, target, line, answer) for line, answer in refused],
    )
    db.execute(
        "DELETE FROM refused_line WHERE id <= (SELECT max(id) FROM refused_line) - ?",
        (REFUSED_LINES_KEPT,),
    )
