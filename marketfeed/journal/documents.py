"""A document of the journal changed by a command: its collector may run, and sees it at its next look."""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

from marketfeed.journal import tables
from marketfeed.journal.journal import KIND
from marketfeed.journal.reads import JournalReads
from marketfeed.storage.database import recognise, transaction, translate_sqlite_errors
from marketfeed.storage.reading import require


def change_document(
    path: Path, name: str, change: Callable[[bytes | None], bytes], saved_ms: int
) -> str:
    """Save what `change` makes of the document `name` (None: there is none) of the journal at `path`.

    In one short transaction on a connection of its own; what `change` raises leaves everything as it was.
    Returns the process that has the journal open to write, "" if none has. Raises JournalError when there is
    no journal, or it cannot be written.
    """
    found = require(KIND, path, writing=True)
    with (
        translate_sqlite_errors(KIND, path),
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as db,
        transaction(db),
    ):
        recognise(KIND, path, db, writing=True)
        known = JournalReads(db).load_document(name)
        body = change(None if known is None else known[0])
        db.execute(tables.DOCUMENT, (name, saved_ms, zlib.compress(body)))
    return found.holder
