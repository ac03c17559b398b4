"""Settled rates that are older than what REST gives: from the archive's months to both readers.

A real collector, an exchange whose REST API begins late, its archive, and a real influxd.
"""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest
from both import Both
from influxd import Influxd

from marketfeed.grid import TimeRange
from marketfeed.history.archive_rates import lacking
from marketfeed.schema import DAY_MS, HOUR_MS
from marketfeed.simulator.server import SimulatorOptions
from reader import MarketReader
from reader.feeder import FUNDING_RATE, Download, Feeder
from tests.faults.proc_commands import Collecting, run_command, write_config
from tests.faults.scripted_rest import Asked, scripted_rest

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT")
WAIT_S: Final = 180.0


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


START_MS: Final = ms("2026-10-24")
GIVEN_FROM_MS: Final = ms("2026-10-05T08:00")
"""REST gives what was settled from here on."""
CORRUPT: Final = "ETHUSDT-fundingRate-2026-08.zip"


def late(asked: Asked, body: Any) -> Any:
    """What REST gives."""
    if asked.endpoint == "fundingRate":
        return [row for row in body if row["fundingTime"] >= GIVEN_FROM_MS]
    return body


def test_older_rates_come_from_the_archive(influxd: Influxd, database: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"

    async def collected(config: Path, so: Callable[[dict[str, Any], str], bool]) -> str:
        with Collecting(run_command(config), tmp_path / "run.log") as collecting:
            async with asyncio.timeout(WAIT_S):
                while not so(await asyncio.to_thread(collecting.status), collecting.log):
                    await asyncio.sleep(0.1)
            assert await asyncio.to_thread(collecting.stop) == 0
            return collecting.log

    async def run() -> None:
        options = SimulatorOptions(pairs=PAIRS, timeframes=("1h",), start_ms=START_MS, speed=10.0)
        async with scripted_rest(options) as exchange:
            exchange.changed = late
            archive = exchange.sim.archive
            assert archive is not None
            archive.corrupt.add(CORRUPT)
            config = write_config(
                tmp_path,
                exchange.sim.ws_url,
                exchange.url,
                exchange={
                    "pairs": list(PAIRS),
                    "timeframes": ["1h"],
                    "archive": True,
                    "archive_url": exchange.sim.rest_url,
                },
                history={"days": 60, "weight_per_minute": 2_400},
                influxdb={"url": influxd.url, "api": "v1", "bucket": database},
            )
            log = await collected(
                config,
                lambda report, log: (
                    bool(report["settled"])
                    and report["settled"]["history_pairs"] == 0
                    and report["mark_price_age_s"] is not None
                    and report["history"]["history"]["state"] == "complete"
                    # The last file that is asked for.
                    and CORRUPT in log
                ),
            )
            # What REST gives comes from there: with the mark price, which the archive does not have.
            assert re.search(rf"archive file of settled rates refused error='{CORRUPT}: ", log)
            rows = stored(journal)
            for pair in PAIRS:
                times = rows[pair]
                first_ms = (
                    START_MS - 60 * DAY_MS + 8 * HOUR_MS if pair == PAIRS[0] else ms("2026-09-01")
                )
                absent = set(range(first_ms, GIVEN_FROM_MS, 8 * HOUR_MS))
                # The days of October before what REST gives are in no file yet.
                assert absent - times == set(range(ms("2026-10-01"), GIVEN_FROM_MS, 8 * HOUR_MS))
            # A next start asks for what was refused alone.
            archive.corrupt.clear()
            before = archive.asked
            await collected(
                config, lambda _, __: ms("2026-08-31T16:00") in stored(journal)[PAIRS[1]]
            )
            assert archive.asked - before == 2

    asyncio.run(run())
    Both(influxd, database, journal).add()
    answers = []
    for url in (f"sqlite:///{journal}", influxd.url):
        with MarketReader.connect(url, bucket=database, now_ms=lambda: START_MS) as reader:
            frame = reader.get_funding_history(PAIRS[1], START_MS - 90 * DAY_MS, START_MS)
            assert isinstance(frame, pd.DataFrame)
            feeder = Feeder(reader, lambda: START_MS)
            asked = Download(PAIRS[1], "1h", FUNDING_RATE, GIVEN_FROM_MS, 1_000)
            answers.append((frame.to_numpy().tolist(), feeder.answer([asked])[0]))
    assert answers[0] == answers[1]
    assert len(answers[0][0]) > 150
    assert len(answers[0][1]) > 50


def stored(journal: Path) -> dict[str, set[int]]:
    """The times of the settled rates of each pair."""
    with MarketReader.connect(f"sqlite:///{journal}", now_ms=lambda: START_MS) as reader:
        return {
            pair: {
                int(date.timestamp() * 1000)
                for date in reader.get_funding_history(pair, START_MS - 90 * DAY_MS, START_MS).date
            }
            for pair in PAIRS
        }


@pytest.mark.parametrize(
    ("start", "end", "asked", "found"),
    [
        (
            "2026-08-25",
            "2026-10-05",
            (),
            [("2026-09-01", "2026-10-01"), ("2026-08-25", "2026-09-01")],
        ),
        ("2026-08-25", "2026-10-05", ("2026-09-01",), [("2026-08-25", "2026-09-01")]),
        ("2026-09-01", "2026-10-01", (), [("2026-09-01", "2026-10-01")]),
        ("2026-08-03", "2026-08-20", (), [("2026-08-03", "2026-08-20")]),
        # What lies within the longest interval is no sign that anything lacks.
        ("2026-09-01", "2026-09-02", (), []),
        ("2026-09-01", "2026-08-01", (), []),
        ("2026-10-01", "2026-10-20", (), []),
    ],
)
def test_months_that_hold_what_lacks(
    start: str, end: str, asked: tuple[str, ...], found: list[tuple[str, str]]
) -> None:
    wanted = lacking(TimeRange(ms(start), ms(end)), [ms(name) for name in asked], START_MS)
    assert wanted == [TimeRange(ms(first), ms(last)) for first, last in found]
