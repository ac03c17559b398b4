"""Reads a whole journal slice by slice, beside its writer, and says which parts of it cannot be read.

Every page of a table or an index lies in some range of its keys, so walking all ranges reads all of them. A
slice is a read transaction of its own, of a second at most: the `-wal` can begin anew in between.

It sees what SQLite cannot read, and keys that are no numbers where a slice ends. It does not see values
that were read and are not those that were stored (pages have no checksum), nor what only `quick_check` finds:
rows out of order, an index that lacks rows, a free list in disorder, the pages of `gap_open`, of the index of
pair names, and of long values behind the first page. `marketfeed check --whole` does, but for values.
"""

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.errors import JournalWriteError
from marketfeed.journal.journal import KIND
from marketfeed.storage.damage import damage, meaning_of
from marketfeed.storage.database import translate_sqlite_errors
from marketfeed.storage.files import connect_read_only, is_stopped

SLICE_S: Final = 1.0
"""Wall seconds of a slice at most: one that takes longer is broken off, and made smaller."""
_BETWEEN: Final = 5_000
"""Of SQLite's instructions, between two looks at the time."""
_AIM_S: Final = 0.15
_ROWS_FIRST: Final = 2_000
_ROWS_MOST: Final = 50_000
_CACHE_KIB: Final = 2_000
"""Nothing is read twice."""
_NEAR: Final = 100
"""Slices until the row that cannot be read: eight of a size, each an eighth of the one before."""
_LAST_KEY: Final = 1 << 60
_BEGIN: Final = -(1 << 62)
_SERIES: Final = (
    ("candle", "open_time"),
    ("mark_1h", "open_time"),
    ("mark_price", "time"),
    ("funding_rate", "time"),
    ("funding_settled", "time"),
)
_STEP_MS: Final = {
    "mark_price": schema.SECOND_MS,
    "funding_rate": schema.MINUTE_MS,
}


class Walk(NamedTuple):
    """One range of keys, walked along `column`: a series of a table, an index, or a small table whole.

    `weight` is its share of the work, against that of a series.
    """

    name: str
    table: str
    column: str
    where: str
    key: tuple[int, ...]
    label: str
    step: int
    weight: int = 1


class Unreadable(msgspec.Struct, frozen=True):
    """A range of a walk that cannot be read: [since, until), to its end if `until` is None.

    Of a series it is exchange time (ms), of an index it is row numbers, of a small table places in it.
    `why` are SQLite's words.
    """

    walk: str
    label: str
    since: int
    until: int | None
    why: str
    is_time: bool = True

    def __str__(self) -> str:
        since = _shown(self.since, is_time=self.is_time)
        until = "its end" if self.until is None else _shown(self.until, is_time=self.is_time)
        return f"{self.label} from {since} to {until} ({self.why})"


class Position(msgspec.Struct, frozen=True):
    """Where a check stands: the walk and the key from which it goes on."""

    walk: str = ""
    at: int = _BEGIN


def _shown(key: int, *, is_time: bool) -> str:
    if key <= _BEGIN:
        return "its beginning"
    if not is_time:
        return f"row {key:,}"
    return datetime.fromtimestamp(key / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _words(error: Exception) -> str:
    """SQLite's own, without the path before them."""
    return str(error.__cause__ or error)


class SlicedCheck:
    """A check of the journal at `path`, from `position` on. Not safe for concurrent calls.

    `step` raises JournalWriteError: what `damage.meaning_of` calls a failed read or damage may be asked for
    again by another `step`. It is `skip` that takes it as a finding and goes on behind it.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self.unreadable: list[Unreadable] = []
        """What has been found by now."""
        self._path = path
        self._position = position or Position()
        self._walks: list[Walk] | None = None
        self._number = 0
        self._rows = _ROWS_FIRST
        self._db: sqlite3.Connection | None = None

    @property
    def position(self) -> Position:
        """Where it stands."""
        return self._position

    @property
    def fraction(self) -> float:
        """How much of it is done, roughly."""
        walks = self._walks
        if not walks:
            return 0.0
        done = sum(walk.weight for walk in walks[: self._number])
        return done / sum(walk.weight for walk in walks)

    def close(self) -> None:
        """Close its connection; the next step opens another one."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def step(self) -> bool:
        """Read the next slice; False when there is none left. Raises JournalWriteError."""
        with translate_sqlite_errors(KIND, self._path):
            return self._step()

    def skip(self, error: JournalWriteError) -> None:
        """Take in that the slice cannot be read, and go on behind what cannot. Raises JournalWriteError.

        Rows before it are read first, in ever smaller slices.
        """
        with translate_sqlite_errors(KIND, self._path):
            self._skip(error)

    def reads(self, found: Unreadable) -> bool:
        """Whether what was found before can be read by now. Raises what says nothing of the file."""
        with translate_sqlite_errors(KIND, self._path):
            return self._reads(found)

    def _step(self) -> bool:
        db = self._connected()
        if self._walks is None:
            self._walks = _walks(db)
            names = [walk.name for walk in self._walks]
            if self._position.walk in names:
                self._number = names.index(self._position.walk)
            else:
                self._position = Position()
        if self._number >= len(self._walks):
            return False
        walk = self._walks[self._number]
        started_s = time.monotonic()
        try:
            found = _next(db, walk, self._position.at, self._rows, started_s + SLICE_S)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            # A single row is always read to its end.
            self._rows = max(1, self._rows // 4)
            return True
        self._adapt(time.monotonic() - started_s)
        self._go_on(walk, found)
        return True

    def _skip(self, error: Exception) -> None:
        if self._walks is None:
            # What names all others. Whoever opens such a file meets it at once.
            self._walks = []
            self.unreadable.append(Unreadable("pair", "table pair", _BEGIN, None, _words(error)))
            return
        walk = self._walks[self._number]
        if walk.column:
            again = self._approach(walk)
            if again is None:
                return
        since = self._position.at
        until = self._readable_from(walk, since)
        self.unreadable.append(
            Unreadable(walk.name, walk.label, since, until, _words(error), is_time=walk.step > 1)
        )
        self._rows = _ROWS_FIRST
        self._go_on(walk, until)

    def _approach(self, walk: Walk) -> sqlite3.Error | None:
        """Go on to the row that cannot be read; returns its error, None: all of the slice can be, by now."""
        rows = self._rows
        for _ in range(_NEAR):
            try:
                found = _next(self._connected(), walk, self._position.at, rows, None)
            except sqlite3.Error as error:
                if not meaning_of(error).is_of_reading:
                    raise
                self.close()
                if rows == 1:
                    return error
                rows = max(1, rows // 8)
                continue
            self._go_on(walk, found)
            if found is None:
                return None
        return None

    def _reads(self, found: Unreadable) -> bool:
        db = self._connected()
        walk = next((one for one in _walks(db) if one.name == found.walk), None)
        if walk is None:
            return True
        at: int | None = found.since
        try:
            while at is not None and (found.until is None or at < found.until):
                at = _next(db, walk, at, _ROWS_FIRST, None)
        except sqlite3.Error as error:
            if not meaning_of(error).is_of_reading:
                raise
            return False
        return True

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = connect_read_only(
                self._path, immutable=is_stopped(self._path), any_thread=True
            )
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return self._db

    def _adapt(self, took_s: float) -> None:
        if took_s < _AIM_S / 2:
            self._rows = min(self._rows * 2, _ROWS_MOST)
        elif took_s > _AIM_S * 2:
            self._rows = max(self._rows // 2, 1)

    def _go_on(self, walk: Walk, found: int | None) -> None:
        walks = self._walks or []
        if found is not None:
            self._position = Position(walk.name, found)
            return
        self._number += 1
        name = walks[self._number].name if self._number < len(walks) else ""
        self._position = Position(name)

    def _readable_from(self, walk: Walk, at: int) -> int | None:
        """The first key behind `at` from which on a row can be read; None: none to its end."""
        if not walk.column:
            return None
        return readable_from(
            lambda key: _next(self._connected(), walk, key, 0, None),
            self._meet,
            0 if at == _BEGIN else at,
            walk.step,
        )

    def _meet(self, error: sqlite3.Error) -> None:
        if not meaning_of(error).is_of_reading:
            raise error
        self.close()


def readable_from(
    first_from: Callable[[int], int | None],
    meet: Callable[[sqlite3.Error], None],
    at: int,
    step: int,
) -> int | None:
    """The first key behind `at` from which on rows can be read again; None: none to the end.

    `first_from` gives the first key that is not less than its argument. Keys lie about `step` apart. `meet`
    is called with what could not be read.
    """
    bad, wide = at, step
    while wide < _LAST_KEY:
        try:
            found = first_from(at + wide)
            break
        except sqlite3.Error as error:
            meet(error)
            bad, wide = at + wide, 2 * wide
    else:
        return None
    # The last step may have gone over rows that can be read.
    good = at + wide
    while good - bad > step:
        middle = bad + (good - bad) // 2
        try:
            found, good = first_from(middle), middle
        except sqlite3.Error as error:
            meet(error)
            bad = middle
    return found


def whole_number(key: object, of: str) -> int:
    """A key as it was read. Raises sqlite3.DatabaseError (damage) for what is none, as a bad page gives."""
    if not isinstance(key, int):
        raise damage(f"a key of {of} is no whole number but {type(key).__name__}")
    return key


def _next(
    db: sqlite3.Connection, walk: Walk, at: int, rows: int, deadline_s: float | None
) -> int | None:
    """Read so many rows from a key on; returns the key behind them, None at the end."""
    if not walk.column:
        # Row by row, so that every column is read and nothing is kept. By place: their keys are texts, some
        # of them. Rows that are deleted before it meanwhile hide as many from this check.
        place = max(at, 0)
        text = f"SELECT * FROM {walk.table} NOT INDEXED LIMIT ? OFFSET ?"  # noqa: S608
        read = 0
        for _ in db.execute(text, (max(rows, 1), place)):
            read += 1
            if deadline_s is not None and time.monotonic() > deadline_s:
                return place + read
        return place + read if read == max(rows, 1) else None
    if deadline_s is not None and rows > 1:
        db.set_progress_handler(lambda: time.monotonic() > deadline_s, _BETWEEN)
    try:
        text = f"""SELECT {walk.column} FROM {walk.table} WHERE {walk.where}{walk.column} >= ?
                   ORDER BY {walk.column} LIMIT 1 OFFSET ?"""  # noqa: S608
        row = db.execute(text, (*walk.key, at, rows)).fetchone()
    finally:
        db.set_progress_handler(None, 0)
    if row is None:
        # Texts are sorted behind all numbers.
        text = f"""SELECT {walk.column} FROM {walk.table} WHERE {walk.where}true
                   ORDER BY {walk.column} DESC LIMIT 1"""  # noqa: S608
        row = db.execute(text, walk.key).fetchone()
        if row is not None:
            whole_number(row[0], walk.label)
        return None
    return whole_number(row[0], walk.label)


def _walks(db: sqlite3.Connection) -> list[Walk]:
    """All of them: the small tables first, which say what there is."""
    found = dict(db.execute("SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite%'"))
    tables = {name for name, kind in found.items() if kind == "table"}
    series = [(table, column) for table, column in _SERIES if table in tables]
    large = {table for table, _ in series}
    walks = [Walk(name, name, "", "", (), name, 1) for name in sorted(tables - large)]
    pairs = db.execute("SELECT id, pair FROM pair ORDER BY id").fetchall()
    for table, column in series:
        for number, pair in pairs:
            if table != schema.TABLE_CANDLE:
                step = _STEP_MS.get(table, schema.HOUR_MS)
                name, label = f"{table} {number}", f"{pair} {table}"
                walks.append(Walk(name, table, column, "pair_id = ? AND ", (number,), label, step))
                continue
            where = "pair_id = ? AND timeframe_ms = ? AND "
            for ms, timeframe in schema.TIMEFRAME_NAMES.items():
                name, label = f"{table} {number} {timeframe}", f"{pair} {timeframe}"
                walks.append(Walk(name, table, column, where, (number, ms), label, ms))
    for table in sorted(tables):
        index = f"{table}_seq"
        if index in found:
            source = f"{table} INDEXED BY {index}"
            weight = max(1, len(pairs)) if table in large else 1
            walks.append(Walk(index, source, "seq", "", (), f"index {index}", 1, weight))
    return walks
