"""How each pair stands, at a glance: the tiles of the status page."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Final

import msgspec

from marketfeed.gaps.deadlines import MARK_PRICE_DUE_S, Overdue
from marketfeed.journal.coverage import Key

PURE = True

LATE_WALL_S: Final = 2.0
"""Against a fast exchange: commits come four times a wall second, which is many exchange seconds."""


class State(IntEnum):
    """How a pair stands. As numbers, for the page."""

    FRESH = 0
    WAITING = 1
    """Nothing has come yet, and nothing is overdue."""
    LATE = 2
    """The newest stored mark price is older than one is due, though nothing is silent: not stored, say."""
    HOLES = 3
    """Closed candles are missing for longer than a minute."""
    SILENT = 4
    """A series is past its deadline."""
    HALTED = 5
    """It does not trade, by two answers of exchangeInfo."""


class PairTile(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One pair. `mark_age_ds` is the age of its newest stored mark price in tenths of exchange seconds.

    `silent` series are overdue, `holes` candles are missing for longer than a minute.
    """

    state: State
    mark_age_ds: int | None
    silent: int
    holes: int


def make_tiles(
    pairs: Sequence[str],
    now_ms: int,
    speed: float,
    mark_event_ms: Mapping[str, int],
    overdue: Collection[Overdue],
    old_holes: Mapping[Key, int],
    halted: Collection[str] = (),
) -> list[PairTile]:
    """Judge `pairs`, in their order. `speed`: exchange seconds in a wall second."""
    late_ds = 10 * max(MARK_PRICE_DUE_S, LATE_WALL_S * speed)
    silent = Counter(item.series.pair for item in overdue)
    holes: Counter[str] = Counter()
    for (pair, _), count in old_holes.items():
        holes[pair] += count
    tiles = []
    for pair in pairs:
        at_ms = mark_event_ms.get(pair)
        age_ds = None if at_ms is None else max(0, (now_ms - at_ms) // 100)
        if pair in halted:
            state = State.HALTED
        elif silent[pair]:
            state = State.SILENT
        elif holes[pair]:
            state = State.HOLES
        elif age_ds is None:
            state = State.WAITING
        else:
            state = State.LATE if age_ds > late_ds else State.FRESH
        tiles.append(PairTile(state, age_ds, silent[pair], holes[pair]))
    return tiles
