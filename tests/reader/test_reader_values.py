"""Mark prices and funding rates: numbers that know their pair and age."""

import copy
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from stored import H1, OTHER, PAIR, START_MS, candle, entry

from marketfeed.records import FundingRate as FundingRecord
from marketfeed.records import FundingSettled
from marketfeed.records import MarkPrice as MarkRecord
from reader import (
    FundingRate,
    MarkPrice,
    StaleDataError,
    UnknownPairError,
    UnknownTimeframeError,
)
from reader.values import PairInfo

GONE = "OLD/USDT:USDT"
NEXT_MS = START_MS + 8 * H1


def at(ms: int) -> pd.Timestamp:
    return pd.Timestamp(ms, unit="ms", tz="UTC")


def funding(pair: str, time_ms: int, rate: float) -> FundingRecord:
    return FundingRecord(pair, time_ms + 1_234, rate, NEXT_MS)


# --- mark prices ------------------------------------------------------------------------------------


def test_the_newest_mark_price(connect, clock) -> None:
    marks = [MarkRecord(PAIR, START_MS + n * 3_000 + 7, 100.5 + n, 100.25 + n) for n in range(5)]
    reader = connect(entry(), entry(OTHER), marks, MarkRecord(OTHER, START_MS + 60_000, 7.0, 8.0))
    clock.ms = START_MS + 20_000
    price = reader.get_mark_price(PAIR)
    assert price == 104.5
    assert isinstance(price, MarkPrice)
    assert (price.pair, price.index_price, price.age_s) == (PAIR, 104.25, 8.0)
    assert price.time == at(START_MS + 12_000)
    assert str(price.time.tz) == "UTC"


def test_a_mark_price_without_an_index_price(connect, clock) -> None:
    others = [f"A{n}/USDT:USDT" for n in range(20)]
    reader = connect(
        *(entry(pair) for pair in (PAIR, OTHER, *others)),
        *(MarkRecord(pair, START_MS, 1.0, None) for pair in others),
        MarkRecord(PAIR, START_MS, 100.5, 100.25),
        MarkRecord(PAIR, START_MS + 3_000, 101.5, None),
        MarkRecord(OTHER, START_MS + 3_000, 7.0, 8.0),
    )
    clock.ms = START_MS + 5_000
    price = reader.get_mark_price(PAIR)
    assert (price, price.index_price, price.age_s) == (101.5, None, 2.0)
    assert reader.get_mark_price(OTHER).index_price == 8.0
    assert "index_price=None" in repr(price)
    assert pickle.loads(pickle.dumps(price)).index_price is None  # noqa: S301
    # So many are asked for in another way.
    found = reader._store.mark_prices([PAIR, OTHER, *others])
    indexes = {pair: row.index_price for pair, row in found.items()}
    assert indexes == {PAIR: None, OTHER: 8.0, **dict.fromkeys(others)}
    # Its candles are made of mark prices alone.
    candles = reader.get_mark_candles(PAIR, "1m", since=START_MS)
    assert candles[["open", "close"]].to_numpy().tolist() == [[100.5, 101.5]]


def test_an_old_mark_price_raises(connect, clock) -> None:
    reader = connect(entry(), MarkRecord(PAIR, START_MS, 1.0, 2.0))
    clock.ms = START_MS + 30_000
    assert reader.get_mark_price(PAIR).age_s == 30.0
    clock.ms += 1
    with pytest.raises(StaleDataError, match=r"stale mark price \(30 s are allowed\)") as caught:
        reader.get_mark_price(PAIR)
    assert caught.value.ages == {PAIR: 30.001}
    assert reader.get_mark_price(PAIR, max_age_s=31) == 1.0
    assert reader.get_mark_price(PAIR, max_age_s=None) == 1.0
    clock.ms = START_MS - 1
    assert reader.get_mark_price(PAIR).age_s == 0


def test_no_mark_price_is_an_error_whatever_the_age(connect) -> None:
    reader = connect(entry(), candle(START_MS))
    for max_age_s in (30, None, math.inf):
        with pytest.raises(StaleDataError, match="none yet"):
            reader.get_mark_price(PAIR, max_age_s=max_age_s)
    with pytest.raises(UnknownPairError):
        reader.get_mark_price(OTHER)


def test_an_ended_pair_has_no_current_price(connect, clock) -> None:
    reader = connect(
        entry(ended_ms=START_MS + 10_000),
        MarkRecord(PAIR, START_MS, 1.0, 2.0),
        funding(PAIR, START_MS, 0.1),
    )
    clock.ms = START_MS + H1
    with pytest.raises(StaleDataError):
        reader.get_mark_price(PAIR)
    with pytest.raises(StaleDataError):
        reader.get_funding_rate(PAIR)
    assert reader.get_mark_price(PAIR, max_age_s=None).age_s == 3600


# --- funding ----------------------------------------------------------------------------------------


def test_the_newest_funding_rate(connect, clock) -> None:
    reader = connect(
        entry(),
        funding(PAIR, START_MS, 0.0001),
        funding(PAIR, START_MS + 60_000, -0.0002),
        FundingSettled(PAIR, START_MS - 8 * H1, 0.0003, 100.0),
        FundingSettled(PAIR, START_MS, 0.0004, None),
    )
    clock.ms = START_MS + 100_000
    rate = reader.get_funding_rate(PAIR)
    assert rate == -0.0002
    assert isinstance(rate, FundingRate)
    assert (rate.pair, rate.settled_rate, rate.age_s) == (PAIR, 0.0004, 40.0)
    assert rate.time == at(START_MS + 60_000)
    assert rate.next_funding_time == at(NEXT_MS)
    clock.ms = START_MS + 60_000 + 150_001
    with pytest.raises(StaleDataError, match="150 s are allowed"):
        reader.get_funding_rate(PAIR)
    assert reader.get_funding_rate(PAIR, max_age_s=151) == -0.0002


def test_settled_rate_is_none_until_one_is_known(connect) -> None:
    reader = connect(entry(), funding(PAIR, START_MS, 0.0001))
    assert reader.get_funding_rate(PAIR).settled_rate is None


def test_all_funding_rates_leave_ended_pairs_out(connect, clock) -> None:
    reader = connect(
        entry(),
        entry(OTHER, ended_ms=START_MS + H1),
        entry(GONE, ended_ms=START_MS),
        [funding(pair, START_MS, 0.1) for pair in (PAIR, GONE)],
        funding(OTHER, START_MS, -0.2),
        FundingSettled(OTHER, START_MS, 0.5, None),
    )
    clock.ms = START_MS + 60_000
    rates = reader.get_all_pairs_funding_rates()
    assert rates == {PAIR: 0.1, OTHER: -0.2}
    assert {pair: rate.pair for pair, rate in rates.items()} == {PAIR: PAIR, OTHER: OTHER}
    assert [rate.settled_rate for rate in rates.values()] == [None, 0.5]

    frame = reader.funding_frame()
    assert frame.index.name == "pair"
    assert frame.index.tolist() == [PAIR, OTHER]
    names = ["rate", "settled_rate", "next_funding_time", "time", "age_s", "interval_h"]
    assert list(frame.columns) == names
    assert frame["rate"].tolist() == [0.1, -0.2]
    assert np.isnan(frame["settled_rate"].iloc[0])
    assert frame.loc[OTHER, "settled_rate"] == 0.5
    assert frame.loc[PAIR, "time"] == at(START_MS)
    assert frame.loc[PAIR, "next_funding_time"] == at(NEXT_MS)
    assert frame["age_s"].tolist() == [60.0, 60.0]
    assert str(frame["time"].dtype).endswith("UTC]")


def test_a_pair_without_a_running_rate_costs_the_others_nothing(connect, clock, caplog) -> None:
    """Its frames carry a mark price and no time of a settlement: from the start, or from some time on."""
    third, silent = "SOL/USDT:USDT", "XRP/USDT:USDT"
    late_ms = START_MS + 20 * 60_000
    marks = [MarkRecord(pair, late_ms, 100.0, None) for pair in (PAIR, OTHER, third)]
    rates = [funding(PAIR, late_ms, 0.1), funding(OTHER, START_MS, 0.2)]
    reader = connect([entry(pair) for pair in (PAIR, OTHER, third)], marks, rates)
    clock.ms = late_ms + 5_000
    for _ in range(2):
        assert reader.get_all_pairs_funding_rates() == {PAIR: 0.1}
    assert [record.getMessage() for record in caplog.records] == [
        f"no running funding rate, left out pairs={OTHER}, {third}"
    ]
    frame = reader.funding_frame()
    assert frame.index.tolist() == [PAIR]
    assert frame.attrs["without"] == [OTHER, third]
    with pytest.raises(StaleDataError, match=r"SOL.*none yet"):
        reader.get_funding_rate(third)
    # Too old for the caller alone is no lack of the exchange's.
    clock.ms = late_ms + 20_000
    with pytest.raises(StaleDataError, match=r"BTC.* 20\.0 s old"):
        reader.get_all_pairs_funding_rates(max_age_s=10)
    # Nothing of it comes any more: that is no frame without a rate.
    reader = connect(entry(silent), MarkRecord(silent, START_MS, 1.0, None))
    with pytest.raises(StaleDataError) as caught:
        reader.get_all_pairs_funding_rates()
    assert caught.value.pairs == (silent,)


def test_a_market_without_any_running_rate_is_stale(connect, clock) -> None:
    reader = connect([entry(), entry(OTHER)], [MarkRecord(PAIR, START_MS, 1.0, None)])
    clock.ms = START_MS
    with pytest.raises(StaleDataError):
        reader.get_all_pairs_funding_rates()


def test_all_funding_rates_name_the_stale_ones(connect, clock) -> None:
    third = "SOL/USDT:USDT"
    reader = connect(
        entry(),
        entry(OTHER),
        entry(third),
        funding(PAIR, START_MS + 60_000, 0.1),
        funding(OTHER, START_MS, 0.2),
    )
    clock.ms = START_MS + 151_000
    with pytest.raises(StaleDataError, match=r"ETH.* 151\.0 s old; SOL.*none yet") as caught:
        reader.get_all_pairs_funding_rates()
    assert caught.value.ages == {OTHER: 151.0, third: math.inf}
    with pytest.raises(StaleDataError):
        reader.funding_frame()
    assert reader.get_all_pairs_funding_rates(max_age_s=None) == {PAIR: 0.1, OTHER: 0.2}
    assert len(reader.funding_frame(max_age_s=None)) == 2


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "nothing is collected yet: the catalog is empty"),
        ([entry(ended_ms=START_MS)], "every pair has ended"),
    ],
)
def test_no_live_pair_is_no_empty_answer(connect, clock, entries, why: str) -> None:
    """A catalog that is lost would look like a market without a single pair."""
    reader = connect(entries, funding(PAIR, START_MS, 0.1), candle(START_MS))
    clock.ms = START_MS + 1_000
    for max_age_s in (150, None):
        for call in (
            lambda age_s=max_age_s: reader.get_all_pairs_funding_rates(max_age_s=age_s),
            lambda age_s=max_age_s: reader.funding_frame(max_age_s=age_s),
            lambda: reader.wait_closed("3m", START_MS, 0),
        ):
            with pytest.raises(StaleDataError, match=why) as caught:
                call()
            assert caught.value.ages == {}


def test_an_empty_funding_frame_keeps_its_types(connect) -> None:
    reader = connect(entry())
    empty = reader.funding_frame(max_age_s=None)
    assert len(empty) == 0
    assert str(empty["time"].dtype) == str(pd.to_datetime([0], unit="ms", utc=True).dtype)
    assert empty["settled_rate"].dtype == np.float64


def test_funding_history(connect) -> None:
    settled = [FundingSettled(PAIR, START_MS + n * 8 * H1, n / 1000, None) for n in range(6)]
    reader = connect(entry(), entry(OTHER), settled)
    frame = reader.get_funding_history(PAIR, START_MS + 8 * H1, START_MS + 24 * H1)
    assert list(frame.columns) == ["date", "rate", "kind"]
    assert frame["date"].tolist() == [at(START_MS + n * 8 * H1) for n in (1, 2)]
    assert frame["date"].dtype == pd.to_datetime([0], unit="ms", utc=True).dtype
    assert frame["rate"].tolist() == [0.001, 0.002]
    assert frame.attrs["pair"] == PAIR
    assert len(reader.get_funding_history(PAIR)) == 6
    assert len(reader.get_funding_history(PAIR, since=at(START_MS + 40 * H1))) == 1
    empty = reader.get_funding_history(OTHER)
    assert empty.dtypes.tolist() == frame.dtypes.tolist()
    with pytest.raises(ValueError, match="must lie before until"):
        reader.get_funding_history(PAIR, START_MS, START_MS)


# --- the numbers themselves -------------------------------------------------------------------------

RATE = FundingRate(0.0001, PAIR, None, at(NEXT_MS), at(START_MS), 1.5)
PRICE = MarkPrice(100.5, PAIR, 100.25, at(START_MS), 1.5)


@pytest.mark.parametrize("value", [RATE, PRICE], ids=["FundingRate", "MarkPrice"])
def test_they_are_floats_to_whoever_wants_floats(value: FundingRate | MarkPrice) -> None:
    plain = float(value)
    assert type(plain) is float
    assert value == plain
    assert hash(value) == hash(plain)
    assert type(value * 2) is float
    assert f"{value}" == str(value) == str(plain)
    assert f"{value:.6f}" == f"{plain:.6f}"
    assert json.dumps({"x": value}) == json.dumps({"x": plain})
    assert np.array([value]).dtype == np.float64
    assert pd.Series([value, value]).dtype == np.float64
    assert sorted([value, 0.0]) == [0.0, plain]


@pytest.mark.parametrize("value", [RATE, PRICE], ids=["FundingRate", "MarkPrice"])
def test_they_survive_pickling_and_copying(value: FundingRate | MarkPrice) -> None:
    made = [pickle.loads(pickle.dumps(value, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301
    for other in [*made, copy.copy(value), copy.deepcopy(value)]:
        assert type(other) is type(value)
        assert repr(other) == repr(value)
        assert (other, other.pair, other.time, other.age_s) == (value, PAIR, value.time, 1.5)


@pytest.mark.parametrize("value", [RATE, PRICE], ids=["FundingRate", "MarkPrice"])
def test_they_cannot_be_changed(value: FundingRate | MarkPrice) -> None:
    with pytest.raises(AttributeError, match="immutable"):
        value.age_s = 0.0
    with pytest.raises(AttributeError, match="immutable"):
        value.note = "more"
    with pytest.raises(AttributeError, match="immutable"):
        del value.pair


def test_their_repr_tells_all() -> None:
    assert repr(RATE) == (
        "FundingRate(0.0001, pair=BTC/USDT:USDT, settled_rate=None, "
        "next_funding_time=2026-01-01 08:00:00+00:00, time=2026-01-01 00:00:00+00:00, age_s=1.5, "
        "interval_h=None)"
    )
    assert repr(PRICE) == (
        "MarkPrice(100.5, pair=BTC/USDT:USDT, index_price=100.25, "
        "time=2026-01-01 00:00:00+00:00, age_s=1.5)"
    )


# --- what is collected ------------------------------------------------------------------------------


def test_pairs_tell_what_is_collected(connect) -> None:
    reader = connect(entry(timeframes=("1m", "3m")), entry(GONE, ended_ms=START_MS + H1))
    infos = reader.pairs()
    assert infos == [
        PairInfo(PAIR, ("1m", "3m"), at(START_MS), None),
        PairInfo(GONE, ("3m",), at(START_MS), at(START_MS + H1)),
    ]
    assert list(pd.DataFrame(infos).columns) == ["pair", "timeframes", "since", "ended"]
    assert pickle.loads(pickle.dumps(infos)) == infos  # noqa: S301


def test_a_pair_with_no_timeframe_left_is_reported(connect) -> None:
    reader = connect(entry(timeframes=()), candle(START_MS))
    assert reader.pairs()[0].timeframes == ()
    with pytest.raises(Exception, match="collected: none"):
        reader.get_ohlcv(PAIR, "3m")


# --- candles of mark prices -------------------------------------------------------------------------


def marks(*points: tuple[int, float]) -> list[MarkRecord]:
    return [MarkRecord(PAIR, START_MS + second * 1000, price, 1.0) for second, price in points]


def test_mark_candles_are_made_of_the_points(connect, clock) -> None:
    reader = connect(
        entry(),
        marks((0, 10.0), (3, 12.0), (1800, 9.0), (3594, 11.0), (3597, 10.5)),
        marks((3600, 20.0), (3603, 21.0), (3660, 19.5)),
    )
    clock.ms = START_MS + H1 + 90_000
    frame = reader.get_mark_candles(PAIR, since=START_MS)
    assert list(frame.columns) == ["date", "open", "high", "low", "close", "volume"]
    assert frame["date"].tolist() == [at(START_MS), at(START_MS + H1)]
    assert frame.to_numpy()[:, 1:].tolist() == [
        [10.0, 12.0, 9.0, 10.5, 0.0],
        [20.0, 21.0, 19.5, 19.5, 0.0],
    ]
    assert frame.attrs["pair"] == PAIR
    one = reader.get_mark_candles(PAIR, since=START_MS - 1, until=START_MS + H1)
    assert one["date"].tolist() == [at(START_MS)]
    assert reader.get_mark_candles(PAIR, "1m", since=START_MS + H1)["open"].tolist() == [20.0, 19.5]
    assert len(reader.get_mark_candles(PAIR, since=START_MS + 2 * H1)) == 0


def test_a_mark_candle_without_its_edges_is_left_out(connect, clock) -> None:
    reader = connect(
        entry(),
        marks((60, 1.0), (3599, 1.0)),  # its first minute lacks
        marks((3600, 2.0), (7139, 2.0)),  # its last one
        marks((7260, 3.0), (7263, 3.5)),  # forming, but begun too late
    )
    clock.ms = START_MS + 2 * H1 + 90_000
    assert len(reader.get_mark_candles(PAIR, since=START_MS)) == 0
    clock.ms = START_MS + 2 * H1 - 1
    assert reader.get_mark_candles(PAIR, since=START_MS)["open"].tolist() == [2.0]


def test_mark_candles_of_nothing(connect) -> None:
    reader = connect(entry(), candle(START_MS))
    assert len(reader.get_mark_candles(PAIR, since=START_MS - 10 * H1)) == 0
    with pytest.raises(UnknownPairError):
        reader.get_mark_candles(OTHER, since=START_MS)
    with pytest.raises(UnknownTimeframeError):
        reader.get_mark_candles(PAIR, "1w", since=START_MS)
