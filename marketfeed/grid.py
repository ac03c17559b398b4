"""Stretches of exchange time on a timeframe's grid: what is there of them, what is not, how to ask for it.

A stretch holds the candles with start_ms <= open time < end_ms; both ends are multiples of the timeframe's
length. So two stretches that touch share no candle and have none between them, and an edge never costs one.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

PURE = True

TILE_CANDLES: Final = 499
"""Candles of one request: up to so many, klines are the cheapest per row."""
JOIN_WITHIN: Final = 99
"""Up to so many candles between two holes, asking for all of it costs no more than asking twice."""


class Stretch(NamedTuple):
    """A half-open stretch of open times on the grid, in ms."""

    start_ms: int
    end_ms: int


def candles_in(stretch: Stretch, length_ms: int) -> int:
    """How many candles a stretch holds."""
    return max(0, stretch.end_ms - stretch.start_ms) // length_ms


def tiles(stretch: Stretch, length_ms: int, most: int = TILE_CANDLES) -> Iterator[Stretch]:
    """Yield the stretch in tiles of at most `most` candles, newest first; the oldest is the short one."""
    step_ms = most * length_ms
    for end_ms in range(stretch.end_ms, stretch.start_ms, -step_ms):
        yield Stretch(max(stretch.start_ms, end_ms - step_ms), end_ms)


def missing(opens: Iterable[int], stretch: Stretch, length_ms: int) -> list[Stretch]:
    """The holes of a stretch, oldest first, given the open times that are there, ascending.

    Open times outside the stretch, and repeated ones, do not matter.
    """
    found = []
    awaited_ms = stretch.start_ms
    for open_ms in opens:
        if open_ms >= stretch.end_ms:
            break
        if open_ms > awaited_ms:
            found.append(Stretch(awaited_ms, open_ms))
        awaited_ms = max(awaited_ms, open_ms + length_ms)
    if awaited_ms < stretch.end_ms:
        found.append(Stretch(awaited_ms, stretch.end_ms))
    return found


def joined(
    stretches: Iterable[Stretch], length_ms: int, within: int = JOIN_WITHIN
) -> list[Stretch]:
    """The stretches, oldest first, those with at most `within` candles between them made one.

    0 joins only those that overlap or touch. Empty ones are left out.
    """
    found: list[Stretch] = []
    for stretch in sorted(stretches):
        if stretch.start_ms >= stretch.end_ms:
            continue
        if found and stretch.start_ms - found[-1].end_ms <= within * length_ms:
            found[-1] = Stretch(found[-1].start_ms, max(found[-1].end_ms, stretch.end_ms))
        else:
            found.append(stretch)
    return found


def cut(stretch: Stretch, holes: Iterable[Stretch]) -> list[Stretch]:
    """What is left of a stretch, oldest first, when `holes` (in any order) are taken out of it."""
    found = []
    start_ms = stretch.start_ms
    for hole in sorted(holes):
        if hole.start_ms >= hole.end_ms:
            continue
        if hole.start_ms > start_ms:
            found.append(Stretch(start_ms, min(hole.start_ms, stretch.end_ms)))
        start_ms = max(start_ms, hole.end_ms)
        if start_ms >= stretch.end_ms:
            break
    if start_ms < stretch.end_ms:
        found.append(Stretch(start_ms, stretch.end_ms))
    return found


def without(stretches: Iterable[Stretch], holes: Collection[Stretch]) -> tuple[Stretch, ...]:
    """What is left of stretches, in their order, when `holes` (in any order) are taken out of them."""
    return tuple(part for stretch in stretches for part in cut(stretch, holes))


def overlap(stretches: Iterable[Stretch], part: Stretch) -> Iterator[Stretch]:
    """What of `stretches` lies within `part`."""
    return (
        Stretch(max(start_ms, part.start_ms), min(end_ms, part.end_ms))
        for start_ms, end_ms in stretches
        if start_ms < part.end_ms and end_ms > part.start_ms
    )
