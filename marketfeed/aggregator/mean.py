"""The mean of confidences by decimal arithmetic: compared as it is, rounded once, half up. Pure.

A confidence is the decimal number that was posted, as the shortest text of its double gives it. In binary
0.7 three times is less than 2.1, and 0.815 less than it is written.
"""

import functools
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import Final, NamedTuple, Self

PURE = True

_EXACT: Final = Context(prec=700, traps=[Inexact])
"""No sum of doubles from 0 to 1 has as many digits; that nothing is cut is held by the trap."""
_MOST_PLACES: Final = 20


def exact(confidence: float) -> Decimal:
    """The decimal number that a confidence was posted as."""
    return Decimal(repr(confidence))


class Mean(NamedTuple):
    """The mean of so many confidences: their sum, and how many they are."""

    total: Decimal
    votes: int

    @classmethod
    def of(cls, confidences: Iterable[float]) -> Self:
        """The mean of at least one."""
        total, count = Decimal(0), 0
        for confidence in confidences:
            total = _EXACT.add(total, exact(confidence))
            count += 1
        return cls(total, count)

    def is_below(self, least: float) -> bool:
        """Whether it is less than `least`, before any rounding."""
        return self.total < _EXACT.multiply(exact(least), Decimal(self.votes))

    def text(self, places: int = 2) -> str:
        """It with so many decimals, half up."""
        doubled = _EXACT.multiply(self.total, Decimal(2 * 10**places))
        whole = _EXACT.divide_int(doubled + self.votes, Decimal(2 * self.votes))
        return f"{whole.scaleb(-places, _EXACT):.{places}f}"

    def text_below(self, least: float) -> str:
        """It with four decimals, or as many more as it takes to see that it is below `least`."""
        for places in range(4, _MOST_PLACES):
            if Decimal(text := self.text(places)) < exact(least):
                return text
        return self.text(_MOST_PLACES)

    def nearest(self) -> float:
        """The double that is nearest to it."""
        return float(Fraction(self.total) / self.votes)


@functools.lru_cache(1_024)
def confidence_text(confidence: float, places: int = 2) -> str:
    """A confidence with so many decimals, half up."""
    return Mean(exact(confidence), 1).text(places)
