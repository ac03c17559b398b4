"""Which instruments are to be collected: exchangeInfo or its last known copy, and the choice made of it."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import UNNAMED
from marketfeed.binance.symbols import (
    PERPETUAL,
    ExchangeInfo,
    Instrument,
    Selection,
    parse_exchange_info,
    select_named,
)
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import ExchangeError, ExchangeRefusedError, JournalError, backoff_s
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.life_book import LifeBook
from marketfeed.pairs.selection import NONE_COLLECTED, Listing, left_out, select
from marketfeed.settings.model import ExchangeSettings, TopPairs

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 60.0
FAILURES_ALLOWED: Final = 3
"""So many failures in a row to tell what is traded are a problem: listings are hours ahead, not seconds."""
LISTING_EVERY_S: Final = 180.0
"""Exchange seconds between two questions what is traded, more or less; never below the next (wall s)."""
LISTING_AT_LEAST_S: Final = 0.25
EXCHANGE_INFO: Final = "exchange_info"
CHOSEN_PAIRS: Final = "chosen_pairs"
SAVE_EVERY_S: Final = 86_400.0


class InstrumentSource:
    """Finds out what to collect, at the start and ever after. The exchange being down is waited for.

    `heard_ms` tells when (exchange ms) the last frame of a pair came, 0 for none: what still brings data has
    not ended. A row that is missing ends nothing.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        rest: BinanceRest,
        clock: ExchangeClock,
        writer: JournalWriter,
        heard_ms: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self.problem = ""
        """Why there is no list yet, or none of the exchange's own of now; empty when all is well."""
        self.uses_copy = False
        """Whether, while there is a problem, the last known list is used."""
        self.newest: Listing | None = None
        """The last list that was fetched and believed."""
        self.turns = rest.turns
        """The queue before the exchange's REST API, with what it has answered."""
        self._settings = settings
        self._rest = rest
        self._clock = clock
        self._writer = writer
        self.book = LifeBook(writer, rest, clock, heard_ms)
        """Which contracts pairs are and have been the names of."""
        self._trouble = Trouble(
            log, "exchangeInfo cannot be fetched", "exchangeInfo is fetched again"
        )
        self._known: Mapping[str, Instrument] | None = None
        self._saved_s = -math.inf
        self._soon = asyncio.Event()
        self._chosen: Sequence[str] | None = None

    def on_journal_replaced(self) -> None:
        """Have what a journal keeps for the next start written again, with the next answer."""
        self._saved_s = -math.inf
        self.book.on_journal_replaced()

    async def load(self, stop: asyncio.Event) -> Listing | None:
        """Return what to collect, or None as soon as `stop` is set before that is known."""
        loading = asyncio.create_task(self._keep_loading(), name="loading")
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        try:
            # An exchange, or a name server, that hangs must not hold up a stop.
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            return loading.result() if loading.done() else None
        finally:
            loading.cancel()
            stopping.cancel()
            await asyncio.gather(loading, stopping, return_exceptions=True)

    async def load_once(self) -> Listing:
        """Return what to collect, for a command: nothing is waited for. Raises ExchangeError."""
        info = await self._exchange_info()
        selection = await self._selection(info)
        for pair, reason in selection.refused.items():
            log.warning("configured pair is left out pair=%s reason=%r", pair, reason)
        if others := left_out(self._settings, info):
            log.info("%s", others)
        if not selection.instruments:
            log.error("%s: nothing to collect", NONE_COLLECTED)
        self.newest = Listing(selection, info)
        return self.newest

    async def _keep_loading(self) -> Listing:
        trouble = Trouble(log, "exchange not ready", "exchange is ready")
        while True:
            try:
                listing = await self.load_once()
            except ExchangeError as error:
                trouble.met(error)
                self.problem = str(error)
                await asyncio.sleep(self._wait_s(trouble.failures, error))
            else:
                trouble.end()
                return listing

    def ask_soon(self) -> None:
        """Have `follow` ask now what is traded, and not in minutes."""
        self._soon.set()

    async def follow(self, on_listing: Callable[[Listing], Awaitable[None]]) -> None:
        """Ask every few minutes what is traded, and hand each answer on; lasts until it is cancelled.

        An answer that did not come, or was not believed, changes nothing; it becomes a `problem`
        when it is not the first in a row.
        """
        trouble = self._trouble
        wait_s = RETRY_FIRST_S if self.problem else self._until_next_s()
        while True:
            await wait_at_most(wait_s, self._soon)
            self._soon.clear()
            had_problem = bool(self.problem)
            try:
                info = await self._fetch()
                listing = Listing(await self._selection(info), info)
            except (ExchangeError, JournalError) as error:
                trouble.met(error)
                if had_problem or trouble.failures >= FAILURES_ALLOWED:
                    self.problem, self.uses_copy = str(error), True
                wait_s = self._wait_s(trouble.failures, error)
            else:
                trouble.end()
                self.newest = listing
                wait_s = self._until_next_s()
                await on_listing(listing)

    def _until_next_s(self) -> float:
        every_s = LISTING_EVERY_S * random.uniform(0.8, 1.2)
        return self._clock.wall_s(every_s, LISTING_AT_LEAST_S)

    def _wait_s(self, failures: int, error: Exception) -> float:
        """Wall seconds until the next attempt: what the exchange has asked for, if that is longer."""
        asked_s = error.retry_after_s if isinstance(error, ExchangeRefusedError) else None
        return self._clock.wall_s(asked_s or 0.0, backoff_s(failures, RETRY_FIRST_S, RETRY_CAP_S))

    async def _exchange_info(self) -> ExchangeInfo:
        try:
            await self._rest.server_time()
            return await self._fetch()
        except ExchangeError as error:
            known = await self._writer.load_document(EXCHANGE_INFO)
            if known is None:
                raise
            body, saved_ms = known
            self.problem, self.uses_copy = str(error), True
            self._trouble.met(error)
            log.warning(
                "the last known copy of exchangeInfo is used age_h=%.1f",
                (self._clock.now_ms() - saved_ms) / schema.HOUR_MS,
            )
            return await self.book.correct(parse_exchange_info(body))

    async def _fetch(self) -> ExchangeInfo:
        """Take exchangeInfo, keep it, and return it corrected by the lives. Raises ExchangeError."""
        body = await self._rest.exchange_info()
        info = parse_exchange_info(body)
        listed = info.instruments
        odd = [(symbol or UNNAMED, why) for symbol, why in info.odd.items()]
        self._rest.turns.note_odd("exchangeInfo", odd)
        if self._known is None:
            known = await self._writer.load_document(EXCHANGE_INFO)
            self._known = {} if known is None else parse_exchange_info(known[0]).instruments
        now_s = self._clock.elapsed_s()
        # It is 1.2 MB: written when it says something new, and once in a while.
        if self._known != listed or now_s - self._saved_s >= SAVE_EVERY_S:
            await self._save(EXCHANGE_INFO, body)
            self._saved_s = now_s
        self._known = listed
        self.problem, self.uses_copy = "", False
        return await self.book.take_in(info)

    async def _selection(self, info: ExchangeInfo) -> Selection:
        selection = await self._select(info)
        await self.book.watch([one.pair for one in selection.instruments])
        return selection

    async def _select(self, info: ExchangeInfo) -> Selection:
        wanted = self._settings.pairs
        kept = self.book.known(dropped=wanted != "all")
        if not isinstance(wanted, TopPairs):
            return await select(self._settings, self._rest, info, kept)
        # The top pairs are chosen once and kept: a set that changed with each start would tear holes.
        name = chosen_name(self._settings.quote, wanted.count, self._settings.contracts)
        try:
            # Each time: `marketfeed pairs --drop` takes pairs out of it, and nobody else writes it any more.
            document = await self._writer.load_document(name)
        except JournalError:
            if self._chosen is None:
                raise
            return select_named(info, self._chosen, known=kept)
        # None at all was once saved when nothing traded.
        if document is not None and (chosen := msgspec.json.decode(document[0], type=list[str])):
            self._chosen = chosen
        elif self._chosen is None:
            selection = await select(self._settings, self._rest, info)
            self._chosen = [instrument.pair for instrument in selection.instruments]
            await self._save(name, msgspec.json.encode(self._chosen))
            return selection
        else:
            # In a journal that was begun anew.
            await self._save(name, msgspec.json.encode(self._chosen))
        return select_named(info, self._chosen, known=kept)

    async def _save(self, name: str, body: bytes) -> None:
        try:
            await self._writer.save_document(name, body, self._clock.now_ms())
        except JournalError as error:
            log.warning("document not saved name=%s error=%r", name, str(error))


def chosen_name(quote: str, count: int, contracts: Sequence[str] = PERPETUAL) -> str:
    """The document that keeps the choice of the top `count` pairs of these types: a JSON list of pairs."""
    name = f"{CHOSEN_PAIRS}:{quote}:{count}"
    # Earlier versions know coins alone: their choice is that of `perpetual`.
    return name if tuple(contracts) == PERPETUAL else f"{name}:{'+'.join(contracts)}"
