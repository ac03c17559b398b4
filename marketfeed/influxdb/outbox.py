"""What of the journal has yet to be shipped, as lines: read on a connection of its own, beside the writer.

Rows are read by their `seq`, newest first, and written out as they stand now. A row that changes
afterwards has a new `seq` and comes again.
"""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote as percent

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.influxdb import line_protocol as lines
from marketfeed.journal import tables
from marketfeed.storage import acknowledged
from marketfeed.storage.ranges import Ranges

Row: TypeAlias = tuple[Any, ...]
Write: TypeAlias = Callable[[list[Row]], list[str]]
"""Writes rows of a table, one at least, as lines."""
_OHLCV: Final = {ms: schema.ohlcv_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}
_FORMING: Final = {ms: schema.forming_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}


def each(write: Callable[[Row], str]) -> Write:
    """Write rows one by one: for tables with few."""
    return lambda rows: [write(row) for row in rows]


def key_of(line: str) -> str:
    """A line's measurement and tags."""
    return _UNESCAPED_BLANK.split(line, maxsplit=1)[0]


class Consignment(NamedTuple):
    """Lines to ship, and the ranges of `seq` (first, last) of which they are everything."""

    lines: list[str]
    covers: list[tuple[int, int]]


class Outbox:
    """Reads a journal for shipping. For one thread at a time; `collector` names this host in gaps.

    Raises JournalError when the file cannot be read.
    """

    file_kind = "journal"

    def __init__(self, path: Path, collector: str) -> None:
        self._columns: Mapping[str, str] = _COLUMNS
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
        self._tags: dict[int, str] = {tables.NO_PAIR: lines.escape_tag(lines.ALL_PAIRS)}
        self._sources: tuple[tuple[str, Write], ...] = (
            ("candle", self._candles),
            ("mark_price", self._mark_prices),
            ("funding_rate", each(self._funding_rate)),
            ("funding_settled", each(self._funding_settled)),
            ("gap", each(self._gap)),
            ("catalog", each(self._catalog)),
        )
        self._of = {
            schema.MARK_PRICE: ("mark_price", self._mark_prices),
            schema.FUNDING_RATE: ("funding_rate", each(self._funding_rate)),
            schema.FUNDING_SETTLED: ("funding_settled", each(self._funding_settled)),
            schema.FEED_GAP: ("gap", each(self._gap)),
            schema.FEED_CATALOG: ("catalog", each(self._catalog)),
        }

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _next_seq(self) -> int:
        (number,) = self._db.execute("SELECT next FROM sequence").fetchone()
        return int(number)

    def newest(self, acknowledged: Ranges, max_lines: int) -> Consignment:
        """Take the newest rows but the `acknowledged`, `max_lines` at most, from one state of the file."""
        consignment = Consignment([], [])
        with self._one_state():
            for first, last in acknowledged.gaps(self._next_seq()):
                if len(consignment.lines) >= max_lines:
                    break
                covered_from = self._take(consignment.lines, first, last, max_lines)
                consignment.covers.append((covered_from, last))
        return consignment

    def _take(self, texts: list[str], first: int, last: int, max_lines: int) -> int:
        """Add lines to `texts` from `last` down; returns the seq down to which they are everything."""
        # Numbers of rows that have changed since are missing: the fewer are found, the wider it looks.
        span, low = max_lines, last + 1
        while low > first and len(texts) < max_lines:
            last, low = low - 1, max(first, low - span)
            room = max_lines - len(texts)
            tables = [(write, self._rows(table, low, last, room)) for table, write in self._sources]
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
        """The forming candles that have changed since `after_seq`; returns the highest seq of them."""
        with self._one_state():
            rows = self._db.execute(
                f"SELECT seq, {_CANDLE_COLUMNS} FROM forming WHERE seq > ?", (after_seq,)
            ).fetchall()
            texts = self._candle_texts(_FORMING, rows) if rows else []
        return texts, max((row[0] for row in rows), default=after_seq)

    def is_demanded_again(self, target: str) -> bool:
        """Whether someone has demanded that everything be shipped to `target` again."""
        with self._one_state():
            return acknowledged.is_demanded(self._db, target)

    def catalog_changed(self, after_seq: int, until_ms: int) -> bool:
        """Whether a row of the catalog that is newer than `after_seq` changed by `until_ms`."""
        with self._one_state():
            text = "SELECT EXISTS (SELECT 1 FROM catalog WHERE seq > ? AND changed <= ?)"
            (found,) = self._db.execute(text, (after_seq, until_ms)).fetchone()
        return bool(found)

    def catalog_as_of(self, time_ms: int) -> tuple[list[str], int]:
        """The whole catalog as points at `time_ms`; returns the highest seq of its rows, too."""
        with self._one_state():
            rows = self._db.execute(f"SELECT seq, {_COLUMNS['catalog']} FROM catalog").fetchall()
            texts = [self._catalog((*row[:-1], time_ms)) for row in rows]
        return texts, max((row[0] for row in rows), default=0)

    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the file holds it now; None where it holds none.

        Lines of `forming` measurements are none of these.
        """
        with self._one_state():
            ids = {tag: number for number, tag in self._all_tags().items()}
            kinds = {
                lines.escape_tag(kind): kind
                for (kind,) in self._db.execute("SELECT DISTINCT kind FROM gap")
            }
            return [self._as_it_stands(text, ids, kinds) for text in texts]

    def _as_it_stands(
        self, line: str, ids: Mapping[str, int], kinds: Mapping[str, str]
    ) -> str | None:
        key, time_ms = key_of(line), line.rpartition(" ")[2]
        measurement, _, tags = key.partition(",")
        tags, _, pair_tag = tags.rpartition("pair=")
        table, write = self._of.get(measurement, ("candle", self._candles))
        where = ""
        keys: tuple[Any, ...] = ()
        # The keys of these tables begin with it: without, all rows of the pair would be read.
        if table == "candle":
            name = measurement.removeprefix(schema.OHLCV_PREFIX)
            where, keys = "timeframe_ms = ? AND", (schema.TIMEFRAMES_MS.get(name, 0),)
        elif table == "gap":
            kind = tags.partition(",kind=")[2].removesuffix(",")
            where, keys = "kind = ? AND", (kinds.get(kind),)
        rows = self._db.execute(
            f"SELECT seq, {_COLUMNS[table]} FROM {table} "
            f"WHERE {where} pair_id = ? AND {_TIME[table]} = ? ORDER BY seq",
            (*keys, ids.get(pair_tag, -1), int(time_ms)),
        ).fetchall()
        same = [text for text in write(rows) if key_of(text) == key] if rows else []
        # Of two settlements at one time both are lines of one point.
        return line if line in same else same[-1] if same else None

    def count_unshipped(self, acknowledged: Ranges) -> int:
        """How many rows are not in `acknowledged`."""
        with self._one_state():
            return sum(
                self._db.execute(
                    f"SELECT count(*) FROM {table} WHERE seq BETWEEN ? AND ?", gap
                ).fetchone()[0]
                for gap in acknowledged.gaps(self._next_seq())
                for table, _ in self._sources
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
            raise JournalError(f"{self.file_kind} {self._path}: {error}") from error

    def _rows(self, table: str, first: int, last: int, limit: int) -> list[Row]:
        """The rows of a table with first <= seq <= last, the newest `limit` of them."""
        return self._db.execute(
            f"SELECT seq, {self._columns[table]} FROM {table} "
            "WHERE seq BETWEEN ? AND ? ORDER BY seq DESC LIMIT ?",
            (first, last, limit),
        ).fetchall()

    def _tag(self, pair_id: int) -> str:
        tag = self._tags.get(pair_id)
        return self._all_tags()[pair_id] if tag is None else tag

    def _all_tags(self) -> dict[int, str]:
        self._tags |= {
            number: lines.escape_tag(pair)
            for number, pair in self._db.execute("SELECT id, pair FROM pair")
        }
        return self._tags

    # --- rows to lines ----------------------------------------------------------------------------

    def _candles(self, rows: list[Row]) -> list[str]:
        return self._candle_texts(_OHLCV, rows)

    def _candle_texts(self, measurements: dict[int, str], rows: list[Row]) -> list[str]:
        _, pair_ids, lengths_ms, times_ms, *numbers, trades = zip(*rows, strict=True)
        names = map(measurements.__getitem__, lengths_ms)
        return lines.candle_texts(names, map(self._tag, pair_ids), numbers, trades, times_ms)

    def _mark_prices(self, rows: list[Row]) -> list[str]:
        _, pair_ids, times_ms, marks, indexes = zip(*rows, strict=True)
        return lines.mark_price_texts(map(self._tag, pair_ids), times_ms, marks, indexes)

    def _funding_rate(self, row: Row) -> str:
        _, pair_id, time_ms, rate, settled_rate, next_ms = row
        return lines.funding_rate_text(self._tag(pair_id), time_ms, rate, settled_rate, next_ms)

    def _funding_settled(self, row: Row) -> str:
        _, pair_id, time_ms, rate, mark_price = row
        return lines.funding_settled_text(self._tag(pair_id), time_ms, rate, mark_price)

    def _gap(self, row: Row) -> str:
        _, pair_id, kind, start_ms, end_ms, healed, state = row
        tag = self._tag(pair_id)
        return lines.gap_text(tag, kind, self._collector, start_ms, end_ms, bool(healed), state)

    def _catalog(self, row: Row) -> str:
        _, pair_id, timeframes, listed_ms, ended_ms, changed_ms = row
        return lines.catalog_text(self._tag(pair_id), timeframes, listed_ms, ended_ms, changed_ms)


_CANDLE_COLUMNS: Final = (
    "pair_id, timeframe_ms, open_time, open, high, low, close, volume, quote_volume, "
    "taker_buy_volume, trades"
)
_UNESCAPED_BLANK: Final = re.compile(r"(?<!\\) ")
_TIME: Final = {
    "candle": "open_time",
    "mark_price": "time",
    "funding_rate": "time",
    "funding_settled": "time",
    "gap": "start",
    "catalog": "changed",
}
_COLUMNS: Final = {
    "candle": _CANDLE_COLUMNS,
    "mark_price": "pair_id, time, mark_price, index_price",
    "funding_rate": "pair_id, time, rate, settled_rate, next_funding_time",
    "funding_settled": "pair_id, time, rate, mark_price",
    "gap": 'pair_id, kind, start, "end", healed, state',
    "catalog": "pair_id, timeframes, listed, ended, changed",
}
