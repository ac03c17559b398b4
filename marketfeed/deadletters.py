"""Lines that InfluxDB refused: reading them, and sending them again. The collector may run meanwhile."""

from pathlib import Path
from typing import Final

import aiohttp

from marketfeed.config import Settings
from marketfeed.errors import MarketfeedError
from marketfeed.influx_write import InfluxWriter
from marketfeed.journal import RefusedLines
from marketfeed.records import RefusedLine

AT_ONCE: Final = 500


def read_refused(path: Path) -> list[RefusedLine]:
    """Return the lines put aside in the journal at `path`, oldest first. Raises JournalError."""
    with RefusedLines(path) as table:
        return table.read()


async def resend_refused(settings: Settings) -> int:
    """Send all refused lines again, line by line where a batch is refused; returns how many were taken.

    What is taken is forgotten. Raises MarketfeedError when the server takes nothing at all, JournalError.
    """
    if settings.influxdb.url is None:
        raise MarketfeedError("influxdb.url is null: there is nowhere to send lines to")
    taken = 0
    with RefusedLines(settings.journal.path) as table:
        left = table.read()
        async with aiohttp.ClientSession() as session:
            influx = InfluxWriter(settings.influxdb, session)
            for start in range(0, len(left), AT_ONCE):
                accepted = await _send(influx, left[start : start + AT_ONCE])
                table.drop(item.number for item in accepted)
                taken += len(accepted)
    return taken


async def _send(influx: InfluxWriter, items: list[RefusedLine]) -> list[RefusedLine]:
    verdict = await influx.write([item.line for item in items])
    if verdict.action == "acknowledged":
        return items
    if verdict.action != "split":
        raise MarketfeedError(f"not sent: {verdict.text}")
    if len(items) == 1:
        return []
    middle = len(items) // 2
    return [*await _send(influx, items[:middle]), *await _send(influx, items[middle:])]
