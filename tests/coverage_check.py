"""Whether the coverage that a journal file tells of is what its rows say: for tests that kill and soak."""

import contextlib
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.journal import coverage, marks
from marketfeed.journal.coverage import HISTORY_GAP, Covered, Key
from marketfeed.journal.covering import is_trusted, read_coverage
from marketfeed.journal.reads import JournalReads
from marketfeed.storage.files import connect_read_only, is_stopped

OPEN: Final = frozenset({"found", "healing"})


class Checked(NamedTuple):
    """What was looked at, and each contradiction in words: none is as it should be."""

    trusted: bool
    """Whether the counters say that nobody else has changed rows."""
    series: int
    looked_through: int
    candles: int
    holes: int
    mistakes: list[str]


def check_coverage(path: Path) -> Checked:
    """Compute the coverage of every promised series anew from its rows. Changes nothing.

    A file from before version 3 promises nothing: it has no series.
    """
    with contextlib.closing(connect_read_only(path, immutable=is_stopped(path))) as db:
        db.execute("BEGIN")
        if db.execute("PRAGMA user_version").fetchone()[0] < schema.COVERAGE_FROM:
            return Checked(True, 0, 0, 0, 0, [])
        series, released = read_coverage(JournalReads(db))
        if marks.has_table(db):
            more, gone = marks.read_coverage(JournalReads(db))
            series, released = series | more, released | gone
        return check_series(db, series, released)


def check_series(
    db: sqlite3.Connection, series: Mapping[Key, Covered], released: Collection[Key]
) -> Checked:
    """Hold what is promised, and what is no more, against the rows of an open journal of version 3."""
    found: list[str] = []
    candles = 0
    for key, known in series.items():
        opens = opens_of(db, key)
        candles += len(opens)
        wrong = coverage.mistakes(known, opens, schema.SERIES_MS[key[1]])
        found += [f"{key}: {text}" for text in wrong]
    told = open_rows(db)
    # Of series that nobody has promised yet, nor released, rows of an older version may tell.
    for key in sorted({*series, *(told.keys() & released)}):
        holes = {hole[:3] for hole in series[key].holes} if key in series else set()
        for row in sorted(told.get(key, set()) ^ holes):
            where = "a hole, and no row of gaps" if row in holes else "a row of gaps, and no hole"
            found.append(f"{key}: {where}: {row}")
    return Checked(
        is_trusted(JournalReads(db)),
        len(series),
        sum(known.is_looked_through for known in series.values()),
        candles,
        sum(len(known.holes) for known in series.values()),
        found,
    )


def opens_of(db: sqlite3.Connection, key: Key) -> list[int]:
    """When the stored candles of a series open, ascending."""
    if key[1] == schema.MARK_1H:
        text = """SELECT open_time FROM mark_1h JOIN pair ON pair.id = pair_id WHERE pair = ?
                  ORDER BY open_time"""
        return [open_ms for (open_ms,) in db.execute(text, (key[0],))]
    return [
        open_ms
        for (open_ms,) in db.execute(
            """SELECT open_time FROM candle JOIN pair ON pair.id = pair_id
               WHERE pair = ? AND timeframe_ms = ? ORDER BY open_time""",
            (key[0], schema.TIMEFRAMES_MS[key[1]]),
        )
    ]


def open_rows(db: sqlite3.Connection) -> dict[Key, set[tuple[int, int, bool]]]:
    """What the rows of gaps tell is missing: start, end, and whether it is of a first filling."""
    told: dict[Key, set[tuple[int, int, bool]]] = {}
    (version,) = db.execute("PRAGMA user_version").fetchone()
    absent = "empty_2 IS NOT NULL" if version >= schema.COVERAGE_FROM else "FALSE"
    for pair, kind, start_ms, end_ms, state, is_absent in db.execute(
        f"""SELECT pair, kind, start, "end", state, {absent} FROM gap
            JOIN pair ON pair.id = pair_id WHERE "end" IS NOT NULL"""  # noqa: S608
    ):
        for series in schema.SERIES_MS:
            kinds = (schema.gap_kind(series), HISTORY_GAP + series)
            if kind not in kinds:
                continue
            if state in OPEN or (state == "unresolvable" and is_absent):
                row = (start_ms, end_ms, kind.startswith(HISTORY_GAP))
                told.setdefault((pair, series), set()).add(row)
    return told
