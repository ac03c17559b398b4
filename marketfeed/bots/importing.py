"""Copies foreign trades that no bot's database has from InfluxDB into the books."""

import asyncio
import time
from functools import partial

import aiohttp
import msgspec

from marketfeed.bots.books import Books
from marketfeed.bots.books_reading import read_trades
from marketfeed.bots.books_schema import IMPORTED
from marketfeed.bots.books_thread import BooksThread
from marketfeed.bots.buckets import influx_of, measurements_by_bucket
from marketfeed.bots.foreign_rows import imported
from marketfeed.bots.points import Points
from marketfeed.errors import JournalError
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.settings.model import Settings


class ImportDone(msgspec.Struct, frozen=True):
    """What became of the foreign points of one bot.

    `partners` have a trade in the books, `other_zone` have one whose time is another zone's; `trades` are in
    the books now as imported, `new` of them by this. `refused` counts the others by the reason.
    """

    bot: str
    points: int
    partners: int
    other_zone: int
    trades: int
    new: int
    refused: dict[str, int]


async def import_foreign(settings: Settings, session: aiohttp.ClientSession) -> list[ImportDone]:
    """Import for every bot of the fleet; to do it twice changes nothing.

    Nobody else may be writing the books. Raises JournalError when there are none yet, or somebody does, and
    InfluxError.
    """
    fleet = settings.bots.fleet
    path = settings.bots.books.path
    together = {
        name
        for bots in measurements_by_bucket(fleet).values()
        for name, measurement in bots.items()
        if list(bots.values()).count(measurement) > 1
    }
    if together:
        raise JournalError(
            f"bots {', '.join(sorted(together))} share a bucket and measurement: whose its foreign points "
            "are nobody can tell"
        )
    # Without the bots' own trades every foreign one would seem to have no partner.
    await asyncio.to_thread(read_trades, path)
    done = []
    async with BooksThread(path) as books:
        for name, bot in fleet.items():
            influx = influx_of(settings.influxdb, bot.bucket_of(name))
            source = Points(InfluxAdmin(influx, session), influx, bot.measurement)
            points = [point async for point in source.foreign()]
            kept = await books.call(partial(Books.kept, bot=name))
            own = [one.trade for one in kept if one.origin != IMPORTED]
            found = imported(points, own, bot.side, time.time_ns() // 1_000_000)
            new = await books.call(
                partial(Books.record, bot=name, trades=found.trades, origin=IMPORTED)
            )
            done.append(
                ImportDone(
                    name,
                    len(points),
                    found.partners,
                    found.other_zone,
                    len(found.trades),
                    new,
                    found.refused,
                )
            )
    return done
