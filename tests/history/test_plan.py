"""What is asked for: every missing candle once, in as few requests as can be, the newest first."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.grid import TimeRange, joined
from marketfeed.history.absent import BELIEVED_FOR_MS, Absent, SuspectedAbsent
from marketfeed.history.plan import (
    CandleSeries,
    Holes,
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
    plan = in_order([Holes(series(name), within, (within,)) for name in ("1m", "3m", "1h")])
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


def test_what_the_exchange_does_not_have_is_believed_for_a_week() -> None:
    one, length_ms = series(), 3 * schema.MINUTE_MS
    absent = Absent()
    absent.note(one, [TimeRange(0, 10 * length_ms)], 1_000)
    absent.note(one, [TimeRange(10 * length_ms, 12 * length_ms)], 2_000)
    kept = Absent(absent.document(3_000))
    assert joined(kept.of(one.key, 3_000), length_ms, 0) == [TimeRange(0, 12 * length_ms)]
    assert kept.of(one.key, 1_000 + BELIEVED_FOR_MS) == []
    assert kept.of("ETH/USDT:USDT 3m", 3_000) == []
    assert Absent(kept.document(1_000 + BELIEVED_FOR_MS)).of(one.key, 3_000) == []


def test_only_what_is_answered_again_a_while_later_is_believed() -> None:
    suspected = SuspectedAbsent()
    asked = TimeRange(0, 100)
    assert suspected.take("a", asked, [TimeRange(0, 40), TimeRange(60, 70)], 0.0, 60.0) == []
    assert suspected
    # Too soon; of another series; of what was not answered before.
    assert suspected.take("a", asked, [TimeRange(0, 40), TimeRange(60, 70)], 59.0, 60.0) == []
    assert suspected.take("b", asked, [TimeRange(0, 40)], 70.0, 60.0) == []
    assert suspected.take("a", TimeRange(30, 100), [TimeRange(30, 50)], 70.0, 60.0) == [
        TimeRange(30, 40)
    ]
    # From 60 on it was there that time: that is a new suspicion. What was not asked still is an old one.
    assert suspected.take("a", TimeRange(60, 100), [TimeRange(60, 70)], 71.0, 60.0) == []
    assert suspected.take("a", TimeRange(0, 60), [TimeRange(0, 60)], 80.0, 60.0) == [
        TimeRange(0, 30)
    ]
    assert suspected.take("a", asked, [TimeRange(0, 100)], 131.0, 60.0) == [
        TimeRange(60, 70),
        TimeRange(40, 50),
    ]
    suspected.keep({"b"})
    assert suspected
    suspected.keep(set())
    assert not suspected


@given(st.lists(st.tuples(st.sets(st.integers(0, 20)), st.integers(1, 50)), max_size=8))
def test_what_is_believed_was_answered_twice_in_a_row(answers: list[tuple[set[int], int]]) -> None:
    """Against a plain table: since when each candle has been answered without, whatever the holes."""
    suspected = SuspectedAbsent()
    since: dict[int, float] = {}
    now_s = 0.0
    for lacking, passed_s in answers:
        now_s += passed_s
        holes = [TimeRange(at, at + 1) for at in sorted(lacking)]
        believed = suspected.take("a", TimeRange(0, 21), holes, now_s, 60.0)
        found = {at for start, end in believed for at in range(start, end)}
        assert found == {at for at in lacking if at in since and since[at] + 60.0 <= now_s}
        since = {at: since.get(at, now_s) for at in lacking - found}


def test_missing_days_are_counted_by_their_start() -> None:
    day = schema.DAY_MS
    assert missing_days([TimeRange(day // 2, 2 * day), TimeRange(2 * day, 2 * day + 5)]) == {
        0: day // 2,
        day: day,
        2 * day: 5,
    }
