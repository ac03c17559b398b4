"""Ranges of `seq` as shipping notes them: of every measurement of a file alike."""

from collections.abc import Iterable

from marketfeed.journal.journal import KIND
from marketfeed.storage.database import Kind
from marketfeed.storage.ranges import Acknowledged


def of_all(ranges: Iterable[tuple[int, int]], kind: Kind = KIND) -> list[tuple[str, int, int]]:
    """Each range of each measurement."""
    return [(name, first, last) for name in kind.measurements for first, last in ranges]


def ranges_of(acknowledged: Acknowledged, kind: Kind = KIND) -> list[tuple[int, int]]:
    """The ranges that every measurement has. Raises AssertionError when they differ."""
    found = {name: list(acknowledged[name]) for name in kind.measurements}
    (alike,) = {tuple(ranges) for ranges in found.values()}
    return list(alike)
