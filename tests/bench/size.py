"""What a journal's size costs: starts, commits, reads, less retention, a backup; beside SQLite and cp."""

import ctypes
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from marketfeed.journal.journal import KIND
from marketfeed.storage.backup import back_up
from tests.bench import full_journal
from tests.bench.child import BenchError, Child
from tests.bench.full_journal import Made
from tests.bench.report import Column, Row, Section
from tests.bench.size_child import Sized, SizeJob, p

CHILD: Final = "size_child"
_TIMEOUT_S: Final = 1800.0
_RETAIN_S: Final = 20.0

ReportProgress = Callable[[str], None]

_MEASURES: Final[Mapping[str, float | None]] = {
    "MB": None,
    "cold start s": 5.0,
    "  of the file in cache, %": None,
    "warm start s": None,
    "commit p50 ms": None,
    "commit p99 ms": None,
    "commit p99 ms while rows go": None,
    "  × without": 2.0,
    "  rows/s that go": None,
    "  -wal MB": None,
    "1 × 500 ms": None,
    "  × those of the smallest": 2.0,
    "164 × 500 ms": None,
    "  × fetch": 1.5,
    "530 × 5,000 s": None,
    "  × its fetch": 1.5,
    "  × its memory": 1.3,
    "backup s": None,
    "  × cp": 1.5,
    "  -wal MB meanwhile": None,
    "RSS MB": None,
}
"""What is measured, and the most that it may be."""
_NOTES: Final = [
    "cold: its pages dropped by another process (POSIX_FADV_DONTNEED); a start is the opening of the journal",
    "rows go: a quarter of the candles' time (100 days of 400), 20 commits a second meanwhile",
    "fetch: the bare fetchall of the same rows; cp: with sync; commits go on beside cp and backup",
]


def size(
    report_progress: ReportProgress, sizes: Sequence[int], folder: Path | None = None
) -> Section:
    """Measure journals of so many rows each, one after the other, below `folder` (None: temporary)."""
    found: dict[str, dict[str, float]] = {}
    for wanted in sizes:
        with tempfile.TemporaryDirectory(prefix="marketfeed-size-", dir=folder) as name:
            path = Path(name) / "journal.db"

            def say(text: str, wanted: int = wanted) -> None:
                report_progress(f"size {wanted / 1e6:g} M rows: {text}")

            made = full_journal.make(path, wanted, say)
            found[f"{made.rows / 1e6:.1f} M rows"] = _measured(made, say)
    smallest = next(iter(found.values()))["1 × 500 ms"]
    for values in found.values():
        values["  × those of the smallest"] = values["1 × 500 ms"] / smallest
    rows = []
    for what, most in _MEASURES.items():
        values = {name: values[what] for name, values in found.items() if what in values}
        met = (
            None if most is None or not values else all(value <= most for value in values.values())
        )
        rows.append(Row(what, values, "" if most is None else f"≤ {most:g}", met))
    columns = [Column(name, 2) for name in found]
    return Section("What the size of a journal costs", columns, rows, _NOTES)


def _measured(made: Made, say: ReportProgress) -> dict[str, float]:
    values: dict[str, float] = {"MB": made.bytes / 1e6}
    say("starting")
    # By another process than the one that starts.
    drop_cache(made.path)
    values["  of the file in cache, %"] = resident(made.path) * 100
    values["cold start s"] = _ask(made, "start").seconds[0]
    warm = _ask(made, "start")
    values["warm start s"] = warm.seconds[0]
    _reads(made, values, say)
    say("backing up")
    _backup(made, values)
    say("deleting a quarter")
    kept_ms = (made.end_ms - made.start_ms) * 3 // 4
    retained = _ask(made, "retain", seconds=_RETAIN_S, kept_ms=max(kept_ms, 3_600_000))
    values["commit p50 ms"] = p(retained.seconds, 0.5)
    values["commit p99 ms"] = p(retained.seconds, 0.99)
    values["commit p99 ms while rows go"] = p(retained.during, 0.99)
    values["  × without"] = values["commit p99 ms while rows go"] / values["commit p99 ms"]
    values["  rows/s that go"] = retained.rows / retained.took_s
    values["  -wal MB"] = retained.wal_mb
    values["RSS MB"] = max(warm.rss_mb, retained.rss_mb)
    return values


def _reads(made: Made, values: dict[str, float], say: ReportProgress) -> None:
    say("reading")
    many = list(made.pairs)
    values["1 × 500 ms"] = p(_ask(made, "read", pairs=many[:1], limit=500, runs=200).seconds, 0.5)
    ours = _ask(made, "read", pairs=many, limit=500, runs=10)
    bare = _ask(made, "fetch", pairs=many, limit=500, runs=10)
    values["164 × 500 ms"] = p(ours.seconds, 0.5)
    values["  × fetch"] = values["164 × 500 ms"] / p(bare.seconds, 0.5)
    if made.others:
        every = [*many, *made.others]
        ours = _ask(made, "read", pairs=every, limit=full_journal.OTHERS_CANDLES, runs=2)
        bare = _ask(made, "fetch", pairs=every, limit=full_journal.OTHERS_CANDLES, runs=2)
        values["530 × 5,000 s"] = min(ours.seconds)
        values["  × its fetch"] = min(ours.seconds) / min(bare.seconds)
        values["  × its memory"] = ours.memory_mb / bare.memory_mb


def _backup(made: Made, values: dict[str, float]) -> None:
    copy = made.path.with_name("copy.db")
    job = SizeJob("commit", str(made.path), made.end_ms, list(made.pairs))
    # In a process of its own, as users have it: it must not share SQLite's locks with the writer.
    with Child(CHILD, job) as child:
        child.receive(Sized, _TIMEOUT_S)
        taken_s = {}
        for turn in ("cp", "backup", "cp", "backup"):
            started_s = time.monotonic()
            if turn == "cp":
                subprocess.run(["cp", str(made.path), str(copy)], check=True)
                subprocess.run(["sync", str(copy)], check=True)
            else:
                back_up(KIND, made.path, copy, lambda *_: None)
            # The second time all comes from the cache, for both.
            taken_s[turn] = time.monotonic() - started_s
            copy.unlink()
        values["backup s"] = taken_s["backup"]
        values["  × cp"] = taken_s["backup"] / taken_s["cp"]
        child.dismiss()
        values["  -wal MB meanwhile"] = child.receive(Sized, _TIMEOUT_S).wal_mb


def _ask(made: Made, what: str, **more: object) -> Sized:
    bound = {"pairs": list(made.pairs), **more}
    job = SizeJob(what, str(made.path), made.end_ms, **bound)  # type: ignore[arg-type]
    with Child(CHILD, job) as child:
        return child.receive(Sized, _TIMEOUT_S)


def drop_cache(path: Path) -> None:
    """Have the kernel forget what it keeps of a file: what has been written is synced first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident(path: Path) -> float:
    """What share of a file's pages the kernel keeps in memory (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    length = path.stat().st_size
    with path.open("rb") as file:
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        try:
            pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
            if libc.mincore(address, length, pages) != 0:
                raise BenchError(f"mincore: {os.strerror(ctypes.get_errno())}")
            return sum(page & 1 for page in bytes(pages)) / len(pages)
        finally:
            libc.munmap(address, length)
