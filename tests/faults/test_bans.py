"""A real collector that the exchange bans, or asks to wait: it asks again when that is over, not before."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from proc_commands import Collecting, run_command, write_config
from scripted_rest import Asked, ScriptedRest, scripted_rest

from marketfeed.simulator.server import SimulatorOptions
from tests.waiting import until


class Refusal(NamedTuple):
    """What `endpoint` is answered with, once; after `pause_s` exchange seconds it may be asked again."""

    endpoint: str
    status: int
    retry_after: str | None
    ban_s: float | None
    pause_s: float
    speed: float


def refusing(exchange: ScriptedRest, refusal: Refusal) -> Callable[[Asked], web.Response | None]:
    """Refuse the first request; the dates of all answers are exchange time."""

    def http_date(after_s: float) -> str:
        at_s = exchange.sim.now_ms() / 1000 + after_s
        return format_datetime(datetime.fromtimestamp(at_s, UTC), usegmt=True)

    def instead(asked: Asked) -> web.Response | None:
        if asked.endpoint != refusal.endpoint or exchange.count(asked.endpoint) != 1:
            return None
        headers = {"Date": http_date(0.0)}
        if refusal.retry_after is not None:
            # A number of hours is given as a date.
            in_hours = refusal.retry_after.removeprefix("hours ")
            dated = in_hours != refusal.retry_after
            headers["Retry-After"] = http_date(float(in_hours) * 3_600) if dated else in_hours
        message = "Way too many requests"
        if refusal.ban_s is not None:
            until_ms = exchange.sim.now_ms() + round(refusal.ban_s * 1000)
            message = (
                f"Way too many requests; IP(203.0.113.7) banned until {until_ms}. Please use …"
            )
        body = {"code": -1003, "msg": message}
        return web.json_response(body, status=refusal.status, headers=headers)

    return instead


REFUSALS = [
    pytest.param(Refusal("exchangeInfo", 418, None, 5_400.0, 5_400.0, 1_800.0), id="words"),
    pytest.param(Refusal("exchangeInfo", 418, "0", None, 120.0, 60.0), id="zero"),
    pytest.param(Refusal("exchangeInfo", 418, "hours 3", None, 10_799.0, 3_600.0), id="date"),
    pytest.param(Refusal("exchangeInfo", 503, "1764457200", None, 600.0, 300.0), id="epoch"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_it_is_asked_again_when_the_time_is_over_and_not_before(
    tmp_path: Path, refusal: Refusal
) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=2, timeframes=("1h",), speed=refusal.speed)
        async with scripted_rest(options) as exchange:
            exchange.instead = refusing(exchange, refusal)
            config = write_config(
                tmp_path, exchange.sim.ws_url, exchange.url, exchange={"timeframes": ["1h"]}
            )
            with Collecting(run_command(config), tmp_path / "run.log") as collecting:
                await until(lambda: exchange.count("exchangeInfo") >= 2)
                # A ban holds for everything, a 503 for what has answered with it.
                asked = [
                    one.at_s
                    for one in exchange.asked
                    if refusal.status == 418 or one.endpoint == "exchangeInfo"
                ]
                refused = 1 if refusal.status == 418 else 0
                pause_s = (asked[refused + 1] - asked[refused]) * refusal.speed
                assert pause_s >= refusal.pause_s
                assert await asyncio.to_thread(collecting.stop) == 0

    asyncio.run(run())


def test_a_ban_survives_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=2, timeframes=("1h",), start_ms=int(time.time() * 1000))
        async with scripted_rest(options) as exchange:
            exchange.instead = refusing(exchange, Refusal("time", 418, None, 3 * 3_600.0, 0.0, 1.0))
            config = write_config(tmp_path, exchange.sim.ws_url, exchange.url)
            for number in range(2):
                with Collecting(run_command(config), tmp_path / f"run{number}.log") as collecting:
                    await until(lambda: len(exchange.asked) == 1)
                    await asyncio.to_thread(collecting.line, "REST stopped|exchange not ready")
                    report = await asyncio.to_thread(collecting.status)
                    assert 10_700 < report["rest"]["stopped_s"] <= 10_802
                    assert "banned until" in report["rest"]["stopped_why"]
                    # At once: what was met within the last second is known to the next one, too.
                    assert await asyncio.to_thread(collecting.stop) == 0
            assert [one.endpoint for one in exchange.asked] == ["time"]

    asyncio.run(run())
