"""What a real InfluxDB is said to have, it has: in and after outages, and kills of who ships.

`KILLS=50` kills more often than the 6 times of every run.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from influxd import Influxd
from shipped import shipping
from shipped_coverage import PACE, SERIES, START_MS, Load, absent, lacking, told

from marketfeed.grid import TimeRange
from marketfeed.influxdb.bucket_coverage import interval
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.schema import HOUR_MS
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.acknowledged import demand_again
from reader import MarketReader
from tests.waiting import until

CHILD = Path(__file__).with_name("shipped_coverage.py")
KILLS = int(os.environ.get("KILLS", "6"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Influxd]:
    """An influxd of its own: it is killed."""
    with Influxd(tmp_path / "influxd") as server:
        server.query("CREATE DATABASE market_data")
        yield server


def settings_of(server: Influxd) -> dict[str, str]:
    return {"url": server.url, "api": "v1", "bucket": "market_data"}


def expected(writer: JournalWriter) -> dict[Key, TimeRange | None]:
    return {key: interval(known, []) for key, known in writer.coverage.items()}


class Watch:
    """Looks again and again whether the bucket has what it is said to have."""

    def __init__(self, server: Influxd, writer: JournalWriter) -> None:
        self.server = server
        self.writer = writer
        self.looks = 0
        self.absent: set[tuple[Key, int]] = set()

    async def look(self) -> dict[Key, TimeRange]:
        """One look; returns what was said."""
        # What was absent once may have come since, and be on its way: it was said before.
        self.absent |= absent(self.writer.coverage)
        said = await asyncio.to_thread(told, self.server, "market_data")
        wrong = await asyncio.to_thread(lacking, self.server, "market_data", said)
        self.absent |= absent(self.writer.coverage)
        assert set(wrong) - self.absent == set()
        self.looks += any(until_ms > from_ms for from_ms, until_ms in said.values())
        return said

    async def go_on(self, load: asyncio.Task[None]) -> None:
        while not load.done():
            await self.look()
        await load


async def all_said(watch: Watch, shipper: Shipper) -> None:
    """All is shipped; then all of it is said."""
    writer = watch.writer
    await until(lambda: shipper.shipped_below() == writer.next_seq)
    deadline_s = time.monotonic() + 180.0
    while await watch.look() != expected(writer):
        assert time.monotonic() < deadline_s


def answers(url: str, now_ms: int) -> dict[Key, tuple[list[bool], object]]:
    """What a reader of a store says is ready, and will never come, of each series."""
    with MarketReader.connect(url, bucket="market_data", now_ms=lambda: now_ms + 20_000) as reader:
        found = {
            key: (
                [reader.ready(*key, n) for n in (1, 20, 100, 10_000)],
                reader.get_ohlcv(*key, since=0).attrs["absent"],
            )
            for key in SERIES
        }
    assert all(all(ready[:3]) and not ready[3] for ready, _ in found.values())
    assert any(absent for _, absent in found.values())
    return found


def test_an_outage_is_in_no_interval(server: Influxd, tmp_path: Path) -> None:
    load = Load(1)

    async def main() -> None:
        async with shipping(
            tmp_path / "journal.db", settings_of(server), PACE, lambda: load.now_ms
        ) as (writer, shipper):
            watch = Watch(server, writer)
            await load.begin(writer)
            await watch.go_on(asyncio.create_task(load.go_on(60, 0.01)))
            for end, start in (
                (server.kill, server.start),
                (server.pause, server.resume),
                (server.kill, server.start),
            ):
                end()
                # More than a batch, in every series.
                await load.go_on(40)
                start()
                await watch.go_on(asyncio.create_task(load.go_on(40, 0.01)))
            await all_said(watch, shipper)
            await load.fill_all()
            await all_said(watch, shipper)
            said = await watch.look()
            assert all(part.end_ms > part.start_ms for part in said.values())
            assert watch.looks > 10
            assert await asyncio.to_thread(answers, server.url, load.now_ms) == answers(
                f"sqlite:///{tmp_path}/journal.db", load.now_ms
            )

    asyncio.run(main())


@pytest.mark.long(20)
def test_a_killed_shipper_has_said_nothing_that_the_bucket_lacks(
    server: Influxd, tmp_path: Path
) -> None:
    path, rng = tmp_path / "journal.db", random.Random(2)
    settings = settings_of(server)
    target = target_of(InfluxSettings.model_validate(settings))
    ever: set[tuple[Key, int]] = set()
    said_something = 0
    for number in range(KILLS):
        demanded = number == KILLS - 2 and demand_again(KIND, path, target) is not None
        if demanded:
            # As it is meant for: the bucket was emptied.
            server.query("DROP DATABASE market_data; CREATE DATABASE market_data")
        with (tmp_path / "log").open("a") as log:
            child = subprocess.Popen(
                [sys.executable, CHILD, path, json.dumps(settings), str(number)], stderr=log
            )
        try:
            deadline_s = time.monotonic() + 180.0
            while not any(b > a for a, b in told(server, "market_data").values()):
                assert child.poll() is None, (tmp_path / "log").read_text()[-2_000:]
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            time.sleep(rng.uniform(0.2, 1.0))
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        said = told(server, "market_data")
        with Journal.open(path) as journal:
            ever |= absent(journal.coverage)
        assert set(lacking(server, "market_data", said)) - ever == set(), f"kill {number}"
        said_something += any(b > a for a, b in said.values())
    assert said_something == KILLS

    async def end() -> None:
        load = Load(99)
        clock = START_MS + 100 * HOUR_MS
        async with shipping(path, settings, PACE, lambda: clock) as (writer, shipper):
            await load.begin(writer)
            while any(not known.is_looked_through for known in writer.coverage.values()):
                await load.look_through()
            watch = Watch(server, writer)
            watch.absent |= ever
            await all_said(watch, shipper)

    asyncio.run(end())


def test_what_was_said_of_rows_that_are_lost_is_right_once_all_is_shipped_again(
    server: Influxd, tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    settings = settings_of(server)
    clock = START_MS + HOUR_MS

    async def main() -> None:
        async with shipping(path, settings, PACE, lambda: clock) as (writer, shipper):
            load, watch = Load(3), Watch(server, writer)
            await load.begin(writer)
            await load.go_on(20)
            await load.fill_all()
            await all_said(watch, shipper)
            before: dict[Key, Covered] = dict(writer.coverage)
            rows = await writer.call(Journal.row_counts)
            # Rows are lost, and what was said of them is not.
            server.query("DELETE FROM ohlcv_1m WHERE pair = 'BTC/USDT:USDT'", "market_data")
            assert await asyncio.to_thread(
                lacking, server, "market_data", await asyncio.to_thread(told, server, "market_data")
            )
            demand_again(KIND, path, target_of(InfluxSettings.model_validate(settings)))
            lines = shipper.lines + sum(counted for counted in rows.values())
            await until(lambda: shipper.lines >= lines)
            await all_said(watch, shipper)
            assert dict(writer.coverage) == before

    asyncio.run(main())
