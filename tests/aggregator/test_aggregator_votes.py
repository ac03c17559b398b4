"""Windows, quorum, conflicts and cool-downs: examples, and random histories against a plain model."""

import itertools
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from marketfeed.aggregator.signals import Electorate, Signal
from marketfeed.aggregator.votes import Counted, Decision, Rules, Vote, Votes, remembered_since

LONG = ("73", "74", "75", "79", "108")
SHORT = ("120", "121", "122", "123", "124")
PAIR = "BTC/USDT:USDT"
T0 = 1_795_000_000_000
WINDOW = 60_000

RULES = Rules(
    window_ms=WINDOW,
    min_agreements=3,
    min_confidence=0.7,
    on_conflict="neither",
    cooldown_ms=0,
    expire_ms=30_000,
    default_leverage=1.0,
    max_leverage=5.0,
    ordertypes=("market", "limit"),
    electorate=Electorate.of(LONG, SHORT, (("75", ("75a", "75b", "75c")),)),
)


class Ballot:
    """Votes with a clock and numbers of its own."""

    def __init__(self, **changes: Any) -> None:
        self.votes = Votes(msgspec.structs.replace(RULES, **changes))
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


def test_a_repeated_signal_counts_once_and_opens_no_second_window() -> None:
    ballot = Ballot(min_agreements=1)
    assert ballot.post("73", 0.9).outcome == "voted"
    assert ballot.post("73", 0.9, 10).outcome == "duplicate"
    ballot.wait(WINDOW)
    # A client that saw no answer posts it again, after the decision.
    repeated = ballot.post("73", 0.9, 1_000)
    assert (repeated.outcome, repeated.window) == ("duplicate", 1)
    assert ballot.votes.open_windows() == 0
    # Another signal, or the same one later, is a new one.
    assert ballot.post("73", 0.91).outcome == "voted"
    ballot.wait(2 * WINDOW)
    assert ballot.post("73", 0.9).outcome == "voted"


def test_cool_down() -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=300_000)
    ballot.post("73", 0.9)
    ballot.wait(WINDOW)
    ballot.post("73", 0.8, 30_000)
    ballot.post("73", 0.8, pair="ETH/USDT:USDT")
    ballot.wait(WINDOW)
    first, cooled, other = ballot.decisions
    assert (first.outcome, cooled.outcome, other.outcome) == ("forward", "skip", "forward")
    assert cooled.reasons == ("cool-down for another 210.0 s",)
    ballot.post("73", 0.85, 150_000)
    ballot.wait(WINDOW)
    assert ballot.last().outcome == "forward"


@pytest.mark.parametrize(("after_ms", "outcome"), [(WINDOW - 1, "skip"), (WINDOW, "forward")])
def test_a_cool_down_ends_to_the_millisecond(after_ms: int, outcome: str) -> None:
    ballot = Ballot(min_agreements=1, cooldown_ms=2 * WINDOW)
    ballot.post("73", 0.9)
    ballot.wait(WINDOW)
    ballot.post("73", 0.8, after_ms)
    ballot.wait(WINDOW)
    assert [d.outcome for d in ballot.decisions] == ["forward", outcome]


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
        (
            "long was decided and forwarded 60.1 s ago, and the two windows opened 0.1 s apart, "
            "within one window"
        ),
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
    restarted = Votes(rules)
    now_ms = ballot.now_ms + late_ms + set_ms
    assert early.decided_ms >= remembered_since(rules, shorts, now_ms)
    restarted.remember(early, [], now_ms)
    # Of another pair, and decided since: what is old is not forgotten while it may matter.
    other = msgspec.structs.replace(early, window=99, pair="ETH/USDT:USDT", decided_ms=now_ms)
    restarted.remember(other, [], now_ms)
    restarted.restore(shorts, now_ms)
    (decision,) = restarted.due(now_ms + WINDOW)
    assert (early.outcome, decision.outcome) == ("forward", "skip")


@pytest.mark.parametrize(("after_ms", "outcome"), [(WINDOW - 1, "duplicate"), (WINDOW, "voted")])
def test_a_repeat_is_one_for_a_window_after_the_decision(after_ms: int, outcome: str) -> None:
    ballot = Ballot(min_agreements=1)
    ballot.post("73", 0.9)
    ballot.wait(WINDOW)
    assert ballot.post("73", 0.9, after_ms).outcome == outcome


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
        (
            "long was decided and forwarded 30.0 s ago, and the two windows opened 30.0 s apart, "
            "within one window"
        ),
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
    restarted = Votes(msgspec.structs.replace(RULES, min_agreements=1))
    now_ms = T0 + jump_ms
    restarted.restore([Vote(1, T0, signal, signal.digest())], now_ms)
    closes_ms = restarted.next_close_ms()
    assert closes_ms is not None
    assert closes_ms <= now_ms + WINDOW
    (decision,) = restarted.due(now_ms + WINDOW)
    # Back: decided at the latest one window on. Ahead: too late, as far as anybody can tell.
    assert decision.outcome == ("forward" if jump_ms < 0 else "skip")
    assert ballot.decisions == []


# --- random histories against a plain model ---------------------------------------------------------


class PlainVote(NamedTuple):
    number: int
    at: int
    feeder: str
    confidence: float
    window: int


class PlainDecision(NamedTuple):
    window: int
    pair: str
    side: str
    opened: int
    at: int
    goes: bool
    passed: bool
    tag: str


class Plain:
    """The rules once more, as slowly and plainly as can be: everything is looked up in lists."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.votes: dict[tuple[str, str], list[PlainVote]] = {}
        self.decided: list[PlainDecision] = []

    def add(self, number: int, at: int, pair: str, feeder: str, confidence: float) -> str:
        side = "long" if feeder in LONG else "short"
        history = self.votes.setdefault((pair, side), [])
        window = self.window(pair, side)
        for old in history:
            same = (old.feeder, old.confidence) == (feeder, confidence)
            until = next((d.at + WINDOW for d in self.decided if d.window == old.window), None)
            if same and (
                old.window == window or (window is None and until is not None and at < until)
            ):
                return "duplicate"
        history.append(PlainVote(number, at, feeder, confidence, window or number))
        return "voted"

    def window(self, pair: str, side: str) -> int | None:
        closed = {decision.window for decision in self.decided}
        found = [v.window for v in self.votes.get((pair, side), []) if v.window not in closed]
        return found[0] if found else None

    def latest(self, pair: str, side: str) -> list[PlainVote]:
        window = self.window(pair, side)
        by_feeder = {
            vote.feeder: vote
            for vote in self.votes.get((pair, side), [])
            if vote.window == window and window is not None
        }
        return list(by_feeder.values())

    def closes(self, pair: str, side: str) -> int:
        window = self.window(pair, side)
        first = next(v for v in self.votes[pair, side] if v.window == window)
        return first.at + WINDOW

    def passes(self, pair: str, side: str, now: int) -> bool:
        found = self.latest(pair, side)
        return (
            len(found) >= self.rules.min_agreements
            and round(sum(v.confidence for v in found) / len(found), 6) >= self.rules.min_confidence
            and now - self.closes(pair, side) < self.rules.expire_ms
        )

    def due(self, now: int) -> list[PlainDecision]:
        before = len(self.decided)
        while ready := sorted(
            (self.closes(pair, side), self.window(pair, side), pair, side)
            for pair, side in self.votes
            if self.window(pair, side) is not None and self.is_due(pair, side, now)
        ):
            _, _, pair, side = ready[0]
            self.decide(pair, side, now)
        return self.decided[before:]

    def is_due(self, pair: str, side: str, now: int) -> bool:
        other = "short" if side == "long" else "long"
        full = len(self.latest(pair, side)) == 5
        contested = self.window(pair, other) is not None and self.rules.on_conflict == "neither"
        return now >= self.closes(pair, side) or (full and not contested)

    def decide(self, pair: str, side: str, now: int) -> None:
        other = "short" if side == "long" else "long"
        passed = self.passes(pair, side, now)
        opened = self.closes(pair, side) - WINDOW
        goes = passed
        together = [side]
        if passed and self.rules.on_conflict == "neither":
            if self.window(pair, other) is not None and self.passes(pair, other, now):
                goes, together = False, [side, other]
            elif any(
                d.passed and (d.pair, d.side) == (pair, other) and abs(opened - d.opened) < WINDOW
                for d in self.decided
            ):
                goes = False
        if any(
            d.goes and (d.pair, d.side) == (pair, side) and now - d.at < self.rules.cooldown_ms
            for d in self.decided
        ):
            goes = False
        for one in together:
            found = self.latest(pair, one)
            best = max(found, key=lambda vote: (vote.confidence, -vote.number))
            average = round(sum(v.confidence for v in found) / len(found), 6)
            tag = f"{one} ensemble {len(found)}/5 conf={average:.2f} from={best.feeder}"
            window = self.window(pair, one)
            assert window is not None
            opened = self.closes(pair, one) - WINDOW
            self.decided.append(PlainDecision(window, pair, one, opened, now, goes, passed, tag))


PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


class History(RuleBasedStateMachine):
    """Votes, waiting and restarts in any order: the same decisions as the plain model's."""

    @initialize(
        quorum=st.sampled_from([1, 2, 3]),
        conflict=st.sampled_from(["both", "neither"]),
        cooldown_ms=st.sampled_from([0, 60_000, 120_000]),
        expire_ms=st.sampled_from([30_000, 3_600_000]),
    )
    def start(self, quorum: int, conflict: Any, cooldown_ms: int, expire_ms: int) -> None:
        self.rules = msgspec.structs.replace(
            RULES,
            min_agreements=quorum,
            on_conflict=conflict,
            cooldown_ms=cooldown_ms,
            expire_ms=expire_ms,
        )
        self.votes, self.plain = Votes(self.rules), Plain(self.rules)
        self.now, self.number = T0, 0
        self.stored: list[tuple[Vote, int]] = []
        self.decisions: list[Decision] = []

    @rule(
        feeder=st.sampled_from(LONG + SHORT),
        pair=st.sampled_from(PAIRS),
        confidence=st.sampled_from([0.5, 0.7, 0.72, 0.85, 0.9]),
        after_ms=st.sampled_from([0, 1, 900, 20_000]),
    )
    def vote(self, feeder: str, pair: str, confidence: float, after_ms: int) -> None:
        self.pass_time(after_ms)
        self.number += 1
        side = self.rules.electorate.side_of[feeder]
        signal = Signal(pair, side, feeder, feeder, confidence)
        vote = Vote(self.number, self.now, signal, signal.digest())
        counted = self.votes.add(vote)
        assert counted.outcome == self.plain.add(self.number, self.now, pair, feeder, confidence)
        if counted.outcome == "voted":
            self.stored.append((vote, counted.window))
            assert counted.votes == len(self.plain.latest(pair, side))

    @rule(
        house=st.sampled_from([LONG, SHORT]),
        pair=st.sampled_from(PAIRS),
        confidence=st.sampled_from([0.7, 0.9]),
    )
    def full_house(self, house: tuple[str, ...], pair: str, confidence: float) -> None:
        for feeder in house:
            self.vote(feeder, pair, confidence, 0)

    @rule(ms=st.sampled_from([1, 999, 30_000, 59_999, 60_000, 95_000, 300_000]))
    def pass_time(self, ms: int) -> None:
        self.now += ms
        made = self.votes.due(self.now)
        self.decisions += made
        assert [
            PlainDecision(
                d.window,
                d.pair,
                d.side,
                d.opened_ms,
                d.decided_ms,
                d.outcome == "forward",
                d.passed,
                d.tag,
            )
            for d in made
        ] == self.plain.due(self.now)
        assert all(decision.reasons for decision in made)

    @rule()
    def restart(self) -> None:
        """What a ledger would give back after a crash."""
        self.votes = Votes(self.rules)
        decided = {decision.window for decision in self.decisions}
        open_votes = [vote for vote, window in self.stored if window not in decided]
        since = remembered_since(self.rules, open_votes, self.now)
        for decision in self.decisions:
            if decision.decided_ms >= since:
                digests = [
                    (vote.signal.feeder, vote.digest)
                    for vote, window in self.stored
                    if window == decision.window
                ]
                self.votes.remember(decision, digests, self.now)
        self.votes.restore(open_votes, self.now)

    @invariant()
    def no_window_is_decided_twice(self) -> None:
        if hasattr(self, "decisions"):
            windows = [decision.window for decision in self.decisions]
            assert len(windows) == len(set(windows))

    @invariant()
    def neither_never_sends_both_sides_of_a_pair_within_one_window(self) -> None:
        if not hasattr(self, "decisions") or self.rules.on_conflict != "neither":
            return
        sent = [d for d in self.decisions if d.outcome == "forward"]
        for d, other in itertools.combinations(sent, 2):
            if d.pair == other.pair and d.side != other.side:
                assert abs(d.opened_ms - other.opened_ms) >= WINDOW

    @rule(late_ms=st.sampled_from([30_000, 59_999, 300_000]))
    def restart_late(self, late_ms: int) -> None:
        """Nobody was here meanwhile: nothing was decided."""
        self.now += late_ms
        self.restart()


History.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestHistory = History.TestCase
