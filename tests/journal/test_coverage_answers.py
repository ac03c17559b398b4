"""What the exchange answers that it does not have: believed after a second answer, and asked for weekly."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.gaps.holes import Holes
from marketfeed.grid import TimeRange
from marketfeed.journal import coverage
from marketfeed.journal.coverage import (
    AGAIN_AFTER_MS,
    BELIEVED_FOR_MS,
    LATE_FOR_MS,
    Covered,
    Hole,
    Promise,
)
from marketfeed.schema import DAY_MS, MINUTE_MS

KEY = ("BTC/USDT:USDT", "1m")
NOW_MS = 20_000 * DAY_MS


def at(minute: int) -> int:
    return NOW_MS - DAY_MS + minute * MINUTE_MS


def minutes(start: int, end: int) -> TimeRange:
    return TimeRange(at(start), at(end))


def lacking(*parts: TimeRange) -> Covered:
    holes = tuple(Hole(*part) for part in parts)
    return Covered(at(0), at(0), NOW_MS, DAY_MS, holes)


def absent(known: Covered) -> set[int]:
    """The minutes that are believed not to be there."""
    return {
        (ms - at(0)) // MINUTE_MS
        for hole in known.holes
        if hole.is_absent
        for ms in range(*hole.time_range, MINUTE_MS)
    }


def test_only_what_is_answered_again_a_while_later_is_believed() -> None:
    known = coverage.answered_without(
        lacking(minutes(0, 40), minutes(60, 70)), minutes(0, 100), NOW_MS
    )
    assert absent(known) == set()
    # Too soon.
    known = coverage.answered_without(known, minutes(0, 100), NOW_MS + AGAIN_AFTER_MS - 1)
    assert absent(known) == set()
    # A part of it; what lies beside holes is none of it.
    known = coverage.answered_without(known, minutes(30, 50), NOW_MS + AGAIN_AFTER_MS)
    assert absent(known) == set(range(30, 40))
    assert known.absent_ms(minutes(0, 35)) == 5 * MINUTE_MS
    # What was not asked for still is an old suspicion; what comes after all is none any more.
    known = coverage.stored(known, [at(61)], MINUTE_MS)
    known = coverage.answered_without(known, minutes(0, 65), NOW_MS + 2 * AGAIN_AFTER_MS)
    assert absent(known) == {*range(40), 60, 62, 63, 64}
    known = coverage.answered_without(known, minutes(65, 100), NOW_MS + 3 * AGAIN_AFTER_MS)
    assert absent(known) == {*range(40), 60, *range(62, 70)}
    # And it is not missing, whatever it looks like.
    assert all(hole.is_absent for hole in known.holes)


def test_a_candle_that_has_just_closed_may_still_come() -> None:
    late = TimeRange(NOW_MS - MINUTE_MS, NOW_MS)
    known = coverage.answered_without(lacking(late), late, NOW_MS + 1)
    known = coverage.answered_without(known, late, NOW_MS + LATE_FOR_MS - 1)
    assert known.holes == (Hole(*late, empty_1_ms=NOW_MS + 1),)
    known = coverage.answered_without(known, late, NOW_MS + LATE_FOR_MS)
    assert known.holes[0].is_absent


def test_what_the_exchange_does_not_have_is_believed_for_a_week() -> None:
    hole = minutes(0, 10)
    known = coverage.answered_without(lacking(hole), hole, NOW_MS)
    second_ms = NOW_MS + AGAIN_AFTER_MS
    known = coverage.answered_without(known, hole, second_ms)
    holes = Holes(lambda: {KEY: known}, dict)
    assert hole not in holes.for_history(KEY, second_ms + BELIEVED_FOR_MS)
    again_ms = second_ms + BELIEVED_FOR_MS + 1
    assert holes.for_history(KEY, again_ms)[0] == hole
    # It does not come back into question by that: one more such answer, and it is believed anew.
    assert absent(known) == set(range(10))
    assert not holes.count(again_ms, first=True)
    known = coverage.answered_without(known, hole, again_ms)
    assert hole not in holes.for_history(KEY, again_ms + BELIEVED_FOR_MS)


@given(st.lists(st.tuples(st.sets(st.integers(0, 20)), st.integers(1, 50)), max_size=8))
def test_what_is_believed_was_answered_twice(answers: list[tuple[set[int], int]]) -> None:
    """Against a plain table: since when each candle has been answered without, whatever the holes."""
    known = lacking(minutes(0, 21))
    since: dict[int, int] = {}
    believed: set[int] = set()
    now_s = 0
    for without, passed_s in answers:
        now_s += passed_s
        for minute in sorted(without):
            known = coverage.answered_without(
                known, minutes(minute, minute + 1), NOW_MS + now_s * 1_000
            )
        believed |= {one for one in without if one in since and since[one] + 60 <= now_s}
        since = dict.fromkeys(without, now_s) | since
        assert absent(known) == believed


def test_what_closes_around_a_first_start_is_due_by_the_clock_alone() -> None:
    """It was left out of the first filling, and the feed had not brought it."""
    for after_close_ms in (0, 500, 3_999, 4_001, 30_000, 59_999):
        start_ms = NOW_MS + after_close_ms
        known = coverage.promised(
            None, Promise(*KEY, start_ms, DAY_MS), None, lambda where: [where]
        )
        holes = Holes(lambda known=known: {KEY: known}, dict)  # type: ignore[misc]
        # The minute that had closed at the start, and the one that closed first after it.
        asked = holes.for_healing(KEY, start_ms + 2 * MINUTE_MS)
        assert asked[0].start_ms < NOW_MS - MINUTE_MS
        assert asked[-1].end_ms >= NOW_MS + MINUTE_MS
        assert all(one.end_ms == two.start_ms for one, two in itertools.pairwise(asked))
