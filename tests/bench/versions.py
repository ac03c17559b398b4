"""`python -m tests.bench.versions [ROWS]`: what a journal's change of version costs.

Of the step from 2 to 3 and back: its wall time, what SQLite executes in it, what it reads and writes, at
30,000 candles and at ROWS (3 million unless given). Of what version 3 counts (deleted candles, commits):
what that costs retention and writes.
"""

import contextlib
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from marketfeed import schema
from marketfeed.journal import tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Candle
from marketfeed.storage.database import convert
from tests.sweeps import delete

DATA: Final = Path(__file__).parents[1] / "data"
SERIES: Final = 200
"""Pairs with one timeframe each."""
T0: Final = 1_700_000_040_000
FEW: Final = 30_000
ROWS: Final = 3_000_000
REPEATS: Final = 5
RANGES: Final = 100
"""Ranges that a server has acknowledged."""


class Step(NamedTuple):
    """What a step took: wall s, instructions of SQLite, bytes read and written by this process."""

    seconds: float
    instructions: int
    read: int
    written: int


def make(path: Path, rows: int, ranges: int = RANGES) -> Path:
    """A stopped journal of version 2 with so many candles, a multiple of SERIES, and acknowledged ranges."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript((DATA / "journal_version_2.sql").read_text("utf-8"))
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
        db.execute("BEGIN")
        names = [(number, f"P{number}/USDT:USDT") for number in range(1, SERIES + 1)]
        db.executemany("INSERT INTO pair VALUES (?, ?)", names)
        db.executemany(
            "INSERT INTO catalog VALUES (?, ?, ?, ?, NULL, NULL, ?, ?)",
            [(n, f"P{n}", ",1m" if n % 7 == 0 else "1m", T0, T0, rows + n) for n, _ in names],
        )
        # A range of numbers for each series in turn: both trees only grow at their ends.
        db.execute(
            """WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows)
               INSERT INTO candle
               SELECT i / :each + 1, 60000, :start + i % :each * 60000,
                      1.5 + i, 2.5 + i, 0.5 + i, 1.75 + i, 10.25, 20.5, 5.125, i % 997, i + 1
               FROM n""",
            {"rows": rows, "each": rows // SERIES, "start": T0},
        )
        db.execute("UPDATE sequence SET next = ?", (rows + SERIES + 1,))
        shipped = [("http://x - market", 100 * n + 1, 100 * n + 50) for n in range(ranges)]
        db.executemany("INSERT INTO shipped VALUES (?, ?, ?)", shipped)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
    return path


def step(path: Path, version: int, *, counting: bool = True) -> Step:
    """Take a journal to another version, and measure that. On this thread alone.

    `counting` the instructions takes longer than they do: the time is not the step's then.
    """
    real, count = sqlite3.connect, 0

    def look() -> int:
        nonlocal count
        count += 1
        return 0

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = real(*arguments, **options)
        db.set_progress_handler(look if counting else None, 1)
        return db

    with _replaced(connect):
        before = _io()
        started_s = time.perf_counter()
        convert(KIND, path, version)
        seconds = time.perf_counter() - started_s
        after = _io()
    return Step(seconds, count, after[0] - before[0], after[1] - before[1])


@contextlib.contextmanager
def _replaced(connect: Callable[..., sqlite3.Connection]) -> Iterator[None]:
    real = sqlite3.connect
    sqlite3.connect = connect  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = real


def _io() -> tuple[int, int]:
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"]), int(facts["wchar"])


# --- what version 3 costs afterwards ---------------------------------------------------------------------


def deletions(path: Path, *, counting: bool, share: float = 0.1) -> tuple[float, float]:
    """Rows that retention deletes of a journal of version 3, a wall and a CPU second.

    `counting`: with its trigger.
    """
    copy = Path(shutil.copy(path, path.with_name("deleted.db")))
    with contextlib.closing(sqlite3.connect(copy)) as db, db:
        (rows,) = db.execute("SELECT next FROM sequence").fetchone()
        db.execute("DROP TRIGGER candle_deleted")
        if counting:
            db.execute(tables.CANDLE_DELETED)
    with Journal.open(copy) as journal:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        before_ms = T0 + int(rows // SERIES * share) * schema.MINUTE_MS
        gone = delete(journal, "candle", range(1, SERIES + 1), before_ms)
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        counted = journal.db.execute("SELECT deleted FROM sequence").fetchone()
    assert counted == (gone if counting else 0,)
    copy.unlink()
    return gone / seconds, gone / cpu_s


def writes(path: Path, *, counting: bool, candles: int, times: int) -> tuple[float, float]:
    """Wall and CPU µs of a `Journal.write` of so many new candles; `counting`: with its commits counted."""
    copy = Path(shutil.copy(path, path.with_name("written.db")))
    with Journal.open(copy) as journal:
        journal._counts_commits = counting
        start = T0 + 10_000_000 * schema.MINUTE_MS
        batches = []
        for number in range(times):
            at_ms = start + number * schema.MINUTE_MS
            batch = Batch()
            batch.extend(
                Candle(f"P{n + 1}/USDT:USDT", "1m", at_ms, 1, 2, 0.5, 1.5, 1, 1, 1, 1, True, at_ms)
                for n in range(candles)
            )
            batches.append(batch)
        walls, cpu_s = [], time.process_time()
        for batch in batches:
            started_s = time.perf_counter()
            journal.write(batch)
            walls.append(time.perf_counter() - started_s)
        cpu_s = time.process_time() - cpu_s
    copy.unlink()
    return statistics.median(walls) * 1e6, cpu_s / times * 1e6


# --- tables ----------------------------------------------------------------------------------------------


def table(found: list[tuple[int, str, Step]]) -> str:
    """The steps, a line each."""
    lines = [
        f"{'candles':>12} {'step':>6} {'wall ms':>9} {'instructions':>13} {'read B':>11} {'written B':>11}"
    ]
    lines += [
        f"{rows:12,} {what:>6} {s.seconds * 1e3:9.1f} {s.instructions:13,} {s.read:11,} {s.written:11,}"
        for rows, what, s in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    found: list[tuple[int, str, Step]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (FEW, rows):
            path = make(Path(folder) / f"{count}.db", count)
            counted = {3: step(path, 3), 2: step(path, 2)}
            timed = [
                {version: step(path, version, counting=False).seconds for version in counted}
                for _ in range(REPEATS)
            ]
            for version, one in counted.items():
                median_s = statistics.median(seconds[version] for seconds in timed)
                found.append((count, f"→ {version}", one._replace(seconds=median_s)))
        _report_progress(table(found))
        _report_progress(f"\nfile: {path.stat().st_size / 1e6:,.0f} MB\n")
        convert(KIND, path, 3)
        both = [
            (deletions(path, counting=False), deletions(path, counting=True))
            for _ in range(REPEATS)
        ]
        _compare("retention, rows a second", both)
        small = Path(folder) / f"{FEW}.db"
        convert(KIND, small, 3)
        for candles, times in ((1, 600), (SERIES, 200)):
            both = [
                (
                    writes(small, counting=False, candles=candles, times=times),
                    writes(small, counting=True, candles=candles, times=times),
                )
                for _ in range(REPEATS)
            ]
            _compare(f"write of {candles} candles, µs", both)


def _compare(what: str, both: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Print the medians of pairs of measurements: without and with counting, (wall, CPU) each."""
    for at, clock in enumerate(("wall", "CPU")):
        without, counting = (statistics.median(pair[side][at] for pair in both) for side in (0, 1))
        _report_progress(
            f"{what} ({clock}): {without:,.0f} without counting, {counting:,.0f} with it"
        )


def _report_progress(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
