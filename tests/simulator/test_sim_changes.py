"""What becomes of contracts of the simulated exchange: ends, relistings, types, odd rows, settlements."""

import itertools
import json
from typing import Any

import pytest

from marketfeed.binance.symbols import parse_exchange_info
from marketfeed.errors import SettingsError
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.simulator import catalogue
from marketfeed.simulator.instrument import NEVER_DELIVERED_MS, Instrument
from marketfeed.simulator.listings import (
    Delist,
    EndByStatus,
    Enlist,
    SetOnboard,
    SetRhythm,
    SetStatus,
    SettleSpecially,
    SetType,
    SpoilRow,
    Withdraw,
)
from marketfeed.simulator.market import Market
from marketfeed.simulator.server import Simulator, SimulatorOptions
from marketfeed.simulator.venue import Event, Settlement

START_MS = 1_790_006_400_000
"""A full 8 hours."""


@pytest.fixture
def market() -> Market:
    market = Market(catalogue.instruments(3), ("1m", "5m"), start_ms=START_MS + 20_000)
    for stream in market.streams.values():
        stream.wanted = True
    return market


def run(market: Market, until_ms: int) -> list[Event]:
    events: list[Event] = []
    for now_ms in itertools.count(market.now_ms + 9_000, 9_000):
        events += market.advance(min(now_ms, until_ms))
        if now_ms >= until_ms:
            break
    return events


def row(market: Market, pair: str) -> Instrument:
    return next(one for one in market.listed if one.pair == pair)


def opens(market: Market, symbol: str, timeframe: str = "1m") -> list[int]:
    rows: list[list[Any]] = json.loads(market.klines(symbol, timeframe, None, None, 1_500))
    return [one[0] for one in rows]


def settled(market: Market, pair: str, since_ms: int = START_MS) -> list[Settlement]:
    return market.settlements(row(market, pair), since_ms, 1 << 45, 1_000, newest=False)


def test_an_end_that_its_status_alone_tells_of_and_another_coin_of_that_name(
    market: Market,
) -> None:
    one = market.instruments[1]
    at_ms = market.change(EndByStatus(one.pair, "DELIVERED", in_s=130))
    assert at_ms == START_MS + 3 * MINUTE_MS
    assert row(market, one.pair) == one
    events = run(market, at_ms + 4 * MINUTE_MS)
    shown = row(market, one.pair)
    assert (shown.status, shown.delivery_ms) == ("DELIVERED", NEVER_DELIVERED_MS)
    mine = [event for event in events if event.stream.name.startswith("ethusdt@")]
    assert at_ms - MINUTE_MS < max(event.time_ms for event in mine) <= at_ms + 2_000
    assert opens(market, one.symbol)[-1] == at_ms - MINUTE_MS

    # The status of a halt does not outlive the contract.
    market.change(SetStatus(one.pair, "TRADING"))
    assert row(market, one.pair).status == "DELIVERED"
    listed_ms = market.change(Enlist(one.pair, in_s=60, price=7.0))
    assert row(market, one.pair).status == "PENDING_TRADING"
    run(market, listed_ms + 3 * MINUTE_MS)
    shown = row(market, one.pair)
    assert (shown.status, shown.onboard_ms) == ("TRADING", listed_ms)
    assert shown.delivery_ms == NEVER_DELIVERED_MS
    assert opens(market, one.symbol)[0] == listed_ms


def test_an_announced_end_is_put_off_and_taken_back(market: Market) -> None:
    pair = market.instruments[1].pair
    first_ms = market.change(Delist(pair, in_s=300))
    then_ms = market.change(Delist(pair, in_s=600))
    assert then_ms == first_ms + 5 * MINUTE_MS
    assert row(market, pair).delivery_ms == then_ms
    run(market, first_ms + MINUTE_MS)
    assert row(market, pair).status == "TRADING"
    market.change(Withdraw(pair))
    run(market, then_ms + 3 * MINUTE_MS)
    assert row(market, pair).status == "TRADING"
    assert row(market, pair).delivery_ms == NEVER_DELIVERED_MS
    assert opens(market, "ETHUSDT")[-1] == then_ms + 3 * MINUTE_MS

    over_ms = market.change(Delist(pair))
    run(market, over_ms + MINUTE_MS)
    with pytest.raises(SettingsError, match="has ended"):
        market.change(Withdraw(pair))


def test_types_dates_and_rows_that_are_spoilt(market: Market) -> None:
    first, second, third = market.instruments
    market.change(SetType(first.pair, "A_NEW_TYPE"))
    market.change(SpoilRow(second.pair, "onboardDate"))
    market.change(SetOnboard(third.pair, 2.0))
    info = parse_exchange_info(catalogue.ExchangeInfo(market.listed).body(market.now_ms))
    assert info.instruments[first.pair].contract_type == "A_NEW_TYPE"
    assert second.pair not in info.instruments
    assert second.symbol in info.odd
    assert info.instruments[third.pair].listed_ms == market.now_ms - 2 * DAY_MS
    market.change(SetType(first.pair, "PERPETUAL"))
    market.change(SpoilRow(second.pair, None))
    market.change(SetOnboard(third.pair, None))
    assert [row(market, one.pair) for one in market.instruments] == list(market.instruments)


def test_settlements_change_and_are_of_one_contract_alone(market: Market) -> None:
    pair = market.instruments[1].pair
    rhythm_ms = market.change(SetRhythm(pair, 1, in_s=600))
    special_ms = market.change(SettleSpecially(pair, 0.007, in_s=1_000))
    assert special_ms == START_MS + 17 * MINUTE_MS
    end_ms = market.change(Delist(pair, in_s=3 * 3_600))
    run(market, START_MS + 4 * HOUR_MS)
    times = [
        (one.funding_time // MINUTE_MS * MINUTE_MS, one.rate_type) for one in settled(market, pair)
    ]
    assert times[:1] == [(START_MS, "Regular")]
    assert (special_ms, "Special") in times
    hours = [at for at, kind in times if kind == "Regular"]
    assert rhythm_ms < START_MS + HOUR_MS
    assert hours == [START_MS + n * HOUR_MS for n in range(4) if START_MS + n * HOUR_MS < end_ms]

    # Another coin of that name has none of its settlements, nor its rhythm.
    at_ms = market.change(Enlist(pair, price=7.0))
    assert len(settled(market, pair)) == len(times)
    run(market, at_ms + HOUR_MS)
    assert all(one.funding_time >= at_ms for one in settled(market, pair))


@pytest.mark.parametrize("how", ["wrong date", "announced"])
def test_what_exchangeinfo_says_of_a_listing_changes_no_answer_of_what_traded(
    market: Market, how: str
) -> None:
    one = market.instruments[1]

    def answers() -> tuple[object, ...]:
        listed = row(market, one.pair)
        since_ms = START_MS - 30 * HOUR_MS
        return (
            json.loads(market.klines(one.symbol, "1h", since_ms, None, 100)),
            json.loads(market.mark_klines(listed, "1h", since_ms, None, 100)),
            settled(market, one.pair, START_MS - 9 * DAY_MS),
            market.last_price(listed),
            market.ticker(listed),
            market.premium(listed),
        )

    run(market, START_MS + 2 * HOUR_MS)
    market.change(EndByStatus(one.pair))
    run(market, START_MS + 3 * HOUR_MS)
    before = answers()
    assert [len(rows) for rows in before[:2] if isinstance(rows, list)] == [33, 33]
    if how == "wrong date":
        market.change(SetOnboard(one.pair, 0.1))
        assert row(market, one.pair).onboard_ms > START_MS
    else:
        # Of another price, and with other digits.
        market.change(Enlist(one.pair, in_s=3_600, price=0.02))
        assert row(market, one.pair).status == "PENDING_TRADING"
    assert answers() == before


def test_a_quiet_market_has_fewer_trades() -> None:
    usual, quiet = (
        Simulator(SimulatorOptions(pairs=4, liveliness=share)).market for share in (1.0, 0.1)
    )
    assert [one.trades_per_s for one in quiet.instruments] == [
        one.trades_per_s * 0.1 for one in usual.instruments
    ]
