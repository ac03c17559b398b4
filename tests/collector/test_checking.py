"""The check that runs behind a collector: what it finds is shown, and when it begins again."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.collector.checking import EVERY_MS, JournalCheck
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.slices import SlicedCheck
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.schema import MINUTE_MS
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
T0: Final = 1_790_000_160_000


class _Clock(ExchangeClock):
    """One whose time a test sets."""

    ms = T0

    def now_ms(self) -> int:
        return self.ms


@contextlib.asynccontextmanager
async def checking(path: Path, clock: _Clock) -> AsyncIterator[tuple[JournalWriter, JournalCheck]]:
    async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
        check = JournalCheck(
            writer, clock, begin_after_s=0.0, idle=0.0, again_after_s=(0.0, 0.0), look_every_s=0.01
        )
        running = asyncio.create_task(check.run())
        try:
            yield writer, check
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def make(path: Path) -> None:
    with Journal.open(path) as journal:
        batch = Batch()
        batch.candles = [
            Candle(PAIR, "1m", T0 + n * MINUTE_MS, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, True, T0)
            for n in range(2_000)
        ]
        journal.write(batch)


def spoil(path: Path) -> None:
    """A leaf in the middle of the candles."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        leaves = db.execute(
            "SELECT pageno FROM dbstat WHERE name = 'candle' AND pagetype = 'leaf' ORDER BY path"
        ).fetchall()
    with path.open("r+b") as file:
        file.seek((leaves[len(leaves) // 2][0] - 1) * 4096)
        file.write(b"\xff" * 100)


def test_a_check_is_made_once_a_week(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.db", _Clock()
    make(path)

    async def once(ended_ms: int) -> None:
        async with checking(path, clock) as (writer, check):
            await until(
                lambda: (check.report().ended_ms, check.report().state) == (ended_ms, "waiting")
            )
            assert check.report().unreadable == []
            assert writer.failed_reads.why == ""

    asyncio.run(once(T0))
    clock.ms += EVERY_MS - 1
    # It is not made again: what is known of it is of the first.
    asyncio.run(once(T0))
    clock.ms += 1
    asyncio.run(once(clock.ms))
    # A clock that was ahead does not put it off for ever.
    clock.ms = T0
    asyncio.run(once(T0))


def test_what_it_finds_is_shown_until_it_can_be_read(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.db", _Clock()
    make(path)
    whole = Path(shutil.copyfile(path, tmp_path / "whole.db"))
    spoil(path)

    async def run() -> None:
        async with checking(path, clock) as (writer, check):
            await until(lambda: check.report().ended_ms)
            (found,) = check.report().unreadable
            assert found.startswith("BTC/USDT:USDT 1m from 2026-")
            # The file goes on.
            assert writer.generation == 1
            await writer.call(lambda journal: journal.write(Batch()))

    asyncio.run(run())
    assert list(tmp_path.glob("*.corrupt-*")) == []

    async def later() -> None:
        async with checking(path, clock) as (_, check):
            await until(lambda: check.report().unreadable)
            shutil.copyfile(whole, path)
            await until(lambda: not check.report().unreadable)

    # As after a restart. A disk that gives the page again: all but the document is as it was.
    with contextlib.closing(sqlite3.connect(path)) as db:
        document = db.execute("SELECT name, saved, body FROM document").fetchall()
    with contextlib.closing(sqlite3.connect(whole)) as db, db:
        db.executemany("INSERT INTO document (name, saved, body) VALUES (?, ?, ?)", document)
    asyncio.run(later())


def test_a_fresh_journal_has_not_been_checked(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.db", _Clock()
    make(path)

    async def run() -> None:
        async with checking(path, clock) as (writer, check):
            await until(lambda: check.report().ended_ms == T0)
            clock.ms = T0 + MINUTE_MS
            writer._unanswered = _fails
            await writer.replace()
            assert writer.set_aside is not None
            await until(lambda: check.report().ended_ms == T0 + MINUTE_MS)

    asyncio.run(run())


def _fails(journal: Journal) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


def test_what_nobody_expects_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.db", _Clock()
    make(path)

    class Odd(SlicedCheck):
        def step(self) -> bool:
            raise ValueError("what a bad page gives")

    async def scenario() -> None:
        async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
            check = JournalCheck(
                *(writer, clock),
                begin_after_s=0.0,
                idle=0.0,
                look_every_s=0.01,
                make=lambda: Odd(path),
            )
            running = asyncio.create_task(check.run())
            await until(lambda: check.report().unreadable or running.done())
            assert not running.done()
            assert "what a bad page gives" in check.report().unreadable[0]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
