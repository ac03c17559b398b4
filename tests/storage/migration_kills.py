"""Migrations that are killed: a process that forks one for each line it reads, and reports how that ended.

Run as `python -m tests.storage.migration_kills`. A line is `<kind> <version> <point> <path>`; the answer is
the exit code, or minus the signal. `point` is where the migration kills itself with SIGKILL: a
number from 0 to 1 stands for that share of what SQLite executes in it (counted on a copy),
`commit+<µs>` for so long after its COMMIT has begun, `none` for nowhere. Version OPENED stands for a writer
that opens the journal, and adds to it what its version has gained.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

OPENED: Final = 0
EVERY: Final = 5
"""SQLite instructions between two looks at whether the point has come."""


class Killer:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.migration_kills"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(180)

    def migrate(self, kind: str, version: int, point: str, path: Path) -> int:
        """Migrate a file in a process of its own that kills itself at `point`; returns how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {version} {point} {path}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def points(count: int) -> list[str]:
    """`count` points, most of them within the statements, a fifth in the commit and what follows it."""
    late = count // 5
    early = count - late
    return [
        *(f"{(number + 0.5) / early:.4f}" for number in range(early)),
        # The commit and the checkpoint after it take a few milliseconds.
        *(f"commit+{int((number + 0.5) * 8_000 / late)}" for number in range(late)),
    ]


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _migrate(kind: Any, version: int, path: Path, point: str, instructions: float) -> int:
    """Migrate in this process; returns how many instructions that took, EVERY at a time."""
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        if looks >= instructions:
            _kill()
        return 0

    def trace(text: str) -> None:
        if point.startswith("commit+") and text == "COMMIT":
            after_s = int(point.removeprefix("commit+")) / 1e6

            def wait() -> None:
                end_s = time.perf_counter() + after_s
                while time.perf_counter() < end_s:
                    time.sleep(0)
                _kill()

            threading.Thread(target=wait, daemon=True).start()

    real = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = real(*arguments, **options)
        # So small that half of a change reaches the file before its commit.
        db.execute("PRAGMA cache_size = 3")
        db.set_progress_handler(look, EVERY)
        db.set_trace_callback(trace)
        return db

    sqlite3.connect = connect  # type: ignore[assignment]
    from marketfeed.journal.journal import Journal  # noqa: PLC0415
    from marketfeed.storage.database import convert  # noqa: PLC0415

    try:
        if version == OPENED:
            Journal.open(path).close()
        else:
            convert(kind, path, version)
    finally:
        sqlite3.connect = real
    return looks


def _main() -> None:
    from marketfeed.aggregator.ledger_schema import KIND as LEDGER  # noqa: PLC0415
    from marketfeed.journal.journal import KIND as JOURNAL  # noqa: PLC0415
    from marketfeed.storage.reading import inspect  # noqa: PLC0415

    kinds = {"journal": JOURNAL, "ledger": LEDGER}
    totals: dict[tuple[str, int, int], int] = {}
    for line in sys.stdin:
        name, version, point, place = line.rstrip("\n").split(" ", 3)
        kind, path = kinds[name], Path(place)
        found = inspect(kind, path)
        assert found is not None
        way = (name, found.version, int(version))
        if way not in totals:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "copy.db"
                for suffix in ("", "-wal"):
                    if Path(f"{path}{suffix}").exists():
                        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
                totals[way] = _migrate(kind, int(version), copy, "none", 1e18)
        share = float(point) if point[0].isdigit() else 1e18
        child = os.fork()
        if child == 0:
            try:
                _migrate(kind, int(version), path, point, share * totals[way])
                # Where it is to be killed in its commit, it may be done before: then it waits for that.
                if point.startswith("commit+"):
                    time.sleep(10)
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
