"""What the server asks of a market, be it a simulated one or a recording, and the records of it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from marketfeed.simulator.instrument import Instrument

PURE = True


class Stream(msgspec.Struct, eq=False):
    """One stream that a client can subscribe to.

    `wanted` is set by the server: while nobody listens, no frame of it is written.
    """

    name: str
    wanted: bool = False


class ClosedCandle(msgspec.Struct, frozen=True, gc=False):
    """A candle whose closing frame was published: the truth to compare with.

    `event_time_ms` is the frame's `E`. Prices are quote per base, volumes base unless named quote.
    """

    symbol: str
    pair: str
    timeframe: str
    open_time_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    taker_buy_volume: float
    taker_buy_quote_volume: float
    trades: int
    event_time_ms: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """A frame at exchange time `time_ms`; `data` is its data object. `closed` with a closing frame."""

    time_ms: int
    stream: Stream
    data: bytes
    closed: ClosedCandle | None = None


class Ticker(msgspec.Struct, frozen=True, rename="camel"):
    """A row of `/fapi/v1/ticker/24hr`: numbers as the exchange prints them, times in ms."""

    symbol: str
    price_change: str
    price_change_percent: str
    weighted_avg_price: str
    last_price: str
    last_qty: str
    open_price: str
    high_price: str
    low_price: str
    volume: str
    quote_volume: str
    open_time: int
    close_time: int
    first_id: int
    last_id: int
    count: int


class Premium(msgspec.Struct, frozen=True, rename="camel"):
    """A row of `/fapi/v1/premiumIndex`. `last_funding_rate` is the running rate, as on the exchange."""

    symbol: str
    mark_price: str
    index_price: str
    estimated_settle_price: str
    last_funding_rate: str
    interest_rate: str
    next_funding_time: int
    time: int


class Settlement(msgspec.Struct, frozen=True, rename="camel"):
    """A row of `/fapi/v1/fundingRate`: a rate that was settled at `funding_time` (ms)."""

    symbol: str
    funding_time: int
    funding_rate: str
    mark_price: str
    rate_type: str = "Regular"


class FundingInfo(msgspec.Struct, frozen=True, rename="camel"):
    """A row of `/fapi/v1/fundingInfo`, which lists only symbols with adjusted funding."""

    symbol: str
    adjusted_funding_rate_cap: str
    adjusted_funding_rate_floor: str
    funding_interval_hours: int
    disclaimer: bool = False
    update_time: int | None = None


class Venue(Protocol):
    """A source of frames and REST answers. All times are exchange time, ms."""

    @property
    def listed(self) -> Sequence[Instrument]:
        """Every contract in exchangeInfo, in its order."""

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams that carry frames, by name. Any other name is silent."""

    @property
    def timeframes(self) -> Sequence[str]:
        """Timeframes for which REST has candles."""

    def time_at(self, elapsed_ms: float) -> int:
        """Return the exchange time when `elapsed_ms` of it have run since the start."""

    def advance(self, now_ms: int) -> list[Event]:
        """Go on to `now_ms` and return the frames up to it, in the order of time."""

    def klines(
        self, symbol: str, timeframe: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> bytes:
        """Return the body of `/fapi/v1/klines`; both ends are inclusive open times, None is open."""

    def mark_klines(
        self,
        instrument: Instrument,
        timeframe: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> bytes:
        """Return the body of `/fapi/v1/markPriceKlines`, as `klines` does."""

    def last_price(self, instrument: Instrument) -> float:
        """Return what a contract was last traded at (quote)."""

    def ticker(self, instrument: Instrument) -> Ticker:
        """Return the last 24 hours of a contract."""

    def premium(self, instrument: Instrument) -> Premium:
        """Return mark price and running funding rate of a contract."""

    def settlements(
        self, instrument: Instrument, start_ms: int, end_ms: int, limit: int, *, newest: bool
    ) -> list[Settlement]:
        """Return what was settled from `start_ms` to `end_ms`, both inclusive, oldest first.

        Of more than `limit` settlements the newest are meant, or else the oldest.
        """

    def funding_infos(self) -> list[FundingInfo]:
        """Return the rows of `/fapi/v1/fundingInfo`."""
