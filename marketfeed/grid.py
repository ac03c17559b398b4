"""Ranges of exchange time on a timeframe's grid: what is there of them, what is not, how to ask for it.

A range holds the candles with start_ms <= open time < end_ms; both ends are multiples of the timeframe's
length. So two ranges that touch share no candle and have none between them, and an edge never costs one.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

PURE = True

TILE_CANDLES: Final = 499
"""Candles of one request: up to so many, klines are the cheapest per row."""
JOIN_WITHIN: Final = 99
"""Up to so many candles between two holes, asking for all of it costs no more than asking twice."""


class TimeRange(NamedTuple):
    """A half-open range of open times on the grid, in ms."""

    start_ms: int
    end_ms: int


def candles_in(time_range: TimeRange, length_ms: int) -> int:
    """How many candles a range holds."""
    return max(0, time_range.end_ms - time_range.start_ms) // length_ms


def tiles(time_range: TimeRange, length_ms: int, most: int = TILE_CANDLES) -> Iterator[TimeRange]:
    """Yield the range in tiles of at most `most` candles, newest first; the oldest is the short one."""
    step_ms = most * length_ms
    for end_ms in range(time_range.end_ms, time_range.start_ms, -step_ms):
        yield TimeRange(max(time_range.start_ms, end_ms - step_ms), end_ms)


def missing(opens: Iterable[int], time_range: TimeRange, length_ms: int) -> list[TimeRange]:
    """The holes of a range, oldest first, given the open times that are there, ascending.

    Open times outside the range, and repeated ones, do not matter.
    """
    found = []
    awaited_ms = time_range.start_ms
    for open_ms in opens:
        if open_ms >= time_range.end_ms:
            break
        if open_ms > awaited_ms:
            found.append(TimeRange(awaited_ms, open_ms))
        awaited_ms = max(awaited_ms, open_ms + length_ms)
    if awaited_ms < time_range.end_ms:
        found.append(TimeRange(awaited_ms, time_range.end_ms))
    return found


def joined(
    time_ranges: Iterable[TimeRange], length_ms: int, within: int = JOIN_WITHIN
) -> list[TimeRange]:
    """The ranges, oldest first, those with at most `within` candles between them made one.

    0 joins only those that overlap or touch. Empty ones are left out.
    """
    found: list[TimeRange] = []
    for time_range in sorted(time_ranges):
        if time_range.start_ms >= time_range.end_ms:
            continue
        if found and time_range.start_ms - found[-1].end_ms <= within * length_ms:
            found[-1] = TimeRange(found[-1].start_ms, max(found[-1].end_ms, time_range.end_ms))
        else:
            found.append(time_range)
    return found


def subtract(time_range: TimeRange, holes: Iterable[TimeRange]) -> list[TimeRange]:
    """What is left of a range, oldest first, when `holes` (in any order) are taken out of it."""
    found = []
    start_ms = time_range.start_ms
    for hole in sorted(holes):
        if hole.start_ms >= hole.end_ms:
            continue
        if hole.start_ms > start_ms:
            found.append(TimeRange(start_ms, min(hole.start_ms, time_range.end_ms)))
        start_ms = max(start_ms, hole.end_ms)
        if start_ms >= time_range.end_ms:
            break
    if start_ms < time_range.end_ms:
        found.append(TimeRange(start_ms, time_range.end_ms))
    return found


def without(
    time_ranges: Iterable[TimeRange], holes: Collection[TimeRange]
) -> tuple[TimeRange, ...]:
    """What is left of ranges, in their order, when `holes` (in any order) are taken out of them."""
    return tuple(part for time_range in time_ranges for part in subtract(time_range, holes))


def overlap(time_ranges: Iterable[TimeRange], part: TimeRange) -> Iterator[TimeRange]:
    """What of `time_ranges` lies within `part`."""
    return (
        TimeRange(max(start_ms, part.start_ms), min(end_ms, part.end_ms))
        for start_ms, end_ms in time_ranges
        if start_ms < part.end_ms and end_ms > part.start_ms
    )
