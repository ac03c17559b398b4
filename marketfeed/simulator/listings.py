"""Contracts that come, go and change on demand while the simulated exchange runs.

As JSON, `change` names the kind and the fields are those of the record:
`{"change": "delist", "pair": "BTC/USDT:USDT", "in_s": 300}`. Times are exchange seconds from now, rounded
up to a whole minute, the second one that begins from now on at the earliest: trades are planned that far.
"""

import math
from collections.abc import Sequence
from typing import Final, TypeAlias, TypeVar

import msgspec

from marketfeed.errors import SettingsError
from marketfeed.schema import MINUTE_MS, ceil_to
from marketfeed.simulator.instrument import NEVER_DELIVERED_MS, Instrument

PURE = True


class _Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pair: str


class Enlist(_Change, frozen=True, tag_field="change", tag="list"):
    """A new contract is listed now (PENDING_TRADING), and trades `in_s` from now on.

    One of a pair that has ended is another coin under its name. `price` is about what it costs (quote).
    """

    in_s: float = 0.0
    trades_per_s: float = 1.0
    price: float | None = None


class Delist(_Change, frozen=True, tag_field="change", tag="delist"):
    """Its end is announced now (`deliveryDate`); `in_s` from now it is SETTLING and all frames end."""

    in_s: float = 0.0


class Rename(_Change, frozen=True, tag_field="change", tag="rename"):
    """It is delisted, and `new` is listed to the same minute: another contract, as on the exchange."""

    new: str
    in_s: float = 0.0


class SetStatus(_Change, frozen=True, tag_field="change", tag="status"):
    """exchangeInfo lists this status from now on; frames come while it is TRADING.

    None takes it out of exchangeInfo altogether. REST's candles go on as if nothing were.
    """

    status: str | None = "TRADING"


class SetOnboard(_Change, frozen=True, tag_field="change", tag="onboard"):
    """exchangeInfo gives an untrue date of listing, so many days ago, from now on; with None the true one."""

    days_ago: float | None


class EndByStatus(_Change, frozen=True, tag_field="change", tag="end_by_status"):
    """It ends `in_s` from now, and nothing but its status says so, and not before: no `deliveryDate`."""

    status: str = "SETTLING"
    in_s: float = 0.0


class Withdraw(_Change, frozen=True, tag_field="change", tag="withdraw"):
    """An end that was announced and has not come is taken back."""


class SetType(_Change, frozen=True, tag_field="change", tag="type"):
    """exchangeInfo gives this `contractType` from now on; everything else goes on."""

    contract_type: str


class SpoilRow(_Change, frozen=True, tag_field="change", tag="spoil_row"):
    """exchangeInfo gives null for `key` of its row from now on; with None the row is good again."""

    key: str | None = "onboardDate"


class SetRhythm(_Change, frozen=True, tag_field="change", tag="rhythm"):
    """It settles every `hours` from `in_s` on; the next settlement is announced anew then."""

    hours: int
    in_s: float = 0.0


class SettleSpecially(_Change, frozen=True, tag_field="change", tag="special"):
    """A settlement of `rate` out of turn `in_s` from now, unannounced."""

    rate: float
    in_s: float = 0.0


ListingChange: TypeAlias = (
    Enlist | Delist | Rename | SetStatus | SetOnboard | EndByStatus | Withdraw | SetType | SpoilRow
    | SetRhythm | SettleSpecially
)  # fmt: skip


class Listings:
    """The contracts of one exchange, in the order of exchangeInfo."""

    def __init__(self, listed: Sequence[Instrument]) -> None:
        self._instruments = {instrument.symbol: instrument for instrument in listed}
        self._listed: tuple[Instrument, ...] | None = tuple(listed)
        self._listed_until_ms: float = NEVER_DELIVERED_MS
        self._status: dict[str, str | None] = {}
        self._onboard_ms: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._odd: dict[str, str] = {}
        # What ends without a date, with the status that tells of it.
        self._undated: dict[str, str] = {}
        # Those that were delisted or listed since the start.
        self._moved: set[str] = set()

    def listed(self, now_ms: int) -> tuple[Instrument, ...]:
        """What exchangeInfo lists at `now_ms`: the same object until something changes."""
        if self._listed is None or now_ms >= self._listed_until_ms:
            self._listed = tuple(
                shown
                for instrument in self._instruments.values()
                if (shown := self._as_of(instrument, now_ms)) is not None
            )
            times = [
                time_ms
                for symbol in self._moved
                for time_ms in (
                    self._instruments[symbol].onboard_ms,
                    self._instruments[symbol].delivery_ms,
                )
                if time_ms > now_ms
            ]
            self._listed_until_ms = min(times, default=NEVER_DELIVERED_MS)
        return self._listed

    def symbol_of(self, pair: str) -> str:
        """The symbol of a perpetual. Raises SettingsError if there is none."""
        for instrument in self._instruments.values():
            if instrument.pair == pair and not instrument.underlying:
                return instrument.symbol
        raise SettingsError(f"pair: no contract of {pair!r} is listed")

    def add(self, instrument: Instrument) -> None:
        """List a contract. Raises SettingsError if its symbol is listed, and has not ended by then."""
        before = self._instruments.get(instrument.symbol)
        if before is not None and before.delivery_ms > instrument.onboard_ms:
            raise SettingsError(f"pair: {instrument.symbol} is listed already")
        self._instruments[instrument.symbol] = instrument
        self._moved.add(instrument.symbol)
        # What was said of the one before it is not said of this one.
        for said in (self._status, self._onboard_ms, self._types, self._odd, self._undated):
            said.pop(instrument.symbol, None)
        self._listed = None

    def instrument(self, symbol: str) -> Instrument:
        """A contract as it is, whatever exchangeInfo says of it."""
        return self._instruments[symbol]

    def deliver(self, symbol: str, delivery_ms: int, status: str = "") -> None:
        """Announce the end of a contract, or with `status` let it come without a date."""
        if status:
            self._undated[symbol] = status
        else:
            self._undated.pop(symbol, None)
        self._instruments[symbol] = msgspec.structs.replace(
            self._instruments[symbol], delivery_ms=delivery_ms
        )
        self._moved.add(symbol)
        self._listed = None

    def set_status(self, symbol: str, status: str | None) -> None:
        """List another status from now on; with None the symbol is not listed any more."""
        self._status[symbol] = status
        self._listed = None

    def set_onboard(self, symbol: str, onboard_ms: int | None) -> None:
        """Give another date of listing from now on; with None the true one."""
        _say(self._onboard_ms, symbol, onboard_ms)
        self._listed = None

    def set_type(self, symbol: str, contract_type: str) -> None:
        """Give another type from now on."""
        self._types[symbol] = contract_type
        self._listed = None

    def spoil_row(self, symbol: str, key: str | None) -> None:
        """Give null for a key of its row from now on; with None the row is as it should be again."""
        _say(self._odd, symbol, key)
        self._listed = None

    def is_live(self, symbol: str, time_ms: int) -> bool:
        """Whether frames of a contract come at `time_ms`."""
        if self._status.get(symbol, "TRADING") != "TRADING":
            return False
        if symbol not in self._moved:
            return True
        instrument = self._instruments[symbol]
        return instrument.onboard_ms <= time_ms < instrument.delivery_ms

    def changes(self, symbol: str) -> bool:
        """Whether anything was changed of a contract since the start."""
        return symbol in self._moved or symbol in self._status

    def _as_of(self, instrument: Instrument, now_ms: int) -> Instrument | None:
        symbol = instrument.symbol
        status = instrument.status
        kind = self._types.get(symbol, instrument.contract_type)
        if symbol in self._moved and now_ms < instrument.onboard_ms:
            status, kind = "PENDING_TRADING", ""
        elif symbol in self._moved and now_ms >= instrument.delivery_ms:
            status = self._undated.get(symbol, "SETTLING")
        shown = self._status.get(symbol, status)
        if symbol in self._undated and now_ms >= instrument.delivery_ms:
            # It is all that tells of this end.
            shown = status
        if shown is None:
            return None
        as_shown = msgspec.structs.replace(
            instrument,
            status=shown,
            contract_type=kind,
            onboard_ms=self._onboard_ms.get(symbol, instrument.onboard_ms),
            delivery_ms=NEVER_DELIVERED_MS if symbol in self._undated else instrument.delivery_ms,
            null_key=self._odd.get(symbol, ""),
        )
        return instrument if as_shown == instrument else as_shown


_Said = TypeVar("_Said")


def _say(said: dict[str, _Said], symbol: str, value: _Said | None) -> None:
    if value is None:
        said.pop(symbol, None)
    else:
        said[symbol] = value


_PLANNED_MINUTES: Final = 2


def minute_from(now_ms: int, in_s: float) -> int:
    """The minute (ms) at which a change that is wanted `in_s` from now happens."""
    wanted_ms = ceil_to(now_ms + math.ceil(in_s * 1_000), MINUTE_MS)
    return max(wanted_ms, (now_ms // MINUTE_MS + _PLANNED_MINUTES) * MINUTE_MS)
