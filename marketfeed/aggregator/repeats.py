"""Signals that were counted, so that the same one is not counted again too soon. Pure.

The same signal (`Signal.digest`) of the same account counts once within `REPEAT_MS`: a client that saw no
answer posts it again. Later it is the same opinion once more, as of the next candle: a vote like any other,
which opens a window only after the one in which it was counted has closed by time, decided early or not.

Times are ms since the epoch; those ahead of the clock count as now, at a start.
"""

from typing import Final, NamedTuple

from marketfeed.aggregator.ballots import Rules, Vote

PURE = True

REPEAT_MS: Final = 15_000


class Repeated(NamedTuple):
    """A signal that was counted: when it came, in which window, and when that closes by time."""

    received_ms: int
    window: int
    closes_ms: int


class Earlier(NamedTuple):
    """The same, as the ledger has it: by the clock of its time, with when its window opened."""

    account: str
    digest: bytes
    received_ms: int
    window: int
    opened_ms: int


def kept_ms(rules: Rules) -> int:
    """For how long after its receipt a signal is remembered."""
    return max(REPEAT_MS, rules.window_ms)


class Repeats:
    """What was counted lately. Not thread-safe."""

    def __init__(self, rules: Rules) -> None:
        self._window_ms = rules.window_ms
        self._counted: dict[tuple[str, bytes], Repeated] = {}

    def note(self, vote: Vote, window: int, closes_ms: int) -> None:
        """Remember that a vote was counted."""
        name = (vote.account, vote.digest)
        self._counted[name] = Repeated(vote.received_ms, window, closes_ms)

    def remember(self, earlier: Earlier, now_ms: int) -> None:
        """Take over one that was counted before a start; in their order."""
        self._counted[earlier.account, earlier.digest] = Repeated(
            min(earlier.received_ms, now_ms),
            earlier.window,
            min(earlier.opened_ms, now_ms) + self._window_ms,
        )

    def of(self, vote: Vote, *, opens: bool) -> Repeated | None:
        """What this one repeats, so that it does not count; `opens`: it would open a window."""
        counted = self._counted.get((vote.account, vote.digest))
        if counted is None:
            return None
        again = vote.received_ms < counted.received_ms + REPEAT_MS
        return counted if again or (opens and vote.received_ms < counted.closes_ms) else None

    def forget(self, now_ms: int) -> None:
        """Forget what repeats nothing any more."""
        self._counted = {
            name: counted
            for name, counted in self._counted.items()
            if now_ms < max(counted.received_ms + REPEAT_MS, counted.closes_ms)
        }
