"""Lines hold exactly what the record holds, whatever stands in names; what has no spelling is refused."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    MarkPrice,
    Record,
)
from marketfeed.storage.ranges import Acknowledged

PAIR = "BTC/USDT:USDT"
T0 = 1_791_360_000_000


def candle(*, closed: bool = True) -> Candle:
    return Candle(PAIR, "3m", T0, 10.0, 12.0, 9.5, 11.1, 1.5, 16.25, 0.1, 7, closed, T0 + 1, 1.5)


def shipped(path: Path, *records: Record) -> list[str]:
    """What is shipped of a journal with these records, each a commit: the forming candles first."""
    with Journal.open(path) as journal:
        for record in records:
            batch = Batch()
            batch.add(record)
            journal.write(batch)
    outbox = JournalOutbox(path, "host a")
    try:
        return [
            *outbox.forming(-1)[0],
            *outbox.newest(Acknowledged.alike(KIND.measurements), 100).lines,
        ]
    finally:
        outbox.close()


def candle_line(pair: str = PAIR, close: float = 11.1) -> str:
    tag = lines.escape_tag(pair)
    return lines.candle_text("ohlcv_3m", tag, 10.0, 12.0, 9.5, close, 1.5, 16.25, 0.1, 7, T0)


def test_lines_as_the_schema_says(tmp_path: Path) -> None:
    names = itertools.count()

    def check(record: Record, line: str) -> None:
        assert shipped(tmp_path / f"{next(names)}.db", record) == [line]

    check(
        candle(),
        "ohlcv_3m,pair=BTC/USDT:USDT open=10.0,high=12.0,low=9.5,close=11.1,volume=1.5,"
        f"quote_volume=16.25,taker_buy_volume=0.1,taker_buy_quote_volume=1.5,trades=7i {T0}",
    )
    check(
        candle(closed=False),
        "forming_3m,pair=BTC/USDT:USDT open=10.0,high=12.0,low=9.5,close=11.1,volume=1.5,"
        f"quote_volume=16.25,taker_buy_volume=0.1,taker_buy_quote_volume=1.5,trades=7i {T0}",
    )
    check(
        MarkPrice(PAIR, T0 + 1_999, 5.0, 5.5),
        f"mark_price,pair=BTC/USDT:USDT mark_price=5.0,index_price=5.5 {T0 + 1_000}",
    )
    check(
        MarkPrice(PAIR, T0 + 1_999, 5.0, None),
        f"mark_price,pair=BTC/USDT:USDT mark_price=5.0 {T0 + 1_000}",
    )
    check(
        FundingRate(PAIR, T0 + 61_500, 1e-05, T0 + 99),
        "funding_rate,pair=BTC/USDT:USDT rate=0.00001,predicted_rate=0.00001,"
        f"next_funding_time={T0 + 99}i {T0 + 60_000}",
    )
    check(
        FundingSettled(PAIR, T0, 0.0002, None),
        f'funding_settled,pair=BTC/USDT:USDT rate=0.0002,kinds="Regular" {T0}',
    )
    check(
        FundingSettled(PAIR, T0, 0.0002, 5.0),
        f'funding_settled,pair=BTC/USDT:USDT rate=0.0002,mark_price=5.0,kinds="Regular" {T0}',
    )
    check(
        FundingSettled(PAIR, T0, 0.009, 5.0, "Special"),
        "funding_settled,pair=BTC/USDT:USDT rate=0.009,special_rate=0.009,mark_price=5.0,"
        f'kinds="Special" {T0}',
    )
    check(
        Gap("candle_3m", None, T0, T0 + 9, "healed", "x"),
        "feed_gap,collector=host\\ a,kind=candle_3m,pair=* "
        f'end={T0 + 9}i,healed=true,state="healed" {T0}',
    )
    check(
        Gap("mark_price", PAIR, T0, None, "found", "x"),
        "feed_gap,collector=host\\ a,kind=mark_price,pair=BTC/USDT:USDT "
        f'healed=false,state="found" {T0}',
    )
    check(
        CatalogEntry(PAIR, "BTCUSDT", ("1m", "3m"), T0, 5, None, T0 + 7),
        f'feed_catalog,pair=BTC/USDT:USDT timeframes="1m,3m",listed=5i,dropped=false {T0 + 7}',
    )


def test_what_was_settled_in_one_minute_is_one_point(tmp_path: Path) -> None:
    """Of each of its rows, in whatever order they came."""
    regular = FundingSettled(PAIR, T0, 0.0002, 5.0)
    special = FundingSettled(PAIR, T0, 0.009, 6.0, "Special")
    line = (
        "funding_settled,pair=BTC/USDT:USDT rate=0.0002,special_rate=0.009,mark_price=5.0,"
        f'kinds="Regular,Special" {T0}'
    )
    for number, records in enumerate([(regular, special), (special, regular)]):
        assert shipped(tmp_path / f"{number}.db", *records) == [line, line]


def test_a_running_rate_repeats_the_settled_one(tmp_path: Path) -> None:
    settled = FundingSettled(PAIR, T0, 0.0002, None)
    found = shipped(
        tmp_path / "journal.db", settled, FundingRate(PAIR, T0 + 61_500, 1e-05, T0 + 99)
    )
    (running,) = (line for line in found if line.startswith("funding_rate,"))
    assert ",settled_rate=0.0002,next" in running


def test_a_number_that_is_not_known_is_left_out() -> None:
    floats = [[1.0] * 3] * 7
    found = lines.candle_texts(
        ["m"] * 3, ["p"] * 3, floats, (None, 0.0, 1e-05), [1, 2, 3], [4, 5, 6]
    )
    assert [text.partition("taker_buy_volume=1.0,")[2] for text in found] == [
        "trades=1i 4",
        "taker_buy_quote_volume=0.0,trades=2i 5",
        "taker_buy_quote_volume=0.00001,trades=3i 6",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_spelling_is_not_left_out(value: float) -> None:
    with pytest.raises(lines.LineError, match="taker_buy_quote_volume"):
        lines.candle_texts(["m"] * 2, ["p"] * 2, [[1.0] * 2] * 7, (None, value), [1, 2], [4, 5])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_spelling_is_refused_by_name(value: float) -> None:
    with pytest.raises(lines.LineError, match="close"):
        candle_line(close=value)
    with pytest.raises(lines.LineError, match="index_price"):
        lines.mark_price_text(PAIR, T0, 1.0, value)


@given(st.text(min_size=1))
def test_no_name_breaks_out_of_its_tag(name: str) -> None:
    line = candle_line(name)
    assert "\n" not in line
    assert "\r" not in line
    # An unescaped comma, blank or equals sign would start something new.
    head, _, rest = line.removeprefix("ohlcv_3m,pair=").rpartition(" open=")
    assert rest.startswith("10.0,high=12.0")
    assert not re.search(r"(?<!\\)[ ,=]", head)
    assert not head.endswith("\\")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_exactly(value: float) -> None:
    line = lines.mark_price_text(PAIR, T0, value, value)
    (text,) = re.findall(r" mark_price=([^,]+),", line)
    assert float(text) == value
