"""A shipper at work on a journal, towards a 1.x server or a 2.x one, and what has arrived there."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from filled import QUICK
from front import Front
from influxd import Influxd

from marketfeed.commands.compare_influxdb import InfluxComparison, compare
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.coverage_points import LivesOf
from marketfeed.influxdb.expiry import Expiry
from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.writer import JournalWriter
from marketfeed.settings.model import InfluxSettings


@dataclass(frozen=True)
class Target:
    """Where to ship to: the settings, and the database in influxd that holds it."""

    settings: Mapping[str, Any]
    influxd: Influxd
    database: str
    front: Front | None

    def configure(self, path: Path, **more: Any) -> dict[str, str]:
        """Write settings with this InfluxDB to `path`; returns the environment of a command for them."""
        influx = dict(self.settings)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
        if "token" in influx:
            kept["MARKETFEED_INFLUXDB__TOKEN"] = influx.pop("token")
        path.write_text(json.dumps({"influxdb": influx, **more}))
        return kept | {"COLUMNS": "250", "NO_COLOR": "1", "MARKETFEED_CONFIG": str(path)}

    def write(self, *lines: str) -> None:
        """Put something there, past all rules."""
        self.influxd.write(self.database, lines)


def v1_target(influxd: Influxd, database: str) -> Target:
    """A database of a 1.x server."""
    if getattr(influxd, "kind", "1.x") != "1.x":
        pytest.skip("api v1: this server is a 2.x")
    settings = {"url": influxd.url, "api": "v1", "bucket": database}
    return Target(settings, influxd, database, None)


def v2_target(front: Front) -> Target:
    """The bucket market_data of a 2.x server."""
    bucket = front.buckets["market_data"]
    settings = {"url": front.url, "org": front.org, "token": front.token, "bucket": bucket.name}
    return Target(settings, front.influxd, bucket.database, front)


@contextlib.asynccontextmanager
async def shipping(
    path: Path,
    settings: Mapping[str, Any],
    pace: Pace = QUICK,
    now_ms: Callable[[], int] | None = None,
    lives: Callable[[], LivesOf] | None = None,
    *,
    holds: bool = False,
) -> AsyncIterator[tuple[JournalWriter, Shipper]]:
    """A journal and its shipper, which is stopped at the end as a collector does.

    `holds`: what the bucket refuses as a whole is held, as a collector's shipper does.
    """
    influx = InfluxSettings.model_validate(dict(settings))
    async with aiohttp.ClientSession() as session, JournalWriter(path) as writer:
        shipper = Shipper(
            writer,
            InfluxWriter(influx, session),
            pace,
            now_ms=now_ms,
            coverage=lambda: writer.coverage,
            lives=lives,
            documents=writer if holds else None,
            keeps_ms=Expiry(influx, session).keeps_ms if holds else None,
        )
        task = asyncio.create_task(shipper.run())
        try:
            yield writer, shipper
        finally:
            shipper.end()
            await task


async def compared(path: Path, settings: Mapping[str, Any]) -> InfluxComparison:
    """What arrived against what the journal holds."""
    influx = InfluxSettings.model_validate(dict(settings))
    async with aiohttp.ClientSession() as session:
        admin = InfluxAdmin(influx, session)
        return await compare(admin, influx.bucket, path, socket.gethostname())


def marketfeed(
    environment: Mapping[str, str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "marketfeed", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=dict(environment),
    )
