"""What bad bytes and a disk that errs make of a takeover: no wrong row, no row lost unnamed, no end of it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from marketfeed.collector.aside_advice import advice
from marketfeed.history import aside_fill
from marketfeed.history.aside_fill import AsideFill
from marketfeed.history.aside_report import AsideReport
from marketfeed.journal import aside
from marketfeed.journal.aside import AsideJournal, NothingReadableError
from marketfeed.journal.aside_rows import is_name, is_row
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import FundingSettled, Gap
from marketfeed.schema import DAY_MS, HOUR_MS, SECOND_MS
from marketfeed.storage.damage import put_aside
from tests.history.test_aside_fill import (
    DROPPED,
    END_MS,
    PAIR,
    T0,
    fill,
    rows,
    set_aside,
    taking_over,
)
from tests.waiting import until

MARK: Final = (T0, 7, 1.0, 2.0)


def hurt(old: Path, statement: str) -> None:
    """Values that no writer has written, as a bad byte gives."""
    with contextlib.closing(sqlite3.connect(old)) as db, db:
        assert db.execute(statement).rowcount > 0


def drained(path: Path) -> AsideReport:
    """Take over all there is, and say how it stands then."""

    async def run() -> AsideReport:
        async with taking_over(path) as (_, filling):
            await until(lambda: filling.report() and filling.report()[0].state == "drained")
            return filling.report()[0]

    return asyncio.run(run())


def refused(code: int, words: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


class Db:
    """A connection of which some questions fail, as on a disk that errs."""

    def __init__(self, db: sqlite3.Connection, fails: Callable[[str], None]) -> None:
        self._db = db
        self._fails = fails

    def execute(self, text: str, *bound: Any) -> sqlite3.Cursor:
        self._fails(text)
        return self._db.execute(text, *bound)

    def close(self) -> None:
        self._db.close()


def failing(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], None], opens: Callable[[bool], None]
) -> None:
    real = aside.connect_read_only

    def connect(path: Path, *, immutable: bool, any_thread: bool) -> Db:
        opens(immutable)
        return Db(real(path, immutable=immutable, any_thread=any_thread), fails)

    monkeypatch.setattr(aside, "connect_read_only", connect)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("mark_price", (END_MS, *MARK[1:])), ("mark_price", (T0 | 1 << 41, *MARK[1:])),
        ("mark_price", (T0 + 1, *MARK[1:])), ("mark_price", ("x", *MARK[1:])),
        ("mark_price", (T0, SECOND_MS, 1.0, 2.0)), ("mark_price", (T0, None, 1.0, 2.0)),
        ("mark_price", (T0, -1, 1.0, 2.0)), ("mark_price", (T0, 7, 1.0, float("nan"))),
        ("funding_rate", (T0, 7, 0.1, None, None)), ("funding_rate", (T0, 7, 0.1, b"", T0)),
        ("funding_settled", (T0, None, 0.1, None)), ("funding_settled", (T0, "Regular", "", None)),
        ("gap", (T0, T0 - 1, 0, "why", "healed")), ("gap", (T0, None, 0, None, "healed")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_no_row(table: str, row: tuple[object, ...]) -> None:
    assert not is_row(table, row, END_MS)
    assert is_row("mark_price", MARK, END_MS)
    assert is_row("funding_rate", (T0, 7, 0.1, None, T0 + 1), END_MS)
    assert is_row("funding_settled", (T0, "Regular", 0.1, None), END_MS)
    assert is_row("gap", (T0 + 1, None, 0, "why", "unresolvable"), END_MS)


def test_a_name_is_vouched_for() -> None:
    assert is_name(PAIR, {PAIR}, [])
    assert is_name(PAIR, (), ["BTCUSDT"])
    assert not is_name("BTD/USDT:USDT", {PAIR}, ["BTCUSDT"])
    assert not is_name("no pair", {"no pair"}, [])


@pytest.mark.parametrize(
    ("table", "column", "value", "lost"),
    [
        ("mark_price", "time", "time | (1 << 41)", "mark_price"),
        ("mark_price", "time", "'x'", "mark_price"),
        ("candle", "open_time", "''", "1m"),
        ("candle", "open_time", "x'01'", "1m"),
        ("candle", "open_time", "open_time + 1", "1m"),
    ],
)
def test_a_bad_value_costs_its_own_row_and_ends_nothing(
    tmp_path: Path, table: str, column: str, value: str, lost: str
) -> None:
    path = tmp_path / "journal.db"
    old = set_aside(path)
    newest = f"(SELECT max({column}) FROM {table})"  # noqa: S608
    hurt(old, f"UPDATE {table} SET {column} = {value} WHERE {column} = {newest}")  # noqa: S608
    before = rows(old)
    report = drained(path)
    assert report.lost == len(report.lost_places) > 0
    assert lost in report.lost_places[0]
    after = rows(path)
    for name in ("candle", "mark_price", "funding_rate", "funding_settled", "mark_1h"):
        assert len(before[name] - after[name]) == (name == table), name
        assert after[name] <= before[name]
    text = advice([str(old)], [report])
    assert report.lost_places[0] in text
    assert "only if that may be lost" in text


def test_what_was_lost_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    hurt(set_aside(path), "UPDATE pair SET pair = 'OLE/USDT:USDT' WHERE id = 2")
    first = drained(path)
    assert first.lost_places == ["all of the pair that is named 'OLE/USDT:USDT'"]
    second = drained(path)
    assert (second.lost, second.lost_places) == (1, first.lost_places)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT pair FROM pair").fetchall() == [(PAIR,)]


def test_a_row_that_the_table_refuses_is_lost_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    old = set_aside(path)
    with contextlib.closing(sqlite3.connect(old)) as db:
        db.execute("PRAGMA writable_schema = ON")
        change = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'mark_price'"
        db.execute(change, ("offset_ms INTEGER NOT NULL", "offset_ms INTEGER"))
        db.commit()
    hurt(
        old,
        "UPDATE mark_price SET offset_ms = NULL WHERE time = (SELECT max(time) FROM mark_price)",
    )
    before = rows(old)
    # As of a row that only the table knows to be wrong.
    monkeypatch.setattr(aside, "is_row", lambda *_: True)
    report = drained(path)
    assert report.lost == 1
    assert "NOT NULL" in report.lost_places[0]
    assert len(before["mark_price"] - rows(path)["mark_price"]) == 1


def test_a_disk_that_is_away_for_a_moment_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    before = rows(set_aside(path))
    for failures in (2, 60):
        # Shorter than three readings, and longer: what was lost then is read once more.
        left = failures

        def fails(text: str) -> None:
            nonlocal left
            if "FROM mark_price" in text and left:
                left -= 1
                raise refused(sqlite3.SQLITE_IOERR_READ, "disk I/O error")

        with monkeypatch.context() as patch:
            failing(patch, fails, lambda _: None)
            report = drained(path)
        assert (report.lost, left) == (0, 0)
        after = rows(path)
        assert all(before[table] <= after[table] for table in before if table != "gap")
        for file in tmp_path.glob("journal.db*"):
            if "corrupt" not in file.name:
                file.unlink()


def test_a_wal_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        fill(journal)
    old = put_aside(path)
    Path(f"{old}-wal").touch()

    def opens(immutable: bool) -> None:
        if not immutable:
            raise refused(sqlite3.SQLITE_IOERR_READ, "disk I/O error")

    failing(monkeypatch, lambda _: None, opens)
    report = drained(path)
    assert report.lost_places[0] == "its -wal"
    assert "its -wal" in advice([str(old)], [report])


def test_a_refusal_waits_and_a_wal_is_not_left_out_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    before = rows(set_aside(path))
    monkeypatch.setattr(aside_fill, "RETRY_S", 0.01)
    left = 3

    def opens(immutable: bool) -> None:
        nonlocal left
        if left:
            left -= 1
            raise refused(sqlite3.SQLITE_CANTOPEN, "unable to open database file")

    failing(monkeypatch, lambda _: None, opens)
    report = drained(path)
    assert (report.lost, report.trouble, left) == (0, "", 0)
    assert before["mark_price"] <= rows(path)["mark_price"]


def test_one_that_is_unreadable_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    old = set_aside(path)
    monkeypatch.setattr(aside_fill, "UNREADABLE_S", 0.0)
    monkeypatch.setattr(aside_fill, "LOOK_EVERY_S", 0.01)
    texts: list[str] = []
    is_away = True

    def opens(immutable: bool) -> None:
        if is_away:
            raise refused(sqlite3.SQLITE_IOERR_READ, "disk I/O error")

    failing(monkeypatch, lambda _: None, opens)

    async def run() -> None:
        nonlocal is_away
        async with taking_over(path) as (_, filling):
            await until(lambda: filling.report() and filling.report()[0].state == "unreadable")
            texts.append(advice([str(old)], filling.report()))
            is_away = False
            await until(lambda: filling.report()[0].state == "drained")
            assert filling.report()[0].lost == 0

    asyncio.run(run())
    assert "unreadable" in texts[0]
    assert "disk I/O error" in texts[0]
    is_away = True
    with pytest.raises(NothingReadableError), AsideJournal(old, again_after_s=(0.0, 0.0)):
        pass


def test_what_nobody_expects_is_shown_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    set_aside(path)

    def odd(*_: object) -> None:
        raise RuntimeError("what a bad page gives")

    monkeypatch.setattr(AsideJournal, "_walk", odd)

    async def run() -> None:
        async with JournalWriter(path) as writer:
            filling = AsideFill(writer, 1 << 40, lambda: END_MS, lambda: True)
            running = asyncio.create_task(filling.run())
            await until(
                lambda: running.done() or (filling.report() and filling.report()[0].trouble)
            )
            assert not running.done()
            assert filling.report()[0].state == "unreadable"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_a_retry_goes_on_where_the_attempt_before_it_came(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    set_aside(path)
    progress = aside.Progress()
    with AsideJournal(path_of(path), progress) as first:
        pages = first.rows("mark_price", END_MS)
        taken = [next(pages)[1], next(pages)[1]]
        # The second was not stored.
        pages.close()
    with AsideJournal(path_of(path), progress) as second:
        again = [rows for _, rows in second.rows("mark_price", END_MS)]
    assert again[0] == taken[1]
    assert sum(map(len, [taken[0], *again])) == 2_500


def path_of(path: Path) -> Path:
    (found,) = (
        file for file in path.parent.glob("*.corrupt-*") if file.suffix not in ("-wal", "-shm")
        and not file.name.endswith(("-wal", "-shm"))
    )  # fmt: skip
    return found


@pytest.mark.parametrize("kind", ["candle_1m", "rejected"])
def test_a_bad_page_of_gaps_costs_its_own_gaps(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        batch = Batch()
        for n in range(2_000):
            at_ms = T0 + n * 60_000
            batch.add(Gap(kind, PAIR, at_ms, at_ms + 1, "healed", "a reason"))
            batch.add(Gap("candle_5m", DROPPED, at_ms, at_ms + 1, "healed", "a reason"))
        journal.write(batch)
    before = rows(path)["gap"]
    with contextlib.closing(sqlite3.connect(path)) as db:
        leaves = db.execute(
            "SELECT pageno, ncell FROM dbstat WHERE name = 'gap' AND pagetype = 'leaf' ORDER BY path"
        ).fetchall()
    number, cells = leaves[len(leaves) // 4]
    with path.open("r+b") as file:
        file.seek((number - 1) * 4096)
        file.write(b"\xff" * 100)
    old = put_aside(path)
    found = set()
    with AsideJournal(old, again_after_s=()) as reading:
        for pair, page in reading.rows("gap", T0 + 30 * DAY_MS):
            found |= {(pair, row[5], *row[:2], row[4], row[3]) for row in page}
        assert reading.lost > 0
    assert found <= before
    assert len(before - found) <= cells + 2


def test_two_kinds_of_one_time_are_both_taken_at_the_end_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        batch = Batch()
        for n in range(7):
            batch.add(FundingSettled(PAIR, T0 + n * HOUR_MS, 0.1, 1.0))
            batch.add(FundingSettled(PAIR, T0 + n * HOUR_MS, 0.2, 1.0, "Special"))
        journal.write(batch)
    monkeypatch.setattr(aside, "PAGE_ROWS", 1)
    with AsideJournal(put_aside(path)) as reading:
        found = [row for _, page in reading.rows("funding_settled", END_MS) for row in page]
    assert len(found) == len(set(found)) == 14
