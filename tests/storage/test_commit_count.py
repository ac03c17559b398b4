"""What `sequence` counts in a journal from version 3 on: commits that wrote something, deleted candles."""

import sqlite3
from contextlib import closing
from pathlib import Path

from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import expired
from marketfeed.records import Candle
from tests.sweeps import sweep_out

PAIR = "BTC/USDT:USDT"
T0 = 1_790_000_160_000
M1 = 60_000


def counted(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as db:
        commits, deleted = db.execute("SELECT commits, deleted FROM sequence").fetchone()
    return commits, deleted


def test_what_wrote_nothing_is_no_commit_and_every_deleted_candle_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    batch = Batch()
    batch.extend(
        [
            Candle(PAIR, "1m", T0 + n * M1, 1, 1, 1, 1, 1, 1, 1, 1, True, T0 + (n + 1) * M1)
            for n in range(10)
        ]
    )
    with Journal.open(path) as journal:
        assert journal.write(batch) == 10
        assert counted(path) == (1, 0)
        # A repeat takes numbers.
        assert journal.write(batch) == 0
        assert counted(path) == (2, 0)
        sweep_out(journal, expired(journal, {"candle": 3 * M1, "mark_price": M1}))
        assert counted(path) == (3, 6)
        assert sweep_out(journal, expired(journal, {"candle": 3 * M1})) == 0
        assert counted(path) == (3, 6)
    # By a hand.
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM candle")
    assert counted(path) == (3, 10)
