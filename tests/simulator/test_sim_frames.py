"""What the simulator writes is byte for byte what was recorded, for the same numbers."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marketfeed.simulator import catalogue, frames
from marketfeed.simulator.frames import Bar, KlineWriter, kline_rows
from marketfeed.simulator.instrument import Instrument, decimal
from marketfeed.simulator.sockets import text_frame

DATA = Path(__file__).parents[1] / "data"
CLOSING = (DATA / "closing_frames.jsonl").read_bytes().splitlines()


def units(text: str, precision: int) -> int:
    whole, _, part = text.partition(".")
    assert len(part) == precision
    return int(whole + part)


def instrument_of(k: dict[str, Any]) -> Instrument:
    made = catalogue.make_instrument("BTC/USDT:USDT", 1.0)
    return msgspec.structs.replace(
        made,
        symbol=k["s"],
        price_precision=len(k["o"].partition(".")[2]),
        quantity_precision=len(k["v"].partition(".")[2]),
    )


def bar_of(k: dict[str, Any], instrument: Instrument) -> Bar:
    price, lots, quote = (
        instrument.price_precision,
        instrument.quantity_precision,
        instrument.quote_precision,
    )
    return Bar(
        units(k["o"], price), units(k["h"], price), units(k["l"], price), units(k["c"], price),
        units(k["v"], lots), k["n"], units(k["q"], quote), units(k["V"], lots),
        units(k["Q"], quote),
    )  # fmt: skip


# The COIN-M frame is another product's: quote volumes in coins, no blanks.
@pytest.mark.parametrize("line", CLOSING[:5])
def test_closing_frames_are_written_as_recorded(line: bytes) -> None:
    frame = json.loads(line)
    data = frame.get("data", frame)
    k = data["k"]
    instrument = instrument_of(k)
    written = KlineWriter(instrument, k["i"]).write(
        data["E"], k["t"], k["f"], k["L"], k["x"], bar_of(k, instrument)
    )
    if "stream" in frame:
        written = frames.combined_head(frame["stream"]) + written + b"}"
    assert written == line


def recorded_klines(instrument_name: str) -> list[bytes]:
    raw = (DATA / "recorded_mainnet_2021-07.raw").read_bytes().splitlines()
    return [
        line for line in raw if b'"s":"' + instrument_name.encode() in line and b"kline" in line
    ]


@pytest.mark.parametrize("symbol", ["SUSHIUSDT", "CTKUSDT", "AKROUSDT", "KEEPUSDT"])
def test_open_frames_of_whole_lots_are_written_as_recorded_but_for_the_blanks(symbol: str) -> None:
    lines = [line for line in recorded_klines(symbol) if b'"e":"kline"' in line]
    assert lines
    for line in lines:
        payload = line.partition(b": ")[2]
        frame = json.loads(payload)
        k = frame["data"]["k"]
        instrument = instrument_of(k)
        written = KlineWriter(instrument, k["i"]).write(
            frame["data"]["E"], k["t"], k["f"], k["L"], k["x"], bar_of(k, instrument)
        )
        head = frames.combined_head(frame["stream"])
        assert (head + written + b"}").replace(b", ", b",") == payload


def test_a_candle_without_trades_has_no_trade_ids() -> None:
    instrument = catalogue.make_instrument("ETH/USDT:USDT", 1.0)
    written = KlineWriter(instrument, "1m").write(
        62_000, 0, -1, -1, True, Bar(5, 5, 5, 5, 0, 0, 0, 0, 0)
    )
    k = json.loads(written)["k"]
    assert (k["f"], k["L"], k["n"]) == (-1, -1, 0)
    assert k["o"] == k["h"] == k["l"] == k["c"] == "0.05"
    assert float(k["v"]) == float(k["q"]) == float(k["V"]) == float(k["Q"]) == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "mainnet_2026-10-07_markPrice_1s.json",
        "mainnet_2026-08-08_aggTrade_markPrice_forceOrder.jsonl",
    ],
)
def test_mark_prices_are_written_as_recorded(name: str) -> None:
    lines = [line for line in (DATA / name).read_bytes().splitlines() if b"markPriceUpdate" in line]
    assert lines
    for line in lines:
        frame = json.loads(line)
        d = frame["data"]
        written = frames.mark_price(
            d["s"], d["E"], float(d["p"]), float(d["i"]), float(d["P"]), float(d["r"]), d["T"]
        )
        assert frames.combined_head(frame["stream"]) + written + b"}" == line


def test_a_quarterly_has_no_rate() -> None:
    row = json.loads(frames.mark_price("BTCUSDT_261225", 3_000, 1.0, 1.0, 1.0, None, 0))
    assert (row["r"], row["T"], row["st"]) == ("", 0, 1)


def test_rest_rows_are_written_as_recorded() -> None:
    body = (DATA / "mainnet_2026-10-07_klines_1m_limit2.json").read_bytes().strip()
    rows = json.loads(body)
    instrument = catalogue.make_instrument("BTC/USDT:USDT", 1.0)
    bars = [
        bar_of(
            {"o": r[1], "h": r[2], "l": r[3], "c": r[4], "v": r[5], "q": r[7], "n": r[8],
             "V": r[9], "Q": r[10]},
            instrument,
        )
        for r in rows
    ]  # fmt: skip
    assert kline_rows(instrument, "1m", rows[0][0], bars) == body


@pytest.mark.parametrize(
    ("number", "precision", "text"),
    [
        (0, 0, "0"),
        (7, 3, "0.007"),
        (-7, 3, "-0.007"),
        (123_456, 2, "1234.56"),
        (10**20 + 1, 10, "10000000000.0000000001"),
    ],
)
def test_decimals_are_exact(number: int, precision: int, text: str) -> None:
    assert decimal(number, precision) == text


@pytest.mark.parametrize("size", [0, 125, 126, 127, 65_535, 65_536])
def test_web_socket_headers(size: int) -> None:
    frame = text_frame(b"x" * size)
    assert frame[0] == 0x81
    if size < 126:
        assert frame[1:2] == bytes([size])
        header = 2
    elif size < 65_536:
        assert frame[1:4] == b"\x7e" + size.to_bytes(2, "big")
        header = 4
    else:
        assert frame[1:10] == b"\x7f" + size.to_bytes(8, "big")
        header = 10
    assert frame[header:] == b"x" * size
