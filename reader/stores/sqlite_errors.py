"""What SQLite's errors mean to who reads a journal."""

import sqlite3
from typing import Final

RETRY_S: Final = 2.0
"""Wall seconds for which a file that is locked, or just being started or stopped, is tried again."""

WHO_MAY: Final = (
    " This user needs to read the file, its -wal and -shm, and to enter their directory: add it to"
    " the collector's group. Where only the -shm lacks, a start of the collector makes it"
)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def sqlite_problem(error: Exception) -> str:
    """What is wrong with the journal, as the end of a sentence."""
    match _code(error):
        case sqlite3.SQLITE_NOTADB:
            return "is not an SQLite file; check the path"
        case sqlite3.SQLITE_CORRUPT:
            return (
                f"is damaged ({error}); the collector sets it aside at its next start, a backup can "
                "be put in its place while the collector is stopped"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"or its -wal and -shm files cannot be opened ({error}).{WHO_MAY}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                f"stayed locked for {RETRY_S:g} s ({error}); does something else than the collector "
                "write to it?"
            )
    return f"cannot be read: {error}"


def is_passing(error: Exception) -> bool:
    """Whether the cause may go by itself: a lock, or a collector that is just starting or stopping."""
    return _code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    )
