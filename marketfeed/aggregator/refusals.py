"""What a bot refused of late by its own words, and what it did that nobody asked for: for `/health`.

Pure; times are monotonic s. That a position is open already, or could not be entered, is as it should be. A
bot that refuses all else, or every order, must not look well: the decisions are lost as surely.
"""

from collections import deque
from typing import Final

from marketfeed.aggregator.bot_answers import refusal_of

PURE = True

LATELY_S: Final = 300.0
SEVERAL: Final = 5
"""So many refusals within LATELY_S are a reason; one is, if by its words the bot refuses every order."""
WRONG_SIDE_S: Final = 900.0
"""So long it is shown that a bot opened a trade of the other side."""


class Refusals:
    """The refusals of one bot since it accepted an order last."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, bool, str]] = deque()
        self._wrong_side: tuple[float, str] | None = None

    def refused(self, words: str, pair: str, now_s: float) -> None:
        """It refused an order of `pair` with these words."""
        if (why := refusal_of(words, pair)) != "usual":
            self._lately.append((now_s, why == "every order", words))

    def accepted(self) -> None:
        """It accepted one."""
        self._lately.clear()

    def wrong_side(self, words: str, now_s: float) -> None:
        """It opened a trade of the other side than it was told."""
        self._wrong_side = (now_s, words)

    def reasons(self, now_s: float) -> list[str]:
        """What is not well about it."""
        while self._lately and now_s - self._lately[0][0] >= LATELY_S:
            self._lately.popleft()
        found = []
        if self._wrong_side is not None and now_s - self._wrong_side[0] < WRONG_SIDE_S:
            found.append(self._wrong_side[1])
        every = next((words for _, of_all, words in reversed(self._lately) if of_all), None)
        if every is not None:
            found.append(f"it refuses every order: {every}")
        elif len(self._lately) >= SEVERAL:
            found.append(
                f"{len(self._lately)} refused within {LATELY_S:.0f} s, the last with: {self._lately[-1][2]}"
            )
        return found
