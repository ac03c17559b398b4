"""Symbols are read from exchangeInfo's own fields; what cannot be collected is named with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from marketfeed import schema
from marketfeed.binance.symbols import (
    Selection,
    parse_exchange_info,
    select_all,
    select_named,
    select_top,
    stream_names,
)
from marketfeed.errors import ExchangeError

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
    assert pairs(select_all(parsed, "USDT")) == ["BTC/USDT:USDT"]
    selection = select_named(
        parsed, ["A/USDT:USDT", "BTC/USDT:USDT", "B/USDT:USDT", "C/USDT:USDT", "D/USDT:USDT"]
    )
    assert pairs(selection) == ["BTC/USDT:USDT"]
    assert selection.refused == {
        "A/USDT:USDT": "PERPETUAL, status BREAKFAST",
        "B/USDT:USDT": "HYPERPETUAL, status TRADING",
        "C/USDT:USDT": "no contract type, status TRADING",
        "D/USDT:USDT": "the exchange lists no such contract",
    }


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
