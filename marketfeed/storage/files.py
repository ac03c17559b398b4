"""A durable file as its file system knows it: which one it is, what lies beside it, a look at it."""

import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

BESIDE: Final = ("-wal", "-shm")
"""What SQLite keeps beside a file."""


def identity(path: Path) -> tuple[int, int] | None:
    """What distinguishes a file from another one of its name; None if there is none.

    Raises OSError when the disk cannot be read.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def wal_bytes(path: Path) -> int:
    """How large the `-wal` of the file at `path` is; 0 without one. Raises OSError."""
    try:
        return Path(f"{path}-wal").stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def is_stopped(path: Path) -> bool:
    """Whether nobody writes the file: it is whole by itself then, and is opened as `immutable`.

    Opening it otherwise would create files beside it.
    """
    return not Path(f"{path}-wal").exists()


def connect_read_only(
    path: Path, *, immutable: bool = False, any_thread: bool = False
) -> sqlite3.Connection:
    """Open a file for reading, beside its writer unless it is `immutable`. Raises sqlite3.Error.

    `any_thread`: other threads than this one may use it, one at a time.
    """
    options = "mode=ro&immutable=1" if immutable else "mode=ro"
    # Bytes: a name may be in any encoding. Three slashes: a path that begins with two names no host.
    url = f"file://{quote(os.fsencode(path.absolute()))}?{options}"
    return sqlite3.connect(
        url, uri=True, isolation_level=None, timeout=5.0, check_same_thread=not any_thread
    )
