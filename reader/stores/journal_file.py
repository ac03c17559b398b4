"""Which files lie at a journal's path: another one than was opened is opened again."""

import stat
from pathlib import Path
from typing import NamedTuple


class Opened(NamedTuple):
    """What distinguishes the files that were opened from others of the same name; `wal` None: immutable."""

    file: tuple[int, ...]
    wal: tuple[int, int] | None


def look(path: Path, wal_path: Path) -> Opened:
    """Look at the journal and its `-wal`. Raises OSError, IsADirectoryError for what is no file."""
    # Only stat, never open: closing any descriptor of the file would drop SQLite's locks on it.
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(str(path))
    try:
        wal = wal_path.stat()
    except FileNotFoundError:
        # Nobody writes; from now on any change of the file matters.
        return Opened((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), None)
    return Opened((found.st_dev, found.st_ino), (wal.st_dev, wal.st_ino))
