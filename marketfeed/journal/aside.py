"""A journal that was set aside, read as far as it can be: what its successor takes over from it.

It is only read. A page that cannot be read costs its own rows: those before and behind it are found by ever
smaller questions. What is read is held against what can be, as nothing else tells a row of a bad page.
"""

import contextlib
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self, TypeAlias

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.grid import TimeRange
from marketfeed.journal import marks, tables
from marketfeed.journal.coverage import HISTORY_GAP, Key
from marketfeed.journal.covering import read_coverage
from marketfeed.journal.journal import KIND
from marketfeed.journal.reads import JournalReads
from marketfeed.journal.slices import readable_from
from marketfeed.records import Candle
from marketfeed.storage.damage import meaning_of
from marketfeed.storage.database import recognise
from marketfeed.storage.files import BESIDE, connect_read_only, is_stopped

PAGE_ROWS: Final = 1_000

Row: TypeAlias = tuple[object, ...]

_KEEP: Final = "WHERE true ON CONFLICT DO NOTHING"
TAKEN: Final = {
    # The earlier event of a grid step counts, whichever file has it.
    "mark_price": tables.MARK_PRICE,
    "funding_rate": tables.FUNDING_RATE,
    # What the successor has asked for since is newer.
    "funding_settled": tables.Upsert(
        "funding_settled", "pair_id, time, kind, rate, mark_price, seq", _KEEP
    ),
    "gap": tables.Upsert("gap", 'pair_id, kind, start, "end", healed, reason, state, seq', _KEEP),
}
"""What is taken over by its key, beside candles, by table: how it is written."""
_COLUMNS: Final = {
    "mark_price": "time, offset_ms, mark_price, index_price",
    "funding_rate": "time, offset_ms, rate, settled_rate, next_funding_time",
    "funding_settled": "time, kind, rate, mark_price",
}
_STEPS_MS: Final = {
    "mark_price": schema.SECOND_MS,
    "funding_rate": schema.MINUTE_MS,
    "funding_settled": schema.HOUR_MS,
}
_NUMBERS: Final = {"mark_price": (2, 3), "funding_rate": (2,), "funding_settled": (2,)}
"""Columns that hold a number in every row."""


class AsideJournal:
    """The journal that was set aside at `path`. Not safe for concurrent calls; from any thread.

    Entering raises JournalError when nothing of it can be read. A context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        """Ranges that could not be read, and rows that cannot be."""
        self._db: sqlite3.Connection | None = None
        self._immutable = is_stopped(path)

    def __enter__(self) -> Self:
        try:
            self._pairs = dict(self._reads().db.execute("SELECT pair, id FROM pair"))
        except sqlite3.Error:
            # Its -wal, perhaps: without it the file is as it was at its last checkpoint.
            self.close()
            self._immutable = True
            try:
                self._pairs = dict(self._reads().db.execute("SELECT pair, id FROM pair"))
            except sqlite3.Error as error:
                self.close()
                raise JournalError(f"journal {self.path}: {error}") from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next question opens it again."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def promised_from_ms(self) -> dict[Key, int]:
        """From where on each series was promised; of those that tell nothing, from their oldest row on."""
        found: dict[Key, int] = {}
        try:
            reads = self._reads()
            (version,) = reads.db.execute("PRAGMA user_version").fetchone()
            if version >= schema.COVERAGE_FROM:
                covered = read_coverage(reads)[0]
                if marks.has_table(reads.db):
                    covered |= marks.read_coverage(reads)[0]
                found = {key: one.from_ms for key, one in covered.items()}
        except sqlite3.Error:
            self.lost += 1
            self.close()
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
        length_ms = schema.SERIES_MS[timeframe]
        at_ms, page = time_range.start_ms, PAGE_ROWS
        at_ms = max(at_ms, self._oldest_ms(key, at_ms) or time_range.end_ms)
        while at_ms < time_range.end_ms:
            until_ms = min(at_ms + page * length_ms, time_range.end_ms)
            try:
                found = self._reads().candles(pair, timeframe, at_ms, until_ms)
            except sqlite3.Error as error:
                self._meet(error)
                if page > 1:
                    page = max(1, page // 8)
                    continue
                until_ms, found = at_ms + length_ms, []
            page = min(page * 2, PAGE_ROWS)
            good = [candle for candle in found if is_possible(candle)]
            self.lost += len(found) - len(good)
            if good:
                yield good
            at_ms = until_ms
            if not found:
                # A bad page, or nothing for a while.
                at_ms = max(at_ms, self._oldest_ms(key, at_ms) or time_range.end_ms)

    def rows(self, table: str, since_ms: int = 0) -> Iterator[tuple[str | None, list[Row]]]:
        """The rows of one of `TAKEN`, pair by pair (None: of all), by pages, without pair and number.

        Those from `since_ms` on, but of gaps all.
        """
        if table == "gap":
            yield from self._gaps()
            return
        text = (
            f"SELECT {_COLUMNS[table]} FROM {table} WHERE pair_id = ? AND time >= ? "  # noqa: S608
            "ORDER BY time LIMIT ?"
        )
        for pair, pair_id in self._pairs.items():
            for page in self._pages(text, pair_id, since_ms, _STEPS_MS[table]):
                good = [
                    row
                    for row in page
                    if isinstance(row[0], int) and all(_is_number(row[n]) for n in _NUMBERS[table])
                ]
                self.lost += len(page) - len(good)
                if good:
                    yield pair, good

    # --- inside -----------------------------------------------------------------------------------

    def _gaps(self) -> Iterator[tuple[str | None, list[Row]]]:
        """Gaps that have ended: those that are open are found anew by who promises."""
        names: dict[int, str | None] = {number: pair for pair, number in self._pairs.items()}
        names[tables.NO_PAIR] = None
        try:
            found = (
                self._reads()
                .db.execute(
                    """SELECT pair_id, kind, start, "end", healed, reason, state FROM gap
                   WHERE state IN ('healed', 'unresolvable') ORDER BY pair_id, start"""
                )
                .fetchall()
            )
        except sqlite3.Error as error:
            self._meet(error)
            return
        by_pair: dict[str | None, list[Row]] = {}
        for pair_id, kind, *others in found:
            if pair_id in names and not str(kind).startswith(HISTORY_GAP):
                by_pair.setdefault(names[pair_id], []).append((kind, *others))
        for pair, rows in by_pair.items():
            for start in range(0, len(rows), PAGE_ROWS):
                yield pair, rows[start : start + PAGE_ROWS]

    def _pages(self, text: str, pair_id: int, at: int, step: int) -> Iterator[list[Row]]:
        limit = PAGE_ROWS
        while True:
            try:
                rows = self._reads().db.execute(text, (pair_id, at, limit)).fetchall()
            except sqlite3.Error as error:
                self._meet(error)
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                behind = self._readable_from(text, pair_id, at, step)
                if behind is None:
                    return
                at, limit = behind, PAGE_ROWS
                continue
            if not rows:
                return
            if len(rows) == limit and rows[0][0] != rows[-1][0]:
                # Two of one time stay together.
                last = rows[-1][0]
                rows = [row for row in rows if row[0] != last]
                at = last
            else:
                at = rows[-1][0] + 1
            yield rows
            limit = min(limit * 2, PAGE_ROWS)

    def _readable_from(self, text: str, pair_id: int, at: int, step: int) -> int | None:
        def first_from(key: int) -> int | None:
            row = self._reads().db.execute(text, (pair_id, key, 1)).fetchone()
            return None if row is None else int(row[0])

        return readable_from(first_from, self._meet, at, step)

    def _oldest_ms(self, key: Key, since_ms: int = 0) -> int | None:
        """The oldest row of a series from a time on; where that cannot be read, that time."""
        pair, timeframe = key
        is_mark = timeframe == schema.MARK_1H
        of_series = "mark_1h WHERE" if is_mark else "candle WHERE timeframe_ms = ? AND"
        lengths = () if is_mark else (schema.TIMEFRAMES_MS[timeframe],)
        try:
            db = self._reads().db
            if is_mark and not marks.has_table(db):
                return None
            (found,) = db.execute(
                f"SELECT min(open_time) FROM {of_series} pair_id = ? AND open_time >= ?",  # noqa: S608
                (*lengths, self._pairs[pair], since_ms),
            ).fetchone()
        except sqlite3.Error as error:
            self._meet(error)
            return since_ms or None
        return None if found is None else int(found)

    def _meet(self, error: sqlite3.Error) -> None:
        """Take in that something could not be read. Raises what says nothing of the file."""
        if not meaning_of(error).is_of_reading:
            raise JournalError(f"journal {self.path}: {error}") from error
        self.lost += 1
        self.close()

    def _reads(self) -> JournalReads:
        if self._db is None:
            self._db = connect_read_only(self.path, immutable=self._immutable, any_thread=True)
            recognise(KIND, self.path, self._db)
        return JournalReads(self._db)


def is_possible(candle: Candle) -> bool:
    """Whether a candle's numbers can be those of one."""
    prices = (candle.open, candle.high, candle.low, candle.close)
    amounts = (candle.volume, candle.quote_volume, candle.taker_buy_volume)
    return (
        all(_is_number(one) for one in (*prices, *amounts))
        and isinstance(candle.trades, int)
        and isinstance(candle.open_time_ms, int)
        and candle.open_time_ms % schema.SERIES_MS[candle.timeframe] == 0
        and 0.0 < candle.low <= min(candle.open, candle.close)
        and max(candle.open, candle.close) <= candle.high
        and min(*amounts, candle.trades) >= 0
        and (candle.taker_buy_quote_volume is None or _is_number(candle.taker_buy_quote_volume))
    )


def bytes_of(path: Path) -> int:
    """How much of the disk it takes, with what lies beside it. Raises OSError."""
    return sum(
        file.stat().st_size
        for file in (Path(f"{path}{suffix}") for suffix in ("", *BESIDE))
        if file.exists()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
