"""The collector rolls over: no candle is lost, and only what has proven itself takes over.

MARKETFEED_TEST_ROLLOVERS: how often (`make proofs`: 30).
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from marketfeed.binance.rollover import Ages
from marketfeed.collector.collector import Collector
from marketfeed.journal.journal import Journal
from marketfeed.records import differing_fields
from marketfeed.schema import MINUTE_MS, TIMEFRAMES_MS
from marketfeed.settings.model import Settings
from marketfeed.simulator.fault_kinds import Drop, Mute, Refuse
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

ROLLOVERS = int(os.environ.get("MARKETFEED_TEST_ROLLOVERS", "12"))
NEVER_S = 1e9


class Rolling:
    """A collector that rolls over often, and its exchange."""

    def __init__(self, sim: Simulator, collector: Collector, path: Path) -> None:
        self.sim = sim
        self.collector = collector
        self.path = path
        self.stored_ms = 0
        """What had closed by then was stored or healed before the collector was stopped."""

    def outcomes(self, name: str) -> int:
        return self.collector.report().rollovers.get(name, 0)

    def names(self) -> set[str]:
        return {one.name.partition("-")[0] for one in self.collector.report().connections}

    def has_lost(self, name: str) -> bool:
        """Whether a connection that was open is not, or has been opened again."""
        connections = self.collector.report().connections
        return any(c.name == name and (c.state != "open" or c.opened > 1) for c in connections)

    @property
    def delivering(self) -> bool:
        report = self.collector.report()
        ready = report.ready_pairs == report.pairs
        return report.healthy and ready and report.mark_price_age_s is not None

    async def minutes(self, minutes: float) -> None:
        until_ms = self.sim.now_ms() + minutes * MINUTE_MS
        await until(lambda: self.sim.now_ms() >= until_ms)

    async def wait_stored(self) -> None:
        """Wait until what has closed is stored."""
        self.stored_ms = self.sim.now_ms()
        await self.minutes(0.2)
        await until(lambda: not self.collector.report().missing_candles)
        commits = self.collector.report().journal.commits
        await until(lambda: self.collector.report().journal.commits >= commits + 2)


@contextlib.asynccontextmanager
async def _running(path: Path, ages: Ages, options: SimulatorOptions) -> AsyncIterator[Rolling]:
    async with Simulator(options) as sim:
        settings = Settings.model_validate(
            {
                "exchange": {
                    "ws_url": sim.ws_url,
                    "rest_url": sim.rest_url,
                    "pairs": "all",
                    "timeframes": list(options.timeframes),
                },
                "journal": {"path": str(path)},
                "status": {"port": 0},
            }
        )
        collector = Collector(settings, ages=ages)
        stop = asyncio.Event()
        task = asyncio.create_task(collector.run(stop))
        try:
            yield Rolling(sim, collector, path)
        finally:
            stop.set()
            await sim.faults.end()
            await task


def run_rolling(
    path: Path, check: Callable[[Rolling], Awaitable[None]], ages: Ages, **options: Any
) -> None:
    async def run() -> None:
        chosen = {"pairs": 12, "timeframes": ("1m", "3m"), "speed": 60.0, **options}
        async with _running(path, ages, SimulatorOptions(**chosen)) as rolling:
            await until(lambda: rolling.delivering)
            await check(rolling)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(run())


def assert_complete(rolling: Rolling, from_ms: int, until_ms: int) -> int:
    """Every candle that closed in a range of time was heard, is stored, and is right; how many."""
    with Journal.open(rolling.path) as journal:
        stored = {
            (pair, timeframe, candle.open_time_ms): candle
            for pair in {one.pair for one in rolling.sim.market.instruments}
            for timeframe in ("1m", "3m")
            for candle in journal.candles(pair, timeframe, 0, 1 << 60)
        }
    published = [
        one
        for one in rolling.sim.published()
        if from_ms <= one.open_time_ms
        and one.open_time_ms + TIMEFRAMES_MS[one.timeframe] <= until_ms
    ]
    for one in published:
        assert one.receivers > 0, one
        candle = stored[one.pair, one.timeframe, one.open_time_ms]
        assert not differing_fields(candle, one)
    # At this speed a busy machine makes candles late; what came late is reported so.
    assert_healed(rolling)
    return len(published)


def assert_healed(rolling: Rolling) -> set[str]:
    """No gap is open of what had closed when it was waited for; returns the kinds of those there were."""
    with closing(sqlite3.connect(rolling.path)) as db:
        # A first filling goes on behind: it is no gap of the feed.
        gaps = db.execute(
            """SELECT kind, start, "end", healed FROM gap WHERE kind NOT LIKE 'history%'"""
        ).fetchall()
    old = [gap for gap in gaps if gap[1] < rolling.stored_ms and (gap[2] or 0) <= rolling.stored_ms]
    assert [gap for gap in old if not gap[3] or gap[2] is None] == []
    return {kind for kind, *_ in old}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def often(**more: float) -> Ages:
    return Ages(**{"roll_from_s": 20.0, "roll_before_s": 40.0, "hard_s": NEVER_S, **more})


@pytest.mark.long(25)
def test_no_candle_is_lost_over_many_rollovers(path: Path) -> None:
    time_range: list[int] = []
    held: list[Rolling] = []

    async def check(rolling: Rolling) -> None:
        held.append(rolling)
        time_range.append(rolling.sim.now_ms())
        done = rolling.outcomes("proven")
        await until(
            lambda: rolling.outcomes("proven") >= done + ROLLOVERS, timeout_s=60.0 * ROLLOVERS
        )
        await until(lambda: rolling.delivering)
        time_range.append(rolling.sim.now_ms())
        await rolling.wait_stored()
        assert rolling.outcomes("unproven") == 0
        assert rolling.collector.report().rejects == {}

    run_rolling(path, check, often(roll_from_s=5.0, roll_before_s=10.0), speed=240.0)
    assert assert_complete(held[0], *time_range) > ROLLOVERS


@pytest.mark.parametrize("stream", ["ethusdt@markPrice", "btcusdt@kline_3m"])
def test_a_generation_with_a_muted_stream_does_not_take_over(path: Path, stream: str) -> None:
    time_range: list[int] = []
    held: list[Rolling] = []

    async def check(rolling: Rolling) -> None:
        held.append(rolling)
        time_range.append(rolling.sim.now_ms())
        await rolling.sim.faults.start(Mute(stream, new_connections=True))
        given_up, done = rolling.outcomes("given_up"), rolling.outcomes("proven")
        await until(lambda: rolling.outcomes("given_up") > given_up)
        assert rolling.outcomes("proven") <= done + 1  # one may have been under way
        # The exchange comes to itself: the next one takes over.
        await rolling.sim.faults.end()
        done = rolling.outcomes("proven")
        await until(lambda: rolling.outcomes("proven") > done)
        await until(lambda: rolling.delivering)
        time_range.append(rolling.sim.now_ms())
        await rolling.wait_stored()

    run_rolling(path, check, often(retry_s=1.0, prove_s=60.0))
    assert assert_complete(held[0], *time_range) > 0


def test_refused_connects_leave_the_old_ones_alone(path: Path) -> None:
    time_range: list[int] = []
    held: list[Rolling] = []

    async def check(rolling: Rolling) -> None:
        held.append(rolling)
        time_range.append(rolling.sim.now_ms())
        await until(lambda: rolling.outcomes("proven") > 0)
        await rolling.sim.faults.start(Refuse())
        given_up = rolling.outcomes("given_up")
        await until(lambda: rolling.outcomes("given_up") > given_up)
        # Nothing that counts is wrong.
        await until(lambda: rolling.delivering)
        await rolling.sim.faults.end()
        done = rolling.outcomes("proven")
        await until(lambda: rolling.outcomes("proven") > done)
        time_range.append(rolling.sim.now_ms())
        await rolling.wait_stored()

    run_rolling(path, check, often(retry_s=1.0))
    assert assert_complete(held[0], *time_range) > 0


def test_the_old_connections_may_die_in_the_middle(path: Path) -> None:
    held: list[Rolling] = []
    died: list[str] = []

    async def check(rolling: Rolling) -> None:
        held.append(rolling)
        # Until this ends the new connections are not proven: both stand when the old one dies.
        faults = rolling.sim.faults
        given_up = rolling.outcomes("given_up")
        muted = await faults.start(Mute("ethusdt@markPrice", new_connections=True))
        # What was under way before is over then.
        await until(lambda: rolling.outcomes("given_up") > given_up)
        await until(lambda: len(rolling.names()) == 2)
        # What counts comes first.
        died.append(rolling.collector.report().connections[0].name)
        await faults.start(Drop(min(c.number for c in rolling.sim.hub.connections)))
        await until(lambda: rolling.has_lost(died[0]))
        await faults.end(muted)
        done = rolling.outcomes("proven")
        await until(lambda: rolling.outcomes("proven") > done)
        await until(lambda: rolling.delivering)
        await rolling.minutes(2)
        await rolling.wait_stored()

    run_rolling(path, check, often(roll_from_s=100.0, roll_before_s=100.0, retry_s=1.0))
    # What was lost with the old one is back with the new ones: nothing stays open, no candle is missing.
    assert f"connection_{died[0]}" in assert_healed(held[0])


def test_at_the_hard_limit_open_connections_are_taken_as_they_are(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(rolling: Rolling) -> None:
        await rolling.sim.faults.start(Mute("ethusdt@markPrice", new_connections=True))
        await until(lambda: rolling.outcomes("unproven") > 0)

    run_rolling(
        path,
        check,
        Ages(roll_from_s=60.0, roll_before_s=60.0, hard_s=300.0, retry_s=1.0),
    )
    assert "unproven" in caplog.text
    assert "first=ethusdt@markPrice" in caplog.text


def test_a_stop_in_the_middle_of_a_rollover_is_clean(path: Path) -> None:
    async def check(rolling: Rolling) -> None:
        await until(lambda: len(rolling.names()) == 2)

    run_rolling(path, check, often())
    assert not Path(f"{path}-wal").exists()
