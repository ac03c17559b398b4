"""The limits, with time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.simulator.limits import CountLimit, WeightLimit, klines_weight


@pytest.mark.parametrize(
    ("limit", "weight"),
    [(None, 5), (1, 1), (100, 1), (101, 2), (499, 2), (500, 5), (1_000, 5), (1_001, 10), (1_500, 10)],
)  # fmt: skip
def test_weight_of_klines(limit: int | None, weight: int) -> None:
    assert klines_weight(limit) == weight


def test_weight_is_counted_per_utc_minute_and_refused_requests_count() -> None:
    limit = WeightLimit(limit=10)
    assert limit.charge(60_000, 6) == (6, None)
    assert limit.charge(75_500, 4) == (10, None)
    assert limit.charge(75_500, 1) == (11, 45)
    assert limit.charge(119_999, 1) == (12, 1)
    assert limit.charge(120_000, 3) == (3, None)


@given(
    limit=st.integers(1, 5),
    window=st.integers(1, 20),
    gaps=st.lists(st.integers(0, 8), max_size=60),
)
def test_no_window_holds_more_than_the_limit(limit: int, window: int, gaps: list[int]) -> None:
    counted = CountLimit(limit, window)
    now = 0
    allowed: list[int] = []
    for gap in gaps:
        now += gap
        within = [time for time in allowed if now - time < window]
        assert counted.allow(now) is (len(within) < limit)
        if len(within) < limit:
            allowed.append(now)
