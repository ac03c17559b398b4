"""Shipping as its killer runs it: a journal that grows while it is shipped, reporting what it is doing.

Nothing of it is replaced: writer and journal are subclasses that speak before and after they act.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import uvloop

from marketfeed.influxdb.answers import Verdict
from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice
from marketfeed.settings.model import InfluxSettings

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT", "币安人生/USDT:USDT", "1000PEPE/USDT:USDT")
START_MS: Final = 1_767_225_600_000
MINUTE_MS: Final = 60_000
PACE: Final = Pace(
    max_lines=100,
    turn_s=0.005,
    forming_every_s=0.02,
    backoff_first_s=0.005,
    backoff_cap_s=0.05,
    parked_s=0.05,
    probe_every_s=0.03,
)

OPENED, SENDING, ANSWERED, NOTING, NOTED = b"osanN"
"""What is reported, one byte each."""
Report: TypeAlias = Callable[[int], None]


def minute(number: int) -> Batch:
    """What comes in one minute: new rows in every table, and a candle that is put right."""
    at_ms = START_MS + number * MINUTE_MS
    batch = Batch()
    for index, pair in enumerate(PAIRS):
        x = 100.0 + number + index / 7
        for trades in (number % 7, 9):
            open_ms = at_ms if trades == 9 else at_ms + MINUTE_MS
            batch.add(
                Candle(
                    pair,
                    "1m",
                    open_ms,
                    x,
                    x + 1,
                    x - 1,
                    x / 3 + trades,
                    2.0,
                    3.0,
                    1.0,
                    trades,
                    True,
                    open_ms,
                )
            )
        batch.add(Candle(pair, "3m", at_ms, x, x, x, x, x, x, x, number, False, at_ms + number))
        batch.add(FundingRate(pair, at_ms, x * 1e-7, at_ms + 60 * MINUTE_MS))
        batch.add(FundingSettled(pair, at_ms, x * 1e-7, None if number % 2 else x))
        for second in range(0, 60, 12):
            batch.add(MarkPrice(pair, at_ms + second * 1_000, x + second / 3, x))
    # It begins open, and is closed a minute later.
    batch.add(Gap("connection_feed-1", None, at_ms, None, "found", "lost"))
    batch.add(Gap("connection_feed-1", None, at_ms - MINUTE_MS, at_ms, "healed", "lost"))
    if number == 0:
        batch.extend([CatalogEntry(p, p[:3], ("1m",), at_ms, 5, None, at_ms) for p in PAIRS])
    return batch


def ship_and_report(
    path: Path, influx: InfluxSettings, pipe_fd: int, seconds: float | None
) -> None:
    """Write and ship until killed; with `seconds` only ship, until all is shipped. Tells on `pipe_fd`."""

    def report(what: int) -> None:
        os.write(pipe_fd, bytes([what]))

    async def run() -> None:
        async with aiohttp.ClientSession() as session, _ReportingWriter(path, report) as writer:
            # What is refused as a whole is held, as a collector's shipper does.
            reporting = _ReportingInflux(influx, session, report)
            shipper = Shipper(writer, reporting, PACE, documents=writer)
            shipping = asyncio.create_task(shipper.run())
            if seconds is None:
                await _write_on(writer)
            async with asyncio.timeout(seconds):
                while shipper.shipped_below() < writer.next_seq:
                    await asyncio.sleep(0.01)
            shipper.end()
            await shipping

    uvloop.run(run())


async def _write_on(writer: JournalWriter) -> None:
    newest = await writer.call(Journal.newest_candles)
    newest_ms = max(newest.values(), default=START_MS - MINUTE_MS)
    number = (newest_ms - START_MS) // MINUTE_MS
    while True:
        number += 1
        await writer.call(lambda journal, n=number: journal.write(minute(n)))
        await asyncio.sleep(0.005)


class _ReportingInflux(InfluxWriter):
    def __init__(
        self, settings: InfluxSettings, session: aiohttp.ClientSession, report: Report
    ) -> None:
        super().__init__(settings, session)
        self._report = report

    async def write(self, lines: list[str]) -> Verdict:
        self._report(SENDING)
        verdict = await super().write(lines)
        self._report(ANSWERED)
        return verdict


class _ReportingWriter(JournalWriter):
    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path)
        self._report = report

    def _open(self) -> None:
        super()._open()
        assert self._file is not None
        assert self._file.set_aside is None
        self._file = _ReportingJournal(self._file._database)
        self._file.report = self._report
        self._report(OPENED)


class _ReportingJournal(Journal):
    report: Report

    def note_shipped(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        self.report(NOTING)
        super().note_shipped(target, ranges)
        self.report(NOTED)
