"""`python -m tests.bench.full_journal PATH --rows 10M`: a journal as long collecting leaves it, in minutes.

In the proportions of 400 days of 164 pairs by the shipped settings: closed candles of 3m, 5m, 15m and 1h
(82 % of the rows), mark prices every 3 s, running funding rates, hourly mark candles, settlements, all of it
promised and whole. Numbers (`seq`) go by time over all pairs, so that an index of them and the tables lie to
each other as in a collector's file. SQLite makes the rows itself, in the order of their keys; the indexes
follow. Pages are full then: a file that grew by single commits is up to a third larger.
"""

import argparse
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import CatalogEntry
from marketfeed.simulator import catalogue
from tests.bench import workload

TIMEFRAMES: Final = ("3m", "5m", "15m", "1h")
FULL_DAYS: Final = 400
ALL_PAIRS: Final = 530
OTHERS_TIMEFRAME: Final = "3m"
OTHERS_CANDLES: Final = 5_000
"""Of each pair that ALL_PAIRS have beyond 164, in a journal that is long enough."""
FULL_ROWS: Final = 72_000_000
"""Of FULL_DAYS by the shipped settings."""
_MARK_PRICE_MS: Final = 3 * schema.SECOND_MS
_SHARES: Final = {
    schema.TABLE_MARK_PRICE: 2 * schema.DAY_MS,
    schema.TABLE_FUNDING_RATE: 14 * schema.DAY_MS,
}
"""How much of them there is with FULL_DAYS of candles."""
_TURNS: Final = """
WITH RECURSIVE turn(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM turn WHERE n + 1 < :turns)"""
# Prices walk in ticks without a pattern that matters; no REAL is a whole number: those take less room.
_CANDLES: Final = """
INSERT INTO candle (pair_id, timeframe_ms, open_time, open, high, low, close, volume, quote_volume,
    taker_buy_volume, trades, seq, taker_buy_quote_volume)
SELECT :pair, :length, :start + n * :length,
    :price + n * 7919 % 4001 * 0.0137, :price + n * 7919 % 4001 * 0.0137 + 0.8113,
    :price + n * 7919 % 4001 * 0.0137 - 0.7127, :price + (n + 1) * 7919 % 4001 * 0.0137,
    1000.137 + n * 31 % 9973 * 1.237, 100013.7137 + n * 37 % 9973 * 123.717,
    500.0713 + n * 41 % 4973 * 1.1371, 40 + n * 43 % 3000,
    1 + (((n + 1) * :length) / 60000) * :slots + :slot, 50007.1317 + n * 47 % 4973 * 61.171
FROM turn"""
_MARKS: Final = """
INSERT INTO mark_price (pair_id, time, offset_ms, mark_price, index_price, seq)
SELECT :pair, :start + n * 3000, n * 13 % 1000, :price + n * 7919 % 4001 * 0.0137,
    :price + n * 7907 % 4001 * 0.0137,
    1 + ((:start + n * 3000 - :origin) / 60000) * :slots + :slot + n % 20 * :pairs
FROM turn"""
_FUNDING: Final = """
INSERT INTO funding_rate (pair_id, time, offset_ms, rate, settled_rate, next_funding_time, seq)
SELECT :pair, :start + n * 60000, n * 17 % 3000, 0.0001 + n * 29 % 97 * 1e-7, 0.000117,
    ((:start + n * 60000) / 28800000 + 1) * 28800000,
    1 + ((:start + n * 60000 - :origin) / 60000) * :slots + :slot
FROM turn"""
_MARK_HOURS: Final = """
INSERT INTO mark_1h (pair_id, open_time, open, high, low, close, seq)
SELECT :pair, :start + n * 3600000, :price + n * 7919 % 4001 * 0.0137,
    :price + n * 7919 % 4001 * 0.0137 + 0.8113, :price + n * 7919 % 4001 * 0.0137 - 0.7127,
    :price + (n + 1) * 7919 % 4001 * 0.0137, 1 + ((n + 1) * 60) * :slots + :slot
FROM turn"""
_SETTLED: Final = """
INSERT INTO funding_settled (pair_id, time, kind, rate, mark_price, seq)
SELECT :pair, :start + n * 28800000, 'Regular', 0.0001 + n * 31 % 97 * 1e-7,
    :price + n * 7919 % 4001 * 0.0137, 1 + (n * 480) * :slots + :slot
FROM turn"""
_INDEXED: Final = ("candle", "mark_price", "funding_rate", "mark_1h", "funding_settled")

ReportProgress = Callable[[str], None]


class Made(NamedTuple):
    """What stands in a journal that was made: exchange time (ms) of its end, and its pairs."""

    path: Path
    rows: int
    bytes: int
    start_ms: int
    end_ms: int
    pairs: Sequence[str]
    others: Sequence[str]


def make(path: Path, rows: int, report_progress: ReportProgress = lambda _: None) -> Made:
    """Write a journal of about so many rows to `path`, where there is none; it is closed, as after a stop."""
    others_rows = OTHERS_CANDLES * (ALL_PAIRS - workload.PAIRS)
    core = rows - others_rows if rows > 4 * others_rows else rows
    hours = max(round(FULL_DAYS * 24 * core / FULL_ROWS), 8)
    end_ms = schema.floor_to(workload.START_MS + FULL_DAYS * schema.DAY_MS, schema.DAY_MS)
    start_ms = end_ms - hours * schema.HOUR_MS
    instruments = workload.listed()
    known = {one.pair for one in instruments}
    others = [one for one in catalogue.instruments(ALL_PAIRS) if one.pair not in known]
    others_ms = OTHERS_CANDLES * schema.TIMEFRAMES_MS[OTHERS_TIMEFRAME]
    if core == rows or hours * schema.HOUR_MS < others_ms:
        others = []
    with Journal.open(path) as journal:
        batch = Batch()
        batch.extend(
            CatalogEntry(one.pair, one.symbol, TIMEFRAMES, start_ms, None, None, start_ms)
            for one in instruments
        )
        since_ms = end_ms - others_ms
        batch.extend(
            CatalogEntry(one.pair, one.symbol, ("3m",), since_ms, None, None, since_ms)
            for one in others
        )
        journal.write(batch)
        first_seq = journal.next_seq
    # No index while rows come; nothing of it has to outlive a kill.
    db = sqlite3.connect(path, isolation_level=None)
    os.environ["SQLITE_TMPDIR"] = str(path.parent)
    with contextlib.closing(db):
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "cache_size = -400000",
            "threads = 2",
        ):
            db.execute(f"PRAGMA {pragma}")
        names = [one.pair for one in instruments], [one.pair for one in others]
        made = _fill(db, *names, start_ms, end_ms, first_seq, report_progress)
        db.execute("PRAGMA journal_mode = WAL")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return Made(path, made, path.stat().st_size, start_ms, end_ms, *names)


def _fill(
    db: sqlite3.Connection,
    names: Sequence[str],
    others: Sequence[str],
    start_ms: int,
    end_ms: int,
    first_seq: int,
    report_progress: ReportProgress,
) -> int:
    ids = dict(db.execute("SELECT pair, id FROM pair"))
    share = (end_ms - start_ms) / (FULL_DAYS * schema.DAY_MS)
    indexes = [
        row
        for row in db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'").fetchall()
        if row[0] in {f"{table}_seq" for table in _INDEXED}
    ]
    pairs = len(names)
    # Of each minute, for each pair: candles, then what else there is, then 20 mark prices; then other pairs.
    slots = pairs * (len(TIMEFRAMES) + 3 + 20) + len(others)
    db.execute("BEGIN")
    for name, _ in indexes:
        db.execute(f"DROP INDEX {name}")
    rows = 0
    for number, pair in enumerate(sorted(names, key=ids.__getitem__)):
        if number % 20 == 0:
            report_progress(f"writing pair {number} of {pairs}")
        common = {
            "pair": ids[pair],
            "price": 100.0137 + number * 3.71,
            "slots": slots,
            "pairs": pairs,
            "origin": start_ms,
        }

        # rowcount knows nothing of a statement that begins with WITH.
        def run(text: str, start: int, step: int, place: int, **more: int) -> int:
            turns = (end_ms - start) // step
            slot = first_seq + place * pairs + number  # noqa: B023 - called at once
            bound = {**common, "start": start, "turns": turns, "slot": slot, **more}  # noqa: B023
            db.execute(_TURNS + text, bound)
            return int(db.execute("SELECT changes()").fetchone()[0])

        for place, timeframe in enumerate(TIMEFRAMES):
            length_ms = schema.TIMEFRAMES_MS[timeframe]
            rows += run(_CANDLES, start_ms, length_ms, place, length=length_ms)
        place = len(TIMEFRAMES)
        rows += run(_MARK_HOURS, start_ms, schema.HOUR_MS, place)
        rows += run(_SETTLED, start_ms, 8 * schema.HOUR_MS, place + 1)
        for table, text, step in (
            (schema.TABLE_FUNDING_RATE, _FUNDING, schema.MINUTE_MS),
            (schema.TABLE_MARK_PRICE, _MARKS, _MARK_PRICE_MS),
        ):
            kept_ms = max(int(_SHARES[table] * share), 2 * schema.HOUR_MS)
            since_ms = schema.ceil_to(end_ms - kept_ms, schema.MINUTE_MS)
            place += 1
            rows += run(text, since_ms, step, place + 1)
    length_ms = schema.TIMEFRAMES_MS[OTHERS_TIMEFRAME]
    since_ms = end_ms - OTHERS_CANDLES * length_ms
    for number, pair in enumerate(others):
        bound = {
            "pair": ids[pair],
            "length": length_ms,
            "start": since_ms,
            "turns": OTHERS_CANDLES,
            "price": 700.0137 + number,
            "slots": slots,
            # Its first candle closes so long after the journal's start.
            "slot": first_seq
            + (since_ms - start_ms) // schema.MINUTE_MS * slots
            + slots
            - len(others)
            + number,
        }
        db.execute(_TURNS + _CANDLES, bound)
        rows += OTHERS_CANDLES
    for _, text in indexes:
        report_progress(text.partition(" ON ")[0].lower())
        db.execute(text)
    keep_ms = FULL_DAYS * schema.DAY_MS
    db.executemany(
        """INSERT INTO coverage (pair_id, timeframe_ms, "from", looked, promised, released)
           VALUES (?, ?, ?, ?, ?, 0)""",
        [
            (ids[pair], schema.TIMEFRAMES_MS[name], start_ms, start_ms, keep_ms)
            for pair in names
            for name in TIMEFRAMES
        ]
        + [(ids[pair], length_ms, since_ms, since_ms, keep_ms) for pair in others],
    )
    db.executemany(
        """INSERT INTO series_coverage (pair_id, series, "from", looked, promised, released)
           VALUES (?, ?, ?, ?, ?, 0)""",
        [(ids[pair], schema.MARK_1H, start_ms, start_ms, keep_ms) for pair in names],
    )
    db.execute(
        "UPDATE sequence SET next = ?1, quoted = ?1",
        (first_seq + ((end_ms - start_ms) // schema.MINUTE_MS + 2) * slots,),
    )
    db.execute("COMMIT")
    return rows


def count(text: str) -> int:
    """A number of rows such as 10M. Raises ValueError."""
    unit = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    found = float(text if unit == 1 else text[:-1]) * unit
    if found < 1:
        raise ValueError(f"found {text!r}, expected rows such as 500k or 10M")
    return int(found)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Make one where it is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.full_journal", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=count, default=count("1M"))
    arguments = parser.parse_args()
    started_s = time.monotonic()
    made = make(arguments.path, arguments.rows, _say)
    taken_s = time.monotonic() - started_s
    sys.stdout.write(
        f"{made.path}: {made.rows:,} rows, {made.bytes / 1e6:,.0f} MB, {taken_s:.0f} s\n"
    )


if __name__ == "__main__":
    main()
