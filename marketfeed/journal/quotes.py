"""The column `taker_buy_quote_volume` of a journal: how it is added and taken away, and what lacks it.

A journal of version 3 gets it when a writer opens it; one of version 2 has to be upgraded. Neither way
reads a row of candles. What was stored without is asked for again, of each series from the newest down;
`quote_asked` holds down to where that has been done. A series without a row in it has not been asked for.

An older writer of version 3 goes on storing rows without, and a candle that it replaces keeps the value of
the former one. By `sequence.quoted`, the next number as of the last commit that knew the column, its rows
are told: all series are looked through again, and its numbers (`doubted_from`, `doubted_until`) are doubted.
What it has shipped went without the field. So what is acknowledged of candles is noted a second time under
SHIPPED_WITH, a name that it does not know, and that is what counts after it.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.journal import tables
from marketfeed.journal.coverage import Key

CANDLES: Final = "ohlcv"
SHIPPED_WITH: Final = "ohlcv with taker_buy_quote_volume"
"""A measurement of the table `shipped`, as an older version sees it."""


class Unquoted(NamedTuple):
    """The newest stored candles that lack the column: `candles` of them in a range of 499 at most.

    All that is stored from `down_to_ms` on, and is not in `within`, has it or has been asked for.
    """

    within: TimeRange
    down_to_ms: int
    candles: int


def has_column(db: sqlite3.Connection) -> bool:
    """Whether a journal has the column."""
    (found,) = db.execute(schema.HAS_TAKER_BUY_QUOTE).fetchone()
    return bool(found)


def is_accounted(db: sqlite3.Connection) -> bool:
    """Whether a journal has the column, and knows what others wrote without it.

    It does not where a full disk was in the way at its opening. Written all the same, the first commit would
    take those rows for its own.
    """
    if not has_column(db):
        return False
    found = db.execute("SELECT quoted IS next FROM sequence").fetchone()
    return found is not None and bool(found[0])


def add(db: sqlite3.Connection) -> None:
    """Add what a journal of version 3 lacks of it, or note what others have written since.

    In a transaction.
    """
    if not has_column(db):
        for statement in (*tables.ADD_QUOTES, tables.CREATE_QUOTE_ASKED):
            db.execute(statement)
        db.execute("UPDATE sequence SET quoted = next")
        # Nothing of it was there that a server could lack.
        db.execute(_ACKNOWLEDGED, (SHIPPED_WITH, CANDLES))
        return
    # What was doubted before, and has not been asked for to its end, still is.
    others_wrote = db.execute(
        """UPDATE sequence SET
             doubted_from = CASE
               WHEN doubted_until > doubted_from AND (
                 NOT EXISTS (SELECT 1 FROM quote_asked)
                 OR EXISTS (SELECT 1 FROM quote_asked WHERE down_to > 0)
               ) THEN min(doubted_from, coalesce(quoted, 1))
               ELSE coalesce(quoted, 1)
             END,
             doubted_until = next,
             quoted = next
           WHERE quoted IS NOT next"""
    ).rowcount
    if others_wrote:
        db.execute("DELETE FROM quote_asked")
        db.execute("DELETE FROM shipped WHERE measurement = ?", (CANDLES,))
        db.execute(_ACKNOWLEDGED, (CANDLES, SHIPPED_WITH))


def acknowledged(ranges: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Ranges (measurement, first, last) that a server has acknowledged, those of candles twice."""
    every = list(ranges)
    return every + [(SHIPPED_WITH, first, last) for name, first, last in every if name == CANDLES]


def remove(db: sqlite3.Connection) -> None:
    """Take it away, as for a version 2, whose first release writes rows without naming their columns.

    SQLite's own DROP COLUMN would write the whole table of candles anew: minutes, and as much disk again.
    So the column only goes from the table's definition. SQLite does not read what a row has behind the
    columns of its table; when the column is added again, what nobody has changed meanwhile is there again.
    """
    if not has_column(db):
        return
    db.execute("DROP TABLE quote_asked")
    db.execute("ALTER TABLE forming DROP COLUMN taker_buy_quote_volume")
    for column in ("quoted", "doubted_from", "doubted_until"):
        db.execute(f"ALTER TABLE sequence DROP COLUMN {column}")
    (schema_version,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute("PRAGMA writable_schema = ON")
    try:
        db.execute(
            """UPDATE sqlite_master SET sql = replace(sql, ', taker_buy_quote_volume REAL', '')
               WHERE type = 'table' AND name = 'candle'"""
        )
        # Every connection has to read the definitions anew, this one too.
        db.execute(f"PRAGMA schema_version = {schema_version + 1}")
    finally:
        db.execute("PRAGMA writable_schema = RESET")
    if has_column(db):
        raise sqlite3.DatabaseError("the column taker_buy_quote_volume could not be taken away")


def asked(db: sqlite3.Connection) -> dict[Key, int]:
    """Down to where (ms) each series has been asked for again; one that has not is absent."""
    return {
        (pair, schema.TIMEFRAME_NAMES[length_ms]): down_to_ms
        for pair, length_ms, down_to_ms in db.execute(
            """SELECT pair, timeframe_ms, down_to FROM quote_asked
               JOIN pair ON pair.id = quote_asked.pair_id"""
        )
    }


def newest_without(db: sqlite3.Connection, key: Key, below_ms: int | None) -> Unquoted | None:
    """What to ask for next of a series, below what has been; None when nothing lacks the column."""
    length_ms = schema.TIMEFRAMES_MS[key[1]]
    series = (key[0], length_ms)
    doubted = db.execute("SELECT doubted_from, doubted_until - 1 FROM sequence").fetchone()
    end_ms = _END_MS if below_ms is None else below_ms
    newest = db.execute(_NEWEST_WITHOUT, (*series, end_ms, *doubted)).fetchone()
    if newest is None:
        return None
    end_ms = newest[0] + length_ms
    down_to_ms = end_ms - TILE_CANDLES * length_ms
    oldest_ms, candles = db.execute(_WITHOUT_IN, (*series, down_to_ms, end_ms, *doubted)).fetchone()
    return Unquoted(TimeRange(oldest_ms, end_ms), down_to_ms, candles)


_END_MS: Final = 2**62
_OF_SERIES: Final = (
    "FROM candle WHERE pair_id = (SELECT id FROM pair WHERE pair = ?) AND timeframe_ms = ?"
)
_LACKS: Final = "(taker_buy_quote_volume IS NULL OR seq BETWEEN ? AND ?)"
_NEWEST_WITHOUT: Final = f"""SELECT open_time {_OF_SERIES} AND open_time < ? AND {_LACKS}
    ORDER BY open_time DESC LIMIT 1"""
_WITHOUT_IN: Final = f"""SELECT min(open_time), count(*) {_OF_SERIES}
    AND open_time >= ? AND open_time < ? AND {_LACKS}"""
_ACKNOWLEDGED: Final = """INSERT INTO shipped (target, measurement, first, last)
    SELECT target, ?, first, last FROM shipped WHERE measurement = ?"""
ASKED: Final = """
INSERT INTO quote_asked (pair_id, timeframe_ms, down_to) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET down_to = excluded.down_to"""
