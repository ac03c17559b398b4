"""What the simulated exchange lists."""

import json
from pathlib import Path
from typing import Any

import pytest

from marketfeed import schema
from marketfeed.errors import SettingsError
from marketfeed.simulator import catalogue

DATA = Path(__file__).parents[1] / "data"
NOW_MS = 1_795_000_000_000


def info(count: int = 5) -> dict[str, Any]:
    listed = (*catalogue.instruments(count), *catalogue.bystanders(NOW_MS))
    body: dict[str, Any] = json.loads(catalogue.ExchangeInfo(listed).body(NOW_MS))
    return body


def test_the_first_pairs_are_the_fleets() -> None:
    pairs = catalogue.choose_pairs(600)
    assert len(set(pairs)) == 600
    assert pairs[:3] == ("BTC/USDT:USDT", "ETH/USDT:USDT", "XRP/USDT:USDT")
    assert pairs[109] == "FARTCOIN/USDT:USDT"
    assert pairs[110] == "1000PEPE/USDT:USDT"
    assert sum(not pair.isascii() for pair in pairs[:164]) == 2
    assert pairs[-1] == "SIM600/USDT:USDT"
    assert all(schema.is_pair(pair) for pair in pairs)


def test_named_pairs() -> None:
    (instrument,) = catalogue.instruments(("DOGE/USDT:USDT",))
    assert (instrument.symbol, instrument.pair) == ("DOGEUSDT", "DOGE/USDT:USDT")


@pytest.mark.parametrize(
    "pairs", [0, 1_001, (), ("BTCUSDT",), ("BTC/USDC:USDC",), ("A/USDT:USDT", "A/USDT:USDT")]
)
def test_what_cannot_be_simulated_is_refused(pairs: int | tuple[str, ...]) -> None:
    with pytest.raises(SettingsError):
        catalogue.instruments(pairs)


def test_gold_trades_where_it_is_asked_for() -> None:
    (gold,) = catalogue.tradifi(("XAU/USDT:USDT",))
    assert (gold.symbol, gold.contract_type, gold.status) == (
        "XAUUSDT",
        "TRADIFI_PERPETUAL",
        "TRADING",
    )
    assert gold == catalogue.bystanders(NOW_MS)[0]
    assert gold.is_tradifi
    assert not gold.trades
    assert catalogue.tradifi(()) == ()
    with pytest.raises(SettingsError):
        catalogue.tradifi(("XAU",))


def test_rates_range_from_many_a_second_to_one_in_minutes() -> None:
    rates = [instrument.trades_per_s for instrument in catalogue.instruments(164)]
    assert rates == sorted(rates, reverse=True)
    assert 5 <= sum(rate >= 10 for rate in rates) <= 12
    assert 0.3 < rates[82] < 0.7
    assert rates[-1] < 1 / 120


def test_exchange_info_has_the_shape_of_the_recorded_one() -> None:
    text = (DATA / "exchangeInfo_futures_testnet_2026-08-05.yaml").read_text("utf-8")
    recorded = json.loads(text.split("body: '", 1)[1].rstrip().removesuffix("'"))
    made = info()
    assert made.keys() == recorded.keys()
    assert made["serverTime"] == NOW_MS
    theirs = {key: type(value) for key, value in recorded["symbols"][0].items()}
    for symbol in made["symbols"]:
        assert {key: type(value) for key, value in symbol.items()} == theirs
        kinds = [entry["filterType"] for entry in symbol["filters"]]
        assert sorted(kinds) == sorted(e["filterType"] for e in recorded["symbols"][0]["filters"])
    assert made["rateLimits"][0] == {
        "rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400,
    }  # fmt: skip


def test_bitcoin_is_printed_as_on_the_exchange() -> None:
    bitcoin = info()["symbols"][0]
    assert (bitcoin["symbol"], bitcoin["pricePrecision"], bitcoin["quantityPrecision"]) == (
        "BTCUSDT", 2, 3,
    )  # fmt: skip
    assert bitcoin["deliveryDate"] == 4_133_404_800_000
    filters = {entry["filterType"]: entry for entry in bitcoin["filters"]}
    assert filters["PRICE_FILTER"]["tickSize"] == "0.10"
    assert filters["LOT_SIZE"]["stepSize"] == "0.001"


def test_every_kind_of_contract_that_must_not_be_collected_is_listed() -> None:
    others = info()["symbols"][5:]
    kinds = [(one["contractType"], one["status"], one["quoteAsset"]) for one in others]
    assert kinds == [
        ("TRADIFI_PERPETUAL", "TRADING", "USDT"),
        ("CURRENT_QUARTER", "TRADING", "USDT"),
        ("NEXT_QUARTER", "TRADING", "USDT"),
        ("", "PENDING_TRADING", "USDT"),
        ("PERPETUAL", "SETTLING", "USDT"),
        ("PERPETUAL", "TRADING", "USDC"),
    ]
    assert [one["symbol"] for one in others[1:3]] == ["BTCUSDT_261225", "BTCUSDT_270326"]
    assert {one["pair"] for one in others[1:3]} == {"BTCUSDT"}
    assert NOW_MS < others[1]["deliveryDate"] < others[2]["deliveryDate"]
    assert others[4]["deliveryDate"] < NOW_MS
    assert not any(one.trades for one in catalogue.bystanders(NOW_MS))


@pytest.mark.parametrize(
    ("now_ms", "names"),
    [
        (1_735_776_000_000, ["250328", "250627"]),
        # The delivery itself: that contract is over.
        (1_798_185_600_000, ["270326", "270625"]),
        (1_798_185_599_999, ["261225", "270326"]),
    ],
)
def test_quarterlies_end_on_the_last_friday(now_ms: int, names: list[str]) -> None:
    found = [one.symbol.rpartition("_")[2] for one in catalogue.bystanders(now_ms)[1:3]]
    assert found == names


def test_precisions_leave_room_for_a_walk() -> None:
    for instrument in catalogue.instruments(600):
        ticks = instrument.typical_price * instrument.price_scale / instrument.tick_units
        assert 50 < ticks < 1e7, instrument
        assert 1 <= instrument.price_precision <= 8
