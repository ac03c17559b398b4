"""How a journal is taken from one schema version to another: the SQL of `tables`, and what was shipped."""

import sqlite3

from marketfeed.journal import tables
from marketfeed.storage import acknowledged


def to_3(db: sqlite3.Connection) -> None:
    """From version 2. No large table is read."""
    for statement in tables.FROM_2_TO_3:
        db.execute(statement)
    acknowledged.name_measurements(db, tables.MEASUREMENTS_3)


def back_to_2(db: sqlite3.Connection) -> None:
    """Back to version 2: acknowledged is then what was so of every measurement."""
    acknowledged.name_no_measurements(db, tables.MEASUREMENTS_3)
    for statement in tables.FROM_3_TO_2:
        db.execute(statement)
