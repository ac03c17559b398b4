"""Journals with known content, written by the collector's own journal, and processes that read them."""

import contextlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from marketfeed import schema
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle, CatalogEntry, Record

PAIR = "BTC/USDT:USDT"
OTHER = "ETH/USDT:USDT"
START_MS = 1_767_225_600_000  # 2026-01-01, a multiple of every timeframe
M1, M3, M5, M15, H1, D1 = (
    schema.TIMEFRAMES_MS[name] for name in ("1m", "3m", "5m", "15m", "1h", "1d")
)


def url(path: Path) -> str:
    return "sqlite:///" + quote(str(path.absolute()))


def entry(
    pair: str = PAIR,
    timeframes: tuple[str, ...] = ("3m",),
    *,
    listed_ms: int | None = None,
    ended_ms: int | None = None,
    changed_ms: int = START_MS,
    dropped: bool = False,
) -> CatalogEntry:
    symbol = pair.split(":", maxsplit=1)[0].replace("/", "")
    return CatalogEntry(
        pair, symbol, timeframes, START_MS, listed_ms, ended_ms, changed_ms, dropped
    )


def candle(open_ms: int, pair: str = PAIR, timeframe: str = "3m", *, closed: bool = True) -> Candle:
    """A candle whose every number follows from its open time, pair and timeframe."""
    x = (open_ms // M1 * 7 + sum(map(ord, pair)) + len(timeframe)) % 1009
    return Candle(
        pair,
        timeframe,
        open_ms,
        100 + x / 7,
        101 + x / 3,
        99 - x / 11,
        100 + x / 13,
        x * 0.1,
        x * 10.0,
        x * 0.05,
        x,
        closed,
        open_ms + 1_000,
    )


def row(item: Candle) -> tuple[float, ...]:
    return (item.open, item.high, item.low, item.close, item.volume)


def store(path: Path, *records: Record | Iterable[Record]) -> Path:
    """Write records, one commit, and stop cleanly."""
    with Journal.open(path) as journal:
        write(journal, *records)
    return path


def write(journal: Journal, *records: Record | Iterable[Record]) -> None:
    batch = Batch()
    for item in records:
        batch.extend(item if isinstance(item, list | tuple) else [item])  # type: ignore[list-item]
    journal.write(batch)


class Child:
    """A forked process that answers calls by name with the functions given, one after the other.

    Fork it before this process opens a journal that matters: SQLite's locks belong to a process, and
    a child would believe that it holds those of its parent.
    """

    def __init__(self, uid: int | None = None, /, **functions: Callable[..., Any]) -> None:
        ours, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings():
            # numpy's own threads are idle; Python warns of any.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                if uid is not None:
                    os.setgroups([])
                    os.setgid(uid)
                    os.setuid(uid)
                _serve(theirs, functions)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._pipe = ours
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, name: str, *arguments: object) -> Any:
        """Call a function over there; its answer, or the error it raised."""
        self.start(name, *arguments)
        return self.answer()

    def start(self, name: str, *arguments: object) -> None:
        self._pipe.send((name, arguments))

    def answer(self) -> Any:
        assert self._pipe.poll(30), "no answer"
        good, value = self._pipe.recv()
        if good:
            return value
        raise value

    def has_answered(self, within_s: float = 0.0) -> bool:
        return self._pipe.poll(within_s)

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        # Not by closing the pipe: children forked later hold copies of it.
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        os.waitpid(self.pid, 0)


def _serve(pipe: Connection, functions: dict[str, Callable[..., Any]]) -> None:
    while (call := pipe.recv()) is not None:
        name, arguments = call
        try:
            pipe.send((True, functions[name](*arguments)))
        except Exception as error:  # the parent raises it
            pipe.send((False, error))


class Writer(Child):
    """A collector's process: opens, writes, stops or dies on command."""

    def __init__(self, path: Path, umask: int = 0o022) -> None:
        journals: list[Journal] = []

        def opened() -> None:
            os.umask(umask)
            journals.append(Journal.open(path))

        super().__init__(
            open=opened,
            write=lambda *records: write(journals[-1], *records),
            stop=lambda: journals.pop().close(),
        )

    def kill(self) -> None:
        os.kill(self.pid, 9)
        self.end()
