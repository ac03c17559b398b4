"""Commits to a journal N times and prints each, for strace (`durability_commits.py PATH N`)."""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle


def batch(number: int) -> Batch:
    """One closed candle, another one for each number."""
    at_ms = 1_790_000_040_000 + number * 60_000
    one = Batch()
    one.add(
        Candle("BTC/USDT:USDT", "1m", at_ms, 2.0, 3.0, 1.0, 2.5, 9.0, 20.0, 4.0, 7, True, at_ms)
    )
    return one


async def commit(path: Path, commits: int) -> None:
    """Open the journal as the collector does, and write through its thread."""
    async with JournalWriter(path) as writer:
        os.write(sys.stdout.fileno(), b"committed 0\n")
        for number in range(1, commits + 1):
            await writer.call(partial(Journal.write, batch=batch(number)))
            os.write(sys.stdout.fileno(), b"committed %d\n" % number)


if __name__ == "__main__":
    asyncio.run(commit(Path(sys.argv[1]), int(sys.argv[2])))
