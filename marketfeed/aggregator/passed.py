"""The decisions that passed, each by when its window opened: what conflicts are measured by. Pure.

Two decisions of a pair, one of each side, conflict when their windows opened less than a window apart,
whenever they were decided. It is about opinions: what became of the orders does not matter.

Times are ms since the epoch; those ahead of the clock count as now, at a start and whenever all is built up
anew. That moves what a clock which was set back has dated ahead, each time further. Windows are numbered in
the order in which they open: where the times say another one, they tell nothing, and the two conflict.
"""

from typing import Final, NamedTuple

from marketfeed.aggregator.ballots import OTHER, Key, Rules
from marketfeed.aggregator.signals import Side

PURE = True

_NO_WINDOW: Final = -1


class PassedDecision(NamedTuple):
    """A decision that passed, or a trade that a bot has, of which no more is known (`window` -1)."""

    opened_ms: int
    window: int
    decided_ms: int


def kept_ms(rules: Rules) -> int:
    """For how long after its window opened a decision is remembered.

    A window that opened less than `window_ms` later may be decided `expire_ms` after its end, and an order
    that was decided at its window's end may be sent 2 x `expire_ms` later.
    """
    return 2 * rules.window_ms + 2 * rules.expire_ms


class Passed:
    """All that passed lately. Not thread-safe."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._kept_ms = kept_ms(rules)
        self._found: dict[Key, list[PassedDecision]] = {}

    def note(self, pair: str, side: Side, window: int, opened_ms: int, decided_ms: int) -> None:
        """Remember a decision that passed."""
        passed = PassedDecision(opened_ms, window, decided_ms)
        self._found.setdefault((pair, side), []).append(passed)

    def note_trade(self, pair: str, side: Side, opened_ms: int) -> None:
        """Remember a trade of a bot's as a decision that passed when the trade opened."""
        self.note(pair, side, _NO_WINDOW, opened_ms, opened_ms)

    def against(self, pair: str, side: Side, window: int, opened_ms: int) -> PassedDecision | None:
        """The newest one of the other side that conflicts with `window`, which opened at `opened_ms`."""
        own = PassedDecision(opened_ms, window, opened_ms)
        found = self._found.get((pair, OTHER[side]), ())
        return max((passed for passed in found if self._conflict(passed, own)), default=None)

    def since(self, pair: str, side: Side, window: int) -> PassedDecision | None:
        """One of the other side that conflicts with the decision `window`, and whose window opened later."""
        for own in self._found.get((pair, side), ()):
            if own.window == window:
                return next(
                    (
                        passed
                        for passed in self._found.get((pair, OTHER[side]), ())
                        if self._conflict(passed, own) and _is_later(passed, own)
                    ),
                    None,
                )
        return None

    def forget(self, now_ms: int) -> None:
        """Forget what no decision and no order can conflict with any more."""
        for key, found in list(self._found.items()):
            kept = [passed for passed in found if now_ms - passed.opened_ms < self._kept_ms]
            if kept:
                self._found[key] = kept
            else:
                del self._found[key]

    def _conflict(self, passed: PassedDecision, own: PassedDecision) -> bool:
        apart_ms = abs(passed.opened_ms - own.opened_ms)
        return apart_ms < self._rules.window_ms or _is_out_of_order(passed, own)


def _is_out_of_order(passed: PassedDecision, own: PassedDecision) -> bool:
    """Whether their times contradict their numbers: nobody knows how far apart they opened."""
    earlier, later = sorted((passed, own), key=lambda decision: decision.window)
    return earlier.window != _NO_WINDOW and earlier.opened_ms > later.opened_ms


def _is_later(passed: PassedDecision, own: PassedDecision) -> bool:
    """Whether its window opened later. Windows are numbered in the order in which they open."""
    if passed.window == _NO_WINDOW:
        return passed.opened_ms > own.opened_ms
    return passed.window > own.window
