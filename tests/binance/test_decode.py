"""Frames as recorded give exactly their numbers; anything else gives a reason and never an exception."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.binance.decode import Control, FrameDecoder, Reject
from marketfeed.records import Candle, FundingRate, MarkPrice

DATA = Path(__file__).parents[1] / "data"
CLOSING = (DATA / "closing_frames.jsonl").read_bytes().splitlines()
MARK = (DATA / "mainnet_2026-10-07_markPrice_1s.json").read_bytes()
DECODER = FrameDecoder({"BTCUSDT": "BTC/USDT:USDT", "XAUUSDT": "XAU/USDT:USDT"})


def kline(**changes: Any) -> bytes:
    """A recorded closing frame, with some values of `k` replaced (`E` of the event)."""
    frame = json.loads(CLOSING[0])
    for key, value in changes.items():
        target = frame["data"] if key in ("E", "s", "e") else frame["data"]["k"]
        target[key] = value
    return json.dumps(frame).encode()


def mark(**changes: Any) -> bytes:
    frame = json.loads(MARK)
    frame["data"].update(changes)
    return json.dumps(frame).encode()


def reason(frame: bytes) -> str:
    (item,) = DECODER.decode(frame)
    assert isinstance(item, Reject)
    return item.reason


@pytest.mark.parametrize("frame", CLOSING[:5])
def test_closing_frame_gives_its_numbers(frame: bytes) -> None:
    data = json.loads(frame)
    k = data.get("data", data)["k"]
    (candle,) = DECODER.decode(frame)
    assert candle == Candle(
        pair="BTC/USDT:USDT",
        timeframe="1m",
        open_time_ms=k["t"],
        open=float(k["o"]),
        high=float(k["h"]),
        low=float(k["l"]),
        close=float(k["c"]),
        volume=float(k["v"]),
        quote_volume=float(k["q"]),
        taker_buy_volume=float(k["V"]),
        trades=k["n"],
        closed=True,
        event_time_ms=data.get("data", data)["E"],
        taker_buy_quote_volume=float(k["Q"]),
    )


def test_coin_m_rows_are_ignored() -> None:
    (coin_m_kline,) = DECODER.decode(CLOSING[5])
    assert coin_m_kline == Reject("unknown_symbol", "BTCUSD_PERP")
    (coin_m_mark,) = DECODER.decode(mark(st=2))
    assert coin_m_mark == Reject("coin_m", "BTCUSDT")
    assert coin_m_kline.ignored
    assert coin_m_mark.ignored


def test_mark_price_frame_gives_mark_price_and_running_rate() -> None:
    data = json.loads(MARK)["data"]
    assert DECODER.decode(MARK) == (
        MarkPrice("BTC/USDT:USDT", data["E"], float(data["p"]), float(data["i"])),
        FundingRate("BTC/USDT:USDT", data["E"], float(data["r"]), data["T"]),
    )


def test_no_funding_scheduled_gives_no_rate() -> None:
    for frame in (mark(T=0, r="0.00000000"), mark(T=0, r="")):
        (item,) = DECODER.decode(frame)
        assert isinstance(item, MarkPrice)


@pytest.mark.parametrize("wrapped", ["combined", "plain", "array"])
@pytest.mark.parametrize(
    ("changes", "index", "has_rate"),
    [
        ({"i": ""}, None, True),
        ({"i": None}, None, True),
        ({"i": ...}, None, True),
        ({"i": "0.00000000"}, None, True),
        ({"T": None}, 83123.65891304, False),
        ({"T": ""}, 83123.65891304, False),
        ({"T": ...}, 83123.65891304, False),
        ({"T": 0}, 83123.65891304, False),
        ({"r": None}, 83123.65891304, False),
        ({"r": ...}, 83123.65891304, False),
        ({"i": "", "T": ""}, None, False),
        ({"i": None, "r": "", "T": 0}, None, False),
    ],
)
def test_what_a_mark_frame_lacks_costs_nothing_else(
    changes: dict[str, Any], index: float | None, has_rate: bool, wrapped: str
) -> None:
    """A contract without an index yet, or without a settlement; `...` is no such key."""
    frame = json.loads(MARK)
    data = {k: v for k, v in (frame["data"] | changes).items() if v is not ...}
    whole = {"combined": frame | {"data": data}, "plain": data, "array": [data]}[wrapped]
    mark_price, *rates = DECODER.decode(json.dumps(whole).encode())
    assert mark_price == MarkPrice("BTC/USDT:USDT", data["E"], 83084.3, index)
    expected = FundingRate("BTC/USDT:USDT", data["E"], 0.00000078, 1791388800000)
    assert rates == [expected] * has_rate


@pytest.mark.parametrize("changes", [{"p": ""}, {"p": None}, {"i": "x"}, {"i": []}, {"T": "x"}])
def test_a_mark_frame_without_a_price_or_with_nonsense_is_kept_aside(
    changes: dict[str, Any],
) -> None:
    for lacking in ({}, {"i": ""}):
        assert reason(mark(**(lacking | changes))) == "bad_shape"


def test_a_bad_rate_costs_only_the_rate() -> None:
    for rate in ("x", "nan", "inf", "1.5", "1e400"):
        price, reject = DECODER.decode(mark(r=rate))
        assert isinstance(price, MarkPrice)
        assert isinstance(reject, Reject)
        assert reject.reason == "bad_number"


def test_array_is_read_row_by_row() -> None:
    frame = (DATA / "mainnet_2026-10-07_all_markPrice_arr_1s_trimmed.json").read_bytes()
    items = DECODER.decode(frame)
    assert [type(item) for item in items] == [MarkPrice, FundingRate, Reject]
    rows = json.loads(frame)["data"]
    for array in (
        {"stream": "!markPrice@arr", "data": [rows[0], {"e": "markPriceUpdate"}, 7, rows[0]]},
        [rows[0], {"e": "markPriceUpdate"}, 7, rows[0]],
    ):
        items = DECODER.decode(json.dumps(array).encode())
        kinds = [type(item) for item in items]
        assert kinds == [MarkPrice, FundingRate, Reject, Reject, MarkPrice, FundingRate]


def test_unwrapped_frames_read_the_same() -> None:
    for frame in (*CLOSING[:4], MARK):
        unwrapped = json.dumps(json.loads(frame)["data"]).encode()
        assert DECODER.decode(unwrapped) == DECODER.decode(frame)


def test_answers_are_known_from_data() -> None:
    items = [
        DECODER.decode(line) for line in (DATA / "control_frames.jsonl").read_bytes().splitlines()
    ]
    assert items[0] == (Control(1, None),)
    assert items[1] == (Control(2, None),)
    assert [bool(item.error) for (item,) in items if isinstance(item, Control)] == [
        False,
        False,
        True,
        True,
    ]


def test_unknown_extra_fields_are_fine() -> None:
    assert DECODER.decode(kline(zz={"a": [1]}, e="kline")) == DECODER.decode(CLOSING[0])
    assert DECODER.decode(mark(future="1")) == DECODER.decode(MARK)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"s": "ETHUSDT"}, "unknown_symbol"),
        ({"i": "7m"}, "unknown_timeframe"),
        ({"t": 1786173300001}, "bad_time"),
        ({"T": 1786173360000}, "bad_time"),
        ({"t": -60_000, "T": -1}, "bad_time"),
        ({"E": 10**15}, "bad_time"),
        ({"E": 1786173359998}, "closed_early"),
        ({"h": "64969.39"}, "bad_prices"),
        ({"l": "64970.85"}, "bad_prices"),
        ({"l": "0", "o": "0", "c": "0", "h": "0"}, "bad_prices"),
        ({"v": "-1"}, "bad_number"),
        ({"q": "nan"}, "bad_number"),
        ({"V": "inf"}, "bad_number"),
        ({"Q": "-0.5"}, "bad_number"),
        ({"Q": "nan"}, "bad_number"),
        ({"h": "Infinity"}, "bad_number"),
        ({"n": -1}, "bad_number"),
        ({"n": 2**60}, "bad_number"),
        ({"o": "1e400"}, "bad_shape"),
        ({"o": "1_0"}, "bad_shape"),
        ({"o": ""}, "bad_shape"),
        ({"o": None}, "bad_shape"),
        ({"x": "perhaps"}, "bad_shape"),
        ({"e": "kline2"}, "unknown_event"),
        ({"e": 5}, "bad_shape"),
    ],
)
def test_every_fault_has_its_reason(changes: dict[str, Any], expected: str) -> None:
    assert reason(kline(**changes)) == expected


def test_inner_symbol_must_be_the_outer_one() -> None:
    frame = json.loads(CLOSING[0])
    frame["data"]["k"]["s"] = "XAUUSDT"
    assert reason(json.dumps(frame).encode()) == "bad_shape"


@pytest.mark.parametrize("changes", [{"p": "0"}, {"p": "-1"}, {"i": "nan"}, {"p": "inf"}])
def test_bad_mark_prices(changes: dict[str, Any]) -> None:
    assert reason(mark(**changes)) == "bad_number"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"null", "not_json"),
        (b"\xff\xfe\x00", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"a":' * 100_000, "not_json"),
        (b"{}", "bad_shape"),
        (b'{"data":{}}', "unknown_event"),
        (b'{"data":7}', "bad_shape"),
        (b'{"result":null,"id":"x"}', "bad_shape"),
        (b'{"stream":1,"data":{"e":"kline"}}', "bad_shape"),
    ],
)
def test_garbage_has_a_reason(frame: bytes, expected: str) -> None:
    assert reason(frame) == expected


@given(st.binary(max_size=400))
def test_no_bytes_raise(frame: bytes) -> None:
    for item in DECODER.decode(frame):
        assert isinstance(item, Reject | Control)


@given(
    st.sampled_from((*CLOSING, MARK)),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=3)), max_size=6),
)
def test_mutated_frames_give_sound_rows_or_reasons(
    frame: bytes, edits: list[tuple[int, bytes]]
) -> None:
    mutated = bytearray(frame)
    for place, replacement in edits:
        start = place % len(mutated)
        mutated[start : start + len(replacement)] = replacement
    for item in DECODER.decode(bytes(mutated)):
        if isinstance(item, Candle):
            assert 0 < item.low <= min(item.open, item.close)
            assert max(item.open, item.close) <= item.high < math.inf
            assert item.open_time_ms % 60_000 == 0
            assert not item.closed or item.event_time_ms >= item.close_time_ms - 1
        elif isinstance(item, MarkPrice):
            assert 0 < item.mark_price < math.inf
        elif isinstance(item, FundingRate):
            assert -1 < item.rate < 1


@given(st.decimals(min_value="1e-12", max_value="1e15", allow_nan=False))
def test_numbers_are_read_exactly(price: Any) -> None:
    text = format(price, "f")
    (candle,) = DECODER.decode(kline(o=text, h=text, l=text, c=text, v=text))
    assert isinstance(candle, Candle)
    assert candle.open == candle.volume == float(text)
