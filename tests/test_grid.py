"""Ranges against plain sets of open times: no candle is lost or asked twice at an edge."""

import math
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.grid import (
    TimeRange,
    candles_in,
    joined,
    missing,
    overlap,
    subtract,
    tiles,
    without,
)

LENGTHS = st.sampled_from(sorted(schema.TIMEFRAMES_MS.values()))
STRETCHES = st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)).map(sorted)
SMALL = st.tuples(st.integers(0, 60), st.integers(-2, 12)).map(lambda two: (two[0], sum(two)))


def scaled(numbers: Iterable[int], length_ms: int) -> TimeRange:
    start, end = numbers
    return TimeRange(start * length_ms, end * length_ms)


def opens(time_range: TimeRange, length_ms: int) -> list[int]:
    return list(range(time_range.start_ms, time_range.end_ms, length_ms))


def opens_of(time_ranges: Iterable[TimeRange], length_ms: int) -> list[int]:
    return [open_ms for time_range in time_ranges for open_ms in opens(time_range, length_ms)]


def neither_touch_nor_overlap(time_ranges: list[TimeRange]) -> bool:
    return all(a.end_ms < b.start_ms for a, b in pairwise(time_ranges))


@given(STRETCHES, LENGTHS, st.integers(1, 600))
def test_tiles_hold_every_candle_once(numbers: list[int], length_ms: int, most: int) -> None:
    time_range = scaled(numbers, length_ms)
    found = list(tiles(time_range, length_ms, most))
    assert sorted(opens_of(found, length_ms)) == opens(time_range, length_ms)
    assert all(1 <= candles_in(tile, length_ms) <= most for tile in found)
    assert found == sorted(found, reverse=True)
    # As few requests as can be, and all but the last one full.
    assert len(found) == math.ceil(candles_in(time_range, length_ms) / most)
    assert all(candles_in(tile, length_ms) == most for tile in found[:-1])


@given(SMALL, LENGTHS, st.lists(st.integers(-5, 80)))
def test_missing_and_there_make_the_whole(
    numbers: tuple[int, int], length_ms: int, there: list[int]
) -> None:
    time_range = scaled(numbers, length_ms)
    stored = sorted(number * length_ms for number in there)
    found = missing(stored, time_range, length_ms)
    assert opens_of(found, length_ms) == sorted(set(opens(time_range, length_ms)) - set(stored))
    assert neither_touch_nor_overlap(found)


@given(st.lists(SMALL, max_size=12), LENGTHS, st.integers(0, 10))
def test_joined_stretches_hold_all_and_lie_apart(
    numbers: list[tuple[int, int]], length_ms: int, within: int
) -> None:
    time_ranges = [scaled(two, length_ms) for two in numbers]
    found = joined(time_ranges, length_ms, within)
    wanted = set(opens_of(time_ranges, length_ms))
    held = opens_of(found, length_ms)
    assert wanted <= set(held)
    assert len(held) == len(set(held))
    for first, second in pairwise(found):
        assert second.start_ms - first.end_ms > within * length_ms
    # What is held besides lies in pauses that are short enough.
    between = (
        missing(sorted(wanted), TimeRange(min(held), max(held) + length_ms), length_ms)
        if held
        else []
    )
    extra = [pause for pause in between if pause.start_ms in held]
    assert all(candles_in(pause, length_ms) <= within for pause in extra)
    assert set(held) - wanted == set(opens_of(extra, length_ms))


@given(SMALL, LENGTHS, st.lists(SMALL, max_size=8))
def test_cut_takes_out_the_holes_and_nothing_else(
    numbers: tuple[int, int], length_ms: int, others: list[tuple[int, int]]
) -> None:
    time_range = scaled(numbers, length_ms)
    holes = [scaled(two, length_ms) for two in others]
    left = subtract(time_range, holes)
    taken = set(opens_of(holes, length_ms))
    assert opens_of(left, length_ms) == [
        at for at in opens(time_range, length_ms) if at not in taken
    ]
    assert neither_touch_nor_overlap(left)


@given(
    STRETCHES,
    LENGTHS,
    st.lists(st.integers(0, 2_000), max_size=60),
    st.integers(0, 120),
    st.integers(1, 600),
)
def test_the_tiles_of_joined_holes_ask_for_every_missing_candle_once(
    numbers: list[int], length_ms: int, there: list[int], within: int, most: int
) -> None:
    time_range = scaled(numbers, length_ms)
    holes = missing(sorted(number * length_ms for number in there), time_range, length_ms)
    asked = [
        open_ms
        for part in joined(holes, length_ms, within)
        for tile in tiles(part, length_ms, most)
        for open_ms in opens(tile, length_ms)
    ]
    assert len(asked) == len(set(asked))
    assert set(opens_of(holes, length_ms)) <= set(asked) <= set(opens(time_range, length_ms))


def test_what_is_left_of_stretches_and_what_of_them_lies_within_another() -> None:
    holes = [TimeRange(0, 100), TimeRange(200, 300)]
    assert without(holes, [TimeRange(50, 250)]) == (TimeRange(0, 50), TimeRange(250, 300))
    assert without(holes, []) == tuple(holes)
    assert list(overlap(holes, TimeRange(90, 210))) == [TimeRange(90, 100), TimeRange(200, 210)]
