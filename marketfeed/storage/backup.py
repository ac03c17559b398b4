"""A copy of a journal (or another durable file) as it stands at one moment, while its writer goes on.

One read transaction is held for as long as the copy takes: it shows the moment it began, and no commit
makes it begin anew. Meanwhile the writer's `-wal` grows and is not folded back. The copy is checked whole,
synced, and only then gets its name; an existing file is never overwritten.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.errors import BackupError
from marketfeed.storage.database import Kind, absence, recognise
from marketfeed.storage.files import connect_read_only, is_stopped
from marketfeed.storage.reading import inspect

PAGES_A_STEP: Final = 1024
"""Pages of 4 KiB copied between two turns of the progress bar."""
_CHECKING_FROM: Final = 0.7
"""Where on the bar copying ends and checking begins."""

ReportProgress = Callable[[str, float], None]


class BackupReport(msgspec.Struct, frozen=True):
    """What was copied. `seconds` are wall seconds, the check among them."""

    path: str
    bytes: int
    schema_version: int
    seconds: float


def back_up(
    kind: Kind, source: Path, destination: Path, report_progress: ReportProgress
) -> BackupReport:
    """Copy the file at `source` to `destination`. `report_progress` is called with stage and fraction.

    Raises BackupError: nothing stands at `destination` then that was not there before. Raises what
    `inspect` raises when `source` is no file of that kind.
    """
    started_s = time.monotonic()
    source = source.resolve()
    found = inspect(kind, source)
    if found is None:
        raise BackupError(absence(kind, source))
    _require_room(destination, found.bytes_used)
    # Named after the process: a copy that a kill left behind is in nobody's way.
    unfinished = destination.with_name(f".{destination.name}.unfinished-{os.getpid()}")
    try:
        # As a collector makes it: its group may read it, nobody else.
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
        try:
            _copy(source, unfinished, report_progress)
            report_progress("checking the copy", _CHECKING_FROM)
            version = _check(kind, unfinished, report_progress)
            _sync(unfinished)
            size = unfinished.stat().st_size
            _give_name(unfinished, destination)
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
        _sync(destination.parent)
    except sqlite3.Error as error:
        raise BackupError(f"backup of {source}: {error}") from error
    except OSError as error:
        raise BackupError(f"backup {destination}: {error.strerror or error}") from error
    report_progress("done", 1.0)
    return BackupReport(str(destination), size, version, time.monotonic() - started_s)


def _require_room(destination: Path, wanted_bytes: int) -> None:
    if os.path.lexists(destination):
        raise BackupError(f"backup {destination}: it is there already; nothing is overwritten")
    try:
        free_bytes = shutil.disk_usage(destination.parent).free
    except OSError as error:
        raise BackupError(f"backup {destination.parent}: {error.strerror or error}") from error
    if free_bytes < wanted_bytes:
        raise BackupError(
            f"backup {destination}: {wanted_bytes / 1e6:.0f} MB are needed, "
            f"{free_bytes / 1e6:.0f} MB are free"
        )


def _copy(source: Path, unfinished: Path, report_progress: ReportProgress) -> None:
    def progress(_: int, remaining: int, total: int) -> None:
        report_progress("copying", _CHECKING_FROM * (1 - remaining / max(total, 1)))

    with (
        _reading(source) as taken,
        contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as copy,
    ):
        # Nobody else sees it before it is whole and synced.
        copy.execute("PRAGMA synchronous = OFF")
        taken.backup(copy, pages=PAGES_A_STEP, progress=progress, sleep=0)
        # One file that is whole by itself, also for those who may only read it.
        copy.execute("PRAGMA journal_mode = DELETE")


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[sqlite3.Connection]:
    """A connection inside a read transaction, so that all it shows is of one moment."""
    stopped = is_stopped(source)
    before = source.stat()
    with contextlib.closing(connect_read_only(source, immutable=stopped)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield db
    if stopped:
        after = source.stat()
        if not is_stopped(source) or (before.st_ino, before.st_mtime_ns) != (
            after.st_ino,
            after.st_mtime_ns,
        ):
            raise BackupError(f"backup of {source}: its writer was just starting; try again")


def _check(kind: Kind, path: Path, report_progress: ReportProgress) -> int:
    """Look whether the copy is whole; returns its schema version: it may be newer than when it was begun."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        version = recognise(kind, path, db)
        if version == 0:
            raise BackupError(f"backup {path}: there is nothing in the copy: it is not kept")
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise BackupError(f"backup {path}: the copy is damaged ({verdict}): it is not kept")
    report_progress("writing to the disk", 0.95)
    return version


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_name(unfinished: Path, destination: Path) -> None:
    try:
        # Unlike a rename, a link never replaces what has come to stand there meanwhile.
        os.link(unfinished, destination)
    except FileExistsError:
        raise BackupError(
            f"backup {destination}: it is there already; nothing is overwritten"
        ) from None
    except OSError:
        # A file system without links, such as a stick's or a share's.
        if os.path.lexists(destination):
            raise
        unfinished.rename(destination)
