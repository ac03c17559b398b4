"""The candles of generated markets, and the trades that make them up."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_candles import PAIRS, RATES, bar_of

from marketfeed.schema import MINUTE_MS
from marketfeed.simulator import catalogue
from marketfeed.simulator.frames import Bar
from marketfeed.simulator.history import GeneratedSource, aggregate
from marketfeed.simulator.trades import trades_of


@settings(max_examples=40)
@given(
    pair=st.sampled_from(PAIRS),
    rate=RATES,
    seed=st.integers(0, 10**6),
    first=st.integers(27_000_000, 30_000_000),
    count=st.integers(1, 400),
    inner=st.tuples(st.integers(0, 399), st.integers(1, 400)),
)
def test_history_is_the_same_however_it_is_asked_for(
    pair: str, rate: float, seed: int, first: int, count: int, inner: tuple[int, int]
) -> None:
    instrument = catalogue.make_instrument(pair, rate)
    table = GeneratedSource(instrument, seed).minutes(first, count)
    at = inner[0] % count
    size = min(inner[1], count - at)
    part = GeneratedSource(instrument, seed).minutes(first + at, size)
    assert (part == table[:, at : at + size]).all()

    bars = [Bar(*row) for row in zip(*table.tolist(), strict=True)]
    for earlier, bar in itertools.pairwise(bars):
        assert bar.open == earlier.close
    for bar in bars:
        assert 0 < bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        assert all(price % instrument.tick_units == 0 for price in bar[:4])
        assert bar.volume >= bar.trades >= 0
        assert 0 <= bar.taker_buy <= bar.volume
        if not bar.trades:
            assert bar.open == bar.high == bar.low == bar.close
            assert bar.volume == bar.quote == bar.taker_buy == 0
        # Trades can be made of it.
        trades = trades_of(first * MINUTE_MS, bar, instrument.tick_units, random.Random(seed))
        made = bar_of(trades, bar.close)
        assert made[:6] == bar[:6]


def test_different_pairs_and_seeds_are_different_markets() -> None:
    def closes(pair: str, seed: int) -> list[int]:
        source = GeneratedSource(catalogue.make_instrument(pair, 1.0), seed)
        closes: list[int] = source.minutes(29_000_000, 50)[3].tolist()
        return closes

    found = [closes(pair, seed) for pair in PAIRS for seed in (1, 2)]
    assert len({tuple(prices) for prices in found}) == len(found)


def test_quiet_pairs_have_empty_minutes_and_lively_ones_have_none() -> None:
    for rate, expected in ((0.01, True), (5.0, False)):
        source = GeneratedSource(catalogue.make_instrument(PAIRS[0], rate), 1)
        trades = source.minutes(29_000_000, 1_440)[5]
        assert bool((trades == 0).any()) is expected
        assert trades.mean() == pytest.approx(rate * 60, rel=0.2)


def test_aggregation_keeps_an_unfinished_candle_as_it_stands() -> None:
    source = GeneratedSource(catalogue.make_instrument(PAIRS[0], 1.0), 1)
    minutes = source.minutes(29_000_001, 5)
    first, second = aggregate(minutes, 3)
    assert first.close == minutes[3, 2]
    assert second.close == minutes[3, 4]
    assert second.trades == minutes[5, 3:].sum()
    assert aggregate(minutes[:, :0], 3) == []


def test_a_minute_that_cannot_be_traded_is_refused() -> None:
    rng = random.Random(1)
    with pytest.raises(ValueError, match="cannot make"):
        trades_of(0, Bar(10, 20, 5, 10, 50, 3, 0, 0, 0), 1, rng)
    with pytest.raises(ValueError, match="cannot be"):
        trades_of(0, Bar(10, 10, 10, 10, 2, 3, 0, 0, 0), 1, rng)


@settings(max_examples=100)
@given(data=st.data())
def test_any_feasible_minute_is_reproduced(data: st.DataObject) -> None:
    tick = data.draw(st.sampled_from([1, 10, 100]))
    low = data.draw(st.integers(1, 1_000)) * tick
    high = low + data.draw(st.integers(0, 50)) * tick
    prices = st.integers(low // tick, high // tick).map(lambda price: price * tick)
    count = data.draw(st.integers(4, 300))
    volume = count + data.draw(st.integers(0, 10**9))
    bar = Bar(
        data.draw(prices), high, low, data.draw(prices), volume, count, 0,
        data.draw(st.integers(0, volume)), 0,
    )  # fmt: skip
    trades = trades_of(0, bar, tick, random.Random(data.draw(st.integers(0, 1_000))))
    assert bar_of(trades, 0)[:6] == bar[:6]
    assert all(0 <= time_ms < MINUTE_MS and price % tick == 0 for time_ms, price, _, _ in trades)
