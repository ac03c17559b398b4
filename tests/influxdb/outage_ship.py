"""A process that writes points into a journal at an even rate and ships them, reporting how that goes.

Point number `i` is the mark price of pair `i % pairs` in second `i // pairs`, so that anybody can say
what must be stored in the end. Points with negative numbers are a backlog, written before.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import uvloop

from marketfeed.clock import wait_at_most
from marketfeed.counters import rss_bytes
from marketfeed.influxdb.answers import Verdict
from marketfeed.influxdb.expiry import Expiry
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import MarkPrice
from marketfeed.schema import MARK_PRICE
from marketfeed.settings.model import InfluxSettings

START_MS: Final = 1_767_225_600_000
TICKS_PER_S: Final = 20
TELL_EVERY_S: Final = 0.1
BACKLOG_COMMIT: Final = 8_200


class Task(msgspec.Struct, frozen=True):
    """What to do: `per_s` points a wall second of `pairs` pairs, or only write `backlog` points."""

    journal: str
    influx: dict[str, str]
    pairs: int
    per_s: int
    backlog: int = 0


class Progress(msgspec.Struct, frozen=True):
    """How it goes at `at_s` (monotonic). `lag_s`: since the newest acknowledged point was committed."""

    at_s: float
    points: int
    unshipped: int
    lag_s: float
    rss_bytes: int
    state: str


def values(number: int) -> tuple[float, float]:
    """Mark and index price of a point."""
    return 1.0 + number % 99_991 / 7, 2.0 + number % 9_973 / 3


def pair_name(index: int) -> str:
    """The name of a pair."""
    return f"P{index:04d}/USDT:USDT"


def mark(number: int, pairs: int) -> MarkPrice:
    """The point of that number."""
    second, index = divmod(number, pairs)
    return MarkPrice(pair_name(index), START_MS + second * 1_000, *values(number))


def write_backlog(task: Task) -> None:
    """Write the points -backlog … -1, oldest first."""
    with Journal.open(Path(task.journal)) as journal:
        for first in range(-task.backlog, 0, BACKLOG_COMMIT):
            batch = Batch()
            batch.extend(
                mark(number, task.pairs) for number in range(first, min(0, first + BACKLOG_COMMIT))
            )
            journal.write(batch)


class _Watched(InfluxWriter):
    """Keeps the number of the newest point that has been acknowledged."""

    pairs = 1
    newest = -1

    async def write(self, lines: list[str]) -> Verdict:
        verdict = await super().write(lines)
        if verdict.action == "acknowledged":
            # Newest first, as they are sent.
            head, _, time_ms = lines[0].rpartition(" ")
            index = int(head.partition("pair=P")[2][:4])
            second = (int(time_ms) - START_MS) // 1_000
            self.newest = max(self.newest, second * self.pairs + index)
        return verdict


async def ship(task: Task) -> None:
    """Write and ship until a line comes on standard input, then ship what is left."""
    influx = InfluxSettings.model_validate(task.influx)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    async with aiohttp.ClientSession() as session, JournalWriter(Path(task.journal)) as writer:
        watched = _Watched(influx, session)
        watched.pairs = task.pairs
        # As a collector's does.
        shipper = Shipper(
            writer, watched, documents=writer, keeps_ms=Expiry(influx, session).keeps_ms
        )
        shipping = asyncio.create_task(shipper.run())
        written: list[float] = []

        def send_progress() -> None:
            progress = _progress(task, writer, shipper, watched, written)
            sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\n")
            sys.stdout.buffer.flush()

        async def report_on() -> None:
            while True:
                await asyncio.sleep(TELL_EVERY_S)
                send_progress()

        reporting = asyncio.create_task(report_on())
        await _write_evenly(task, writer, written, stop)
        while shipper.shipped_below() < writer.next_seq:
            await asyncio.sleep(0.05)
        reporting.cancel()
        send_progress()
        shipper.end()
        await shipping


async def _write_evenly(
    task: Task, writer: JournalWriter, written: list[float], stop: asyncio.Event
) -> None:
    """Commit a tick's points 20 times a second; `written` is when each tick was committed."""
    started_s = time.monotonic()
    for numbers in _ticks(task):
        batch = Batch()
        batch.extend(mark(number, task.pairs) for number in numbers)
        await writer.call(lambda journal, batch=batch: journal.write(batch))
        written.append(time.monotonic())
        wait_s = started_s + len(written) / TICKS_PER_S - time.monotonic()
        if await wait_at_most(max(0.0, wait_s), stop):
            return


def _ticks(task: Task) -> Iterator[range]:
    size, number = task.per_s // TICKS_PER_S, 0
    while True:
        yield range(number, number + size)
        number += size


def _progress(
    task: Task, writer: JournalWriter, shipper: Shipper, watched: _Watched, written: list[float]
) -> Progress:
    now_s = time.monotonic()
    size = task.per_s // TICKS_PER_S
    acknowledged = (watched.newest + 1) // size
    newest_s = now_s
    if written:
        # Before the first acknowledgement: since there is anything to acknowledge.
        newest_s = written[max(1, min(acknowledged, len(written))) - 1]
    shipped = sum(last - first + 1 for first, last in shipper.shipped[MARK_PRICE])
    return Progress(
        at_s=now_s,
        points=len(written) * size,
        unshipped=writer.next_seq - 1 - shipped,
        lag_s=now_s - newest_s,
        rss_bytes=rss_bytes(),
        state=shipper.report().state,
    )


def main() -> None:
    """The argument is the task as JSON, and whether to write the backlog only."""
    task = msgspec.json.decode(sys.argv[2], type=Task)
    if sys.argv[1] == "backlog":
        write_backlog(task)
    else:
        uvloop.run(ship(task))


if __name__ == "__main__":
    main()
