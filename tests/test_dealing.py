"""The order of tests: every process begins with its share of the long ones, and none is lost."""

from hypothesis import given
from hypothesis import strategies as st

from tests.dealing import dealt


def runs_of(tests: list[int], processes: int) -> list[list[int]]:
    """As xdist's `worksteal` cuts a list."""
    found = []
    left = list(tests)
    for number in range(processes):
        count = len(left) // (processes - number)
        found.append(left[:count])
        del left[:count]
    return found


def test_each_process_begins_with_its_share_of_the_long_ones() -> None:
    long_s = {3: 100.0, 5: 60.0, 11: 50.0, 17: 40.0, 19: 10.0}
    order = dealt(range(20), lambda test: long_s.get(test, 0.0), 2)
    first, second = runs_of(order, 2)
    assert first[:2] == [3, 17]
    assert second[:3] == [5, 11, 19]
    rest = [test for test in order if test not in long_s]
    assert rest == sorted(rest)


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 5.0, 30.0]), max_size=60), st.integers(1, 9))
def test_every_test_is_run_once_and_long_ones_are_the_first_of_a_run(
    seconds: list[float], processes: int
) -> None:
    order = dealt(range(len(seconds)), seconds.__getitem__, processes)
    assert sorted(order) == list(range(len(seconds)))
    for run in runs_of(order, processes):
        taken = [seconds[test] for test in run]
        assert taken == sorted(taken, reverse=True)[: len(taken)] or 0.0 in taken
        assert not any(taken[taken.index(0.0) :] if 0.0 in taken else ())
