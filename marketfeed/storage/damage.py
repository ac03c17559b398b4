"""What SQLite's errors mean (`meaning`), checks of the whole file, and files that were set aside."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Container, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.storage.files import BESIDE, connect_read_only, identity, is_stopped
from marketfeed.storage.meaning import Meaning, meaning_of_code, meaning_of_verdict

_MARK: Final = ".corrupt-"
_NAMED: Final = 3
_READ_BYTES: Final = 1 << 16

_kept: Final[dict[tuple[int, int], int]] = {}
_keeping: Final = threading.Lock()


class _ImpossibleRowsError(sqlite3.DatabaseError):
    """Rows that were read and cannot be."""


def damage(what: str) -> sqlite3.DatabaseError:
    """An error as SQLite's own of a corrupt file, for what it does not look at."""
    error = _ImpossibleRowsError(f"database disk image is malformed: {what}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def meaning_of(error: BaseException | None) -> Meaning:
    """What an error of SQLite says of the file; of one of ours that was raised for it, too."""
    if not isinstance(error, sqlite3.Error):
        cause = None if error is None else error.__cause__
        meaning = Meaning.REFUSED if cause is None else meaning_of(cause)
        is_damaged = isinstance(error, JournalWriteError) and error.damaged
        return Meaning.DAMAGE if is_damaged and meaning is Meaning.REFUSED else meaning
    code = getattr(error, "sqlite_errorcode", 0)
    # Rows that cannot be. Python reads texts, and SQLite does not look at them.
    if isinstance(error, _ImpossibleRowsError) or (not code and "decode to UTF-8" in str(error)):
        return Meaning.DAMAGE
    return meaning_of_code(code)


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite calls the file damaged: by this error alone it may be a failed read, too."""
    return meaning_of(error) in (Meaning.DAMAGE, Meaning.UNCLEAR)


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


def check_whole(name: str, path: Path) -> tuple[Meaning, str] | None:
    """What SQLite finds wrong in the whole file, read beside its writer, in its words; None: it is whole.

    Takes minutes for a large file, and the writer's `-wal` grows meanwhile. Raises JournalError when that
    cannot be found out: the `name` is busy, there is no memory.
    """
    try:
        with contextlib.closing(connect_read_only(path, immutable=is_stopped(path))) as db:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if meaning_of(error) is Meaning.REFUSED:
            raise JournalError(f"{name} {path}: could not be checked: {error}") from error
        return meaning_of(error), str(error)
    meaning = meaning_of_verdict(verdict)
    return None if meaning is None else (meaning, " ".join(verdict.split()))


def _judge(verdict: str) -> None:
    meaning = meaning_of_verdict(verdict)
    if meaning is None:
        return
    if meaning is Meaning.DAMAGE:
        raise damage(verdict)
    refused = meaning is Meaning.REFUSED
    error = sqlite3.OperationalError(
        f"{'out of memory' if refused else 'disk I/O error'}: {verdict}"
    )
    error.sqlite_errorcode = sqlite3.SQLITE_NOMEM if refused else sqlite3.SQLITE_IOERR_READ
    raise error


def unreadable(name: str, path: Path, why: str) -> JournalError:
    """The error of a file that its disk does not let read: nothing is known of it."""
    return JournalError(
        f"{name} {path}: cannot be read from its disk ({why}); the file was left as it is: see to the disk "
        "(`dmesg` names it), then start again"
    )


def require_readable(name: str, path: Path) -> None:
    """Read every byte of the `name` at `path` and of its -wal, as far as they are there.

    For small files that are never replaced for a failed read. Raises JournalError when the disk refuses one.
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
        raise unreadable(name, path, error.strerror or str(error)) from error


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


def aside_advice(found: Sequence[str], drained: Container[str] = ()) -> str:
    """Which files were set aside, and what is to be done about them.

    Of those that are `drained` all that can be read has been taken over.
    """
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    if all(one in drained for one in found):
        return (
            f"{', '.join(found[:_NAMED])}{more}: all that can be read was taken over; look at the disk, "
            "and delete it (-wal and -shm, too)"
        )
    return (
        f"{', '.join(found[:_NAMED])}{more}: what only it held is missing here (`sqlite3 FILE .recover` "
        "gets out what is readable); look at the disk, and remove it (-wal and -shm, too) when done"
    )
