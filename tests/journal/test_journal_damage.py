"""Damage that the check at opening does not come to: set aside at a start, replaced while running.

The check has some seconds, a journal of a year's candles takes longer; here it is switched off.
"""

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.ingest.intake import Intake
from marketfeed.journal import marks
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.journal.retention import expired
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    Life,
    MarkPrice,
    RejectedFrame,
)
from marketfeed.schema import HOUR_MS, MINUTE_MS, floor_to
from tests.shipped_ranges import of_all
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
T0: Final = 1_790_000_160_000
MARK_MS: Final = floor_to(T0, HOUR_MS)
MEETING: Final[dict[str, Callable[[Journal], object]]] = {
    "pair": Journal.newest_candles,
    "sequence": lambda journal: journal.write(batch(1)),
    "candle": lambda journal: journal.candles(PAIR, "1m", T0, T0 + MINUTE_MS),
    "forming": lambda journal: journal.write(batch(2)),
    "mark_price": lambda journal: expired(journal, {"mark_price": 1}),
    "funding_rate": lambda journal: expired(journal, {"funding_rate": 1}),
    "funding_settled": Journal.newest_settled,
    "catalog": Journal.catalog,
    "gap": Journal.open_gaps,
    "dead_letter": Journal.counts,
    "document": lambda journal: journal.load_document("a"),
    "shipped": lambda journal: journal.shipped("a"),
    "shipping": lambda journal: journal.forget_if_demanded("a"),
    "meta": lambda journal: journal.db.execute("SELECT * FROM meta").fetchall(),
    "refused_line": Journal.counts,
    "life": Journal.lives,
    "coverage": lambda journal: journal.release([(PAIR, "1m")]),
    "quote_asked": Journal.quotes_asked,
    "mark_1h": Journal.newest_marks,
    "series_coverage": lambda journal: journal.release([(PAIR, "mark_1h")]),
    "series_deleted": lambda journal: journal.db.execute(marks.ALL_COVERED),
}
"""By table: a call of the collector's that reads it (`meta` is read at a start and by readers)."""


def candle(number: int, *, closed: bool = True) -> Candle:
    open_ms = T0 + number * MINUTE_MS
    return Candle(
        PAIR, "1m", open_ms, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, closed, open_ms + MINUTE_MS
    )


def batch(number: int) -> Batch:
    """Something for every table of records."""
    at_ms = T0 + number * MINUTE_MS
    made = Batch()
    made.extend(
        [
            candle(number),
            candle(number + 1, closed=False),
            MarkPrice(PAIR, at_ms, 1.0, 1.0),
            FundingRate(PAIR, at_ms, 0.1, at_ms + MINUTE_MS),
            FundingSettled(PAIR, at_ms, 0.1, None),
            Gap("candle_1m", PAIR, at_ms, at_ms + MINUTE_MS, "found", "did not come"),
            CatalogEntry(PAIR, "BTCUSDT", ("1m",), T0, None, None, at_ms),
            RejectedFrame(at_ms, "why", b"frame"),
        ]
    )
    made.marks.append(msgspec.structs.replace(candle(0), timeframe="mark_1h", open_time_ms=MARK_MS))
    return made


def fill(journal: Journal) -> None:
    journal.write(batch(0))
    journal.promise(
        [
            Promise(PAIR, "1m", T0 + MINUTE_MS, MINUTE_MS),
            Promise(PAIR, "mark_1h", T0 + 2 * HOUR_MS, 2 * HOUR_MS),
        ]
    )
    journal.fill_quotes([], {(PAIR, "1m"): T0})
    journal.save_lives({PAIR: [Life(PAIR, "BTCUSDT", T0, None, "onboardDate")]})
    journal.save_document("a", b"text", T0)
    journal.note_shipped("a", of_all([(1, 2)]))
    journal.put_aside("a", [("line", "answer")], T0)


def overwrite(path: Path, pages: list[int]) -> None:
    """Put what no page begins with at the beginning of these (from 1 on)."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(18)[16:18], "big")
        for page in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * 100)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def put_back(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def root_of(path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
    return int(page)


def to_the_disk(journal: Journal) -> None:
    """Have everything in the file alone: nothing in the WAL, nothing in memory."""
    journal.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    forget(journal)


def forget(journal: Journal) -> None:
    journal.db.execute("PRAGMA shrink_memory").fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("journal.db.corrupt-????????T??????.??????Z"))


def test_every_table_is_among_these(path: Path) -> None:
    Journal.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
    assert {name for (name,) in names} == set(MEETING)


@pytest.mark.parametrize("table", MEETING)
def test_a_start_sets_a_file_aside_whatever_of_it_is_damaged(path: Path, table: str) -> None:
    with Journal.open(path) as journal:
        fill(journal)
    overwrite(path, [root_of(path, table)])

    async def start() -> Path | None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
            await writer.call(fill)
            assert writer.generation == 1
            return writer.set_aside

    assert asyncio.run(start()) == set_aside(path)[0]
    # Once: the fresh one is whole, and its lock was given back.
    assert asyncio.run(start()) is None
    assert len(set_aside(path)) == 1


@pytest.mark.parametrize("table", MEETING)
def test_what_a_call_meets_while_running_replaces_the_file(path: Path, table: str) -> None:
    async def run() -> None:
        async with (
            JournalWriter(path, again_after_s=(0.0, 0.0)) as writer,
            collecting(writer) as intake,
        ):
            await writer.call(fill)
            await writer.save_document("kept", b"text", T0)
            await writer.call(to_the_disk)
            overwrite(path, [root_of(path, table)])
            await writer.call(forget)
            with pytest.raises(JournalWriteError, match=r"malformed|not a database") as caught:
                await writer.call(MEETING[table])
            assert caught.value.damaged
            # Nothing need come for that, and what does is stored.
            await until(lambda: writer.generation == 2)
            intake.add(candle(5))
            await until(lambda: not intake.pending)
            assert writer.set_aside == set_aside(path)[0]
            assert await writer.call(Journal.newest_candles) == {
                (PAIR, "1m"): candle(5).open_time_ms
            }
            assert await writer.load_document("kept") == (b"text", T0)

    asyncio.run(run())
    assert len(set_aside(path)) == 1


def test_an_old_page_that_a_start_does_not_come_to(path: Path) -> None:
    """What three calls could not read is asked of the file that is opened again, too."""

    async def run() -> None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer, collecting(writer):
            many = Batch()
            many.candles = [candle(number) for number in range(5_000)]
            await writer.call(lambda journal: journal.write(many))
            await writer.call(to_the_disk)
            overwrite(path, pages_with(path, T0 + 100 * MINUTE_MS))
            await writer.call(forget)
            asked = 0

            def ask(journal: Journal) -> list[Candle]:
                nonlocal asked
                asked += 1
                return journal.candles(PAIR, "1m", T0, T0 + 1_000 * MINUTE_MS)

            with pytest.raises(JournalWriteError, match="malformed"):
                await writer.call(ask)
            assert asked == 3
            await until(lambda: writer.generation == 2)
            assert asked == 6
            assert len(set_aside(path)) == 1
            # It tells of the file that is gone.
            await until(lambda: writer.failed_reads.ago_s == math.inf)

    asyncio.run(run())


def test_what_can_be_read_when_asked_again_is_answered(path: Path) -> None:
    async def run() -> None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer, collecting(writer):
            await writer.call(fill)
            await writer.call(to_the_disk)
            whole = content_of(path)
            asked = 0

            def ask(journal: Journal) -> dict[tuple[str, str], int]:
                nonlocal asked
                asked += 1
                if asked == 3:
                    put_back(path, whole)
                return journal.newest_candles()

            overwrite(path, [root_of(path, "candle")])
            await writer.call(forget)
            assert await writer.call(ask) == {(PAIR, "1m"): T0}
            assert (asked, writer.generation) == (3, 1)
            assert "malformed" in writer.failed_reads.why
            assert writer.failed_reads.ago_s < math.inf

    asyncio.run(run())
    assert set_aside(path) == []


def test_what_was_met_of_another_file_is_over_with_it(path: Path, tmp_path: Path) -> None:
    """A file that was taken away, while another one came to stand there, as a restored backup does."""

    async def run() -> None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
            await writer.call(fill)
            take_away(path, tmp_path)
            with pytest.raises(JournalWriteError, match="another file stands in its place"):
                await writer.require_whole()
            assert writer.failed_reads.ago_s < math.inf
            await writer.replace()
            assert writer.failed_reads.ago_s == math.inf

    asyncio.run(run())
    assert set_aside(path) == []


def take_away(path: Path, directory: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{path}{suffix}").rename(directory / f"away{suffix}")
    Journal.open(path).close()


def test_a_disk_that_takes_no_fresh_one_keeps_the_old_one(path: Path) -> None:
    with Journal.open(path) as journal:
        fill(journal)
    overwrite(path, [root_of(path, "candle")])
    # As a disk would that gives nothing any more: that of a file is not the file's fault.
    Path(f"{path}.probe").mkdir()
    for _ in range(2):
        with pytest.raises(JournalError, match="cannot be read from its disk"):
            Journal.open(path, again_after_s=(0.0, 0.0), look=Journal.newest_candles)
    assert set_aside(path) == []
    Path(f"{path}.probe").rmdir()
    with Journal.open(path, again_after_s=(0.0, 0.0), look=Journal.newest_candles) as journal:
        assert journal.set_aside == set_aside(path)[0]


def test_a_replacement_that_fails_is_tried_again_with_the_same_file(path: Path) -> None:
    async def run() -> None:
        async with JournalWriter(path) as writer:
            # Refused like a write to a full disk: that is no damage.
            writer._documents["bad"] = (b"", None)  # type: ignore[assignment]
            for _ in range(3):
                with pytest.raises(JournalWriteError, match="NOT NULL"):
                    await writer.replace()
            del writer._documents["bad"]
            await writer.replace()
            assert writer.set_aside is None

    asyncio.run(run())
    assert set_aside(path) == []


def pages_with(path: Path, open_ms: int) -> list[int]:
    """The pages that hold this number."""
    content = path.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    number = open_ms.to_bytes(6, "big")
    return [
        start // size + 1
        for start in range(0, len(content), size)
        if number in content[start : start + size]
    ]


def test_a_document_that_is_spoilt_is_none(path: Path) -> None:
    """SQLite does not look at what a page holds: only that it is one."""
    with Journal.open(path) as journal:
        fill(journal)
        journal.db.execute("UPDATE document SET body = ?", (b"no such body",))
    with Journal.open(path) as journal:
        assert journal.load_document("a") is None
        journal.save_document("a", b"anew", T0)
        assert journal.load_document("a") == (b"anew", T0)


@pytest.mark.parametrize(
    "spoil",
    ["DELETE FROM sequence", "UPDATE pair SET pair = CAST(X'FF41' AS TEXT)"],
    ids=["no number", "no text"],
)
def test_rows_that_cannot_be_are_damage(path: Path, spoil: str) -> None:
    with Journal.open(path) as journal:
        fill(journal)
        journal.db.execute(spoil)

    async def start() -> Path | None:
        async with JournalWriter(path) as writer:
            return writer.set_aside

    assert asyncio.run(start()) is not None
    assert asyncio.run(start()) is None


def test_refused_lines_that_cannot_be_read_are_an_error_of_ours(path: Path) -> None:
    with Journal.open(path) as journal:
        fill(journal)
    overwrite(path, [root_of(path, "refused_line")])
    with RefusedLines(path) as refused:
        for ask in (refused.read, lambda: refused.drop([1])):
            with pytest.raises(JournalError, match="malformed"):
                ask()


@contextlib.asynccontextmanager
async def collecting(writer: JournalWriter) -> AsyncIterator[Intake]:
    """An intake that commits through `writer`, and replaces its file, as in a collector."""
    clock = ExchangeClock()
    clock.set_server_time(T0, 0.0)
    intake = Intake(
        writer, FrameDecoder({}), CollectorCounters(), clock, MINUTE_MS, lambda: None, 0.01
    )
    writer.on_damage = intake.on_damage
    committing = asyncio.create_task(intake.run())
    try:
        yield intake
    finally:
        intake.end()
        await committing


def test_what_is_meant_for_one_file_is_not_written_into_its_successor(path: Path) -> None:
    async def run() -> None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
            loop = asyncio.get_running_loop()
            replaced: list[asyncio.Task[None]] = []

            def save(journal: Journal) -> None:
                if not replaced:
                    # A read of it fails; before it is run again, the file is replaced.
                    loop.call_soon_threadsafe(
                        lambda: replaced.append(loop.create_task(writer.replace()))
                    )
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
                    raise error
                journal.save_document("said", b"of the first", 0)

            with pytest.raises(JournalError, match="replaced meanwhile"):
                await writer.call(save, writer.generation)
            await replaced[0]
            assert await writer.load_document("said") is None
            await writer.call(save, writer.generation)
            assert await writer.load_document("said") is not None

    asyncio.run(run())
