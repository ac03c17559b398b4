"""Hourly mark candles against the simulated exchange: their history, and each hour as it ends."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web

from marketfeed.collector.collector import Collector
from marketfeed.commands.history import AuditRequest, run_audit
from marketfeed.gaps.holes import MARK_1H_LATE_MS
from marketfeed.grid import TimeRange
from marketfeed.journal.view import JournalView
from marketfeed.schema import DAY_MS, HOUR_MS, MARK_1H, floor_to
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.coverage_check import check_coverage
from tests.waiting import until

PAIRS: Final = 4
DAYS: Final = 3
SPEED: Final = 60.0
START_MS: Final = floor_to(1_790_006_400_000, HOUR_MS) + 58 * 60_000
"""Two minutes before the turn of an hour."""


def settings_for(path: Path, sim: Simulator) -> Settings:
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "pairs": {"top": PAIRS},
                "timeframes": ["15m"],
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": {"days": DAYS, "weight_per_minute": 1_200},
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def rows_of(sim: Simulator, symbol: str, since_ms: int, count: int) -> list[list[Any]]:
    query = urlencode({"symbol": symbol, "interval": "1h", "startTime": since_ms, "limit": count})
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{sim.rest_url}/fapi/v1/markPriceKlines?{query}") as response,
    ):
        rows: list[list[Any]] = await response.json()
    return rows


def test_history_and_the_next_hour_are_the_exchanges(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=PAIRS, timeframes=("15m",), speed=SPEED, start_ms=START_MS)
        async with Simulator(options) as sim:
            collector = Collector(settings_for(path, sim))
            stop = asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            hour_ms = floor_to(START_MS, HOUR_MS)
            view = JournalView(path)

            def has_hour() -> bool:
                history = collector.report().history
                if history is None or history.mark_candles is None:
                    return False
                ends = [one.end_ms for key, one in view.coverage().items() if key[1] == MARK_1H]
                return len(ends) == PAIRS and min(ends) >= hour_ms + HOUR_MS

            await until(has_hour)
            await until(lambda: collector.report().state == "well")
            report = collector.report().history
            assert report is not None
            assert report.mark_candles is not None
            assert (report.mark_candles.state, report.mark_candles.candles_left) == ("complete", 0)
            requests = collector.report().rest.requests
            # The history of each pair is one request, the hour another; the audit asks now and then.
            assert requests["markPriceKlines"] >= 2 * PAIRS
            known = view.coverage()
            for entry in view.catalog():
                covered = known[entry.pair, MARK_1H]
                assert covered.holes == ()
                assert covered.end_ms - covered.from_ms >= DAYS * DAY_MS
                count = (hour_ms + HOUR_MS - covered.from_ms) // HOUR_MS
                truth = await rows_of(sim, entry.symbol, covered.from_ms, count)
                stored = await asyncio.to_thread(
                    view.candles,
                    entry.pair,
                    MARK_1H,
                    TimeRange(covered.from_ms, hour_ms + HOUR_MS),
                )
                found = [
                    (one.open_time_ms, one.open, one.high, one.low, one.close) for one in stored
                ]
                assert found == [(row[0], *map(float, row[1:5])) for row in truth]
            stop.set()
            await running

    uvloop.run(run())
    assert check_coverage(path).mistakes == []


def test_an_audit_compares_them_and_mends_what_a_hand_has_done(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(
            pairs=PAIRS, timeframes=("15m",), speed=SPEED, start_ms=START_MS - 40 * 60_000
        )
        async with Simulator(options) as sim:
            config = settings_for(path, sim)
            collector, stop = Collector(config), asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            await until(lambda: collector.report().state == "well")
            stop.set()
            await running
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute(
                    "UPDATE mark_1h SET close = close * 2, high = high * 2 WHERE pair_id = 1"
                )
            request = AuditRequest(days=1, weight_per_minute=2_400)
            found = await run_audit(config, request, lambda _: None)
            of_marks = [one for one in found.series if one.timeframe == MARK_1H]
            assert len(of_marks) == PAIRS
            assert all(one.compared >= 23 and not one.missing for one in of_marks)
            (wrong,) = [one for one in of_marks if one.different]
            assert wrong.different == wrong.compared
            mended = await run_audit(
                config, msgspec.structs.replace(request, repair=True), lambda _: None
            )
            assert mended.repaired == wrong.different
            again = await run_audit(config, request, lambda _: None)
            assert (again.different, again.errors) == (0, [])

    uvloop.run(run())
    assert check_coverage(path).mistakes == []


def test_an_hour_that_the_exchange_does_not_have_is_a_reason_until_it_has_said_so_twice(
    path: Path,
) -> None:
    async def run() -> None:
        options = SimulatorOptions(
            pairs=PAIRS, timeframes=("15m",), speed=SPEED, start_ms=START_MS - 8 * 60_000
        )
        async with Simulator(options) as sim:
            collector, stop = Collector(settings_for(path, sim)), asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            await until(lambda: collector.report().state == "well")
            hour_ms = floor_to(START_MS, HOUR_MS)
            assert sim.now_ms() < hour_ms + HOUR_MS

            async def without(name: str) -> web.Response | None:
                return web.json_response([]) if name == "markPriceKlines" else None

            sim.rest.on_request = without

            def reasons() -> list[str]:
                return [text for text in collector.report().reasons if "mark candles" in text]

            seen: list[tuple[int, list[str]]] = []

            def said() -> bool:
                # The clock after the reasons: what they say was true by then.
                found = reasons()
                seen.append((sim.now_ms(), found))
                return bool(found)

            await until(said)
            # None before its ten minutes are over.
            assert seen[-1][0] - (hour_ms + HOUR_MS) >= MARK_1H_LATE_MS
            (reason,) = seen[-1][1]
            assert reason.startswith(
                f"{PAIRS} hourly mark candles are missing for more than 10 min"
            )
            await until(lambda: not reasons())
            known = JournalView(path).coverage()
            holes = [one.holes for key, one in known.items() if key[1] == MARK_1H]
            assert len(holes) == PAIRS
            assert all(hole.is_absent for (hole,) in holes)
            # Others are candles still.
            assert sum(key[1] == "15m" for key in known) == PAIRS
            stop.set()
            await running

    uvloop.run(run())
    assert check_coverage(path).mistakes == []
