"""What expired of late while it waited for its bot: for `/health`, until it is a while ago.

Pure; times are monotonic s. A burst that loses most of itself must not look well. A bot that is full is as
it should be: for want of room alone it takes more than a few.
"""

from collections import Counter, deque
from typing import Final

from marketfeed.aggregator.gate import Cause

PURE = True

LATELY_S: Final = 300.0
FEW: Final = 5
"""So many that expired for want of room, and nothing else, within LATELY_S are a reason."""


class Expired:
    """The forwards to one bot that expired."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Since the start, by cause."""
        self._lately: deque[tuple[float, Cause]] = deque()

    def add(self, cause: Cause, now_s: float) -> None:
        """One more has expired."""
        self.counts[cause] += 1
        self._lately.append((now_s, cause))

    def lately(self, now_s: float) -> Counter[Cause]:
        """Those within LATELY_S, by cause."""
        while self._lately and now_s - self._lately[0][0] >= LATELY_S:
            self._lately.popleft()
        return Counter(cause for _, cause in self._lately)

    def reason(self, now_s: float) -> str:
        """What is not well about it; nothing: empty."""
        found = self.lately(now_s)
        if not found or (set(found) == {"no room"} and found["no room"] < FEW):
            return ""
        causes = ", ".join(f"{cause} {count}" for cause, count in found.most_common())
        return f"{found.total()} expired unsent within {LATELY_S:.0f} s ({causes})"
