"""The lines that InfluxDB refused, put aside in a journal: read and dropped beside a running collector."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from marketfeed.journal.journal import KIND
from marketfeed.records import RefusedLine
from marketfeed.storage.acknowledged import notes_of
from marketfeed.storage.database import transaction, translate_sqlite_errors
from marketfeed.storage.reading import require


class RefusedLines:
    """The lines put aside in a journal, on a connection of its own: a collector may write beside it.

    A context manager. Raises JournalError when there is no journal at `path`, or it cannot be used:
    a newer one is to be one that this version may write if lines are to be dropped (`dropping`).
    """

    def __init__(self, path: Path, *, dropping: bool = False) -> None:
        self._path = path
        require(KIND, path, writing=dropping)
        with translate_sqlite_errors(KIND, path):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._db.close()

    def read(self) -> list[RefusedLine]:
        """All of them, oldest first."""
        text = "SELECT id, refused, target, line, answer FROM refused_line ORDER BY id"
        with translate_sqlite_errors(KIND, self._path):
            return [RefusedLine(*row) for row in self._db.execute(text)]

    def gone(self) -> int:
        """How many more there were, pushed out by newer ones."""
        with translate_sqlite_errors(KIND, self._path):
            return notes_of(KIND, self._db).lines_gone()

    def drop(self, numbers: Iterable[int]) -> None:
        """Delete lines by their numbers: they were taken after all."""
        with translate_sqlite_errors(KIND, self._path), transaction(self._db):
            self._db.executemany(
                "DELETE FROM refused_line WHERE id = ?", [(number,) for number in numbers]
            )
