"""From one schema version to another and back: the tables are those of a fresh file, and every row stays."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from marketfeed import schema
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal import tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import CatalogEntry
from marketfeed.storage.acknowledged import notes_of
from marketfeed.storage.database import Kind, convert
from tests.older_versions import (
    ANSWERS,
    DROPPED,
    LEDGER_ROWS,
    PAIR,
    SHIPPED,
    T0,
    TARGET,
    columns,
    content,
    empty,
    journal,
    ledger,
    shape,
    version,
)


def fresh(path: Path, kind: Kind = KIND) -> Path:
    (Journal if kind is KIND else Ledger).open(path).close()
    return path


def test_a_journal_of_any_version_becomes_what_a_fresh_one_is(tmp_path: Path) -> None:
    new = fresh(tmp_path / "fresh.db")
    assert version(new) == schema.SCHEMA_VERSION == 3
    for older in (1, 2):
        path = journal(tmp_path / f"{older}.db", older)
        assert convert(KIND, path, 3) == older
        assert version(path) == 3
        assert columns(path) == columns(new)
        assert shape(path) == shape(new)


@pytest.mark.parametrize("older", [1, 2])
def test_a_journal_holds_the_same_there_and_back(tmp_path: Path, older: int) -> None:
    path = journal(tmp_path / "journal.db", older)
    before = content(path)
    assert len(before["catalog"]) == 4
    for target in (2, 3, 2, 3, 3, 2):
        convert(KIND, path, target)
        assert version(path) == target
        assert content(path) == before
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT max(seq) FROM sqlite_sequence").fetchone() == (9,)


def test_a_journal_that_is_taken_back_is_what_the_released_version_makes(tmp_path: Path) -> None:
    released = empty(tmp_path / "2.db", "journal_version_2.sql", schema.APPLICATION_ID, 2)
    for path in (
        fresh(tmp_path / "3.db"),
        journal(tmp_path / "1.db", 1),
        journal(tmp_path / "b", 2),
    ):
        convert(KIND, path, 3)
        convert(KIND, path, 2)
        assert columns(path) == columns(released)
        assert shape(path) == shape(released)


def test_a_ledger_likewise(tmp_path: Path) -> None:
    new = fresh(tmp_path / "fresh.db", LEDGER)
    released = empty(tmp_path / "1.db", "ledger_version_1.sql", LEDGER.application_id, 1)
    path = ledger(tmp_path / "ledger.db")
    before = content(path)
    for _ in range(2):
        assert convert(LEDGER, path, 2) == 1
        assert (version(path), columns(path), shape(path)) == (2, columns(new), shape(new))
        assert content(path) == before
        assert convert(LEDGER, path, 1) == 2
        assert (version(path), columns(path)) == (1, columns(released))
        assert shape(path) == shape(released)
        assert content(path) == before
    convert(LEDGER, new, 1)
    assert shape(new) == shape(released)


def test_a_ledger_is_migrated_when_it_is_opened_and_goes_on(tmp_path: Path) -> None:
    path = ledger(tmp_path / "ledger.db")
    before = content(path)
    with Ledger.open(path) as opened:
        assert opened.version == 2
        assert opened.next_number() == LEDGER_ROWS + 6
        assert {f.bot for f in opened.forwards()} == {"long", "short"}
    assert content(path) == before


def test_a_forward_that_opened_a_trade_names_it(tmp_path: Path) -> None:
    path = ledger(tmp_path / "ledger.db")
    convert(LEDGER, path, 2)
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT state, answer, trade_id FROM forward").fetchall()
    named = {ANSWERS[0]: 7, ANSWERS[1]: 8}
    assert {(state, answer) for state, answer, trade in rows if trade} == {
        (state, answer) for state in ("accepted", "found") for answer in named
    } & {(state, answer) for state, answer, _ in rows}
    assert any(trade for *_, trade in rows)
    for state, answer, trade in rows:
        assert trade == (named.get(answer) if state in {"accepted", "found"} else None)


def test_what_version_1_of_a_ledger_cannot_hold_is_left_out(tmp_path: Path) -> None:
    path = ledger(tmp_path / "ledger.db")
    convert(LEDGER, path, 2)
    before = content(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE decision SET leverage = NULL WHERE window = 7")
        db.execute("UPDATE signal SET strength_text = 'high', unknown_fields = '{}'")
        db.execute("UPDATE forward SET bot = 'meta' WHERE window = 6")
    convert(LEDGER, path, 1)
    after = content(path)
    assert [row[0] for row in before["forward"] if row not in after["forward"]] == [6]
    assert set(after["forward"]) <= set(before["forward"])
    (changed,) = set(after["decision"]) - set(before["decision"])
    assert (changed[0], changed[15]) == (7, 1.0)
    same = [name for name in before if name not in {"forward", "decision"}]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_what_is_reported_of_pairs_and_shipping(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.db", 2)
    convert(KIND, path, 3)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT pair_id, timeframes, dropped FROM catalog").fetchall() == [
            (1, "1m,3m", 0),
            (2, "1m", 0),
            (3, "3m,1h", 1),
            (4, "1m", 1),
        ]
        assert db.execute("SELECT * FROM meta").fetchall() == [(3, 3, 3)]
        assert db.execute("SELECT commits, deleted FROM sequence").fetchall() == [(0, 0)]
        notes = notes_of(KIND, db)
        assert notes.is_demanded(TARGET)
        assert notes.is_demanded("never shipped")
        assert not notes.has_shipped("never shipped")
        assert notes.lines_gone() == 13
        for name in tables.MEASUREMENTS_3:
            assert list(notes.shipped(TARGET)[name]) == SHIPPED


@pytest.mark.parametrize("at", [2, 3])
def test_a_pair_that_was_dropped_comes_back_and_another_goes(tmp_path: Path, at: int) -> None:
    """As the collector writes it into either version, and as either version reads it afterwards."""
    path = journal(tmp_path / "journal.db", 2)
    convert(KIND, path, at)
    batch = Batch()
    batch.add(CatalogEntry(PAIR, "BTCUSDT", ("1m", "3m"), T0, None, T0 + 9, T0 + 9, dropped=True))
    batch.add(CatalogEntry(DROPPED, "OLDUSDT", ("1m",), T0, T0 - 9, None, T0 + 9))
    with Journal.open(path) as opened:
        assert opened.version == at
        assert opened.write(batch) == 2
        # Once more is no news.
        assert opened.write(batch) == 0
    seen = {row[0]: row[2] for row in content(path)["catalog"]}
    assert seen == {1: ",1m,3m", 2: "1m", 3: ",3m,1h", 4: "1m"}
    convert(KIND, path, 5 - at)
    assert {row[0]: row[2] for row in content(path)["catalog"]} == seen


def test_commits_and_deletions_are_counted(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.db", 2)

    def counted() -> tuple[int, int]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            found = db.execute("SELECT commits, deleted FROM sequence").fetchone()
            return found[0], found[1]

    # Of an older version nothing is counted, and nothing fails.
    with Journal.open(path) as opened:
        opened.save_document("a", b"x", T0)
    convert(KIND, path, 3)
    assert counted() == (0, 0)
    with Journal.open(path) as opened:
        assert counted() == (0, 0)
        opened.save_document("a", b"y", T0)
        assert counted() == (1, 0)
        # Nothing was written.
        opened.write(Batch())
        assert counted() == (1, 0)
        with contextlib.suppress(JournalError):
            opened.note_shipped("x", [("ohlcv", 1, None)])  # type: ignore[list-item]
        assert counted() == (1, 0)
    # A hand's deletions, too.
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute("DELETE FROM candle WHERE open_time < ?", (T0 + 180_000,)).rowcount == 6
    assert counted() == (1, 6)


def test_no_way_is_an_error_and_nothing_is_touched(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.db", 1)
    before = content(path)
    copy = shutil.copy(path, tmp_path / "copy.db")
    with pytest.raises(JournalError, match="knows no way from schema version 1 to 0"):
        convert(KIND, path, 0)
    convert(KIND, path, 3)
    with pytest.raises(JournalError, match="knows no way from schema version 2 to 1"):
        convert(KIND, path, 1)
    with pytest.raises(JournalError, match="knows no way from schema version 3 to 4"):
        convert(KIND, path, 4)
    assert version(path) == 3
    assert content(path) == content(copy) == before


def test_a_journal_without_its_counter_is_damaged(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.db", 2)
    convert(KIND, path, 3)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM sequence")
    with pytest.raises(JournalWriteError, match="no row in table sequence") as caught:
        convert(KIND, path, 2)
    assert caught.value.damaged
    assert version(path) == 3
