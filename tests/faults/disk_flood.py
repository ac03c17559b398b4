"""More records than fit into memory, while the disk is full: a real intake and journal on a small disk.

Run as a program in a namespace (`python disk_flood.py DIRECTORY MARKS`); prints a report as one JSON line.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from proc_disk import SmallDisk

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.counters import CollectorCounters, rss_bytes
from marketfeed.ingest.intake import Intake
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.schema import DAY_MS

T0: Final = 1_790_000_040_000
PAIRS: Final = 1_000
PER_TURN: Final = 500
"""Frames between two turns of the event loop: what a socket hands on at a time."""
CANDLE_EVERY: Final = 500
SYMBOLS: Final = {f"T{n}USDT": f"T{n}/USDT:USDT" for n in range(PAIRS)}


class Report(msgspec.Struct):
    """What came of it. Bytes are resident memory; `longest_turn_s` is how long the event loop stood still."""

    marks: int = 0
    candles: int = 0
    rss_before: int = 0
    rss_most: int = 0
    most_pending: int = 0
    failures: int = 0
    longest_turn_s: float = 0.0
    given_up: dict[str, int] = msgspec.field(default_factory=dict)
    whole_after_s: float = 0.0
    marks_stored: int = 0
    first_mark: int = T0
    oldest_mark_stored: int = 0
    candles_stored: int = 0


def mark_frame(number: int) -> bytes:
    """The mark price of one pair in one second; another one for each number."""
    second, pair = divmod(number, PAIRS)
    return (
        b'{"stream":"t%d@markPrice@1s","data":{"e":"markPriceUpdate","E":%d,"s":"T%dUSDT",'
        b'"p":"%d.5","ap":"1","P":"1","i":"%d.25","r":"","T":0,"st":1}}'
    ) % (pair, T0 + second * 1_000, pair, number + 1, number + 1)


def candle_frame(number: int) -> bytes:
    """A closing frame, another minute for each number."""
    open_ms = T0 + number * 60_000
    return (
        b'{"stream":"t0usdt@kline_1m","data":{"e":"kline","E":%d,"s":"T0USDT","k":{"t":%d, "T":%d, '
        b'"s":"T0USDT", "i":"1m", "f":1, "L":2, "o":"%d", "c":"%d", "h":"%d", "l":"%d", "v":"1", '
        b'"n":2, "x":true, "q":"1", "V":"1", "Q":"1", "B":"0"}}}'
    ) % (open_ms + 60_000, open_ms, open_ms + 59_999, *[number + 1] * 4)


async def flood(directory: Path, marks: int) -> Report:
    """Fill the disk, take `marks` mark prices and some candles in, make room, and count what is there."""
    report, counters, disk = Report(marks=marks), CollectorCounters(), SmallDisk("self", directory)
    path = directory / "journal.db"
    async with JournalWriter(path) as writer:
        clock = ExchangeClock()
        # Later than all frames: none is refused for its stamp.
        clock.set_server_time(T0 + 365 * DAY_MS, 0.0)
        intake = Intake(writer, FrameDecoder(SYMBOLS), counters, clock, 60_000, lambda: None)
        committing = asyncio.create_task(intake.run())
        disk.fill()
        report.rss_before = rss_bytes()
        turned_s = time.monotonic()
        for number in range(marks):
            if number % CANDLE_EVERY == 0:
                intake.on_frame(candle_frame(report.candles))
                report.candles += 1
            intake.on_frame(mark_frame(number))
            if number % PER_TURN == 0:
                await asyncio.sleep(0)
                now_s = time.monotonic()
                report.longest_turn_s = max(report.longest_turn_s, now_s - turned_s)
                turned_s = now_s
                report.most_pending = max(report.most_pending, intake.pending)
                if number % 50_000 == 0:
                    report.rss_most = max(report.rss_most, rss_bytes())
        # At least once more, so that what is too much is given up.
        failures = counters.commit_failures
        while counters.commit_failures == failures:
            await asyncio.sleep(0.01)
            report.rss_most = max(report.rss_most, rss_bytes())
        report.failures = counters.commit_failures
        disk.make_room()
        started_s = time.monotonic()
        while intake.pending or intake.trouble:
            await asyncio.sleep(0.01)
        report.whole_after_s = time.monotonic() - started_s
        report.given_up = dict(counters.records_given_up)
        intake.end()
        await committing
    with Journal.open(path) as journal:
        counts = journal.row_counts()
        report.marks_stored, report.candles_stored = counts["mark_price"], counts["candle"]
        report.oldest_mark_stored = journal.db.execute(
            "SELECT min(time) FROM mark_price"
        ).fetchone()[0]
    return report


def main() -> None:
    """See the module's docstring."""
    report = uvloop.run(flood(Path(sys.argv[1]), int(sys.argv[2])))
    sys.stdout.write(json.dumps(msgspec.to_builtins(report)) + "\n")


if __name__ == "__main__":
    main()
