"""Which contracts are collected now: the one place that knows, and how that changes.

Pure: the caller passes exchangeInfo's answers and the time (exchange time, ms). Whoever needs to know asks
the `Roster`; what has to be done about a change is `lifecycle.PairLifecycle`'s part.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import (
    TRADING_STATUSES,
    ExchangeInfo,
    Instrument,
    Selection,
)

PURE = True

ENDED_AFTER_MS: Final = 30_000
"""How long after its end a contract's streams stay: its last closing frames come about 2 s after it."""
RENAMED_WITHIN_MS: Final = schema.DAY_MS
"""How close a listing is to an end that it may be the same coin under another name."""


class Ended(msgspec.Struct, frozen=True):
    """A contract that is collected no more."""

    instrument: Instrument
    ended_ms: int


class Changes(msgspec.Struct, frozen=True):
    """What an answer of exchangeInfo changes.

    `joined` are to be collected from now on; `returned` holds how those among them had ended.
    `dated` have another end than before, or none any more, or another beginning. `doubted` is pair -> status
    of what does not trade by one answer, `halted` of what does not by a second one; `resumed` are pairs that
    trade again. `renamed` are pairs (old, new): a guess, for people.
    """

    joined: tuple[Instrument, ...] = ()
    returned: Mapping[str, Ended] = {}
    dated: tuple[Instrument, ...] = ()
    doubted: Mapping[str, str] = {}
    halted: Mapping[str, str] = {}
    resumed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


class Roster:
    """The contracts that are collected, by pair; `pairs` maps their symbols, and is kept up to date."""

    def __init__(self, selection: Selection) -> None:
        self.pairs: dict[str, str] = {}
        """Symbol -> pair of what is collected. A live view: hold on to it."""
        self.refused: Mapping[str, str] = selection.refused
        """Configured pairs that are not traded, with why."""
        self._collected: dict[str, Instrument] = {}
        self._dormant: dict[str, Instrument] = {}
        self._ended: dict[str, Ended] = {}
        # Pair -> status, of what does not trade by the last answer, or by two of them.
        self._doubted: dict[str, str] = {}
        self._halted: dict[str, str] = {}
        # Pairs of which the last answer has no row: they are neither.
        self._missing: set[str] = set()
        self._renamed: set[tuple[str, str]] = set()
        for instrument in selection.instruments:
            self._collect(instrument)

    @property
    def left_out(self) -> dict[str, str]:
        """What is refused, with why; not what is collected all the same."""
        return {pair: why for pair, why in self.refused.items() if pair not in self._collected}

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """What is collected now."""
        return tuple(self._collected.values())

    def __contains__(self, pair: str) -> bool:
        """Whether a pair is collected now."""
        return pair in self._collected

    def __len__(self) -> int:
        return len(self._collected)

    def known(self, pair: str) -> Instrument | None:
        """The contract of a pair that is collected, or was until its end: its candles are still there."""
        ended = self._ended.get(pair)
        return self._collected.get(pair) or (None if ended is None else ended.instrument)

    @property
    def ended(self) -> tuple[Instrument, ...]:
        """What was collected since the start and is not any more, each with its end."""
        return tuple(
            msgspec.structs.replace(one.instrument, delivery_ms=one.ended_ms)
            for one in self._ended.values()
        )

    @property
    def halted(self) -> Mapping[str, str]:
        """What is collected and does not trade, by two answers of exchangeInfo: pair -> status."""
        return MappingProxyType(self._halted)

    def still_trades(self, pair: str) -> bool:
        """Whether a pair is collected, and the last answer of exchangeInfo said that it trades."""
        return (
            pair in self._collected
            and pair not in self._doubted
            and pair not in self._halted
            and pair not in self._missing
        )

    def remember(self, instruments: Iterable[Instrument]) -> None:
        """Take in what was collected before and is not now: it may have ended while nobody looked."""
        for instrument in instruments:
            if instrument.pair not in self._collected:
                self._dormant[instrument.pair] = instrument

    def update(self, info: ExchangeInfo, wanted: Selection, now_ms: int) -> Changes:
        """Take in what the exchange lists; `wanted` is what of that is to be collected.

        Rows are believed as they are: the lives have put them right (`known_lives`). One that is missing
        changes nothing.
        """
        self.refused = wanted.refused
        dated = self._take_rows(info)
        joined, returned = self._join(wanted, now_ms)
        doubted, halted, resumed = self._note_halts(info, now_ms)
        return Changes(joined, returned, dated, doubted, halted, resumed, self._guess_renames(info))

    def drop_unchosen(self, wanted: Selection) -> tuple[Instrument, ...]:
        """Forget what is not in `wanted` at all, trading or not; returns what was collected of it."""
        chosen = {one.pair for one in wanted.instruments} | wanted.refused.keys()
        dropped = tuple(one for one in self._collected.values() if one.pair not in chosen)
        for instrument in dropped:
            del self._collected[instrument.pair]
            del self.pairs[instrument.symbol]
            self._forget_halt(instrument.pair)
        for pair in (self._dormant.keys() | self._ended.keys()) - chosen:
            self._dormant.pop(pair, None)
            self._ended.pop(pair, None)
        return dropped

    def expire(
        self,
        now_ms: int,
        heard_ms: Callable[[str], int] = lambda _: 0,
        silent_for_ms: int = 0,
    ) -> tuple[Ended, ...]:
        """Let go of those whose end is past, some time after it; not while a pair's frames come.

        `heard_ms` tells when (exchange ms) the last frame of a pair came.
        """
        over = [
            (known, known.ended_ms)
            for known in (*self._collected.values(), *self._dormant.values())
            if known.ended_ms is not None
            and known.ended_ms + ENDED_AFTER_MS <= now_ms
            and heard_ms(known.pair) + silent_for_ms <= now_ms
        ]
        return tuple(self._end(known, ended_ms) for known, ended_ms in over)

    # --- inside -----------------------------------------------------------------------------------

    def _collect(self, instrument: Instrument) -> None:
        self._collected[instrument.pair] = instrument
        self.pairs[instrument.symbol] = instrument.pair

    def _take_rows(self, info: ExchangeInfo) -> tuple[Instrument, ...]:
        dated = []
        for pair, known in self._collected.items():
            row = info.contract(pair, known.symbol)
            if row is None:
                continue
            self._collected[pair] = row
            if (row.ended_ms, row.listed_ms) != (known.ended_ms, known.listed_ms):
                dated.append(row)
        for pair, known in self._dormant.items():
            self._dormant[pair] = info.contract(pair, known.symbol) or known
        return tuple(dated)

    def _note_halts(
        self, info: ExchangeInfo, now_ms: int
    ) -> tuple[Mapping[str, str], Mapping[str, str], tuple[str, ...]]:
        doubted: dict[str, str] = {}
        halted: dict[str, str] = {}
        resumed: list[str] = []
        for pair, known in self._collected.items():
            row = info.contract(pair, known.symbol)
            self._missing.discard(pair)
            if row is None:
                # One that cannot be read may say that it trades.
                if not info.may_list(known.symbol):
                    self._missing.add(pair)
            elif known.ended_ms is not None and known.ended_ms <= now_ms:
                self._forget_halt(pair)
            elif row.status in TRADING_STATUSES:
                if pair in self._halted:
                    resumed.append(pair)
                self._forget_halt(pair)
            elif pair in self._doubted or pair in self._halted:
                if pair not in self._halted:
                    halted[pair] = row.status
                self._doubted.pop(pair, None)
                self._halted[pair] = row.status
            else:
                self._doubted[pair] = doubted[pair] = row.status
        return doubted, halted, tuple(resumed)

    def _forget_halt(self, pair: str) -> None:
        self._doubted.pop(pair, None)
        self._halted.pop(pair, None)
        self._missing.discard(pair)

    def _end(self, known: Instrument, ended_ms: int) -> Ended:
        self._collected.pop(known.pair, None)
        self._dormant.pop(known.pair, None)
        self._forget_halt(known.pair)
        self.pairs.pop(known.symbol, None)
        self._ended[known.pair] = ended = Ended(known, ended_ms)
        return ended

    def _join(
        self, wanted: Selection, now_ms: int
    ) -> tuple[tuple[Instrument, ...], Mapping[str, Ended]]:
        joined: list[Instrument] = []
        returned: dict[str, Ended] = {}
        for instrument in wanted.instruments:
            pair = instrument.pair
            if pair in self._collected or (
                instrument.ended_ms is not None and instrument.ended_ms <= now_ms
            ):
                continue
            if pair in self._ended:
                returned[pair] = self._ended.pop(pair)
            self._dormant.pop(pair, None)
            self._collect(instrument)
            joined.append(instrument)
        return tuple(joined), returned

    def _guess_renames(self, info: ExchangeInfo) -> tuple[tuple[str, str], ...]:
        ends = {pair: (one.instrument, one.ended_ms) for pair, one in self._ended.items()}
        for pair, known in self._collected.items():
            if known.ended_ms is not None:
                ends[pair] = known, known.ended_ms
        guesses = [
            (pair, row.pair)
            for pair, (known, ended_ms) in ends.items()
            for row in info.instruments.values()
            if row.trades
            and row.pair != pair
            and row.quote == known.quote
            and abs(row.listed_ms - ended_ms) <= RENAMED_WITHIN_MS
        ]
        fresh = tuple(guess for guess in guesses if guess not in self._renamed)
        self._renamed.update(fresh)
        return fresh
