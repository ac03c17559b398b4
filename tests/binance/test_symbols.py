"""Symbols are read from exchangeInfo's own fields; what cannot be collected is named with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from marketfeed import schema
from marketfeed.binance.symbols import (
    CONTRACT_TYPES,
    PERPETUAL,
    Instrument,
    Selection,
    parse_exchange_info,
    select_all,
    select_named,
    select_top,
    stream_names,
)
from marketfeed.commands.check import check_pairs
from marketfeed.errors import ExchangeError
from marketfeed.pairs.selection import left_out
from marketfeed.settings.exchange import CONTRACTS, ExchangeSettings

DATA = Path(__file__).parents[1] / "data"
MAINNET = (DATA / "mainnet_2026-10-07_exchangeInfo_5symbols_abridged.json").read_bytes()


def recorded_testnet() -> bytes:
    text = (DATA / "exchangeInfo_futures_testnet_2026-08-05.yaml").read_text(encoding="utf-8")
    body: str = yaml.safe_load(text)["body"]
    return body.encode()


def symbol(**changes: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT",
        "contractType": "PERPETUAL",
        "status": "TRADING",
        "baseAsset": "BTC",
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "onboardDate": 1569398400000,
        "deliveryDate": 4133404800000,
    } | changes


def info(*symbols: Any) -> bytes:
    return json.dumps({"symbols": symbols}).encode()


def pairs(selection: Selection) -> list[str]:
    return [instrument.pair for instrument in selection.instruments]


def test_recorded_answers() -> None:
    parsed = parse_exchange_info(MAINNET)
    assert parsed.not_understood == 0
    bitcoin = parsed.instruments["BTC/USDT:USDT"]
    assert bitcoin.symbol == "BTCUSDT"
    assert bitcoin.collectable
    assert bitcoin.ended_ms is None
    rows = json.loads(recorded_testnet())["symbols"]
    parsed = parse_exchange_info(recorded_testnet())
    assert parsed.not_understood == 0
    chinese = [row["symbol"] for row in rows if not row["symbol"].isascii()]
    assert chinese
    assert set(chinese) <= {i.symbol for i in parsed.instruments.values()}


def test_unknown_words_and_broken_rows_survive() -> None:
    parsed = parse_exchange_info(
        info(
            symbol(),
            symbol(symbol="AUSDT", baseAsset="A", status="BREAKFAST"),
            symbol(symbol="BUSDT", baseAsset="B", contractType="HYPERPETUAL"),
            symbol(symbol="CUSDT", baseAsset="C", contractType=""),
            {"symbol": 7},
            "x",
        )
    )
    assert parsed.not_understood == 2
    # A status that nobody knows is a halt: collected, and not to be chosen for its volume.
    assert pairs(select_all(parsed, "USDT")) == ["A/USDT:USDT", "BTC/USDT:USDT"]
    assert pairs(select_top(parsed, "USDT", 5, {"AUSDT": 9.0})) == ["BTC/USDT:USDT"]
    selection = select_named(
        parsed, ["A/USDT:USDT", "BTC/USDT:USDT", "B/USDT:USDT", "C/USDT:USDT", "D/USDT:USDT"]
    )
    assert pairs(selection) == ["A/USDT:USDT", "BTC/USDT:USDT"]
    assert selection.refused == {
        "B/USDT:USDT": "HYPERPETUAL, status TRADING",
        "C/USDT:USDT": "no contract type, status TRADING",
        "D/USDT:USDT": "the exchange lists no such contract",
    }


GOLD = "XAU/USDT:USDT"


def of_all_types() -> bytes:
    tradfi = {"contractType": "TRADIFI_PERPETUAL"}
    return info(
        symbol(),
        symbol(symbol="XAUUSDT", baseAsset="XAU", **tradfi),
        symbol(symbol="SNDKUSDT", baseAsset="SNDK", **tradfi),
        symbol(symbol="OLDUSDT", baseAsset="OLD", status="SETTLING", **tradfi),
        symbol(symbol="XAUUSDC", baseAsset="XAU", quoteAsset="USDC", marginAsset="USDC", **tradfi),
        symbol(symbol="BTCUSDT_270326", contractType="NEXT_QUARTER"),
        symbol(symbol="CUSDT", baseAsset="C", contractType="", status="PENDING_TRADING"),
    )


def test_types_are_collected_as_they_are_named() -> None:
    parsed = parse_exchange_info(of_all_types())
    both = tuple(CONTRACT_TYPES)
    assert both == CONTRACTS
    volumes = {"XAUUSDT": 9.0, "BTCUSDT": 5.0, "SNDKUSDT": 1.0}
    coins = select_all(parsed, "USDT")
    assert pairs(coins) == ["BTC/USDT:USDT"]
    assert coins.of_other_types == {GOLD, "SNDK/USDT:USDT", "OLD/USDT:USDT"}
    assert pairs(select_all(parsed, "USDT", both)) == ["BTC/USDT:USDT", "SNDK/USDT:USDT", GOLD]
    assert pairs(select_all(parsed, "USDT", ("tradifi",))) == ["SNDK/USDT:USDT", GOLD]
    assert pairs(select_top(parsed, "USDT", 2, volumes, both)) == [GOLD, "BTC/USDT:USDT"]
    assert pairs(select_top(parsed, "USDT", 2, volumes)) == ["BTC/USDT:USDT"]
    assert pairs(select_named(parsed, [GOLD, "BTC/USDT:USDT"], both)) == [GOLD, "BTC/USDT:USDT"]
    named = select_named(parsed, [GOLD, "OLD/USDT:USDT", "BTC/USDT:USDT"], PERPETUAL)
    assert pairs(named) == ["BTC/USDT:USDT"]
    assert named.of_other_types == {GOLD, "OLD/USDT:USDT"}
    assert named.refused[GOLD] == (
        "its contract type is TRADIFI_PERPETUAL: exchange.contracts needs tradifi to collect it"
    )
    ended = select_named(parsed, ["OLD/USDT:USDT"], both)
    assert ended.refused == {"OLD/USDT:USDT": "TRADIFI_PERPETUAL, status SETTLING"}


def test_what_trades_and_is_left_out_is_counted_by_its_type() -> None:
    parsed = parse_exchange_info(of_all_types())
    assert parsed.left_out("USDT", PERPETUAL) == {"NEXT_QUARTER": 1, "TRADIFI_PERPETUAL": 2}
    assert parsed.left_out("USDT", tuple(CONTRACT_TYPES)) == {"NEXT_QUARTER": 1}
    assert parsed.left_out("USDC", ("tradifi",)) == {}
    top = left_out(ExchangeSettings(), parsed)
    assert top == (
        "3 trading contracts are left out by type: NEXT_QUARTER 1, TRADIFI_PERPETUAL 2; "
        "exchange.contracts may name tradifi as well"
    )
    every = ExchangeSettings.model_validate({"pairs": "all", "contracts": ["tradifi", "perpetual"]})
    assert left_out(every, parsed) == "1 trading contracts are left out by type: NEXT_QUARTER 1"
    # What is named is refused with its reason.
    assert left_out(ExchangeSettings.model_validate({"pairs": [GOLD]}), parsed) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"onboardDate": None}, "Expected `int`, got `null` - at `$.onboardDate`"),
        ({"deliveryDate": None}, "Expected `int`, got `null` - at `$.deliveryDate`"),
        ({"baseAsset": None}, "Expected `str`, got `null` - at `$.baseAsset`"),
        ({"baseAsset": ""}, "names '/USDT:USDT', which is no pair"),
        ({"baseAsset": "B C"}, "names 'B C/USDT:USDT', which is no pair"),
        ({"baseAsset": "B_C"}, "names 'B_C/USDT:USDT', which is no pair"),
        ({"quoteAsset": "usdt"}, "names 'X/usdt:USDT', which is no pair"),
    ],
)
def test_a_row_that_makes_no_pair_is_named(changes: dict[str, Any], why: str) -> None:
    odd = symbol(symbol="XUSDT", baseAsset="X") | changes
    parsed = parse_exchange_info(info(symbol(), odd))
    assert list(parsed.instruments) == ["BTC/USDT:USDT"]
    assert parsed.not_understood == 1
    assert parsed.odd["XUSDT"].startswith(why)
    # It is not gone, and who names it is told.
    assert parsed.may_list("XUSDT")
    refused = select_named(parsed, ["X/USDT:USDT"]).refused
    assert refused["X/USDT:USDT"].startswith("its row of exchangeInfo cannot be understood: " + why)
    findings = check_pairs(ExchangeSettings(), parsed, select_all(parsed, "USDT"))
    assert [(f.subject, f.verdict) for f in findings] == [
        ("pairs", "good"),
        ("exchange", "warning"),
    ]
    assert f"XUSDT: {why}" in findings[-1].text


def test_check_tells_what_is_left_out_by_type() -> None:
    parsed = parse_exchange_info(of_all_types())
    settings = ExchangeSettings.model_validate({"pairs": [GOLD]})
    alone = check_pairs(settings, parsed, select_named(parsed, [GOLD], settings.contracts))
    assert [(f.verdict, f.text) for f in alone] == [
        (
            "warning",
            f"{GOLD} is left out: {select_named(parsed, [GOLD], PERPETUAL).refused[GOLD]}",
        ),
        ("bad", "none of the configured pairs is traded and of a type in exchange.contracts"),
    ]
    every = check_pairs(ExchangeSettings(), parsed, select_all(parsed, "USDT"))
    assert [f.verdict for f in every] == ["good", "good"]
    assert every[1].text.startswith("3 trading contracts are left out by type: ")


def test_the_perpetual_is_the_pair_not_the_quarterly() -> None:
    quarterly = symbol(symbol="BTCUSDT_270326", contractType="NEXT_QUARTER")
    for rows in ((quarterly, symbol()), (symbol(), quarterly)):
        assert parse_exchange_info(info(*rows)).instruments["BTC/USDT:USDT"].symbol == "BTCUSDT"


def test_an_announced_end_is_reported() -> None:
    parsed = parse_exchange_info(info(symbol(deliveryDate=1_800_000_000_000)))
    assert parsed.instruments["BTC/USDT:USDT"].ended_ms == 1_800_000_000_000


def test_top_by_volume_is_stable() -> None:
    parsed = parse_exchange_info(
        info(
            *(symbol(symbol=f"{base}USDT", baseAsset=base) for base in "ABCD"),
            symbol(symbol="EUSDC", baseAsset="E", quoteAsset="USDC", marginAsset="USDC"),
        )
    )
    volumes = {"BUSDT": 5.0, "DUSDT": 9.0, "EUSDC": 99.0}
    assert pairs(select_top(parsed, "USDT", 3, volumes)) == [
        "D/USDT:USDT",
        "B/USDT:USDT",
        "A/USDT:USDT",
    ]


def test_stream_names_are_lower_case_and_raw_utf8() -> None:
    parsed = parse_exchange_info(info(symbol(symbol="币安USDT", baseAsset="币安")))
    instruments = select_all(parsed, "USDT").instruments
    assert stream_names(instruments, ["1m", "1h"], 3 * schema.SECOND_MS) == [
        "币安usdt@kline_1m",
        "币安usdt@kline_1h",
        "币安usdt@markPrice",
    ]
    assert stream_names(instruments, [], schema.SECOND_MS) == ["币安usdt@markPrice@1s"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"symbols":7}', b'{"symbols":[]}', b"[" * 10_000])
def test_no_such_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(ExchangeError, match="exchangeInfo"):
        parse_exchange_info(body)


@pytest.mark.parametrize(
    ("status", "collectable", "trades"),
    [
        ("TRADING", True, True),
        ("PRE_DELIVERING", True, True),
        ("PRE_SETTLE", True, True),
        ("TRADING_HALT", True, False),
        ("BREAK", True, False),
        ("", True, False),
        ("PENDING_TRADING", False, False),
        ("DELIVERING", False, False),
        ("DELIVERED", False, False),
        ("SETTLING", False, False),
        ("CLOSE", False, False),
    ],
)
def test_a_status_says_whether_it_trades_has_halted_or_is_over(
    status: str, collectable: bool, trades: bool
) -> None:
    one = parse_exchange_info(info(symbol(status=status))).instruments["BTC/USDT:USDT"]
    assert (one.collectable, one.trades) == (collectable, trades)
    selection = select_named(parse_exchange_info(info(symbol(status=status))), ["BTC/USDT:USDT"])
    assert bool(selection.instruments) == collectable
    assert bool(selection.refused) != collectable


def test_what_was_collected_before_is_selected_where_its_row_tells_nothing() -> None:
    pair = "OLD/USDT:USDT"
    known = {pair: Instrument("OLDUSDT", pair, "USDT", "", "", 1, 0)}
    other = symbol()
    odd = symbol(symbol="OLDUSDT", baseAsset="OLD", onboardDate=None)
    new_type = symbol(symbol="OLDUSDT", baseAsset="OLD", contractType="HYPERPETUAL")
    over = symbol(symbol="OLDUSDT", baseAsset="OLD", status="SETTLING")
    for rows, there in (([other], True), ([other, odd], True), ([other, new_type], True)):
        parsed = parse_exchange_info(info(*rows))
        for selection in (
            select_named(parsed, [pair], known=known),
            select_all(parsed, "USDT", known=known),
        ):
            assert (pair in pairs(selection)) == there
            assert selection.refused == {}
    parsed = parse_exchange_info(info(other, over))
    assert pairs(select_named(parsed, [pair], known=known)) == []
    assert pairs(select_all(parsed, "USDT", known=known)) == ["BTC/USDT:USDT"]
    # Of another quote asset it is none of these.
    assert pair not in pairs(select_all(parse_exchange_info(info(other)), "USDC", known=known))


def test_of_two_contracts_of_a_name_both_are_kept() -> None:
    first = symbol(symbol="BTCOLDUSDT", status="SETTLING", deliveryDate=1_700_000_000_000)
    for rows in ((first, symbol()), (symbol(), first)):
        parsed = parse_exchange_info(info(*rows))
        assert parsed.instruments["BTC/USDT:USDT"].symbol == "BTCUSDT"
        assert [one.symbol for one in parsed.beside] == ["BTCOLDUSDT"]
        older = parsed.contract("BTC/USDT:USDT", "BTCOLDUSDT")
        assert older is not None
        assert older.ended_ms == 1_700_000_000_000
        assert parsed.contract("BTC/USDT:USDT", "NEVERUSDT") is None
