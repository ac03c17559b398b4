"""Carries out what is changed of contracts while a simulated market runs; `listings` says what there is."""

import msgspec

from marketfeed import schema
from marketfeed.errors import SettingsError
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.catalogue import make_instrument
from marketfeed.simulator.funding import Funding
from marketfeed.simulator.history import Lifespan
from marketfeed.simulator.instrument import NEVER_DELIVERED_MS, Instrument
from marketfeed.simulator.listings import (
    Delist,
    EndByStatus,
    Enlist,
    ListingChange,
    Listings,
    Rename,
    SetOnboard,
    SetRhythm,
    SetStatus,
    SettleSpecially,
    SetType,
    SpoilRow,
    Withdraw,
    minute_from,
)
from marketfeed.simulator.pair import PairMarket

PURE = True


class Changes:
    """Changes the parts of one market, which are given to it: all of them belong to that market.

    What is listed and does not trade yet is put into `coming`.
    """

    def __init__(
        self,
        listings: Listings,
        pairs: dict[str, PairMarket],
        sources: dict[str, Lifespan],
        funding: dict[str, Funding],
        coming: list[Instrument],
        seed: int,
    ) -> None:
        self._listings = listings
        self._pairs = pairs
        self._sources = sources
        self._funding = funding
        self._coming = coming
        self._seed = seed

    def carry_out(self, change: ListingChange, now_ms: int) -> int:
        """Carry out a change; return the exchange time (ms) at which it takes effect.

        Raises SettingsError for a pair that is not there, or is there already, and for an end that cannot be
        taken back any more.
        """
        at_ms = minute_from(now_ms, getattr(change, "in_s", 0.0))
        if isinstance(change, Enlist):
            self._enlist(change.pair, change.trades_per_s, at_ms, change.price)
            return at_ms
        symbol = self._listings.symbol_of(change.pair)
        match change:
            case Delist():
                self._end(symbol, at_ms)
            case EndByStatus(status=status):
                self._end(symbol, at_ms, status)
            case Rename(new=new):
                self._enlist(new, self._pair(symbol).instrument.trades_per_s, at_ms)
                self._end(symbol, at_ms)
            case Withdraw():
                if self._listings.instrument(symbol).delivery_ms < minute_from(now_ms, 0.0):
                    raise SettingsError(f"pair: {symbol} has ended")
                self._go_on(symbol)
            case SetRhythm(hours=hours):
                # Frames of the minute before may be planned, none of them is written.
                self._funding[symbol].change_rhythm(at_ms, hours)
            case SettleSpecially(rate=rate):
                self._funding[symbol].settle_specially(at_ms, rate)
            case _:
                at_ms = now_ms
                self._say(symbol, change, now_ms)
        return at_ms

    def _say(
        self, symbol: str, change: SetStatus | SetOnboard | SetType | SpoilRow, now_ms: int
    ) -> None:
        """Change what exchangeInfo says from now on."""
        match change:
            case SetStatus(status=status):
                self._listings.set_status(symbol, status)
            case SetType(contract_type=contract_type):
                self._listings.set_type(symbol, contract_type)
            case SpoilRow(key=key):
                self._listings.spoil_row(symbol, key)
            case SetOnboard(days_ago=days_ago):
                onboard_ms = None
                if days_ago is not None:
                    onboard_ms = now_ms - round(days_ago * schema.DAY_MS)
                self._listings.set_onboard(symbol, onboard_ms)

    def _pair(self, symbol: str) -> PairMarket:
        pair = self._pairs.get(symbol)
        if pair is None:
            raise SettingsError(f"pair: {symbol} has no market")
        return pair

    def _enlist(
        self, pair: str, trades_per_s: float, at_ms: int, price: float | None = None
    ) -> None:
        if not schema.is_pair(pair) or not pair.endswith("/USDT:USDT"):
            raise SettingsError(f"pair: {schema.PAIR_EXAMPLE} is expected, not {pair!r}")
        instrument = make_instrument(pair, trades_per_s, price)
        instrument = msgspec.structs.replace(instrument, onboard_ms=at_ms)
        self._listings.add(instrument)
        self._funding.setdefault(instrument.symbol, Funding(instrument, self._seed))
        self._coming.append(instrument)

    def _end(self, symbol: str, at_ms: int, status: str = "") -> None:
        pair = self._pair(symbol)
        self._sources[symbol].to_minute = at_ms // MINUTE_MS
        pair.reread()
        self._listings.deliver(symbol, at_ms, status)

    def _go_on(self, symbol: str) -> None:
        pair = self._pair(symbol)
        self._sources[symbol].to_minute = None
        pair.reread()
        self._listings.deliver(symbol, NEVER_DELIVERED_MS)
