"""Opens a journal or ledger, reads it again and again, and replaces it as a collector does; run by a test.

`python read_error_child.py journal|ledger FILE READS` writes what came of it to stdout, as JSON. A read that
the test has made fail shows as an error, never as a file set aside.
"""

import asyncio
import json
import sys
from pathlib import Path

from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.errors import JournalError
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

TRIES = 20


def read_anew(journal: Journal) -> int:
    """Read every row from the file."""
    journal.db.execute("PRAGMA shrink_memory").fetchall()
    return sum(journal.row_counts().values())


async def journal(path: Path, reads: int) -> dict[str, object]:
    """Read so many times; replace the file whenever it is called damaged."""
    met, counts = 0, set()
    damaged: list[JournalError] = []
    async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
        writer.on_damage = damaged.append
        for _ in range(reads):
            try:
                counts.add(await writer.call(read_anew))
            except JournalError:
                met += 1
            for _ in range(TRIES):
                if not damaged:
                    break
                try:
                    await writer.replace()
                    damaged.clear()
                except JournalError:
                    continue
        why = writer.failed_reads.why
        return {
            "met": met,
            "why": why,
            "counts": sorted(counts),
            "set_aside": str(writer.set_aside or ""),
        }


async def ledger(path: Path) -> dict[str, object]:
    """Open it."""
    async with LedgerThread(path) as thread:
        return {"loss": thread.loss, "next_seq": thread.next_seq}


if __name__ == "__main__":
    kind, file, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    try:
        found = asyncio.run(journal(file, count) if kind == "journal" else ledger(file))
        sys.stdout.write(json.dumps(found) + "\n")
    except JournalError as failed:
        sys.exit(str(failed))
