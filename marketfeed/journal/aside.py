"""A journal that was set aside, read as far as it can be: what its successor takes over from it.

It is only read. What cannot be read is asked for three times, as at an opening; then it costs its own rows:
those before and behind it are found by ever smaller questions. What is read is held against what can be.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Final, Self, TypeAlias, TypeVar

from marketfeed import schema
from marketfeed.errors import JournalError, JournalForeignError, JournalNewerError
from marketfeed.grid import TimeRange
from marketfeed.journal import marks, tables
from marketfeed.journal.aside_rows import SHAPES, Row, is_name, is_possible, is_row
from marketfeed.journal.coverage import HISTORY_GAP, Key
from marketfeed.journal.covering import read_coverage
from marketfeed.journal.journal import KIND
from marketfeed.journal.reads import JournalReads
from marketfeed.journal.slices import readable_from, whole_number
from marketfeed.records import Candle
from marketfeed.storage.damage import damage, meaning_of
from marketfeed.storage.database import recognise
from marketfeed.storage.files import BESIDE, connect_read_only, is_stopped
from marketfeed.storage.meaning import Meaning
from marketfeed.storage.opening import AGAIN_AFTER_S

T = TypeVar("T")
Place: TypeAlias = tuple[int | str, ...]

PAGE_ROWS: Final = 1_000
_KEEP: Final = "WHERE true ON CONFLICT DO NOTHING"
TAKEN: Final = {
    # The earlier event of a grid step counts, whichever file has it.
    "mark_price": tables.MARK_PRICE,
    "funding_rate": tables.FUNDING_RATE,
    # What the successor has asked for since is newer.
    "funding_settled": tables.Upsert(
        "funding_settled", "pair_id, time, kind, rate, mark_price, seq", _KEEP
    ),
    "gap": tables.Upsert("gap", 'pair_id, start, "end", healed, reason, state, kind, seq', _KEEP),
}
"""What is taken over by its key, beside candles, by table: how it is written."""
_EARLIEST_MS: Final = 1_546_300_800_000
"""2019: the exchange had no futures before. From here on rows are looked for behind a bad page."""
_NO_TIME_MS: Final = 1 << 60
_PATIENCE: Final = 20
"""So many places are asked for three times: beyond that the disk is bad, and pauses would take days."""
_WAL: Final = "its -wal"
_KINDS: Final = (
    *(schema.gap_kind(name) for name in schema.SERIES_MS),
    *("connection", "disk_budget", "mark_price", "funding_rate", "rejected"),
)
"""Kinds of gaps from which on the others are looked for behind a bad page."""


class NothingReadableError(JournalError):
    """Nothing of a file that was set aside could be read, three times."""


class Progress:
    """How far a file is taken over, and what of it is lost: kept while one attempt follows another."""

    def __init__(self) -> None:
        self.done: dict[str, Place | None] = {}
        """Behind which key each walk goes on; None: it came to its end."""
        self.lost: dict[tuple[str, str], bool] = {}
        """By walk and words; whether it could not be read: that is asked for once more."""

    def lose(self, walk: str, what: str, *, unread: bool = False) -> None:
        """Take in that a place is lost."""
        self.lost[walk, what] = unread

    def read_again(self) -> bool:
        """Forget what could not be read, and how far those walks came; whether there was anything."""
        again = {walk for (walk, _), unread in self.lost.items() if unread}
        self.lost = {key: unread for key, unread in self.lost.items() if not unread}
        if _WAL in again:
            self.done.clear()
        for walk in again:
            self.done.pop(walk, None)
        return bool(again)


class AsideJournal:
    """The journal that was set aside at `path`. Not safe for concurrent calls; from any thread.

    Entering raises NothingReadableError when nothing of it can be read, and JournalError when something
    refuses, which says nothing of the file. `known` are pairs whose names are right; None: all are taken.
    A context manager.
    """

    def __init__(
        self,
        path: Path,
        progress: Progress | None = None,
        known: Container[str] | None = None,
        again_after_s: Sequence[float] = AGAIN_AFTER_S,
        patience: int = _PATIENCE,
    ) -> None:
        self.path = path
        self.progress = progress or Progress()
        self._known = known
        self._again_after_s = tuple(again_after_s)
        self._patience = patience
        self._stopped = threading.Event()
        self._db: sqlite3.Connection | None = None
        self._immutable = is_stopped(path)

    @property
    def lost(self) -> int:
        """Ranges that could not be read, and rows that cannot be."""
        return len(self.progress.lost)

    def __enter__(self) -> Self:
        try:
            self._pairs = self._read_pairs()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next question opens it again."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def stop(self) -> None:
        """Have a question that waits to be asked again end at once; from any thread."""
        self._stopped.set()

    def promised_from_ms(self) -> dict[Key, int]:
        """From where on each series was promised; of those that tell nothing, from their oldest row on."""

        def promised(reads: JournalReads) -> dict[Key, int]:
            (version,) = reads.db.execute("PRAGMA user_version").fetchone()
            if version < schema.COVERAGE_FROM:
                return {}
            covered = read_coverage(reads)[0]
            if marks.has_table(reads.db):
                covered |= marks.read_coverage(reads)[0]
            return {key: whole_number(one.from_ms, "coverage") for key, one in covered.items()}

        found: dict[Key, int] = {}
        try:
            found = self._ask(promised)
        except sqlite3.Error:
            self.progress.lose("coverage", "coverage", unread=True)
        for key in self.series():
            if key not in found and (oldest_ms := self._oldest_ms(key)) is not None:
                found[key] = oldest_ms
        return found

    def series(self) -> list[Key]:
        """What it may hold candles of."""
        names = (*schema.TIMEFRAMES_MS, schema.MARK_1H)
        return [(pair, name) for pair in self._pairs for name in names]

    def candles(self, key: Key, time_range: TimeRange) -> Iterator[list[Candle]]:
        """The closed candles of a series within a range, oldest first, a page at a time."""
        pair, timeframe = key
        walk = walk_of(key)
        length_ms = schema.SERIES_MS[timeframe]
        page, narrowing = PAGE_ROWS, False
        at_ms: int | None = self._oldest_ms(key, time_range.start_ms)
        while at_ms is not None and at_ms < time_range.end_ms:
            until_ms = min(at_ms + page * length_ms, time_range.end_ms)
            bounds = pair, timeframe, at_ms, until_ms
            try:
                found = self._ask(lambda reads: reads.candles(*bounds), patient=not narrowing)  # noqa: B023
            except sqlite3.Error:
                narrowing = True
                if page > 1:
                    page = max(1, page // 8)
                    continue
                self.progress.lose(walk, f"{walk} at {at_ms}", unread=True)
                until_ms, found = at_ms + length_ms, []
            page = min(page * 2, PAGE_ROWS)
            narrowing = narrowing and page < PAGE_ROWS
            good = []
            for one in found:
                if is_possible(one) and at_ms <= one.open_time_ms < until_ms:
                    good.append(one)
                else:
                    self.progress.lose(walk, f"{walk} at {one.open_time_ms!r:.40}")
            if good:
                yield good
            # Where nothing was: a bad page, or nothing for a while.
            at_ms = until_ms if found else self._oldest_ms(key, until_ms)
        if at_ms is not None:
            # Keys that are no numbers are sorted behind it.
            self._oldest_ms(key, _NO_TIME_MS)

    def rows(
        self, table: str, until_ms: int, since_ms: int = 0
    ) -> Iterator[tuple[str | None, list[Row]]]:
        """The rows of one of `TAKEN`, pair by pair (None: of all), by pages, without pair and number.

        Those of before `until_ms` (exchange time), and from `since_ms` on, but of gaps all that have ended:
        those that are open are found anew by who promises. They go on where `progress` says.
        """
        if table == "gap":
            owners: list[tuple[str | None, int]] = [(None, tables.NO_PAIR), *self._pairs.items()]
            for kind in self._kinds():
                for pair, pair_id in owners:
                    where = "kind = ? AND pair_id = ? AND state IN ('healed', 'unresolvable')"
                    walk = f"{pair or 'all pairs'} gap {kind}"
                    for page in self._walk(walk, table, where, (kind, pair_id), 0, until_ms):
                        yield pair, [(*row, kind) for row in page]
            return
        for pair, pair_id in self._pairs.items():
            walk = f"{pair} {table}"
            for page in self._walk(walk, table, "pair_id = ?", (pair_id,), since_ms, until_ms):
                yield pair, page

    # --- inside -----------------------------------------------------------------------------------

    def _read_pairs(self) -> dict[str, int]:
        try:
            return self._ask(self._named)
        except sqlite3.Error as error:
            if self._immutable:
                raise NothingReadableError(f"journal {self.path}: {error}") from error
        except (JournalForeignError, JournalNewerError) as error:
            raise NothingReadableError(str(error)) from error
        # Its -wal, perhaps: without it the file is as it was at its last checkpoint.
        self._immutable = True
        self.progress.lose(_WAL, _WAL, unread=True)
        try:
            return self._ask(self._named)
        except (sqlite3.Error, JournalForeignError, JournalNewerError) as error:
            raise NothingReadableError(f"journal {self.path}: {error}") from error

    def _named(self, reads: JournalReads) -> dict[str, int]:
        try:
            found = reads.db.execute("SELECT pair, id FROM pair ORDER BY id").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                # The page that names its tables is not that of a journal.
                raise damage(str(error)) from error
            raise
        symbols: dict[object, list[object]] = {}
        unread = False
        if self._known is not None:
            for table in ("catalog", "life"):
                try:
                    text = f"SELECT pair_id, symbol FROM {table}"  # noqa: S608
                    for pair_id, symbol in reads.db.execute(text):
                        symbols.setdefault(pair_id, []).append(symbol)
                except sqlite3.Error as error:
                    # Not there, or not to be read: then it vouches for nobody.
                    unread = unread or meaning_of(error).is_of_reading
        named: dict[str, int] = {}
        for pair, number in found:
            right = self._known is None or is_name(pair, self._known, symbols.get(number, []))
            if right and isinstance(pair, str) and isinstance(number, int):
                named[pair] = number
            else:
                what = f"all of the pair that is named {pair!r:.40}"
                self.progress.lose("pair", what, unread=unread)
        return named

    def _kinds(self) -> list[str]:
        """The kinds of gaps there are, but holes of a first filling."""
        found: set[str] = set()
        text = "SELECT kind FROM gap WHERE kind > ? ORDER BY kind LIMIT 1"
        for begin in ("", *sorted(_KINDS)):
            kind = begin
            while True:
                bound = (kind,)
                try:
                    row = self._ask(lambda reads: reads.db.execute(text, bound).fetchone())  # noqa: B023
                except sqlite3.Error:
                    self.progress.lose(
                        "gap", f"gaps behind {kind or 'their beginning'}", unread=True
                    )
                    found.add(kind)
                    break
                if row is None or row[0] in found or not isinstance(row[0], str):
                    break
                kind = row[0]
                found.add(kind)
        return sorted(kind for kind in found if kind and not kind.startswith(HISTORY_GAP))

    def _walk(
        self, walk: str, table: str, where: str, bound: Place, since_ms: int, until_ms: int
    ) -> Iterator[list[Row]]:
        """The rows of a walk that can be, by pages; `progress` notes each that was taken."""
        shape, done = SHAPES[table], self.progress.done
        width = len(shape.keys.split(","))
        at = done.get(walk, _before(since_ms, width))
        marks_ = ", ".join("?" * width)
        text = (
            f"SELECT {shape.columns} FROM {table} WHERE {where} "  # noqa: S608
            f"AND ({shape.keys}) > ({marks_}) ORDER BY {shape.keys} LIMIT ?"
        )

        def read(behind: Place, limit: int, *, patient: bool) -> list[Row]:
            def ask(reads: JournalReads) -> list[Row]:
                return reads.db.execute(text, (*bound, *behind, limit)).fetchall()

            return self._ask(ask, patient=patient)

        def first_from(key: int) -> int | None:
            rows = read(_before(key, width), 1, patient=False)
            return whole_number(rows[0][0], walk) if rows else None

        limit, narrowing = PAGE_ROWS, False
        while at is not None:
            try:
                rows = read(at, limit, patient=not narrowing)
            except sqlite3.Error:
                narrowing = True
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                self.progress.lose(walk, f"{walk} behind {at[0]}", unread=True)
                begin = max(int(at[0]), _EARLIEST_MS)
                behind = readable_from(first_from, lambda _: None, begin, shape.step_ms)
                at = None if behind is None else _before(behind, width)
                continue
            good = []
            for row in rows:
                if is_row(table, row, until_ms):
                    good.append(row)
                else:
                    self.progress.lose(walk, f"{walk} at {row[0]!r:.40}")
            if good:
                yield good
            places = [place for row in rows if (place := _place(row, width, at, until_ms))]
            # Behind keys that cannot be, there are none but such.
            at = places[-1] if places and len(rows) == limit else None
            done[walk] = at
            limit = min(limit * 2, PAGE_ROWS)
            narrowing = narrowing and limit < PAGE_ROWS
        done[walk] = None

    def _oldest_ms(self, key: Key, since_ms: int = 0) -> int | None:
        """The oldest row of a series from a time on that can be read."""
        pair, timeframe = key
        is_mark = timeframe == schema.MARK_1H
        of_series = "mark_1h WHERE" if is_mark else "candle WHERE timeframe_ms = ? AND"
        lengths = () if is_mark else (schema.TIMEFRAMES_MS[timeframe],)
        text = f"SELECT min(open_time) FROM {of_series} pair_id = ? AND open_time >= ?"  # noqa: S608

        def first(from_ms: int, *, patient: bool) -> int | None:
            def ask(reads: JournalReads) -> int | None:
                if is_mark and not marks.has_table(reads.db):
                    return None
                bound = (*lengths, self._pairs[pair], from_ms)
                (found,) = reads.db.execute(text, bound).fetchone()
                return None if found is None else whole_number(found, walk_of(key))

            return self._ask(ask, patient=patient)

        try:
            return first(since_ms, patient=True)
        except sqlite3.Error:
            self.progress.lose(walk_of(key), f"{walk_of(key)} from {since_ms}", unread=True)
        return readable_from(
            lambda from_ms: first(from_ms, patient=False),
            lambda _: None,
            max(since_ms, _EARLIEST_MS),
            schema.SERIES_MS[timeframe],
        )

    def _ask(self, question: Callable[[JournalReads], T], *, patient: bool = True) -> T:
        """Ask it, three times where it cannot be read. Raises sqlite3.Error then.

        JournalError for what says nothing of the file: it may be asked for later.
        """
        pauses_s = self._again_after_s if patient and self._patience > 0 else ()
        for pause_s in (*pauses_s, None):
            error: sqlite3.Error
            try:
                return question(self._reads())
            except sqlite3.Error as found:
                error = found
            except (TypeError, ValueError, OverflowError) as found:
                # Values of another type than any that was stored.
                error = damage(repr(found))
            self.close()
            meaning = meaning_of(error)
            if not meaning.is_of_reading:
                raise JournalError(f"journal {self.path}: {error}") from error
            if pause_s is None:
                break
            # Bytes that were read say the same at once.
            if self._stopped.wait(0.0 if meaning is Meaning.DAMAGE else pause_s):
                raise JournalError(f"journal {self.path}: stopped while it was read")
        if pauses_s:
            self._patience -= 1
        raise error

    def _reads(self) -> JournalReads:
        if self._db is None:
            self._db = connect_read_only(self.path, immutable=self._immutable, any_thread=True)
            recognise(KIND, self.path, self._db)
        return JournalReads(self._db)


def walk_of(key: Key) -> str:
    """The name of a series' walk in `Progress`."""
    return " ".join(key)


def is_constraint(error: JournalError) -> bool:
    """Whether a table refused a row for what it is: another attempt would fail as well."""
    return isinstance(error.__cause__, sqlite3.IntegrityError | sqlite3.DataError)


def bytes_of(path: Path) -> int:
    """How much of the disk it takes, with what lies beside it. Raises OSError."""
    return sum(
        file.stat().st_size
        for file in (Path(f"{path}{suffix}") for suffix in ("", *BESIDE))
        if file.exists()
    )


def _place(row: Row, width: int, behind: Place, until_ms: int) -> Place | None:
    """The key of a row, where a walk can go on behind it."""
    match row[:width]:
        case (int(at_ms), *others) if at_ms < until_ms:
            place: Place = (at_ms, *(one for one in others if isinstance(one, str)))
            return place if len(place) == width and place > behind else None
    return None


def _before(key: int, width: int) -> Place:
    return (key - 1,) if width == 1 else (key, "")
