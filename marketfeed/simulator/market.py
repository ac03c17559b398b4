"""The simulated exchange without its sockets: every contract's trades, candles, mark prices, funding.

Pure: exchange time is passed in, and the seed decides everything else. What `advance` returns does not
depend on how time is cut into steps.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final

import numpy as np

from marketfeed import schema
from marketfeed.errors import SettingsError
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator import frames
from marketfeed.simulator.changes import Changes
from marketfeed.simulator.frames import Bar
from marketfeed.simulator.funding import Funding
from marketfeed.simulator.history import (
    DaySource,
    GeneratedSource,
    Lifespan,
    MadeDay,
    MinuteSource,
)
from marketfeed.simulator.instrument import Instrument, decimal
from marketfeed.simulator.listings import ListingChange, Listings
from marketfeed.simulator.mark_prices import MarkPrices
from marketfeed.simulator.pair import PairMarket
from marketfeed.simulator.venue import (
    Event,
    FundingInfo,
    Premium,
    Settlement,
    Stream,
    Ticker,
)

PURE = True

_DAY_MINUTES: Final = schema.DAY_MS // MINUTE_MS
_MAX_CANDLES: Final = 1_500

_by_time: Final = attrgetter("time_ms")


def kline_stream(symbol: str, timeframe: str) -> str:
    """Return the name of a kline stream, for example `btcusdt@kline_1m`."""
    return f"{symbol.lower()}@kline_{timeframe}"


class Market:
    """The markets of `instruments`, running from `start_ms` on.

    `timeframes` are those of the kline streams; REST answers for every timeframe of the schema.
    `bystanders` are contracts that are listed and have prices, but neither streams nor candles.
    `day` gives one contract the path of that day, with `every_trade` all of its trades. With
    `empty_closes` an interval without any trade gets a closing frame too; without, only REST has its row.
    Implements `venue.Venue`. Raises SettingsError for timeframes that are unknown, doubled or none.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        timeframes: Sequence[str],
        *,
        start_ms: int,
        seed: int = 1,
        bystanders: Sequence[Instrument] = (),
        day: MadeDay | None = None,
        empty_closes: bool = True,
        every_trade: bool = False,
    ) -> None:
        unknown = [name for name in timeframes if name not in schema.TIMEFRAMES_MS]
        if unknown or not timeframes or len(set(timeframes)) != len(timeframes):
            raise SettingsError(f"timeframes: {', '.join(schema.TIMEFRAMES_MS)}; not {timeframes}")
        self.start_ms = start_ms
        self.now_ms = start_ms
        self.instruments = tuple(instruments)
        self.timeframes = tuple(schema.TIMEFRAMES_MS)
        self._streams: dict[str, Stream] = {}
        self._sources: dict[str, Lifespan] = {}
        self._listings = Listings((*instruments, *bystanders))
        self._kline_timeframes = tuple(timeframes)
        self._seed = seed
        self._empty_closes = empty_closes
        # Listed, and not trading yet.
        self._coming: list[Instrument] = []
        self._pairs: dict[str, PairMarket] = {}
        self.funding = {
            instrument.symbol: Funding(instrument, seed)
            for instrument in (*instruments, *bystanders)
        }
        self._changes = Changes(
            self._listings, self._pairs, self._sources, self.funding, self._coming, seed
        )
        self._marks = MarkPrices(
            self._stream,
            self.last_price,
            self._listings.is_live,
            instruments[0],
            [(instrument, self.funding[instrument.symbol]) for instrument in bystanders],
            seed,
            start_ms,
        )
        for instrument in instruments:
            self._open(instrument, start_ms, day, every_trade=every_trade)
        # The minute under way began before the start: what happened in it is past.
        self._advance_pairs(start_ms)

    @property
    def listed(self) -> Sequence[Instrument]:
        """Every contract in exchangeInfo, in its order."""
        return self._listings.listed(self.now_ms)

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams that carry frames, by name."""
        return self._streams

    def _stream(self, name: str) -> Stream:
        return self._streams.setdefault(name, Stream(name))

    def _open(
        self,
        instrument: Instrument,
        start_ms: int,
        day: MadeDay | None,
        *,
        every_trade: bool = False,
    ) -> None:
        symbol, seed = instrument.symbol, self._seed
        source: MinuteSource = (
            DaySource(day, every_trade=every_trade)
            if day is not None and day.symbol == symbol
            else GeneratedSource(instrument, seed)
        )
        klines = {name: self._stream(kline_stream(symbol, name)) for name in self._kline_timeframes}
        self._sources[symbol] = lifespan = Lifespan(source)
        if start_ms > self.start_ms:
            lifespan.from_minute = start_ms // MINUTE_MS
        pair = PairMarket(
            instrument, lifespan, klines, start_ms, seed, empty_closes=self._empty_closes
        )
        self._pairs[symbol] = pair
        self._marks.add(instrument, self.funding[symbol])

    # --- listing and delisting --------------------------------------------------------------------

    def change(self, change: ListingChange) -> int:
        """Carry out a change; return the exchange time (ms) at which it takes effect.

        Raises SettingsError for a pair that is not there, or is there already.
        """
        return self._changes.carry_out(change, self.now_ms)

    def _open_coming(self, now_ms: int) -> None:
        for instrument in [one for one in self._coming if one.onboard_ms <= now_ms]:
            self._coming.remove(instrument)
            # Until then REST tells of the settlements of the one before it.
            self.funding[instrument.symbol] = Funding(instrument, self._seed)
            self._open(instrument, instrument.onboard_ms, None)

    # --- going on ---------------------------------------------------------------------------------

    def time_at(self, elapsed_ms: float) -> int:
        """Return the exchange time when `elapsed_ms` of it have run since the start."""
        return self.start_ms + int(elapsed_ms)

    def advance(self, now_ms: int) -> list[Event]:
        """Let everything up to and including `now_ms` happen; return the frames in order of time."""
        if now_ms < self.now_ms:
            return []
        if self._coming:
            self._open_coming(now_ms)
        events: list[Event] = []
        while self._marks.due_ms <= now_ms:
            # Trades first, so that a mark price does not depend on the size of the steps.
            events += self._advance_pairs(self._marks.due_ms)
            events += self._marks.advance()
        events += self._advance_pairs(now_ms)
        self.now_ms = now_ms
        return events

    def _advance_pairs(self, now_ms: int) -> list[Event]:
        events: list[Event] = []
        for pair in self._pairs.values():
            if pair.due_ms <= now_ms:
                symbol = pair.instrument.symbol
                if not self._listings.changes(symbol):
                    pair.advance(now_ms, events)
                else:
                    happened: list[Event] = []
                    pair.advance(now_ms, happened)
                    events += [event for event in happened if self._comes(symbol, event)]
        events.sort(key=_by_time)
        return events

    def _comes(self, symbol: str, event: Event) -> bool:
        """Whether a frame is sent: not any more after the end, but for candles that closed by then."""
        closed = event.closed
        if closed is None:
            return self._listings.is_live(symbol, event.time_ms)
        close_ms = closed.open_time_ms + schema.TIMEFRAMES_MS[closed.timeframe]
        return self._listings.is_live(symbol, close_ms - 1)

    def last_price(self, instrument: Instrument) -> float:
        """Return what a contract was last traded at (quote)."""
        pair = self._pairs.get(instrument.symbol)
        if pair is None:
            return instrument.typical_price
        return pair.last_price / pair.instrument.price_scale

    # --- REST -------------------------------------------------------------------------------------

    def _trading(self, listed: Instrument) -> Instrument:
        """The contract that has the symbol now, as it is: what is listed may be announced, or untrue."""
        pair = self._pairs.get(listed.symbol)
        return listed if pair is None else pair.instrument

    def klines(
        self, symbol: str, timeframe: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> bytes:
        """Return the body of `/fapi/v1/klines` as of `now_ms`, the forming candle included.

        Both ends are inclusive open times. Without `start_ms` the last `limit` candles are meant.
        A contract without candles gives none.
        """
        pair = self._pairs.get(symbol)
        if pair is None:
            return b"[]"
        first_ms, count = self._range(pair.instrument, timeframe, start_ms, end_ms, limit)
        bars = self.candles(symbol, timeframe, first_ms, count)
        return frames.kline_rows(pair.instrument, timeframe, first_ms, bars)

    def candles(self, symbol: str, timeframe: str, first_ms: int, count: int) -> Sequence[Bar]:
        """Return up to `count` candles from the one that opens at `first_ms` on, as of `now_ms`."""
        per_candle = schema.TIMEFRAMES_MS[timeframe] // MINUTE_MS
        return self._pairs[symbol].bars(first_ms // MINUTE_MS, count * per_candle, per_candle)

    def _range(
        self,
        instrument: Instrument,
        timeframe: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> tuple[int, int]:
        """First open time and number of the candles that a request asks for."""
        step_ms = schema.TIMEFRAMES_MS[timeframe]
        source = self._sources[instrument.symbol]
        newest_ms = self.now_ms
        if source.to_minute is not None:
            newest_ms = min(newest_ms, source.to_minute * MINUTE_MS - 1)
        last_ms = schema.floor_to(min(newest_ms, newest_ms if end_ms is None else end_ms), step_ms)
        is_new = source.from_minute is not None
        onboard_ms = instrument.onboard_ms
        listed_ms = schema.floor_to(
            onboard_ms if is_new else min(onboard_ms, self.start_ms), step_ms
        )
        limit = min(limit, _MAX_CANDLES)
        if start_ms is None:
            start_ms = last_ms - (limit - 1) * step_ms
        first_ms = max(schema.ceil_to(start_ms, step_ms), listed_ms)
        count = (last_ms - first_ms) // step_ms + 1
        return first_ms, max(0, min(count, limit))

    def mark_klines(
        self,
        instrument: Instrument,
        timeframe: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> bytes:
        """Return the body of `/fapi/v1/markPriceKlines`, as `klines` does.

        The mark price is looked at once a minute: its candles open where settlements at that time are.
        """
        source = self._sources.get(instrument.symbol)
        if source is None:
            return b"[]"
        instrument = self._trading(instrument)
        first_ms, count = self._range(instrument, timeframe, start_ms, end_ms, limit)
        per_candle = schema.TIMEFRAMES_MS[timeframe] // MINUTE_MS
        minutes = np.arange(count * per_candle, dtype=np.int64) + first_ms // MINUTE_MS
        minutes = minutes[minutes * MINUTE_MS <= self.now_ms]
        if not len(minutes):
            return b"[]"
        prices = source.closes(minutes - 1) / instrument.price_scale
        marks = self.funding[instrument.symbol].mark_prices(prices, minutes * MINUTE_MS)
        return frames.mark_kline_rows(timeframe, first_ms, marks.tolist(), per_candle)

    def ticker(self, instrument: Instrument) -> Ticker:
        """Return the last 24 hours of a contract."""
        pair = self._pairs.get(instrument.symbol)
        if pair is None:
            bar = _large_day(instrument)
            last_id, quantity = 0, 1
        else:
            minute = self.now_ms // MINUTE_MS - _DAY_MINUTES + 1
            instrument = pair.instrument
            bar = pair.bars(minute, _DAY_MINUTES, _DAY_MINUTES)[0]
            last_id, quantity = pair.last_id, pair.last_quantity
        price = instrument.price_precision
        lots = instrument.quantity_precision
        change = bar.close - bar.open
        average = bar.quote / bar.volume / instrument.price_scale if bar.volume else 0.0
        return Ticker(
            symbol=instrument.symbol,
            price_change=decimal(change, price),
            price_change_percent=f"{100.0 * change / bar.open:.3f}",
            weighted_avg_price=f"{average:.{price}f}",
            last_price=decimal(bar.close, price),
            last_qty=decimal(quantity, lots),
            open_price=decimal(bar.open, price),
            high_price=decimal(bar.high, price),
            low_price=decimal(bar.low, price),
            volume=decimal(bar.volume, lots),
            quote_volume=decimal(bar.quote, instrument.quote_precision),
            open_time=schema.floor_to(self.now_ms, MINUTE_MS) - schema.DAY_MS,
            close_time=self.now_ms,
            first_id=last_id - bar.trades + 1,
            last_id=last_id,
            count=bar.trades,
        )

    def premium(self, instrument: Instrument) -> Premium:
        """Return mark price and running funding rate of a contract."""
        funding = self.funding[instrument.symbol]
        time_ms = schema.floor_to(self.now_ms, schema.SECOND_MS)
        return funding.premium(self.last_price(instrument), time_ms)

    def settlements(
        self, instrument: Instrument, start_ms: int, end_ms: int, limit: int, *, newest: bool
    ) -> list[Settlement]:
        """Return what was settled from `start_ms` to `end_ms`, both inclusive, oldest first.

        Of more than `limit` settlements the newest are meant, or else the oldest.
        """
        source = self._sources.get(instrument.symbol)
        if source is None:
            return []
        instrument = self._trading(instrument)
        funding = self.funding[instrument.symbol]
        listed_ms = min(instrument.onboard_ms, self.start_ms - schema.DAY_MS)
        if source.from_minute is not None:
            listed_ms = source.from_minute * MINUTE_MS
        until_ms = min(end_ms, self.now_ms)
        if source.to_minute is not None:
            until_ms = min(until_ms, source.to_minute * MINUTE_MS - 1)
        times = funding.times(max(start_ms, listed_ms), until_ms)
        times = times[-limit:] if newest else times[:limit]
        if not times:
            return []
        minutes = np.array([time_ms for time_ms, _ in times], dtype=np.int64) // MINUTE_MS
        return [
            funding.settlement(time_ms, price / instrument.price_scale, special=special)
            for (time_ms, special), price in zip(
                times, source.closes(minutes - 1).tolist(), strict=True
            )
        ]

    def funding_infos(self) -> list[FundingInfo]:
        """Return the rows of `/fapi/v1/fundingInfo`: contracts whose funding is not the usual one."""
        return [
            self.funding[instrument.symbol].info()
            for instrument in self.listed
            if instrument.status == "TRADING" and instrument.funding_hours in {1, 4}
        ]


def _large_day(instrument: Instrument) -> Bar:
    """A day of a bystander: more volume than any coin has, if it trades at all."""
    price = round(instrument.typical_price * instrument.price_scale)
    if instrument.status != "TRADING":
        return Bar(price, price, price, price, 0, 0, 0, 0, 0)
    lots = round(5e10 / instrument.typical_price * instrument.quantity_scale)
    return Bar(
        price, price, price, price, lots, 1_000_000, lots * price, lots // 2, lots // 2 * price
    )
