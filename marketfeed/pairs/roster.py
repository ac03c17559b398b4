"""Which contracts are collected now: the one place that knows, and how that changes.

Pure: the caller passes exchangeInfo's answers and the time (exchange time, ms). Whoever needs to know asks
the `Roster`; what has to be done about a change is `lifecycle.PairLifecycle`'s part.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import (
    TRADING,
    ExchangeInfo,
    Instrument,
    Selection,
)

PURE = True

ENDED_AFTER_MS: Final = 30_000
"""How long after its end a contract's streams stay: its last closing frames come about 2 s after it."""
MAY_STOP: Final = 0.1
MAY_STOP_AT_LEAST: Final = 3
"""Share of the collected contracts that may stop at once without notice: more is the exchange's trouble."""
RENAMED_WITHIN_MS: Final = schema.DAY_MS
"""How close a listing is to an end that it may be the same coin under another name."""


class Ended(msgspec.Struct, frozen=True):
    """A contract that is collected no more. `announced` is an end by `deliveryDate`."""

    instrument: Instrument
    ended_ms: int
    announced: bool
    reason: str


class Changes(msgspec.Struct, frozen=True):
    """What an answer of exchangeInfo changes.

    `joined` are to be collected from now on; `returned` holds how those among them had ended.
    `dated` have another announced end than before, or none any more. `ended` have stopped without
    notice. `doubted` is pair -> what is wrong, until a second answer says the same. `renamed` are pairs
    (old, new): a guess, for people. `refused` says why the answer's stops were not believed.
    """

    joined: tuple[Instrument, ...] = ()
    returned: Mapping[str, Ended] = {}
    dated: tuple[Instrument, ...] = ()
    ended: tuple[Ended, ...] = ()
    doubted: Mapping[str, str] = {}
    renamed: tuple[tuple[str, str], ...] = ()
    refused: str = ""


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
        # Since when (ms) a contract is in doubt.
        self._doubts: dict[str, int] = {}
        self._renamed: set[tuple[str, str]] = set()
        for instrument in selection.instruments:
            self._collect(instrument)

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
        """What was collected since the start and is not any more, each with its end: halted ones, too."""
        return tuple(
            msgspec.structs.replace(one.instrument, delivery_ms=one.ended_ms)
            for one in self._ended.values()
        )

    def still_trades(self, pair: str) -> bool:
        """Whether a pair is collected, and the last answer of exchangeInfo said that it trades."""
        return pair in self._collected and pair not in self._doubts

    def remember(self, instruments: Iterable[Instrument]) -> None:
        """Take in what was collected before and is not now: it may have ended while nobody looked."""
        for instrument in instruments:
            if instrument.pair not in self._collected:
                self._dormant[instrument.pair] = instrument

    def update(
        self,
        info: ExchangeInfo,
        wanted: Selection,
        now_ms: int,
        vanished: Collection[str] = frozenset(),
    ) -> Changes:
        """Take in what the exchange lists; `wanted` is what of that is to be collected.

        That the pairs of `vanished` are not listed any more is certain, however many they are.
        """
        self.refused = wanted.refused
        dated = self._take_dates(info)
        doubted = {
            pair: problem
            for pair, known in (*self._collected.items(), *self._dormant.items())
            # An announced end is waited for, whatever else the contract's row holds.
            if known.ended_ms is None and (problem := _problem(known, info))
        }
        refused = ""
        stopped = sum(pair in self._collected and pair not in vanished for pair in doubted)
        if stopped > max(MAY_STOP * len(self._collected), MAY_STOP_AT_LEAST):
            refused = f"{stopped} of {len(self._collected)} collected contracts do not trade"
            ended: tuple[Ended, ...] = ()
        else:
            ended = self._confirm(doubted, now_ms)
        joined, returned = self._join(wanted, now_ms)
        return Changes(
            joined,
            returned,
            dated,
            ended,
            {pair: text for pair, text in doubted.items() if self._doubts.get(pair) == now_ms},
            self._guess_renames(info),
            refused,
        )

    def drop_unchosen(self, wanted: Selection) -> tuple[Instrument, ...]:
        """Forget what is not in `wanted` at all, trading or not; returns what was collected of it."""
        chosen = {one.pair for one in wanted.instruments} | wanted.refused.keys()
        dropped = tuple(one for one in self._collected.values() if one.pair not in chosen)
        for instrument in dropped:
            del self._collected[instrument.pair]
            del self.pairs[instrument.symbol]
        for pair in (self._dormant.keys() | self._ended.keys() | self._doubts.keys()) - chosen:
            self._dormant.pop(pair, None)
            self._ended.pop(pair, None)
            self._doubts.pop(pair, None)
        return dropped

    def expire(self, now_ms: int) -> tuple[Ended, ...]:
        """Let go of those whose announced end is past, some time after it."""
        over = [
            known
            for known in (*self._collected.values(), *self._dormant.values())
            if known.ended_ms is not None and known.ended_ms + ENDED_AFTER_MS <= now_ms
        ]
        return tuple(
            self._end(known, known.ended_ms, "deliveryDate", announced=True)
            for known in over
            if known.ended_ms is not None
        )

    # --- inside -----------------------------------------------------------------------------------

    def _collect(self, instrument: Instrument) -> None:
        self._collected[instrument.pair] = instrument
        self.pairs[instrument.symbol] = instrument.pair

    def _take_dates(self, info: ExchangeInfo) -> tuple[Instrument, ...]:
        dated = tuple(
            msgspec.structs.replace(known, delivery_ms=row.delivery_ms)
            for known in self._collected.values()
            if (row := info.contract(known.pair, known.symbol)) and row.ended_ms != known.ended_ms
        )
        self._collected.update((known.pair, known) for known in dated)
        for pair, known in self._dormant.items():
            self._dormant[pair] = info.contract(pair, known.symbol) or known
        return dated

    def _confirm(self, doubted: Mapping[str, str], now_ms: int) -> tuple[Ended, ...]:
        for pair in self._doubts.keys() - doubted.keys():
            del self._doubts[pair]
        ended = []
        for pair, problem in doubted.items():
            since_ms = self._doubts.get(pair)
            if since_ms is None:
                self._doubts[pair] = now_ms
            else:
                known = self._collected.get(pair) or self._dormant[pair]
                ended.append(self._end(known, since_ms, problem, announced=False))
        return tuple(ended)

    def _end(self, known: Instrument, ended_ms: int, reason: str, *, announced: bool) -> Ended:
        self._collected.pop(known.pair, None)
        self._dormant.pop(known.pair, None)
        self._doubts.pop(known.pair, None)
        self.pairs.pop(known.symbol, None)
        self._ended[known.pair] = ended = Ended(known, ended_ms, announced, reason)
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
            before = self._ended.get(pair)
            old = self._dormant.get(pair) if before is None else before.instrument
            if old is not None and old.symbol != instrument.symbol:
                # One name for two contracts: their candles would become one series.
                self.refused = {**self.refused, pair: f"was {old.symbol}, is {instrument.symbol}"}
                continue
            if before is not None:
                returned[pair] = self._ended.pop(pair)
            self._dormant.pop(pair, None)
            self._doubts.pop(pair, None)
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
            if row.collectable
            and row.pair != pair
            and row.quote == known.quote
            and abs(row.listed_ms - ended_ms) <= RENAMED_WITHIN_MS
        ]
        fresh = tuple(guess for guess in guesses if guess not in self._renamed)
        self._renamed.update(fresh)
        return fresh


def _problem(known: Instrument, info: ExchangeInfo) -> str:
    """What is wrong with a contract that was collected, by what the exchange lists; empty if nothing."""
    row = info.instruments.get(known.pair)
    if (row is None or row.symbol != known.symbol) and info.may_list(known.symbol):
        return ""
    if row is None:
        return "the exchange lists it no more"
    if row.symbol != known.symbol:
        return f"{known.pair} is {row.symbol} now"
    if not row.contract:
        return f"contract type {row.contract_type or 'none'}"
    return "" if row.status == TRADING else f"status {row.status or 'none'}"
