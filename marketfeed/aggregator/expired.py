"""What expired of late while it waited for its bot: for `/health`, until it is a while ago.

Pure; times are monotonic s. A burst that loses most of itself must not look well. A bot that is full is as
it should be: what expired for want of room is counted, and no reason.
"""

from collections import Counter, deque
from typing import Final

from marketfeed.aggregator.gate import Cause

PURE = True

LATELY_S: Final = 900.0
_FULL: Final = "no room"


class Expired:
    """The forwards to one bot that expired by time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Since the start, by cause."""
        self._lately: deque[tuple[float, Cause]] = deque()

    @property
    def with_room(self) -> int:
        """Since the start, all that expired although the bot was not full."""
        return self.counts.total() - self.counts[_FULL]

    def add(self, cause: Cause, now_s: float) -> None:
        """One more has expired."""
        self.counts[cause] += 1
        if cause != _FULL:
            self._lately.append((now_s, cause))

    def lately(self, now_s: float) -> Counter[Cause]:
        """By cause, those that expired within LATELY_S although the bot was not full."""
        while self._lately and now_s - self._lately[0][0] >= LATELY_S:
            self._lately.popleft()
        return Counter(cause for _, cause in self._lately)
