"""What a reader asks a journal on this host; how the file is opened and asked, `journal_connections` says."""

import sqlite3
import time
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.clock import StoreClock
from reader.coverage import Interval
from reader.host import boot_ms, boot_place
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
from reader.stores.journal_connections import JournalConnections, version_of
from reader.stores.journal_file import Opened
from reader.stores.sqlite_coverage import (
    Extent,
    candle_rows,
    intervals,
    json_of,
    series_of,
    settled_to,
    told_lives,
)
from reader.stores.sqlite_errors import RETRY_S

_POLL_S: Final = 0.005


class SqliteStore:
    """The journal at `path`. Opens it at once, and again whenever that is needed.

    Raises StoreUnavailableError, here and from every question.
    """

    poll_s = _POLL_S

    def __init__(self, path: Path) -> None:
        self._boot = boot_place()
        self._file = JournalConnections(path)

    @property
    def source(self) -> str:
        """The journal's address."""
        return self._file.source

    def close(self) -> None:
        """Close the file; every later question raises."""
        self._file.close()

    # --- questions --------------------------------------------------------------------------------

    def clock(self) -> StoreClock | None:
        """The last commit's stamp; None of a journal whose commits are not stamped, or not yet."""

        def question(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            (has_clock,) = db.execute(schema.HAS_CLOCK).fetchone()
            return db.execute(schema.CLOCK).fetchall() if has_clock else []

        found = self._file.ask(question)
        if not found:
            return None
        exchange_ms, boot, stamped_ms = found[0]
        # A clock that is behind the stamp is another one: a restored machine, say.
        is_here = boot == self._boot and boot_ms() >= stamped_ms
        return StoreClock(exchange_ms - stamped_ms if is_here else None, exchange_ms)

    def catalog(
        self, pairs: Sequence[str] | None = None, *, afresh: bool = False
    ) -> list[CatalogRow]:
        """What is collected, ordered by pair; of `pairs` alone if given."""
        text = queries.CATALOG if pairs is None else queries.CATALOG_OF
        bound = {} if pairs is None else {"pairs": json_of(pairs)}

        def question(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            (has_lives,) = db.execute(schema.HAS_LIVES).fetchone()
            lives = queries.LIVES if has_lives else "NULL"
            dropped = schema.dropped_column(version_of(db))
            return db.execute(text.format(dropped=dropped, lives=lives), bound).fetchall()

        rows = self._file.ask(question)
        try:
            return [CatalogRow.stored(*row)._replace(lives=told_lives(text)) for *row, text in rows]
        except ValueError as error:
            raise self._file.unavailable(f"holds what no collector writes: {error}") from error

    def candles(self, query: CandleQuery) -> list[CandleRows]:
        """Answer `query`, each pair in a transaction of its own: one that lasts makes the `-wal` grow.

        So that a closing candle is in it once, of all pairs or of none, `query.end_ms` is to be fixed before.
        """
        deadline_s = time.monotonic() + RETRY_S
        while True:
            opened, answers = None, []
            for pair in query.pairs:
                answer, of = self._candles(query._replace(pairs=(pair,)))
                answers.append(answer)
                if opened is None:
                    opened = of
                elif opened != of:
                    break
            else:
                return answers
            # Another file stands there now, perhaps: half of each is no answer.
            if time.monotonic() >= deadline_s:
                raise self._file.unavailable("is being replaced again and again; try later")

    def last_close(self, pairs: Sequence[str], timeframe: str) -> int | None:
        """When the newest closed candle of all of `pairs` closed (ms); None without any: one seek a pair."""
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        rows = self._rows(queries.NEWEST_OF, pairs=json_of(pairs), timeframe_ms=length_ms)
        return None if rows[0][0] is None else int(rows[0][0]) + length_ms

    def _candles(self, query: CandleQuery) -> tuple[CandleRows, Opened]:
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

        (values, extent, forming), opened = self._file.ask_of(
            lambda of: (question(of.db), of.opened)
        )
        return candle_rows(query, values, extent, forming)[0], opened

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
        return intervals(self._file.ask(lambda db: _extent(db, asked)), pairs, timeframe)

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
        rows = self._file.ask(lambda db: sqlite_marks.hours(db.execute, pair, start_ms, end_ms))
        return np.array(rows, np.float64).reshape(-1, 5)

    def mark_coverage(self, pair: str) -> Interval | None:
        """Where they are whole; None where that is not known."""
        extent = self._file.ask(lambda db: sqlite_marks.extent(db.execute, pair))
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
        return self._file.ask_of(
            lambda of: (of.number, of.db.execute("PRAGMA data_version").fetchone()[0])
        )

    def _rows(self, text: str, **parameters: str | int) -> list[tuple[Any, ...]]:
        return self._file.ask(lambda db: db.execute(text, parameters).fetchall())


def _extent(db: sqlite3.Connection, asked: Mapping[str, Any]) -> Extent:
    if version_of(db) < schema.COVERAGE_FROM:
        return Extent(db.execute(queries.EXTENT, asked).fetchall())
    rows = db.execute(queries.COVERED_EXTENT, asked).fetchall()
    return Extent(rows, db.execute(queries.OPEN_HOLES, asked).fetchall())
