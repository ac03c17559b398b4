"""Pairs that are to be collected and that the exchange does not know any more: found, and logged once.

Two things tell: the row of exchangeInfo is missing for a day, or REST calls the symbol invalid (-1121) twice
in a row. Neither is trouble of this service, and it goes on by itself if the pair comes back; what is left to
do is to drop the pair. Since when a row is missing is kept in the journal: a day may hold many starts.
"""

import contextlib
import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import ExchangeInfo, Selection, usual_symbol
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.roster import Roster

log = logging.getLogger(__name__)

ABSENT_PAIRS: Final = "absent_pairs"
"""The document that keeps since when (exchange ms) a row is missing, by pair."""
WARNED_AFTER_MS: Final = schema.DAY_MS
INVALID_ANSWERS: Final = 2


def drop_command(pair: str) -> str:
    """The command that drops a pair."""
    return f"marketfeed pairs --drop {pair}"


class AbsentPairs:
    """Watches what is to be collected; `warnings` says what of it the exchange does not know any more.

    `can_drop`: there is a choice of pairs that one can be taken out of, not `all`.
    """

    def __init__(
        self,
        writer: JournalWriter,
        turns: Turns,
        roster: Roster,
        clock: ExchangeClock,
        *,
        can_drop: bool = True,
    ) -> None:
        self._can_drop = can_drop
        self._writer = writer
        self._turns = turns
        self._roster = roster
        self._clock = clock
        self._wanted: frozenset[str] = frozenset()
        self._since_ms: dict[str, int] = {}
        self._is_saved = True
        self._warned: dict[str, Trouble] = {}

    async def load(self, selection: Selection) -> None:
        """Take up what an earlier run has seen. Raises JournalError."""
        self._wanted = self._to_watch(selection)
        known = await self._writer.load_document(ABSENT_PAIRS)
        if known is not None:
            self._since_ms = msgspec.json.decode(known[0], type=dict[str, int])

    async def look(self, info: ExchangeInfo, selection: Selection) -> None:
        """Take in an answer of exchangeInfo that is believed, and what of it is to be collected."""
        now_ms = self._clock.now_ms()
        self._wanted = self._to_watch(selection)
        # A row that could not be read is no missing one.
        missing = [
            pair
            for pair in self._wanted - info.instruments.keys()
            if not info.may_list(self._symbol_of(pair))
        ]
        for pair in self._since_ms.keys() & info.instruments.keys():
            # The row is back: what REST said of the symbol before counts no more.
            self._turns.invalid_symbols.pop(self._symbol_of(pair), None)
        since_ms = {pair: self._since_ms.get(pair, now_ms) for pair in missing}
        self._is_saved &= since_ms == self._since_ms
        self._since_ms = since_ms
        self.check()
        if not self._is_saved:
            # The intake logs a journal that cannot be written. The next look tries again: after a restart
            # the day would begin anew.
            with contextlib.suppress(JournalError):
                await self._writer.save_document(
                    ABSENT_PAIRS, msgspec.json.encode(since_ms), now_ms
                )
                self._is_saved = True

    def check(self) -> None:
        """Log what has begun or ended since the last time."""
        found = self._found()
        for pair in self._warned.keys() - found.keys():
            self._warned.pop(pair).end()
        for pair, why in found.items():
            if pair not in self._warned:
                begins = f"the exchange knows a pair no more pair={pair}"
                over = f"a pair is known again, or dropped pair={pair}"
                self._warned[pair] = Trouble(log, begins, over)
                self._warned[pair].met(self._warning(pair, why))

    def warnings(self) -> list[str]:
        """One sentence for each such pair, with the command that drops it."""
        return [self._warning(pair, why) for pair, why in sorted(self._found().items())]

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that are warned of."""
        return frozenset(self._found())

    def _found(self) -> dict[str, str]:
        now_ms = self._clock.now_ms()
        found: dict[str, str] = {}
        for pair in self._wanted:
            since_ms = self._since_ms.get(pair)
            invalid = self._turns.invalid_symbols.get(self._symbol_of(pair), 0)
            if since_ms is not None and now_ms - since_ms >= WARNED_AFTER_MS:
                hours = (now_ms - since_ms) // schema.HOUR_MS
                found[pair] = f"has been missing from exchangeInfo for {hours} h"
            elif invalid >= INVALID_ANSWERS:
                found[pair] = "is no valid symbol to the exchange any more (-1121)"
        return found

    def _symbol_of(self, pair: str) -> str:
        """The symbol; of a pair that was never listed while this ran, as Binance makes them."""
        known = self._roster.known(pair)
        return usual_symbol(pair) if known is None else known.symbol

    def _to_watch(self, selection: Selection) -> frozenset[str]:
        """What is selected, and what goes on though it is selected no more: its row is missing."""
        listed: Iterable[str] = (one.pair for one in selection.instruments)
        collected = (one.pair for one in self._roster.instruments)
        return frozenset((*listed, *collected, *selection.refused))

    def _warning(self, pair: str, why: str) -> str:
        if self._can_drop:
            return f"{pair} {why}: `{drop_command(pair)}` drops it"
        return f"{pair} {why}: exchange.pairs `all` keeps it, a list of the others would drop it"
