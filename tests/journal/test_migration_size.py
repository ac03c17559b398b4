"""A change of the schema version is as quick at millions of candles as at thousands: none is read."""

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from marketfeed.journal import tables
from marketfeed.journal.journal import Journal
from tests.bench.versions import FEW, SERIES, T0, Step, make, step, table
from tests.sweeps import delete

ROWS = int(os.environ.get("ROWS", "300000"))
"""Candles; 3,000,000 take a quarter of a minute to make."""


def test_the_step_reads_no_candles(tmp_path: Path) -> None:
    found: dict[tuple[int, int], Step] = {}
    for rows in (FEW, ROWS):
        path = make(tmp_path / f"{rows}.db", rows)
        for version in (3, 2):
            found[rows, version] = step(path, version)
    sys.stdout.write(table([(rows, f"→ {to}", one) for (rows, to), one in found.items()]) + "\n")
    for version in (3, 2):
        few, many = found[FEW, version], found[ROWS, version]
        assert abs(many.instructions - few.instructions) <= few.instructions // 50
        # Pages of 4 kB: none for each candle, of which a page holds forty.
        assert many.read <= few.read + 65_536
        assert many.written <= few.written + 65_536


def test_no_statement_of_the_step_names_the_candles() -> None:
    """But for the trigger's, which is only stored."""
    named = [
        text
        for text in (*tables.FROM_2_TO_3, *tables.FROM_3_TO_2)
        if "candle" in text and text not in (tables.CANDLE_DELETED, "DROP TRIGGER candle_deleted")
    ]
    assert named == []


@pytest.mark.parametrize("version", [2, 3])
def test_retention_deletes_as_much_and_version_3_counts_it(tmp_path: Path, version: int) -> None:
    path = make(tmp_path / "journal.db", FEW)
    step(path, version)
    each = FEW // SERIES
    with Journal.open(path) as journal:
        assert delete(journal, "candle", 7, T0 + each // 2 * 60_000) == each // 2
        # Rows that have not been shipped yet stay.
        assert delete(journal, "candle", 8, 2**62, below_seq=7 * each + 11) == 10
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM candle").fetchone() == (FEW - each // 2 - 10,)
        if version == 3:
            counted = db.execute("SELECT commits, deleted FROM sequence").fetchone()
            assert counted == (2, each // 2 + 10)
