"""Every series that misses its deadline is found, no other; a candle that did not come is reported once."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.gaps.deadlines import (
    HOLES_KEPT,
    SINGLY,
    WATCHED_BEFORE_MS,
    Liveness,
    Missing,
    Series,
)
from marketfeed.grid import TimeRange

PAIR = "BTC/USDT:USDT"
MARK = Series(PAIR, "mark_price")
CANDLES = Series(PAIR, "1m")
MINUTE = 60_000
T0 = 1_791_360_000_000


def watching(*series: Series, stored: dict[tuple[str, str], int] | None = None) -> Liveness:
    """Series watched from ten seconds after T0 on, at 100 monotonic seconds; what closed by T0 is stored."""
    liveness = Liveness()
    if stored is None:
        stored = {(PAIR, "1m"): T0 - MINUTE}
    liveness.watch(series, 100.0, T0 + 10_000, stored)
    return liveness


def late(liveness: Liveness, seconds_after_start: float) -> list[Series]:
    now_ms = T0 + 10_000 + int(seconds_after_start * 1000)
    return [item.series for item in liveness.overdue(100.0 + seconds_after_start, now_ms)]


def lost(news: Iterable[Missing]) -> list[int]:
    return [(item.start_ms - T0) // MINUTE for item in news if not item.healed]


def opens(item: Missing) -> range:
    return range(item.start_ms, item.end_ms, MINUTE)


def test_a_mark_price_is_due_10_s_after_the_last_or_the_subscription() -> None:
    liveness = watching(MARK)
    assert late(liveness, 10.0) == []
    assert late(liveness, 10.1) == [MARK]
    liveness.mark_prices([PAIR], 111.0)
    assert late(liveness, 21.0) == []
    assert late(liveness, 21.1) == [MARK]


def test_a_series_is_silent_15_s_after_a_close_quiet_pairs_included() -> None:
    liveness = watching(CANDLES)
    # It forms when watching begins, at 0:10, and closes at 1:00.
    assert late(liveness, 65.0) == []
    assert late(liveness, 65.1) == [CANDLES]
    (item,) = liveness.overdue(200.0, T0 + MINUTE + 20_000)
    assert item.open_time_ms == T0
    assert item.late_s == 5.0
    assert lost(liveness.take_news()) == [0]
    assert liveness.take_news() == []
    liveness.closed(PAIR, "1m", T0)
    assert late(liveness, 66.0) == []
    (healed,) = liveness.take_news()
    assert healed == Missing(CANDLES, T0, T0 + MINUTE, healed=True)


def test_a_skipped_candle_is_missing_but_the_series_is_alive() -> None:
    liveness = watching(CANDLES)
    liveness.closed(PAIR, "1m", T0)
    liveness.closed(PAIR, "1m", T0 + 3 * MINUTE)
    assert lost(liveness.take_news()) == [1, 2]
    assert liveness.missing_candles == 2
    assert late(liveness, 250.0) == []


def test_a_forming_candle_shows_that_the_stream_lives_though_one_is_missing() -> None:
    liveness = watching(CANDLES)
    liveness.formed(PAIR, "1m", T0 + MINUTE)
    assert late(liveness, 65.1) == []
    assert lost(liveness.take_news()) == [0]
    # It is due in its turn; older frames and other series change nothing.
    liveness.formed(PAIR, "1m", T0)
    liveness.formed("X/USDT:USDT", "1m", T0 + 9 * MINUTE)
    assert late(liveness, 125.0) == []
    assert late(liveness, 125.1) == [CANDLES]
    assert lost(liveness.take_news()) == [1]
    liveness.closed(PAIR, "1m", T0 + MINUTE)
    assert late(liveness, 126.0) == []
    assert liveness.missing_candles == 1


def test_a_clock_that_was_ahead_is_forgiven() -> None:
    liveness = Liveness()
    hours = 180 * MINUTE
    liveness.watch([CANDLES], 0.0, T0 + hours, {})
    # A minute later it finds one missing, of three hours from now.
    liveness.overdue(80.0, T0 + hours + 80_000)
    assert lost(liveness.take_news()) == [179, 180]
    liveness.reanchor(T0 + 80_000)
    assert [item.healed for item in liveness.take_news()] == [True, True]
    assert liveness.missing_candles == 0
    assert liveness.overdue(80.0, T0 + 80_000) == []
    # By the right clock it is another candle that history leaves.
    assert lost(liveness.take_news()) == [0]
    liveness.overdue(150.0, T0 + 2 * MINUTE + 15_001)
    assert lost(liveness.take_news()) == [1]
    # A clock that was right stays as it is, a close that it has not reached yet included.
    liveness.closed(PAIR, "1m", T0 + 2 * MINUTE)
    liveness.reanchor(T0 + 3 * MINUTE - 1)
    liveness.closed(PAIR, "1m", T0 + 2 * MINUTE)
    assert liveness.take_news() == []


def test_repeats_and_old_candles_change_nothing() -> None:
    liveness = watching(CANDLES)
    for number in (0, 0, 1, 0, 1):
        liveness.closed(PAIR, "1m", T0 + number * MINUTE)
    liveness.closed(PAIR, "1m", T0 - MINUTE)
    liveness.closed("X/USDT:USDT", "1m", T0 + 9 * MINUTE)
    assert liveness.take_news() == []
    assert liveness.missing_candles == 0


def test_what_is_absent_since_the_last_run_is_missing_from_the_start() -> None:
    liveness = watching(CANDLES, stored={(PAIR, "1m"): T0 - 4 * MINUTE})
    assert lost(liveness.take_news()) == [-3, -2, -1]
    assert watching(CANDLES, stored={(PAIR, "1m"): T0 - MINUTE}).take_news() == []
    # The exchange's clock was ahead when that was stored.
    assert watching(CANDLES, stored={(PAIR, "1m"): T0 + MINUTE}).take_news() == []


def test_where_nothing_is_stored_what_history_leaves_is_awaited() -> None:
    hour = 60 * MINUTE
    hours = Series(PAIR, "1h")
    starts = (0, 1_500, 12_000, 59_999, 60_000, 60_001, hour - 1)
    for since_ms in (hour + start for start in starts):
        for series, length in ((CANDLES, MINUTE), (hours, hour)):
            liveness = Liveness()
            liveness.watch([series], 0.0, T0 + since_ms, {})
            assert lost(liveness.take_news()) == []
            # No silence: its stream cannot bring them.
            assert liveness.overdue(0.0, T0 + since_ms) == []
            liveness.overdue(4.1, T0 + since_ms + 4_100)
            first_ms = (since_ms - WATCHED_BEFORE_MS) // length * length
            end_ms = max(first_ms, (since_ms + 4_099 - 4_000) // length * length)
            found = lost(liveness.take_news())
            assert found == list(range(first_ms // MINUTE, end_ms // MINUTE, length // MINUTE))


def test_what_is_not_due_yet_is_reported_until_it_has_come() -> None:
    liveness = watching(CANDLES, stored={})
    assert dict(liveness.not_due()) == {CANDLES: 1}
    assert liveness.began_ms(CANDLES) == T0
    liveness.fetched(PAIR, "1m", T0 - MINUTE, trades=1)
    assert dict(liveness.not_due()) == {CANDLES: 0}
    late(liveness, 0.0)
    assert (lost(liveness.take_news()), dict(liveness.not_due())) == ([], {})


def test_nothing_is_awaited_from_before_a_listing() -> None:
    def first(listed_ms: int, channel: str = "1m") -> list[int]:
        liveness, series = Liveness(), Series(PAIR, channel)
        liveness.watch([series], 0.0, T0 + 10_000, {}, listed_ms={PAIR: listed_ms})
        liveness.overdue(0.0, T0 + 14_000)
        return lost(liveness.take_news())

    assert first(T0 - 61_000) == first(T0 - MINUTE) == first(T0 - 1) == [-1]
    assert first(T0) == first(T0 + 5_000) == first(T0 + 99 * MINUTE) == []
    # The first candle opens before the listing.
    assert first(T0 - 1, "1h") == [-60]
    assert T0 % (60 * MINUTE) == 0


def test_a_journal_that_is_begun_anew_is_as_a_first_start() -> None:
    liveness = watching(CANDLES)
    for number in range(5):
        liveness.closed(PAIR, "1m", T0 + number * MINUTE)
    liveness.watch_anew(T0 + 5 * MINUTE + 10_000)
    assert dict(liveness.not_due()) == {CANDLES: 1}
    late(liveness, 5 * 60.0)
    assert lost(liveness.take_news()) == [4]


def test_a_long_absence_is_one_range() -> None:
    days = 10
    liveness = watching(CANDLES, stored={(PAIR, "1m"): T0 - days * 1_440 * MINUTE})
    (item,) = liveness.take_news()
    assert item == Missing(CANDLES, T0 - (days * 1_440 - 1) * MINUTE, T0, healed=False)
    assert liveness.missing_candles == days * 1_440 - 1 > SINGLY


def test_watching_again_keeps_deadlines_and_forgetting_ends_them() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.watch([MARK, CANDLES], 150.0, T0 + 50_000, {})
    assert late(liveness, 70.0) == [MARK, CANDLES]
    assert liveness.series == 2
    liveness.take_news()
    liveness.unwatch([MARK, CANDLES], T0 + 4 * MINUTE)
    # The last one that was awaited counts, however soon the series was let go.
    assert lost(liveness.take_news()) == [1, 2, 3]
    assert late(liveness, 1_000.0) == []
    assert liveness.series == 0


def test_a_candle_is_missing_4_s_after_its_close_and_a_slower_machine_may_wait_longer() -> None:
    liveness = watching(CANDLES)
    late(liveness, 54.0)
    assert lost(liveness.take_news()) == []
    # Missing, but its series is not silent before 15 s.
    assert late(liveness, 54.1) == []
    assert lost(liveness.take_news()) == [0]
    slower = watching(CANDLES)
    slower.overdue(0.0, T0 + MINUTE + 30_000, due_ms=30_000)
    assert slower.take_news() == []
    assert slower.overdue(0.0, T0 + MINUTE + 30_001, due_ms=30_000) != []
    assert lost(slower.take_news()) == [0]


def test_a_fetched_candle_heals_but_does_not_speak_for_its_stream() -> None:
    liveness = watching(CANDLES)
    late(liveness, 54.1)
    liveness.take_news()
    assert liveness.fetched(PAIR, "1m", T0, trades=7)
    assert liveness.take_news() == [Missing(CANDLES, T0, T0 + MINUTE, healed=True)]
    assert late(liveness, 65.1) == [CANDLES]
    # An interval without trades is a reason to be silent, but only the next one.
    assert not liveness.fetched(PAIR, "1m", T0 + 5 * MINUTE, trades=0)
    assert late(liveness, 65.1) == [CANDLES]
    quiet = watching(CANDLES)
    late(quiet, 54.1)
    assert quiet.fetched(PAIR, "1m", T0, trades=0)
    assert late(quiet, 65.1) == []


def test_a_candle_that_was_fetched_before_it_is_due_is_not_missing() -> None:
    liveness = watching(CANDLES)
    assert not liveness.fetched(PAIR, "1m", T0, trades=7)
    late(liveness, 54.1)
    assert lost(liveness.take_news()) == []
    liveness.closed(PAIR, "1m", T0 + 2 * MINUTE)
    assert lost(liveness.take_news()) == [1]


def test_what_is_left_of_a_range_becomes_gaps_of_their_own() -> None:
    liveness = watching(CANDLES, stored={(PAIR, "1m"): T0 - 31 * MINUTE})
    (found,) = liveness.take_news()
    assert found == Missing(CANDLES, T0 - 30 * MINUTE, T0, healed=False)
    for number in (*range(-30, -20), *range(-15, -1)):
        assert liveness.fetched(PAIR, "1m", T0 + number * MINUTE, trades=1)
    assert liveness.take_news() == []
    parts = [(T0 - 20 * MINUTE, T0 - 15 * MINUTE), (T0 - MINUTE, T0)]
    assert liveness.left(CANDLES, found.start_ms) == parts
    assert liveness.split(CANDLES, found.start_ms) == parts
    # Its first part has come; the others are reported when they come after all.
    assert liveness.take_news() == [Missing(CANDLES, found.start_ms, T0, healed=True)]
    assert liveness.missing_candles == 6
    assert liveness.fetched(PAIR, "1m", T0 - MINUTE, trades=1)
    assert liveness.take_news() == [Missing(CANDLES, T0 - MINUTE, T0, healed=True)]
    assert liveness.left(CANDLES, found.start_ms) == []
    # One that lacks its first candle keeps its name.
    assert liveness.split(CANDLES, T0 - 20 * MINUTE) == parts[:1]
    assert liveness.take_news() == []


def test_a_gap_of_an_earlier_run_is_taken_up() -> None:
    liveness = watching(CANDLES)
    gap = TimeRange(T0 - 20 * MINUTE, T0 - 10 * MINUTE)
    left = [TimeRange(T0 - 12 * MINUTE, T0 - 10 * MINUTE)]
    assert liveness.resume(CANDLES, gap, left)
    assert not liveness.resume(CANDLES, gap, left)
    assert not liveness.resume(MARK, gap, left)
    assert liveness.missing_candles == 2
    for number in (-11, -12):
        assert liveness.fetched(PAIR, "1m", T0 + number * MINUTE, trades=1)
    assert liveness.take_news() == [Missing(CANDLES, *gap, healed=True)]


def test_an_ended_series_is_awaited_no_more_and_its_holes_can_heal() -> None:
    liveness = watching(CANDLES)
    liveness.closed(PAIR, "1m", T0 + MINUTE)
    assert lost(liveness.take_news()) == [0]
    liveness.unwatch([CANDLES], T0 + 2 * MINUTE)
    assert late(liveness, 1_000.0) == []
    liveness.closed(PAIR, "1m", T0 + 9 * MINUTE)
    assert liveness.take_news() == []
    assert liveness.fetched(PAIR, "1m", T0, trades=1)
    assert [item.healed for item in liveness.take_news()] == [True]
    assert not liveness.fetched(PAIR, "1m", T0, trades=1)


def test_a_series_that_comes_back_keeps_its_holes() -> None:
    liveness = watching(CANDLES)
    liveness.closed(PAIR, "1m", T0 + MINUTE)
    liveness.unwatch([CANDLES], T0 + 2 * MINUTE)
    liveness.take_news()
    liveness.watch([CANDLES], 100.0, T0 + 5 * MINUTE, {(PAIR, "1m"): T0 + 4 * MINUTE})
    assert liveness.missing_candles == 1
    assert liveness.fetched(PAIR, "1m", T0, trades=1)
    assert liveness.take_news() == [Missing(CANDLES, T0, T0 + MINUTE, healed=True)]


def test_holes_beyond_memory_are_reported_and_counted() -> None:
    liveness = watching(CANDLES)
    for number in range(HOLES_KEPT + 5):
        liveness.overdue(0.0, T0 + (number + 1) * MINUTE + 4_001)
    news = liveness.take_news()
    assert [item.kept for item in news].count(False) == 5
    assert liveness.missing_candles == len(news) == HOLES_KEPT + 5
    assert liveness.take_forgotten() == 5


@given(
    st.lists(st.tuples(st.integers(-20, 40), st.booleans()), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(0, 20),
)
def test_every_candle_is_either_seen_or_reported_missing(
    arrivals: list[tuple[int, bool]], looks: list[int], absent: int
) -> None:
    liveness = watching(CANDLES, stored={(PAIR, "1m"): T0 - (absent + 1) * MINUTE})
    news = liveness.take_news()
    for turn, (number, fetched) in enumerate(arrivals):
        if fetched:
            liveness.fetched(PAIR, "1m", T0 + number * MINUTE, trades=1)
        else:
            liveness.closed(PAIR, "1m", T0 + number * MINUTE)
        if turn in looks:
            liveness.overdue(0.0, T0 + (number + 1) * MINUTE + 4_001)
        news += liveness.take_news()
    end = 45
    liveness.overdue(0.0, T0 + end * MINUTE + 4_001)
    news += liveness.take_news()
    reported = [open_ms for item in news if not item.healed for open_ms in opens(item)]
    assert len(reported) == len(set(reported))
    ended = [item.start_ms for item in news if item.healed]
    assert len(ended) == len(set(ended))
    missing = {T0 + n * MINUTE for n in range(-absent, end)}
    missing -= {T0 + number * MINUTE for number, _ in arrivals}
    left = {
        open_ms
        for item in news
        if not item.healed
        for part in liveness.left(CANDLES, item.start_ms)
        for open_ms in range(*part, MINUTE)
    }
    assert left == missing <= set(reported)
    assert liveness.missing_candles == len(missing)
    healed = {open_ms for item in news if item.healed for open_ms in opens(item)}
    assert not healed & missing


def test_nothing_is_expected_of_a_pair_after_its_end() -> None:
    liveness = watching(MARK, CANDLES)
    # It ends three minutes and a half after T0: the candle that its end cuts is none.
    liveness.expect_until(PAIR, T0 + 7 * MINUTE // 2)
    liveness.mark_prices([PAIR], 100.0 + 195.0)
    for number in range(3):
        liveness.closed(PAIR, "1m", T0 + number * MINUTE)
    assert late(liveness, 1_000.0) == []
    assert lost(liveness.take_news()) == []


def test_what_is_missing_before_the_end_is_reported_and_after_it_is_not() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.expect_until(PAIR, T0 + 3 * MINUTE)
    assert late(liveness, 1_000.0) == [CANDLES]
    assert lost(liveness.take_news()) == [0, 1, 2]
    # Before its end it is watched as any other.
    assert late(liveness, 100.0) == [MARK, CANDLES]


def test_an_end_that_is_taken_back_is_none() -> None:
    liveness = watching(MARK, CANDLES)
    liveness.expect_until(PAIR, T0 + MINUTE)
    liveness.expect_until(PAIR, None)
    assert late(liveness, 180.0) == [MARK, CANDLES]
    assert lost(liveness.take_news()) == [0, 1, 2]
    # A pair that comes again under the same name starts without an end.
    liveness.expect_until(PAIR, T0)
    liveness.unwatch([MARK, CANDLES], T0)
    liveness.watch([MARK, CANDLES], 400.0, T0 + 310_000, {})
    assert late(liveness, 1_000.0) == [MARK, CANDLES]
