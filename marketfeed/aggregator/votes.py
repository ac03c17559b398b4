"""Windows, quorum and decisions: signals in, decisions out. Pure; `now_ms` is passed in and never goes back.

A window opens with the first signal of (pair, side) and closes `window_ms` later, or when every feeder of
the side has voted. With `on_conflict: neither` such a full house is not decided before the other side has
had a moment to vote (`early_grace_ms`), nor while it does. What passes quorum and confidence is forwarded,
unless a rule decides otherwise; every decision carries its reasons.

Times are ms since the epoch, by a clock that the monotonic one drives.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from marketfeed.aggregator.ballots import OTHER, Counted, Decision, Key, Rules, Vote
from marketfeed.aggregator.passed import Passed
from marketfeed.aggregator.repeats import Earlier, Repeats
from marketfeed.aggregator.signals import SIDES, Side
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.whitelists import Whitelists
from marketfeed.aggregator.window import Window

PURE = True

OPEN_AT_MOST: Final = 2_000
"""Windows that one account may have opened: pairs are whatever feeders name. The exchange has some 600."""
FORGET_EVERY_MS: Final = 1_000
"""What is remembered is looked through so often at most: whatever is too old decides nothing anyway."""


class Votes:
    """All open windows, and what is remembered of the decided ones. Not thread-safe.

    Whoever drives it passes times that do not go back, and calls `due` before every `add`. What the orders
    of the past came to is in `standing`, which others tell, as they do what is in `whitelists`.
    """

    def __init__(
        self,
        rules: Rules,
        standing: Standing | None = None,
        whitelists: Whitelists | None = None,
    ) -> None:
        self._rules = rules
        self._whitelists = Whitelists() if whitelists is None else whitelists
        self._standing = Standing(rules.cooldown_ms) if standing is None else standing
        self._open: dict[Key, Window] = {}
        self._passed = Passed(rules)
        self._repeats = Repeats(rules)
        self._sizes: dict[Side, int] = {side: rules.electorate.size(side) for side in SIDES}
        self._opened_by: Counter[str] = Counter()
        self._idle_until_ms = 0
        """Before this nothing is due: most votes change nothing about it, and are many."""
        self._forget_at_ms = 0

    # --- signals in ---------------------------------------------------------------------------------

    def is_full(self, account: str, pair: str, side: Side) -> bool:
        """Whether a vote of this account would open a window more than it may have open."""
        return self._opened_by[account] >= OPEN_AT_MOST and (pair, side) not in self._open

    def add(self, vote: Vote) -> Counted:
        """Count a vote. Windows that are due at its time must have been decided before."""
        pair, side = vote.signal.pair, vote.signal.side
        window = self._open.get((pair, side))
        repeated = self._repeats.of(vote, opens=window is None)
        if repeated is not None:
            return Counted("duplicate", repeated.window, 0, self._sizes[side], repeated.closes_ms)
        if window is None:
            window = self._open[pair, side] = Window(vote, vote.received_ms, self._rules)
            self._opened_by[window.account] += 1
        window.take(vote)
        self._repeats.note(vote, window.number, window.closes_ms)
        self._idle_until_ms = min(self._idle_until_ms, self._due_ms(window))
        of = self._sizes[side]
        return Counted("voted", window.number, len(window.votes), of, window.closes_ms)

    def restore(self, votes: Iterable[Vote], now_ms: int) -> None:
        """Count votes that were stored and not decided, at a start, in their order.

        A window never stays open for longer than its length from now on, whatever the wall clock did
        while nobody was looking.
        """
        for vote in votes:
            key: Key = (vote.signal.pair, vote.signal.side)
            if key not in self._open:
                self._open[key] = Window(vote, min(vote.received_ms, now_ms), self._rules)
                self._opened_by[vote.account] += 1
            self._open[key].take(vote)
        self._idle_until_ms = 0

    def remember(self, decision: Decision, now_ms: int) -> None:
        """Take over a decision that passed and was stored, at a start.

        Times ahead of the clock count as now, as in `restore`.
        """
        opened_ms, decided_ms = min(decision.opened_ms, now_ms), min(decision.decided_ms, now_ms)
        self._passed.note(decision.pair, decision.side, decision.window, opened_ms, decided_ms)

    def remember_counted(self, earlier: Earlier, now_ms: int) -> None:
        """Take over a signal that was counted and stored, at a start, in their order."""
        self._repeats.remember(earlier, now_ms)

    def remember_trade(self, pair: str, side: Side, opened_ms: int) -> None:
        """Take over a trade that a bot has, as a decision that passed when it opened."""
        self._passed.note_trade(pair, side, opened_ms)

    # --- decisions out ------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[Decision]:
        """Decide what is due: windows that have closed, oldest first, and those in which all have voted."""
        if now_ms < self._idle_until_ms:
            return []
        decisions: list[Decision] = []
        ready = [_order(window) for window in self._open.values() if now_ms >= self._due_ms(window)]
        heapq.heapify(ready)
        while ready:
            _, _, key = heapq.heappop(ready)
            if (window := self._open.get(key)) is None:
                # Decided with the other side's.
                continue
            decisions.extend(self._decide(window, now_ms))
            # Only the other side's may have waited for this one.
            opposite = self._open.get((window.pair, OTHER[window.side]))
            if opposite is not None and now_ms >= self._due_ms(opposite):
                heapq.heappush(ready, _order(opposite))
        self._idle_until_ms = self._next_ms(now_ms + self._rules.window_ms)
        if decisions and now_ms >= self._forget_at_ms:
            self._forget_at_ms = now_ms + FORGET_EVERY_MS
            self._forget(now_ms)
        return decisions

    def next_due_ms(self) -> int | None:
        """Before this no window is decided, if no vote comes; None: there is none.

        It may be earlier than it would have to be: `due` at that time knows better. To look through all
        windows after every vote would cost more than all else about it.
        """
        return self._idle_until_ms if self._open else None

    def open_windows(self) -> int:
        """How many windows are open."""
        return len(self._open)

    def contested(self, pair: str, side: Side, window: int) -> str | None:
        """Why the decision `window` of this pair and side may not be sent any more: the other side's."""
        if self._rules.on_conflict == "neither" and self._passed.since(pair, side, window):
            return f"{OTHER[side]} was decided since"
        return None

    # --- inside -------------------------------------------------------------------------------------

    def _next_ms(self, default_ms: int) -> int:
        return min((self._due_ms(window) for window in self._open.values()), default=default_ms)

    def _due_ms(self, window: Window) -> int:
        """When it is decided, as things stand."""
        if len(window.votes) < self._sizes[window.side]:
            return window.closes_ms
        other = OTHER[window.side]
        if self._rules.on_conflict == "both" or not self._sizes[other]:
            return window.opened_ms
        # With the other side's votes coming in, it is not known before the end whether both are decided.
        if (grace_ms := self._rules.early_grace_ms) is None or (window.pair, other) in self._open:
            return window.closes_ms
        return min(window.opened_ms + grace_ms, window.closes_ms)

    def _decide(self, window: Window, now_ms: int) -> list[Decision]:
        both = [window]
        against = self._failures(window, now_ms)
        if passed := not against:
            opposite = self._open.get((window.pair, OTHER[window.side]))
            neither = self._rules.on_conflict == "neither"
            if neither and opposite is not None and not self._failures(opposite, now_ms):
                against = [f"{window.side} and {opposite.side} are decided within one window"]
                both.append(opposite)
            else:
                against = self._objections(window, now_ms)
        decisions: list[Decision] = []
        for item in both:
            of = self._sizes[item.side]
            decision = item.decision(self._rules, of, now_ms, against, passed=passed)
            if not against and (said := self._whitelists.remark(item.pair, item.side)):
                decision = msgspec.structs.replace(decision, reasons=(*decision.reasons, *said))
            decisions.append(decision)
            del self._open[item.pair, item.side]
            self._opened_by[item.account] -= 1
            if passed:
                self._passed.note(item.pair, item.side, item.number, item.opened_ms, now_ms)
        return decisions

    def _failures(self, window: Window, now_ms: int) -> list[str]:
        return window.failures(self._rules, self._sizes[window.side], now_ms)

    def _objections(self, window: Window, now_ms: int) -> list[str]:
        """Why a window that has passed is not forwarded; nothing: it is."""
        words = None
        if self._rules.on_conflict == "neither":
            words = self._decided_before(window, now_ms)
        if words is None:
            words = self._standing.against(window.pair, window.side, now_ms)
        if words is None and window.side not in self._rules.bots:
            words = f"no bot is set for {window.side}"
        if words is None:
            words = self._whitelists.against(window.pair, window.side)
        return [] if words is None else [words]

    def _decided_before(self, window: Window, now_ms: int) -> str | None:
        """The words for it when a window of the other side passed that opened less than one window apart."""
        passed = self._passed.against(window.pair, window.side, window.number, window.opened_ms)
        if passed is None:
            return None
        age_s = (now_ms - passed.decided_ms) / 1000
        apart_ms = abs(window.opened_ms - passed.opened_ms)
        if apart_ms >= self._rules.window_ms:
            return (
                f"{OTHER[window.side]} was decided {age_s:.1f} s ago by a clock that has been set back, and "
                "nobody knows how far apart the two windows opened"
            )
        return (
            f"{OTHER[window.side]} was decided {age_s:.1f} s ago, and the two windows opened "
            f"{apart_ms / 1000:.1f} s apart, within one window"
        )

    def _forget(self, now_ms: int) -> None:
        # What no rule looks at any more: pairs are whatever feeders name, and the memory is bounded.
        self._passed.forget(now_ms)
        self._repeats.forget(now_ms)
        self._standing.forget(now_ms)


def _order(window: Window) -> tuple[int, int, Key]:
    """In which order windows are decided."""
    return window.closes_ms, window.number, (window.pair, window.side)
