"""When others are sent behind an order of which nobody knows what became: never before the rule says so."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.aggregator.freqtrade_bot import Count
from marketfeed.aggregator.release import Release

SETTLE_S = 10.0


def looks(release: Release, *seen: tuple[float, str | None], unknown: int = 1) -> None:
    for at_s, last_turn in seen:
        release.answered(at_s, last_turn, unknown)


def test_ten_seconds_and_two_turns() -> None:
    release = Release(SETTLE_S)
    assert not release.holds(0)
    release.unknown()
    looks(release, (0, "a"), (5, "b"), (9.9, "c"))
    # Two turns, and not long enough.
    assert release.holds(1)
    looks(release, (10, "c"))
    assert not release.holds(1)


def test_long_enough_and_one_turn() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, "a"), (60, "b"), (600, "b"))
    assert release.holds(1)
    looks(release, (601, "c"))
    assert not release.holds(1)


def test_a_look_without_an_answer_begins_anew() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, "a"), (5, "b"), (9, "c"))
    release.unanswered()
    looks(release, (10, "c"), (15, "d"), (19.9, "e"))
    assert release.holds(1)
    looks(release, (20, "e"))
    assert not release.holds(1)


def test_a_start_of_the_bot_is_no_turn_and_its_first_one_is() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, "a"), (5, ""), (11, "b"))
    assert release.holds(1)
    looks(release, (12, "c"))
    assert not release.holds(1)


def test_a_second_one_in_a_row_holds_until_one_is_found() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, "a"), (5, "b"), (10, "c"))
    release.unknown()
    looks(release, (11, "a"), (16, "b"), (30, "c"), unknown=2)
    assert release.holds(2)
    assert release.holds(1)
    release.found(1)
    assert not release.holds(1)


def test_a_second_one_in_a_row_holds_until_all_are_given_up() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    release.unknown()
    looks(release, (0, "a"), (5, "b"), (10, "c"), unknown=2)
    assert release.holds(1)
    assert not release.holds(0)
    # The next without an answer is one in the same row.
    release.unknown()
    looks(release, (20, "a"), (25, "b"), (30, "c"))
    assert release.holds(1)


def test_the_bot_s_own_word_ends_a_row() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, "a"), (5, "b"), (10, "c"))
    release.own_word()
    release.unknown()
    looks(release, (11, "a"), (16, "b"), (30, "c"), unknown=2)
    assert not release.holds(2)


def test_the_only_one_that_is_found_releases_at_once() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    release.found(0)
    assert not release.holds(0)


def test_one_that_is_given_up_while_the_bot_was_silent_holds_on() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    release.unanswered()
    assert release.holds(0)
    looks(release, (100, "a"), (105, "b"), (110, "c"), unknown=0)
    assert not release.holds(0)


def test_of_a_bot_that_does_not_tell_its_turns_only_what_is_given_up_is_over() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, None), (100, None))
    assert release.holds(1)
    looks(release, (101, None), unknown=0)
    assert not release.holds(0)


def test_what_is_told_again_after_nothing_was_is_no_turn() -> None:
    release = Release(SETTLE_S)
    release.unknown()
    looks(release, (0, None), (1, "a"), (2, None), (3, "a"), (4, None), (5, "a"), (60, None))
    assert release.holds(1)
    looks(release, (61, "b"), (62, None), (63, "c"))
    assert not release.holds(1)


EVENTS = st.one_of(
    st.tuples(st.just("look"), st.sampled_from(["a", "b", "c", "", None])),
    st.tuples(st.sampled_from(["no answer", "unknown", "word", "found", "lost"]), st.none()),
)


@given(st.lists(st.tuples(st.floats(0.1, 6.0), EVENTS), max_size=60))
def test_no_other_order_goes_unless_the_rule_lets_it(
    steps: list[tuple[float, tuple[str, str | None]]],
) -> None:
    """Against the rule as it is written, looked up in all that has happened."""
    release = Release(SETTLE_S)
    now_s, unknown, in_a_row = 0.0, 0, 0
    since: list[tuple[float, str | None, int]] = []
    settled = True
    for after_s, (what, last_turn) in steps:
        now_s += after_s
        match what:
            case "look":
                release.answered(now_s, last_turn, unknown)
                since.append((now_s, last_turn, unknown))
                told = [turn for _, turn, _ in since if turn is not None]
                turns = sum(1 for a, b in pairwise(told) if b and a != b)
                long_enough = now_s - since[0][0] >= SETTLE_S
                settled |= long_enough and (turns >= 2 or (last_turn is None and not unknown))
            case "no answer":
                release.unanswered()
                since = []
            case "unknown":
                release.unknown()
                unknown, in_a_row, since, settled = unknown + 1, in_a_row + 1, [], False
            case "word":
                release.own_word()
                in_a_row = 0
            case "found" if unknown:
                unknown -= 1
                release.found(unknown)
                in_a_row = 0
                settled |= not unknown
            case "lost" if unknown:
                unknown -= 1
        assert release.holds(unknown) == (not settled or (unknown > 0 and in_a_row > 1))


def test_unknown_orders_take_room() -> None:
    assert Count(3, 5).has_room(1)
    assert not Count(3, 5).has_room(2)
    assert not Count(5, 5).has_room(0)
    assert not Count(0, 0).has_room(0)
    assert Count(99, -1).has_room(7)
