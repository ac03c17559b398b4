"""Which rows of the journal are to go, by age or by the disk budget, and how they are deleted."""

import sqlite3
from collections.abc import Mapping
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.journal.reads import JournalReads

_TIME_COLUMN: Final = {
    "candle": "open_time",
    "mark_1h": "open_time",
    "mark_price": "time",
    "funding_rate": "time",
}
_GIVE_WAY: Final = ("mark_price", "funding_rate", "candle")


class DeleteRange(NamedTuple):
    """Rows of one pair in one table that are older than `before_ms` (exchange time).

    `oldest_ms` is the oldest that the table has of any pair, where that was looked for.
    """

    table: str
    pair_id: int
    before_ms: int
    oldest_ms: int | None = None


def expired(journal: JournalReads, keep_ms: Mapping[str, int]) -> list[DeleteRange]:
    """What is older than `keep_ms[table]`, counted back from the newest row of that table.

    Tables: candle, mark_1h (where the journal has it), mark_price, funding_rate. Never from the wall
    clock: a wrong clock must not delete anything. One range a pair, so that commits of new data can pass
    in between.
    """
    pair_ids = _pair_ids(journal.db)
    (has_marks,) = journal.db.execute(schema.HAS_MARK_1H).fetchone()
    return [
        DeleteRange(table, pair_id, newest - age_ms)
        for table, age_ms in keep_ms.items()
        if (table != schema.TABLE_MARK_1H or has_marks)
        and (newest := _extreme(journal.db, table, "max")) is not None
        for pair_id in pair_ids
    ]


def over_budget(journal: JournalReads, max_bytes: int) -> list[DeleteRange]:
    """What to delete first when the file's used pages exceed `max_bytes`; empty when all fits.

    A sixteenth of what there is of the first table that has more than an hour: mark prices give
    way first, then running funding rates, closed candles last.
    """
    if journal.counts()["bytes"] <= max_bytes:
        return []
    for table in _GIVE_WAY:
        oldest, newest = (_extreme(journal.db, table, function) for function in ("min", "max"))
        if oldest is None or newest is None or newest - oldest <= schema.HOUR_MS:
            continue
        step_ms = max((newest - oldest) // 16, schema.MINUTE_MS)
        before_ms = min(oldest + step_ms, newest - schema.HOUR_MS)
        return [DeleteRange(table, pair_id, before_ms, oldest) for pair_id in _pair_ids(journal.db)]
    return []


def delete(db: sqlite3.Connection, delete_range: DeleteRange, below_seq: int) -> int:
    """Delete what a range names, but rows from `below_seq` on; returns how many went. In a transaction."""
    text = (
        f"DELETE FROM {delete_range.table} "
        f"WHERE pair_id = ? AND {_TIME_COLUMN[delete_range.table]} < ? AND seq < ?"
    )
    key = (delete_range.pair_id, delete_range.before_ms, below_seq)
    if delete_range.table != "candle":
        return db.execute(text, key).rowcount
    # By the timeframe too: the key begins with both.
    return sum(
        db.execute(f"{text} AND timeframe_ms = ?", (*key, length_ms)).rowcount
        for length_ms in schema.TIMEFRAME_NAMES
    )


def _pair_ids(db: sqlite3.Connection) -> list[int]:
    return [number for (number,) in db.execute("SELECT id FROM pair ORDER BY id")]


def _extreme(db: sqlite3.Connection, table: str, function: str) -> int | None:
    # One seek a series: max() over the whole table would read all of it.
    inner = f"SELECT {function}({_TIME_COLUMN[table]}) FROM {table} WHERE pair_id = pair.id"
    series = "pair"
    if table == "candle":
        inner += " AND timeframe_ms = t.value"
        series = f"pair, json_each('{list(schema.TIMEFRAME_NAMES)}') AS t"
    value: int | None = db.execute(f"SELECT {function}(({inner})) FROM {series}").fetchone()[0]
    return value
