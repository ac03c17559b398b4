"""What a bot refused of late by its own words, and what it did that nobody asked for: for `/health`.

Pure; times are monotonic s. That it is full, that a position is open already or could not be entered, is as
it should be: it is counted. A bot that refuses all else, or every order, must not look well: the decisions
are lost as surely.
"""

from collections import Counter, deque
from typing import Final, NamedTuple

from marketfeed.aggregator.bot_answers import Count, Meaning, count_of, refusal_of

PURE = True

LATELY_S: Final = 300.0
SEVERAL: Final = 5
"""So many refusals within LATELY_S are a reason; one is, if by its words the bot refuses every order."""
WRONG_SIDE_S: Final = 900.0
"""So long it is shown that a bot opened a trade of the other side."""


class _Refused(NamedTuple):
    at_s: float
    of_all: bool
    words: str


class Refusals:
    """The refusals of one bot since it accepted an order last."""

    def __init__(self) -> None:
        self.counts: Counter[Count] = Counter()
        """Since the start, by what they were for."""
        self._lately: deque[_Refused] = deque()
        self._wrong_side: tuple[float, str] | None = None

    def answered(self, meaning: Meaning, words: str, pair: str) -> None:
        """Count what it answered to an order of `pair`, if that was no trade."""
        if (what := count_of(meaning, words, pair)) is not None:
            self.counts[what] += 1

    def refused(self, words: str, pair: str, now_s: float) -> None:
        """It refused an order of `pair` with these words."""
        if (why := refusal_of(words, pair)) != "usual":
            self._lately.append(_Refused(now_s, why == "every order", words))

    def accepted(self) -> None:
        """It accepted one."""
        self._lately.clear()

    def wrong_side(self, words: str, now_s: float) -> None:
        """It opened a trade of the other side than it was told."""
        self._wrong_side = (now_s, words)

    def takes_all(self, told_s: float) -> None:
        """It said, when it was asked at `told_s`, that it does not refuse every order."""
        self._lately = deque(it for it in self._lately if not (it.of_all and it.at_s < told_s))

    # --- what is not well about it ----------------------------------------------------------------------

    def of_all(self, now_s: float) -> str:
        """The words with which it refuses every order; empty: it does not, as far as its words say."""
        self._forget(now_s)
        return next((it.words for it in reversed(self._lately) if it.of_all), "")

    def several(self, now_s: float) -> tuple[int, str] | None:
        """How many it refused lately, if that is not as it should be, and the last one's words."""
        self._forget(now_s)
        if len(self._lately) < SEVERAL:
            return None
        return len(self._lately), self._lately[-1].words

    def other_side(self, now_s: float) -> str:
        """Which trade it opened of the other side than it was told; empty: none, lately."""
        if self._wrong_side is None or now_s - self._wrong_side[0] >= WRONG_SIDE_S:
            return ""
        return self._wrong_side[1]

    def _forget(self, now_s: float) -> None:
        while self._lately and now_s - self._lately[0].at_s >= LATELY_S:
            self._lately.popleft()
