"""A journal on this host, read while the collector writes it, and after it stopped.

Two ways to open the file, both read-only:

* With a `-wal` beside it, ordinarily: the collector runs, or was killed.
* Without one, after a clean stop, as `immutable`: nothing is created next to the file, so this works
  for another user who may only read. It holds only while nobody writes, so what such a connection
  answers counts only if neither a `-wal` has appeared nor the file changed meanwhile.

After every question the file and its `-wal` are looked at; where either is another one than was opened
(set aside as damaged, restored from a backup), it is opened again and the question asked again.

Each thread has a connection of its own, as far as a few go round; what a signal handler asks takes another
one than the query that it has interrupted. Before a fork all are closed (`gate`), and both sides open the
file again with their next question.
"""

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from marketfeed import schema
from reader.errors import ReaderError, StoreUnavailableError
from reader.stores.gate import Gate
from reader.stores.journal_file import Opened, look
from reader.stores.sqlite_errors import RETRY_S, WHO_MAY, is_passing, sqlite_problem

_PAUSE_S: Final = 0.01
_KEPT: Final = 8
"""So many connections of a journal are kept open when nobody asks."""

_Answer = TypeVar("_Answer")

_GATE: Final = Gate()
_JOURNALS: Final[WeakSet["JournalConnections"]] = WeakSet()
_NUMBERS: Final = count(1)


@dataclass(slots=True, eq=False)
class Connected:
    """An open connection. `number` tells it from all others of this process; `thread` used it last."""

    db: sqlite3.Connection
    opened: Opened
    path: Path
    wal_path: Path
    number: int
    pid: int
    thread: int
    is_lost: bool = False

    def has_changed(self) -> bool:
        """Whether other files lie at the path than those that are open, or an immutable one grew."""
        try:
            return look(self.path, self.wal_path) != self.opened
        except OSError:
            return True


class JournalConnections:
    """The journal at `path`, opened at once. Safe in threads, in signal handlers and after a fork.

    Raises StoreUnavailableError, here and from every question.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self._idle: list[Connected] = []
        self._asking: list[Connected] = []
        self._answered = False
        self._closed = False
        _JOURNALS.add(self)
        self.ask(lambda db: None)

    @property
    def source(self) -> str:
        """The journal's address."""
        return "sqlite:///" + quote(os.fsencode(self.path))

    def close(self) -> None:
        """Close the file; every later question raises. One that is being asked is answered."""
        with _GATE.passing():
            self._closed = True
            self._close_idle()

    def ask(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Run `question` in one transaction on the journal as it stands, opening it if need be."""
        return self.ask_of(lambda connected: question(connected.db))

    def ask_of(self, question: Callable[[Connected], _Answer]) -> _Answer:
        """As `ask`, with the connection."""
        deadline_s = time.monotonic() + RETRY_S
        while True:
            with _GATE.passing():
                try:
                    answer = self._ask_once(question)
                    self._answered = True
                    return answer
                except _Retry as retry:
                    problem = retry.problem
                    if time.monotonic() >= deadline_s:
                        self._answered = False
                        raise problem from problem.__cause__
            time.sleep(_PAUSE_S)

    def _ask_once(self, question: Callable[[Connected], _Answer]) -> _Answer:
        if self._closed:
            raise ReaderError(f"the reader of {self.source} is closed")
        connected: Connected | None = None
        is_good = False
        try:
            connected = self._take()
            self._asking.append(connected)
            connected.db.execute("BEGIN")
            try:
                self._require_version(connected)
                answer = question(connected)
            finally:
                # A damaged file may have ended the transaction already.
                with contextlib.suppress(sqlite3.Error):
                    connected.db.execute("COMMIT")
            is_good = not connected.has_changed()
        except (sqlite3.Error, OSError) as error:
            # A file that was there a moment ago is perhaps just being replaced.
            passing = self._answered if isinstance(error, OSError) else is_passing(error)
            changed = connected is not None and (connected.is_lost or connected.has_changed())
            problem = self._problem(error)
            problem.__cause__ = error
            if changed or passing:
                raise _Retry(problem) from error
            raise problem from error
        finally:
            if connected is not None:
                self._asking.remove(connected)
                self._give_back(connected, is_good=is_good)
        if not is_good:
            raise _Retry(self.unavailable("is being replaced again and again; try later"))
        return answer

    # --- the file ---------------------------------------------------------------------------------

    def _take(self) -> Connected:
        """A connection that nobody else uses: the one that this thread used last, if it is there."""
        me, pid = threading.get_ident(), os.getpid()
        # No lock: a list's own methods are atomic, and who comes second finds that it is gone.
        for mine in (True, False):
            for connected in tuple(self._idle):
                if (connected.thread == me) is mine and (mine or len(self._idle) >= _KEPT):
                    try:
                        self._idle.remove(connected)
                    except ValueError:
                        continue
                    if connected.pid == pid:
                        connected.thread = me
                        return connected
                    connected.db.close()
        return self._connect()

    def _give_back(self, connected: Connected, *, is_good: bool) -> None:
        if is_good and not self._closed and not connected.is_lost:
            self._idle.append(connected)
            if len(self._idle) <= _KEPT:
                return
            with contextlib.suppress(IndexError):
                self._idle.pop(0).db.close()
            return
        connected.db.close()
        # The others are of the file that was there, too: open they would keep its bytes on the disk.
        self._close_idle()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().db.close()

    def _connect(self) -> Connected:
        # SQLite, too, names the -wal after the file that a link points to.
        wal_path = Path(f"{self.path.resolve()}-wal")
        opened = look(self.path, wal_path)
        if not os.access(self.path, os.R_OK):
            # SQLite's own error would not distinguish this from a collector that is just starting.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        mode = "mode=ro" if opened.wal else "mode=ro&immutable=1"
        # The authority is empty, so that a path with two slashes in front stays a path.
        uri = f"file://{quote(os.fsencode(self.path))}?{mode}"
        db = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_PAUSE_S
        )
        connected = Connected(
            db, opened, self.path, wal_path, next(_NUMBERS), os.getpid(), threading.get_ident()
        )
        # A fork by a signal handler closes it from here on.
        self._asking.append(connected)
        try:
            self._require_journal(connected)
        except BaseException as error:
            changed = connected.is_lost or connected.has_changed()
            db.close()
            if isinstance(error, sqlite3.Error) and changed:
                problem = self._problem(error)
                problem.__cause__ = error
                raise _Retry(problem) from error
            raise
        finally:
            self._asking.remove(connected)
        return connected

    def _require_journal(self, connected: Connected) -> None:
        """Look whether the file is a journal. It is no journal of this version yet."""
        (objects,) = connected.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = connected.db.execute("PRAGMA application_id").fetchone()
        if connected.has_changed():
            raise _Retry(self.unavailable("is being replaced again and again; try later"))
        if objects and application == schema.APPLICATION_ID:
            return
        if objects == 0:
            raise self.unavailable(
                "is empty: no collector has written to it yet; start one (marketfeed run), or check "
                "that the path is that of its journal.path"
            )
        raise self.unavailable(
            f"is an SQLite file, but not a journal of marketfeed (application_id {application:#x}, "
            f"expected {schema.APPLICATION_ID:#x}); check the path"
        )

    def _require_version(self, connected: Connected) -> None:
        """Look whether this reader may read the file as it stands. In a transaction."""
        db = connected.db
        version = version_of(db)
        own = schema.SCHEMA_VERSION
        if schema.OLDEST_READ <= version <= own:
            return
        if version < own:
            problem = self.unavailable(
                f"has schema version {version}, this reader reads version {schema.OLDEST_READ} and newer: "
                "it was written by an older marketfeed; start a collector of this version on it"
            )
        else:
            asked = schema.version_asked(version, _meta(db))
            if asked <= own:
                return
            problem = self.unavailable(
                f"has schema version {version}: reading it takes version {asked}, this reader is version "
                f"{own}: it was written by a newer marketfeed; install that version here too"
            )
        # Of a file that was opened as immutable it may be half of each state.
        raise _Retry(problem) if connected.has_changed() else problem

    def close_for_fork(self) -> None:
        """Close all connections, those too whose queries the forking thread has been interrupted in."""
        self._close_idle()
        for connected in self._asking:
            connected.is_lost = True
            connected.db.close()

    # --- what went wrong --------------------------------------------------------------------------

    def unavailable(self, text: str) -> StoreUnavailableError:
        """The error that says `text` of the journal."""
        return StoreUnavailableError(f"journal {self.path} {text}")

    def _problem(self, error: Exception) -> StoreUnavailableError:
        match error:
            case FileNotFoundError() | NotADirectoryError():
                text = (
                    "is not there; start the collector (marketfeed run), or point MARKETFEED_URL to its "
                    "journal.path"
                )
            case IsADirectoryError():
                text = "is no file; the path of the journal itself is expected"
            case OSError():
                text = f"cannot be read: {error.strerror or error}.{WHO_MAY}"
            case _:
                text = sqlite_problem(error)
        return self.unavailable(text)


class _Retry(Exception):  # noqa: N818 - not an error that leaves this module
    """The question may succeed in a moment; `problem` is what to raise if it does not."""

    def __init__(self, problem: StoreUnavailableError) -> None:
        super().__init__(problem)
        self.problem = problem


def version_of(db: sqlite3.Connection) -> int:
    """The schema version of a journal."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _meta(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    try:
        return db.execute(schema.READERS_FROM).fetchall()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR: there is no such table, or no such column in it.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return []


def _before_fork() -> None:
    _GATE.shut()
    for journal in list(_JOURNALS):
        journal.close_for_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_GATE.open, after_in_child=_GATE.renew)
