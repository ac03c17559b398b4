"""A copy of a journal (or another durable file) as it stands at one moment, while its writer goes on.

The file is copied as it lies there, then its `-wal`, while one read transaction is held. So long what a
checkpoint writes into the file stands in the `-wal`, too; or all of the `-wal` was in the file at the
beginning: then it may begin anew, and nothing is written into the file. Both together are the file as of the
last commit in that `-wal`; SQLite folds them into one, as after a kill. Meanwhile the writer's `-wal` is not
folded back: a copy that takes so long that it becomes too large is given up. One into which another file
came, because the journal was replaced, is begun again.

The copy is looked over (whole up to a size, or when asked), synced, and only then gets its name; an existing
file is never overwritten.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from marketfeed.errors import BackupError
from marketfeed.storage.database import Kind, absence, recognise
from marketfeed.storage.files import connect_read_only, identity, is_stopped
from marketfeed.storage.reading import inspect
from marketfeed.storage.wal import WAL_BOUND_BYTES, wal_bytes

CHECKED_BYTES: Final = 256 * 10**6
"""A copy up to this size is checked whole, a larger one when asked: of 7 GB that takes minutes."""
_CHUNK_BYTES: Final = 16 * 1024 * 1024
"""Copied between two turns of the progress bar."""
_CHECKING_FROM: Final = 0.7
"""Where on the bar copying ends and checking begins."""
_LOOK_S: Final = 0.1
"""Wall seconds between two turns of the progress bar while compacting."""
_STEPS: Final = 10_000
"""Steps of SQLite's machine between two looks at the clock."""
_ATTEMPTS: Final = 3
"""So often a copy is begun that another file, or another run of the `-wal`, has come into."""
_SALTS_AT: Final = 16
"""In the header of a `-wal`: two numbers of 4 bytes that are others in each run."""
_NOT_WITHIN_THE_KERNEL: Final = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)

ReportProgress = Callable[[str, float], None]


class BackupReport(msgspec.Struct, frozen=True):
    """What was copied. `seconds` are wall seconds, the check among them; `checked`: all of it was."""

    path: str
    bytes: int
    schema_version: int
    seconds: float
    checked: bool = True


def back_up(
    kind: Kind,
    source: Path,
    destination: Path,
    report_progress: ReportProgress,
    *,
    compact: bool = False,
    check: bool = False,
    wal_bound_bytes: int = WAL_BOUND_BYTES,
) -> BackupReport:
    """Copy the file at `source` to `destination`. `report_progress` is called with stage and fraction.

    `compact` leaves out the pages that are free. `check` has a copy above CHECKED_BYTES checked whole, too.
    The `-wal` may grow by `wal_bound_bytes` meanwhile. Not in a process that has the file open: closing a
    descriptor of it ends all of SQLite's locks there.

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
            copy = _compact if compact else _copy
            copy(source, unfinished, report_progress, wal_bytes(source) + wal_bound_bytes)
            report_progress("checking the copy", _CHECKING_FROM)
            whole = check or unfinished.stat().st_size <= CHECKED_BYTES
            version = _check(kind, unfinished, report_progress, whole=whole)
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
    return BackupReport(str(destination), size, version, time.monotonic() - started_s, whole)


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


def _copy(
    source: Path, unfinished: Path, report_progress: ReportProgress, most_wal_bytes: int
) -> None:
    for _ in range(_ATTEMPTS):
        if _copy_both(source, unfinished, report_progress, most_wal_bytes):
            break
    else:
        raise BackupError(
            f"backup of {source}: it was replaced by another file while it was copied, {_ATTEMPTS} times "
            "in a row; try again when that is over"
        )
    report_progress("folding in the -wal", _CHECKING_FROM)
    with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as db:
        # Nobody else sees it before it is whole and synced.
        db.execute("PRAGMA synchronous = OFF")
        # One file that is whole by itself, also for those who may only read it.
        db.execute("PRAGMA journal_mode = DELETE")


def _copy_both(
    source: Path, unfinished: Path, report_progress: ReportProgress, most_wal_bytes: int
) -> bool:
    """Copy the file and its `-wal`; False when another file has come to stand there meanwhile."""
    # Closed last: closing any descriptor of the file ends SQLite's POSIX locks of this process.
    with source.open("rb") as file, _reading(source), contextlib.ExitStack() as stack:
        # By its descriptor from here on: by its name it could be the one of another file at the end.
        wal: BinaryIO | None = None
        with contextlib.suppress(FileNotFoundError):
            wal = stack.enter_context(Path(f"{source}-wal").open("rb"))
        if not _stand_there(source, file, wal):
            return False
        copy = stack.enter_context(unfinished.open("r+b"))
        copy.truncate(0)
        size = os.fstat(file.fileno()).st_size
        done = 0
        while copied := _copy_chunk(file.fileno(), copy.fileno(), done):
            done += copied
            report_progress("copying", _CHECKING_FROM * min(done / max(size, 1), 1.0))
            _require_small(source, most_wal_bytes)
        # After it: what was committed meanwhile is in it, whole.
        if wal is not None:
            _copy_wal(source, wal, Path(f"{unfinished}-wal"))
        return _stand_there(source, file, wal)


def _copy_wal(source: Path, wal: BinaryIO, copy_path: Path) -> None:
    """Copy the `-wal`; again when it has begun anew in the middle.

    It may do so once, when the read transaction found all of it in the file: what is committed then is not
    folded back while that transaction is open, so the file stays as it was copied.
    """
    for _ in range(_ATTEMPTS):
        salts = _salts(wal)
        with copy_path.open("wb") as copy:
            done, size = 0, os.fstat(wal.fileno()).st_size
            while done < size and (copied := _copy_chunk(wal.fileno(), copy.fileno(), done)):
                done += copied
        if _salts(wal) == salts:
            return
    raise BackupError(
        f"backup of {source}: its -wal began anew {_ATTEMPTS} times while it was copied; try again"
    )


def _salts(wal: BinaryIO) -> bytes:
    """What tells one run of a `-wal` from the one before it; empty of an empty one."""
    return os.pread(wal.fileno(), 8, _SALTS_AT)


def _stand_there(source: Path, file: BinaryIO, wal: BinaryIO | None) -> bool:
    """Whether these are the files that stand at `source` now."""
    for path, opened in ((source, file), (Path(f"{source}-wal"), wal)):
        found = None if opened is None else os.fstat(opened.fileno())
        if identity(path) != (None if found is None else (found.st_dev, found.st_ino)):
            return False
    return True


def _copy_chunk(source: int, copy: int, offset: int) -> int:
    try:
        return os.copy_file_range(source, copy, _CHUNK_BYTES, offset, offset)
    except OSError as error:
        if error.errno not in _NOT_WITHIN_THE_KERNEL:
            raise
    return os.pwrite(copy, os.pread(source, _CHUNK_BYTES, offset), offset)


def _compact(
    source: Path, unfinished: Path, report_progress: ReportProgress, most_wal_bytes: int
) -> None:
    with _reading(source, in_transaction=False) as db:
        pages, free, page_bytes = (
            int(db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        wanted = max((pages - free) * page_bytes, 1)
        failed: list[BackupError] = []
        looked_s = time.monotonic()

        def look() -> bool:
            """Report how far it is; whether it is to be given up."""
            nonlocal looked_s
            if time.monotonic() - looked_s >= _LOOK_S:
                looked_s = time.monotonic()
                fraction = min(unfinished.stat().st_size / wanted, 1.0)
                report_progress("compacting", _CHECKING_FROM * fraction)
                try:
                    _require_small(source, most_wal_bytes)
                except BackupError as error:
                    failed.append(error)
            return bool(failed)

        db.set_progress_handler(look, _STEPS)
        try:
            # A path as SQLite takes it, whatever its bytes are.
            db.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(unfinished),))
        except sqlite3.OperationalError:
            if failed:
                raise failed[0] from None
            raise


def _require_small(source: Path, most_bytes: int) -> None:
    """Raise BackupError when the `-wal` has grown too large: this copy keeps it from being folded back."""
    found = wal_bytes(source)
    if found > most_bytes:
        raise BackupError(
            f"backup of {source}: its -wal has grown to {found / 1e6:,.0f} MB meanwhile; given up: copy to a "
            "faster disk, or while the writer is stopped"
        )


@contextlib.contextmanager
def _reading(source: Path, *, in_transaction: bool = True) -> Iterator[sqlite3.Connection]:
    """A connection, inside a read transaction so that all it shows is of one moment."""
    stopped = is_stopped(source)
    before = source.stat()
    with contextlib.closing(connect_read_only(source, immutable=stopped)) as db:
        if in_transaction:
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


def _check(kind: Kind, path: Path, report_progress: ReportProgress, *, whole: bool) -> int:
    """Look whether the copy can be read, all of it if `whole`.

    Returns its schema version: it may be newer than when it was begun.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        version = recognise(kind, path, db)
        if version == 0:
            raise BackupError(f"backup {path}: there is nothing in the copy: it is not kept")
        verdict = "ok"
        if whole:
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        for (table,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            db.execute(f'SELECT * FROM "{table}" LIMIT 1').fetchall()  # noqa: S608 - names in the file
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
