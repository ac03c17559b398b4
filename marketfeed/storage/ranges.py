"""Sets of whole numbers as ranges: what has been acknowledged, and what has not."""

import bisect
from collections.abc import Iterable, Iterator

PURE = True


class Ranges:
    """A set of positive whole numbers, kept as sorted ranges that neither overlap nor touch.

    A range is (first, last), both included.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def __contains__(self, number: int) -> bool:
        index = bisect.bisect_right(self._firsts, number) - 1
        return index >= 0 and number <= self._lasts[index]

    def add(self, first: int, last: int) -> tuple[int, int]:
        """Add all numbers from `first` to `last`; returns the range that they are part of now."""
        if first > last:
            raise ValueError(f"found the range {first}-{last}, expected first <= last")
        # All ranges that overlap or touch the new one lie in [low, high).
        low = bisect.bisect_left(self._lasts, first - 1)
        high = bisect.bisect_right(self._firsts, last + 1)
        if low < high:
            first = min(first, self._firsts[low])
            last = max(last, self._lasts[high - 1])
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]
        return first, last

    def gaps(self, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of positive numbers below `end` that are not in the set, highest first."""
        last = end - 1
        for index in range(len(self._firsts) - 1, -1, -1):
            if self._lasts[index] < last:
                yield self._lasts[index] + 1, last
            last = min(last, self._firsts[index] - 1)
        if last >= 1:
            yield 1, last

    def first_gap(self, end: int) -> int:
        """The smallest positive number that is not in the set, `end` at most."""
        if not self._firsts or self._firsts[0] > 1:
            return min(1, end)
        return min(self._lasts[0] + 1, end)
