"""Windows, quorum, conflicts, repeats and cool-downs by examples."""

from typing import Any

import msgspec
import pytest
from voting import LONG, PAIR, RULES, SHORT, T0, WINDOW, forward_of

from marketfeed.aggregator import passed
from marketfeed.aggregator.ballots import Counted, Decision, Vote
from marketfeed.aggregator.ledger_tables import State, found_words
from marketfeed.aggregator.repeats import Earlier
from marketfeed.aggregator.signals import Electorate, Signal
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.votes import Votes


class Ballot:
    """Votes with a clock and numbers of its own."""

    def __init__(self, **changes: Any) -> None:
        self.rules = msgspec.structs.replace(RULES, **changes)
        self.standing = Standing(self.rules.cooldown_ms)
        self.votes = Votes(self.rules, self.standing)
        self.number = 0
        self.now_ms = T0
        self.decisions: list[Decision] = []

    def post(self, called: str, confidence: float, after_ms: int = 0, **fields: Any) -> Counted:
        self.wait(after_ms)
        feeder = RULES.electorate.feeder_of[called]
        side = RULES.electorate.side_of[feeder]
        signal = Signal(fields.pop("pair", PAIR), side, feeder, called, confidence, **fields)
        self.number += 1
        return self.votes.add(Vote(self.number, self.now_ms, signal, signal.digest()))

    def wait(self, ms: int) -> None:
        self.now_ms += ms
        self.decisions += self.votes.due(self.now_ms)

    def last(self) -> Decision:
        return self.decisions[-1]

    def hear(self, state: State, **more: Any) -> None:
        """The order of the last decision stands like this, and was sent now if ever."""
        sent_ms = None if state in ("queued", "expired") else self.now_ms
        fields: dict[str, Any] = {"sent_ms": sent_ms, "changed_ms": self.now_ms, "attempts": 1}
        self.standing.heard(forward_of(self.last(), state, **(fields | more)), self.now_ms)


def test_three_of_five() -> None:
    ballot = Ballot()
    for called, confidence in (("73", 0.85), ("74", 0.72), ("79", 0.88)):
        ballot.post(called, confidence, 1_000, leverage=3.0, ordertype="market")
    ballot.wait(WINDOW - 2_001)
    assert ballot.decisions == []
    ballot.wait(1)
    decision = ballot.last()
    assert decision.outcome == "forward"
    assert decision.tag == "long ensemble 3/5 conf=0.82 from=79"
    assert decision.reasons == ("3 of 5 votes, confidence 0.8167",)
    assert (decision.opened_ms, decision.decided_ms) == (T0 + 1_000, T0 + 61_000)
    assert (decision.leverage, decision.ordertype, decision.price) == (3.0, "market", None)
    assert decision.expires_ms == decision.decided_ms + 30_000


def test_two_of_five_at_quorum_three() -> None:
    ballot = Ballot()
    ballot.post("73", 0.9)
    ballot.post("74", 0.9)
    ballot.wait(WINDOW)
    assert (ballot.last().outcome, ballot.last().reasons) == (
        "skip",
        ("2 of 5 votes, 3 needed",),
    )


def test_one_at_quorum_one() -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("75b", 0.89)
    ballot.wait(WINDOW)
    assert ballot.last().tag == "long ensemble 1/5 conf=0.89 from=75b"


def test_low_confidence_and_too_few_are_both_reasons() -> None:
    ballot = Ballot()
    ballot.post("120", 0.5)
    ballot.wait(WINDOW)
    assert ballot.last().reasons == (
        "1 of 5 votes, 3 needed",
        "confidence 0.5000, 0.7 needed",
    )


def test_three_times_the_least_confidence_is_enough() -> None:
    ballot = Ballot()
    for called in ("73", "74", "79"):
        ballot.post(called, 0.7)
    ballot.wait(WINDOW)
    assert ballot.last().outcome == "forward"


def test_instances_share_a_vote_and_the_latest_counts() -> None:
    ballot = Ballot()
    ballot.post("75a", 0.99, leverage=2.0)
    ballot.post("75b", 0.75, leverage=4.0)
    counted = ballot.post("75c", 0.8)
    assert (counted.votes, counted.electorate_size) == (1, 5)
    ballot.post("73", 0.7)
    ballot.post("74", 0.7)
    ballot.wait(WINDOW)
    decision = ballot.last()
    assert (decision.votes, decision.primary, decision.feeders) == (3, "75c", ("73", "74", "75"))
    assert decision.leverage == 1.0


def test_decided_early_when_all_have_voted() -> None:
    ballot = Ballot()
    for called in LONG:
        ballot.post(called, 0.8, 100)
    ballot.wait(0)
    assert ballot.last().tag == "long ensemble 5/5 conf=0.80 from=73"
    assert ballot.last().expires_ms == ballot.now_ms + 30_000


def test_of_equal_confidences_the_earliest_is_primary() -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("79", 0.8)
    ballot.post("73", 0.8)
    ballot.wait(WINDOW)
    assert ballot.last().primary == "79"


def test_leverage_and_order_type_are_capped_and_that_is_a_reason() -> None:
    ballot = Ballot(min_agreements=1, ordertypes=("market",))
    ballot.post("73", 0.9, leverage=20.0, ordertype="limit", price=5.0)
    ballot.wait(WINDOW)
    decision = ballot.last()
    assert (decision.leverage, decision.ordertype, decision.price) == (5.0, "market", None)
    assert decision.reasons[1:] == (
        "leverage 20 of 73 capped to 5",
        "order type limit of 73 is not allowed",
    )


def test_a_limit_order_carries_the_price_of_the_primary() -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.8, ordertype="limit", price=4.0)
    ballot.post("74", 0.9, ordertype="limit", price=5.0)
    ballot.wait(WINDOW)
    assert (ballot.last().ordertype, ballot.last().price) == ("limit", 5.0)


# --- the same signal again ----------------------------------------------------------------------------


@pytest.mark.parametrize(("after_ms", "outcome"), [(14_999, "duplicate"), (15_000, "voted")])
def test_the_same_signal_is_a_repeat_for_15_seconds(after_ms: int, outcome: str) -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.post("74", 0.9, 10_000)
    again = ballot.post("73", 0.9, after_ms - 10_000)
    assert (again.outcome, again.window) == (outcome, 1)
    ballot.wait(WINDOW)
    # Counted again it is the latest vote of its feeder, and still one.
    assert (ballot.last().votes, ballot.last().confidence) == (2, 0.9)


def test_the_latest_vote_counts_when_it_is_an_earlier_one_again() -> None:
    ballot = Ballot(min_agreements=1)
    for confidence in (0.9, 0.8, 0.9):
        ballot.post("73", confidence, 15_000)
    ballot.wait(WINDOW)
    assert (ballot.last().votes, ballot.last().confidence) == (1, 0.9)


def test_what_is_repeated_at_the_next_candle_counts_in_its_window() -> None:
    """Five feeders vote, and do so again a minute later with the same words, one of them first."""
    ballot = Ballot(early_grace_ms=3_000)
    for called in LONG:
        ballot.post(called, 0.9, 100)
    ballot.wait(3_000)
    assert ballot.last().tag == "long ensemble 5/5 conf=0.90 from=73"
    # 57 s after that decision: another feeder's new words have opened the next window.
    ballot.post("74", 0.91, 58_000)
    for called in ("73", "79"):
        assert ballot.post(called, 0.9, 100).outcome == "voted"
    ballot.wait(WINDOW)
    assert ballot.last().votes == 3


@pytest.mark.parametrize(("after_ms", "outcome"), [(WINDOW - 1, "duplicate"), (WINDOW, "voted")])
@pytest.mark.parametrize("restart", [False, True])
def test_the_same_signal_opens_a_window_only_after_its_own_has_closed_by_time(
    after_ms: int, outcome: str, restart: bool
) -> None:
    """However early that one was decided."""
    ballot = Ballot(on_conflict="both")
    for called in LONG:
        ballot.post(called, 0.9)
    ballot.wait(20_000)
    assert len(ballot.decisions) == 1
    if restart:
        signal = Signal(PAIR, "long", "73", "73", 0.9)
        earlier = Earlier("", signal.digest(), T0, 1, T0)
        ballot.votes = Votes(ballot.rules, ballot.standing)
        ballot.votes.remember_counted(earlier, ballot.now_ms)
    again = ballot.post("73", 0.9, after_ms - 20_000)
    assert again.outcome == outcome
    assert ballot.votes.open_windows() == (outcome == "voted")


def test_a_repeat_is_one_account_s() -> None:
    ballot = Ballot()
    signal = Signal(PAIR, "long", "73", "73", 0.9)
    outcomes = [
        ballot.votes.add(Vote(number, T0, signal, signal.digest(), account)).outcome
        for number, account in enumerate(("fleet", "other", "fleet"), start=1)
    ]
    assert outcomes == ["voted", "voted", "duplicate"]


def test_a_repeat_of_a_repeat_is_counted_from_the_one_that_counted() -> None:
    ballot = Ballot(min_agreements=1, window_ms=1_000)
    outcomes = [ballot.post("73", 0.9, after_ms).outcome for after_ms in (0, 14_000, 1_000, 14_000)]
    assert outcomes == ["voted", "duplicate", "voted", "duplicate"]


# --- what earlier orders came to ----------------------------------------------------------------------


def next_one(ballot: Ballot, after_ms: int, called: str = "73") -> Decision:
    """What a window comes to that ends so long from now."""
    ballot.wait(after_ms - WINDOW)
    ballot.post(called, 0.9 + len(ballot.decisions) / 1000)
    ballot.wait(WINDOW)
    return ballot.last()


@pytest.mark.parametrize("state", ["accepted", "found", "lost"])
@pytest.mark.parametrize(("after_ms", "outcome"), [(299_999, "skip"), (300_000, "forward")])
def test_a_cool_down_starts_when_the_order_is_sent(
    state: State, after_ms: int, outcome: str
) -> None:
    """And not when it was decided, 20 s before."""
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    next_one(ballot, WINDOW)
    ballot.hear("queued")
    ballot.wait(20_000)
    ballot.hear(state)
    assert next_one(ballot, after_ms).outcome == outcome


def test_a_cool_down_names_its_rest() -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    next_one(ballot, WINDOW)
    ballot.hear("accepted")
    assert next_one(ballot, 90_000).reasons == ("cool-down for another 210.0 s",)
    ballot.post("73", 0.8, pair="ETH/USDT:USDT")
    ballot.wait(WINDOW)
    assert ballot.last().outcome == "forward"


def test_the_cool_down_of_a_found_order_starts_when_its_trade_opened() -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    next_one(ballot, WINDOW)
    words = found_words(7, ballot.now_ms + 9_000, added=False)
    ballot.wait(30_000)
    ballot.hear("found", answer=words, sent_ms=ballot.now_ms - 30_000)
    assert next_one(ballot, 278_999).outcome == "skip"
    ballot.wait(0)
    assert next_one(ballot, WINDOW).outcome == "forward"


@pytest.mark.parametrize("state", ["refused", "expired"])
def test_what_surely_opened_nothing_cools_nothing_down(state: State) -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    next_one(ballot, WINDOW)
    ballot.hear("queued", attempts=0)
    ballot.hear("sending")
    ballot.hear(state)
    assert next_one(ballot, WINDOW).outcome == "forward"


@pytest.mark.parametrize("cooldown_ms", [0, 300_000])
@pytest.mark.parametrize("state", ["sending", "unknown"])
def test_a_pair_is_held_on_both_sides_while_an_order_is_at_work(
    state: State, cooldown_ms: int
) -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=cooldown_ms)
    next_one(ballot, WINDOW)
    ballot.hear(state)
    assert ballot.standing.held(PAIR)
    assert not ballot.standing.held(PAIR, but_window=1)
    assert not ballot.standing.held("ETH/USDT:USDT")
    # However long it lasts.
    for called in ("73", "120"):
        held = next_one(ballot, 1_000_000, called)
        assert (held.outcome, held.passed) == ("skip", True)
        assert "order of window 1 (long)" in held.reasons[0]


def test_what_waits_to_be_sent_does_not_hold_a_newer_decision() -> None:
    """It is replaced by it: `Ledger.record`."""
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    next_one(ballot, WINDOW)
    ballot.hear("queued")
    assert ballot.standing.queued(PAIR, "long") == [1]
    assert next_one(ballot, WINDOW).outcome == "forward"


# --- conflicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_ms", "outcome"), [(WINDOW - 1, "skip"), (WINDOW, "forward")])
def test_windows_conflict_by_when_they_opened_to_the_millisecond(
    after_ms: int, outcome: str
) -> None:
    ballot = Ballot()
    for called in LONG:
        ballot.post(called, 0.9)
    # Decided before the short ones, and what is old is forgotten then.
    ballot.post("74", 0.9, after_ms, pair="ETH/USDT:USDT")
    for called in SHORT[:3]:
        ballot.post(called, 0.9)
    ballot.wait(WINDOW)
    assert [(d.pair[:3], d.side, d.outcome) for d in ballot.decisions] == [
        ("BTC", "long", "forward"),
        ("ETH", "long", "skip"),
        ("BTC", "short", outcome),
    ]


def test_an_early_decision_is_remembered_when_the_other_side_closes() -> None:
    ballot = Ballot()
    for called in LONG:
        ballot.post(called, 0.9)
    ballot.wait(0)
    ballot.wait(100)
    for called in SHORT[:3]:
        ballot.post(called, 0.9)
    assert [(d.side, d.outcome) for d in ballot.decisions] == [("long", "forward")]
    ballot.wait(WINDOW)
    assert (ballot.last().side, ballot.last().outcome, ballot.last().passed) == (
        "short",
        "skip",
        True,
    )
    assert ballot.last().reasons == (
        ("long was decided 60.1 s ago, and the two windows opened 0.1 s apart, within one window"),
    )


def test_an_early_decision_is_remembered_through_a_stand_still() -> None:
    ballot = Ballot(min_agreements=1, expire_ms=3_600_000)
    for called in LONG:
        ballot.post(called, 0.9)
    ballot.wait(0)
    # Closes first, and is decided first after it.
    ballot.post("74", 0.9, 50, pair="ETH/USDT:USDT")
    ballot.post("120", 0.9, 50)
    ballot.wait(10 * WINDOW)
    assert [(d.pair[:3], d.side, d.outcome) for d in ballot.decisions] == [
        ("BTC", "long", "forward"),
        ("ETH", "long", "forward"),
        ("BTC", "short", "skip"),
    ]


@pytest.mark.parametrize("late_ms", [0, 10 * WINDOW])
@pytest.mark.parametrize("set_ms", [0, -3_600_000])
def test_a_conflict_outlives_a_restart(late_ms: int, set_ms: int) -> None:
    """However long nobody was here, and when the clock was set back meanwhile."""
    rules = msgspec.structs.replace(RULES, expire_ms=3_600_000)
    ballot = Ballot(expire_ms=3_600_000)
    for called in LONG:
        ballot.post(called, 0.9)
    shorts = []
    ballot.wait(100)
    for called in SHORT[:3]:
        signal = Signal(PAIR, "short", called, called, 0.9)
        ballot.number += 1
        shorts.append(Vote(ballot.number, ballot.now_ms, signal, signal.digest()))
    (early,) = ballot.decisions
    restarted = Votes(rules, Standing(0))
    now_ms = ballot.now_ms + late_ms + set_ms
    assert early.opened_ms >= now_ms - passed.kept_ms(rules)
    restarted.remember(early, now_ms)
    # Of another pair, and decided since: what is old is not forgotten while it may matter.
    other = msgspec.structs.replace(early, window=99, pair="ETH/USDT:USDT", decided_ms=now_ms)
    restarted.remember(other, now_ms)
    restarted.restore(shorts, now_ms)
    (decision,) = restarted.due(now_ms + WINDOW)
    assert (early.outcome, decision.outcome) == ("forward", "skip")


@pytest.mark.parametrize(("after_ms", "windows"), [(WINDOW - 1, 1), (WINDOW, 2)])
def test_a_window_takes_votes_to_the_millisecond(after_ms: int, windows: int) -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.post("74", 0.9, after_ms)
    ballot.wait(WINDOW)
    assert len(ballot.decisions) == windows


@pytest.mark.parametrize(("late_ms", "outcome"), [(29_999, "forward"), (30_000, "skip")])
def test_a_window_is_too_late_to_the_millisecond(late_ms: int, outcome: str) -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.now_ms += WINDOW + late_ms
    ballot.wait(0)
    assert ballot.last().outcome == outcome


def test_no_bot_for_a_side() -> None:
    ballot = Ballot(min_agreements=1, bots=("long",))
    ballot.post("120", 0.9)
    ballot.wait(WINDOW)
    assert (ballot.last().outcome, ballot.last().reasons) == ("skip", ("no bot is set for short",))


def both_sides(**changes: Any) -> Ballot:
    ballot = Ballot(**changes)
    for long, short in zip(LONG[:3], SHORT[:3], strict=True):
        ballot.post(long, 0.8)
        ballot.post(short, 0.9, 1_000)
    return ballot


def test_neither_when_both_sides_are_decided_within_one_window() -> None:
    ballot = both_sides()
    ballot.wait(WINDOW)
    assert [(d.side, d.outcome) for d in ballot.decisions] == [("long", "skip"), ("short", "skip")]
    assert ballot.last().reasons == ("long and short are decided within one window",)


def test_both_when_the_setting_says_so() -> None:
    ballot = both_sides(on_conflict="both")
    ballot.wait(WINDOW)
    ballot.wait(WINDOW)
    assert [(d.side, d.outcome) for d in ballot.decisions] == [
        ("long", "forward"),
        ("short", "forward"),
    ]


def test_a_full_house_waits_for_the_other_side_when_neither_may_go() -> None:
    ballot = Ballot()
    ballot.post("120", 0.9)
    for called in LONG:
        ballot.post(called, 0.9)
    ballot.wait(1)
    assert ballot.decisions == []
    ballot.post("121", 0.9)
    ballot.post("122", 0.9)
    ballot.wait(WINDOW)
    assert {(d.side, d.outcome) for d in ballot.decisions} == {("long", "skip"), ("short", "skip")}


def test_the_other_side_shortly_after_a_forward_is_not_sent() -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.post("120", 0.5, 30_000)
    ballot.wait(30_000)
    assert [(d.side, d.outcome) for d in ballot.decisions] == [("long", "forward")]
    ballot.post("120", 0.95, 20_000)
    ballot.wait(10_000)
    assert ballot.last().reasons == (
        ("long was decided 30.0 s ago, and the two windows opened 30.0 s apart, within one window"),
    )
    ballot.post("121", 0.95, 40_000)
    ballot.wait(WINDOW)
    assert ballot.last().outcome == "forward"


def test_a_window_that_closed_too_long_ago_is_not_forwarded() -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.now_ms += WINDOW + 30_000
    ballot.wait(0)
    assert (ballot.last().outcome, ballot.last().reasons) == (
        "skip",
        ("expired: the window closed 30.0 s ago, while nobody was here",),
    )


@pytest.mark.parametrize("jump_ms", [-10_800_000, 10_800_000])
def test_a_jump_of_the_clock_while_stopped_keeps_windows_within_their_length(jump_ms: int) -> None:
    ballot = Ballot(min_agreements=1)
    signal = Signal(PAIR, "long", "73", "73", 0.9)
    restarted = Votes(msgspec.structs.replace(RULES, min_agreements=1), Standing(0))
    now_ms = T0 + jump_ms
    restarted.restore([Vote(1, T0, signal, signal.digest())], now_ms)
    closes_ms = restarted.next_due_ms()
    assert closes_ms is not None
    assert closes_ms <= now_ms + WINDOW
    (decision,) = restarted.due(now_ms + WINDOW)
    # Back: decided at the latest one window on. Ahead: too late, as far as anybody can tell.
    assert decision.outcome == ("forward" if jump_ms < 0 else "skip")
    assert ballot.decisions == []


# --- a full house ----------------------------------------------------------------------------------


def full_house(ballot: Ballot, house: tuple[str, ...] = LONG, every_ms: int = 0) -> None:
    for called in house:
        ballot.post(called, 0.9, every_ms)


@pytest.mark.parametrize(("after_ms", "decisions"), [(2_999, 0), (3_000, 1)])
@pytest.mark.parametrize("every_ms", [0, 500])
def test_a_full_house_waits_for_the_other_side_from_its_window_s_first_vote(
    after_ms: int, decisions: int, every_ms: int
) -> None:
    ballot = Ballot(early_grace_ms=3_000)
    full_house(ballot, every_ms=every_ms)
    ballot.wait(after_ms - 4 * every_ms)
    assert len(ballot.decisions) == decisions
    if not decisions:
        assert ballot.votes.next_due_ms() == ballot.now_ms + 1


def test_a_house_that_is_full_after_the_grace_is_decided_at_once() -> None:
    ballot = Ballot(early_grace_ms=3_000)
    full_house(ballot, every_ms=1_000)
    ballot.wait(0)
    assert ballot.last().outcome == "forward"


def test_the_other_side_s_first_vote_within_the_grace_keeps_it_until_the_window_s_end() -> None:
    ballot = Ballot(early_grace_ms=3_000)
    full_house(ballot)
    ballot.post("120", 0.9, 2_999)
    ballot.wait(WINDOW - 3_000)
    assert ballot.decisions == []
    ballot.wait(1)
    assert (ballot.last().side, ballot.last().outcome) == ("long", "forward")


@pytest.mark.parametrize(
    "changes",
    [
        {"early_grace_ms": 0},
        {"on_conflict": "both", "early_grace_ms": None},
        {"on_conflict": "both", "early_grace_ms": 3_000},
        {"electorate": Electorate.of(LONG, ()), "early_grace_ms": 3_000},
        {"electorate": Electorate.of(LONG, ()), "early_grace_ms": None},
    ],
    ids=str,
)
def test_a_full_house_that_waits_for_nobody_is_decided_at_once(changes: dict[str, Any]) -> None:
    ballot = Ballot(**changes)
    full_house(ballot)
    ballot.wait(0)
    assert ballot.last().outcome == "forward"


def test_without_a_grace_no_full_house_is_decided_early() -> None:
    ballot = Ballot(early_grace_ms=None)
    full_house(ballot)
    ballot.wait(WINDOW - 1)
    assert ballot.decisions == []
    ballot.wait(1)
    assert ballot.last().outcome == "forward"


def test_a_grace_is_no_longer_than_its_window() -> None:
    ballot = Ballot(early_grace_ms=2 * WINDOW)
    full_house(ballot)
    ballot.wait(WINDOW)
    assert len(ballot.decisions) == 1


# --- what passed ------------------------------------------------------------------------------------


def test_every_decision_that_passed_is_remembered_and_not_the_last_alone() -> None:
    """The short window conflicts with the first long one; a second opened a whole window after it."""
    ballot = Ballot()
    full_house(ballot)
    ballot.wait(100)
    for called in SHORT[:3]:
        ballot.post(called, 0.8)
    second = msgspec.structs.replace(ballot.last(), window=77, opened_ms=T0 + WINDOW + 100)
    ballot.votes.remember(second, T0 + 2 * WINDOW)
    ballot.wait(WINDOW)
    assert [(d.side, d.outcome) for d in ballot.decisions] == [
        ("long", "forward"),
        ("short", "skip"),
    ]
    assert "opened 0.1 s apart" in ballot.last().reasons[0]


def test_an_order_that_opened_nothing_conflicts_all_the_same() -> None:
    ballot = Ballot()
    full_house(ballot)
    ballot.wait(0)
    ballot.hear("sending")
    ballot.hear("refused")
    for called in SHORT[:3]:
        ballot.post(called, 0.9, 100)
    ballot.wait(WINDOW)
    assert (ballot.last().side, ballot.last().outcome) == ("short", "skip")


def test_a_decision_is_contested_by_a_later_one_of_the_other_side() -> None:
    ballot = Ballot()
    full_house(ballot)
    ballot.wait(0)
    assert ballot.votes.contested(PAIR, "long", 1) is None
    for called in SHORT[:3]:
        ballot.post(called, 0.9, 100)
    ballot.wait(WINDOW)
    short = ballot.last()
    assert ballot.votes.contested(PAIR, "long", 1) == "short was decided since"
    # Not the later one by the earlier, nor another pair's, nor what nobody knows.
    assert ballot.votes.contested(PAIR, "short", short.window) is None
    assert ballot.votes.contested("ETH/USDT:USDT", "long", 1) is None
    assert ballot.votes.contested(PAIR, "long", 99) is None


def test_nothing_is_contested_a_window_apart_nor_with_both() -> None:
    for changes, after_ms in (({}, WINDOW), ({"on_conflict": "both"}, 100)):
        ballot = Ballot(**changes)
        full_house(ballot)
        ballot.wait(after_ms)
        for called in SHORT[:3]:
            ballot.post(called, 0.9)
        ballot.wait(WINDOW)
        assert [d.outcome for d in ballot.decisions] == ["forward", "forward"]
        assert ballot.votes.contested(PAIR, "long", 1) is None


@pytest.mark.parametrize(("after_ms", "outcome"), [(WINDOW - 1, "skip"), (WINDOW, "forward")])
def test_a_trade_of_a_bot_s_is_a_decision_of_when_it_opened(after_ms: int, outcome: str) -> None:
    ballot = Ballot(min_agreements=1)
    ballot.votes.remember_trade(PAIR, "long", T0)
    ballot.post("120", 0.9, after_ms)
    ballot.wait(WINDOW)
    assert ballot.last().outcome == outcome


def test_a_trade_of_a_bot_s_cools_down_its_pair_and_side() -> None:
    standing = Standing(300_000)
    standing.merge_trade(PAIR, "long", T0, T0 + 1_000)
    standing.merge_trade(PAIR, "long", T0 - 5_000, T0 + 1_000)
    assert standing.against(PAIR, "short", T0 + 1_000) is None
    assert standing.against(PAIR, "long", T0 + 299_999) == "cool-down for another 0.0 s"
    assert standing.against(PAIR, "long", T0 + 300_000) is None
    standing.forget(T0 + 300_000)
    # Ahead of the clock: as of now.
    standing.merge_trade(PAIR, "long", T0 + 9_000_000, T0 + 300_000)
    assert standing.against(PAIR, "long", T0 + 599_999) is not None
    assert standing.against(PAIR, "long", T0 + 600_000) is None


# --- leverage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("posted", "sent", "reasons"),
    [(None, None, 1), (3.0, 3.0, 1), (20.0, 5.0, 2)],
)
def test_leverage_may_be_left_to_the_bot(
    posted: float | None, sent: float | None, reasons: int
) -> None:
    ballot = Ballot(min_agreements=1, default_leverage=None)
    ballot.post("73", 0.9, leverage=posted)
    ballot.wait(WINDOW)
    assert (ballot.last().leverage, len(ballot.last().reasons)) == (sent, reasons)
