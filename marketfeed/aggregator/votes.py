"""Windows, quorum and decisions: signals in, decisions out. Pure; `now_ms` is passed in and never goes back.

A window opens with the first signal of (pair, side) and closes `window_ms` later, or as soon as every
feeder of the side has voted. The latest vote of a feeder counts, once. What passes quorum and confidence
is forwarded, unless a rule decides otherwise; every decision carries its reasons.

Times are ms since the epoch, by a clock that the monotonic one drives.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from marketfeed.aggregator.signals import SIDES, Electorate, Side, Signal

PURE = True

Outcome = Literal["voted", "duplicate"]
FORWARD: Final = "forward"
SKIP: Final = "skip"

OTHER: Final[Mapping[Side, Side]] = {"long": "short", "short": "long"}


class Rules(msgspec.Struct, frozen=True):
    """How is decided. Confidences are from 0 to 1; the order types, the preferred one first."""

    window_ms: int
    min_agreements: int
    min_confidence: float
    on_conflict: Literal["both", "neither"]
    cooldown_ms: int
    expire_ms: int
    default_leverage: float
    max_leverage: float
    ordertypes: tuple[str, ...]
    electorate: Electorate
    bots: tuple[Side, ...] = SIDES
    """The sides that have a bot."""


class Vote(msgspec.Struct, frozen=True):
    """A signal as it was received: its number, rising with every one, and when (ms)."""

    number: int
    received_ms: int
    signal: Signal
    digest: bytes
    """What distinguishes the signal from another of the same feeder: the same digest is the same signal."""


class Decision(msgspec.Struct, frozen=True):
    """What a window came to. `window` is the number of its first vote.

    `primary` is the feeder with the highest confidence, as it called itself. Forwarded until
    `expires_ms`, with `tag`, `leverage`, `ordertype` and, of a limit order, `price`.
    """

    window: int
    pair: str
    side: Side
    opened_ms: int
    decided_ms: int
    expires_ms: int
    outcome: Literal["forward", "skip"]
    passed: bool
    """Whether quorum and confidence were there, forwarded or not: what a conflict is measured by."""
    reasons: tuple[str, ...]
    votes: int
    electorate_size: int
    confidence: float
    primary: str
    feeders: tuple[str, ...]
    tag: str
    leverage: float
    ordertype: str
    price: float | None


class Counted(msgspec.Struct, frozen=True):
    """What became of a vote: counted in `window` or a duplicate of one there; votes so far, of how many."""

    outcome: Outcome
    window: int
    votes: int
    electorate_size: int
    closes_ms: int


class _Window:
    """The votes of one (pair, side), the latest of each feeder."""

    __slots__ = ("closes_ms", "number", "opened_ms", "pair", "seen", "side", "votes")

    def __init__(self, vote: Vote, closes_ms: int) -> None:
        self.number = vote.number
        self.pair = vote.signal.pair
        self.side: Side = vote.signal.side
        self.opened_ms = vote.received_ms
        self.closes_ms = closes_ms
        self.votes: dict[str, Vote] = {}
        self.seen: set[tuple[str, bytes]] = set()

    def confidence(self) -> float:
        """The average, rounded so that three times 0.7 is not below 0.7."""
        found = [vote.signal.confidence for vote in self.votes.values()]
        return round(math.fsum(found) / len(found), 6)

    def primary(self) -> Vote:
        """The vote with the highest confidence; of equal ones the earliest."""
        return min(self.votes.values(), key=lambda vote: (-vote.signal.confidence, vote.number))


Key = tuple[str, Side]


class _Passed(NamedTuple):
    """What conflicts are measured by: the last decision of a (pair, side) that passed."""

    opened_ms: int
    decided_ms: int
    forwarded: bool


def remembered_since(rules: Rules, undecided: Iterable[Vote], now_ms: int) -> int:
    """From when on stored decisions matter (by `decided_ms`), at a start with these undecided votes.

    A decision that conflicts with an open window opened less than a window before it, however long ago:
    it may have been decided then at the earliest.
    """
    oldest_ms = min((vote.received_ms for vote in undecided), default=now_ms)
    kept_ms = max(2 * rules.window_ms, rules.cooldown_ms)
    return min(now_ms - kept_ms, oldest_ms - rules.window_ms)


class Votes:
    """All open windows, and what is remembered of the decided ones. Not thread-safe.

    Whoever drives it passes times that do not go back, and calls `due` before every `add`.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._open: dict[Key, _Window] = {}
        self._forwarded_ms: dict[Key, int] = {}
        self._passed: dict[Key, _Passed] = {}
        self._recent: dict[tuple[Key, str, bytes], tuple[int, int]] = {}
        self._held = (0, "")
        self._sizes: dict[Side, int] = {
            side: rules.electorate.size(side) for side in ("long", "short")
        }

    # --- signals in ---------------------------------------------------------------------------------

    def add(self, vote: Vote) -> Counted:
        """Count a vote. Windows that are due at its time must have been decided before."""
        signal = vote.signal
        key: Key = (signal.pair, signal.side)
        window = self._open.get(key)
        if window is None:
            repeated = self._recent.get((key, signal.feeder, vote.digest))
            if repeated is not None and vote.received_ms < repeated[1]:
                return Counted("duplicate", repeated[0], 0, self._sizes[signal.side], 0)
            window = _Window(vote, vote.received_ms + self._rules.window_ms)
            self._open[key] = window
        outcome: Outcome = "voted"
        if (signal.feeder, vote.digest) in window.seen:
            outcome = "duplicate"
        else:
            window.seen.add((signal.feeder, vote.digest))
            window.votes[signal.feeder] = vote
        return self._counted(window, outcome)

    def restore(self, votes: Iterable[Vote], now_ms: int) -> None:
        """Count votes that were stored and not decided, at a start, in their order.

        A window never stays open for longer than its length from now on, whatever the wall clock did
        while nobody was looking.
        """
        for vote in votes:
            key: Key = (vote.signal.pair, vote.signal.side)
            if key not in self._open:
                closes_ms = min(vote.received_ms, now_ms) + self._rules.window_ms
                self._open[key] = _Window(vote, closes_ms)
            window = self._open[key]
            window.seen.add((vote.signal.feeder, vote.digest))
            window.votes[vote.signal.feeder] = vote

    def remember(
        self, decision: Decision, digests: Iterable[tuple[str, bytes]], now_ms: int
    ) -> None:
        """Take over a decision that was stored, at a start: cool-down, conflicts, repeats.

        Times ahead of the clock count as now, as in `restore`.
        """
        opened_ms, at_ms = min(decision.opened_ms, now_ms), min(decision.decided_ms, now_ms)
        self._note(decision, opened_ms, at_ms, digests)

    def hold(self, until_ms: int, why: str) -> None:
        """Forward nothing until then: what was forwarded before is not known, so every cool-down may run."""
        self._held = (until_ms, why)

    # --- decisions out ------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[Decision]:
        """Decide what is due: windows that have closed, oldest first, and those in which all have voted."""
        decisions: list[Decision] = []
        while True:
            ready = [window for window in self._open.values() if self._is_due(window, now_ms)]
            if not ready:
                return decisions
            window = min(ready, key=lambda item: (item.closes_ms, item.number))
            decisions.extend(self._decide(window, now_ms))

    def next_close_ms(self) -> int | None:
        """When the next window closes, or None."""
        return min((window.closes_ms for window in self._open.values()), default=None)

    def open_windows(self) -> int:
        """How many windows are open."""
        return len(self._open)

    # --- inside -------------------------------------------------------------------------------------

    def _counted(self, window: _Window, outcome: Outcome) -> Counted:
        of = self._sizes[window.side]
        return Counted(outcome, window.number, len(window.votes), of, window.closes_ms)

    def _is_due(self, window: _Window, now_ms: int) -> bool:
        if now_ms >= window.closes_ms:
            return True
        if len(window.votes) < self._sizes[window.side]:
            return False
        # With the other side's votes coming in, it is not known before the end whether both are decided.
        contested = (window.pair, OTHER[window.side]) in self._open
        return not (contested and self._rules.on_conflict == "neither")

    def _decide(self, window: _Window, now_ms: int) -> list[Decision]:
        key: Key = (window.pair, window.side)
        against = self._failures(window, now_ms)
        passed = not against
        opposite = self._open.get((window.pair, OTHER[window.side]))
        both: list[_Window] = [window]
        if passed and self._rules.on_conflict == "neither":
            if opposite is not None and not self._failures(opposite, now_ms):
                against = [f"{window.side} and {opposite.side} are decided within one window"]
                both.append(opposite)
            elif (words := self._decided_before(window, now_ms)) is not None:
                against = [words]
        if passed:
            until_ms = self._forwarded_ms.get(key, now_ms) + self._rules.cooldown_ms
            if not against and key in self._forwarded_ms and now_ms < until_ms:
                against = [f"cool-down for another {(until_ms - now_ms) / 1000:.1f} s"]
            elif not against and now_ms < self._held[0]:
                left_s = (self._held[0] - now_ms) / 1000
                against = [f"{self._held[1]}: cool-down of all for another {left_s:.1f} s"]
            elif not against and window.side not in self._rules.bots:
                against = [f"no bot is set for {window.side}"]
        decisions = []
        for item in both:
            decision = self._decision(item, now_ms, against, passed=passed)
            del self._open[item.pair, item.side]
            self._note(decision, self._began_ms(item), now_ms, item.seen)
            decisions.append(decision)
        self._forget(now_ms)
        return decisions

    def _began_ms(self, window: _Window) -> int:
        """When it opened by the clock of this start: what was received ahead of it counts as its start."""
        return window.closes_ms - self._rules.window_ms

    def _failures(self, window: _Window, now_ms: int) -> list[str]:
        """What keeps a window's votes from passing, as they stand."""
        rules = self._rules
        late_ms = now_ms - window.closes_ms
        found = []
        if late_ms >= rules.expire_ms:
            found.append(
                f"expired: the window closed {late_ms / 1000:.1f} s ago, while nobody was here"
            )
        if len(window.votes) < rules.min_agreements:
            of = self._sizes[window.side]
            found.append(f"{len(window.votes)} of {of} votes, {rules.min_agreements} needed")
        if (confidence := window.confidence()) < rules.min_confidence:
            found.append(f"confidence {confidence:.4f}, {rules.min_confidence:g} needed")
        return found

    def _decided_before(self, window: _Window, now_ms: int) -> str | None:
        """The words for it when a window of the other side passed that opened less than one window apart."""
        other: Key = (window.pair, OTHER[window.side])
        passed = self._passed.get(other)
        if passed is None:
            return None
        apart_ms = abs(self._began_ms(window) - passed.opened_ms)
        if apart_ms >= self._rules.window_ms:
            return None
        age_s = (now_ms - passed.decided_ms) / 1000
        gone = " and forwarded" if passed.forwarded else ""
        return (
            f"{other[1]} was decided{gone} {age_s:.1f} s ago, and the two windows opened "
            f"{apart_ms / 1000:.1f} s apart, within one window"
        )

    def _decision(
        self, window: _Window, now_ms: int, against: list[str], *, passed: bool
    ) -> Decision:
        rules = self._rules
        k, n = len(window.votes), self._sizes[window.side]
        primary = window.primary()
        signal = primary.signal
        confidence = window.confidence()
        reasons = list(against) or [f"{k} of {n} votes, confidence {confidence:.4f}"]
        leverage = rules.default_leverage if signal.leverage is None else signal.leverage
        if leverage > rules.max_leverage:
            reasons.append(
                f"leverage {leverage:g} of {signal.posted_as} capped to {rules.max_leverage:g}"
            )
            leverage = rules.max_leverage
        ordertype = signal.ordertype or rules.ordertypes[0]
        if ordertype not in rules.ordertypes:
            reasons.append(f"order type {ordertype} of {signal.posted_as} is not allowed")
            ordertype = rules.ordertypes[0]
        return Decision(
            window=window.number,
            pair=window.pair,
            side=window.side,
            opened_ms=window.opened_ms,
            decided_ms=now_ms,
            expires_ms=min(now_ms, window.closes_ms) + rules.expire_ms,
            outcome="skip" if against else "forward",
            passed=passed,
            reasons=tuple(reasons),
            votes=k,
            electorate_size=n,
            confidence=confidence,
            primary=signal.posted_as,
            feeders=tuple(sorted(window.votes)),
            tag=f"{window.side} ensemble {k}/{n} conf={confidence:.2f} from={signal.posted_as}",
            leverage=leverage,
            ordertype=ordertype,
            price=signal.price if ordertype == "limit" else None,
        )

    def _note(
        self, decision: Decision, opened_ms: int, at_ms: int, digests: Iterable[tuple[str, bytes]]
    ) -> None:
        key: Key = (decision.pair, decision.side)
        if decision.outcome == FORWARD:
            self._forwarded_ms[key] = at_ms
        if decision.passed:
            self._passed[key] = _Passed(opened_ms, at_ms, decision.outcome == FORWARD)
        # A client that repeats a POST after the window has been decided must not open another one.
        until_ms = at_ms + self._rules.window_ms
        for feeder, digest in digests:
            self._recent[key, feeder, digest] = (decision.window, until_ms)

    def _forget(self, now_ms: int) -> None:
        # What no rule looks at any more: pairs are whatever feeders name.
        cooldown_ms, passed_ms = self._rules.cooldown_ms, 2 * self._rules.window_ms
        for key in [k for k, at_ms in self._forwarded_ms.items() if now_ms - at_ms > cooldown_ms]:
            del self._forwarded_ms[key]
        for key in [
            k for k, passed in self._passed.items() if now_ms - passed.opened_ms >= passed_ms
        ]:
            # A window of the other side that is decided late may still conflict with it.
            if (key[0], OTHER[key[1]]) not in self._open:
                del self._passed[key]
        for name in [name for name, (_, until_ms) in self._recent.items() if until_ms <= now_ms]:
            del self._recent[name]
