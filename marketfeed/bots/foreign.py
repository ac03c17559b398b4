"""Foreign points in a bots' bucket: what they are, and whether somebody still writes them."""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import aiohttp
import msgspec

from marketfeed.bots.points import Points
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.schema import DAY_MS
from marketfeed.settings.model import InfluxSettings

log = logging.getLogger(__name__)

WATCH_EVERY_S: Final = 600.0


class ForeignFound(msgspec.Struct, frozen=True):
    """Foreign points of a measurement: how many, the first and the last (ms), and all fields' types."""

    count: int
    first_ms: int | None
    last_ms: int | None
    types: dict[str, list[str]]


async def look(points: Points) -> ForeignFound:
    """What foreign points there are, of any age. Raises InfluxError."""
    count, first_ms, last_ms = 0, None, None
    async for point in points.foreign():
        last_ms = int(point["time"])
        first_ms = last_ms if first_ms is None else first_ms
        count += 1
    return ForeignFound(count, first_ms, last_ms, await points.field_types())


class Foreign:
    """Watches one bucket for others that write into the measurements of its bots."""

    def __init__(
        self,
        influx: InfluxSettings,
        measurements: Mapping[str, str],
        session: aiohttp.ClientSession,
        every_s: float = WATCH_EVERY_S,
    ) -> None:
        self._admin = InfluxAdmin(influx, session)
        self._influx = influx
        self._measurements = measurements
        self._every_s = every_s
        self._newest_ms: dict[str, int] = {}

    async def watch(self) -> None:
        """Look on and on; an InfluxDB that does not answer is shown by shipping."""
        while True:
            await self.look_once()
            await asyncio.sleep(self._every_s)

    async def look_once(self) -> None:
        """Look for the newest foreign point of each measurement."""
        for bot, measurement in self._measurements.items():
            try:
                points = Points(self._admin, self._influx, measurement)
                newest_ms = await points.newest_foreign_ms()
            except InfluxError as error:
                log.debug("foreign points not looked for bot=%s error=%r", bot, str(error))
                continue
            if newest_ms is not None:
                self._newest_ms[bot] = newest_ms

    def still_writing(self) -> dict[str, str]:
        """Bot -> when the last foreign point of its measurement was; those of the last day alone."""
        since_ms = time.time_ns() // 1_000_000 - DAY_MS
        return {
            bot: f"its last point is of {words_of_time(at_ms)}"
            for bot, at_ms in self._newest_ms.items()
            if at_ms >= since_ms
        }


def words_of_time(time_ms: int) -> str:
    """A time in UTC, for people."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
