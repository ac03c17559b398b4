"""A durable file's thread runs one call after another, and reports its file's state."""

import asyncio
import threading
from pathlib import Path

import pytest

from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import MarkPrice
from marketfeed.storage.file_thread import FileThread

PAIR = "BTC/USDT:USDT"
T0 = 1_791_360_000_000


class _Thread(FileThread[Journal]):
    def __init__(self, path: Path) -> None:
        super().__init__(KIND, path)

    def _open(self) -> None:
        self._file = Journal.open(self.path)
        self.generation += 1
        self._look_beside()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_calls_run_in_their_order_on_one_thread_that_is_not_the_loops(path: Path) -> None:
    async def run() -> None:
        ran: list[tuple[int, int]] = []
        async with _Thread(path) as thread:
            await asyncio.gather(
                *(
                    thread.call(lambda _, n=number: ran.append((n, threading.get_ident())))
                    for number in range(20)
                )
            )
        assert [number for number, _ in ran] == list(range(20))
        (ident,) = {ident for _, ident in ran}
        assert ident != threading.get_ident()

    asyncio.run(run())


def test_what_is_stored_is_counted_and_what_sqlite_refuses_has_one_error(path: Path) -> None:
    async def run() -> None:
        batch = Batch()
        batch.add(MarkPrice(PAIR, T0, 1.0, 1.0))
        async with _Thread(path) as thread:
            assert (thread.generation, thread.next_seq) == (1, 0)
            await thread.call(lambda journal: journal.write(batch))
            assert thread.next_seq == 2
            with pytest.raises(JournalWriteError, match=r"journal .*journal\.db: no such table: x"):
                await thread.call(lambda journal: journal.db.execute("SELECT * FROM x"))
            assert thread.next_seq == 2

    asyncio.run(run())


def test_before_and_after_it_is_open_a_call_is_refused(path: Path) -> None:
    async def run() -> None:
        thread = _Thread(path)
        with pytest.raises(JournalError, match="not open"):
            await thread.call(Journal.counts)
        await thread.__aenter__()
        assert (await thread.call(Journal.counts))["rejected_frames"] == 0
        await thread.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await thread.call(Journal.counts)

    asyncio.run(run())


def test_damaged_files_beside_are_known_from_the_start_and_when_looked_for(path: Path) -> None:
    old = path.with_name("journal.db.corrupt-20260101T000000.000000Z")
    old.touch()

    async def run() -> None:
        async with _Thread(path) as thread:
            assert thread.beside == (str(old),)
            old.unlink()
            await thread.look_beside()
            assert not thread.beside

    asyncio.run(run())
