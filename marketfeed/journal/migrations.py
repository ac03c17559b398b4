"""How a journal is taken from one schema version to another: the SQL of `tables`, and what was shipped."""

import logging
import sqlite3

from marketfeed.journal import marks, quotes, stamps, tables
from marketfeed.storage import acknowledged
from marketfeed.storage.damage import is_damage, is_failed_read
from marketfeed.storage.database import transaction

log = logging.getLogger(__name__)


def to_3(db: sqlite3.Connection) -> None:
    """From version 2. No large table is read."""
    for statement in tables.FROM_2_TO_3:
        db.execute(statement)
    acknowledged.name_measurements(db, tables.MEASUREMENTS_3)
    quotes.add(db)
    # Left by a way back that did not know of them: the holes among their gaps are gone.
    marks.remove(db)
    marks.add(db)
    stamps.add(db)


def grow(db: sqlite3.Connection) -> None:
    """Add what version 3 has gained since its first day, in one transaction. No large table is read."""
    try:
        with transaction(db):
            quotes.add(db)
            db.execute(tables.CREATE_LIFE)
            marks.add(db)
            stamps.add(db)
    except sqlite3.OperationalError as error:
        if is_damage(error) or is_failed_read(error):
            raise
        # A full disk, most often. The file is as good as the day before, and a start must not fail for it.
        log.warning("journal not grown, going on with it as it is error=%r", str(error))


def back_to_2(db: sqlite3.Connection) -> None:
    """Back to version 2: acknowledged is then what was so of every measurement."""
    stamps.remove(db)
    marks.remove(db)
    acknowledged.name_no_measurements(db, tables.MEASUREMENTS_3)
    quotes.remove(db)
    for statement in tables.FROM_3_TO_2:
        db.execute(statement)
