"""Lines say exactly what the record says, whatever stands in names; what has no spelling is refused."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import lines
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice

PAIR = "BTC/USDT:USDT"
T0 = 1_791_360_000_000


def candle(pair: str = PAIR, *, closed: bool = True, close: float = 11.1) -> Candle:
    return Candle(pair, "3m", T0, 10.0, 12.0, 9.5, close, 1.5, 16.25, 0.1, 7, closed, T0 + 1)


def test_lines_as_the_schema_says() -> None:
    assert lines.candle_line(candle()) == (
        "ohlcv_3m,pair=BTC/USDT:USDT open=10.0,high=12.0,low=9.5,close=11.1,volume=1.5,"
        f"quote_volume=16.25,taker_buy_volume=0.1,trades=7i {T0}"
    )
    assert lines.candle_line(candle(closed=False)).startswith("forming_3m,pair=BTC/USDT:USDT open=")
    assert lines.mark_price_line(MarkPrice(PAIR, T0 + 1_999, 5.0, 5.5)) == (
        f"mark_price,pair=BTC/USDT:USDT mark_price=5.0,index_price=5.5 {T0 + 1_000}"
    )
    funding = FundingRate(PAIR, T0 + 61_500, 1e-05, T0 + 99)
    assert lines.funding_rate_line(funding, 60_000, None) == (
        "funding_rate,pair=BTC/USDT:USDT rate=0.00001,predicted_rate=0.00001,"
        f"next_funding_time={T0 + 99}i {T0 + 60_000}"
    )
    assert ",settled_rate=0.0002,next" in lines.funding_rate_line(funding, 60_000, 0.0002)
    assert lines.funding_settled_line(FundingSettled(PAIR, T0, 0.0002, None)) == (
        f"funding_settled,pair=BTC/USDT:USDT rate=0.0002 {T0}"
    )
    assert lines.funding_settled_line(FundingSettled(PAIR, T0, 0.0002, 5.0)).endswith(
        f"rate=0.0002,mark_price=5.0 {T0}"
    )
    assert lines.gap_line(Gap("candle_3m", None, T0, T0 + 9, "healed", "x"), "host a") == (
        "feed_gap,collector=host\\ a,kind=candle_3m,pair=* "
        f'end={T0 + 9}i,healed=true,state="healed" {T0}'
    )
    assert lines.gap_line(Gap("mark_price", PAIR, T0, None, "found", "x"), "h").endswith(
        f'pair=BTC/USDT:USDT healed=false,state="found" {T0}'
    )
    entry = CatalogEntry(PAIR, "BTCUSDT", ("1m", "3m"), T0, 5, None, T0 + 7)
    assert lines.catalog_line(entry) == (
        f'feed_catalog,pair=BTC/USDT:USDT timeframes="1m,3m",listed=5i {T0 + 7}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_spelling_is_refused_by_name(value: float) -> None:
    with pytest.raises(lines.LineError, match="close"):
        lines.candle_line(candle(close=value))
    with pytest.raises(lines.LineError, match="index_price"):
        lines.mark_price_line(MarkPrice(PAIR, T0, 1.0, value))


@given(st.text(min_size=1))
def test_no_name_breaks_out_of_its_tag(name: str) -> None:
    line = lines.candle_line(candle(pair=name))
    assert "\n" not in line
    assert "\r" not in line
    # An unescaped comma, blank or equals sign would start something new.
    head, _, rest = line.removeprefix("ohlcv_3m,pair=").rpartition(" open=")
    assert rest.startswith("10.0,high=12.0")
    assert not re.search(r"(?<!\\)[ ,=]", head)
    assert not head.endswith("\\")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_exactly(value: float) -> None:
    line = lines.mark_price_line(MarkPrice(PAIR, T0, value, value))
    (text,) = re.findall(r" mark_price=([^,]+),", line)
    assert float(text) == value
