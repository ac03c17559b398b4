"""A journal (or a ledger) on a disk that errs: a process, preloaded with `failing_disk.c`, forks for each.

`python failing_disk_run.py DIRECTORY CASES SEED` tries so many random positions of each error, once and from
then on, and prints what came of each as a line of JSON. Run by a test, which makes the library.
"""

import asyncio
import contextlib
import ctypes
import errno
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.errors import JournalError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.schema import MINUTE_MS

PAIR: Final = "BTC/USDT:USDT"
T0: Final = 1_790_000_160_000
STEPS: Final = 40
OLD: Final = 3_000
"""Candles of an earlier run."""
TRIES: Final = 4
AGAIN_AFTER_S: Final = (0.001, 0.002)
ERRORS: Final = (errno.EIO, errno.ENOMEM, errno.ENOSPC)
SECTORS_APART: Final = 5
KINDS: Final = ("pread64", "pwrite64", "fdatasync", "ftruncate", "openat", "-")


def library() -> Any:
    """The preloaded one."""
    found = ctypes.CDLL(None)
    for name in ("disk_counted", "disk_failed"):
        getattr(found, name).restype = ctypes.c_long
    found.disk_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
    found.disk_spoil.argtypes = [ctypes.c_long, ctypes.c_long]
    return found


def candle(number: int) -> Candle:
    """The candle of a minute."""
    at_ms = T0 + number * MINUTE_MS
    return Candle(PAIR, "1m", at_ms, 1.0, 1.5, 0.5, 1.25, 7.0, 8.0, 3.0, 4, True, at_ms + MINUTE_MS)


def read_anew(journal: Journal) -> int:
    """Read every candle from the file."""
    journal.db.execute("PRAGMA shrink_memory").fetchall()
    return len(journal.candles(PAIR, "1m", T0 - OLD * MINUTE_MS, T0 + STEPS * MINUTE_MS))


class _Shown(logging.Handler):
    """What an operator would see in the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def collect(path: Path, told: dict[str, Any]) -> None:
    """Write as a collector does: what the disk refuses is kept and tried again; damage replaces the file."""
    damaged: list[JournalError] = []
    pending: list[Candle] = []
    async with JournalWriter(path, AGAIN_AFTER_S) as writer:
        writer.on_damage = damaged.append

        async def commit() -> bool:
            try:
                if damaged:
                    await writer.replace()
                    damaged.clear()
                batch = Batch(candles=list(pending))
                await writer.call(lambda journal: journal.write(batch))
            except JournalError as error:
                told["met"].append(str(error))
                return False
            told["stored"] += [one.open_time_ms for one in pending]
            pending.clear()
            return True

        for number in range(STEPS):
            pending.append(candle(number))
            await commit()
            if number % 8 == 0:
                try:
                    await writer.call(read_anew)
                    await writer.require_whole()
                except JournalError as error:
                    told["met"].append(str(error))
            if number == STEPS // 2:
                # A checkpoint, as every thousand pages.
                with contextlib.suppress(JournalError):
                    await writer.call(
                        lambda journal: journal.db.execute("PRAGMA wal_checkpoint").fetchall()
                    )
        for _ in range(TRIES):
            if not pending or await commit():
                break
        told["kept"] = [one.open_time_ms for one in pending]
        told["failed_reads"] = writer.failed_reads.why
        told["set_aside"] = str(writer.set_aside or "")


async def keep(path: Path, told: dict[str, Any]) -> None:
    """Open a ledger and beat, as an aggregator does."""
    async with LedgerThread(path) as thread:
        for _ in range(4):
            try:
                await thread.call(Ledger.beat)
            except JournalError as error:
                told["met"].append(str(error))
        told["set_aside"] = thread.loss


def forked(run: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What `run` tells of itself, from a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        told: dict[str, Any] = {"met": [], "stored": [], "kept": [], "ended": "", "log": []}
        shown = _Shown()
        logging.getLogger().addHandler(shown)
        try:
            run(told)
        except JournalError as error:
            told["ended"] = str(error)
        except BaseException as error:
            told["ended"] = f"BUG {error!r}"
        disk = library()
        told |= {"log": shown.lines, "failed": disk.disk_failed(), "counted": disk.disk_counted()}
        told["kind"] = KINDS[disk.disk_kind()]
        with os.fdopen(writing, "w") as pipe:
            json.dump(told, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def armed(
    scenario: Callable[[Path, dict[str, Any]], Any],
    path: Path,
    error: int,
    at: int,
    *,
    lasting: bool,
) -> dict[str, Any]:
    """Run a scenario while the disk errs."""

    def run(told: dict[str, Any]) -> None:
        library().disk_arm(os.fsencode(path.name), error, at, lasting)
        asyncio.run(scenario(path, told))

    return forked(run)


def stored(path: Path) -> set[int]:
    """The candles of a journal, with a disk that is well again, and that it is whole."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {at for (at,) in db.execute("SELECT open_time FROM candle")}


def spread(path: Path, wanted: int, seed: int, kind: str) -> None:
    """Try random positions of each error."""
    source = path.with_suffix(".before")
    scenario = collect if kind == "journal" else keep
    shutil.copyfile(source, path)
    calls = armed(scenario, path, 0, 0, lasting=False)["counted"]
    drawn = random.Random(seed)
    for error in ERRORS:
        for lasting in (False, True):
            for at in sorted(drawn.sample(range(1, calls + 1), wanted)):
                for file in path.parent.glob(f"{path.name}*"):
                    if file != source:
                        file.unlink()
                shutil.copyfile(source, path)
                told = armed(scenario, path, error, at, lasting=lasting)
                aside = [file.name for file in path.parent.glob(f"{path.name}.corrupt-*")]
                lost = []
                if kind == "journal":
                    there = stored(path)
                    lost = sorted(
                        {*range(T0 - OLD * MINUTE_MS, T0, MINUTE_MS), *told["stored"]} - there
                    )
                line = {
                    "kind": kind, "error": errno.errorcode[error], "call": told["kind"], "at": at,
                    "of": calls, "lasting": lasting, "failed": told["failed"], "aside": aside,
                    "lost": len(lost), "kept": len(told["kept"]), "ended": told["ended"],
                    "met": len(told["met"]), "log": told["log"][:3], "reads": told.get("failed_reads", ""),
                }  # fmt: skip
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


def bad_sector(directory: Path) -> None:
    """A page of old candles that cannot be read any more: what becomes of the journal, and of a ledger."""
    path = directory / "bad.db"
    shutil.copyfile(directory / "journal.before", path)
    size = path.stat().st_size
    first = size // 2 // 4096 * 4096

    def run(told: dict[str, Any]) -> None:
        library().disk_arm(os.fsencode(path.name), 0, 0, 0)
        library().disk_spoil(first, first + 4095)
        asyncio.run(collect(path, told))

    told = forked(run)
    aside = [file.name for file in directory.glob("bad.db.corrupt-*")]
    line = {"kind": "sector", "told": told, "aside": aside, "there": len(stored(path))}
    sys.stdout.write(json.dumps(line) + "\n")
    ledger = directory / "ledger.db"
    for file in directory.glob("ledger.db*"):
        file.unlink()
    shutil.copyfile(directory / "ledger.before", ledger)
    for page in range(1, ledger.stat().st_size // 4096, SECTORS_APART):

        def keeping(told: dict[str, Any]) -> None:
            library().disk_arm(os.fsencode(ledger.name), 0, 0, 0)
            library().disk_spoil(page * 4096, page * 4096 + 4095)  # noqa: B023
            asyncio.run(keep(ledger, told))

        told = forked(keeping)
        aside = [file.name for file in directory.glob("ledger.db.corrupt-*")]
        line = {"kind": "ledger sector", "page": page + 1, "told": told, "aside": aside}
        sys.stdout.write(json.dumps(line) + "\n")


def main(directory: Path, wanted: int, seed: int) -> None:
    """Make the files, and try them."""
    with Journal.open(directory / "made.db") as journal:
        journal.write(Batch(candles=[candle(number) for number in range(-OLD, 0)]))
    (directory / "made.db").rename(directory / "journal.before")
    Ledger.open(directory / "made.db").close()
    (directory / "made.db").rename(directory / "ledger.before")
    for file in directory.glob("made.db*"):
        file.unlink()
    bad_sector(directory)
    for kind in ("journal", "ledger"):
        spread(directory / f"{kind}.db", wanted, seed, kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
