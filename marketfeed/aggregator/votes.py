"""Windows, quorum and decisions: signals in, decisions out. Pure; `now_ms` is passed in and never goes back.

A window opens with the first signal of (pair, side) and closes `window_ms` later, or as soon as every
feeder of the side has voted. The latest vote of a feeder counts, once. What passes quorum and confidence
is forwarded, unless a rule decides otherwise; every decision carries its reasons.

Times are ms since the epoch, by a clock that the monotonic one drives.
"""

import math
from collections.abc import Iterable

from marketfeed.aggregator.ballots import (
    OTHER,
    Counted,
    Decision,
    Key,
    Outcome,
    Rules,
    Vote,
)
from marketfeed.aggregator.passed import Passed
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.standing import Standing

PURE = True


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


class Votes:
    """All open windows, and what is remembered of the decided ones. Not thread-safe.

    Whoever drives it passes times that do not go back, and calls `due` before every `add`.
    """

    def __init__(self, rules: Rules, standing: Standing | None = None) -> None:
        self._rules = rules
        self._standing = Standing(rules.cooldown_ms) if standing is None else standing
        self._open: dict[Key, _Window] = {}
        self._passed = Passed(rules)
        self._recent: dict[tuple[Key, str, bytes], tuple[int, int]] = {}
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

    def remember_trade(self, pair: str, side: Side, opened_ms: int) -> None:
        """Take over a trade that a bot has, as a decision that passed when it opened."""
        self._passed.note_trade(pair, side, opened_ms)

    def contested(self, pair: str, side: Side, window: int) -> str | None:
        """Why the decision `window` of this pair and side may not be sent any more: the other side's."""
        if self._rules.on_conflict == "neither" and self._passed.since(pair, side, window):
            return f"{OTHER[side]} was decided since"
        return None

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
        if passed and not against:
            if (words := self._standing.against(*key, now_ms)) is not None:
                against = [words]
            elif window.side not in self._rules.bots:
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
        began_ms = self._began_ms(window)
        passed = self._passed.against(window.pair, window.side, began_ms)
        if passed is None:
            return None
        age_s = (now_ms - passed.decided_ms) / 1000
        apart_s = abs(began_ms - passed.opened_ms) / 1000
        return (
            f"{OTHER[window.side]} was decided {age_s:.1f} s ago, and the two windows opened "
            f"{apart_s:.1f} s apart, within one window"
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
        if decision.passed:
            self._passed.note(*key, decision.window, opened_ms, at_ms)
        # A client that repeats a POST after the window has been decided must not open another one.
        until_ms = at_ms + self._rules.window_ms
        for feeder, digest in digests:
            self._recent[key, feeder, digest] = (decision.window, until_ms)

    def _forget(self, now_ms: int) -> None:
        # What no rule looks at any more: pairs are whatever feeders name.
        self._passed.forget(now_ms)
        self._standing.forget(now_ms)
        for name in [name for name, (_, until_ms) in self._recent.items() if until_ms <= now_ms]:
            del self._recent[name]
