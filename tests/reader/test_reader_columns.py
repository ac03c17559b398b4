"""The further columns of candles: as they are stored, summed where they are resampled, NaN where unknown."""

import math
from typing import Any

import msgspec
import pandas as pd
import pytest
from stored import M1, M3, OTHER, PAIR, START_MS, candle, entry

from marketfeed.records import Candle
from reader.errors import ArgumentError

ALL = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
PLAIN = ["date", "open", "high", "low", "close", "volume"]


def full(open_ms: int, pair: str = PAIR, timeframe: str = "3m", **other: Any) -> Candle:
    made = candle(open_ms, pair, timeframe)
    fields = {"taker_buy_quote_volume": made.quote_volume / 4, **other}
    return msgspec.structs.replace(made, **fields)


def unknown(open_ms: int, timeframe: str = "3m") -> Candle:
    """As an older collector has stored it."""
    return full(open_ms, timeframe=timeframe, taker_buy_quote_volume=None)


def more(item: Candle) -> list[float]:
    quote = item.taker_buy_quote_volume
    return [
        item.quote_volume,
        item.trades,
        item.taker_buy_volume,
        math.nan if quote is None else quote,
    ]


def same(frame: pd.DataFrame, rows: list[list[float]]) -> bool:
    return frame[list(ALL)].equals(
        pd.DataFrame(rows, columns=list(ALL)).astype(frame[list(ALL)].dtypes)
    )


def test_they_are_there_when_they_are_asked_for(connect, clock) -> None:
    candles = [full(START_MS + n * M3) for n in range(5)]
    reader = connect(entry(), candles)
    clock.ms = START_MS + 5 * M3

    frame = reader.get_ohlcv(PAIR, "3m", columns=ALL)
    assert list(frame.columns) == [*PLAIN, *ALL]
    assert same(frame, [more(item) for item in candles])
    assert [str(frame[name].dtype) for name in ALL] == ["float64", "int64", "float64", "float64"]
    assert frame[PLAIN].equals(reader.get_ohlcv(PAIR, "3m"))
    assert list(reader.get_ohlcv(PAIR, "3m").columns) == PLAIN

    frame = reader.get_ohlcv(PAIR, "3m", 2, columns=["taker_buy_quote_volume", "quote_volume"])
    assert list(frame.columns) == [*PLAIN, "taker_buy_quote_volume", "quote_volume"]
    assert list(frame["quote_volume"]) == [item.quote_volume for item in candles[-2:]]


def test_what_is_not_known_is_nan(connect, clock) -> None:
    candles = [unknown(START_MS), full(START_MS + M3), unknown(START_MS + 2 * M3)]
    reader = connect(entry(), candles)
    clock.ms = START_MS + 3 * M3
    frame = reader.get_ohlcv(PAIR, "3m", columns=ALL, strict=True)
    assert same(frame, [more(item) for item in candles])
    assert list(frame["taker_buy_quote_volume"].isna()) == [True, False, True]


def test_where_nothing_has_it_all_are_nan(connect, clock) -> None:
    reader = connect(entry(), [unknown(START_MS), unknown(START_MS + M3)])
    clock.ms = START_MS + 2 * M3
    frame = reader.get_ohlcv(PAIR, "3m", columns=["taker_buy_quote_volume"])
    assert str(frame["taker_buy_quote_volume"].dtype) == "float64"
    assert frame["taker_buy_quote_volume"].isna().all()


def test_they_are_summed_when_they_are_resampled(connect, clock) -> None:
    parts = [full(START_MS + n * M1, timeframe="1m") for n in range(5)]
    parts.append(unknown(START_MS + 5 * M1, "1m"))
    reader = connect(entry(timeframes=("1m",)), parts)
    clock.ms = START_MS + 6 * M1
    frame = reader.get_ohlcv(PAIR, "3m", columns=ALL)
    sums = [
        [math.fsum(column) for column in zip(*map(more, parts[at : at + 3]), strict=True)]
        for at in (0, 3)
    ]
    assert same(frame, sums)
    assert list(frame["taker_buy_quote_volume"].isna()) == [False, True]


def test_the_forming_candle_has_them(connect, clock) -> None:
    forming = full(START_MS + M3, closed=False)
    reader = connect(entry(), [full(START_MS), forming])
    clock.ms = START_MS + 2 * M3 - 1
    frame = reader.get_ohlcv(PAIR, "3m", columns=ALL, include_forming=True)
    assert frame.attrs["forming"]
    assert same(frame, [more(full(START_MS)), more(forming)])


def test_many_pairs_have_them(connect, clock) -> None:
    candles = [full(START_MS + n * M3, pair) for pair in (PAIR, OTHER) for n in range(3)]
    reader = connect(entry(), entry(OTHER), candles)
    clock.ms = START_MS + 3 * M3
    found = reader.get_ohlcv_many([OTHER, PAIR], "3m", 2, columns=("trades",))
    assert list(found) == [OTHER, PAIR]
    for pair, frame in found.items():
        assert list(frame["trades"]) == [full(START_MS + n * M3, pair).trades for n in (1, 2)]


def test_an_empty_frame_has_them(connect, clock) -> None:
    reader = connect(entry())
    clock.ms = START_MS
    frame = reader.get_ohlcv(PAIR, "3m", columns=ALL, max_age_s=None)
    assert list(frame.columns) == [*PLAIN, *ALL]
    assert len(frame) == 0


@pytest.mark.parametrize("columns", [["open"], ["seq"], ["trades; --"], "trades", 7, [None]])
def test_others_are_refused(connect, clock, columns: Any) -> None:
    reader = connect(entry(), [full(START_MS)])
    clock.ms = START_MS + M3
    with pytest.raises(ArgumentError, match="columns: "):
        reader.get_ohlcv(PAIR, "3m", columns=columns)
