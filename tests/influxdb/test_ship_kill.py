"""kill -9 at random moments of shipping: afterwards InfluxDB holds what the journal holds, once.

`KILLS=500` kills more often than the 50 times of every run; `SEED` repeats a run's moments. Half of the
processes ship to a 1.x server, half to a 2.x one that fails, hangs up and loses answers meanwhile.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from front import Front
from front_faults import SERVER_ERROR, UNAVAILABLE, Cut, Slow, too_many
from influxd import Influxd

from marketfeed.commands.compare_influxdb import InfluxComparison, compare
from marketfeed.commands.refused_lines import read_refused
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.reading import reading

KILLS = int(os.environ.get("KILLS", "50"))
SEED = int(os.environ.get("SEED", "1"))
RUNNER = Path(__file__).with_name("kill_ship_runner.py")
START_S, EACH_S = 120.0, 5.0
"""Far more than it takes: to end a run that hangs."""
FAULTS = [Cut(stored=True), Cut(stored=False), SERVER_ERROR, UNAVAILABLE, too_many("0"), Slow(0.02)]


def compared(path: Path, target: dict[str, Any]) -> InfluxComparison:
    async def ask() -> InfluxComparison:
        async with aiohttp.ClientSession() as session:
            admin = InfluxAdmin(InfluxSettings.model_validate(target), session)
            return await compare(admin, target["bucket"], path, socket.gethostname())

    return asyncio.run(ask())


@pytest.mark.long(55)
def test_kills_while_shipping_lose_nothing_and_double_nothing(
    influxd: Influxd, database: str, front: Front, tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    targets: list[dict[str, Any]] = [
        {"url": influxd.url, "api": "v1", "bucket": database},
        {"url": front.url, "org": front.org, "bucket": "market_data", "token": front.token},
    ]
    random_ = random.Random(SEED)
    front.fail(*(random_.choice([*FAULTS, None, None]) for _ in range(10 * KILLS)))
    runner = subprocess.Popen(
        [sys.executable, RUNNER, str(KILLS), str(SEED), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = runner.communicate(json.dumps(targets), START_S + EACH_S * KILLS)
    finally:
        runner.kill()
        runner.wait()
    assert runner.returncode == 0, errors
    report = json.loads(output)
    assert report["fault"] == "", f"{report}\n{errors}"
    assert report["kills"] == KILLS
    # It was no walk in the park.
    assert report["requests"] > KILLS
    assert report["killed_while"]["sending"] > 0
    assert report["demands"] > 0
    for target in targets:
        rows = compared(path, target)
        assert (rows.missing, rows.extra) == (0, 0), rows.examples
        assert set(rows.rows) == {
            "ohlcv_1m", "mark_price", "funding_rate", "funding_settled", "feed_gap", "feed_catalog",
        }  # fmt: skip
        report[target["url"]] = rows.rows
    assert read_refused(path) == []
    with reading(KIND, path) as db:
        left = {name for (name,) in db.execute("SELECT target FROM shipped")}
        assert not db.execute("SELECT 1 FROM shipping WHERE again").fetchall()
    given = [InfluxSettings.model_validate(target) for target in targets]
    assert left == {target_of(influx) for influx in given}, "every demand was met"
    sys.stdout.write(json.dumps(report) + "\n")
