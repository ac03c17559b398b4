"""Ranges behave as the set of numbers that they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.storage.ranges import Ranges

pieces = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=20)


@given(pieces, st.integers(1, 80))
def test_ranges_are_a_set_of_numbers(added: list[tuple[int, int]], end: int) -> None:
    ranges = Ranges()
    model: set[int] = set()
    for first, length in added:
        whole = ranges.add(first, first + length)
        model.update(range(first, first + length + 1))
        assert whole[0] <= first <= first + length <= whole[1]
    held = [number for first, last in ranges for number in range(first, last + 1)]
    assert held == sorted(model)
    assert all(
        later[0] > earlier[1] + 1 for earlier, later in zip(ranges, list(ranges)[1:], strict=False)
    )
    gaps = list(ranges.gaps(end))
    assert gaps == sorted(gaps, reverse=True)
    assert {n for first, last in gaps for n in range(first, last + 1)} == set(range(1, end)) - model
    assert ranges.first_gap(end) == min({*range(1, end + 1)} - model | {end})
    assert all((number in ranges) == (number in model) for number in range(1, 80))
    assert list(Ranges(reversed(list(ranges)))) == list(ranges)


def test_a_backward_range_is_refused() -> None:
    with pytest.raises(ValueError, match="5-4"):
        Ranges().add(5, 4)
