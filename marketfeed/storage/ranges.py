"""Sets of whole numbers as ranges: what has been acknowledged, and what has not."""

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

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

    def covers(self, first: int, last: int) -> bool:
        """Whether all numbers from `first` to `last` are in the set."""
        index = bisect.bisect_right(self._firsts, first) - 1
        return index >= 0 and last <= self._lasts[index]

    def copy(self) -> "Ranges":
        """A set of its own with the same numbers."""
        other = Ranges()
        other._firsts, other._lasts = self._firsts.copy(), self._lasts.copy()
        return other

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


class Piece(NamedTuple):
    """The numbers from `first` to `last`, both included, of the rows of some measurements."""

    first: int
    last: int
    measurements: tuple[str, ...]


class Acknowledged:
    """Of each measurement the numbers (`seq`) that have been acknowledged.

    They are the same for all measurements, but where one was added to a file later than the others, or is
    to be shipped again alone.
    """

    def __init__(self, of: dict[str, Ranges]) -> None:
        self._of = of

    @classmethod
    def alike(cls, measurements: Iterable[str], ranges: Ranges | None = None) -> Self:
        """Hold `ranges` of each of these measurements; no numbers without it."""
        return cls({name: Ranges() if ranges is None else ranges.copy() for name in measurements})

    def __getitem__(self, measurement: str) -> Ranges:
        return self._of[measurement]

    def copy(self) -> "Acknowledged":
        """A set of its own with the same numbers."""
        return Acknowledged({name: ranges.copy() for name, ranges in self._of.items()})

    def add(self, piece: Piece) -> list[tuple[str, int, int]]:
        """Add a piece; returns per measurement the range (measurement, first, last) it is part of now."""
        return [(name, *self._of[name].add(piece.first, piece.last)) for name in piece.measurements]

    def pieces(self, end: int) -> Iterator[Piece]:
        """Yield what has not been acknowledged below `end`, highest numbers first."""
        names = tuple(self._of)
        all_ranges = list(self._of.values())
        if all_ranges and all(ranges == all_ranges[0] for ranges in all_ranges):
            for first, last in all_ranges[0].gaps(end):
                yield Piece(first, last, names)
            return
        # From the top down, a measurement opens where one of its gaps ends and closes where it begins.
        edges: dict[int, set[str]] = {}
        for name, ranges in self._of.items():
            for first, last in ranges.gaps(end):
                edges.setdefault(last, set()).symmetric_difference_update({name})
                edges.setdefault(first - 1, set()).symmetric_difference_update({name})
        lacking: set[str] = set()
        above = end
        for edge in sorted(edges, reverse=True):
            if lacking:
                yield Piece(edge + 1, above, tuple(name for name in names if name in lacking))
            lacking ^= edges[edge]
            above = edge

    def first_gap(self, end: int) -> int:
        """The smallest positive number that a measurement lacks, `end` at most."""
        return min((ranges.first_gap(end) for ranges in self._of.values()), default=min(1, end))
