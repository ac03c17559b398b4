"""One measurement on a large journal, in a process of its own: its memory is of nothing else."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import uvloop

from marketfeed import schema
from marketfeed.collector.trimming import Trimming
from marketfeed.collector.wal_watch import WalWatch
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, MarkPrice
from marketfeed.settings.model import JournalSettings
from marketfeed.settings.values import Duration
from marketfeed.storage.wal import wal_bytes
from reader import MarketReader
from tests.bench.jobs import send, take, until_dismissed

COMMITS_A_S: Final = 20
_BARE: Final = """
SELECT open_time, open, high, low, close, volume FROM candle
WHERE pair_id = ? AND timeframe_ms = ? ORDER BY open_time DESC LIMIT ?"""


class SizeJob(msgspec.Struct, frozen=True):
    """`what` is start, read, fetch, retain or commit.

    `end_ms` is when the newest candle closed. Read and fetch: `limit` candles of 3m of `pairs`, `runs`
    times. Retain: commit for `seconds`, then as long while `kept_ms` of candles are left. Commit: until
    the input ends.
    """

    what: str
    path: str
    end_ms: int
    pairs: list[str] = []
    limit: int = 0
    runs: int = 1
    seconds: float = 0.0
    kept_ms: int = 0


class Sized(msgspec.Struct, frozen=True):
    """Wall seconds of each turn, and what memory that took (MB) beyond what there was before.

    Retain: `seconds` of commits without, `during` of those while rows go; `rows` that went in `took_s` of the
    time, and how large the `-wal` became.
    """

    seconds: list[float]
    memory_mb: float
    rss_mb: float
    during: list[float] = []
    rows: int = 0
    took_s: float = 0.0
    wal_mb: float = 0.0
    done: bool = True


def _rss_mb(field: str = "VmHWM") -> float:
    """Resident memory: the most since `clear_refs`, or now (VmRSS)."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(
        int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(f"{field}:")
    )


def _timed(runs: int, call: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(runs):
        started_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - started_s)
    return found


def _read(asked: SizeJob) -> list[float]:
    with MarketReader.connect(f"sqlite:///{asked.path}", now_ms=lambda: asked.end_ms) as reader:
        if len(asked.pairs) == 1:
            return _timed(asked.runs, lambda: reader.get_ohlcv(asked.pairs[0], "3m", asked.limit))
        return _timed(asked.runs, lambda: reader.get_ohlcv_many(asked.pairs, "3m", asked.limit))


def _fetch(asked: SizeJob) -> list[float]:
    with contextlib.closing(sqlite3.connect(f"file:{asked.path}?mode=ro", uri=True)) as db:
        ids = dict(db.execute("SELECT pair, id FROM pair"))
        length_ms = schema.TIMEFRAMES_MS["3m"]

        def all_of_them() -> dict[str, list[Any]]:
            return {
                pair: db.execute(_BARE, (ids[pair], length_ms, asked.limit)).fetchall()
                for pair in asked.pairs
            }

        return _timed(asked.runs, all_of_them)


class _Live:
    """Commits as a collector makes them: mark prices and forming candles, at times all candles that close."""

    def __init__(self, writer: JournalWriter, asked: SizeJob) -> None:
        self._writer = writer
        self._pairs = asked.pairs
        self._now_ms = asked.end_ms
        self._turn = 0
        self.wal_mb = 0.0
        self._path = Path(asked.path)

    async def run(self, over: Callable[[], bool]) -> list[float]:
        """Commit until it is over; wall seconds of each commit, the wait for its turn among them."""
        found = []
        next_s = time.monotonic()
        while not over():
            batch = self._batch()
            started_s = time.perf_counter()
            await self._writer.call(lambda journal, batch=batch: journal.write(batch))  # type: ignore[misc]
            found.append(time.perf_counter() - started_s)
            self.wal_mb = max(self.wal_mb, wal_bytes(self._path) / 1e6)
            next_s = max(next_s + 1 / COMMITS_A_S, time.monotonic())
            await asyncio.sleep(next_s - time.monotonic())
        return found

    def _batch(self) -> Batch:
        self._turn += 1
        self._now_ms += 250
        batch = Batch()
        some = self._pairs[self._turn % 4 :: 4]
        batch.extend(MarkPrice(pair, self._now_ms, 100.5 + self._turn / 7, 100.25) for pair in some)
        closes = self._turn % 240 == 0
        for pair in self._pairs if closes else some:
            open_ms = schema.floor_to(self._now_ms, 180_000) - (180_000 if closes else 0)
            x = self._turn / 7
            batch.add(
                Candle(
                    pair, "3m", open_ms, 100.1, 101.2 + x, 99.3, 100.4 + x, 7.7 + x, 70.7, 3.3,
                    self._turn, closes, self._now_ms,
                )
            )  # fmt: skip
        return batch


async def _retain(asked: SizeJob) -> Sized:
    path = Path(asked.path)
    keep: Any = {"candles": Duration.parse(f"{asked.kept_ms // schema.HOUR_MS}h")}
    settings = JournalSettings(path=path, max_bytes=10**15, retention=keep)
    async with JournalWriter(path) as writer:
        live = _Live(writer, asked)
        until_s = time.monotonic() + asked.seconds
        without = await live.run(lambda: time.monotonic() >= until_s)
        live.wal_mb = 0.0
        gone = await writer.call(_gone)
        trim = asyncio.create_task(Trimming(settings, writer, WalWatch(path)).trim(None))
        started_s = time.monotonic()
        # At least so long; at most so long that the rest can be told from it.
        during = await live.run(
            lambda: trim.done() or time.monotonic() - started_s >= 2 * asked.seconds
        )
        took_s, done = time.monotonic() - started_s, trim.done()
        trim.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trim
        rows = await writer.call(_gone) - gone
    return Sized(without, 0.0, _rss_mb(), during, rows, took_s, live.wal_mb, done)


def _gone(journal: Journal) -> int:
    """How many candles were deleted so far: the journal counts them."""
    return int(journal.db.execute("SELECT deleted FROM sequence").fetchone()[0])


async def _start(asked: SizeJob) -> list[float]:
    started_s = time.perf_counter()
    async with JournalWriter(Path(asked.path)):
        return [time.perf_counter() - started_s]


async def _commit(asked: SizeJob) -> Sized:
    loop = asyncio.get_running_loop()
    async with JournalWriter(Path(asked.path)) as writer:
        live = _Live(writer, asked)
        ended = loop.run_in_executor(None, until_dismissed)
        send(Sized([], 0.0, _rss_mb()))
        found = await live.run(ended.done)
    return Sized(found, 0.0, _rss_mb(), wal_mb=live.wal_mb)


def main() -> None:
    """Do what is asked, and answer."""
    asked = take(SizeJob)
    # ru_maxrss would be that of the process that has forked this one.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before_mb = _rss_mb("VmRSS")
    if asked.what == "retain":
        send(uvloop.run(_retain(asked)))
    elif asked.what == "commit":
        send(uvloop.run(_commit(asked)))
    else:
        seconds = (
            _read(asked)
            if asked.what == "read"
            else _fetch(asked)
            if asked.what == "fetch"
            else uvloop.run(_start(asked))
        )
        send(Sized(seconds, _rss_mb() - before_mb, _rss_mb()))


def p(seconds: list[float], quantile: float) -> float:
    """A quantile, in ms."""
    return float(np.quantile(seconds, quantile) * 1000) if seconds else float("nan")


if __name__ == "__main__":
    main()
