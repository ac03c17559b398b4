"""Every stream that misses its deadline is found, no other. What candles are missing: `test_holes.py`."""

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.gaps.deadlines import Liveness, Series

PAIR = "BTC/USDT:USDT"
MARK = Series(PAIR, "mark_price")
CANDLES = Series(PAIR, "1m")
MINUTE = 60_000
DUE_MS = 4_000
T0 = 1_791_360_000_000


def watching(*series: Series) -> Liveness:
    """Series watched from ten seconds after T0 on, at 100 monotonic seconds."""
    liveness = Liveness()
    liveness.watch(series, 100.0, T0 + 10_000)
    return liveness


def late(liveness: Liveness, seconds_after_start: float, due_ms: int = DUE_MS) -> list[Series]:
    now_ms = T0 + 10_000 + int(seconds_after_start * 1000)
    overdue = liveness.overdue(100.0 + seconds_after_start, now_ms, due_ms)
    return [item.series for item in overdue]


def test_a_mark_price_is_due_10_s_after_the_last_or_the_subscription() -> None:
    liveness = watching(MARK)
    assert late(liveness, 10.0) == []
    assert late(liveness, 10.1) == [MARK]
    liveness.mark_prices([PAIR, "X/USDT:USDT"], 111.0)
    assert late(liveness, 21.0) == []
    assert late(liveness, 21.1) == [MARK]


def test_a_series_is_silent_15_s_after_a_close_quiet_pairs_included() -> None:
    liveness = watching(CANDLES)
    # It forms when watching begins, at 0:10, and closes at 1:00.
    assert late(liveness, 65.0) == []
    assert late(liveness, 65.1) == [CANDLES]
    (item,) = liveness.overdue(200.0, T0 + MINUTE + 20_000, DUE_MS)
    assert item.open_time_ms == T0
    assert item.late_s == 5.0
    liveness.closed(PAIR, "1m", T0)
    assert late(liveness, 66.0) == []


def test_a_candle_that_is_missing_is_no_silence_before_15_s_nor_before_it_is_due() -> None:
    assert late(watching(CANDLES), 54.1) == []
    slower = watching(CANDLES)
    assert slower.overdue(0.0, T0 + MINUTE + 30_000, due_ms=30_000) == []
    assert slower.overdue(0.0, T0 + MINUTE + 30_001, due_ms=30_000) != []


def test_the_longest_silent_come_first() -> None:
    other = Series("X/USDT:USDT", "1m")
    liveness = watching(CANDLES, other, MARK)
    liveness.closed(PAIR, "1m", T0)
    liveness.mark_prices([PAIR], 300.0)
    assert late(liveness, 300.0) == [other, CANDLES, MARK]


def test_a_series_that_skipped_a_candle_is_alive() -> None:
    liveness = watching(CANDLES)
    liveness.closed(PAIR, "1m", T0)
    liveness.closed(PAIR, "1m", T0 + 3 * MINUTE)
    assert late(liveness, 250.0) == []


def test_a_forming_candle_shows_that_the_stream_lives_though_one_is_missing() -> None:
    liveness = watching(CANDLES)
    liveness.formed(PAIR, "1m", T0 + MINUTE)
    assert late(liveness, 65.1) == []
    # It is due in its turn; older frames and other series change nothing.
    liveness.formed(PAIR, "1m", T0)
    liveness.formed("X/USDT:USDT", "1m", T0 + 9 * MINUTE)
    assert late(liveness, 125.0) == []
    assert late(liveness, 125.1) == [CANDLES]
    liveness.closed(PAIR, "1m", T0 + MINUTE)
    assert late(liveness, 126.0) == []


def test_repeats_and_old_candles_change_nothing() -> None:
    liveness = watching(CANDLES)
    for number in (0, 0, 1, 0, 1):
        liveness.closed(PAIR, "1m", T0 + number * MINUTE)
    liveness.closed(PAIR, "1m", T0 - MINUTE)
    liveness.closed("X/USDT:USDT", "1m", T0 + 9 * MINUTE)
    assert late(liveness, 185.0) == []
    assert late(liveness, 185.1) == [CANDLES]


def test_a_clock_that_was_ahead_is_forgiven() -> None:
    hours = 180 * MINUTE
    liveness = Liveness()
    liveness.watch([CANDLES], 0.0, T0 + hours)
    liveness.reanchor(T0 + 80_000)
    assert liveness.overdue(80.0, T0 + 80_000, DUE_MS) == []
    # By the right clock it is silent as any other.
    assert liveness.overdue(150.0, T0 + 2 * MINUTE + 15_000, DUE_MS) == []
    assert liveness.overdue(150.0, T0 + 2 * MINUTE + 15_001, DUE_MS) != []
    # A clock that was right stays as it is, a close that it has not reached yet included.
    liveness.closed(PAIR, "1m", T0 + 2 * MINUTE)
    liveness.reanchor(T0 + 3 * MINUTE - 1)
    assert liveness.overdue(0.0, T0 + 4 * MINUTE + 15_000, DUE_MS) == []


def test_watching_again_keeps_deadlines_and_forgetting_ends_them() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.watch([MARK, CANDLES], 150.0, T0 + 50_000)
    assert late(liveness, 70.0) == [MARK, CANDLES]
    assert liveness.series == 2
    liveness.unwatch([MARK, CANDLES])
    assert late(liveness, 1_000.0) == []
    assert liveness.series == 0
    liveness.closed(PAIR, "1m", T0 + 9 * MINUTE)
    liveness.formed(PAIR, "1m", T0 + 9 * MINUTE)
    liveness.fetched(PAIR, "1m", T0, 0)
    assert late(liveness, 1_000.0) == []


def test_a_fetched_candle_does_not_speak_for_its_stream() -> None:
    liveness = watching(CANDLES)
    liveness.fetched(PAIR, "1m", T0, trades=7)
    assert late(liveness, 65.1) == [CANDLES]
    # An interval without trades is a reason to be silent, but only the next one.
    liveness.fetched(PAIR, "1m", T0 + 5 * MINUTE, trades=0)
    assert late(liveness, 65.1) == [CANDLES]
    quiet = watching(CANDLES)
    quiet.fetched(PAIR, "1m", T0, trades=0)
    assert late(quiet, 65.1) == []


def test_nothing_is_expected_of_a_pair_after_its_end() -> None:
    liveness = watching(MARK, CANDLES)
    # It ends three minutes and a half after T0: the candle that its end cuts is none.
    liveness.expect_until(PAIR, T0 + 7 * MINUTE // 2)
    liveness.mark_prices([PAIR], 100.0 + 195.0)
    for number in range(3):
        liveness.closed(PAIR, "1m", T0 + number * MINUTE)
    assert late(liveness, 1_000.0) == []


def test_before_its_end_a_pair_is_watched_as_any_other() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.expect_until(PAIR, T0 + 3 * MINUTE)
    assert late(liveness, 1_000.0) == [CANDLES]
    assert late(liveness, 100.0) == [MARK, CANDLES]


def test_an_end_that_is_taken_back_is_none() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.expect_until(PAIR, T0 + MINUTE)
    liveness.expect_until(PAIR, None)
    assert late(liveness, 180.0) == [MARK, CANDLES]
    # A pair that comes again under the same name starts without an end.
    liveness.expect_until(PAIR, T0)
    liveness.unwatch([MARK, CANDLES])
    liveness.watch([MARK, CANDLES], 400.0, T0 + 310_000)
    assert late(liveness, 1_000.0) == [MARK, CANDLES]


@given(
    st.lists(st.tuples(st.integers(-20, 40), st.sampled_from(("closed", "formed"))), max_size=30),
    st.integers(0, 60 * 60),
)
def test_a_series_is_silent_if_and_only_if_the_candle_after_its_newest_is_late(
    arrivals: list[tuple[int, str]], after_s: int
) -> None:
    liveness = watching(CANDLES)
    newest = -1
    for number, kind in arrivals:
        open_ms = T0 + number * MINUTE
        if kind == "closed":
            liveness.closed(PAIR, "1m", open_ms)
            newest = max(newest, number)
        else:
            liveness.formed(PAIR, "1m", open_ms)
            newest = max(newest, number - 1)
    now_ms = T0 + 10_000 + after_s * 1_000
    is_late = now_ms > T0 + (newest + 2) * MINUTE + 15_000
    assert late(liveness, after_s) == ([CANDLES] if is_late else [])
