"""Which rows of the journal are to go, by age or by the disk budget, and how they are deleted.

Rows go in the order of time, over all pairs at once. What was stored at one time lies side by side in the
index of numbers (`seq`): pair by pair each row would dirty a page of it alone, and a week of one pair would
write half a gigabyte into the `-wal`.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.reads import JournalReads

SLICE_S: Final = 0.020
"""Wall seconds of the writer's time that a slice may take, its commit among them: it aims at half of that."""
TURN: Final = 100
"""The disk budget takes one part of so many of a table, and then looks again."""

_TIME_COLUMN: Final = {
    "candle": "open_time",
    "mark_1h": "open_time",
    "mark_price": "time",
    "funding_rate": "time",
}
_GIVE_WAY: Final = ("mark_price", "funding_rate", "candle")
# About a page of each series' rows: a shorter time would touch the same pages again and again, a longer one
# more of the index than stays in the cache.
_BLOCK_MS: Final = {
    "candle": 2 * schema.HOUR_MS,
    "mark_1h": 3 * schema.DAY_MS,
    "mark_price": 5 * schema.MINUTE_MS,
    "funding_rate": schema.HOUR_MS,
}
SLACK_MS: Final = schema.HOUR_MS
"""So far ahead of the exchange's certain time a row may be: that time lags behind after a start."""
_AT_ANY_TIME: Final = (1 << 62) - SLACK_MS
_AIM_S: Final = SLICE_S / 2
_MOST_PAIRS: Final = 64
"""In one statement, which nothing can interrupt."""


class Slice(NamedTuple):
    """What one transaction has deleted: rows that are older than `before_ms` (exchange time).

    `had` says of each pair (by its number) that was looked at whether it had any, where that matters.
    `pages` are pages of the file that became free.
    """

    rows: int
    had: Mapping[int, bool]
    before_ms: int
    pages: int


class _Place(NamedTuple):
    """How far a sweep has come: rows from `from_ms` on, of pairs from that place in the list on."""

    from_ms: int
    pair: int
    rows_of_block: int


class Sweep:
    """Rows of `table` that are older than `before_ms` (exchange time), on their way out.

    Rows numbered from `below_seq` on stay, whatever their age. `oldest_ms` is the oldest there is.
    """

    def __init__(
        self,
        table: str,
        before_ms: int,
        oldest_ms: int,
        pair_ids: Sequence[int],
        below_seq: int | None = None,
    ) -> None:
        self.table = table
        self.before_ms = before_ms
        self.oldest_ms = oldest_ms
        self.below_seq = below_seq
        self.rows = 0
        """How many are gone by now."""
        self.pages_freed = 0
        self._pair_ids = pair_ids
        self._place = _Place(oldest_ms, 0, 0)
        self._ahead = self._place
        self._for_s = _AIM_S / 2
        self._pairs_a_statement = 1

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be deleted."""
        return self._place.from_ms >= self.before_ms or not self._pair_ids

    def delete(self, db: sqlite3.Connection, next_seq: int) -> Slice:
        """Delete what comes next. In a transaction; `commit` follows it."""
        started_s = last_s = time.perf_counter()
        used = used_pages(db)
        from_ms, place, rows_of_block = self._place
        until_ms = min(from_ms + _BLOCK_MS[self.table], self.before_ms)
        below_seq = next_seq if self.below_seq is None else self.below_seq
        had: dict[int, bool] = {}
        rows = 0
        while True:
            ids = self._pair_ids[place : place + self._pairs_a_statement]
            bound = (json.dumps(ids), from_ms, until_ms, below_seq)
            if self.table in _HAVING:
                (having,) = db.execute(_HAVING[self.table], bound).fetchone()
                had |= dict.fromkeys(ids, False) | dict.fromkeys(json.loads(having), True)
            rows += db.execute(_DELETE[self.table], bound).rowcount
            place += len(ids)
            now_s = time.perf_counter()
            self._adapt(now_s - last_s)
            if place >= len(self._pair_ids) or now_s - started_s >= self._for_s:
                break
            last_s = now_s
        rows_of_block += rows
        if place < len(self._pair_ids):
            self._ahead = _Place(from_ms, place, rows_of_block)
        else:
            following_ms = until_ms
            if not rows_of_block:
                found_ms = _extreme(db, self.table, "min", until_ms)
                following_ms = self.before_ms if found_ms is None else found_ms
            self._ahead = _Place(following_ms, 0, 0)
        return Slice(rows, had, until_ms, used - used_pages(db))

    def commit(self, done: Slice, took_s: float) -> None:
        """What was deleted is committed, which took so long in all: the next slice goes on behind it."""
        self._place = self._ahead
        self.rows += done.rows
        self.pages_freed += done.pages
        # A cold disk has its share in the commit, too.
        self._for_s = min(max(self._for_s * _AIM_S / max(took_s, 1e-6), _AIM_S / 20), _AIM_S)

    def _adapt(self, took_s: float) -> None:
        # Some statements a slice: the clock is read between them.
        fitting = int(self._pairs_a_statement * self._for_s / 4 / max(took_s, 1e-6))
        most = min(2 * self._pairs_a_statement, _MOST_PAIRS)
        self._pairs_a_statement = max(1, min(fitting, most))


def expired(
    journal: JournalReads,
    keep_ms: Mapping[str, int],
    below_seq: int | None = None,
    certain_ms: int = _AT_ANY_TIME,
) -> list[Sweep]:
    """What is older than `keep_ms[table]`, counted back from the newest row of that table.

    Tables: candle, mark_1h (where the journal has it), mark_price, funding_rate. Never from the wall
    clock: a wrong clock must not delete anything. Rows from `below_seq` on stay: they are not shipped yet.
    Rows beyond `certain_ms`, the exchange's time, do not count: one of the year 2095, as a bad page gives,
    would make all others too old.
    """
    pair_ids = _pair_ids(journal.db)
    found: list[Sweep] = []
    for table, age_ms in keep_ms.items():
        newest_ms = newest(journal, table, certain_ms)
        if newest_ms is None or (
            below_seq is not None and _first_seq(journal.db, table) >= below_seq
        ):
            continue
        oldest_ms = _extreme(journal.db, table, "min", until_ms=certain_ms + SLACK_MS)
        if oldest_ms is not None and oldest_ms < newest_ms - age_ms:
            found.append(Sweep(table, newest_ms - age_ms, oldest_ms, pair_ids, below_seq))
    return found


def over_budget(
    journal: JournalReads, max_bytes: int, certain_ms: int = _AT_ANY_TIME
) -> Sweep | None:
    """What to delete first when the file's used pages exceed `max_bytes`; None when all fits.

    A hundredth of what there is of the first table that has more than an hour: mark prices give
    way first, then running funding rates, closed candles last. Pages that are free do not count, nor does
    the `-wal`: deleting makes neither smaller. Rows beyond `certain_ms` do not count, as in `expired`.
    """
    if journal.counts()["bytes"] <= max_bytes:
        return None
    for table in _GIVE_WAY:
        oldest, newest = (
            _extreme(journal.db, table, function, until_ms=certain_ms + SLACK_MS)
            for function in ("min", "max")
        )
        if oldest is None or newest is None or newest - oldest <= schema.HOUR_MS:
            continue
        before_ms = min(oldest + (newest - oldest) // TURN, newest - schema.HOUR_MS)
        return Sweep(table, before_ms, oldest, _pair_ids(journal.db))
    return None


class Taken(NamedTuple):
    """The disk budget has deleted rows of before `before_ms` that are not too old to be kept."""

    table: str
    before_ms: int


def taken(
    journal: JournalReads, keep_ms: Mapping[str, int], certain_ms: int = _AT_ANY_TIME
) -> list[Taken]:
    """What the disk budget has deleted that `keep_ms[table]` would keep, by the gaps that tell of it."""
    found: list[Taken] = []
    for table in _GIVE_WAY:
        (before_ms,) = journal.db.execute(
            'SELECT max("end") FROM gap WHERE kind = ? AND pair_id = 0', (budget_gap(table),)
        ).fetchone()
        newest_ms = newest(journal, table, certain_ms)
        if before_ms is None or newest_ms is None:
            continue
        if before_ms > newest_ms - keep_ms[table]:
            found.append(Taken(table, before_ms))
    return found


def ahead(journal: JournalReads, tables: Iterable[str], certain_ms: int) -> list[str]:
    """The tables that have a row beyond the exchange's time: no writer has stored it."""
    return [
        table
        for table in tables
        if _has(journal.db, table)
        and _extreme(journal.db, table, "max", from_ms=certain_ms + SLACK_MS + 1) is not None
    ]


def budget_gap(table: str) -> str:
    """The kind of a gap that tells of rows which the disk budget has deleted."""
    return f"disk_budget_{table}"


def last_taken(journal: JournalReads, sweep: Sweep) -> TimeRange | None:
    """The last gap of what the disk budget deleted of a table, as a sweep makes it that goes on at its end.

    One gap grows as long as the budget goes on taking: one for each hundredth would be thousands a year.
    """
    known = journal.db.execute(
        """SELECT start, "end" FROM gap WHERE kind = ? AND pair_id = 0 ORDER BY start DESC LIMIT 1""",
        (budget_gap(sweep.table),),
    ).fetchone()
    # Up to a candle's length there was nothing in between.
    if known is None or known[1] < sweep.oldest_ms - schema.HOUR_MS:
        return None
    return TimeRange(known[0], max(known[1], sweep.before_ms))


def newest(journal: JournalReads, table: str, certain_ms: int = _AT_ANY_TIME) -> int | None:
    """The time (ms) of the newest row of a table; None without any, or without such a table.

    Of those that are not beyond `certain_ms`.
    """
    if not _has(journal.db, table):
        return None
    return _extreme(journal.db, table, "max", until_ms=certain_ms + SLACK_MS)


def used_pages(db: sqlite3.Connection) -> int:
    """Pages of the file that hold something: those that are free are used again."""
    pages, free = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count")
    )
    return pages - free


def _rows_of(table: str, pair: str) -> str:
    """Of one or many pairs: parameters 2 to 4 are from when, until when, and below which number."""
    # By the timeframe too: the key begins with both.
    lengths = ",".join(map(str, schema.TIMEFRAME_NAMES))
    timeframe = f"AND timeframe_ms IN ({lengths}) " if table == schema.TABLE_CANDLE else ""
    column = _TIME_COLUMN[table]
    return (
        f"FROM {table} WHERE pair_id {pair} {timeframe}"
        f"AND {column} >= ?2 AND {column} < ?3 AND seq < ?4"
    )


_DELETE: Final = {
    table: f"DELETE {_rows_of(table, 'IN (SELECT value FROM json_each(?1))')}"
    for table in _TIME_COLUMN
}
# One step each, as one DELETE is: row by row the thread would have to get Python's lock back each time.
_HAVING: Final = {
    table: f"""SELECT json_group_array(value) FROM json_each(?1) AS asked
        WHERE EXISTS (SELECT 1 {_rows_of(table, "= asked.value")})"""
    for table in (schema.TABLE_CANDLE, schema.TABLE_MARK_1H)
}


def _pair_ids(db: sqlite3.Connection) -> list[int]:
    return [number for (number,) in db.execute("SELECT id FROM pair ORDER BY id")]


def _first_seq(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT coalesce(min(seq), 0) FROM {table}").fetchone()[0])


def _has(db: sqlite3.Connection, table: str) -> bool:
    return table != schema.TABLE_MARK_1H or bool(db.execute(schema.HAS_MARK_1H).fetchone()[0])


def _extreme(
    db: sqlite3.Connection,
    table: str,
    function: str,
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> int | None:
    """The least or greatest time of a table's rows; of those from `from_ms` on, up to `until_ms`.

    With `until_ms` no text either, as a bad page gives: SQLite sorts it behind all numbers.
    """
    # One seek a series: max() over the whole table would read all of it.
    column = _TIME_COLUMN[table]
    inner = f"SELECT {function}({column}) FROM {table} WHERE pair_id = pair.id"
    series = "pair"
    if table == "candle":
        inner += " AND timeframe_ms = t.value"
        series = f"pair, json_each('{list(schema.TIMEFRAME_NAMES)}') AS t"
    bound: tuple[int, ...] = ()
    for limit, value in ((">=", from_ms), ("<=", until_ms)):
        if value is not None:
            inner += f" AND {column} {limit} ?"
            bound += (value,)
    text = f"SELECT {function}(({inner})) FROM {series}"
    found: int | None = db.execute(text, bound).fetchone()[0]
    return found
