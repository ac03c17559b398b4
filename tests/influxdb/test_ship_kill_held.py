"""Kills of a shipper while a bucket refuses a measurement, and while what waited is sent: nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from filled import QUICK
from influxd import Influxd
from kill_ship_child import START_MS
from shipped import compared, shipping, v1_target

from marketfeed.influxdb.holds import shard_of
from tests.waiting import until

KILLS = max(16, int(os.environ.get("KILLS", "16")))
PACE = msgspec.structs.replace(QUICK, probe_every_s=0.1)
RUNNER = Path(__file__).with_name("kill_ship_runner.py")


def killed(target: dict[str, Any], path: Path, kills: int, seed: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, RUNNER, str(kills), str(seed), str(path)],
        input=json.dumps([target]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120.0 + 5.0 * kills,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["fault"] == "", f"{report}\n{done.stderr}"
    return report


def test_kills_while_rows_are_held_and_sent_again_lose_none(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    target = v1_target(influxd, database)
    target.write(f"funding_rate,pair=OLD/USDT:USDT rate=6i {START_MS}")
    settings = dict(target.settings)
    killed(settings, path, KILLS, 1)
    rows = uvloop.run(compared(path, settings))
    # Of one week all of them wait; the older writer's point is one too many.
    assert (rows.missing, rows.extra) == (rows.rows["funding_rate"], 1), rows.examples
    assert rows.missing > 0
    influxd.query("DROP MEASUREMENT funding_rate", database)
    killed(settings, path, KILLS // 2, 2)

    async def finish() -> None:
        async with shipping(path, settings, PACE, holds=True) as (writer, shipper):
            book = shipper.held.book
            await until(
                lambda: (
                    shipper.shipped_below() == writer.next_seq
                    and not shipper.held.book.holds
                    and shipper.held.book.again is None
                ),
                lambda: (book.holds, book.again),
            )

    uvloop.run(finish())
    rows = uvloop.run(compared(path, settings))
    assert (rows.missing, rows.extra) == (0, 0), rows.examples
    assert shard_of(START_MS, None)[1] > START_MS + rows.rows["funding_rate"] // 4 * 60_000
