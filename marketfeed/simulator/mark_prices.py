"""The mark price streams of a simulated market: of each contract, and the arrays of them all.

Pure: exchange time is passed in. A frame is written for who listens alone.
"""

from collections.abc import Callable, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.simulator import frames
from marketfeed.simulator.funding import Funding
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.venue import Event, Stream

PURE = True

MARK_SLOW: Final = "!markPrice@arr"
MARK_FAST: Final = "!markPrice@arr@1s"
_SLOW_MS: Final = 3 * schema.SECOND_MS
_FAST_MS: Final = schema.SECOND_MS


def mark_stream(symbol: str, *, fast: bool) -> str:
    """Return the name of a mark price stream: every second if `fast`, else every 3 s."""
    return f"{symbol.lower()}@markPrice{'@1s' if fast else ''}"


class MarkPrices:
    """All mark price streams of a market that runs from `start_ms` on.

    `stream` gives the stream of a name, `last_price` what a contract was last traded at (quote), `is_live`
    whether a symbol has frames at a time. `bystanders`, and the coin-margined sister of `first`, have a row
    in the arrays and no stream.
    """

    def __init__(
        self,
        stream: Callable[[str], Stream],
        last_price: Callable[[Instrument], float],
        is_live: Callable[[str, int], bool],
        first: Instrument,
        bystanders: Sequence[tuple[Instrument, Funding]],
        seed: int,
        start_ms: int,
    ) -> None:
        self.due_ms = schema.floor_to(start_ms, _FAST_MS) + _FAST_MS
        """When the next frames are due."""
        self._stream = stream
        self._last_price = last_price
        self._is_live = is_live
        self._first = first
        self._coin_m = Funding(_coin_margined(first), seed)
        self._bystanders = bystanders
        self._slow_array = stream(MARK_SLOW)
        self._fast_array = stream(MARK_FAST)
        # With the streams of each contract: slow, fast.
        self._contracts: list[tuple[Instrument, Funding, Stream, Stream]] = []

    def add(self, instrument: Instrument, funding: Funding) -> None:
        """Give a contract its streams, in place of one that had its symbol before."""
        self._contracts = [one for one in self._contracts if one[0].symbol != instrument.symbol]
        slow, fast = (
            self._stream(mark_stream(instrument.symbol, fast=fast)) for fast in (False, True)
        )
        self._contracts.append((instrument, funding, slow, fast))

    def advance(self) -> list[Event]:
        """Return the frames that are due, and go on to the next ones."""
        time_ms = self.due_ms
        self.due_ms += _FAST_MS
        events: list[Event] = []
        slow_turn = time_ms % _SLOW_MS == 0
        arrays = [self._fast_array] if self._fast_array.wanted else []
        if slow_turn and self._slow_array.wanted:
            arrays.append(self._slow_array)
        rows: list[bytes] = []
        tradfi: list[bytes] = []
        for instrument, funding, slow, fast in self._contracts:
            wanted_slow = slow_turn and slow.wanted
            if not (arrays or wanted_slow or fast.wanted):
                continue
            if not self._is_live(instrument.symbol, time_ms):
                continue
            data = funding.frame(self._last_price(instrument), time_ms)
            (tradfi if instrument.is_tradifi else rows).append(data)
            if wanted_slow:
                events.append(Event(time_ms, slow, data))
            if fast.wanted:
                events.append(Event(time_ms, fast, data))
        if not arrays:
            return events
        # As on the exchange: two frames, one of them for TradFi; COIN-M rows stand among the coins.
        rows.append(self._coin_m.frame(self._last_price(self._first), time_ms, frames.COIN_M))
        for other, funding in self._bystanders:
            if other.status == "TRADING":
                row = funding.frame(self._last_price(other), time_ms)
                (tradfi if other.is_tradifi else rows).append(row)
        for stream in arrays:
            events += [
                Event(time_ms, stream, b"[" + b",".join(part) + b"]")
                for part in (rows, tradfi)
                if part
            ]
        return events


def _coin_margined(like: Instrument) -> Instrument:
    """The coin-margined sister of a contract: its rows stand in the mark price arrays (`st` 2)."""
    return Instrument(
        symbol=f"{like.base}USD_PERP",
        base=like.base,
        quote="USD",
        margin=like.base,
        price_precision=1,
        tick_units=1,
        quantity_precision=0,
        typical_price=like.typical_price,
        typical_notional=100.0,
        trades_per_s=0.0,
        funding_hours=8,
        onboard_ms=like.onboard_ms,
    )
