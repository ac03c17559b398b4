"""A file of a newer version: read, written on and copied where its `meta` lets this one, else refused."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.commands.check import check_file
from marketfeed.commands.refused_lines import read_refused
from marketfeed.errors import JournalError, JournalNewerError
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.journal.view import JournalView
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    Life,
    MarkPrice,
    Record,
    RejectedFrame,
)
from marketfeed.schema import version_asked
from marketfeed.storage.acknowledged import demand_again, notes_of, withdraw
from marketfeed.storage.backup import back_up
from marketfeed.storage.reading import inspect, reading, require
from tests.newer_version import SILENT, VERSION, added, grow, spoil_meta, upgrade
from tests.shipped_ranges import of_all, ranges_of

PAIR, NEW = "BTC/USDT:USDT", "ETH/USDT:USDT"
T0 = 1_767_225_600_000
M1 = 60_000
TARGET = "http://influx.example#market"
NOTED = len(KIND.measurements) + 1
"""Rows of what is acknowledged, if it is one range: that of candles stands there twice."""


def read_on(path: Path) -> None:
    with reading(KIND, path) as db:
        db.execute("SELECT next FROM sequence")


READ: tuple[Callable[[Path], Any], ...] = (
    lambda path: inspect(KIND, path),
    lambda path: require(KIND, path),
    read_on,
    lambda path: JournalView(path).require(),
    lambda path: JournalView(path).catalog(),
    lambda path: JournalView(path).document("pairs"),
    lambda path: JournalView(path).candles(PAIR, "1m", TimeRange(0, 2**62)),
    lambda path: JournalView(path).chart(PAIR, "1m", 10),
    lambda path: JournalView(path).holes(PAIR, "1m", TimeRange(0, T0 + M1)),
    read_refused,
    lambda path: back_up(KIND, path, path.with_name("copy.db"), lambda *_: None),
)
WRITE: tuple[Callable[[Path], Any], ...] = (
    Journal.open,
    lambda path: inspect(KIND, path, writing=True),
    lambda path: demand_again(KIND, path, TARGET),
    lambda path: withdraw(KIND, path, TARGET),
    lambda path: RefusedLines(path, dropping=True),
)


def records(pair: str, n: int) -> list[Record]:
    """One of everything, the same candle, gap and catalog row with other numbers for another `n`."""
    return [
        Candle(pair, "1m", T0, 1, 2, 0.5, 1.5, n, n, n / 2, 10 + n, True, T0 + M1),
        Candle(pair, "1m", T0 + M1, 1, 2, 0.5, 1.5, n, n, n / 2, n, False, T0 + M1 + n),
        MarkPrice(pair, T0 + 500 - n, 7.0 + n, 8.0),
        FundingRate(pair, T0 + 5_000 - n, 0.1 + n, T0 + 10 * M1),
        FundingSettled(pair, T0, 0.1 + n, None),
        Gap("candle_1m", pair, T0 - M1, T0, "healed" if n else "found", f"reason {n}"),
        CatalogEntry(pair, pair[:3], ("1m", "3m")[: n + 1], T0, None, None, T0 + n),
        RejectedFrame(T0, "odd", b"{}"),
    ]


def write(journal: Journal, pair: str, n: int) -> int:
    batch = Batch()
    batch.extend(records(pair, n))
    batch.marks = [
        Candle(pair, "mark_1h", T0, 1, 2, 0.5, 1 + n / 2, 0, 0, 0, 0, True, T0 + 60 * M1)
    ]
    return journal.write(batch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of this version with a row in every table."""
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        write(journal, PAIR, 0)
        journal.promise(
            [Promise(PAIR, "1m", T0 + M1, M1), Promise(PAIR, "mark_1h", T0 + 60 * M1, 60 * M1)]
        )
        journal.fill_quotes([], {(PAIR, "1m"): T0})
        journal.save_lives({PAIR: [Life(PAIR, "BTCUSDT", T0, None, "onboardDate")]})
        journal.save_document("pairs", b"old", T0)
        journal.note_shipped(TARGET, of_all([(1, 4)]))
        journal.put_aside(TARGET, [("line", "odd")], T0)
    return path


def test_it_is_written_on_and_what_it_has_more_stays_as_it_is(path: Path) -> None:
    upgrade(path)
    before = added(path)
    others = {"shipped": (NOTED, 0), "shipping": (0, 0)}
    assert before == {table: others.get(table, (1, 0)) for table in before}
    with Journal.open(path) as journal:
        assert journal.set_aside is None
        assert write(journal, PAIR, 1) == 8
        assert write(journal, NEW, 1) == 8
        journal.promise([Promise(NEW, "1m", T0 + M1, M1), Promise(PAIR, "1m", T0 + M1, M1)])
        journal.promise([Promise(NEW, "mark_1h", T0 + 60 * M1, 60 * M1)])
        journal.fill_quotes([], {(NEW, "1m"): T0})
        journal.save_lives({NEW: [Life(NEW, "ETHUSDT", T0, None, "onboardDate")]})
        journal.repair([Candle(PAIR, "1m", T0, 1, 2, 0.5, 1.75, 3, 3, 1, 2, True, T0 + M1)])
        journal.save_document("pairs", b"new", T0 + 1)
        journal.save_document("other", b"x", T0 + 1)
        assert ranges_of(journal.shipped(TARGET)) == [(1, 4)]
        journal.note_shipped(TARGET, of_all([(1, 9), (11, 12)]))
        journal.put_aside(TARGET, [("another", "odd")], T0 + 1)
        assert journal.open_gaps() == []
        assert [(c.close, c.trades) for c in journal.candles(PAIR, "1m", 0, 2**62)] == [(1.75, 2)]
        assert journal.load_document("pairs") == (b"new", T0 + 1)
        assert ranges_of(journal.shipped(TARGET)) == [(1, 9), (11, 12)]
        assert journal.counts()["rejected_frames"] == 3
    # Every row that stood there has still what the newer version wrote into it, every new one its default.
    alone = {
        "sequence": (1, 0),
        "series_deleted": (1, 0),
        "dead_letter": (1, 2),
        "shipping": (0, 0),
    }
    alone |= {"shipped": (NOTED, NOTED)}
    assert added(path) == {table: alone.get(table, (1, 1)) for table in before}


def test_it_is_looked_at_and_copied(path: Path, tmp_path: Path) -> None:
    upgrade(path)
    found = inspect(KIND, path)
    assert found is not None
    assert found.version == VERSION
    view = JournalView(path)
    view.require()
    assert [entry.pair for entry in view.catalog()] == [PAIR]
    assert view.document("pairs") == b"old"
    assert len(view.candles(PAIR, "1m", TimeRange(0, 2**62))) == 1
    assert view.holes(PAIR, "1m", TimeRange(T0, T0 + 2 * M1)) == [TimeRange(T0 + M1, T0 + 2 * M1)]
    chart = view.chart(PAIR, "1m", 10)
    assert chart is not None
    assert chart.candles == [(T0, 1.0, 2.0, 0.5, 1.5, 0.0, 7.0, 0.1)]
    finding, _ = check_file(KIND, path)
    assert finding.verdict == "good"
    assert "schema version 4 (newer than this one's, 3)" in finding.text
    report = back_up(KIND, path, tmp_path / "copy.db", lambda *_: None)
    assert report.schema_version == VERSION
    assert added(tmp_path / "copy.db") == added(path)


def is_demanded(path: Path) -> bool:
    with reading(KIND, path) as db:
        return notes_of(KIND, db).is_demanded(TARGET)


def test_a_demand_and_refused_lines_are_taken(path: Path) -> None:
    upgrade(path)
    demand = demand_again(KIND, path, TARGET)
    assert demand is not None
    assert (demand.shipped_before, demand.known) == (True, False)
    again = demand_again(KIND, path, TARGET)
    assert again is not None
    assert again.known
    assert added(path)["shipping"] == (0, 1)
    withdraw(KIND, path, TARGET)
    assert not is_demanded(path)
    with RefusedLines(path, dropping=True) as lines:
        assert [line.line for line in lines.read()] == ["line"]
        lines.drop([1])
        assert lines.read() == []


@pytest.mark.parametrize("use", [*READ, *WRITE])
def test_one_that_asks_for_newer_readers_is_refused(path: Path, use: Callable[[Path], Any]) -> None:
    before = upgrade(path, (VERSION, 5, 2)).read_bytes()
    word = "writing" if use in WRITE else "reading"
    with pytest.raises(JournalNewerError) as caught:
        use(path)
    assert str(caught.value) == (
        f"journal {path}: written by a newer marketfeed (schema version 4: {word} it takes version 5, "
        "this one is version 3); install that version again, or use another file"
    )
    assert path.read_bytes() == before
    assert list(path.parent.glob("*.corrupt-*")) == []
    assert not path.with_name("copy.db").exists()


def test_one_that_asks_for_newer_writers_is_read_and_not_written(path: Path) -> None:
    before = upgrade(path, (VERSION, 3, 5)).read_bytes()
    for use in WRITE:
        with pytest.raises(JournalNewerError, match=r"version 4: writing it takes version 5, this"):
            use(path)
    finding, _ = check_file(KIND, path)
    assert finding.verdict == "bad"
    assert "writing it takes version 5, this one is version 3" in finding.text
    for use in READ:
        use(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("silent", SILENT)
def test_a_meta_that_says_nothing_asks_for_the_files_own_version(path: Path, silent: str) -> None:
    upgrade(path, then=silent)
    for use in (READ[0], WRITE[0]):
        with pytest.raises(
            JournalNewerError, match=r"ing it takes version 4, this one is version 3"
        ):
            use(path)


def test_a_meta_that_cannot_be_read_is_damage_not_a_version(path: Path) -> None:
    spoil_meta(upgrade(path))
    with pytest.raises(JournalError, match="malformed") as caught:
        inspect(KIND, path)
    assert not isinstance(caught.value, JournalNewerError)
    with Journal.open(path) as journal:
        assert journal.set_aside is not None


def test_a_meta_in_a_file_of_this_version_is_not_asked(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE meta RENAME COLUMN writers_from TO x")
    assert inspect(KIND, path, writing=True) is not None
    Journal.open(path).close()


def test_what_meta_says() -> None:
    assert version_asked(4, [(2,)]) == 2
    assert version_asked(4, [(5,)]) == 5
    for rows in ([], [(2,), (2,)], [(None,)], [("2",)], [(2.0,)], [(0,)], [(2, 2)]):
        assert version_asked(4, rows) == 4


def test_a_view_and_a_copy_while_the_file_is_upgraded(path: Path, tmp_path: Path) -> None:
    view = JournalView(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        # A -wal beside it, as beside a writer.
        db.execute("BEGIN IMMEDIATE")
        grow(db)
        assert len(view.candles(PAIR, "1m", TimeRange(0, 2**62))) == 1
        old = back_up(KIND, path, tmp_path / "old.db", lambda *_: None)
        db.execute("COMMIT")
        assert len(view.candles(PAIR, "1m", TimeRange(0, 2**62))) == 1
        new = back_up(KIND, path, tmp_path / "new.db", lambda *_: None)
    assert (old.schema_version, new.schema_version) == (KIND.version, VERSION)


def test_half_an_upgrade_read_from_an_immutable_file_is_no_refusal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(path)
    with contextlib.closing(sqlite3.connect(path)) as db:

        def half(*arguments: Any) -> int:
            monkeypatch.undo()
            # A writer opens the file while it is read as immutable.
            db.execute("SELECT count(*) FROM meta").fetchone()
            raise JournalNewerError("half of it")

        monkeypatch.setattr("marketfeed.journal.view.recognise", half)
        assert [entry.pair for entry in JournalView(path).catalog()] == [PAIR]
        assert path.with_name("journal.db-wal").exists()


def test_a_copy_says_the_version_that_it_has(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(kind: Any, source: Path) -> Any:
        found = inspect(kind, source)
        upgrade(source)
        return found

    monkeypatch.setattr("marketfeed.storage.backup.inspect", looked)
    assert back_up(KIND, path, tmp_path / "copy.db", lambda *_: None).schema_version == VERSION


def test_a_ledgers_own_version_counts(tmp_path: Path, path: Path) -> None:
    """A journal's version has nothing to do with a ledger's: each kind has its own number."""
    upgrade(path)
    ledger = LEDGER._replace(application_id=KIND.application_id)
    with pytest.raises(JournalNewerError, match="takes version 3, this one is version 2"):
        inspect(ledger, path)
