"""What is asked for: every missing candle once, in as few requests as can be, the newest first."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.grid import TimeRange
from marketfeed.history.plan import (
    CandleSeries,
    Lacking,
    covering,
    in_order,
    missing_days,
    range_of,
)

LENGTHS = st.sampled_from([schema.MINUTE_MS, 3 * schema.MINUTE_MS, schema.HOUR_MS, schema.DAY_MS])


def series(timeframe: str = "3m", listed_ms: int = 0, delivery_ms: int = NEVER_MS) -> CandleSeries:
    one = Instrument(
        "BTCUSDT", "BTC/USDT:USDT", "USDT", "TRADING", "PERPETUAL", listed_ms, delivery_ms
    )
    return CandleSeries(one, timeframe)


@st.composite
def holes_of(draw: st.DrawFn, length_ms: int) -> list[TimeRange]:
    """Holes that do not touch, oldest first."""
    at = draw(st.integers(0, 50))
    found = []
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.integers(1, 700))
        size = draw(st.integers(1, 1_600))
        found.append(TimeRange(at * length_ms, (at + size) * length_ms))
        at += size
    return found


@given(st.data(), LENGTHS, st.integers(1, 499))
def test_every_missing_candle_is_asked_for_once(
    data: st.DataObject, length_ms: int, most: int
) -> None:
    holes = data.draw(holes_of(length_ms))
    tiles = covering(holes, length_ms, most)
    lacking = {ms for hole in holes for ms in range(*hole, length_ms)}
    asked: list[int] = []
    for time_range, count in tiles:
        opens = range(*time_range, length_ms)
        assert 1 <= len(opens) <= most
        assert opens[0] in lacking
        assert opens[-1] in lacking
        assert count == len(lacking.intersection(opens))
        asked += opens
    assert len(asked) == len(set(asked))
    assert lacking <= set(asked)
    assert [tile for tile, _ in tiles] == sorted((tile for tile, _ in tiles), reverse=True)
    # Greedy from one end is the fewest there can be: no two neighbours would fit into one.
    for (newer, _), (older, _) in itertools.pairwise(tiles):
        assert (newer.end_ms - older.start_ms) // length_ms > most


def test_thirty_days_of_3m_are_29_requests() -> None:
    day = TimeRange(0, 30 * schema.DAY_MS)
    assert len(covering([day], 3 * schema.MINUTE_MS)) == 29


def test_the_newest_of_every_series_come_first() -> None:
    within = TimeRange(0, 30 * schema.DAY_MS)
    plan = in_order([Lacking(series(name), (within,)) for name in ("1m", "3m", "1h")])
    newest = {tile.series.timeframe for tile in plan[:3]}
    assert newest == {"1m", "3m", "1h"}
    assert all(tile.time_range.end_ms == within.end_ms for tile in plan[:3])
    assert [tile.wave for tile in plan] == sorted(tile.wave for tile in plan)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_range_lies_on_the_grid_within_what_was_asked_and_listed(
    since_ms: int, until_ms: int, listed_ms: int, delivery_ms: int
) -> None:
    one = series("3m", listed_ms, delivery_ms)
    found = range_of(one, since_ms, until_ms)
    wanted = {
        ms
        for ms in range(0, 10**7 + 180_000, 180_000)
        # The first candle of a listing opens before it.
        if ms >= since_ms
        and ms + 180_000 > listed_ms
        and ms + 180_000 <= until_ms
        and (not delivery_ms or ms + 180_000 <= delivery_ms)
    }
    assert set(range(*found, 180_000)) == wanted


def test_a_listing_within_a_day_begins_with_that_days_candle() -> None:
    """As of BTCUSDT: 2019-09-08 17:55, and 1d candles from 00:00 on."""
    listed_ms = 1_567_965_300_000
    midnight_ms = listed_ms - (17 * 60 + 55) * schema.MINUTE_MS
    for timeframe, first_ms in (
        ("1d", midnight_ms),
        ("4h", midnight_ms + 16 * schema.HOUR_MS),
        ("1h", midnight_ms + 17 * schema.HOUR_MS),
        ("5m", listed_ms),
    ):
        found = range_of(series(timeframe, listed_ms), 0, listed_ms + 9 * schema.DAY_MS)
        assert found.start_ms == first_ms


def test_missing_days_are_counted_by_their_start() -> None:
    day = schema.DAY_MS
    assert missing_days([TimeRange(day // 2, 2 * day), TimeRange(2 * day, 2 * day + 5)]) == {
        0: day // 2,
        day: day,
        2 * day: 5,
    }
