"""The trades that make up one minute's candle: the same open, high, low, close, volume and count."""

import itertools
import math
import random
from operator import itemgetter
from typing import Final, TypeAlias

from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.frames import Bar

PURE = True

Trade: TypeAlias = tuple[int, int, int, bool]
"""Exchange time in ms, price in price units, quantity in lots, whether the taker bought."""

_DRAWS: Final = 4_096
_tables = random.Random(20_250_102)
# Sizes of trades are log-normal: most are small, a few are fifty times as large.
_SIZES: Final = tuple(math.exp(1.3 * _tables.gauss(0.0, 1.0)) for _ in range(_DRAWS))
_SWINGS: Final = tuple(_tables.gauss(0.0, 0.5) for _ in range(_DRAWS))

_time: Final = itemgetter(0)


def trades_of(open_ms: int, minute: Bar, tick_units: int, rng: random.Random) -> list[Trade]:
    """Return the trades of the minute that starts at `open_ms`, in the order of time.

    Their prices reproduce `minute`'s open, high, low and close exactly, their quantities its volume,
    their number its count. Quote volume and taker's share follow about, since they depend on which
    quantity meets which price. A minute needs one trade for each of its distinct prices.
    """
    count = minute.trades
    if count == 0:
        return []
    times = sorted(rng.choices(range(open_ms, open_ms + MINUTE_MS), k=count))
    prices = _prices(minute, tick_units, rng)
    lots = _lots(minute.volume, count, rng)
    share = minute.taker_buy / minute.volume
    uniform = rng.random
    return [
        (time_ms, price, quantity, uniform() < share)
        for time_ms, price, quantity in zip(times, prices, lots, strict=True)
    ]


def _prices(minute: Bar, tick: int, rng: random.Random) -> list[int]:
    """A path from open to close that touches high and low and stays between them, on the tick."""
    count = minute.trades
    ends = {minute.open, minute.close}
    turns = [extreme for extreme in (minute.high, minute.low) if extreme not in ends]
    if count < len(turns) + (2 if turns else len(ends)):
        raise ValueError(f"{count} trades cannot make {minute}")
    rng.shuffle(turns)
    places = sorted(rng.sample(range(1, count - 1), len(turns))) if turns else []
    waypoints = [(0, minute.open), *zip(places, turns, strict=True), (count - 1, minute.close)]
    high, low = minute.high, minute.low
    width = (high - low) / 6.0
    draw = rng.getrandbits
    path = [minute.open]
    for (at, start), (to, end) in itertools.pairwise(waypoints):
        if to == at:
            continue
        slope = (end - start) / (to - at)
        for step in range(1, to - at):
            price = start + slope * step + _SWINGS[draw(12)] * width
            price = high if price > high else max(price, low)
            path.append(round(price / tick) * tick)
        path.append(end)
    return path


def _lots(volume: int, count: int, rng: random.Random) -> list[int]:
    """`count` quantities of at least one lot that add up to `volume`."""
    if volume < count:
        raise ValueError(f"{volume} lots cannot be {count} trades")
    draw = rng.getrandbits
    weights = [_SIZES[draw(12)] for _ in range(count)]
    unit = (volume - count) / sum(weights)
    lots = [1 + int(weight * unit) for weight in weights]
    # int() rounds down, but a sum of floats may be off in its last bits: the first trades settle it.
    left = volume - sum(lots)
    at = draw(30) % count
    if left >= 0:
        lots[at] += left
    while left < 0:
        if lots[at] > 1:
            lots[at] -= 1
            left += 1
        at = (at + 1) % count
    return lots
