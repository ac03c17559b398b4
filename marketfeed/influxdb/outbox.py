"""What of a durable file has yet to be shipped, as lines: read beside its writer, on a connection of its own.

Rows are read by their `seq`, newest first, and written out as they stand now. A row that changes
afterwards has a new `seq` and comes again.
"""

import abc
import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote as percent

from marketfeed.errors import JournalError
from marketfeed.grid import TimeRange
from marketfeed.influxdb.bucket_coverage import NONE_REFUSED, Refused, Unacknowledged
from marketfeed.storage.acknowledged import notes_of
from marketfeed.storage.database import Kind
from marketfeed.storage.ranges import Acknowledged, Piece

Row: TypeAlias = tuple[Any, ...]
Write: TypeAlias = Callable[[list[Row]], list[str]]
"""Writes rows of a table, one at least, as lines."""
_UNESCAPED_BLANK: Final = re.compile(r"(?<!\\) ")


def each(write: Callable[[Row], str]) -> Write:
    """Write rows one by one: for tables with few."""
    return lambda rows: [write(row) for row in rows]


def key_of(line: str) -> str:
    """A line's measurement and tags."""
    return _UNESCAPED_BLANK.split(line, maxsplit=1)[0]


class Source(NamedTuple):
    """A table whose rows are shipped by their numbers, as points of which measurement, and by what lines."""

    table: str
    measurement: str
    write: Write


class Place(NamedTuple):
    """How far rows of a range have been read: which table, which pair, and down to which time (ms)."""

    table: int
    pair_id: int
    before_ms: int


START: Final = Place(0, -1, 2**62)


class ShipBatch(NamedTuple):
    """Lines to ship, and the numbers (`seq`) of which they are everything."""

    lines: list[str]
    covers: list[Piece]


class Outbox(abc.ABC):
    """Reads a durable file of a `kind` for shipping. For one thread at a time.

    `columns` are what is read of each table besides `seq`. Raises JournalError when the file cannot be read.
    """

    def __init__(
        self, kind: Kind, path: Path, columns: Mapping[str, str], sources: Sequence[Source]
    ) -> None:
        self._kind = kind
        self._path = path
        self._columns = columns
        self._sources = sources
        with self._translate_sqlite_errors():
            self._db = sqlite3.connect(
                f"file:{percent(str(path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=5.0,
            )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def newest(self, acknowledged: Acknowledged, max_lines: int) -> ShipBatch:
        """Take the newest rows but the `acknowledged`, `max_lines` at most, from one state of the file."""
        batch = ShipBatch([], [])
        with self._one_state():
            for piece in acknowledged.pieces(self._next_seq()):
                if len(batch.lines) >= max_lines:
                    break
                covered_from = self._take(batch.lines, piece, max_lines)
                batch.covers.append(piece._replace(first=covered_from))
        return batch

    def _take(self, texts: list[str], piece: Piece, max_lines: int) -> int:
        """Add lines to `texts` from the last of a piece down; returns down to where they are everything."""
        first, last, measurements = piece
        sources = [(s.table, s.write) for s in self._sources if s.measurement in measurements]
        # Numbers of rows that have changed since are missing: the fewer are found, the wider it looks.
        span, low = max_lines, last + 1
        while low > first and len(texts) < max_lines:
            last, low = low - 1, max(first, low - span)
            room = max_lines - len(texts)
            tables = [(write, self._rows(table, low, last, room)) for table, write in sources]
            if sum(len(rows) for _, rows in tables) >= room:
                seqs = sorted((row[0] for _, rows in tables for row in rows), reverse=True)
                low = seqs[room - 1]
                tables = [(write, [row for row in rows if row[0] >= low]) for write, rows in tables]
            for write, rows in tables:
                if rows:
                    texts += write(rows)
            span *= 2
        return low

    def forming(self, after_seq: int) -> tuple[list[str], int]:
        """What is shipped apart from the numbers and has changed since `after_seq`; its highest seq."""
        return [], after_seq

    def catalog_changed(self, after_seq: int, until_ms: int) -> bool:
        """Whether a row of the catalog that is newer than `after_seq` changed by `until_ms`."""
        return False

    def catalog_as_of(self, time_ms: int) -> tuple[list[str], int]:
        """The whole catalog as points at `time_ms`; returns the highest seq of its rows, too."""
        return [], 0

    def look_at_candles(
        self, unacknowledged: Unacknowledged, acknowledged: Acknowledged, target: str
    ) -> Refused:
        """Look at the rows of candles that are not `acknowledged`; returns what `target` has refused."""
        return NONE_REFUSED

    def settled_to(self, acknowledged: Acknowledged) -> dict[str, int]:
        """Up to when (ms, exclusive) the settlements of each pair are stored and `acknowledged`."""
        return {}

    def look_at_marks(self, unacknowledged: Unacknowledged, acknowledged: Acknowledged) -> None:
        """Look at the rows of mark candles that are not `acknowledged`."""
        return

    def between(
        self, measurement: str | None, span: TimeRange, place: Place, max_lines: int
    ) -> tuple[list[str], Place | None]:
        """Rows of a measurement (None: of all) in `span` as lines, from `place` on; returns where to go on.

        None there: that was all.
        """
        return [], None

    @abc.abstractmethod
    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the file holds it now; None where it holds none."""

    def is_demanded_again(self, target: str) -> bool:
        """Whether someone has demanded that everything be shipped to `target` again."""
        with self._one_state():
            return notes_of(self._kind, self._db).is_demanded(target)

    def count_unshipped(self, acknowledged: Acknowledged) -> int:
        """How many rows are not in `acknowledged`."""
        with self._one_state():
            return sum(
                self._db.execute(
                    f"SELECT count(*) FROM {source.table} WHERE seq BETWEEN ? AND ?",
                    (piece.first, piece.last),
                ).fetchone()[0]
                for piece in acknowledged.pieces(self._next_seq())
                for source in self._sources
                if source.measurement in piece.measurements
            )

    def _next_seq(self) -> int:
        (number,) = self._db.execute("SELECT next FROM sequence").fetchone()
        return int(number)

    @contextlib.contextmanager
    def _one_state(self) -> Iterator[None]:
        with self._translate_sqlite_errors():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _translate_sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self._kind.name} {self._path}: {error}") from error

    def _rows(self, table: str, first: int, last: int, limit: int) -> list[Row]:
        """The rows of a table with first <= seq <= last, the newest `limit` of them."""
        return self._db.execute(
            f"SELECT seq, {self._columns[table]} FROM {table} "
            "WHERE seq BETWEEN ? AND ? ORDER BY seq DESC LIMIT ?",
            (first, last, limit),
        ).fetchall()
