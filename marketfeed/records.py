"""What the collector stores: one frozen record per fact.

All times are exchange time in ms since the epoch; `event_time_ms` is the exchange's stamp of the
message (`E`), never the time of receipt. Prices are quote per base, volumes base unless named.
"""

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

import msgspec

from marketfeed import schema

PURE = True


class Candle(msgspec.Struct, frozen=True, gc=False):
    """One candle of one pair and timeframe.

    `closed` is the exchange's own word (`x:true`, or a REST or archive row whose close time is past
    on the exchange's clock); nothing else ever makes a candle closed. `taker_buy_quote_volume` is None
    where it is not known: of rows that older versions have stored. A candle of the mark price has `mark_1h`
    for a timeframe, and no volumes or trades: these are 0.
    """

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
    trades: int
    closed: bool
    event_time_ms: int
    taker_buy_quote_volume: float | None = None

    @property
    def close_time_ms(self) -> int:
        """The instant at which the candle ends: the next one's open time."""
        return self.open_time_ms + schema.SERIES_MS[self.timeframe]


def differing_fields(one: object, other: object) -> tuple[str, ...]:
    """Names of the numbers in which two candles of one series and time differ, whatever types hold them.

    A number that one of them does not have is no difference.
    """
    return tuple(
        name
        for name in schema.CANDLE_FIELDS
        if (ours := getattr(one, name)) != (theirs := getattr(other, name))
        and (name != schema.TAKER_BUY_QUOTE or (ours is not None and theirs is not None))
    )


class MarkPrice(msgspec.Struct, frozen=True, gc=False):
    """Mark and index price of a pair at `event_time_ms`; `index_price` is None where it has none."""

    pair: str
    event_time_ms: int
    mark_price: float
    index_price: float | None


class FundingRate(msgspec.Struct, frozen=True, gc=False):
    """The running funding rate of a pair, as a fraction per interval, for `next_funding_time_ms`.

    It is Binance's `r`, an estimate until the settlement. The settled rate is `FundingSettled`.
    """

    pair: str
    event_time_ms: int
    rate: float
    next_funding_time_ms: int


REGULAR: Final = schema.REGULAR


class FundingSettled(msgspec.Struct, frozen=True, gc=False):
    """A funding rate that was settled at `time_ms` (rounded to the minute: Binance jitters by some ms).

    `mark_price` is NaN-free: None where the exchange gives none (old rows). `kind` is Binance's
    `rateType` (`Regular`, `Special`).
    """

    pair: str
    time_ms: int
    rate: float
    mark_price: float | None
    kind: str = REGULAR


GapState: TypeAlias = Literal["found", "healing", "healed", "unresolvable"]
"""`found` and `healing` are open: nobody, or somebody, asks for what is missing. The others are final,
but for a candle that comes after all."""
CANDLE_GAP: Final = schema.CANDLE_GAP


class Gap(msgspec.Struct, frozen=True, gc=False):
    """A range of exchange time for which something is, or was, missing.

    `pair` is None where all pairs are concerned (a lost connection); `end_ms` is None while it lasts.
    `kind` is one of `connection`, `candle_<timeframe>`, `mark_price`, `disk_budget` …
    """

    kind: str
    pair: str | None
    start_ms: int
    end_ms: int | None
    state: GapState
    reason: str

    @property
    def healed(self) -> bool:
        """Whether all of it has come after all."""
        return self.state == "healed"


class CatalogEntry(msgspec.Struct, frozen=True, gc=False):
    """What is collected of one pair, since when, and when that ended, by the exchange or the settings.

    `dropped`: the settings name it no more; the exchange may well go on with it.
    """

    pair: str
    symbol: str
    timeframes: tuple[str, ...]
    since_ms: int
    listed_ms: int | None
    ended_ms: int | None
    changed_ms: int
    dropped: bool = False


class Life(msgspec.Struct, frozen=True, gc=False):
    """One contract that a symbol has been the name of: it can come back as another coin.

    `listed_ms` is Binance's `onboardDate`, 0 where that is not known; `ended_ms` is None while it lives.
    `evidence` says by what it is known that it began, and that it ended.
    """

    pair: str
    symbol: str
    listed_ms: int
    ended_ms: int | None
    evidence: str

    def owned(self, length_ms: int) -> tuple[int, int | None]:
        """Which candles of a timeframe are its own: open times [first, end) in ms, None for no end.

        Its first candle opens before the listing; one that the end cuts is nobody's.
        """
        ended_ms = self.ended_ms
        return (
            schema.floor_to(self.listed_ms, length_ms),
            None if ended_ms is None else schema.floor_to(ended_ms, length_ms),
        )


def lives_text(lives: Iterable[Life]) -> str:
    """The lives of a pair, oldest first, as InfluxDB has them (`schema.LIVES`)."""
    rows = [(life.listed_ms, life.ended_ms, life.symbol) for life in lives]
    return msgspec.json.encode(rows).decode()


class RejectedFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame that could not be used, kept aside with the reason (`received_ms` is receive time)."""

    received_ms: int
    reason: str
    frame: bytes


class RefusedLine(msgspec.Struct, frozen=True, gc=False):
    """A line that InfluxDB would not take, with its words (`refused_ms` is this host's clock)."""

    number: int
    refused_ms: int
    target: str
    line: str
    answer: str


Record = Candle | MarkPrice | FundingRate | FundingSettled | Gap | CatalogEntry | RejectedFrame
