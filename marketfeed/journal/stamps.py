"""Stamps of commits: what time it was by the exchange, and by a clock that the host's processes share.

A reader on the same run of the host takes the exchange's time from that, whatever its wall clock says. The
stamp is columns of `sequence`: the page that holds them is written with every commit anyway. A journal of
version 3 gets them when a writer opens it. A writer that does not know them leaves the last stamp: it stays
true, as it tells how two clocks run.
"""

import sqlite3
from typing import Final

from marketfeed import schema

EVERY_MS: Final = 1_000
"""A stamp is written at most so often."""
STAMP: Final = "UPDATE sequence SET clock_ms = ?, clock_boot = ?, clock_boot_ms = ?"
_COLUMNS: Final = ("clock_ms INTEGER", "clock_boot TEXT", "clock_boot_ms INTEGER")


def has_columns(db: sqlite3.Connection) -> bool:
    """Whether a journal has the columns."""
    (found,) = db.execute(schema.HAS_CLOCK).fetchone()
    return bool(found)


def add(db: sqlite3.Connection) -> None:
    """Add them to a journal of version 3 that lacks them. In a transaction."""
    if not has_columns(db):
        for column in _COLUMNS:
            db.execute(f"ALTER TABLE sequence ADD COLUMN {column}")


def remove(db: sqlite3.Connection) -> None:
    """Take them away, for a version 2. In a transaction."""
    if has_columns(db):
        for column in _COLUMNS:
            db.execute(f"ALTER TABLE sequence DROP COLUMN {column.split()[0]}")
