"""Takes points out of a bucket for which the books hold no trade any more.

A point goes once all rows up to its number have been acknowledged and no request is in doubt: a write that
is still under way would bring it back. Then a trade that stands at its place now is shipped once more.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import aiohttp

from marketfeed.bots.books import Books
from marketfeed.bots.books_thread import BooksThread
from marketfeed.counters import Trouble
from marketfeed.errors import JournalWriteError
from marketfeed.influxdb.erase import EraseError, erase
from marketfeed.influxdb.shipper import Shipper
from marketfeed.settings.model import InfluxSettings

log = logging.getLogger(__name__)

AT_ONCE: Final = 100


class GonePoints:
    """The points of one bucket that are to go; `measurements` says of each of its bots where they stand."""

    def __init__(
        self,
        influx: InfluxSettings,
        measurements: Mapping[str, str],
        books: BooksThread,
        shipper: Shipper,
        session: aiohttp.ClientSession,
        every_s: float = 5.0,
    ) -> None:
        self._influx = influx
        self._measurements = measurements
        self._books = books
        self._shipper = shipper
        self._session = session
        self._every_s = every_s
        self.trouble = Trouble(
            log,
            f"points cannot be taken out bucket={influx.bucket}",
            f"points are taken out again bucket={influx.bucket}",
        )
        self.erased = 0

    async def run(self) -> None:
        """Take them out, on and on. Raises JournalError when the books are damaged."""
        while True:
            try:
                while await self.take_out():
                    pass
                self.trouble.end()
            except EraseError as error:
                self.trouble.met(error)
            except JournalWriteError as error:
                if error.damaged:
                    raise
                self.trouble.met(error)
            await asyncio.sleep(self._every_s)

    async def take_out(self) -> int:
        """Take out some of those that may go now; how many. Raises EraseError."""
        if self._shipper.report().in_doubt:
            return 0
        below = self._shipper.shipped_below()
        bots = tuple(self._measurements)
        gone = await self._books.call(lambda books: books.gone_points(bots, below, AT_ONCE))
        for point in gone:
            tags = {"bot": point.bot, "pair": point.pair, "side": point.side}
            measurement = self._measurements[point.bot]
            await erase(self._influx, self._session, measurement, tags, point.point_ms)
            await self._books.call(partial(Books.note_gone_points, gone=[point]))
            self.erased += 1
        return len(gone)
