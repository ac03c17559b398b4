"""Random histories of voting and of what orders come to, against a plain model of the rules."""

import itertools
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from voting import LONG, RULES, SHORT, T0, WINDOW, forward_of, hundredths, mean_of

from marketfeed.aggregator import passed, repeats
from marketfeed.aggregator.ballots import Decision, Rules, Vote
from marketfeed.aggregator.ledger_tables import STEPS, Forward, State, found_words
from marketfeed.aggregator.repeats import Earlier
from marketfeed.aggregator.signals import Signal
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.votes import Votes


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


class PlainOrder:
    """What a decision that went has come to: all its states, and when it was sent, or its trade opened."""

    def __init__(self, decision: PlainDecision) -> None:
        self.decision = decision
        self.states: list[str] = ["queued"]
        self.sent = 0
        self.from_ms = 0


class Plain:
    """The rules once more, as slowly and plainly as can be: everything is looked up in lists."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.votes: dict[tuple[str, str], list[PlainVote]] = {}
        self.decided: list[PlainDecision] = []
        self.orders: dict[int, PlainOrder] = {}

    def add(self, number: int, at: int, pair: str, feeder: str, confidence: float) -> str:
        side = "long" if feeder in LONG else "short"
        history = self.votes.setdefault((pair, side), [])
        window = self.window(pair, side)
        same = [old for old in history if (old.feeder, old.confidence) == (feeder, confidence)]
        if same and at - same[-1].at < 15_000:
            return "duplicate"
        if same and window is None and at - self.opened(pair, side, same[-1].window) < WINDOW:
            return "duplicate"
        history.append(PlainVote(number, at, feeder, confidence, window or number))
        return "voted"

    def opened(self, pair: str, side: str, window: int) -> int:
        return next(vote.at for vote in self.votes[pair, side] if vote.window == window)

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
        assert window is not None
        return self.opened(pair, side, window) + WINDOW

    def passes(self, pair: str, side: str, now: int) -> bool:
        found = self.latest(pair, side)
        return (
            len(found) >= self.rules.min_agreements
            and mean_of(v.confidence for v in found) >= Fraction(repr(self.rules.min_confidence))
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
        if now >= self.closes(pair, side):
            return True
        if len(self.latest(pair, side)) < 5:
            return False
        if self.rules.on_conflict == "both":
            return True
        other = "short" if side == "long" else "long"
        grace = self.rules.early_grace_ms
        return (
            self.window(pair, other) is None
            and grace is not None
            and now - (self.closes(pair, side) - WINDOW) >= grace
        )

    def free(self, pair: str, side: str, now: int) -> bool:
        """Whether no earlier order of the pair stands in the way."""
        for order in self.orders.values():
            decision, state = order.decision, order.states[-1]
            if decision.pair != pair:
                continue
            if state in ("sending", "unknown"):
                return False
            cools = state in ("accepted", "found", "lost")
            if cools and decision.side == side and now - order.from_ms < self.rules.cooldown_ms:
                return False
        return True

    def decide(self, pair: str, side: str, now: int) -> None:
        other = "short" if side == "long" else "long"
        passes = self.passes(pair, side, now)
        opened = self.closes(pair, side) - WINDOW
        goes = passes and self.free(pair, side, now)
        together = [side]
        if passes and self.rules.on_conflict == "neither":
            if self.window(pair, other) is not None and self.passes(pair, other, now):
                goes, together = False, [side, other]
            elif any(
                d.passed and (d.pair, d.side) == (pair, other) and abs(opened - d.opened) < WINDOW
                for d in self.decided
            ):
                goes = False
        for one in together:
            found = self.latest(pair, one)
            best = max(found, key=lambda vote: (vote.confidence, -vote.number))
            average = mean_of(v.confidence for v in found)
            tag = f"{one} ensemble {len(found)}/5 conf={hundredths(average)} from={best.feeder}"
            window = self.window(pair, one)
            assert window is not None
            opened = self.closes(pair, one) - WINDOW
            decision = PlainDecision(window, pair, one, opened, now, goes, passes, tag)
            self.decided.append(decision)
            if goes:
                for order in self.orders.values():
                    old = order.decision
                    if (old.pair, old.side, order.states[-1]) == (pair, one, "queued"):
                        order.states.append("expired")
                self.orders[window] = PlainOrder(decision)

    def contested(self, window: int) -> bool:
        own = next(d for d in self.decided if d.window == window)
        return self.rules.on_conflict == "neither" and any(
            d.passed
            and d.pair == own.pair
            and d.side != own.side
            and d.window > own.window
            and d.opened - own.opened < WINDOW
            for d in self.decided
        )


PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


class History(RuleBasedStateMachine):
    """Votes, waiting, answers of bots and restarts in any order: the same decisions as the plain model's."""

    @initialize(
        quorum=st.sampled_from([1, 2, 3]),
        conflict=st.sampled_from(["both", "neither"]),
        cooldown_ms=st.sampled_from([0, 60_000, 120_000]),
        expire_ms=st.sampled_from([30_000, 3_600_000]),
        grace_ms=st.sampled_from([0, 3_000, None]),
    )
    def start(
        self, quorum: int, conflict: Any, cooldown_ms: int, expire_ms: int, grace_ms: int | None
    ) -> None:
        self.rules = msgspec.structs.replace(
            RULES,
            min_agreements=quorum,
            on_conflict=conflict,
            cooldown_ms=cooldown_ms,
            expire_ms=expire_ms,
            early_grace_ms=grace_ms,
        )
        self.standing = Standing(cooldown_ms)
        self.votes, self.plain = Votes(self.rules, self.standing), Plain(self.rules)
        self.now, self.number = T0, 0
        self.stored: list[tuple[Vote, int]] = []
        self.decisions: list[Decision] = []
        self.forwards: dict[int, Forward] = {}

    @rule(
        feeder=st.sampled_from(LONG + SHORT),
        pair=st.sampled_from(PAIRS),
        confidence=st.sampled_from([0.5, 0.7, 0.72, 0.85, 0.9]),
        after_ms=st.sampled_from([0, 1, 900, 14_999, 20_000]),
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

    @rule(ms=st.sampled_from([1, 999, 2_999, 30_000, 59_999, 60_000, 95_000, 300_000]))
    def pass_time(self, ms: int) -> None:
        self.now += ms
        next_ms = self.votes.next_due_ms()
        made = self.votes.due(self.now)
        # It may be earlier than it has to be; the plain model says what is due.
        assert not made or (next_ms is not None and next_ms <= self.now)
        next_ms = self.votes.next_due_ms()
        assert next_ms is None or next_ms > self.now
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
        for decision in made:
            if decision.outcome == "forward":
                # As `Ledger.record` does.
                for older in self.standing.queued(decision.pair, decision.side):
                    self.hear(older, "expired")
                self.forwards[decision.window] = forward_of(decision)
                self.standing.heard(self.forwards[decision.window], self.now)

    def hear(self, window: int, state: State, answer: str = "") -> None:
        old = self.forwards[window]
        sent_ms = {"sending": self.now, "queued": None, "expired": None}.get(state, old.sent_ms)
        self.forwards[window] = msgspec.structs.replace(
            old,
            state=state,
            changed_ms=self.now,
            sent_ms=sent_ms,
            attempts=old.attempts + (state == "sending"),
            answer=answer,
        )
        self.standing.heard(self.forwards[window], self.now)

    @precondition(lambda self: self.plain_open())
    @rule(data=st.data(), late_ms=st.sampled_from([0, 2_000]))
    def bot_answers(self, data: st.DataObject, late_ms: int) -> None:
        order = data.draw(st.sampled_from(self.plain_open()), "order")
        before = order.states[-1]
        steps = [state for state, origins in STEPS.items() if before in origins]
        state = data.draw(st.sampled_from(steps), "step")
        order.states.append(state)
        words = ""
        if state == "sending":
            order.sent = self.now
        order.from_ms = order.sent
        if state == "found":
            order.from_ms = min(order.sent + late_ms, self.now)
            words = found_words(1, order.from_ms, added=False)
        before_it = self.forwards[order.decision.window]
        self.hear(order.decision.window, state, words)
        # News that come late change nothing.
        self.standing.heard(before_it, self.now)

    def plain_open(self) -> list[PlainOrder]:
        if not hasattr(self, "plain"):
            return []
        return [
            order
            for order in self.plain.orders.values()
            if order.states[-1] in ("queued", "sending", "unknown", "lost")
        ]

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """What a ledger would give back after a crash."""
        cooled_ms = self.now - self.rules.cooldown_ms
        kept = [
            forward
            for forward in self.forwards.values()
            if forward.state in ("queued", "sending", "unknown")
            or (forward.state in ("accepted", "found", "lost") and forward.changed_ms >= cooled_ms)
        ]
        kept = data.draw(st.permutations(kept), "forwards")
        self.standing = Standing.of(kept, self.rules.cooldown_ms, self.now)
        self.votes = Votes(self.rules, self.standing)
        decided = {decision.window for decision in self.decisions}
        open_votes = [vote for vote, window in self.stored if window not in decided]
        for decision in self.decisions:
            opened_after = self.now - passed.kept_ms(self.rules)
            if decision.passed and decision.opened_ms >= opened_after:
                self.votes.remember(decision, self.now)
        opened = {window: vote.received_ms for vote, window in reversed(self.stored)}
        for vote, window in self.stored:
            if vote.received_ms >= self.now - repeats.kept_ms(self.rules):
                earlier = Earlier("", vote.digest, vote.received_ms, window, opened[window])
                self.votes.remember_counted(earlier, self.now)
        self.votes.restore(open_votes, self.now)

    @rule(data=st.data(), late_ms=st.sampled_from([30_000, 59_999, 300_000]))
    def restart_late(self, data: st.DataObject, late_ms: int) -> None:
        """Nobody was here meanwhile: nothing was decided."""
        self.now += late_ms
        self.restart(data)

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

    @invariant()
    def what_waits_knows_whether_the_other_side_was_decided_since(self) -> None:
        if not hasattr(self, "plain"):
            return
        for window, order in self.plain.orders.items():
            # As long as it may be sent: its expiry twice.
            decision = order.decision
            if (
                order.states[-1] == "queued"
                and self.now < decision.opened + WINDOW + 2 * self.rules.expire_ms
            ):
                forward = self.forwards[window]
                words = self.votes.contested(forward.pair, forward.side, window)
                assert (words is not None) == self.plain.contested(window)


History.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestHistory = History.TestCase
