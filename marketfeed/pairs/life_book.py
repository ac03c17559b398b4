"""Keeps the lives of pairs: from the journal, by each answer of exchangeInfo, by REST where that is in doubt.

Nothing here is waited for by the listing: an answer is judged by what is known, and what REST says later
counts with the next one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from marketfeed import schema
from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import ExchangeInfo, Instrument
from marketfeed.counters import Trouble
from marketfeed.errors import ExchangeError, JournalError, backoff_s
from marketfeed.journal.coverage import Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.known_lives import SILENT_FOR_MS, KnownLives
from marketfeed.pairs.lives import Doubt, Lives
from marketfeed.records import CatalogEntry

log = logging.getLogger(__name__)

ASKED_BY: Final = "1d"
AGAIN_AFTER_S: Final = 60.0
"""Exchange seconds between two answers without a candle, of which both are needed."""
ASK_AT_LEAST_S: Final = 0.25
SILENT_AT_LEAST_S: Final = 2.0
"""Wall seconds without a frame that are needed, too: a minute of a fast simulator is over in a moment."""
RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 60.0


class LifeBook:
    """The lives of pairs, as one journal keeps them; `run` asks REST until it is cancelled.

    `heard_ms` tells when (exchange ms) the last frame of a pair came, 0 for none.
    """

    def __init__(
        self,
        writer: JournalWriter,
        rest: BinanceRest,
        clock: ExchangeClock,
        heard_ms: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._writer = writer
        self._rest = rest
        self._clock = clock
        self._heard_ms = heard_ms
        self._lives: KnownLives | None = None
        # Whose lives are saved, and asked about: of other contracts nobody wants to know.
        self._watched: frozenset[str] = frozenset()
        # What is to be asked, each with when (exchange s) there was no candle at first.
        self._open: dict[Doubt, float | None] = {}
        self._answered: set[Doubt] = set()
        self._woken = asyncio.Event()
        self._trouble = Trouble(
            log, "the exchange does not say when contracts traded", "it says when contracts traded"
        )

    @property
    def lives(self) -> Mapping[str, Lives]:
        """The lives of what is collected, by pair."""
        known = self._known.lives
        return {pair: known[pair] for pair in self._watched if pair in known}

    @property
    def perhaps_replaced(self) -> frozenset[str]:
        """Pairs whose symbol may be another contract's by now; empty before the first answer."""
        return frozenset() if self._lives is None else self._lives.perhaps_replaced

    @property
    def silent_for_ms(self) -> int:
        """Exchange ms without a frame after which a pair is silent."""
        return max(SILENT_FOR_MS, int(SILENT_AT_LEAST_S * 1000 * self._clock.speed))

    def forget(self, pairs: Iterable[str]) -> None:
        """Take pairs for none that were collected before: the settings have dropped them."""
        self._known.forget(pairs)

    def known(self, *, dropped: bool) -> dict[str, Instrument]:
        """What was collected before and has not ended, by pair; with `dropped` what was dropped, too."""
        return self._known.known(self._clock.now_ms(), dropped=dropped)

    def on_journal_replaced(self) -> None:
        """Have everything saved again, with the next answer."""
        if self._lives is not None:
            self._lives.changed.update(self._lives.lives)

    async def take_in(self, info: ExchangeInfo) -> ExchangeInfo:
        """Learn from an answer, and return it corrected by what is known. Raises JournalError at first."""
        known = await self._loaded()
        return known.take_in(info, self._clock.now_ms(), self._heard_ms, self.silent_for_ms)

    async def correct(self, info: ExchangeInfo) -> ExchangeInfo:
        """An answer of an earlier time, corrected: nothing is learned. Raises JournalError at first."""
        return (await self._loaded()).corrected(info, self._clock.now_ms())

    async def watch(self, pairs: Collection[str]) -> None:
        """Save what is known of `pairs`, and have REST asked what is in doubt of them."""
        known = self._known
        added = frozenset(pairs) - self._watched
        self._watched |= added
        for doubt in known.doubts:
            if doubt.pair in self._watched and doubt not in self._answered:
                self._open.setdefault(doubt, None)
        if self._open:
            self._woken.set()
        changed = {pair: known.lives[pair] for pair in known.changed & self._watched}
        for pair, lives in changed.items():
            if len(lives) > 1:
                log.warning("a symbol is another contract's now pair=%s lives=%d", pair, len(lives))
        if changed:
            # The intake logs a journal that cannot be written; the next answer tries again.
            with contextlib.suppress(JournalError):
                await self._writer.call(lambda journal: journal.save_lives(changed))
                known.changed -= changed.keys()

    async def run(self) -> None:
        """Ask REST what is in doubt, in the background."""
        while True:
            self._woken.clear()
            pause_s: float | None = None
            now_s = self._clock.elapsed_s()
            for doubt, empty_s in list(self._open.items()):
                if empty_s is not None and now_s - empty_s < AGAIN_AFTER_S:
                    continue
                try:
                    await self._ask(doubt)
                except (ExchangeError, JournalError) as error:
                    self._trouble.met(error)
                    pause_s = backoff_s(self._trouble.failures, RETRY_FIRST_S, RETRY_CAP_S)
                else:
                    self._trouble.end()
            if pause_s is None and self._open:
                pause_s = self._clock.wall_s(AGAIN_AFTER_S, ASK_AT_LEAST_S)
            if pause_s is None:
                await self._woken.wait()
            else:
                await asyncio.sleep(pause_s)

    # --- inside -----------------------------------------------------------------------------------

    @property
    def _known(self) -> KnownLives:
        if self._lives is None:
            raise RuntimeError("asked before anything was taken in")
        return self._lives

    async def _loaded(self) -> KnownLives:
        if self._lives is None:
            known = KnownLives()
            lives, catalog, oldest_ms = await self._writer.call(_stored)
            known.remember(lives, catalog, oldest_ms)
            # What ended while nobody looked is among them, too.
            self._watched = frozenset(entry.pair for entry in catalog)
            self._lives = known
        return self._lives

    async def _ask(self, doubt: Doubt) -> None:
        """Ask for the candle of the day before: one is proof at once, none has to be said twice."""
        day_ms, pair = doubt.day_ms, doubt.pair
        contract = Instrument(doubt.symbol, pair, "", "", "", 0, 0)
        until_ms = day_ms + schema.DAY_MS
        answer = await self._rest.klines(contract, ASKED_BY, day_ms, until_ms, Priority.HISTORY)
        if answer.unclear and not answer.candles:
            raise ExchangeError(
                f"klines: the candle of the day before {pair} was listed is unclear"
            )
        traded = bool(answer.candles)
        if not traded and self._open[doubt] is None:
            self._open[doubt] = self._clock.elapsed_s()
            return
        newest_ms = None
        if not traded:
            newest_ms = await self._writer.call(
                lambda journal: journal.newest_close_before(pair, until_ms)
            )
        self._known.answered(doubt, traded, newest_ms)
        self._answered.add(doubt)
        del self._open[doubt]
        log.warning(
            "a contract is said to be listed later than it was known to be pair=%s listed_ms=%d "
            "traded_before=%s",
            pair,
            doubt.listed_ms,
            traded,
        )


def _stored(
    journal: Journal,
) -> tuple[dict[str, Lives], list[CatalogEntry], dict[Key, int]]:
    return journal.lives(), journal.catalog(), journal.oldest_candles()
