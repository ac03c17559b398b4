"""A journal of version 1 is brought up to date with all its rows; one without a way is refused."""

import contextlib
import sqlite3
from pathlib import Path
from types import MappingProxyType

import pytest

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Gap
from marketfeed.storage.database import Database, convert

DDL = (Path(__file__).parents[1] / "data" / "journal_version_1.sql").read_text("utf-8")
PAIR = "BTC/USDT:USDT"
T0 = 1_791_360_000_000
GAPS = [
    # kind, pair_id, start, end, healed, reason, seq; and the state that follows from it.
    ("candle_1m", 1, T0, T0 + 60_000, 0, "did not come", 3, "found"),
    ("candle_1m", 1, T0 + 60_000, T0 + 120_000, 1, "came late", 4, "healed"),
    ("connection_feed-1", 0, T0, None, 0, "reset", 5, "found"),
    ("connection_feed-2", 0, T0, T0 + 5, 1, "reset", 6, "healed"),
    ("disk_budget_mark_price", 0, T0, T0 + 9, 0, "deleted", 7, "unresolvable"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal as version 1 left it."""
    path = tmp_path / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(DDL)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO pair VALUES (1, ?)", (PAIR,))
        db.execute("UPDATE sequence SET next = 8")
        db.execute(
            "INSERT INTO candle VALUES (1, 60000, ?, 1, 2, 0.5, 1.5, 10, 15, 5, 7, 2)", (T0,)
        )
        db.executemany("INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?)", [row[:7] for row in GAPS])
        db.commit()
    return path


def shape(path: Path) -> list[tuple[str, str, str]]:
    """Tables and indexes with their columns, whatever blanks they were written with."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return sorted(
            (kind, name, "".join((sql or "").split()).replace('"gap"', "gap"))
            for kind, name, sql in db.execute(
                "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
            )
        )


def test_version_1_becomes_what_a_fresh_journal_is(path: Path, tmp_path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.set_aside is None
        assert journal.next_seq == 8
        (candle,) = journal.candles(PAIR, "1m", T0, T0 + 1)
        assert (candle.close, candle.trades) == (1.5, 7)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert (
            db.execute(
                'SELECT kind, pair_id, start, "end", healed, reason, seq, state FROM gap ORDER BY seq'
            ).fetchall()
            == GAPS
        )
    Journal.open(tmp_path / "fresh.db").close()
    assert convert(KIND, path, KIND.version) == 2
    assert shape(path) == shape(tmp_path / "fresh.db")


def test_gaps_go_on_after_the_migration(path: Path) -> None:
    batch = Batch()
    batch.add(Gap("candle_1m", PAIR, T0, T0 + 60_000, "healed", "fetched"))
    with Journal.open(path) as journal:
        assert journal.write(batch) == 1
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT healed, state, seq FROM gap WHERE seq >= 8").fetchall() == [
            (1, "healed", 8)
        ]


def test_a_version_without_a_way_is_a_typed_error_and_nothing_is_touched(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"knows no way from schema version 1 to 2"):
        Database.open(KIND._replace(migrations=MappingProxyType({})), path)
    assert not list(path.parent.glob("*.corrupt-*"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert path.read_bytes()[100:] == before[100:]
