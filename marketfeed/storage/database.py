"""One durable SQLite file with one writer: locking, recognising, creating, migrating, setting aside.

The journal is such a file. WAL with `synchronous=FULL`: when a transaction has ended, it is on the disk
(the WAL is fdatasync'ed). Whoever writes holds a lock on `<file>.lock`.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeAlias, TypeVar

from marketfeed import schema
from marketfeed.errors import (
    JournalError,
    JournalForeignError,
    JournalLockedError,
    JournalNewerError,
    JournalWriteError,
)
from marketfeed.storage.damage import check, is_damage, meaning_of
from marketfeed.storage.files import connect_read_only, identity, wal_bytes
from marketfeed.storage.in_place import InPlace
from marketfeed.storage.opening import AGAIN_AFTER_S, Opening, open_or_set_aside

log = logging.getLogger(__name__)

CHECK_S: Final = 5.0
"""Wall seconds for the consistency check at the start of a small file."""
WAL_BYTES: Final = 64 << 20
"""To so much a `-wal` shrinks when it begins anew. A larger one was left by a kill, beside a reader."""
_RECOVERED_BYTES_PER_S: Final = 5e6
"""Of a slow disk."""

Step: TypeAlias = Sequence[str] | Callable[[sqlite3.Connection], None]
"""What takes a file to another version, as statements or a function; it runs inside a transaction."""


class Kind(NamedTuple):
    """What sort of file it is: its name for people, marks in the header, tables and migrations.

    A fresh file is of `version`. An older one is taken to `kept` when it is opened to be written, and
    further by `convert` alone: `migrations[n]` takes a file of version n to n + 1, `ways_back[n]` to n - 1.
    `setting` is what names its place in config.yaml; `measurements` are those whose rows it numbers.
    `grow` adds what older marketfeeds of `version` did not have, each time that a writer opens a file of it
    or a newer one. `refillable`: what it holds can be had again, so it gives way when its disk does not read
    it; and it is large, so its check runs behind (`slices`), and not at the start.
    """

    name: str
    setting: str
    application_id: int
    version: int
    kept: int
    create: str
    migrations: Mapping[int, Step]
    ways_back: Mapping[int, Step]
    measurements: tuple[str, ...]
    grow: Callable[[sqlite3.Connection], None] | None = None
    refillable: bool = False


def absence(kind: Kind, path: Path) -> str:
    """The error text for a file that is not there: most often --config was left out."""
    return (
        f"{kind.name} {path}: there is none yet, or {kind.setting} names another place "
        "(--config, MARKETFEED_CONFIG)"
    )


@contextlib.contextmanager
def translate_sqlite_errors(kind: Kind, path: Path) -> Iterator[None]:
    """Raise what SQLite raises within as JournalWriteError: a caller knows no other error of a file."""
    try:
        yield
    except sqlite3.Error as error:
        raise JournalWriteError(f"{kind.name} {path}: {error}", is_damage(error)) from error


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, mode: str = "IMMEDIATE") -> Iterator[None]:
    """One transaction, which has written nothing when the block or the commit fails."""
    db.execute(f"BEGIN {mode}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk may have rolled the transaction back already.
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def recovery_s(path: Path) -> float:
    """Wall seconds that opening the file at `path` may take for its `-wal`; 0 for one of the usual size."""
    try:
        size = wal_bytes(path.resolve())
    except OSError:
        return 0.0
    return 0.0 if size <= WAL_BYTES else 60.0 + size / _RECOVERED_BYTES_PER_S


def has_been_open(path: Path) -> bool:
    """Whether a file was kept at `path` before, be it gone now: its lock outlives it."""
    return Path(f"{path}.lock").exists()


class Database:
    """An open file and its lock. Not safe for concurrent calls: give it to one thread at a time."""

    def __init__(self, kind: Kind, path: Path, db: sqlite3.Connection, lock_fd: int) -> None:
        self.kind = kind
        self.path = path
        self.db = db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        self.version = int(version)
        """The schema version of the file."""
        self.set_aside: Path | None = None
        """Where a damaged predecessor was put when this file was opened."""
        self._lock_fd = lock_fd
        self.identity = identity(path)
        """Which file that is, as it was opened."""

    @classmethod
    def open(
        cls,
        kind: Kind,
        path: Path,
        *,
        wait_lock_s: float = 0.0,
        distrusted: bool = False,
        again_after_s: Sequence[float] = AGAIN_AFTER_S,
        look: Callable[[Self], None] = lambda _: None,
    ) -> Self:
        """Open or create the file at `path` and take its lock.

        `look` reads what has to be whole; it may raise sqlite3.Error and JournalWriteError. A file that is
        damaged to it, as `opening` says, or a `distrusted` one, is renamed to `<name>.corrupt-<UTC time>` and
        a fresh one started, with an error in the log and the new name in `set_aside`; so are a `-wal` and
        `-shm` that have lost their file. `again_after_s` are the wall seconds between attempts.
        An older file is migrated as far as `Kind.kept` says, a newer one that this version may write stays
        of its version.

        Raises JournalLockedError (`wait_lock_s` wall seconds are waited for the lock),
        JournalForeignError, JournalNewerError, JournalError.
        """
        # The file itself, whatever it is called: by a link, two would have a lock each.
        path = path.resolve()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_fd = _take_lock(kind, path, wait_lock_s)
        except OSError as error:
            hint = (
                f", this user may not write it; {kind.setting} names another place"
                if isinstance(error, PermissionError)
                else ""
            )
            text = f"{kind.name} {path}: {error.strerror or error}{hint}"
            raise JournalError(text) from error

        try:
            opened, set_aside = open_or_set_aside(
                Opening(kind.name, path, kind.refillable, lambda other: _open(kind, other).close()),
                partial(_attempt, cls, kind, path, lock_fd, look),
                distrusted=distrusted,
                again_after_s=again_after_s,
            )
        except BaseException:
            os.close(lock_fd)
            raise
        opened.set_aside = set_aside
        return opened

    def close(self) -> None:
        """Checkpoint, close the file and give the lock back. Safe to call twice."""
        if self._lock_fd < 0:
            return
        try:
            self.db.close()
        except sqlite3.Error as error:
            log.warning(
                "%s not closed cleanly path=%s error=%r", self.kind.name, self.path, str(error)
            )
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def in_place(self) -> InPlace:
        """What tells whether it is still where it was opened: to be made once, right after the opening."""
        return InPlace(self.path, self.identity, self._lock_fd)

    def require_whole(self, queries: Iterable[str]) -> str:
        """Look at the file as a reader meets it, past this connection's cache. From any thread.

        `queries` read what readers read first. Returns what a first look met and a second did not, in words.
        Raises JournalWriteError (`damaged`) when the file is gone, another one stands in its place, or it
        cannot be read.
        """
        queries = tuple(queries)
        try:
            self._look(queries)
        except JournalWriteError as error:
            # A read that failed looks like damage, too: once is not enough.
            log.warning("%s looked damaged, looking again error=%r", self.kind.name, str(error))
            self._look(queries)
            return str(error)
        return ""

    def _look(self, queries: Iterable[str]) -> None:
        try:
            found = identity(self.path)
        except OSError as error:
            log.debug("%s not looked at error=%r", self.kind.name, str(error))
            return
        if found != self.identity:
            what = "the file is gone" if found is None else "another file stands in its place"
            raise JournalWriteError(f"{self.kind.name} {self.path}: {what}", damaged=True)
        try:
            with contextlib.closing(connect_read_only(self.path)) as db:
                for query in queries:
                    db.execute(query).fetchall()
        except sqlite3.DatabaseError as error:
            # SQLITE_ERROR: there is no such table, as after the file was emptied.
            if meaning_of(error).is_of_reading or error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                text = f"{self.kind.name} {self.path}: {error}"
                raise JournalWriteError(text, damaged=True) from error
            # Busy, or nothing left to open it with: that proves nothing about the file.
            log.debug("%s not looked at error=%r", self.kind.name, str(error))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when the block has ended. Raises JournalWriteError: nothing is stored."""
        with translate_sqlite_errors(self.kind, self.path), transaction(self.db):
            yield self.db


D = TypeVar("D", bound=Database)


def _attempt(made: type[D], kind: Kind, path: Path, lock_fd: int, look: Callable[[D], None]) -> D:
    """Open the file and look at it; nothing is left open when that fails."""
    db = _open(kind, path)
    try:
        opened = made(kind, path, db, lock_fd)
        look(opened)
    except BaseException:
        db.close()
        raise
    return opened


def holder(path: Path) -> str:
    """The process that writes the file at `path`, "unknown" if the lock names none; empty: nobody does."""
    with contextlib.suppress(OSError), Path(f"{path}.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _name_in(file.fileno())
    return ""


def _name_in(lock_fd: int) -> str:
    return os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"


def _take_lock(kind: Kind, path: Path, wait_s: float) -> int:
    # A file of its own: SQLite's POSIX locks on the database vanish when any descriptor of it closes.
    deadline_s = time.monotonic() + wait_s
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline_s:
                time.sleep(0.05)
                continue
            other = _name_in(lock_fd)
            os.close(lock_fd)
            raise JournalLockedError(
                f"{kind.name} {path}: another process is writing it (process {other}); "
                f"stop that one first, or give this one a {kind.name} of its own"
            ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, str(os.getpid()).encode(), 0)
    return lock_fd


def _open(kind: Kind, path: Path) -> sqlite3.Connection:
    recovered_bytes = wal_bytes(path)
    started_s = time.monotonic()
    if is_long := recovered_bytes > WAL_BYTES:
        log.warning(
            "%s left a large wal, recovering it path=%s bytes=%d", kind.name, path, recovered_bytes
        )
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        version = recognise(kind, path, db, writing=True)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        # Half of it costs an eighth of the frames per CPU second (tests/bench ingest).
        db.execute("PRAGMA cache_size = -16000")
        if is_long:
            # Now, while systemd waits: the first commit would do it otherwise, and hold up all others.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            log.info("%s wal recovered seconds=%.1f", kind.name, time.monotonic() - started_s)
        if version == 0:
            _create(kind, db)
        else:
            if not kind.refillable:
                check(db, CHECK_S)
            if version < kind.kept:
                take_to(kind, path, db, kind.kept)
        if kind.grow is not None and version >= kind.version:
            kind.grow(db)
    except BaseException:
        db.close()
        raise
    return db


def recognise(kind: Kind, path: Path, db: sqlite3.Connection, *, writing: bool = False) -> int:
    """Return the schema version, 0 for an empty file; refuse what is not ours.

    Refuse a newer one, too, unless its `meta` lets this version read it (or write, when `writing`).
    """
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if objects == 0:
        return 0
    if application_id != kind.application_id:
        raise JournalForeignError(
            f"{kind.name} {path}: this is an SQLite file, but no {kind.name} of marketfeed "
            f"(application_id {application_id:#x}, expected {kind.application_id:#x}); "
            "nothing was changed"
        )
    # One that is not newer is known without `meta`.
    if version > kind.version:
        asked = schema.version_asked(version, _meta(db, writing=writing))
        if asked > kind.version:
            raise JournalNewerError(
                f"{kind.name} {path}: written by a newer marketfeed (schema version {version}: "
                f"{'writing' if writing else 'reading'} it takes version {asked}, this one is version "
                f"{kind.version}); install that version again, or use another file"
            )
    return int(version)


def _meta(db: sqlite3.Connection, *, writing: bool) -> list[tuple[object, ...]]:
    try:
        return db.execute(schema.WRITERS_FROM if writing else schema.READERS_FROM).fetchall()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR: there is no such table, or no such column in it.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return []


def _create(kind: Kind, db: sqlite3.Connection) -> None:
    with transaction(db, "EXCLUSIVE"):
        for statement in _statements(kind.create):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {kind.application_id}")
        db.execute(f"PRAGMA user_version = {kind.version}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger holds some of its own."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def take_to(kind: Kind, path: Path, db: sqlite3.Connection, version: int) -> int:
    """Take a file to another version, newer or older, in one transaction; returns the version before.

    Raises JournalError when this marketfeed knows no way, and SQLite's errors as they are: nothing is changed
    then.
    """
    with transaction(db, "EXCLUSIVE"):
        (before,) = db.execute("PRAGMA user_version").fetchone()
        if before > kind.version:
            raise JournalNewerError(
                f"{kind.name} {path}: schema version {before} is newer than this marketfeed's, "
                f"{kind.version}: the one that wrote it takes it to another"
            )
        forth = version >= before
        for at in range(before, version, 1 if forth else -1):
            step = (kind.migrations if forth else kind.ways_back).get(at)
            if step is None:
                raise JournalError(
                    f"{kind.name} {path}: this marketfeed knows no way from schema version {at} to "
                    f"{version}; use a version in between, or another file"
                )
            if callable(step):
                step(db)
            else:
                for statement in step:
                    db.execute(statement)
        db.execute(f"PRAGMA user_version = {version}")
    if before != version:
        log.info("%s migrated path=%s from=%d to=%d", kind.name, path, before, version)
    return int(before)


def convert(kind: Kind, path: Path, version: int) -> int:
    """Take the file at `path`, which nobody else writes, to `version`; returns the version before.

    Raises JournalLockedError while somebody writes it, JournalForeignError, JournalNewerError, or
    JournalError; nothing is changed then. A damaged file stays where it is.
    """
    path = path.resolve()
    try:
        lock_fd = _take_lock(kind, path, 0.0)
    except OSError as error:
        raise JournalError(f"{kind.name} {path}: {error.strerror or error}") from error
    try:
        with (
            translate_sqlite_errors(kind, path),
            contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as db,
        ):
            if recognise(kind, path, db, writing=True) == 0:
                raise JournalError(absence(kind, path))
            # A restored backup is in no such mode. Killed without, it would look whole to readers.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            return take_to(kind, path, db, version)
    finally:
        os.close(lock_fd)
