"""A durable file as it stands, looked at beside its writer: nothing is changed, nothing created."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from marketfeed.errors import JournalError
from marketfeed.storage.database import Kind, absence, holder, recognise
from marketfeed.storage.files import connect_read_only, identity, is_stopped


class FileFound(NamedTuple):
    """What stands at a path: schema version, size, and the process that holds it (or "").

    `free_bytes` of the size hold nothing.
    """

    version: int
    bytes_used: int
    holder: str
    free_bytes: int = 0


def inspect(kind: Kind, path: Path, *, writing: bool = False) -> FileFound | None:
    """Look at the file at `path` without changing anything; None if there is none.

    A newer file is to be one that this version may read, or write when `writing`.
    Raises JournalForeignError, JournalNewerError, or JournalError when it is unreadable or damaged.
    """
    path = path.resolve()
    if not _is_there(kind, path):
        return None
    with _opened(kind, path) as db:
        version = recognise(kind, path, db, writing=writing)
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
    wal = Path(f"{path}-wal")
    size = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    return FileFound(version, size, holder(path), page_bytes * free)


def require(kind: Kind, path: Path, *, writing: bool = False) -> FileFound:
    """What `inspect` finds at `path`. Raises JournalError when there is nothing, and what that raises."""
    found = inspect(kind, path, writing=writing)
    if found is None:
        raise JournalError(absence(kind, path))
    return found


@contextlib.contextmanager
def reading(kind: Kind, path: Path) -> Iterator[sqlite3.Connection]:
    """Read one state of the file at `path`, beside its writer if it has one.

    Raises JournalForeignError, JournalNewerError, or JournalError when there is none or it is unreadable.
    """
    path = path.resolve()
    if not _is_there(kind, path):
        raise JournalError(absence(kind, path))
    with _opened(kind, path) as db:
        # A writer that is just starting, or was killed then, leaves a file without its tables.
        if recognise(kind, path, db) == 0:
            raise JournalError(absence(kind, path))
        yield db


@contextlib.contextmanager
def _opened(kind: Kind, path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(connect_read_only(path, immutable=is_stopped(path))) as db:
            # One state: a version and what it asks for, and all that is read after.
            db.execute("BEGIN")
            yield db
    except sqlite3.Error as error:
        raise JournalError(f"{kind.name} {path}: {error}") from error


def _is_there(kind: Kind, path: Path) -> bool:
    """Whether there is a file. Raises JournalError when this user may not look, or not read it."""
    try:
        if identity(path) is None:
            return False
        if os.access(path, os.R_OK):
            return True
    except PermissionError:
        pass
    except OSError as error:
        raise JournalError(f"{kind.name} {path}: {error.strerror}") from error
    raise JournalError(
        f"{kind.name} {path}: Permission denied, this user may not read it; who is in its group may"
    )
