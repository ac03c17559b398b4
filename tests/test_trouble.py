"""What fails and is tried again: how often, and what the log tells of it."""

from marketfeed.errors import backoff_s


def test_each_failure_doubles_the_wait_up_to_its_cap() -> None:
    assert [backoff_s(failures, 0.5, 3.0) for failures in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert backoff_s(100_000, 0.1, 60.0) == 60
