"""A `-wal` begins anew beside readers that come and go; who stays is told from them; no commit stalls."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marketfeed.collector.wal_watch import WHO, WalWatch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.storage.folding import Folding

BOUND = 1_000_000
BODY = 40_000


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM document").fetchone()
        yield


@contextlib.contextmanager
def always_one_of_two(path: Path) -> Iterator[None]:
    """Short transactions, of which each ends after the next one has begun."""
    over, begun = threading.Event(), threading.Event()

    def read() -> None:
        with contextlib.ExitStack() as stack:
            both = [
                stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
                for _ in range(2)
            ]
            turn = 0
            while not over.is_set():
                one, other = both[turn % 2], both[1 - turn % 2]
                one.execute("BEGIN")
                one.execute("SELECT count(*) FROM document").fetchone()
                begun.set()
                over.wait(0.01)
                if other.in_transaction:
                    other.execute("COMMIT")
                turn += 1

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def salts(path: Path) -> bytes:
    with Path(f"{path}-wal").open("rb") as file:
        return file.read(24)[16:]


def written_ns(path: Path) -> int:
    # Not by opening it: closing it would end SQLite's locks of this process.
    return path.stat().st_mtime_ns


def put_another(path: Path) -> None:
    path.rename(path.with_name("moved.db"))
    shutil.copyfile(path.with_name("moved.db"), path.with_name("copy.db"))
    path.with_name("copy.db").rename(path)


def automatic(journal: Journal) -> int:
    return int(journal.db.execute("PRAGMA wal_autocheckpoint").fetchone()[0])


async def commit(writer: JournalWriter, count: int = 1) -> None:
    for _ in range(count):
        await writer.save_document("filler", os.urandom(BODY), 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_beside_readers_that_come_and_go_it_begins_anew(path: Path) -> None:
    async def main() -> None:
        async with JournalWriter(path) as writer:
            folding = Folding(writer, BOUND)
            assert not await folding.fold()
            with always_one_of_two(path):
                await commit(writer, 200)
                before = salts(path)
                # A busy machine may let a reader stay longer than is waited for.
                for _ in range(50):
                    assert await folding.fold()
                    await commit(writer)
                    if salts(path) != before:
                        break
                assert salts(path) != before
            assert await writer.call(automatic) == 1_000
            assert await writer.call(
                lambda journal: journal.db.execute("PRAGMA busy_timeout").fetchone()
            ) == (5_000,)

    asyncio.run(main())


def test_one_that_stays_is_known_and_no_commit_after_it_folds_all_back(path: Path) -> None:
    async def main() -> None:
        async with JournalWriter(path) as writer:
            folding = Folding(writer, BOUND)
            watch = WalWatch(path, BOUND, lambda: folding.is_held)
            await commit(writer)
            with holding(path):
                await commit(writer, 100)
                assert await folding.fold()
                assert folding.is_held
                assert watch.why() == WHO
                await commit(writer, 100)
                before = written_ns(path)
            await commit(writer, 3)
            assert written_ns(path) == before
            old = salts(path)
            assert await folding.fold()
            assert folding.is_held is False
            assert "nobody holds it any more" in watch.why()
            await commit(writer)
            assert salts(path) != old
            assert await writer.call(automatic) == 1_000

    asyncio.run(main())


def test_another_file_in_its_place_is_not_written(path: Path) -> None:
    async def main() -> None:
        async with JournalWriter(path) as writer:
            with holding(path):
                await commit(writer, 100)
            put_another(path)
            before = written_ns(path)
            await Folding(writer, BOUND).fold()
            assert written_ns(path) == before
            path.with_name("moved.db").replace(path)

    asyncio.run(main())
