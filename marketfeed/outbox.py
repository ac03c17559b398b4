"""What of the journal has yet to be shipped, as lines: read on a connection of its own, beside the writer.

Rows are read by their `seq`, newest first, and written out as they stand now. A row that changes
afterwards has a new `seq` and comes again.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote as percent

from marketfeed import lines, schema, tables
from marketfeed.errors import JournalError
from marketfeed.ranges import Ranges

Row: TypeAlias = tuple[Any, ...]
_OHLCV: Final = {ms: schema.ohlcv_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}
_FORMING: Final = {ms: schema.forming_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}


class Consignment(NamedTuple):
    """Lines to ship, and the ranges of `seq` (first, last) of which they are everything."""

    lines: list[str]
    covers: list[tuple[int, int]]


class Outbox:
    """Reads a journal for shipping. For one thread at a time; `collector` names this host in gaps.

    Raises JournalError when the file cannot be read.
    """

    def __init__(self, path: Path, collector: str) -> None:
        self._collector = collector
        self._path = path
        with self._errors_told():
            self._db = sqlite3.connect(
                f"file:{percent(str(path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=5.0,
            )
        self._tags = _Tags(self._db)
        self._sources: Mapping[str, Callable[[list[Row]], list[str]]] = {
            "candle": lambda rows: self._candles(_OHLCV, rows),
            "mark_price": self._mark_prices,
            "funding_rate": self._funding_rates,
            "funding_settled": self._funding_settled,
            "gap": self._gaps,
            "catalog": self._catalog,
        }

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _next_seq(self) -> int:
        (number,) = self._db.execute("SELECT next FROM sequence").fetchone()
        return int(number)

    def newest(self, shipped: Ranges, max_lines: int) -> Consignment:
        """Take the newest rows that are not in `shipped`, at most `max_lines`, from one state of the file."""
        consignment = Consignment([], [])
        with self._one_state():
            for first, last in shipped.gaps(self._next_seq()):
                room = max_lines - len(consignment.lines)
                if room <= 0:
                    break
                oldest, count = self._db.execute(_OLDEST_OF, (first, last, room)).fetchone()
                # Everything above the oldest row taken is here; all of it if the range gave out.
                covered_from = oldest if count == room else first
                if count:
                    for table, write in self._sources.items():
                        rows = self._db.execute(_ROWS[table], (covered_from, last)).fetchall()
                        consignment.lines.extend(write(rows))
                consignment.covers.append((covered_from, last))
        return consignment

    def forming(self, after_seq: int) -> tuple[list[str], int]:
        """The forming candles that have changed since `after_seq`; returns the highest seq of them."""
        with self._one_state():
            rows = self._db.execute(
                f"SELECT {_COLUMNS['candle']} FROM forming WHERE seq > ?", (after_seq,)
            ).fetchall()
            (highest,) = self._db.execute("SELECT max(seq) FROM forming").fetchone()
            texts = self._candles(_FORMING, rows)
        return texts, highest if rows else after_seq

    def count_unshipped(self, shipped: Ranges) -> int:
        """How many rows are not in `shipped`."""
        with self._one_state():
            return sum(
                self._db.execute(
                    f"SELECT count(*) FROM {table} WHERE seq BETWEEN ? AND ?", gap
                ).fetchone()[0]
                for gap in shipped.gaps(self._next_seq())
                for table in self._sources
            )

    @contextlib.contextmanager
    def _one_state(self) -> Iterator[None]:
        with self._errors_told():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path}: {error}") from error

    # --- rows to lines ----------------------------------------------------------------------------

    def _candles(self, measurements: Mapping[int, str], rows: list[Row]) -> list[str]:
        tags, write = self._tags, lines.candle_text
        return [
            write(measurements[length_ms], tags[pair], o, high, low, c, v, quote, taker, trades, at)
            for pair, length_ms, at, o, high, low, c, v, quote, taker, trades in rows
        ]

    def _mark_prices(self, rows: list[Row]) -> list[str]:
        tags, write = self._tags, lines.mark_price_text
        return [write(tags[pair], at, mark, index) for pair, at, mark, index in rows]

    def _funding_rates(self, rows: list[Row]) -> list[str]:
        tags, write = self._tags, lines.funding_rate_text
        return [write(tags[pair], at, rate, last, due) for pair, at, rate, last, due in rows]

    def _funding_settled(self, rows: list[Row]) -> list[str]:
        tags, write = self._tags, lines.funding_settled_text
        return [write(tags[pair], at, rate, mark) for pair, at, rate, mark in rows]

    def _gaps(self, rows: list[Row]) -> list[str]:
        return [
            lines.gap_text(self._tags[pair], kind, self._collector, start, end, bool(healed))
            for pair, kind, start, end, healed in rows
        ]

    def _catalog(self, rows: list[Row]) -> list[str]:
        tags, write = self._tags, lines.catalog_text
        return [write(tags[pair], names, first, end, at) for pair, names, first, end, at in rows]


class _Tags(dict[int, str]):
    """Number of a pair -> its tag, escaped; read when one is met for the first time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__({tables.NO_PAIR: lines.escape_tag(lines.ALL_PAIRS)})
        self._db = db

    def __missing__(self, pair_id: int) -> str:
        for number, pair in self._db.execute("SELECT id, pair FROM pair"):
            self[number] = lines.escape_tag(pair)
        if pair_id not in self:
            raise JournalError(f"a row is of pair {pair_id}, which the journal does not name")
        return self[pair_id]


_COLUMNS: Final = {
    "candle": (
        "pair_id, timeframe_ms, open_time, open, high, low, close, volume, quote_volume, "
        "taker_buy_volume, trades"
    ),
    "mark_price": "pair_id, time, mark_price, index_price",
    "funding_rate": "pair_id, time, rate, settled_rate, next_funding_time",
    "funding_settled": "pair_id, time, rate, mark_price",
    "gap": 'pair_id, kind, start, "end", healed',
    "catalog": "pair_id, timeframes, listed, ended, changed",
}
_ROWS: Final = {
    table: f"SELECT {columns} FROM {table} WHERE seq BETWEEN ? AND ?"
    for table, columns in _COLUMNS.items()
}
_EACH_SEQ: Final = " UNION ALL ".join(
    f"SELECT seq FROM {table} WHERE seq BETWEEN ?1 AND ?2" for table in _COLUMNS
)
_OLDEST_OF: Final = f"SELECT min(seq), count(*) FROM ({_EACH_SEQ} ORDER BY seq DESC LIMIT ?3)"
"""The number of the oldest of the newest ?3 rows. SQLite merges the indexes and reads no further."""
