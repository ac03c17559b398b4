"""The live market of one contract: its trades, the candles they form, and when frames of them go out.

The rules, as recordings show them (all in exchange time):
 * a trade is pushed at once if the stream's last frame is 250 ms old or more; otherwise it is shown by
   the push of a later trade, or by the closing frame alone if none comes in time;
 * no frame of a new interval goes out before its first trade;
 * the closing frame goes out at the first trade of the next interval or 2.00 s after the close,
   whichever is first, and is not held back by the 250 ms.
Trades are planned minute by minute from the `MinuteSource`; a frame's `E` is the instant of its event,
so what is sent does not depend on how often `advance` is called.
"""

import random
from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np

from marketfeed import schema
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.frames import Bar, KlineWriter
from marketfeed.simulator.history import Ints, MinuteSource, aggregate
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.trades import Trade, trades_of
from marketfeed.simulator.venue import ClosedCandle, Event, Stream

PURE = True

PUSH_EVERY_MS: Final = 250
CLOSE_AFTER_MS: Final = 2_000
_NEVER: Final = 1 << 62
_NO_TRADE: Final[Trade] = (_NEVER, 0, 0, False)
_FIRST_ID: Final = 1_000_000_000
# Minutes fetched from the source at once: one numpy call is dear, more minutes in it are not.
_FETCHED: Final = 240


class _FormingCandle:
    """The forming candle of one timeframe, as far as whole minutes of it are past."""

    __slots__ = (
        "buy", "buy_quote", "close", "end_ms", "high", "length_ms", "low", "open", "push_from_ms",
        "quote", "stream", "timeframe", "trades", "volume", "writer",
    )  # fmt: skip

    def __init__(self, timeframe: str, stream: Stream, writer: KlineWriter) -> None:
        self.timeframe = timeframe
        self.length_ms = schema.TIMEFRAMES_MS[timeframe]
        self.stream = stream
        self.writer = writer
        self.end_ms = 0
        # No open frame before this.
        self.push_from_ms = 0
        self.open = self.high = self.low = self.close = 0
        self.clear()

    def clear(self) -> None:
        """Begin a new candle. While it has no trades its prices mean nothing."""
        self.volume = self.trades = self.quote = self.buy = self.buy_quote = 0

    def add(self, minute: Bar) -> None:
        """Take in a past minute."""
        if not minute.trades:
            return
        if not self.trades:
            self.open, self.high, self.low = minute.open, minute.high, minute.low
        else:
            self.high = max(self.high, minute.high)
            self.low = min(self.low, minute.low)
        self.close = minute.close
        self.volume += minute.volume
        self.trades += minute.trades
        self.quote += minute.quote
        self.buy += minute.taker_buy
        self.buy_quote += minute.taker_buy_quote

    def bar(self, last_price: int) -> Bar:
        """Return the candle as it stands; without trades all prices are the last one."""
        if not self.trades:
            return Bar(last_price, last_price, last_price, last_price, 0, 0, 0, 0, 0)
        return Bar(
            self.open, self.high, self.low, self.close,
            self.volume, self.trades, self.quote, self.buy, self.buy_quote,
        )  # fmt: skip


class PairMarket:
    """One contract from the minute of `start_ms` on. `advance` is to be called with rising times.

    `due_ms` is when something happens next; before that there is no need to call.
    """

    __slots__ = (
        "_at", "_awaiting", "_buy", "_buy_quote", "_clock_ms", "_empty_closes", "_fetched",
        "_fetched_from", "_high", "_low", "_minute_end_ms", "_next_plan", "_open",
        "_origin_minute", "_past", "_plan", "_plan_at_ms", "_plan_offset_ms", "_push_from_ms", "_quote",
        "_rng", "_series", "_source", "_timer_ms", "_trade_ms", "_trades", "_volume", "due_ms",
        "instrument", "last_id", "last_price", "last_quantity",
    )  # fmt: skip

    def __init__(
        self,
        instrument: Instrument,
        source: MinuteSource,
        streams: dict[str, Stream],
        start_ms: int,
        seed: int,
        *,
        empty_closes: bool,
    ) -> None:
        self.instrument = instrument
        self._source = source
        self._empty_closes = empty_closes
        self._rng = random.Random(f"{seed}/{instrument.symbol}/trades")
        # Planning is spread over the minute: right after its start there is enough to do.
        self._plan_offset_ms = self._rng.randrange(5_000, 55_000)
        self._origin_minute = start_ms // MINUTE_MS
        open_ms = self._origin_minute * MINUTE_MS
        self._fetched: list[Bar] = []
        self._fetched_from = self._origin_minute

        self.last_price = int(source.minutes(self._origin_minute - 1, 1)[3, 0])
        self.last_quantity = 1
        self.last_id = _FIRST_ID
        self._series = []
        for timeframe, stream in streams.items():
            series = _FormingCandle(timeframe, stream, KlineWriter(instrument, timeframe))
            first_ms = schema.floor_to(open_ms, series.length_ms)
            series.end_ms = first_ms + series.length_ms
            gone = (open_ms - first_ms) // MINUTE_MS
            for bar in aggregate(source.minutes(first_ms // MINUTE_MS, gone), max(gone, 1)):
                series.add(bar)
            self._series.append(series)

        # Minutes since the origin, 9 numbers each. Kept for good: 72 bytes a minute.
        self._past = array("q")
        self._awaiting: list[tuple[_FormingCandle, int, Bar]] = []
        self._open = self._high = self._low = 0
        self._volume = self._trades = self._quote = self._buy = self._buy_quote = 0
        # The earliest `push_from_ms` of any series.
        self._push_from_ms = 0
        self._timer_ms = _NEVER
        self._plan = self._make_plan(open_ms)
        self._next_plan: list[Trade] | None = None
        self._at = 0
        self._trade_ms = self._plan[0][0]
        self._minute_end_ms = open_ms + MINUTE_MS
        self._plan_at_ms = open_ms + self._plan_offset_ms
        self._clock_ms = self._plan_at_ms
        self.due_ms = open_ms

    def _target(self, minute: int) -> Bar:
        at = minute - self._fetched_from
        if not 0 <= at < len(self._fetched):
            table = self._source.minutes(minute, _FETCHED)
            self._fetched = [Bar(*row) for row in zip(*table.tolist(), strict=True)]
            self._fetched_from = minute
            at = 0
        return self._fetched[at]

    def reread(self) -> None:
        """Forget what was fetched ahead: the source has changed from the minute after the next one on."""
        self._fetched = []

    def _make_plan(self, open_ms: int) -> list[Trade]:
        target = self._target(open_ms // MINUTE_MS)
        plan = trades_of(open_ms, target, self.instrument.tick_units, self._rng)
        plan.append(_NO_TRADE)
        return plan

    def advance(self, now_ms: int, out: list[Event]) -> None:
        """Let everything up to and including `now_ms` happen; frames are appended to `out`."""
        while True:
            trade_ms, clock_ms = self._trade_ms, self._clock_ms
            if clock_ms <= trade_ms:
                if clock_ms > now_ms:
                    self.due_ms = clock_ms
                    return
                self._tick(clock_ms, out)
            else:
                if trade_ms > now_ms:
                    self.due_ms = trade_ms
                    return
                self._trade(trade_ms, out)

    def _trade(self, time_ms: int, out: list[Event]) -> None:
        if self._awaiting:
            self._close(time_ms, out)
        at = self._at
        _, price, quantity, bought = self._plan[at]
        self._at = at = at + 1
        self._trade_ms = self._plan[at][0]
        self.last_id += 1
        self.last_price = price
        self.last_quantity = quantity
        if self._trades:
            if price > self._high:
                self._high = price
            elif price < self._low:
                self._low = price
        else:
            self._open = self._high = self._low = price
        self._trades += 1
        amount = price * quantity
        self._volume += quantity
        self._quote += amount
        if bought:
            self._buy += quantity
            self._buy_quote += amount
        if time_ms >= self._push_from_ms:
            self._push(time_ms, out)

    def _push(self, time_ms: int, out: list[Event]) -> None:
        """Show the forming candle of every series that may show it, where somebody listens."""
        next_ms = time_ms + PUSH_EVERY_MS
        earliest_ms = next_ms
        for series in self._series:
            if series.push_from_ms > time_ms:
                earliest_ms = min(earliest_ms, series.push_from_ms)
                continue
            series.push_from_ms = next_ms
            if series.stream.wanted:
                open_ms = series.end_ms - series.length_ms
                bar = self._now(series)
                last_id = self.last_id
                data = series.writer.write(
                    time_ms, open_ms, last_id - bar.trades + 1, last_id, False, bar
                )
                out.append(Event(time_ms, series.stream, data))
        self._push_from_ms = earliest_ms

    def _now(self, series: _FormingCandle) -> Bar:
        """The candle of `series` with the minute under way, which has trades."""
        if not series.trades:
            return Bar(
                self._open, self._high, self._low, self.last_price,
                self._volume, self._trades, self._quote, self._buy, self._buy_quote,
            )  # fmt: skip
        high, low = series.high, series.low
        return Bar(
            series.open,
            max(self._high, high),
            min(self._low, low),
            self.last_price,
            series.volume + self._volume,
            series.trades + self._trades,
            series.quote + self._quote,
            series.buy + self._buy,
            series.buy_quote + self._buy_quote,
        )

    def _tick(self, time_ms: int, out: list[Event]) -> None:
        """Do what the clock asks for: end a minute, plan the next one, close what nobody closed."""
        if time_ms == self._minute_end_ms:
            self._end_minute()
        if time_ms == self._plan_at_ms:
            self._next_plan = self._make_plan(self._minute_end_ms)
            self._plan_at_ms = _NEVER
        if time_ms == self._timer_ms:
            self._close(time_ms, out)
        self._clock_ms = min(self._minute_end_ms, self._plan_at_ms, self._timer_ms)

    def _close(self, time_ms: int, out: list[Event]) -> None:
        """Send the closing frames that are due. No trade of the new interval has been counted yet."""
        for series, open_ms, bar in self._awaiting:
            last_id = self.last_id if bar.trades else -1
            first_id = last_id - bar.trades + 1 if bar.trades else -1
            data = series.writer.write(time_ms, open_ms, first_id, last_id, True, bar)
            closed = self._published(series.timeframe, open_ms, bar, time_ms)
            out.append(Event(time_ms, series.stream, data, closed))
            series.push_from_ms = time_ms + PUSH_EVERY_MS
        self._awaiting.clear()
        self._timer_ms = _NEVER
        self._clock_ms = min(self._minute_end_ms, self._plan_at_ms)

    def _end_minute(self) -> None:
        end_ms = self._minute_end_ms
        minute = self._minute()
        self._past.extend(minute)
        for series in self._series:
            series.add(minute)
            if series.end_ms == end_ms:
                if series.trades or self._empty_closes:
                    bar = series.bar(self.last_price)
                    self._awaiting.append((series, end_ms - series.length_ms, bar))
                series.clear()
                series.end_ms += series.length_ms
        if self._awaiting:
            self._timer_ms = end_ms + CLOSE_AFTER_MS
        self._volume = self._trades = self._quote = self._buy = self._buy_quote = 0
        self._plan = self._next_plan if self._next_plan is not None else self._make_plan(end_ms)
        self._next_plan = None
        self._at = 0
        self._trade_ms = self._plan[0][0]
        self._plan_at_ms = end_ms + self._plan_offset_ms
        self._minute_end_ms = end_ms + MINUTE_MS

    def _minute(self) -> Bar:
        price = self.last_price
        if not self._trades:
            return Bar(price, price, price, price, 0, 0, 0, 0, 0)
        return Bar(
            self._open, self._high, self._low, price,
            self._volume, self._trades, self._quote, self._buy, self._buy_quote,
        )  # fmt: skip

    def _published(self, timeframe: str, open_ms: int, bar: Bar, time_ms: int) -> ClosedCandle:
        instrument = self.instrument
        price, lots = instrument.price_scale, instrument.quantity_scale
        quote = instrument.quote_scale
        return ClosedCandle(
            symbol=instrument.symbol,
            pair=instrument.pair,
            timeframe=timeframe,
            open_time_ms=open_ms,
            # The quotient of two integers is rounded once, as a decimal is when it is read.
            open=bar.open / price,
            high=bar.high / price,
            low=bar.low / price,
            close=bar.close / price,
            volume=bar.volume / lots,
            quote_volume=bar.quote / quote,
            taker_buy_volume=bar.taker_buy / lots,
            taker_buy_quote_volume=bar.taker_buy_quote / quote,
            trades=bar.trades,
            event_time_ms=time_ms,
        )

    def bars(self, first_minute: int, count: int, per_candle: int) -> Sequence[Bar]:
        """Return candles of `per_candle` minutes from `first_minute` (their first minute) on.

        `count` is in minutes; those that have not begun are left out, the one under way is as it
        stands. What was before the origin comes from the source.
        """
        current = self._minute_end_ms // MINUTE_MS - 1
        end = min(first_minute + count, current + 1)
        if end <= first_minute:
            return []
        parts: list[Ints] = []
        if first_minute < self._origin_minute:
            upto = min(end, self._origin_minute)
            parts.append(self._source.minutes(first_minute, upto - first_minute))
        left, right = max(first_minute, self._origin_minute), min(end, current)
        if left < right:
            at = (left - self._origin_minute) * 9
            to = (right - self._origin_minute) * 9
            parts.append(np.array(self._past[at:to], dtype=np.int64).reshape(-1, 9).T)
        if end == current + 1:
            parts.append(np.array(self._minute(), dtype=np.int64).reshape(9, 1))
        return aggregate(np.concatenate(parts, axis=1), per_candle)
