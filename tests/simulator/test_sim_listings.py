"""Contracts that come, go and change while the market runs: frames, REST and exchangeInfo agree."""

import itertools
import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_candles import START_MS
from simulator_client import Connect, with_sockets

from marketfeed.errors import SettingsError
from marketfeed.schema import MINUTE_MS, TIMEFRAMES_MS
from marketfeed.simulator import catalogue
from marketfeed.simulator.listings import Delist, Enlist, ListingChange, Rename, SetStatus
from marketfeed.simulator.market import Market
from marketfeed.simulator.server import Simulator
from marketfeed.simulator.venue import Event

NEW = "NEWCOIN/USDT:USDT"
TIMEFRAMES = ("1m", "3m")


def market_of(pairs: int = 2) -> Market:
    market = Market(catalogue.instruments(pairs), TIMEFRAMES, start_ms=START_MS + 20_000)
    for stream in market.streams.values():
        stream.wanted = True
    return market


def run(market: Market, until_ms: int, step_ms: int = 7_000) -> list[Event]:
    events: list[Event] = []
    for now_ms in itertools.count(market.now_ms + step_ms, step_ms):
        events += market.advance(min(now_ms, until_ms))
        for stream in market.streams.values():
            stream.wanted = True
        if now_ms >= until_ms:
            return events
    return events


def status(market: Market, pair: str) -> str | None:
    return next((one.status for one in market.listed if one.pair == pair), None)


def of(symbol: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event.stream.name.startswith(f"{symbol}@")]


def rest_rows(market: Market, symbol: str, timeframe: str) -> list[list[Any]]:
    rows: list[list[Any]] = json.loads(market.klines(symbol, timeframe, None, None, 500))
    return rows


def assert_rest_has_what_closed(market: Market, symbol: str, events: list[Event]) -> None:
    """REST's closed candles are those that were published, with their numbers."""
    for timeframe in TIMEFRAMES:
        rows = {row[0]: row for row in rest_rows(market, symbol, timeframe)}
        for event in events:
            one = event.closed
            if one is not None and (one.symbol, one.timeframe) == (symbol, timeframe):
                row = rows[one.open_time_ms]
                assert [float(row[at]) for at in (1, 2, 3, 4, 5)] == [
                    one.open, one.high, one.low, one.close, one.volume,
                ]  # fmt: skip
                assert row[8] == one.trades


@settings(max_examples=15)
@given(in_s=st.integers(0, 400), step_ms=st.integers(500, 9_000))
def test_a_listed_contract_trades_from_its_minute_on(in_s: int, step_ms: int) -> None:
    market = market_of()
    at_ms = market.change(Enlist(NEW, in_s=in_s))
    assert at_ms % MINUTE_MS == 0
    assert at_ms >= market.now_ms + in_s * 1_000
    assert status(market, NEW) == "PENDING_TRADING"
    events = run(market, at_ms - 1, step_ms)
    assert of("newcoinusdt", events) == []
    events = run(market, at_ms + 10 * MINUTE_MS, step_ms)
    assert status(market, NEW) == "TRADING"
    mine = of("newcoinusdt", events)
    assert {event.stream.name.partition("@")[2] for event in mine} >= {"kline_1m", "markPrice"}
    assert min(event.time_ms for event in mine) >= at_ms
    assert_rest_has_what_closed(market, "NEWCOINUSDT", events)
    assert rest_rows(market, "NEWCOINUSDT", "1m")[0][0] == at_ms
    first = rest_rows(market, "NEWCOINUSDT", "3m")[0]
    assert first[0] == at_ms // TIMEFRAMES_MS["3m"] * TIMEFRAMES_MS["3m"]


@settings(max_examples=15)
@given(in_s=st.integers(0, 400), step_ms=st.integers(500, 9_000))
def test_a_delisted_contract_ends_with_its_last_whole_candles(in_s: int, step_ms: int) -> None:
    market = market_of()
    pair = market.instruments[0].pair
    at_ms = market.change(Delist(pair, in_s=in_s))
    assert status(market, pair) == "TRADING"
    assert next(one for one in market.listed if one.pair == pair).delivery_ms == at_ms
    events = run(market, at_ms + 10 * MINUTE_MS, step_ms)
    assert status(market, pair) == "SETTLING"
    mine = of("btcusdt", events)
    assert max(event.time_ms for event in mine) == at_ms + 2_000  # nobody trades: the timer
    assert max(event.time_ms for event in mine if event.closed is None) < at_ms
    last = [e.closed for e in mine if e.closed is not None and e.closed.timeframe == "1m"][-1]
    assert last.open_time_ms == at_ms - MINUTE_MS
    assert_rest_has_what_closed(market, "BTCUSDT", events)
    assert rest_rows(market, "BTCUSDT", "1m")[-1][0] == at_ms - MINUTE_MS
    # The others run on.
    assert max(event.time_ms for event in of("ethusdt", events)) > at_ms + 9 * MINUTE_MS


def test_what_others_publish_does_not_depend_on_it() -> None:
    plain, changed = market_of(), market_of()
    changed.change(Enlist(NEW))
    changed.change(Delist(changed.instruments[1].pair, in_s=200))
    until_ms = START_MS + 8 * MINUTE_MS
    one, other = (of("btcusdt", run(market, until_ms)) for market in (plain, changed))
    assert [(e.time_ms, e.data) for e in one] == [(e.time_ms, e.data) for e in other]


def test_a_status_silences_and_another_brings_back() -> None:
    market = market_of()
    pair = market.instruments[0].pair
    market.change(SetStatus(pair, "HALT"))
    assert status(market, pair) == "HALT"
    assert of("btcusdt", run(market, market.now_ms + 5 * MINUTE_MS)) == []
    market.change(SetStatus(pair, None))
    assert status(market, pair) is None
    market.change(SetStatus(pair, "TRADING"))
    assert of("btcusdt", run(market, market.now_ms + 5 * MINUTE_MS)) != []


def test_a_rename_is_an_end_and_a_listing_at_the_same_minute() -> None:
    market = market_of()
    pair = market.instruments[1].pair
    at_ms = market.change(Rename(pair, NEW, in_s=120))
    run(market, at_ms + MINUTE_MS)
    assert (status(market, pair), status(market, NEW)) == ("SETTLING", "TRADING")
    assert next(one for one in market.listed if one.pair == NEW).onboard_ms == at_ms


@pytest.mark.parametrize(
    "change",
    [
        Enlist("BTC/USDT:USDT"),
        Enlist("nonsense"),
        Delist(NEW),
        SetStatus(NEW, "X"),
        Rename(NEW, NEW),
    ],
)
def test_what_does_not_fit_is_refused(change: ListingChange) -> None:
    with pytest.raises(SettingsError, match="pair:"):
        market_of().change(change)


def test_over_http_and_in_exchange_info() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        async with aiohttp.ClientSession(simulator.rest_url) as session:

            async def post(body: Any) -> int:
                async with session.post("/simulator/listings", json=body) as response:
                    return response.status

            async def listed() -> dict[str, dict[str, Any]]:
                async with session.get("/fapi/v1/exchangeInfo") as response:
                    symbols = (await response.json())["symbols"]
                return {row["symbol"]: row for row in symbols}

            assert "NEWCOINUSDT" not in await listed()
            assert await post({"change": "list", "pair": NEW}) == 200
            assert (await listed())["NEWCOINUSDT"]["status"] == "PENDING_TRADING"
            assert await post({"change": "delist", "pair": "BTC/USDT:USDT", "in_s": 600}) == 200
            ends_ms = (await listed())["BTCUSDT"]["deliveryDate"]
            assert 0 < ends_ms - simulator.now_ms() < 11 * MINUTE_MS
            assert await post({"change": "status", "pair": "ETH/USDT:USDT", "status": "X"}) == 200
            assert (await listed())["ETHUSDT"]["status"] == "X"
            assert await post({"change": "list", "pair": NEW}) == 400
            assert await post({"change": "burn", "pair": NEW}) == 400

    with_sockets(check, paused=True)
