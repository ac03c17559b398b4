"""How many gaps were healed and given up is counted in the journal: a restart does not begin anew."""

import asyncio
from pathlib import Path

from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import AGAIN_AFTER_MS, Key, Promise
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap
from marketfeed.schema import DAY_MS, MINUTE_MS

PAIR = "BTC/USDT:USDT"
KEY: Key = (PAIR, "1m")
T0 = 1_791_360_000_000


def candle(number: int) -> Candle:
    open_ms = T0 + number * MINUTE_MS
    return Candle(PAIR, "1m", open_ms, 1, 1, 1, 1, 1, 1, 1, 7, True, open_ms + MINUTE_MS)


def batch(*numbers: int) -> Batch:
    return Batch(candles=[candle(number) for number in numbers])


def test_they_are_counted_as_they_end_and_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "journal.db"
        async with JournalWriter(path) as writer:
            assert writer.ended_gaps() == {"healed": 0, "unresolvable": 0}
            promise = Promise(PAIR, "1m", T0, 0)
            await writer.call(lambda journal: journal.promise([promise]))
            # 2, 4 and 6 are missing; a lost connection is no gap of candles, nor is a first filling.
            await writer.call(lambda journal: journal.write(batch(0, 1, 3, 5, 7)))
            lost = Batch()
            lost.add(Gap("connection_feed-1", None, T0, T0 + 1, "healed", "reset"))
            await writer.call(lambda journal: journal.write(lost))
            assert writer.ended_gaps() == {"healed": 0, "unresolvable": 0}
            await writer.call(lambda journal: journal.write(batch(2, 4)))
            assert writer.ended_gaps() == {"healed": 2, "unresolvable": 0}
            for at_ms in (T0 + DAY_MS, T0 + DAY_MS + AGAIN_AFTER_MS):
                answered = Batch()
                where = TimeRange(T0 + 6 * MINUTE_MS, T0 + 7 * MINUTE_MS)
                answered.absent.append((KEY, where, at_ms))
                await writer.call(lambda journal, answered=answered: journal.write(answered))
            assert writer.ended_gaps() == {"healed": 2, "unresolvable": 1}
        async with JournalWriter(path) as writer:
            assert writer.gap_states == {}
            assert writer.ended_gaps() == {"healed": 2, "unresolvable": 1}
            # The exchange had it after all: as of the next look it is healed, and nothing else.
            await writer.call(lambda journal: journal.write(batch(6)))
            assert writer.ended_gaps()["healed"] == 3
            await writer.take_stock()
            assert writer.ended_gaps() == {"healed": 3, "unresolvable": 0}

    asyncio.run(run())


def test_a_journal_that_was_replaced_has_none(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "journal.db"
        async with JournalWriter(path) as writer:
            promise = Promise(PAIR, "1m", T0, 0)
            await writer.call(lambda journal: journal.promise([promise]))
            await writer.call(lambda journal: journal.write(batch(0, 2)))
            await writer.call(lambda journal: journal.write(batch(1)))
            assert writer.ended_gaps()["healed"] == 1
            _remove(path)
            await writer.replace()
            assert writer.ended_gaps() == {"healed": 0, "unresolvable": 0}
            # What has come since the start of the process is another question.
            assert writer.gap_states["healed"] == 1

    asyncio.run(run())


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
