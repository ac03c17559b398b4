"""Lines that a server may carry out yet, after newer ones: they were sent, and no answer came.

Pure. A request that timed out may lie in the buffers of a server that hangs. If its row is corrected
meanwhile and the new line acknowledged, the old one, carried out at last, would stay there for good. So
such lines are kept until some time after the server has answered again: what has changed by then is sent
once more. Times are monotonic wall seconds.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final

PURE = True

MOST_LINES: Final = 50_000
"""With so many in doubt nothing new is sent until the first have been rechecked: memory stays bounded."""
AT_ONCE: Final = 1_000


class UnansweredLines:
    """The lines in doubt; they are due `recheck_after_s` after the first acknowledgement that follows."""

    def __init__(self, recheck_after_s: float) -> None:
        self._recheck_after_s = recheck_after_s
        self._unanswered: dict[str, None] = {}
        self._to_recheck: deque[tuple[float, str]] = deque()

    def __len__(self) -> int:
        return len(self._unanswered) + len(self._to_recheck)

    def add(self, lines: Iterable[str]) -> None:
        """Note lines that were sent without an answer."""
        self._unanswered.update(dict.fromkeys(lines))

    def unanswered(self, count: int) -> list[str]:
        """Some lines since which the server has acknowledged nothing, the first `count` of them."""
        return list(islice(self._unanswered, count))

    def drop(self, lines: Iterable[str]) -> None:
        """Forget lines since which nothing was acknowledged: their rows are gone."""
        for line in lines:
            self._unanswered.pop(line, None)

    def answered(self, now_s: float) -> None:
        """Note that the server has acknowledged something."""
        if self._unanswered:
            due_s = now_s + self._recheck_after_s
            self._to_recheck.extend((due_s, line) for line in self._unanswered)
            self._unanswered.clear()

    def due(self, now_s: float) -> list[str]:
        """Lines that were carried out by now if ever, AT_ONCE at most; they stay until `rechecked`."""
        first = islice(self._to_recheck, AT_ONCE)
        return [line for due_s, line in first if due_s <= now_s]

    def rechecked(self, count: int) -> None:
        """Forget the first so many of `due`."""
        for _ in range(count):
            self._to_recheck.popleft()

    def hold_s(self, now_s: float) -> float:
        """For how long nothing new may be sent, because too much is in doubt."""
        if len(self) < MOST_LINES or not self._to_recheck:
            return 0.0
        return max(0.0, self._to_recheck[0][0] - now_s)
