"""Asks one bot for its closed trades, again and again, and has the books agree with it.

Every look reads back to a day before the newest known close; at the start, once a day, and whenever the
bot's count does not agree with the books, all of them. Nothing is struck but by a reading of all that met as
many trades as the bot says it has.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from marketfeed.bots.books import Books, Key
from marketfeed.bots.books_thread import BooksThread
from marketfeed.bots.bot_reader import PAGE, BotReader
from marketfeed.bots.closed_trade import ClosedTrade, Exits, RefusedTradeError, exits_in
from marketfeed.bots.reading import Reading, absent, is_another_database, must_read_all
from marketfeed.counters import Trouble
from marketfeed.errors import JournalWriteError
from marketfeed.service.freqtrade_api import BotError

log = logging.getLogger(__name__)

OVERLAP: Final = 10
"""Trades that a page repeats of the one before: so many may be deleted in between."""

FindFeeders = Callable[[Sequence[tuple[Key, str]]], Awaitable[list[tuple[Key, str | None]]]]
"""Gives for each trade (key, tag) the feeders that decided it, None where nobody knows."""


class PollPace(msgspec.Struct, frozen=True):
    """How a bot is asked, in monotonic seconds: looks, pages, readings of all, after one that disagreed.

    Of `exits` trades a turn the custom data is asked for, `exits_s` apart.
    """

    every_s: float = 60.0
    page_s: float = 1.0
    whole_s: float = 86_400.0
    again_s: float = 600.0
    exits: int = 200
    exits_s: float = 0.1


class Poller:
    """The records of one bot. `now_ms` is this host's time."""

    def __init__(
        self,
        name: str,
        reader: BotReader,
        books: BooksThread,
        now_ms: Callable[[], int],
        pace: PollPace,
        feeders: FindFeeders | None = None,
    ) -> None:
        self.name = name
        self._reader = reader
        self._books = books
        self._now_ms = now_ms
        self._pace = pace
        self._feeders = feeders
        self._whole_at_s: float | None = None
        """When all was read last; None: not in this run."""
        self._disagreed_at_s: float | None = None
        self.trouble = Trouble(
            log, f"bot cannot be asked for its trades bot={name}", f"bot answers again bot={name}"
        )
        self.refused: dict[str, str] = {}
        """Trades that cannot be recorded, with the reason."""
        self.refused_exits: dict[str, str] = {}
        """Trades that are recorded, but for what their custom data says of their exits."""
        self.unstored = Trouble(
            log, f"trades cannot be stored bot={name}", f"trades are stored again bot={name}"
        )
        self.lacking = 0
        """How many closed trades fewer were read than the bot says it has."""
        self.total: int | None = None
        """How many closed trades the bot says it has."""
        self.behind_ms = 0
        """How far the bot's clock is behind this host's."""
        self.no_stop_on_exchange = False
        self.looks = self.recorded = self.struck = self.databases = 0
        self.turned_s = time.monotonic()

    async def run(self) -> None:
        """Look on and on; whatever a bot answers ends nothing, nor does a full disk.

        Raises JournalError when the books are damaged, or cannot be read.
        """
        while True:
            started_s = time.monotonic()
            try:
                await self.look()
                self.unstored.end()
            except JournalWriteError as error:
                if error.damaged:
                    raise
                # Nothing is lost by it: the bot is asked for the same again.
                self.unstored.met(error)
            await asyncio.sleep(max(0.0, self._pace.every_s - (time.monotonic() - started_s)))

    async def look(self) -> None:
        """Read what is new, or all, and have the books agree with it. Raises JournalError."""
        self.turned_s = time.monotonic()
        try:
            self.no_stop_on_exchange = await self._reader.lacks_stop_on_exchange()
            known = await self._books.call(lambda books: books.known(self.name))
            reading = await self._read(known, whole=self._is_whole_due())
            if must_read_all(reading, known, len(self.refused)) and self._may_read_again():
                reading = await self._read(known, whole=True)
            await self._agree(reading, known)
            await self._ask_exits()
            await self._ask_feeders()
        except BotError as error:
            self.trouble.met(error)
        else:
            self.trouble.end()
        self.looks += 1
        self.turned_s = time.monotonic()

    def _is_whole_due(self) -> bool:
        at_s = self._whole_at_s
        return at_s is None or time.monotonic() - at_s >= self._pace.whole_s

    def _may_read_again(self) -> bool:
        at_s = self._disagreed_at_s
        return at_s is None or time.monotonic() - at_s >= self._pace.again_s

    async def _read(self, known: Mapping[Key, int], *, whole: bool) -> Reading:
        """Read pages, each into the books at once: a kill loses none of them.

        As long as none of them has a trade that is known, though some are, they wait: if the bot has begun
        another database, the books have to note that before they take of it (`_agree`).
        """
        newest_ms = max(known.values(), default=None)
        reading, offset = Reading(), 0
        while True:
            page = await self._reader.page(offset, self._now_ms())
            self.behind_ms = page.behind_ms
            before = reading.read
            trades = reading.take(page.rows, page.total, self._now_ms())
            if not known or any(key in known for key in reading.trades):
                await self._record([*reading.waiting, *trades])
                reading.waiting = []
            else:
                reading.waiting += trades
            self.turned_s = time.monotonic()
            if len(page.rows) < PAGE:
                reading.whole = True
                return reading
            if offset and reading.read == before:
                raise BotError(
                    f"{self._reader.url}/trades: the same trades again at offset {offset}"
                )
            if not whole and reading.is_enough(newest_ms):
                return reading
            offset += PAGE - OVERLAP
            await asyncio.sleep(self._pace.page_s)

    async def _record(self, trades: Sequence[ClosedTrade]) -> None:
        self.recorded += await self._books.call(lambda books: books.record(self.name, trades))

    async def _agree(self, reading: Reading, known: Mapping[Key, int]) -> None:
        """Take out of the books what a reading of all did not meet of what was known before it."""
        self.total = reading.total
        if not reading.whole:
            self.refused |= reading.refused
            return
        self.refused, self.lacking = reading.refused, reading.lacks()
        if not reading.is_consistent:
            # A trade that closed or went meanwhile, or a bot that does not count as it lists.
            self._disagreed_at_s = time.monotonic()
            log.warning(
                "closed trades read do not agree with the bot's count bot=%s read=%d total=%s",
                self.name,
                reading.read,
                reading.total,
            )
            return
        gone = absent(reading, known)
        if is_another_database(reading, known):
            await self._books.call(lambda books: books.begin_database(self.name, gone))
            self.databases += 1
            log.warning(
                "bot has another database, what is known of the one before stays bot=%s trades=%d",
                self.name,
                len(gone),
            )
        elif gone:
            self.struck += await self._books.call(lambda books: books.strike(self.name, gone))
            log.warning("trades struck that the bot has no more bot=%s trades=%r", self.name, gone)
        await self._record(reading.waiting)
        self._whole_at_s, self._disagreed_at_s = time.monotonic(), None

    async def _ask_exits(self) -> None:
        """Ask once for each closed trade by what it was to be closed, the newest first."""
        keys = await self._books.call(
            lambda books: books.exits_not_asked(self.name, self._pace.exits)
        )
        for key in keys:
            answer = await self._reader.custom_data(key[1])
            try:
                exits = exits_in(answer, key[1])
            except RefusedTradeError as error:
                log.warning("exits of a trade refused bot=%s why=%r", self.name, str(error))
                self.refused_exits[f"exits of trade {key[1]}"] = str(error)
                exits = Exits()
            await self._books.call(partial(Books.note_exits, bot=self.name, found=[(key, exits)]))
            self.turned_s = time.monotonic()
            await asyncio.sleep(self._pace.exits_s)

    async def _ask_feeders(self) -> None:
        if self._feeders is None:
            return
        orders = await self._books.call(
            lambda books: books.feeders_not_asked(self.name, self._pace.exits)
        )
        if orders:
            found = await self._feeders(orders)
            await self._books.call(lambda books: books.note_feeders(self.name, found))
