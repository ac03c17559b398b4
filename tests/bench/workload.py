"""What the simulated exchange sends in a measurement, made beforehand.

Frame texts come from the simulator's own writers. Three loads:

* `mixed`: 70 % open klines, 2 % closing ones, 28 % mark prices, in the order in which time passes for
  every series: each mark price opens a new second, each candle closes before the next one begins.
* `live`: a range of real time: pushes of all timeframes at once, a mark price per pair and second,
  and an hour's end in the middle, at which every candle closes within two seconds.
* `boundaries`: candle ends a few hundred milliseconds apart, all closing frames of one at one instant,
  with open frames and mark prices in between.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import Instrument as Listed
from marketfeed.binance.symbols import parse_exchange_info, select_all
from marketfeed.records import Candle
from marketfeed.simulator import catalogue
from marketfeed.simulator.frames import Bar, KlineWriter, combined_head
from marketfeed.simulator.funding import Funding
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.sockets import text_frame

PAIRS: Final = 164
MARK_PRICE_EVERY_MS: Final = 3_000
"""Names the stream (`@markPrice`), the one that cryptofeed's FUNDING channel takes, too."""
START_MS: Final = 1_790_812_800_000
"""Exchange time of the first frame: a full day, hence a boundary of every timeframe."""
OPENS: Final = 35
MARKS: Final = 14
FRAMES_PER_MINUTE: Final = PAIRS * (OPENS + MARKS + 1)
"""Of the mixed load, of all pairs: 70 % open, 28 % mark prices, 2 % closing."""
_FIELDS: Final = (
    "symbol", "baseAsset", "quoteAsset", "marginAsset", "status", "contractType", "onboardDate",
    "deliveryDate",
)  # fmt: skip


class Sending(NamedTuple):
    """One frame of `stream`: `due_ns` is wall time from the start, `event_ms` the exchange's stamp.

    `frame` is ready for the wire, WebSocket header included. `closed` is the candle that it closes.
    """

    stream: str
    due_ns: int
    event_ms: int
    frame: bytes
    closed: Candle | None = None


def exchange_info() -> bytes:
    """An answer of `/fapi/v1/exchangeInfo` that lists the pairs of every load, no others."""
    instruments = catalogue.instruments(PAIRS)
    info = msgspec.json.decode(catalogue.ExchangeInfo(instruments).body(START_MS))
    rows = [
        # cryptofeed wants the tick size, which is the first filter.
        {**{key: row[key] for key in _FIELDS}, "filters": row["filters"][:1]}
        for row in info["symbols"]
    ]
    return msgspec.json.encode({"symbols": rows})


def listed() -> Sequence[Listed]:
    """The pairs as the collector selects them."""
    return select_all(parse_exchange_info(exchange_info()), "USDT").instruments


class _FormingCandle:
    """A forming candle that trades walk through."""

    def __init__(self, instrument: Instrument, timeframe: str, price: int) -> None:
        self._instrument = instrument
        self._timeframe = timeframe
        self._writer = KlineWriter(instrument, timeframe)
        self.stream = f"{instrument.symbol.lower()}@kline_{timeframe}"
        self._head = combined_head(self.stream)
        self._last_id = 1_000_000_000
        self._begin(price)

    def _begin(self, price: int) -> None:
        self._open = self._high = self._low = self._close = price
        self._volume = self._trades = self._quote = self._buy = self._buy_quote = 0

    def trade(self, price: int, lots: int) -> None:
        """Take in a trade; every other one is a taker's purchase."""
        self._close = price
        self._high = max(self._high, price)
        self._low = min(self._low, price)
        self._volume += lots
        self._quote += price * lots
        self._trades += 1
        self._last_id += 1
        if self._trades % 2:
            self._buy += lots
            self._buy_quote += price * lots

    def push(self, event_ms: int, open_ms: int, due_ns: int) -> Sending:
        """Send the candle as it stands."""
        return Sending(self.stream, due_ns, event_ms, self._frame(event_ms, open_ms, closed=False))

    def close(self, event_ms: int, open_ms: int, due_ns: int) -> Sending:
        """Send the closing frame and begin the next candle."""
        frame = self._frame(event_ms, open_ms, closed=True)
        price, lots, quote = (
            self._instrument.price_scale,
            self._instrument.quantity_scale,
            self._instrument.quote_scale,
        )
        # Integers divide with one rounding, as reading the printed decimal does.
        candle = Candle(
            self._instrument.pair, self._timeframe, open_ms,
            self._open / price, self._high / price, self._low / price, self._close / price,
            self._volume / lots, self._quote / quote, self._buy / lots, self._trades,
            closed=True, event_time_ms=open_ms + schema.TIMEFRAMES_MS[self._timeframe],
            taker_buy_quote_volume=self._buy_quote / quote,
        )  # fmt: skip
        self._begin(self._close)
        return Sending(self.stream, due_ns, event_ms, frame, candle)

    def _frame(self, event_ms: int, open_ms: int, *, closed: bool) -> bytes:
        bar = Bar(
            self._open, self._high, self._low, self._close,
            self._volume, self._trades, self._quote, self._buy, self._buy_quote,
        )  # fmt: skip
        first_id = self._last_id - self._trades + 1
        data = self._writer.write(event_ms, open_ms, first_id, self._last_id, closed, bar)
        return text_frame(self._head + data + b"}")


class _Pair:
    """One contract: its candles and its mark price."""

    def __init__(self, number: int, instrument: Instrument, timeframes: Sequence[str]) -> None:
        self.number = number
        self._random = random.Random(instrument.symbol)
        self._instrument = instrument
        price = round(instrument.typical_price * instrument.price_scale)
        self._tick = instrument.tick_units
        self._price = max(price - price % self._tick, 1_000 * self._tick)
        self._lots = max(
            round(instrument.typical_notional / instrument.typical_price)
            * instrument.quantity_scale,
            1,
        )
        self._funding = Funding(instrument, 1)
        self._mark_stream = f"{instrument.symbol.lower()}@markPrice"
        self._mark_head = combined_head(self._mark_stream)
        self.series = {name: _FormingCandle(instrument, name, self._price) for name in timeframes}

    def trade(self) -> None:
        """Let a trade happen: the price walks, and every forming candle takes it in."""
        draw = self._random.random()
        floor = 500 * self._tick
        self._price = max(self._price + self._tick * (int(draw * 7.0) - 3), floor)
        lots = 1 + int(draw * 1_000.0) % 97 * self._lots // 50
        for series in self.series.values():
            series.trade(self._price, lots)

    def mark(self, event_ms: int, due_ns: int) -> Sending:
        """Send the mark price."""
        data = self._funding.frame(self._price / self._instrument.price_scale, event_ms)
        frame = text_frame(self._mark_head + data + b"}")
        return Sending(self._mark_stream, due_ns, event_ms, frame)


def _pairs(timeframes: Sequence[str]) -> list[_Pair]:
    return [
        _Pair(number, instrument, timeframes)
        for number, instrument in enumerate(catalogue.instruments(PAIRS))
    ]


def mixed(minutes: int, frames_per_s: int | None = None) -> Iterator[Sending]:
    """Yield the mixed load of 1m candles: FRAMES_PER_MINUTE frames per minute of exchange time.

    `frames_per_s` (wall) makes each frame due at its own instant; None makes all of them due at once.
    """
    pairs = _pairs(("1m",))
    opens = [((turn + 1) * 59_000 // (OPENS + 1), False) for turn in range(OPENS)]
    marks = [((4 * turn + 2) * 1_000, True) for turn in range(MARKS)]
    steps = sorted(opens + marks)
    gap_ns = 0 if frames_per_s is None else 1_000_000_000 // frames_per_s
    due_ns = 0
    for minute in range(minutes):
        open_ms = START_MS + minute * schema.MINUTE_MS
        for offset_ms, is_mark in steps:
            for pair in pairs:
                event_ms = open_ms + offset_ms + pair.number
                if is_mark:
                    yield pair.mark(event_ms, due_ns)
                else:
                    pair.trade()
                    yield pair.series["1m"].push(event_ms, open_ms, due_ns)
                due_ns += gap_ns
        for pair in pairs:
            pair.trade()
            event_ms = open_ms + schema.MINUTE_MS + 5 * pair.number
            yield pair.series["1m"].close(event_ms, open_ms, due_ns)
            due_ns += gap_ns


def live(seconds: int, frames_per_s: int, timeframes: Sequence[str]) -> Iterator[Sending]:
    """Yield `seconds` at the pace of real time, the hour ending halfway.

    Frames are evenly spaced. Which pair is pushed is drawn by how often it trades, at most four times
    a second, as on the exchange.
    """
    pairs = _pairs(timeframes)
    draw = random.Random("live")
    weights = [min(i.trades_per_s, 4.0) for i in catalogue.instruments(PAIRS)]
    pushes = (frames_per_s - PAIRS) // len(timeframes)
    gap_ns = 1_000_000_000 // frames_per_s
    boundary_ms = START_MS + schema.HOUR_MS
    first_ms = boundary_ms - seconds // 2 * 1_000
    closed: set[int] = set()
    due_ns = 0
    for second in range(seconds):
        turns = [(pair, True) for pair in pairs]
        turns += [(pair, False) for pair in draw.choices(pairs, weights, k=pushes)]
        draw.shuffle(turns)
        # The exchange's timer: two seconds after the end all have closed.
        late = pairs if second == seconds // 2 + 1 else ()
        turns += [(pair, False) for pair in late if pair.number not in closed]
        for pair, is_mark in turns:
            event_ms = first_ms + due_ns // 1_000_000
            if is_mark:
                yield pair.mark(event_ms, due_ns)
                due_ns += gap_ns
                continue
            pair.trade()
            closing = event_ms >= boundary_ms and pair.number not in closed
            for name, series in pair.series.items():
                length_ms = schema.TIMEFRAMES_MS[name]
                if closing:
                    yield series.close(event_ms, boundary_ms - length_ms, due_ns)
                else:
                    open_ms = schema.floor_to(event_ms, length_ms)
                    yield series.push(event_ms, open_ms, due_ns)
                due_ns += gap_ns
            if closing:
                closed.add(pair.number)


def boundaries(count: int, every_ms: int, timeframes: Sequence[str]) -> Iterator[Sending]:
    """Yield `count` instants at which every timeframe ends, `every_ms` (wall) apart.

    All closing frames of one are due at that instant. Evenly spread before it: a mark price of each pair
    and an open frame of each series, then the candles that end in between (no series has a hole). The
    first instant comes after a second.
    """
    pairs = _pairs(timeframes)
    step_ms = max(schema.TIMEFRAMES_MS[name] for name in timeframes)
    for number in range(count):
        from_ms = START_MS + number * step_ms
        close_ms = from_ms + step_ms
        between = sorted(
            (end_ms, name)
            for name in timeframes
            for end_ms in range(from_ms, close_ms, schema.TIMEFRAMES_MS[name])
            if end_ms > from_ms
        )
        due_ns = number and (1_000 + number * every_ms - every_ms) * 1_000_000
        ends_ns = (1_000 + number * every_ms) * 1_000_000
        frames = len(pairs) * (len(between) + len(timeframes) + 1)
        gap_ns = (ends_ns - due_ns) // (frames + 1)
        for pair in pairs:
            event_ms = from_ms + 20_000 + 100 * pair.number
            pair.trade()
            due_ns += gap_ns
            yield pair.mark(event_ms, due_ns)
            for series in pair.series.values():
                due_ns += gap_ns
                yield series.push(event_ms, from_ms, due_ns)
        for end_ms, name in between:
            for pair in pairs:
                pair.trade()
                due_ns += gap_ns
                open_ms = end_ms - schema.TIMEFRAMES_MS[name]
                yield pair.series[name].close(end_ms + 1, open_ms, due_ns)
        for pair in pairs:
            pair.trade()
            for name, series in pair.series.items():
                yield series.close(close_ms + 1, close_ms - schema.TIMEFRAMES_MS[name], ends_ns)
