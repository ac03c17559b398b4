"""What keeps a bot's orders back, what it is asked for meanwhile, and what expires of it."""

import pytest

from marketfeed.aggregator.bot_answers import Meaning
from marketfeed.aggregator.expired import LATELY_S, Expired
from marketfeed.aggregator.gate import Gate, Question
from marketfeed.aggregator.timing import Pace

PACE = Pace()


@pytest.mark.parametrize(
    ("meaning", "cause", "question"),
    [
        ("full", "no room", "count"),
        ("paused", "paused", "config"),
        ("barred", "password", "config"),
    ],
)
def test_it_is_shut_until_that_is_answered_well(
    meaning: Meaning, cause: str, question: Question
) -> None:
    gate = Gate(PACE)
    assert gate.is_open(0.0)
    gate.shut_by(meaning, "its words")
    assert gate.why is not None
    assert gate.why.cause == cause
    assert gate.why.words.endswith(": its words")
    assert not gate.is_open(1e9)
    assert gate.question == question
    gate.answered(question, good=False)
    other: Question = "config" if question != "config" else "count"
    if meaning != "barred":
        # Whoever answers lets us in; that says nothing of the rest.
        gate.answered(None)
        gate.answered(other)
        assert not gate.is_open(1e9)
        gate.answered(question)
    assert gate.is_open(0.0)
    assert gate.why is None
    assert gate.question == "config"


def test_an_accepted_or_refused_order_leaves_it_open() -> None:
    gate = Gate(PACE)
    for meaning in ("accepted", "refused"):
        gate.shut_by(meaning, "words")
    assert gate.is_open(0.0)


def test_after_a_slow_answer_the_bot_gets_a_pause() -> None:
    gate = Gate(PACE)
    gate.took(0.9, 100.0)
    assert gate.is_open(100.0)
    gate.took(2.0, 100.0)
    assert not gate.is_open(100.49)
    assert gate.is_open(100.5)
    # The longest one.
    gate.took(19.0, 200.0)
    assert not gate.is_open(200.99)
    assert gate.is_open(201.0)
    assert gate.why is None


def test_it_is_asked_later_each_time_and_anything_that_it_answers_opens() -> None:
    gate = Gate(PACE)
    for failures, pause_s in enumerate((0.1, 0.2, 0.4, 0.8, 1.0, 1.0)):
        assert gate.unreachable(f"not reachable {failures}") == pytest.approx(pause_s)
    assert gate.why is not None
    assert gate.why.words == "not reachable 5"
    # No order shows whether it is back: each would stand at `sending` meanwhile.
    assert not gate.is_open(1e9)
    assert gate.question == "config"
    gate.answered(None)
    assert gate.is_open(0.0)
    assert gate.why is None
    assert gate.unreachable("not reachable") == pytest.approx(0.1)


def test_what_it_never_says_an_order_may_tell() -> None:
    gate = Gate(PACE)
    gate.room_unknown("status 503")
    assert gate.why is not None
    assert gate.why.cause == "room unknown"
    assert gate.question == "count"
    gate.answered("count", good=False)
    assert gate.shut
    gate.let_one_try()
    assert gate.is_open(0.0)


def test_what_it_waits_for_may_come() -> None:
    gate = Gate(PACE)
    gate.wait("other bot", "no answer", 10.0)
    assert not gate.is_open(10.9)
    assert gate.is_open(11.0)
    gate.over("ledger")
    assert gate.why is not None
    gate.over("other bot")
    assert gate.is_open(10.0)
    assert gate.why is None


def test_what_expired_is_in_sight_for_a_while() -> None:
    expired = Expired()
    assert not expired.lately(0.0)
    expired.add("busy", 10.0)
    expired.add("busy", 20.0)
    expired.add("unreachable", 30.0)
    assert expired.lately(30.0) == {"busy": 2, "unreachable": 1}
    assert expired.lately(10.0 + LATELY_S) == {"busy": 1, "unreachable": 1}
    assert not expired.lately(30.0 + LATELY_S)
    assert expired.counts == {"busy": 2, "unreachable": 1}
    assert expired.with_room == 3


def test_a_full_bot_is_as_it_should_be_however_much_expires() -> None:
    expired = Expired()
    for number in range(99):
        expired.add("no room", float(number))
    assert not expired.lately(99.0)
    assert expired.counts == {"no room": 99}
    assert expired.with_room == 0
