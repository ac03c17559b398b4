"""Mark prices and funding of the simulated market."""

import json

import pytest
from simulated_candles import START_MS

from marketfeed import schema
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator import catalogue
from marketfeed.simulator.market import Market


def test_mark_prices_come_on_their_grid_and_funding_moves_slowly() -> None:
    market = Market(catalogue.instruments(4), ("1m",), start_ms=START_MS + 500)
    for name in ("btcusdt@markPrice", "ethusdt@markPrice@1s"):
        market.streams[name].wanted = True
    events = market.advance(START_MS + 60_000)
    rows = [(event.stream.name, json.loads(event.data)) for event in events if not event.closed]
    slow = [row for name, row in rows if name == "btcusdt@markPrice"]
    fast = [row for name, row in rows if name == "ethusdt@markPrice@1s"]
    assert [row["E"] - START_MS for row in slow] == [
        at for at in range(1_000, 60_001, 1_000) if (START_MS + at) % 3_000 == 0
    ]
    assert [row["E"] - START_MS for row in fast] == list(range(1_000, 60_001, 1_000))
    for row in slow + fast:
        assert row["T"] > row["E"]
        assert row["T"] % (8 * schema.HOUR_MS) == 0
        assert float(row["p"]) == pytest.approx(float(row["i"]), rel=0.001)
    rates = [float(row["r"]) for row in fast]
    assert max(rates) - min(rates) < 1e-5


def test_mark_price_arrays_hold_all_kinds_of_contracts() -> None:
    market = Market(
        catalogue.instruments(4), ("1m",), start_ms=START_MS,
        bystanders=catalogue.bystanders(START_MS),
    )  # fmt: skip
    market.streams["!markPrice@arr@1s"].wanted = True
    events = market.advance(START_MS + 1_000)
    assert [event.stream.name for event in events] == ["!markPrice@arr@1s"] * 2
    coins, tradfi = (json.loads(event.data) for event in events)
    assert [row["s"] for row in tradfi] == ["XAUUSDT"]
    assert [row["s"] for row in coins if row["st"] == 2] == ["BTCUSD_PERP"]
    assert {"BTCUSDT", "ETHUSDT", "BTCUSDC"} <= {row["s"] for row in coins}
    assert [row["r"] for row in coins if "_2" in row["s"]] == ["", ""]


def test_settled_rates_are_what_ran_at_the_settlement() -> None:
    instruments = catalogue.instruments(60)
    market = Market(instruments, ("1m",), start_ms=START_MS)
    assert {instrument.funding_hours for instrument in instruments} == {1, 4, 8}
    for instrument in instruments:
        end_ms = START_MS
        rows = market.settlements(instrument, end_ms - schema.DAY_MS, end_ms, 100, newest=False)
        every_ms = instrument.funding_hours * schema.HOUR_MS
        times = [schema.floor_to(row.funding_time, MINUTE_MS) for row in rows]
        assert all(time_ms % every_ms == 0 for time_ms in times)
        assert len(times) in {schema.DAY_MS // every_ms, schema.DAY_MS // every_ms + 1}
        assert all(row.funding_time - time_ms < 5 for row, time_ms in zip(rows, times, strict=True))
        for row, time_ms in zip(rows, times, strict=True):
            assert row.funding_rate == f"{market.funding[instrument.symbol].rate(time_ms):.8f}"
    newest = market.settlements(instruments[0], 0, START_MS, 2, newest=True)
    oldest = market.settlements(instruments[0], 0, START_MS, 2, newest=False)
    assert newest[-1].funding_time > START_MS - 8 * schema.HOUR_MS - 5
    assert oldest[0].funding_time < instruments[0].onboard_ms + 9 * schema.HOUR_MS
    assert oldest[0].mark_price == ""
    assert newest[0].mark_price != ""


def test_a_rhythm_changes_and_special_settlements_come_between() -> None:
    """As on the exchange: the next one is announced by the rhythm of the moment, and may be taken back."""
    hour_ms = schema.HOUR_MS
    first = catalogue.instruments(60)
    instrument = next(one for one in first if one.funding_hours == 1)
    start_ms = START_MS - START_MS % (8 * hour_ms)
    market = Market(first, ("1m",), start_ms=start_ms + 20 * hour_ms)
    funding = market.funding[instrument.symbol]
    funding.change_rhythm(start_ms + 2 * hour_ms + 5 * MINUTE_MS, 4)
    funding.change_rhythm(start_ms + 8 * hour_ms, 8)
    funding.settle_specially(start_ms + 4 * hour_ms, 0.009)
    funding.settle_specially(start_ms + 5 * hour_ms + MINUTE_MS, -0.001)
    assert [
        (funding.next_funding_ms(start_ms + int(at * hour_ms)) - start_ms) / hour_ms
        for at in (0, 1.5, 2, 2.5, 4, 8, 15.9)
    ] == [1, 2, 3, 4, 8, 16, 16]
    end_ms = start_ms + 17 * hour_ms
    rows = market.settlements(instrument, start_ms, end_ms, 100, newest=False)
    times = [(schema.to_minute(row.funding_time) - start_ms) / hour_ms for row in rows]
    assert times == [0, 1, 2, 4, 4, 5 + 1 / 60, 8, 16]
    assert [row.rate_type for row in rows] == [
        *["Regular"] * 4,
        *["Special"] * 2,
        *["Regular"] * 2,
    ]
    assert [row.funding_rate for row in rows if row.rate_type == "Special"] == [
        *["0.00900000", "-0.00100000"]
    ]
    assert [row.funding_time for row in rows] == sorted(row.funding_time for row in rows)
    assert funding.info().funding_interval_hours == 8
