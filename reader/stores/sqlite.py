"""A journal on this host, read while the collector writes it, and after it stopped.

Two ways to open the file, both read-only:

* With a `-wal` beside it, ordinarily: the collector runs, or was killed.
* Without one, after a clean stop, as `immutable`: nothing is created next to the file, so this works
  for another user who may only read. It holds only while nobody writes, so what such a connection
  answers counts only if neither a `-wal` has appeared nor the file changed meanwhile.

After every question the file and its `-wal` are looked at; where either is another one than was opened
(set aside as damaged, restored from a backup), it is opened again and the question asked again.

All SQLite calls of this process are made under one lock, and a fork takes that lock and closes the
connections first: SQLite keeps locks and shared memory per process, and a child that inherited them
would trust locks that it does not hold. Both sides open the file again with their next question.
"""

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.coverage import Interval
from reader.errors import ReaderError, StoreUnavailableError
from reader.rows import (
    Announced,
    CandleQuery,
    CandleRows,
    CatalogRow,
    FundingRow,
    MarkRow,
    SettledRow,
    as_float,
)
from reader.stores import sqlite_marks
from reader.stores import sqlite_queries as queries
from reader.stores.journal_file import Opened, look
from reader.stores.sqlite_coverage import (
    Extent,
    candle_rows,
    intervals,
    json_of,
    series_of,
    settled_to,
    told_lives,
)
from reader.stores.sqlite_errors import RETRY_S, WHO_MAY, is_passing, sqlite_problem

_PAUSE_S: Final = 0.01
_POLL_S: Final = 0.005

_Answer = TypeVar("_Answer")

# Reentrant, so that a signal handler that forks does not wait for the very thread it interrupted.
_LOCK: Final = threading.RLock()
_STORES: Final[WeakSet["SqliteStore"]] = WeakSet()


class SqliteStore:
    """The journal at `path`. Opens it at once, and again whenever that is needed.

    Raises StoreUnavailableError, here and from every question.
    """

    poll_s = _POLL_S

    def __init__(self, path: Path) -> None:
        self._path = Path(path).absolute()
        self._db: sqlite3.Connection | None = None
        self._wal_path = self._path
        self._opened = Opened((), None)
        self._opened_pid = 0
        self._generation = 0
        self._answered = False
        self._closed = False
        with _LOCK:
            _STORES.add(self)
        self._ask(lambda db: None)

    @property
    def source(self) -> str:
        """The journal's address."""
        return "sqlite:///" + quote(os.fsencode(self._path))

    def close(self) -> None:
        """Close the file; every later question raises."""
        with _LOCK:
            self._closed = True
            self._disconnect()

    # --- questions --------------------------------------------------------------------------------

    def catalog(
        self, pairs: Sequence[str] | None = None, *, afresh: bool = False
    ) -> list[CatalogRow]:
        """What is collected, ordered by pair; of `pairs` alone if given."""
        text = queries.CATALOG if pairs is None else queries.CATALOG_OF
        bound = {} if pairs is None else {"pairs": json_of(pairs)}

        def question(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            (has_lives,) = db.execute(schema.HAS_LIVES).fetchone()
            lives = queries.LIVES if has_lives else "NULL"
            dropped = schema.dropped_column(_version(db))
            return db.execute(text.format(dropped=dropped, lives=lives), bound).fetchall()

        rows = self._ask(question)
        try:
            return [CatalogRow.stored(*row)._replace(lives=told_lives(text)) for *row, text in rows]
        except ValueError as error:
            raise self._unavailable(f"holds what no collector writes: {error}") from error

    def candles(self, query: CandleQuery) -> list[CandleRows]:
        """Answer `query`, each pair in a transaction of its own: one that lasts makes the `-wal` grow.

        So that a closing candle is in it once, of all pairs or of none, `query.end_ms` is to be fixed before.
        """
        deadline_s = time.monotonic() + RETRY_S
        while True:
            generation, answers = None, []
            for pair in query.pairs:
                answers.append(self._candles(query._replace(pairs=(pair,))))
                if generation is None:
                    generation = self._generation
                elif generation != self._generation:
                    break
            else:
                return answers
            # Another file stands there now, perhaps: half of each is no answer.
            if time.monotonic() >= deadline_s:
                raise self._unavailable("is being replaced again and again; try later")

    def last_close(self, pairs: Sequence[str], timeframe: str) -> int | None:
        """When the newest closed candle of all of `pairs` closed (ms); None without any: one seek a pair."""
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        rows = self._rows(queries.NEWEST_OF, pairs=json_of(pairs), timeframe_ms=length_ms)
        return None if rows[0][0] is None else int(rows[0][0]) + length_ms

    def _candles(self, query: CandleQuery) -> CandleRows:
        asked = series_of(query.pairs, query.timeframe, query.own) | {
            "start": query.start_ms,
            "end": query.end_ms,
            "limit": query.limit,
        }

        def question(
            db: sqlite3.Connection,
        ) -> tuple[NDArray[np.float64], Extent, list[tuple[Any, ...]]]:
            more = ""
            if query.columns:
                (has_quotes,) = db.execute(schema.HAS_TAKER_BUY_QUOTE).fetchone()
                more = queries.more_columns(query.columns, has_quotes)
            rows = db.execute(queries.CANDLES.format(more=more), asked)
            numbers = (map(as_float, row) for row in rows) if more else rows
            values = np.fromiter(chain.from_iterable(numbers), np.float64)
            extent = _extent(db, asked)
            text = queries.FORMING.format(more=more)
            forming = db.execute(text, asked).fetchall() if query.forming else []
            return values.reshape(-1, 7 + len(query.columns)), extent, forming

        values, extent, forming = self._ask(question)
        return candle_rows(query, values, extent, forming)[0]

    def newest(self, timeframe: str) -> Mapping[str, int]:
        """Pair -> open time of its newest closed candle: one seek a pair."""
        return dict(self._rows(queries.NEWEST, timeframe_ms=schema.TIMEFRAMES_MS[timeframe]))

    def with_candle(self, timeframe: str, open_time_ms: int) -> set[str]:
        """The pairs whose closed candle of that open time is stored: one seek a pair."""
        rows = self._rows(
            queries.WITH_CANDLE,
            timeframe_ms=schema.TIMEFRAMES_MS[timeframe],
            open_time=open_time_ms,
        )
        return {pair for (pair,) in rows}

    def coverage(self, pairs: Sequence[str], timeframe: str) -> Mapping[str, Interval]:
        """Where the series of `pairs` are whole, without those that are not promised: some seeks a pair."""
        asked = series_of(pairs, timeframe)
        return intervals(self._ask(lambda db: _extent(db, asked)), pairs, timeframe)

    def mark_prices(self, pairs: Sequence[str]) -> Mapping[str, MarkRow]:
        """The newest mark price of each of `pairs`."""
        rows = self._rows(queries.MARK_PRICES, pairs=json_of(pairs))
        return {row[0]: MarkRow(*row) for row in rows}

    def mark_minutes(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """Each minute's mark prices with start <= time < end, shape (n, 5), ascending."""
        rows = self._rows(queries.MARK_MINUTES, pair=pair, start=start_ms, end=end_ms)
        return np.array(rows, np.float64).reshape(-1, 5)

    def mark_hours(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """The hourly candles of the mark price with start <= open time < end, shape (n, 5), ascending."""
        rows = self._ask(lambda db: sqlite_marks.hours(db.execute, pair, start_ms, end_ms))
        return np.array(rows, np.float64).reshape(-1, 5)

    def mark_coverage(self, pair: str) -> Interval | None:
        """Where they are whole; None where that is not known."""
        extent = self._ask(lambda db: sqlite_marks.extent(db.execute, pair))
        return intervals(extent, [pair], schema.MARK_1H).get(pair)

    def funding_rates(self, pairs: Sequence[str]) -> Mapping[str, FundingRow]:
        """The newest running funding rate of each of `pairs`."""
        rows = self._rows(queries.FUNDING_RATES, pairs=json_of(pairs), **queries.SETTLEMENTS)
        return {row[0]: FundingRow(*row) for row in rows}

    def settled_rates(self, pair: str, start_ms: int, end_ms: int) -> list[SettledRow]:
        """Settlements with start <= time < end, oldest first; of one time the regular one first."""
        bound = queries.SETTLEMENTS | {"pair": pair, "start": start_ms, "end": end_ms}
        rows = self._rows(queries.SETTLED, **bound)
        return [SettledRow(*row) for row in rows]

    def announced(self, since_ms: Mapping[str, int]) -> Mapping[str, list[Announced]]:
        """The settlements that running rates announced, from what stood at each pair's time on."""
        return {
            pair: [Announced(*row) for row in self._rows(queries.ANNOUNCED, pair=pair, start=at)]
            for pair, at in since_ms.items()
        }

    def settled_to(self, pairs: Sequence[str]) -> Mapping[str, int]:
        """Up to when (ms, exclusive) all settlements of each of `pairs` are stored."""
        rows = self._rows(queries.DOCUMENT, name=schema.SETTLED_DOCUMENT)
        return settled_to(rows, pairs)

    def version(self) -> Hashable:
        """A value that differs after every commit, and after the file was opened again."""
        return self._ask(
            lambda db: (self._generation, db.execute("PRAGMA data_version").fetchone()[0])
        )

    # --- one question -----------------------------------------------------------------------------

    def _rows(self, text: str, **parameters: str | int) -> list[tuple[Any, ...]]:
        return self._ask(lambda db: db.execute(text, parameters).fetchall())

    def _ask(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Run `question` in one transaction on the journal as it stands, opening it if need be."""
        deadline_s = time.monotonic() + RETRY_S
        while True:
            with _LOCK:
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

    def _ask_once(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        if self._closed:
            raise ReaderError(f"the reader of {self.source} is closed")
        try:
            db = self._connected()
            db.execute("BEGIN")
            try:
                self._require_version(db)
                answer = question(db)
            finally:
                # A damaged file may have ended the transaction already.
                with contextlib.suppress(sqlite3.Error):
                    db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            # A file that was there a moment ago is perhaps just being replaced.
            passing = self._answered if isinstance(error, OSError) else is_passing(error)
            changed = self._db is not None and self._has_changed()
            self._disconnect()
            problem = self._problem(error)
            problem.__cause__ = error
            if changed or passing:
                raise _Retry(problem) from error
            raise problem from error
        except BaseException:
            self._disconnect()
            raise
        if self._has_changed():
            self._disconnect()
            raise _Retry(self._unavailable("is being replaced again and again; try later"))
        return answer

    # --- the file ---------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and self._opened_pid != os.getpid():
            self._disconnect()
        return self._connect() if self._db is None else self._db

    def _connect(self) -> sqlite3.Connection:
        # SQLite, too, names the -wal after the file that a link points to.
        self._wal_path = Path(f"{self._path.resolve()}-wal")
        opened = look(self._path, self._wal_path)
        if not os.access(self._path, os.R_OK):
            # SQLite's own error would not distinguish this from a collector that is just starting.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        mode = "mode=ro" if opened.wal else "mode=ro&immutable=1"
        # The authority is empty, so that a path with two slashes in front stays a path.
        uri = f"file://{quote(os.fsencode(self._path))}?{mode}"
        db = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_PAUSE_S
        )
        self._db, self._opened, self._opened_pid = db, opened, os.getpid()
        self._generation += 1
        (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if self._has_changed():
            self._disconnect()
            raise _Retry(self._unavailable("is being replaced again and again; try later"))
        if objects and application == schema.APPLICATION_ID:
            return db
        self._disconnect()
        if objects == 0:
            raise self._unavailable(
                "is empty: no collector has written to it yet; start one (marketfeed run), or check "
                "that the path is that of its journal.path"
            )
        raise self._unavailable(
            f"is an SQLite file, but not a journal of marketfeed (application_id {application:#x}, "
            f"expected {schema.APPLICATION_ID:#x}); check the path"
        )

    def _require_version(self, db: sqlite3.Connection) -> None:
        """Look whether this reader may read the file as it stands. In a transaction."""
        version = _version(db)
        own = schema.SCHEMA_VERSION
        if schema.OLDEST_READ <= version <= own:
            return
        if version < own:
            problem = self._unavailable(
                f"has schema version {version}, this reader reads version {schema.OLDEST_READ} and newer: "
                "it was written by an older marketfeed; start a collector of this version on it"
            )
        else:
            asked = schema.version_asked(version, _meta(db))
            if asked <= own:
                return
            problem = self._unavailable(
                f"has schema version {version}: reading it takes version {asked}, this reader is version "
                f"{own}: it was written by a newer marketfeed; install that version here too"
            )
        # Of a file that was opened as immutable it may be half of each state.
        raise _Retry(problem) if self._has_changed() else problem

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _has_changed(self) -> bool:
        """Whether other files lie at the path than those that are open, or an immutable one grew."""
        try:
            return look(self._path, self._wal_path) != self._opened
        except OSError:
            return True

    # --- what went wrong --------------------------------------------------------------------------

    def _unavailable(self, text: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"journal {self._path} {text}")

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
        return self._unavailable(text)


class _Retry(Exception):  # noqa: N818 - not an error that leaves this module
    """The question may succeed in a moment; `problem` is what to raise if it does not."""

    def __init__(self, problem: StoreUnavailableError) -> None:
        super().__init__(problem)
        self.problem = problem


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _extent(db: sqlite3.Connection, asked: Mapping[str, Any]) -> Extent:
    if _version(db) < schema.COVERAGE_FROM:
        return Extent(db.execute(queries.EXTENT, asked).fetchall())
    rows = db.execute(queries.COVERED_EXTENT, asked).fetchall()
    return Extent(rows, db.execute(queries.OPEN_HOLES, asked).fetchall())


def _meta(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    try:
        return db.execute(schema.READERS_FROM).fetchall()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR: there is no such table, or no such column in it.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return []


def _before_fork() -> None:
    _LOCK.acquire()
    for store in list(_STORES):
        store._disconnect()  # noqa: SLF001 - same module


os.register_at_fork(
    before=_before_fork, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)
