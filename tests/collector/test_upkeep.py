"""What a collector does beside its line: retention."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import uvloop

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.upkeep import Upkeep
from marketfeed.errors import JournalWriteError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import DeleteRange
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import MarkPrice
from marketfeed.settings.model import JournalSettings
from tests.waiting import until

T0 = 1_790_000_001_000


def test_before_the_disk_budget_takes_a_row_its_gap_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    gaps_before: list[list[tuple[str, int]]] = []

    def fail(self: Journal, delete_range: DeleteRange, below_seq: int | None) -> int:
        if delete_range.oldest_ms is None:
            return 0  # by age: there is nothing
        # As a kill or a full disk would: what has been stored by now is all there is.
        gaps_before.append(self.db.execute("SELECT kind, start FROM gap").fetchall())
        raise JournalWriteError("the disk is full", damaged=False)

    async def run() -> None:
        settings = JournalSettings(path=path).model_copy(update={"max_bytes": 100_000})
        clock = ExchangeClock()
        async with JournalWriter(path) as writer:
            batch = Batch()
            batch.extend(MarkPrice("A/USDT:USDT", T0 + n * 3_000, 1.0, 1.0) for n in range(5_000))
            await writer.call(lambda journal: journal.write(batch))
            upkeep = Upkeep(settings, clock, writer, Turns(Budget(1_200), clock))
            monkeypatch.setattr(Journal, "delete", fail)
            keeping = asyncio.create_task(upkeep.keep_journal(None))
            await until(lambda: gaps_before)
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    uvloop.run(run())
    assert gaps_before == [[("disk_budget_mark_price", T0)]]
