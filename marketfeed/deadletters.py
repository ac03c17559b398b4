"""Lines that InfluxDB refused: reading them, and sending them again. The collector may run meanwhile."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from marketfeed.config import Settings
from marketfeed.errors import MarketfeedError
from marketfeed.influx_write import InfluxWriter
from marketfeed.journal import RefusedLines
from marketfeed.outbox import Outbox
from marketfeed.records import RefusedLine

AT_ONCE: Final = 500


def read_refused(path: Path) -> list[RefusedLine]:
    """Return the lines put aside in the journal at `path`, oldest first. Raises JournalError."""
    with RefusedLines(path) as table:
        return table.read()


async def resend_refused(settings: Settings) -> int:
    """Send all refused lines again, line by line where a batch is refused; returns how many were taken.

    A row that has changed since, and was perhaps taken meanwhile, is sent as it stands now: its old line
    would undo it. What is taken is forgotten.

    Raises MarketfeedError when the server takes nothing at all, JournalError.
    """
    if settings.influxdb.url is None:
        raise MarketfeedError("influxdb.url is null: there is nowhere to send lines to")
    taken = 0
    with RefusedLines(settings.journal.path) as table:
        left = await asyncio.to_thread(_as_they_stand, settings.journal.path, table.read())
        async with aiohttp.ClientSession() as session:
            influx = InfluxWriter(settings.influxdb, session)
            for start in range(0, len(left), AT_ONCE):
                accepted = await _send(influx, left[start : start + AT_ONCE])
                table.drop(item.number for item in accepted)
                taken += len(accepted)
    return taken


def _as_they_stand(path: Path, items: list[RefusedLine]) -> list[RefusedLine]:
    outbox = Outbox(path, socket.gethostname())
    try:
        return [
            msgspec.structs.replace(item, line=outbox.as_it_stands(item.line)) for item in items
        ]
    finally:
        outbox.close()


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
