"""Counting is exact: what lies on a bound belongs below it."""

from marketfeed.counters import Tally


def test_an_observation_counts_in_the_first_bucket_that_holds_it() -> None:
    tally = Tally((50, 100))
    for value_ms in (0, 50, 51, 100, 101, 9_000):
        tally.add(value_ms)
    assert (tally.counts, tally.sum_ms) == ([2, 2, 2], 9_302)
