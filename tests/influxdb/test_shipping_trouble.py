"""An InfluxDB that cannot be reached, or refuses lines, shows in `/health` and metrics of a collector."""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from endpoint import serving, stored

from marketfeed.collector.collector import Collector
from marketfeed.collector.reasons import SHIPPING_TROUBLE_S, Kind
from marketfeed.collector.status_report import StatusReport
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

PAIRS = 3


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address at which nobody listens, nor will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextlib.asynccontextmanager
async def collecting(
    path: Path, sim: Simulator, influxdb: dict[str, Any], trouble_s: float
) -> AsyncIterator[Collector]:
    settings = Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "pairs": {"top": PAIRS},
                "timeframes": ["1m"],
            },
            "journal": {"path": str(path)},
            "influxdb": influxdb,
            "status": {"port": 0},
        }
    )
    collector = Collector(settings, shipping_trouble_s=trouble_s)
    stop = asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        await until(
            lambda: (
                (report := collector.report()).mark_price_age_s is not None and not report.overdue
            )
        )
        yield collector
    finally:
        stop.set()
        await task


def test_a_dead_influxdb_is_named_once_it_is_no_restart(
    tmp_path: Path, dead_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert SHIPPING_TROUBLE_S == 30.0
    path = tmp_path / "journal.db"
    influxdb = {"url": dead_url, "org": "fleet", "token": "canary-token"}
    caplog.set_level(logging.INFO)

    async def run() -> None:
        async with (
            Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=10)) as sim,
            aiohttp.ClientSession() as http,
        ):
            # A journal with rows in it, none of them shipped.
            async with collecting(path, sim, {}, 30.0) as collector:
                assert collector.report().shipping is None
            caplog.clear()
            # As the collector is set: a short outage is no reason.
            async with collecting(path, sim, influxdb, 30.0) as collector:
                await until(
                    lambda: (
                        (shipping := collector.report().shipping) is not None and shipping.trouble
                    )
                )
                assert not [text for text in collector.report().reasons if "InfluxDB" in text]
            caplog.clear()
            async with collecting(path, sim, influxdb, 0.0):
                reported = re.search(r"status_url=(\S+)", caplog.text)
                assert reported is not None
                async with asyncio.timeout(180.0):
                    while True:
                        async with http.get(f"{reported[1]}/health") as answer:
                            health = await answer.json()
                        if any("InfluxDB" in reason for reason in health["reasons"]):
                            break
                        await asyncio.sleep(0.02)
                assert answer.status == 503
                (reason,) = [text for text in health["reasons"] if "InfluxDB" in text]
                assert re.match(
                    r"shipping to InfluxDB is waiting for \d+ s: .*Cannot connect", reason
                )
                async with http.get(f"{reported[1]}/status") as answer:
                    status = msgspec.json.decode(await answer.read(), type=StatusReport)
                assert status.shipping is not None
                assert status.shipping.unshipped >= PAIRS
                assert status.shipping.lines == 0
                assert status.shipping.state == "waiting"
                async with http.get(f"{reported[1]}/metrics") as answer:
                    metrics = await answer.text()
                rows = re.search(r"^marketfeed_unshipped_rows (\S+)$", metrics, re.MULTILINE)
                assert rows is not None
                assert float(rows[1]) >= PAIRS
                trouble = re.search(
                    r"^marketfeed_ship_trouble_seconds (\S+)$", metrics, re.MULTILINE
                )
                assert trouble is not None
                assert float(trouble[1]) > 0
                assert re.search(r"^marketfeed_healthy 0\.0$", metrics, re.MULTILINE)
                assert "canary-token" not in metrics + caplog.text + str(health)

    uvloop.run(run())


def test_lines_that_are_refused_are_a_reason_for_ten_minutes(tmp_path: Path) -> None:
    def refusing(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        # The others of a request are tried without them.
        if not any(line.startswith("funding_rate,") for line in lines):
            return stored(lines)
        return 422, b'{"code": "unprocessable entity", "message": "field type conflict"}', {}

    async def run() -> None:
        async with (
            Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=60)) as sim,
            serving() as server,
        ):
            server.answer = refusing
            influxdb = {"url": server.url, "org": "fleet", "token": "canary-token"}
            async with collecting(tmp_path / "journal.db", sim, influxdb, 30.0) as collector:

                def reasons() -> list[str]:
                    return [one for one in collector.report().reasons if "refused lines" in one]

                await until(reasons)
                (reason,) = reasons()
                assert re.match(
                    r"InfluxDB refused lines, the last of them \d+ s ago: .*field type conflict",
                    reason,
                )
                assert reason.endswith(f"(until {Kind.LINES_REFUSED.ends})")
                assert not collector.report().healthy
                server.answer = stored
                started_ms = sim.now_ms()
                await until(lambda: not reasons())
                assert sim.now_ms() - started_ms >= 500_000
                await until(lambda: collector.report().healthy)
                # It is over; they are kept, and counted in the journal.
                await collector._writer.take_stock()
                assert collector.report().journal.refused_lines > 0

    uvloop.run(run())
