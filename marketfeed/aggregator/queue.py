"""The forwards that wait for a bot: the best one first, each until it expires. Pure; times are ms.

An order of which nobody knows what became holds up all that wait behind it, and so did its own POST. Of
what waits that costs no time: it expires later by as long, twice its own time at most.
"""

from collections.abc import Iterable, Iterator

from marketfeed.aggregator.ledger_tables import Forward

PURE = True

Rank = tuple[float, float, int, int]


def rank(forward: Forward) -> Rank:
    """What forwards are ordered by, the best one least: share of votes, confidence, and then age."""
    share = forward.votes / max(forward.of, 1)
    return (-share, -forward.confidence, forward.decided_ms, forward.window)


def decided_ahead(forward: Forward, now_ms: int) -> bool:
    """Whether it was decided, before a restart, by a clock that was ahead: nobody knows how long ago."""
    return forward.decided_ms > now_ms


def chosen_again(forward: Forward, known: Iterable[int], queued: Iterable[Forward]) -> bool:
    """Whether `forward` is not to be sent after all, as `queued` waits, and not the `known` windows alone.

    It waits no more, or a better one has joined.
    """
    known, there = frozenset(known), False
    for other in queued:
        there |= other.window == forward.window
        if other.window not in known and rank(other) < rank(forward):
            return True
    return not there


class Queue:
    """What waits for one bot. `extend_ms` is how much later than decided a forward may expire at most."""

    def __init__(self, extend_ms: int) -> None:
        self._extend_ms = extend_ms
        self._forwards: list[Forward] = []
        self._stalls: list[tuple[int, int]] = []
        self._stalled_since_ms: int | None = None

    def __len__(self) -> int:
        return len(self._forwards)

    def __iter__(self) -> Iterator[Forward]:
        """The best one first; what joins or leaves meanwhile is not seen."""
        return iter(tuple(self._forwards))

    @property
    def windows(self) -> list[int]:
        """Those of all that wait."""
        return [forward.window for forward in self._forwards]

    def take(self, queued: Iterable[Forward]) -> None:
        """All that is queued, as the ledger has it, in the place of what was here."""
        self._forwards = sorted(queued, key=rank)

    def put(self, forward: Forward) -> None:
        """It waits, as it stands now, also if it did before."""
        others = [other for other in self._forwards if other.window != forward.window]
        self.take([*others, forward])

    def drop(self, window: int) -> None:
        """It waits no more."""
        self._forwards = [other for other in self._forwards if other.window != window]

    # --- until when -------------------------------------------------------------------------------------

    def stall(self, since_ms: int, now_ms: int) -> None:
        """Nothing is sent since `since_ms`, because what became of an order is not known."""
        if self._stalled_since_ms is None:
            self._stalled_since_ms = min(since_ms, now_ms)

    def go_on(self, now_ms: int) -> None:
        """It is known, or others need not wait for it any more."""
        if self._stalled_since_ms is not None:
            self._stalls.append((self._stalled_since_ms, now_ms))
            self._stalled_since_ms = None
        # Of what was decided before them nothing waits any more.
        oldest_ms = min((forward.decided_ms for forward in self._forwards), default=now_ms)
        self._stalls = [stall for stall in self._stalls if stall[1] > oldest_ms]

    def expires_ms(self, forward: Forward, now_ms: int) -> int:
        """When it expires, as it looks now: later by the stalls since its decision."""
        stalls = list(self._stalls)
        if self._stalled_since_ms is not None:
            stalls.append((self._stalled_since_ms, now_ms))
        stalled_ms = sum(
            max(0, end_ms - max(begin_ms, forward.decided_ms)) for begin_ms, end_ms in stalls
        )
        return forward.expires_ms + min(stalled_ms, self._extend_ms)

    def is_over(self, forward: Forward, now_ms: int) -> bool:
        """Whether it is too late to send it."""
        return now_ms >= self.expires_ms(forward, now_ms) or decided_ahead(forward, now_ms)

    def next_end_ms(self, now_ms: int) -> int | None:
        """When the next one expires, if what is stalled remains so; None: nothing waits."""
        return min((self._ends_ms(forward, now_ms) for forward in self), default=None)

    def _ends_ms(self, forward: Forward, now_ms: int) -> int:
        if self._stalled_since_ms is None or self.is_over(forward, now_ms):
            return self.expires_ms(forward, now_ms)
        # Until all that it may be extended by is used up, its end moves on with the clock.
        return forward.expires_ms + self._extend_ms
