"""What the collectors tell of a series: between which times it is whole.

Within such an interval every candle is stored, but those that the exchange answered without twice: what is
not there will not come. Times are ms of exchange time; ranges are half open.
"""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

PURE = True

Short = Literal["listed", "history", "unknown"]
"""Why a frame does not reach as far back as it was asked to."""
LISTED: Final = "listed"
HISTORY: Final = "history"
UNKNOWN: Final = "unknown"


class Interval(NamedTuple):
    """From where up to where a series is whole."""

    from_ms: int
    until_ms: int


def furthest(intervals: Iterable[Interval]) -> Interval | None:
    """Join intervals that overlap or touch, and return the one that reaches furthest; None of none.

    Each is what one collector tells. One's beginning says nothing of what another has stored, unless
    they meet. Empty ones tell nothing.
    """
    best: Interval | None = None
    for interval in sorted(intervals):
        if interval.until_ms <= interval.from_ms:
            continue
        if best is not None and interval.from_ms <= best.until_ms:
            best = best._replace(until_ms=max(best.until_ms, interval.until_ms))
        else:
            # It begins behind all before it, and so ends behind them.
            best = interval
    return best


def of_journal(
    from_ms: int,
    looked_ms: int,
    end_ms: int,
    newest_ms: int | None,
    holes: Iterable[tuple[int, int]],
) -> Interval | None:
    """The newest part of a journal's series without a hole, as its collector tells a bucket; None of none.

    It is promised from `from_ms` on, and looked through down to `looked_ms`. Rows, and holes that the
    exchange does not have either, tell of it up to `end_ms`; `newest_ms` is the newest row, None of none.
    `holes` are the others, (start, end), in any order.
    """
    from_ms = max(from_ms, looked_ms)
    until_ms = end_ms
    for start_ms, hole_end_ms in holes:
        if hole_end_ms <= looked_ms:
            continue
        if newest_ms is not None and start_ms < newest_ms:
            from_ms = max(from_ms, hole_end_ms)
        else:
            until_ms = min(until_ms, start_ms)
    return Interval(from_ms, until_ms) if from_ms < until_ms else None


def never_come(
    told: Interval | None, opens: NDArray[np.int64], length_ms: int
) -> NDArray[np.bool_]:
    """Which candles, of those that are not stored, the exchange does not have either.

    None of them may open before the first row that is stored: a bucket's expiry takes rows, and its
    collectors do not tell.
    """
    if told is None:
        return np.zeros(len(opens), np.bool_)
    return (opens >= told.from_ms) & (opens + length_ms <= told.until_ms)


def why_short(first_ms: int | None, listed_ms: int | None, told: Interval | None) -> Short:
    """Why a series begins with its first stored candle (at `first_ms`, None of none), and not before.

    `listed_ms` is the first candle that the listing lets be there, None if the listing is not known.
    """
    if first_ms is None:
        return UNKNOWN
    if listed_ms is not None and first_ms <= listed_ms:
        return LISTED
    return UNKNOWN if told is None else HISTORY


def is_awaited(told: Interval | None, open_ms: int, length_ms: int) -> bool:
    """Whether a candle that is not stored may still come: the exchange has not twice answered without."""
    return told is None or open_ms < told.from_ms or open_ms + length_ms > told.until_ms


def stands_still(told: Interval, newest_ms: int | None, length_ms: int) -> bool:
    """Whether the exchange twice answered without what follows the newest candle: the pair is halted."""
    return newest_ms is not None and told.until_ms > newest_ms + length_ms
