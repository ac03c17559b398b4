"""What is known of all contracts' lives, one answer of exchangeInfo after the other, and what follows of it.

Pure: the caller passes answers, times (exchange time, ms) and what REST said. exchangeInfo's rows are put
right here by the lives, in one place: whoever goes by `listed_ms` or an end goes by the life.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import NEVER_MS, PENDING, ExchangeInfo, Instrument, remembered
from marketfeed.journal.coverage import Key
from marketfeed.pairs.lives import DELIVERED, LISTED, Doubt, Lives, Seen, after, seen
from marketfeed.records import CatalogEntry, Life

PURE = True

SILENT_FOR_MS: Final = schema.MINUTE_MS
"""Without frames for so long a pair is silent: an end that is seen in its status alone is believed then."""
ROWS_BEFORE: Final = "rows before onboardDate"


class _Answer(NamedTuple):
    """Whether there were candles of the day before a listing, and when the newest stored one closed."""

    traded_before: bool
    newest_ms: int | None


class KnownLives:
    """The lives of all pairs. `take_in` learns from an answer, `corrected` puts one right."""

    def __init__(self) -> None:
        self.lives: dict[str, Lives] = {}
        """By pair, oldest first."""
        self.changed: set[str] = set()
        """Pairs whose lives have changed; the caller takes out those that it has saved."""
        self.doubts: tuple[Doubt, ...] = ()
        """What REST is to be asked, as of the last answer."""
        self.perhaps_replaced: frozenset[str] = frozenset()
        """Pairs whose life has no known end, though the last answer lists another contract of that symbol.

        What REST answers by the symbol may be the other's, until it is known: of the life it says nothing.
        """
        self._answers: dict[Doubt, _Answer] = {}
        # When an end was first seen in a status (ms), by symbol; none once it is believed, or taken back.
        self._ends_ms: dict[str, int] = {}
        self._known: dict[str, CatalogEntry] = {}
        self._oldest_ms: Mapping[Key, int] = {}

    def remember(
        self,
        stored: Mapping[str, Lives],
        catalog: Iterable[CatalogEntry],
        oldest_ms: Mapping[Key, int],
    ) -> None:
        """Take in what a journal holds: lives, else what its catalog tells; when each series' rows begin."""
        self._oldest_ms = oldest_ms
        for entry in catalog:
            self._known[entry.pair] = entry
            if entry.pair in stored or entry.listed_ms is None:
                continue
            # That the settings have dropped it is no end of the contract.
            ended_ms = None if entry.dropped else entry.ended_ms
            listed_ms, why = self._first_listed(entry.pair, entry.listed_ms)
            if ended_ms is not None:
                why = f"{why}; catalog"
            self._become(entry.pair, (Life(entry.pair, entry.symbol, listed_ms, ended_ms, why),))
        self.lives.update(stored)

    def forget(self, pairs: Iterable[str]) -> None:
        """Take pairs for none that were collected before: the settings have dropped them."""
        for pair in pairs:
            self._known.pop(pair, None)

    def known(self, now_ms: int, *, dropped: bool) -> dict[str, Instrument]:
        """The contracts that were collected before and go on, by pair; with `dropped` those, too."""
        found: dict[str, Instrument] = {}
        for pair, entry in self._known.items():
            lives = self.lives.get(pair, ())
            goes_on = lives and (lives[-1].ended_ms is None or lives[-1].ended_ms > now_ms)
            if goes_on and (dropped or not entry.dropped):
                found[pair] = msgspec.structs.replace(
                    remembered(entry),
                    symbol=lives[-1].symbol,
                    listed_ms=lives[-1].listed_ms,
                    delivery_ms=lives[-1].ended_ms or 0,
                )
        return found

    def take_in(
        self,
        info: ExchangeInfo,
        now_ms: int,
        heard_ms: Callable[[str], int] = lambda _: 0,
        silent_for_ms: int = SILENT_FOR_MS,
    ) -> ExchangeInfo:
        """Learn from an answer, and return it corrected. `heard_ms` tells when a pair's last frame came."""
        doubts: list[Doubt] = []
        announced: set[str] = set()
        # The ended one first, of two that have a name one after the other.
        for row in sorted(
            (*info.beside, *info.instruments.values()), key=lambda one: one.listed_ms
        ):
            lives = self.lives.get(row.pair, ())
            if row.status == PENDING and _follows(row, lives):
                announced.add(row.pair)
            if row.status == PENDING or not (row.contract or _is_of(row, lives)):
                continue
            if not lives:
                lives = self._first(row)
            said = seen(row, now_ms)
            if said.end_evidence and said.end_evidence != DELIVERED:
                silent = now_ms - heard_ms(row.pair) >= silent_for_ms
                said = self._believed(said, row, lives, now_ms, heard_ms(row.pair), silent=silent)
            else:
                self._ends_ms.pop(row.symbol, None)
            asked = Doubt(row.pair, row.symbol, row.listed_ms)
            answer = self._answers.get(asked)
            lives, doubt = after(lives, said, *(answer or (None, None)))
            self._become(row.pair, lives)
            if doubt is not None:
                doubts.append(doubt)
        self.doubts = tuple(doubts)
        self.perhaps_replaced = frozenset(announced | {doubt.pair for doubt in doubts})
        return self.corrected(info, now_ms)

    def answered(self, doubt: Doubt, traded_before: bool, newest_ms: int | None) -> None:
        """Take in what REST said: the next answer of exchangeInfo is judged by it."""
        self._answers[doubt] = _Answer(traded_before, newest_ms)

    def corrected(self, info: ExchangeInfo, now_ms: int) -> ExchangeInfo:
        """An answer as the lives have it: each row with its life's beginning and end."""
        instruments: dict[str, Instrument] = {}
        taken: dict[str, str] = {}
        for pair, row in info.instruments.items():
            lives = self.lives.get(pair, ())
            if not lives or row.symbol == lives[-1].symbol or not row.contract:
                instruments[pair] = _of_life(row, lives)
                continue
            has_it = lives[-1].symbol
            taken[pair] = f"was {has_it}, is {row.symbol}: no end of {has_it} is known"
            if (first := info.contract(pair, has_it)) is not None:
                instruments[pair] = _of_life(first, lives)
        return msgspec.structs.replace(
            info,
            instruments=instruments,
            beside=tuple(_of_life(row, self.lives.get(row.pair, ())) for row in info.beside),
            taken=taken,
            at_ms=now_ms,
        )

    # --- inside -----------------------------------------------------------------------------------

    def _become(self, pair: str, lives: Lives) -> None:
        if self.lives.get(pair, ()) != lives:
            self.lives[pair] = lives
            self.changed.add(pair)

    def _first_listed(self, pair: str, listed_ms: int) -> tuple[int, str]:
        """The beginning of the first life that is known, and by what: 0 where rows are older than that."""
        older = any(
            self._oldest_ms.get((pair, timeframe), listed_ms)
            < schema.floor_to(listed_ms, length_ms)
            for timeframe, length_ms in schema.TIMEFRAMES_MS.items()
        )
        return (0, ROWS_BEFORE) if older else (listed_ms, LISTED)

    def _first(self, row: Instrument) -> Lives:
        listed_ms, why = self._first_listed(row.pair, row.listed_ms)
        return () if listed_ms else (Life(row.pair, row.symbol, 0, None, why),)

    def _believed(
        self, said: Seen, row: Instrument, lives: Lives, now_ms: int, heard_ms: int, *, silent: bool
    ) -> Seen:
        """An end by status: believed of the second answer, once the pair is silent; else left out."""
        last = lives[-1] if lives else None
        ended_ms = None if last is None or last.symbol != row.symbol else last.ended_ms
        if ended_ms is not None and ended_ms <= now_ms:
            # It is believed already.
            return said
        first_ms = self._ends_ms.setdefault(row.symbol, now_ms)
        if first_ms < now_ms and silent:
            return said._replace(ended_ms=max(first_ms, heard_ms))
        announced_ms = row.ended_ms
        return said._replace(
            ended_ms=announced_ms, end_evidence="" if announced_ms is None else DELIVERED
        )


def _is_of(row: Instrument, lives: Lives) -> bool:
    return bool(lives) and lives[-1].symbol == row.symbol


def _follows(row: Instrument, lives: Lives) -> bool:
    """Whether a row is of a contract that comes after the newest life, of which no end is known."""
    return _is_of(row, lives) and lives[-1].ended_ms is None and row.listed_ms > lives[-1].listed_ms


def _of_life(row: Instrument, lives: Lives) -> Instrument:
    """A row with the beginning and the end of its contract's newest life."""
    life = next((one for one in reversed(lives) if one.symbol == row.symbol), None)
    if life is None:
        return row
    ended_ms = life.ended_ms
    # A date that is another contract's is none.
    delivery_ms = NEVER_MS if row.ended_ms is not None else row.delivery_ms
    if ended_ms is not None:
        delivery_ms = ended_ms
    if (row.listed_ms, row.delivery_ms) == (life.listed_ms, delivery_ms):
        return row
    return msgspec.structs.replace(row, listed_ms=life.listed_ms, delivery_ms=delivery_ms)
