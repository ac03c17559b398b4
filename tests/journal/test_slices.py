"""The sliced check: every page of a journal is in some slice, what cannot be read is named by its range."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Final

import pytest

from marketfeed.errors import JournalWriteError
from marketfeed.journal import slices
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.slices import Position, SlicedCheck, Unreadable
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    MarkPrice,
    RejectedFrame,
)
from marketfeed.schema import HOUR_MS, MINUTE_MS, TIMEFRAMES_MS, floor_to

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT")
T0: Final = floor_to(1_790_000_160_000, HOUR_MS)
CANDLES: Final = 400


def candle(pair: str, timeframe: str, number: int) -> Candle:
    at_ms = T0 + number * (HOUR_MS if timeframe == "mark_1h" else TIMEFRAMES_MS[timeframe])
    return Candle(
        *(pair, timeframe, at_ms),
        *(1.0 + number, 1.5 + number, 0.5, 1.25 + number, 7.0, 8.0, 3.0, 4, True, at_ms),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of a few hundred pages, with rows in every table of records."""
    path = tmp_path_factory.mktemp("whole") / "journal.db"
    with Journal.open(path) as journal:
        for pair in PAIRS:
            batch = Batch()
            batch.candles = [candle(pair, "1m", number) for number in range(CANDLES)]
            batch.candles += [candle(pair, "1h", number) for number in range(CANDLES)]
            batch.marks = [candle(pair, "mark_1h", number) for number in range(CANDLES)]
            batch.extend(MarkPrice(pair, T0 + n * 1_000, 1.0, 1.0) for n in range(CANDLES))
            batch.extend(
                FundingRate(pair, T0 + n * MINUTE_MS, 0.1, T0 + HOUR_MS) for n in range(CANDLES)
            )
            batch.extend(FundingSettled(pair, T0 + n * HOUR_MS, 0.1, None) for n in range(CANDLES))
            batch.extend(
                Gap("candle_1m", pair, T0 + n * MINUTE_MS, T0 + n * MINUTE_MS + 1, "healed", "r")
                for n in range(CANDLES)
            )
            batch.extend(RejectedFrame(T0, "why", b"x" * 1_000) for _ in range(50))
            batch.extend([CatalogEntry(pair, pair[:3], ("1m",), T0, None, None, T0)])
            journal.write(batch)
        journal.save_document("a", b"text", T0)
    return path


def checked(path: Path) -> list[Unreadable]:
    """Check a file to its end, and take what cannot be read as found at once."""
    check = SlicedCheck(path)
    try:
        while True:
            try:
                if not check.step():
                    return check.unreadable
            except JournalWriteError as error:
                check.close()
                check.skip(error)
    finally:
        check.close()


def overwrite(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(18)[16:18], "big")
        file.seek((page - 1) * size)
        file.write(b"\xff" * 100)


def test_a_whole_journal_is_read_to_its_end(whole: Path) -> None:
    assert checked(whole) == []
    check = SlicedCheck(whole)
    while check.step():
        pass
    assert check.fraction == 1.0
    check.close()


def test_every_page_of_a_table_or_an_index_is_read(whole: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(whole)) as db:
        try:
            pages = db.execute("SELECT name, pageno, pagetype FROM dbstat").fetchall()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat")
    # Of the schema's own pages an opening knows; those of overflow hold what a row has too much.
    kept = [page for page in pages if page[0] != "sqlite_schema" and page[2] != "overflow"]
    assert len(kept) > 50
    path = tmp_path / "journal.db"
    unseen = []
    for name, number, _ in kept:
        shutil.copyfile(whole, path)
        overwrite(path, number)
        if not checked(path):
            unseen.append((name, number))
    # Nothing is read of the index by which SQLite finds a name among a few rows, and of open gaps.
    assert {name for name, _ in unseen} <= {
        "sqlite_autoindex_pair_1",
        "gap_open",
        "sqlite_sequence",
    }


def test_what_cannot_be_read_is_a_range_of_its_series(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(whole, tmp_path / "journal.db"))
    content = path.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    at_ms = T0 + CANDLES // 2 * MINUTE_MS
    found = [
        n // size + 1
        for n in range(0, len(content), size)
        if at_ms.to_bytes(6, "big") in content[n : n + size]
    ]
    # A leaf of the table: it holds the price, too.
    with contextlib.closing(sqlite3.connect(path)) as db:
        (leaf,) = (
            number
            for (number,) in db.execute(
                "SELECT pageno FROM dbstat WHERE name = 'candle' AND pagetype = 'leaf'"
            )
            if number in found and _holds(path, number, PAIRS[0], at_ms)
        )
    overwrite(path, leaf)
    (one,) = checked(path)
    assert one.label == "BTC/USDT:USDT 1m"
    assert one.until is not None
    assert one.since <= at_ms < one.until
    # Not much more than the page holds.
    assert one.until - one.since < 200 * MINUTE_MS
    assert "malformed" in one.why
    assert str(one).startswith("BTC/USDT:USDT 1m from 2026-")
    # The other rows of its series can be read on both sides.
    with contextlib.closing(sqlite3.connect(path)) as db:
        for where, bound in (("<", one.since), (">=", one.until)):
            text = f"SELECT count(*) FROM candle WHERE pair_id = 1 AND timeframe_ms = 60000 AND open_time {where} ?"  # noqa: S608, E501
            assert db.execute(text, (bound,)).fetchone()[0] > 0
    check = SlicedCheck(path)
    assert not check.reads(one)
    check.close()
    shutil.copyfile(whole, path)
    check = SlicedCheck(path)
    assert check.reads(one)
    check.close()


def _holds(path: Path, number: int, pair: str, at_ms: int) -> bool:
    """Whether a leaf holds a row: without it the row cannot be read."""
    copy = Path(shutil.copyfile(path, path.with_suffix(".copy")))
    overwrite(copy, number)
    with contextlib.closing(sqlite3.connect(copy)) as db:
        try:
            db.execute(
                """SELECT close FROM candle WHERE timeframe_ms = 60000 AND open_time = ?
                   AND pair_id = (SELECT id FROM pair WHERE pair = ?)""",
                (at_ms, pair),
            ).fetchone()
        except sqlite3.DatabaseError:
            return True
    return False


def test_a_check_goes_on_where_it_was(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_ROWS_FIRST", 100)
    first = SlicedCheck(whole)
    steps = 0
    while first.position.walk != "candle 2 1h":
        assert first.step()
        steps += 1
    first.close()
    assert 0.0 < first.fraction < 1.0
    second = SlicedCheck(whole, first.position)
    assert second.step()
    assert second.position.walk == "candle 2 1h"
    assert second.position.at > first.position.at
    assert second.fraction == first.fraction
    second.close()
    # Of a walk that is no more, as of a table that another version has dropped: from the beginning.
    third = SlicedCheck(whole, Position("nothing", 5))
    assert third.step()
    assert third.fraction < first.fraction
    third.close()


def test_a_slice_that_takes_too_long_is_made_smaller(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_S", -1.0)
    monkeypatch.setattr(slices, "_BETWEEN", 10)
    assert checked(whole) == []


@pytest.mark.parametrize("rows", [1, 150, 50_000])
def test_a_key_that_is_no_number_is_a_finding(
    whole: Path, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_ROWS_FIRST", rows)
    monkeypatch.setattr(slices, "_ROWS_MOST", rows)
    path = Path(shutil.copyfile(whole, tmp_path / "journal.db"))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE mark_price SET time = 'x' WHERE pair_id = 2 AND time = ?", (T0,))
    (one,) = checked(path)
    assert one.label == "ETH/USDT:USDT mark_price"
    assert "no whole number but str" in one.why
    check = SlicedCheck(path)
    assert not check.reads(one)
    check.close()


def test_a_small_table_is_read_in_slices_too(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock stands beyond every deadline: a slice is one row.
    monkeypatch.setattr(slices, "SLICE_S", -1.0)
    check = SlicedCheck(whole)
    places = set()
    while check.step() and check.position.walk < "document":
        if check.position.walk == "dead_letter":
            places.add(check.position.at)
    check.close()
    assert len(places) == 100 + 1
