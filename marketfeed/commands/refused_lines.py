"""Lines that InfluxDB refused: reading them, and sending them again. The collector may run meanwhile."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from marketfeed.errors import MarketfeedError
from marketfeed.influxdb.delivery import Delivery, NotNowError
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.records import RefusedLine
from marketfeed.settings.model import Settings

AT_ONCE: Final = 500


def read_refused(path: Path) -> list[RefusedLine]:
    """Return the lines put aside in the journal at `path`, oldest first. Raises JournalError."""
    with RefusedLines(path) as table:
        return table.read()


def lines_gone(path: Path) -> int:
    """How many more there were, pushed out by newer ones. Raises JournalError."""
    with RefusedLines(path) as table:
        return table.gone()


async def resend_refused(settings: Settings) -> int:
    """Send all refused lines again, line by line where a batch is refused; returns how many were taken.

    A row that has changed since, and was perhaps taken meanwhile, is sent as it stands now: its old line
    would undo it. What is taken is forgotten.

    Raises MarketfeedError when the server takes nothing at all, JournalError.
    """
    if settings.influxdb.url is None:
        raise MarketfeedError("influxdb.url is null: there is nowhere to send lines to")
    taken = 0
    with RefusedLines(settings.journal.path, dropping=True) as table:
        left = table.read()
        outbox = JournalOutbox(settings.journal.path, socket.gethostname())
        try:
            async with aiohttp.ClientSession() as session:
                # A line without an answer stays in the table: it is in no doubt.
                delivery = Delivery(InfluxWriter(settings.influxdb, session), UnansweredLines(0.0))
                for start in range(0, len(left), AT_ONCE):
                    accepted = await _send(delivery, outbox, left[start : start + AT_ONCE])
                    table.drop(item.number for item in accepted)
                    taken += len(accepted)
        finally:
            outbox.close()
    return taken


async def _send(
    delivery: Delivery, outbox: JournalOutbox, items: list[RefusedLine]
) -> list[RefusedLine]:
    """Send lines as they stand, until they stand still; returns those that were taken."""
    items = await asyncio.to_thread(_as_they_stand, outbox, items)
    accepted: list[RefusedLine] = []
    while items:
        taken = await _taken(delivery, items)
        accepted += taken
        # What has changed while they travelled may have been shipped before they arrived.
        after = await asyncio.to_thread(_as_they_stand, outbox, taken)
        items = [now for now, sent in zip(after, taken, strict=True) if now.line != sent.line]
        changed = {item.number for item in items}
        accepted = [item for item in accepted if item.number not in changed]
    return accepted


def _as_they_stand(outbox: JournalOutbox, items: list[RefusedLine]) -> list[RefusedLine]:
    texts = outbox.as_they_stand(item.line for item in items)
    return [
        item if text is None else msgspec.structs.replace(item, line=text)
        for item, text in zip(items, texts, strict=True)
    ]


async def _taken(delivery: Delivery, items: list[RefusedLine]) -> list[RefusedLine]:
    try:
        refused = dict(await delivery.states([item.line for item in items], AT_ONCE))
    except NotNowError as error:
        raise MarketfeedError(f"not sent: {error}") from error
    return [item for item in items if item.line not in refused]
