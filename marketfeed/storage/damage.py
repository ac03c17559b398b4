"""What is damage of a durable SQLite file and what is a failed read, and what becomes of a damaged file.

SQLite does not distinguish them. A statement whose read fails with EIO ends with SQLITE_CORRUPT ("database
disk image is malformed"), and quick_check answers it as a text. So a file counts as damaged only when it is
found so twice, and every byte of it could be read in between.
"""

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from marketfeed.errors import JournalError
from marketfeed.storage.files import BESIDE, connect_read_only, identity

_MARK: Final = ".corrupt-"
_NAMED: Final = 3
_READ_BYTES: Final = 1 << 16
_CODE: Final = re.compile(r"error code[ =](\d+)")
_AMBIGUOUS: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""As whole codes: extended ones (an index that lacks a row) are never a failed read."""

_kept: Final[dict[tuple[int, int], int]] = {}
_keeping: Final = threading.Lock()


class _ImpossibleRowsError(sqlite3.DatabaseError):
    """Rows that were read and cannot be."""


def damage(what: str) -> sqlite3.DatabaseError:
    """An error as SQLite's own of a corrupt file, for what it does not look at."""
    error = _ImpossibleRowsError(f"database disk image is malformed: {what}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite calls the file damaged: by this error alone it may be a failed read, too."""
    code = getattr(error, "sqlite_errorcode", 0)
    # A short read: the file has been cut off. Python reads texts, and SQLite does not look at them.
    return (
        code & 0xFF in _AMBIGUOUS
        or code == sqlite3.SQLITE_IOERR_SHORT_READ
        or (isinstance(error, sqlite3.Error) and not code and "decode to UTF-8" in str(error))
    )


def is_certain(error: BaseException | None) -> bool:
    """Whether it is damage that no failed read can look like."""
    code = getattr(error, "sqlite_errorcode", 0)
    return is_damage(error) and (
        isinstance(error, _ImpossibleRowsError)
        or code not in (*_AMBIGUOUS, sqlite3.SQLITE_IOERR_SHORT_READ)
    )


def is_failed_read(error: sqlite3.Error) -> bool:
    """Whether SQLite reports that the disk refused."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR


def check(db: sqlite3.Connection, check_s: float) -> None:
    """Let SQLite look over the file for at most so long (wall seconds).

    Raises sqlite3.DatabaseError, with the code of what it has found.
    """
    if check_s <= 0.0:
        return
    deadline_s = time.monotonic() + check_s
    db.set_progress_handler(lambda: time.monotonic() > deadline_s, 100_000)
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        db.set_progress_handler(None, 0)
    _judge(verdict)


def find_damage(path: Path) -> str:
    """What SQLite finds damaged in the whole file, read beside its writer; empty when it is whole.

    Takes minutes for a large file. Raises sqlite3.Error when that cannot be found out.
    """
    with contextlib.closing(connect_read_only(path)) as db:
        try:
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            _judge(verdict)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return str(error)
    return ""


def _judge(verdict: str) -> None:
    if verdict == "ok":
        return
    error = damage(verdict)
    if found := _CODE.search(verdict):
        # A page that could not be read: the code names the reason.
        code = int(found[1])
        text = (
            "disk I/O error"
            if code & 0xFF == sqlite3.SQLITE_IOERR
            else "database disk image is malformed"
        )
        error = sqlite3.DatabaseError(f"{text}: {verdict}")
        error.sqlite_errorcode = code
    raise error


def require_readable(name: str, path: Path) -> None:
    """Read every byte of the `name` at `path` and of its -wal, as far as they are there.

    Raises JournalError when the disk refuses one: then nothing is known of the file.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            _read(_keep_open(path))
        with contextlib.suppress(FileNotFoundError):
            wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _read(wal)
            finally:
                os.close(wal)
    except OSError as error:
        raise JournalError(
            f"{name} {path}: cannot be read from its disk ({error.strerror or error}); the file was left as "
            "it is: see to the disk (`dmesg` names it), then start again"
        ) from error


def _keep_open(path: Path) -> int:
    # It stays open: when a process closes any descriptor of a file, its locks on it are gone, SQLite's too.
    with _keeping:
        found = path.stat()
        key = found.st_dev, found.st_ino
        if key not in _kept:
            _kept[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return _kept[key]


def _read(descriptor: int) -> None:
    position = 0
    while chunk := len(os.pread(descriptor, _READ_BYTES, position)):
        position += chunk


# --- set aside ------------------------------------------------------------------------------------------


def put_aside(path: Path) -> Path:
    """Rename a damaged file, and what SQLite keeps beside it; returns its new name. Raises OSError."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = Path(f"{path}{_MARK}{stamp}")
    # The file itself first: without its -wal an older state of it would be taken for the newest, after a
    # kill in between, and by readers.
    for suffix in ("", *BESIDE):
        source = Path(f"{path}{suffix}")
        if identity(source) is not None:
            source.rename(f"{target}{suffix}")
    with _keeping, contextlib.suppress(FileNotFoundError):
        found = target.stat()
        descriptor = _kept.pop((found.st_dev, found.st_ino), None)
        if descriptor is not None:
            os.close(descriptor)
    return target


def set_aside_beside(path: Path) -> tuple[str, ...]:
    """The damaged predecessors that lie beside the file at `path`, oldest first. Raises OSError."""
    path = path.resolve()
    names = {
        file.name.removesuffix("-wal").removesuffix("-shm")
        for file in path.parent.iterdir()
        if file.name.startswith(path.name + _MARK)
    }
    return tuple(str(path.parent / name) for name in sorted(names))


def aside_reason(name: str, found: Sequence[str]) -> str:
    """The reason in `/health` for damaged predecessors of a `name`, and what is to be done about them."""
    many = len(found) > 1
    return (
        f"{len(found) if many else 'a'} damaged {name}{'s were' if many else ' was'} set aside: "
        f"{aside_advice(found)}"
    )


def aside_advice(found: Sequence[str]) -> str:
    """Which files were set aside, and what is to be done about them."""
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"{', '.join(found[:_NAMED])}{more}: what only it held is missing here (`sqlite3 FILE .recover` "
        "gets out what is readable); look at the disk, and remove it (-wal and -shm, too) when done"
    )
