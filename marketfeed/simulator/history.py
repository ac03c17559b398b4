"""What every minute of a simulated market amounts to: its candle, as a function of (seed, symbol, minute).

Nothing is remembered: the same minute gives the same candle whenever it is asked for, so REST can
answer for any past. Live trading follows the same candles (`trades.py` makes the trades of each), so
a market goes on from where its history ends. Minutes are counted since the epoch; numbers are in the
whole units of the `Instrument`.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from marketfeed.simulator.frames import Bar
from marketfeed.simulator.instrument import Instrument

PURE = True

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
_Hashes: TypeAlias = npt.NDArray[np.uint64]

MINUTES_PER_DAY: Final = 1_440

# Standard deviation of a minute's log return: about 80 % a year.
_VOLATILITY: Final = 0.0011
# Periods of the price's waves, in minutes. Their heights grow with the square root of the period, as
# those of a random walk do, but end at 45 days: the price wanders without ever getting lost.
_PERIODS: Final = tuple(4**exponent for exponent in range(9))
# A minute in so many has at least two trades, so that the last known price is never far to seek.
_LIVELY_EVERY: Final = 60
# Below this many trades a minute their number is Poisson-distributed and often zero.
_QUIET: Final = 12.0

_ACTIVITY, _TRADES, _WICK_UP, _WICK_DOWN, _SIZE, _TAKER, _PATH = range(7)


class MinuteSource(Protocol):
    """Gives the candle of any minute."""

    def minutes(self, first_minute: int, count: int) -> Ints:
        """Return `count` one-minute candles: an array of 9 rows, in the order of `Bar`."""

    def closes(self, minutes: Ints) -> Ints:
        """Return about what the price was at the end of each of these minutes (price units)."""


def _mix(values: _Hashes) -> _Hashes:
    """Spread the bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class GeneratedSource:
    """Candles of an invented market: a price made of waves, so that any minute can be made by itself.

    A minute opens at the price of the minute before. One with fewer than two trades leaves the price
    where it was; hence the first trade after an empty minute is at the last price, and candles of a
    larger timeframe are the same whether built from trades or from minutes.
    """

    def __init__(self, instrument: Instrument, seed: int) -> None:
        name = f"{seed}/{instrument.symbol}".encode()
        self._key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        self._phase = self._key % _LIVELY_EVERY
        self._tick = instrument.tick_units
        self._ticks = instrument.typical_price * instrument.price_scale / instrument.tick_units
        self._per_minute = instrument.trades_per_s * 60.0
        lots = instrument.typical_notional / instrument.typical_price * instrument.quantity_scale
        self._lots = max(lots, 1.0)
        self._quiet = self._per_minute < _QUIET
        ranks = np.arange(60, dtype=np.float64)
        logs = ranks * np.log(max(self._per_minute, 1e-9)) - np.cumsum(
            np.log(np.maximum(ranks, 1.0))
        )
        self._poisson = np.cumsum(np.exp(logs - self._per_minute))

    def _uniform(self, channel: int, indexes: Ints) -> Floats:
        """Numbers in [0, 1), one for each index."""
        salt = (self._key + channel * 0xD1342543DE82EF95) % 2**64
        values = indexes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        numbers: Floats = (_mix(values) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return numbers

    def _wave(self, channel: int, period: int, minutes: Ints) -> Floats:
        """A wandering line through random heights in [-1, 1), `period` minutes apart."""
        if period == 1:
            return self._uniform(channel, minutes) * 2.0 - 1.0
        cells = minutes // period
        first = int(cells.min())
        points = self._uniform(channel, np.arange(first, int(cells.max()) + 2)) * 2.0 - 1.0
        share = (minutes - cells * period) / period
        left = points[cells - first]
        return left + (points[cells - first + 1] - left) * share

    def _price_ticks(self, minutes: Ints) -> Ints:
        logs = np.zeros(len(minutes))
        for channel, period in enumerate(_PERIODS, _PATH):
            logs += self._wave(channel, period, minutes) * (_VOLATILITY * period**0.5)
        return np.maximum(np.rint(self._ticks * np.exp(logs)), 10).astype(np.int64)

    def _trade_counts(self, minutes: Ints) -> Ints:
        uniform = self._uniform(_TRADES, minutes)
        if self._quiet:
            counts = np.searchsorted(self._poisson, uniform).astype(np.int64)
        else:
            activity = np.exp(self._wave(_ACTIVITY, 20, minutes) * 0.5)
            expected = self._per_minute * activity
            # Nearly a normal variate, in units of its standard deviation.
            spread = (uniform + self._uniform(_TRADES + 100, minutes) - 1.0) * 2.45
            counts = np.maximum(np.rint(expected + np.sqrt(expected) * spread), 0).astype(np.int64)
        lively = minutes % _LIVELY_EVERY == self._phase
        return np.where(lively, np.maximum(counts, 2), counts)

    def minutes(self, first_minute: int, count: int) -> Ints:
        """Return `count` one-minute candles: an array of 9 rows, in the order of `Bar`."""
        # One more than the longest wait for a lively minute, then the minutes asked for.
        before = _LIVELY_EVERY + 1
        numbers = np.arange(first_minute - before, first_minute + count, dtype=np.int64)
        all_trades = self._trade_counts(numbers)
        path = self._price_ticks(numbers)
        moved = np.where(all_trades >= 2, np.arange(len(numbers)), -1)
        last_moved = np.maximum.accumulate(moved)
        # Minutes before the first lively one point nowhere; none of them is used.
        price = path[np.maximum(last_moved, 0)]
        close = price[before:]
        opens = price[before - 1 : -1]
        numbers = numbers[before:]
        trades = all_trades[before:]

        reach = np.where(trades >= 4, _VOLATILITY * 0.8 * close, 0.0)
        up = np.floor(reach * self._uniform(_WICK_UP, numbers) ** 2).astype(np.int64)
        down = np.floor(reach * self._uniform(_WICK_DOWN, numbers) ** 2).astype(np.int64)
        high = np.maximum(opens, close) + up
        low = np.maximum(np.minimum(opens, close) - down, 1)
        size = self._lots * (0.4 + 1.2 * self._uniform(_SIZE, numbers))
        volume = trades + np.floor(trades * (size - 1.0).clip(0.0)).astype(np.int64)
        bought = np.rint(volume * (0.2 + 0.6 * self._uniform(_TAKER, numbers))).astype(np.int64)
        middle = (opens + high + low + close) / 4.0 * self._tick
        columns = (
            opens * self._tick, high * self._tick, low * self._tick, close * self._tick,
            volume, trades, np.rint(volume * middle), bought, np.rint(bought * middle),
        )  # fmt: skip
        return np.array(columns, dtype=np.int64)

    def closes(self, minutes: Ints) -> Ints:
        """Return about what the price was at the end of each of these minutes (price units)."""
        return self._price_ticks(minutes) * self._tick


class MadeDay(NamedTuple):
    """One day of a contract's one-minute candles from 00:00 UTC on, in its whole units."""

    symbol: str
    bars: Sequence[Bar]


class DaySource:
    """Candles of one day, again and again, by the minute of the day.

    Prices and volumes are the day's; of the trades, half are left out and never more than 30 a second
    remain, so that a test can afford them, unless `every_trade` is wanted.
    """

    def __init__(self, day: MadeDay, *, every_trade: bool = False) -> None:
        if len(day.bars) != MINUTES_PER_DAY:
            raise ValueError(f"{day.symbol}: a day of {len(day.bars)} minutes")
        self._table = np.array(day.bars, dtype=np.int64).T
        if not every_trade:
            trades = self._table[Bar._fields.index("trades")]
            trades[:] = np.clip(trades // 2, 4, 1_800)

    def minutes(self, first_minute: int, count: int) -> Ints:
        """Return `count` one-minute candles: an array of 9 rows, in the order of `Bar`."""
        numbers = np.arange(first_minute, first_minute + count, dtype=np.int64)
        table: Ints = self._table[:, numbers % MINUTES_PER_DAY]
        return table

    def closes(self, minutes: Ints) -> Ints:
        """Return what the price was at the end of each of these minutes (price units)."""
        prices: Ints = self._table[3, minutes % MINUTES_PER_DAY]
        return prices


class Lifespan:
    """Candles of a contract that trades from one minute to another (exclusive); around that, empty ones."""

    def __init__(self, source: MinuteSource) -> None:
        self.from_minute: int | None = None
        self.to_minute: int | None = None
        self._source = source

    def minutes(self, first_minute: int, count: int) -> Ints:
        """Return `count` one-minute candles: an array of 9 rows, in the order of `Bar`."""
        table = self._source.minutes(first_minute, count)
        if self.from_minute is not None and first_minute < self.from_minute:
            opening = self._source.minutes(self.from_minute, 1)[0, 0]
            table = _emptied(table, slice(0, self.from_minute - first_minute), opening)
        if self.to_minute is not None and first_minute + count > self.to_minute:
            closing = self._source.minutes(self.to_minute - 1, 1)[3, 0]
            table = _emptied(table, slice(max(0, self.to_minute - first_minute), count), closing)
        return table

    def closes(self, minutes: Ints) -> Ints:
        """Return about what the price was at the end of each of these minutes (price units)."""
        return self._source.closes(minutes)


def _emptied(table: Ints, columns: slice, price: np.int64) -> Ints:
    emptied = table.copy()
    emptied[:4, columns] = price
    emptied[4:, columns] = 0
    return emptied


def aggregate(minutes: Ints, per_candle: int) -> list[Bar]:
    """Return candles of `per_candle` minutes each from one-minute candles (9 rows, in the order of `Bar`).

    The first column opens the first candle. A last candle that is not full is given as it stands.
    """
    count = minutes.shape[1]
    if count == 0:
        return []
    short = -count % per_candle
    if short:
        filler = np.repeat(minutes[3:4, -1:], 4, axis=0)
        tail = np.concatenate([filler, np.zeros((5, 1), dtype=np.int64)])
        minutes = np.concatenate([minutes, np.repeat(tail, short, axis=1)], axis=1)
    blocks = minutes.reshape(9, -1, per_candle)
    columns = (
        blocks[0, :, 0],
        blocks[1].max(axis=1),
        blocks[2].min(axis=1),
        blocks[3, :, -1],
        *(blocks[row].sum(axis=1) for row in range(4, 9)),
    )
    return [Bar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
