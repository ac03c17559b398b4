"""The collector as its killer runs it: it reports, over a pipe, what its journal has committed.

Nothing of the collector is replaced: the journal is a subclass that speaks after `write` has returned.
"""

import asyncio
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import uvloop

from marketfeed.collector.collector import Collector
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import Sweep
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry, FundingRate, Gap, MarkPrice
from marketfeed.settings.model import Settings
from marketfeed.storage.database import Database

LENGTH: Final = struct.Struct("<I")


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The journal is open; `set_aside` names a file that was found damaged, which none may be."""

    set_aside: str | None
    next_seq: int


class Begun(msgspec.Struct, frozen=True, tag=True):
    """A commit begins: what is written is not known to be committed yet."""


class Committed(msgspec.Struct, frozen=True, tag=True):
    """A commit has returned: all of this is on the disk. `next_seq` is the number after its rows'."""

    next_seq: int
    candles: list[Candle]
    forming: list[Candle]
    mark_prices: list[MarkPrice]
    funding_rates: list[FundingRate]
    gaps: list[Gap]
    catalog: list[CatalogEntry]
    mark_candles: list[Candle] = []


class Saving(msgspec.Struct, frozen=True, tag=True):
    """A document is about to be saved: it may be there from now on."""

    name: str
    body: bytes
    saved_ms: int


class Saved(msgspec.Struct, frozen=True, tag=True):
    """The document that was about to be saved is on the disk."""


class Deleting(msgspec.Struct, frozen=True, tag=True):
    """Retention is about to delete: these rows need not be there any more."""

    table: str
    pair: str
    before_ms: int


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The collector has stopped by itself, as asked."""


Message: TypeAlias = Opened | Begun | Committed | Saving | Saved | Deleting | Stopped
Report: TypeAlias = Callable[[Message], None]


def collect_and_report(settings: Settings, pipe_fd: int) -> None:
    """Run a collector until SIGTERM, reporting what it commits on `pipe_fd`."""
    encode = msgspec.msgpack.Encoder().encode

    def report(message: Message) -> None:
        body = encode(message)
        left = memoryview(LENGTH.pack(len(body)) + body)
        while left:
            left = left[os.write(pipe_fd, left) :]

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        collector = Collector(settings)
        writer = _ReportingWriter(settings.journal.path, report)
        collector._writer = collector._reporter._writer = collector._upkeep._writer = writer
        await collector.run(stop)

    uvloop.run(run())
    report(Stopped())


class _ReportingWriter(JournalWriter):
    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path)
        self._report = report

    def _open(self) -> None:
        super()._open()
        assert self._file is not None
        self._file = _ReportingJournal(self._file._database, self._report)
        set_aside = None if self.set_aside is None else str(self.set_aside)
        self._report(Opened(set_aside, self._file.next_seq))


class _ReportingJournal(Journal):
    def __init__(self, database: Database, report: Report) -> None:
        super().__init__(database)
        self._report = report

    def write(self, batch: Batch) -> int:
        self._report(Begun())
        changed = super().write(batch)
        self._report(
            Committed(
                self.next_seq,
                batch.candles,
                list(batch.forming.values()),
                list(batch.mark_prices.values()),
                list(batch.funding_rates.values()),
                list(batch.gaps.values()),
                batch.catalog,
                batch.marks,
            )
        )
        return changed

    def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        self._report(Saving(name, body, saved_ms))
        super().save_document(name, body, saved_ms)
        self._report(Saved())

    def sweep(self, sweep: Sweep) -> int:
        if sweep.rows == 0:
            for pair in self._pair_ids:
                self._report(Deleting(sweep.table, pair, sweep.before_ms))
        return super().sweep(sweep)
