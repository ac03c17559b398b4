"""Intervals of coverage: joined, read from a journal's holes, and what follows from them."""

import itertools

import numpy as np
import pytest
from covered import whole_part
from hypothesis import example, given, settings
from hypothesis import strategies as st

from marketfeed.journal.coverage import Covered, Hole
from reader.coverage import (
    Interval,
    furthest,
    is_awaited,
    never_come,
    of_journal,
    stands_still,
    why_short,
)

MANY = 24
edges = st.integers(0, MANY)
intervals = st.lists(st.builds(Interval, edges, edges), max_size=6)


# --- joined -------------------------------------------------------------------------------------------


@given(intervals)
@settings(max_examples=1_000)
@example([Interval(0, 5), Interval(5, 9)])
@example([Interval(0, 5), Interval(6, 9)])
@example([Interval(0, 9), Interval(2, 4), Interval(9, 9)])
def test_those_that_meet_are_joined_and_the_furthest_is_taken(told: list[Interval]) -> None:
    covered = {slot for from_ms, until_ms in told for slot in range(from_ms, until_ms)}
    if not covered:
        assert furthest(told) is None
        return
    # What touches is one run of slots.
    last = max(covered)
    first = next(slot for slot in range(last, -2, -1) if slot - 1 not in covered)
    assert furthest(told) == (first, last + 1)


@given(intervals, st.randoms())
def test_neither_order_nor_repeats_change_it(told: list[Interval], random: object) -> None:
    expected = furthest(told)
    again = [*told, *told]
    random.shuffle(again)  # type: ignore[attr-defined]
    assert furthest(again) == expected
    if expected is not None:
        assert furthest([*told, expected]) == expected


def test_one_collectors_beginning_never_stands_with_anothers_end() -> None:
    """The older one stopped at 10, the newer one began at 12: nobody tells of the time between."""
    assert furthest([Interval(0, 10), Interval(12, 20)]) == (12, 20)
    assert furthest([Interval(0, 10), Interval(12, 20), Interval(9, 12)]) == (0, 20)


# --- of a journal ---------------------------------------------------------------------------------------


def told_by(series: str, *, looked: int = 0) -> Interval | None:
    """What a journal tells of a series: `.` is stored, `?` missing, `x` absent at the exchange, too."""
    holes = [(n, n + 1) for n, kind in enumerate(series) if kind == "?"]
    rows = [n for n, kind in enumerate(series) if kind == "."]
    return of_journal(0, looked, len(series), max(rows, default=None), holes)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ("......", (0, 6)),
        ("..?...", (3, 6)),
        ("..x...", (0, 6)),
        ("?.x..?", (1, 5)),
        ("..xx", (0, 4)),
        ("..x?x", (0, 3)),
        ("????", None),
        ("x???", (0, 1)),
        ("", None),
    ],
)
def test_the_newest_part_without_a_hole(series: str, expected: tuple[int, int] | None) -> None:
    assert told_by(series) == expected


def test_what_is_still_to_be_looked_through_is_not_told() -> None:
    assert told_by("......", looked=3) == (3, 6)
    assert told_by("?.....", looked=3) == (3, 6)
    assert told_by("......", looked=6) is None


@given(st.text(".?x", max_size=MANY), edges)
@settings(max_examples=2_000)
def test_it_is_what_a_walk_from_the_newest_down_finds(series: str, looked: int) -> None:
    looked = min(looked, len(series))
    holes: list[Hole] = []
    at = 0
    for kind, group in itertools.groupby(series):
        end = at + len(list(group))
        if kind != ".":
            empty = (1, 2) if kind == "x" else (None, None)
            holes.append(Hole(at, end, False, *empty))
        at = end
    known = Covered(0, looked, len(series), 0, tuple(holes))
    rows = [n for n, kind in enumerate(series) if kind == "."]
    still_missing = [hole[:2] for hole in holes if not hole.is_absent]
    told = of_journal(0, looked, len(series), max(rows, default=None), still_missing)
    assert told == whole_part(known, rows, 1)


# --- what follows ---------------------------------------------------------------------------------------


@given(st.builds(Interval, edges, edges), st.sets(edges), st.sampled_from([1, 2, 3]))
def test_what_will_never_come_is_not_awaited(
    told: Interval, lacking: set[int], length: int
) -> None:
    opens = np.array(sorted(n - n % length for n in lacking), np.int64)
    never = never_come(told, opens, length)
    within = [set(range(at, at + length)) <= set(range(*told)) for at in opens.tolist()]
    assert never.tolist() == within
    assert [is_awaited(told, at, length) for at in opens.tolist()] == [not one for one in within]
    assert not never_come(None, opens, length).any()
    assert all(is_awaited(None, at, length) for at in opens.tolist())


def test_a_pair_stands_still_where_more_is_told_than_its_newest_candle() -> None:
    assert stands_still(Interval(0, 12), 9, 1)
    assert not stands_still(Interval(0, 10), 9, 1), "the newest candle is all there is yet"
    assert not stands_still(Interval(0, 7), 9, 1), "told a while ago"
    assert not stands_still(Interval(0, 7), None, 1)


def test_why_a_series_begins_where_it_does() -> None:
    told = Interval(3, 9)
    assert why_short(3, 3, told) == why_short(2, 3, None) == "listed"
    assert why_short(4, 3, told) == why_short(3, None, told) == "history"
    assert why_short(4, 3, None) == why_short(None, 3, told) == "unknown"
