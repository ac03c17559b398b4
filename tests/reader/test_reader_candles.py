"""get_ohlcv over a journal: what is in the frame, in which order, how old, and what is missing."""

import logging
import math
import pickle
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from stored import D1, H1, M3, M5, M15, OTHER, PAIR, START_MS, candle, entry, row

from reader import GapError, StaleDataError, UnknownPairError, UnknownTimeframeError

COLUMNS = ["date", "open", "high", "low", "close", "volume"]


def at(ms: int) -> pd.Timestamp:
    return pd.Timestamp(ms, unit="ms", tz="UTC")


def opens(frame: pd.DataFrame) -> list[int]:
    return [int(stamp.timestamp() * 1000) for stamp in frame["date"]]


def grid(*numbers: int, step_ms: int = M3) -> list[int]:
    return [START_MS + number * step_ms for number in numbers]


# --- the frame --------------------------------------------------------------------------------------


def test_the_frame_is_as_freqtrade_has_it(connect, clock) -> None:
    candles = [candle(ms) for ms in grid(*range(10))]
    reader = connect(entry(), candles)
    clock.ms = START_MS + 10 * M3 + 1_500

    frame = reader.get_ohlcv(PAIR, "3m")

    assert list(frame.columns) == COLUMNS
    assert frame["date"].dtype == pd.to_datetime(np.array([0]), unit="ms", utc=True).dtype
    assert frame["date"].dtype == pd.to_datetime(pd.Series([0]), unit="ms", utc=True).dtype
    assert [str(frame[name].dtype) for name in COLUMNS[1:]] == ["float64"] * 5
    assert isinstance(frame.index, pd.RangeIndex)
    assert (frame.index.start, frame.index.step) == (0, 1)
    assert opens(frame) == grid(*range(10))
    assert [tuple(values) for values in frame[COLUMNS[1:]].to_numpy()] == list(map(row, candles))
    assert frame.attrs == {
        "pair": PAIR,
        "timeframe": "3m",
        "source": reader._store.source,
        "age_s": 1.5,
        "missing": [],
        "absent": [],
        "short": "unknown",
        "forming": False,
        "lives": [],
    }
    assert frame.attrs["source"].endswith("/journal.db")


def test_frames_are_their_callers_own(connect, clock) -> None:
    reader = connect(
        entry(), entry(OTHER), [candle(ms, pair) for ms in grid(0, 1) for pair in (PAIR, OTHER)]
    )
    clock.ms = START_MS + 2 * M3
    frames = reader.get_ohlcv_many([PAIR, OTHER], "3m")
    before = frames[OTHER].copy()
    frames[PAIR].loc[:, "open"] = -1.0
    frames[PAIR]["more"] = 0
    frames[PAIR].iloc[-1, 1] = -2.0
    pd.testing.assert_frame_equal(frames[OTHER], before)
    assert reader.get_ohlcv(OTHER, "3m").equals(before)
    assert frames[PAIR]["open"].tolist() == [-1.0, -2.0]


def test_an_empty_frame_has_the_same_shape(connect, clock) -> None:
    reader = connect(entry(), entry(OTHER), candle(START_MS, OTHER))
    clock.ms = START_MS + M3
    full = reader.get_ohlcv(OTHER, "3m")
    empty = reader.get_ohlcv(PAIR, "3m", max_age_s=None)
    assert len(empty) == 0
    assert list(empty.columns) == COLUMNS
    assert empty.dtypes.tolist() == full.dtypes.tolist()
    assert isinstance(empty.index, pd.RangeIndex)
    assert empty.attrs["age_s"] is None
    assert empty.attrs["missing"] == []


# --- which candles ----------------------------------------------------------------------------------


def test_500_candles_unless_asked_otherwise(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(*range(510))])
    clock.ms = START_MS + 510 * M3
    assert opens(reader.get_ohlcv(PAIR, "3m")) == grid(*range(10, 510))
    assert len(reader.get_ohlcv(PAIR, "3m", since=START_MS)) == 510
    assert opens(reader.get_ohlcv(PAIR, "3m", 3)) == grid(507, 508, 509)
    assert len(reader.get_ohlcv(PAIR, "3m", 10_000)) == 510
    assert len(reader.get_ohlcv(PAIR, "3m", until=START_MS + 505 * M3)) == 500


def test_since_is_included_until_is_not_and_limit_takes_the_newest(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(*range(10))])
    clock.ms = START_MS + 10 * M3
    since, until = START_MS + 2 * M3, START_MS + 6 * M3
    assert opens(reader.get_ohlcv(PAIR, "3m", since=since, until=until)) == grid(2, 3, 4, 5)
    assert opens(reader.get_ohlcv(PAIR, "3m", since=since + 1, until=until + 1)) == grid(3, 4, 5, 6)
    assert opens(reader.get_ohlcv(PAIR, "3m", 2, since=since, until=until)) == grid(4, 5)
    assert opens(reader.get_ohlcv(PAIR, "3m", 2, since=since)) == grid(8, 9)
    assert opens(reader.get_ohlcv(PAIR, "3m", 3, until=until)) == grid(3, 4, 5)


def test_times_may_be_datetimes_of_any_zone(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(*range(10))])
    clock.ms = START_MS + 10 * M3
    start = datetime(2026, 1, 1, 0, 6, tzinfo=UTC)
    tokyo = start.astimezone(ZoneInfo("Asia/Tokyo"))
    for since in (
        start,
        tokyo,
        pd.Timestamp(start),
        START_MS + 2 * M3,
        np.int64(START_MS + 2 * M3),
    ):
        frame = reader.get_ohlcv(PAIR, "3m", since=since, until=start + timedelta(minutes=6))
        assert opens(frame) == grid(2, 3)
    # A microsecond later is after that open time, at both ends of the range.
    late = start + timedelta(microseconds=1)
    assert opens(reader.get_ohlcv(PAIR, "3m", since=late, until=late + timedelta(minutes=6))) == (
        grid(3, 4)
    )


def test_closed_candles_only_unless_the_forming_one_is_asked_for(connect, clock) -> None:
    forming = candle(START_MS + 2 * M3, closed=False)
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1)], forming)
    clock.ms = START_MS + 2 * M3 + 60_000
    assert opens(reader.get_ohlcv(PAIR, "3m")) == grid(0, 1)

    frame = reader.get_ohlcv(PAIR, "3m", include_forming=True)
    assert opens(frame) == grid(0, 1, 2)
    assert tuple(frame.iloc[-1, 1:]) == row(forming)
    assert frame.attrs["forming"] is True
    assert frame.attrs["age_s"] == 60.0, "the age is the newest closed candle's"
    # It does not count against the limit, and must lie in the range.
    assert opens(reader.get_ohlcv(PAIR, "3m", 1, include_forming=True)) == grid(1, 2)
    until = START_MS + 2 * M3
    assert opens(reader.get_ohlcv(PAIR, "3m", until=until, include_forming=True)) == grid(0, 1)
    since = START_MS + 2 * M3
    assert opens(reader.get_ohlcv(PAIR, "3m", since=since, include_forming=True)) == grid(2)
    assert opens(reader.get_ohlcv(PAIR, "3m", since=since + 1, include_forming=True)) == []


def test_many_pairs_come_in_their_order_each_as_asked_alone(connect, clock) -> None:
    third = "币安人生/USDT:USDT"
    records = [
        entry(),
        entry(OTHER, ("1m", "3m")),
        entry(third, ("1m",)),
        [candle(ms) for ms in grid(*range(20))],
        [candle(ms, OTHER) for ms in grid(*range(3, 20))],
        [candle(ms, third, "1m") for ms in range(START_MS, START_MS + 20 * M3, 60_000)],
    ]
    reader = connect(*records)
    clock.ms = START_MS + 20 * M3 + 10
    for limit in (1, 5, 100):
        many = reader.get_ohlcv_many((p for p in (third, PAIR, OTHER, PAIR)), "3m", limit)
        assert list(many) == [third, PAIR, OTHER]
        for pair, frame in many.items():
            alone = reader.get_ohlcv(pair, "3m", limit)
            pd.testing.assert_frame_equal(frame, alone)
            assert frame.attrs == alone.attrs
            assert frame.attrs["pair"] == pair
    assert reader.get_ohlcv_many([], "3m") == {}


# --- age --------------------------------------------------------------------------------------------


def test_stale_data_raises_by_default(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1)])
    newest_close = START_MS + 2 * M3
    clock.ms = newest_close + 2 * M3 + 30_000
    assert reader.get_ohlcv(PAIR, "3m").attrs["age_s"] == 390.0
    clock.ms += 1
    with pytest.raises(StaleDataError, match=r"BTC/USDT:USDT 390\.0 s") as caught:
        reader.get_ohlcv(PAIR, "3m")
    assert caught.value.ages == {PAIR: 390.001}
    assert caught.value.pairs == (PAIR,)

    assert reader.get_ohlcv(PAIR, "3m", max_age_s=390.001).attrs["age_s"] == 390.001
    assert len(reader.get_ohlcv(PAIR, "3m", max_age_s=None)) == 2
    assert len(reader.get_ohlcv(PAIR, "3m", max_age_s=math.inf)) == 2
    with pytest.raises(StaleDataError):
        reader.get_ohlcv(PAIR, "3m", max_age_s=390)
    clock.ms = newest_close
    assert reader.get_ohlcv(PAIR, "3m", max_age_s=0).attrs["age_s"] == 0
    clock.ms = newest_close - 5_000
    assert reader.get_ohlcv(PAIR, "3m").attrs["age_s"] == 0, "never below zero"


def test_a_range_that_is_past_is_not_stale(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(*range(10))])
    clock.ms = START_MS + 30 * M3
    frame = reader.get_ohlcv(PAIR, "3m", until=START_MS + 5 * M3)
    assert opens(frame) == grid(*range(5))
    assert frame.attrs["missing"] == []
    # What lacks at its end is reported, though.
    late = reader.get_ohlcv(PAIR, "3m", since=START_MS + 8 * M3, until=START_MS + 12 * M3)
    assert opens(late) == grid(8, 9)
    assert late.attrs["missing"] == grid(10, 11)
    assert reader.get_ohlcv(PAIR, "3m", until=clock.ms).attrs["missing"]
    with pytest.raises(StaleDataError):
        reader.get_ohlcv(PAIR, "3m", until=clock.ms + 1)


def test_an_ended_pair_is_never_stale(connect, clock) -> None:
    ended_ms = START_MS + 5 * M3 + 1_000
    reader = connect(entry(ended_ms=ended_ms), [candle(ms) for ms in grid(*range(5))])
    clock.ms = START_MS + D1
    frame = reader.get_ohlcv(PAIR, "3m")
    assert opens(frame) == grid(*range(5))
    assert frame.attrs["missing"] == [], "the candle in which it ended is not expected"
    clock.ms = ended_ms - 1
    assert reader.get_ohlcv(PAIR, "3m").attrs["missing"] == []


def test_a_pair_that_the_settings_have_dropped_is_stale_and_waited_for_by_nobody(
    connect, clock
) -> None:
    ended_ms = START_MS + 5 * M3 + 1_000
    dropped = entry(ended_ms=ended_ms, dropped=True)
    newest = candle(START_MS + 9 * M3, OTHER)
    reader = connect(dropped, entry(OTHER), [candle(ms) for ms in grid(*range(5))], newest)
    clock.ms = newest.close_time_ms
    # The exchange goes on with it: what is stored must not pass for the newest there is.
    with pytest.raises(StaleDataError):
        reader.get_ohlcv(PAIR, "3m")
    with pytest.raises(StaleDataError):
        reader.get_ohlcv_many([PAIR, OTHER], "3m")
    for asked in ({"max_age_s": None}, {"until": ended_ms}):
        frame = reader.get_ohlcv(PAIR, "3m", **asked)
        assert (opens(frame), frame.attrs["missing"]) == (grid(*range(5)), [])
    assert reader.wait_closed("3m", newest.open_time_ms, 0.0) == ()
    assert [(one.pair, one.timeframes, one.ended) for one in reader.pairs()] == [
        (PAIR, (), at(ended_ms)),
        (OTHER, ("3m",), None),
    ]


def test_a_pair_that_will_end_is_stale_until_then(connect, clock) -> None:
    reader = connect(entry(ended_ms=START_MS + D1), [candle(ms) for ms in grid(*range(5))])
    clock.ms = START_MS + D1 - 1
    with pytest.raises(StaleDataError):
        reader.get_ohlcv(PAIR, "3m")
    clock.ms = START_MS + D1
    assert len(reader.get_ohlcv(PAIR, "3m")) == 5


def test_a_pair_without_any_candle_raises(connect, clock) -> None:
    reader = connect(entry(timeframes=("1m", "3m")), candle(START_MS, timeframe="1m"))
    clock.ms = START_MS + 60_000
    for asked in ({}, {"since": START_MS}, {"until": START_MS + 1}, {"max_age_s": math.inf}):
        with pytest.raises(StaleDataError, match="no candle yet") as caught:
            reader.get_ohlcv(PAIR, "3m", **asked)
        assert caught.value.ages == {PAIR: math.inf}
    with pytest.raises(StaleDataError, match="no candle yet"):
        reader.get_ohlcv(PAIR, "15m")
    assert reader.get_ohlcv(PAIR, "15m", max_age_s=None).empty


def test_a_pair_just_listed_does_not_spoil_the_answer_for_all(connect, clock, caplog) -> None:
    listed_ms = START_MS + H1 + 10 * M3
    new = "NEW/USDT:USDT"
    frames = ("3m", "1h")
    reader = connect(
        entry(PAIR, frames),
        entry(new, frames, listed_ms=listed_ms),
        candle(START_MS, timeframe="1h"),
        candle(listed_ms, new),
    )
    first_close_ms = START_MS + 2 * H1
    clock.ms = first_close_ms - M3
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answer = reader.get_ohlcv_many([PAIR, new], "1h")
    assert (len(answer[PAIR]), len(answer[new])) == (1, 0)
    assert list(answer[new].columns) == COLUMNS
    assert (answer[new].attrs["age_s"], answer[new].attrs["missing"]) == (None, [])
    assert caplog.text.count("just listed") == 1
    # Asked for alone, or strictly, there is nothing that could be returned.
    with pytest.raises(StaleDataError, match="no candle yet") as caught:
        reader.get_ohlcv_many([PAIR, new], "1h", strict=True)
    assert caught.value.pairs == (new,)
    with pytest.raises(StaleDataError, match="no candle yet"):
        reader.get_ohlcv(new, "1h")
    # Put together from parts, the hour of the listing is never whole: 2h has its first one later.
    assert reader.get_ohlcv_many([new], "2h")[new].empty
    clock.ms = first_close_ms + 15_000 - 1
    assert reader.get_ohlcv_many([PAIR, new], "1h")[new].empty
    clock.ms += 1
    with pytest.raises(StaleDataError, match="no candle yet") as caught:
        reader.get_ohlcv_many([PAIR, new], "1h")
    assert caught.value.pairs == (new,)


def test_a_range_without_candles_of_a_living_pair_is_empty(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(5, 6)])
    clock.ms = START_MS + 7 * M3 + 2_000
    nothing_new = reader.get_ohlcv(PAIR, "3m", since=START_MS + 7 * M3)
    assert (len(nothing_new), nothing_new.attrs["age_s"]) == (0, 2.0)
    assert nothing_new.attrs["missing"] == []
    before = reader.get_ohlcv(PAIR, "3m", until=START_MS + 2 * M3)
    assert (len(before), before.attrs["missing"]) == (0, [])


def test_every_stale_pair_is_named(connect, clock) -> None:
    names = [f"P{number}/USDT:USDT" for number in range(15)]
    fresh = [candle(START_MS + 9 * M3, pair) for pair in names[:2]]
    old = [candle(START_MS, pair) for pair in names[2:14]]
    reader = connect([entry(pair) for pair in names], fresh, old)
    clock.ms = START_MS + 10 * M3
    with pytest.raises(StaleDataError, match="and 3 more") as caught:
        reader.get_ohlcv_many(names, "3m")
    assert caught.value.pairs == tuple(names[2:])
    assert caught.value.ages[names[2]] == 9 * M3 / 1000
    assert caught.value.ages[names[14]] == math.inf
    assert set(reader.get_ohlcv_many(names, "3m", max_age_s=None)) == set(names)


# --- completeness -----------------------------------------------------------------------------------


def test_gaps_are_listed_logged_once_and_raise_if_strict(connect, clock, caplog) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1, 4, 6)])
    clock.ms = START_MS + 7 * M3
    absent = grid(2, 3, 5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            frame = reader.get_ohlcv(PAIR, "3m")
    assert frame.attrs["missing"] == absent
    (record,) = caplog.records
    assert record.getMessage() == (
        f"candles missing pair={PAIR} timeframe=3m count=3 first=2026-01-01T00:06:00+00:00 "
        "last=2026-01-01T00:15:00+00:00"
    )
    # A smaller view of the same gap is no news; a new gap is.
    with caplog.at_level(logging.WARNING):
        assert reader.get_ohlcv(PAIR, "3m", 2).attrs["missing"] == absent[2:]
        assert len(caplog.records) == 1
        clock.ms += M3 + 15_000
        assert reader.get_ohlcv(PAIR, "3m").attrs["missing"] == [*absent, START_MS + 7 * M3]
    assert len(caplog.records) == 2
    assert "count=1 first=2026-01-01T00:21:00" in caplog.records[1].getMessage()

    with pytest.raises(GapError, match="3m candles missing: BTC/USDT:USDT 4, first 2026") as caught:
        reader.get_ohlcv(PAIR, "3m", strict=True)
    assert (caught.value.pair, caught.value.timeframe) == (PAIR, "3m")
    assert caught.value.missing == [at(ms) for ms in [*absent, START_MS + 7 * M3]]
    assert len(reader.get_ohlcv(PAIR, "3m", 1, strict=True, until=START_MS + 7 * M3)) == 1


def test_what_is_missing_costs_little_to_carry_on(connect, clock) -> None:
    """For every frame and column that is made of a frame, pandas copies its attrs deeply."""
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1, 400)])
    clock.ms = START_MS + 401 * M3
    frame = reader.get_ohlcv(PAIR, "3m")
    missing = frame.attrs["missing"]
    assert missing == grid(*range(2, 400))
    for other in (frame.copy(), frame[["date", "close"]], frame["close"], frame.iloc[1:]):
        carried = other.attrs["missing"]
        assert carried == missing
        # It is the other frame's own list, though.
        carried.clear()
        assert len(missing) == 398
    assert type(pickle.loads(pickle.dumps(frame)).attrs["missing"]) is list  # noqa: S301


def test_limit_counts_candles_not_time(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1, 4, 6)])
    clock.ms = START_MS + 7 * M3
    frame = reader.get_ohlcv(PAIR, "3m", 3)
    assert opens(frame) == grid(1, 4, 6)
    assert frame.attrs["missing"] == grid(2, 3, 5)


def test_the_newest_candle_is_due_15_s_after_its_close(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(0, 1)])
    clock.ms = START_MS + 3 * M3 + 14_999
    assert reader.get_ohlcv(PAIR, "3m").attrs["missing"] == []
    clock.ms += 1
    assert reader.get_ohlcv(PAIR, "3m").attrs["missing"] == [START_MS + 2 * M3]
    assert reader.get_ohlcv(PAIR, "3m", max_age_s=None).attrs["missing"] == []
    with pytest.raises(GapError):
        reader.get_ohlcv(PAIR, "3m", strict=True)


@pytest.mark.parametrize("max_age_s", [400, None])
def test_a_hole_right_before_the_forming_candle_is_missing_at_once(
    connect, clock, max_age_s: float | None
) -> None:
    """Its closing frame was lost: nothing shows it but the candle that forms behind it."""
    reader = connect(
        entry(timeframes=("1m", "3m")),
        [candle(ms) for ms in grid(*range(10))],
        candle(START_MS + 11 * M3, closed=False),
        # In 5m the part that lacks belongs to the candle before the forming one.
        [candle(START_MS + n * 60_000, timeframe="1m") for n in range(29)],
        candle(START_MS + 30 * 60_000, timeframe="1m", closed=False),
    )
    clock.ms = START_MS + 11 * M3 + 5_000
    asked = {"include_forming": True, "max_age_s": max_age_s}
    for more in ({}, {"limit": 3}, {"since": START_MS + 4 * M3}):
        frame = reader.get_ohlcv(PAIR, "3m", **asked, **more)
        assert opens(frame)[-3:] == grid(8, 9, 11)
        assert (frame.attrs["forming"], frame.attrs["missing"]) == (True, [START_MS + 10 * M3])
        with pytest.raises(GapError) as caught:
            reader.get_ohlcv(PAIR, "3m", strict=True, **asked, **more)
        assert caught.value.missing == [at(START_MS + 10 * M3)]
    clock.ms = START_MS + 30 * 60_000 + 5_000
    frame = reader.get_ohlcv(PAIR, "5m", **asked)
    assert opens(frame)[-2:] == [START_MS + n * M5 for n in (4, 6)]
    assert frame.attrs["missing"] == [START_MS + 5 * M5]
    # Without the forming candle, and before it, the frame has no hole: it is on its way.
    clock.ms = START_MS + 11 * M3 + 5_000
    for more in ({}, {"include_forming": True, "until": START_MS + 10 * M3}):
        frame = reader.get_ohlcv(PAIR, "3m", strict=True, max_age_s=max_age_s, **more)
        assert opens(frame)[-1] == START_MS + 9 * M3


def test_nothing_is_missing_before_the_first_candle_or_the_listing(connect, clock) -> None:
    reader = connect(entry(listed_ms=START_MS + 3 * M3 + 60_000), [candle(START_MS + 5 * M3)])
    clock.ms = START_MS + 6 * M3
    frame = reader.get_ohlcv(PAIR, "3m", since=START_MS - D1)
    assert frame.attrs["missing"] == []
    # A range that starts behind the first candle starts there.
    assert reader.get_ohlcv(PAIR, "3m", since=START_MS + 6 * M3).attrs["missing"] == []


def test_a_gap_in_one_of_many_pairs_is_named(connect, clock) -> None:
    whole = [candle(ms, OTHER) for ms in grid(0, 1, 2)]
    reader = connect(entry(), entry(OTHER), [candle(ms) for ms in grid(0, 2)], whole)
    clock.ms = START_MS + 3 * M3
    frames = reader.get_ohlcv_many([OTHER, PAIR], "3m")
    assert frames[OTHER].attrs["missing"] == []
    assert frames[PAIR].attrs["missing"] == [START_MS + M3]
    with pytest.raises(GapError) as caught:
        reader.get_ohlcv_many([OTHER, PAIR], "3m", strict=True)
    assert caught.value.gaps == {PAIR: [at(START_MS + M3)]}


# --- resampling -------------------------------------------------------------------------------------


def test_a_timeframe_that_is_not_collected_is_resampled(connect, clock) -> None:
    parts = [candle(START_MS + n * 60_000, timeframe="1m") for n in range(10, 61)]
    fives = [candle(START_MS + n * M5, timeframe="5m") for n in range(2, 12)]
    reader = connect(entry(timeframes=("1m", "5m")), parts, fives)
    clock.ms = START_MS + 61 * 60_000
    frame = reader.get_ohlcv(PAIR, "15m")
    assert opens(frame) == [START_MS + n * M15 for n in (1, 2, 3)], "whole ones only"
    assert frame.attrs["timeframe"] == "15m"
    assert frame.attrs["missing"] == []
    assert frame.attrs["age_s"] == 60.0
    first = fives[1:4]  # from 5m, the largest that divides it, not from 1m
    assert tuple(frame.iloc[0, 1:]) == (
        first[0].open,
        max(part.high for part in first),
        min(part.low for part in first),
        first[-1].close,
        math.fsum(part.volume for part in first),
    )
    # 3m comes from 1m.
    assert opens(reader.get_ohlcv(PAIR, "3m", 2)) == [START_MS + n * M3 for n in (18, 19)]


def test_a_resampled_candle_with_a_part_missing_is_missing(connect, clock) -> None:
    numbers = [n for n in range(40) if n not in (7, 20)]
    reader = connect(entry(), [candle(ms) for ms in grid(*numbers)])
    clock.ms = START_MS + 40 * M3
    frame = reader.get_ohlcv(PAIR, "15m")
    assert opens(frame) == [START_MS + n * M15 for n in (0, 2, 3, 5, 6, 7)]
    assert frame.attrs["missing"] == [START_MS + n * M15 for n in (1, 4)]
    with pytest.raises(GapError):
        reader.get_ohlcv(PAIR, "15m", strict=True)
    # The limit counts resampled candles, however far back they lie.
    assert opens(reader.get_ohlcv(PAIR, "15m", 5)) == [START_MS + n * M15 for n in (2, 3, 5, 6, 7)]
    assert opens(reader.get_ohlcv(PAIR, "15m", 6)) == [
        START_MS + n * M15 for n in (0, 2, 3, 5, 6, 7)
    ]


def test_a_long_gap_does_not_cost_resampled_candles(connect, clock) -> None:
    # Of each quarter of an hour between the first two hours and the last one a part lacks.
    numbers = [n for n in range(480) if n < 40 or n >= 460 or n % 5]
    reader = connect(entry(), [candle(ms) for ms in grid(*numbers)])
    clock.ms = START_MS + 480 * M3
    frame = reader.get_ohlcv(PAIR, "15m", 6)
    assert opens(frame) == [START_MS + n * M15 for n in (6, 7, 92, 93, 94, 95)]
    assert len(frame.attrs["missing"]) == 84


def test_the_forming_candle_is_put_together_from_its_parts(connect, clock) -> None:
    part = candle(START_MS + 7 * M3, closed=False)
    closed = [candle(ms) for ms in grid(*range(7))]
    reader = connect(entry(), closed, part)
    clock.ms = START_MS + 7 * M3 + 1_000
    frame = reader.get_ohlcv(PAIR, "15m", include_forming=True)
    assert opens(frame) == [START_MS, START_MS + M15]
    parts = [*closed[5:], part]
    assert tuple(frame.iloc[-1, 1:]) == (
        parts[0].open,
        max(p.high for p in parts),
        min(p.low for p in parts),
        part.close,
        math.fsum(p.volume for p in parts),
    )
    assert frame.attrs["forming"] is True
    assert opens(reader.get_ohlcv(PAIR, "15m")) == [START_MS]


def test_staleness_of_a_resampled_timeframe_goes_by_its_own_length(connect, clock) -> None:
    reader = connect(entry(), [candle(ms) for ms in grid(*range(10))])
    clock.ms = START_MS + 10 * M3 + 2 * M15 + 30_000
    frame = reader.get_ohlcv(PAIR, "15m")
    assert frame.attrs["missing"] == [START_MS + n * M15 for n in (2, 3)]
    clock.ms += 1
    with pytest.raises(StaleDataError):
        reader.get_ohlcv(PAIR, "15m")


def test_up_to_one_day(connect, clock) -> None:
    hours = [candle(START_MS + n * H1, timeframe="1h") for n in range(-5, 49)]
    reader = connect(entry(timeframes=("1h",)), hours)
    clock.ms = START_MS + 49 * H1
    assert opens(reader.get_ohlcv(PAIR, "1d")) == [START_MS, START_MS + D1]


# --- what is not there ------------------------------------------------------------------------------


def test_unknown_timeframes_name_the_valid_ones(connect, clock) -> None:
    reader = connect(entry(timeframes=("3m", "5m")), candle(START_MS), entry(OTHER, ("1h",)))
    clock.ms = START_MS + M3
    for wrong in ("1m", "7m", "1w", "3M", "", " 3m", None, 3, ["3m"], b"3m"):
        with pytest.raises(UnknownTimeframeError) as caught:
            reader.get_ohlcv(PAIR, wrong)
        assert caught.value.valid == (
            *("3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d"),
        )
        assert "collected: 3m, 5m; resampled from these: 15m, 30m, 1h" in str(caught.value)
    with pytest.raises(UnknownTimeframeError, match="ETH/USDT:USDT is neither"):
        reader.get_ohlcv_many([PAIR, OTHER], "3m")
    with pytest.raises(UnknownTimeframeError, match="there are 1m, 3m"):
        reader.get_ohlcv_many([], "7m")


def test_a_pair_that_is_not_collected_is_unknown(connect) -> None:
    reader = connect(entry(), entry(OTHER), candle(START_MS))
    with pytest.raises(UnknownPairError, match="close to it: BTC/USDT:USDT") as caught:
        reader.get_ohlcv("BTCC/USDT:USDT", "3m")
    assert caught.value.pair == "BTCC/USDT:USDT"
    assert caught.value.close_matches[0] == PAIR
    with pytest.raises(UnknownPairError, match="2 pairs are collected"):
        reader.get_ohlcv_many([PAIR, "XYZ/EUR:EUR"], "3m")


@pytest.mark.parametrize(
    "hostile",
    [
        "BTCUSDT",
        "BTC/USDT",
        "",
        " BTC/USDT:USDT",
        "BTC/USDT:USDT\n",
        "BTC/USDT:USDT' OR '1'='1",
        'BTC/USDT:USDT"; DROP TABLE candle; --',
        "BTC/USDT:USDT\0",
        "../../etc/passwd",
        "b" * 100_000,
        "\ud800/USDT:USDT",
        None,
        7,
        b"BTC/USDT:USDT",
        ["BTC/USDT:USDT"],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_hostile_pairs_are_refused_before_any_query(connect, hostile) -> None:
    reader = connect(entry(), candle(START_MS))
    reader.close()  # a query would now raise another error
    calls = (
        lambda: reader.get_ohlcv(hostile, "3m"),
        lambda: reader.get_ohlcv_many([PAIR, hostile], "3m"),
        lambda: reader.get_funding_rate(hostile),
        lambda: reader.get_mark_price(hostile),
        lambda: reader.get_funding_history(hostile),
    )
    for call in calls:
        with pytest.raises(UnknownPairError, match="BASE/QUOTE:SETTLE") as caught:
            call()
        assert len(str(caught.value)) < 250
