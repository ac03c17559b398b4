"""What fails and is tried again: how often, and what is logged of it."""

import logging
import math

import pytest

from marketfeed.counters import Lately, Trouble
from marketfeed.errors import backoff_s

log = logging.getLogger("tried")


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and text of what was logged since this was asked last, without how long it lasted."""
    found = [(r.levelno, r.getMessage().partition(" after_s=")[0]) for r in caplog.records]
    caplog.clear()
    return found


def test_each_failure_doubles_the_wait_up_to_its_cap() -> None:
    assert [backoff_s(failures, 0.5, 3.0) for failures in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert backoff_s(100_000, 0.1, 60.0) == 60


def test_trouble_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble(log, "disk refuses 100%", "disk takes it again", logging.ERROR)
    trouble.end()
    assert (bool(trouble), trouble.why, trouble.for_s, logged(caplog)) == (False, "", 0.0, [])
    for error in (OSError("full"), OSError("full"), OSError("still full")):
        trouble.met(error)
    assert logged(caplog) == [(logging.ERROR, "disk refuses 100% error='full'")]
    assert (bool(trouble), trouble.why, trouble.failures) == (True, "still full", 3)
    assert 0.0 <= trouble.for_s < 60.0
    trouble.end()
    trouble.end()
    assert logged(caplog) == [(logging.WARNING, "disk takes it again")]
    assert (bool(trouble), trouble.why, trouble.failures, trouble.for_s) == (False, "", 0, 0.0)
    trouble.met("full once more")
    assert logged(caplog) == [(logging.ERROR, "disk refuses 100% error='full once more'")]


def test_trouble_of_another_level_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble(log, "waits", "goes on")
    levels = [None, logging.ERROR, logging.ERROR, logging.WARNING, None]
    for number, level in enumerate(levels):
        trouble.met(number, level)
    assert logged(caplog) == [
        (logging.WARNING, "waits error='0'"),
        (logging.ERROR, "waits error='1'"),
        (logging.WARNING, "waits error='3'"),
    ]


def test_a_failure_without_words_is_called_by_its_type() -> None:
    trouble = Trouble(log, "waits", "goes on")
    trouble.met(TimeoutError())
    assert trouble.why == "TimeoutError"


def test_of_what_happens_at_once_the_last_time_is_known() -> None:
    event = Lately()
    assert (event.ago_s, event.why) == (math.inf, "")
    event.met("first")
    event.met(ValueError("second"))
    assert event.why == "second"
    assert 0.0 <= event.ago_s < 60.0
