"""What is asked of a store and what it answers: rows as they are stored. Times are exchange time in ms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.coverage import Interval
from reader.life import OPEN_MS, LifeRow, Part

PURE = True


class CatalogRow(NamedTuple):
    """What is collected of one pair, or was until its end. `dropped`: the settings have ended it.

    `lives` are the contracts that it has been the name of, oldest first; none where nobody tells. Of what
    happened after `lives_to_ms` they may not tell yet. `noted_ms` is when the row was written, where that
    matters.
    """

    pair: str
    timeframes: tuple[str, ...]
    since_ms: int
    listed_ms: int | None
    ended_ms: int | None
    dropped: bool = False
    lives: tuple[LifeRow, ...] = ()
    lives_to_ms: int = OPEN_MS
    noted_ms: int = 0

    @classmethod
    def stored(
        cls,
        pair: str,
        timeframes: str,
        since_ms: int,
        listed_ms: int | None,
        ended_ms: int | None,
        dropped: object,
    ) -> Self:
        """Make one of what is stored; `timeframes` are comma-separated.

        It is dropped by either sign: older collectors write `schema.DROPPED` in front of them alone.
        """
        names = timeframes.split(",")
        is_dropped = bool(dropped) or (len(names) > 1 and names[0] == schema.DROPPED)
        return cls(pair, tuple(filter(None, names)), since_ms, listed_ms, ended_ms, is_dropped)

    def of(self, part: Part) -> Self:
        """The row as it would be written of one part of the series alone.

        Where no end of the current life is told, or the settings have dropped the pair, its own end counts.
        """
        if not self.lives or (
            len(self.lives) == 1 and part.end_ms == OPEN_MS and part.start_ms == self.listed_ms
        ):
            # Nearly all are so.
            return self
        listed_ms = part.start_ms or None
        ended_ms, dropped = (None if part.end_ms == OPEN_MS else part.end_ms), False
        if part.is_current:
            listed_ms = listed_ms or self.listed_ms
            if ended_ms is None or self.dropped:
                ended_ms, dropped = self.ended_ms, self.dropped
        mine = () if part.life is None else (part.life,)
        return self._replace(listed_ms=listed_ms, ended_ms=ended_ms, dropped=dropped, lives=mine)

    def has_ended(self, now_ms: int) -> bool:
        """Whether nothing more is collected of the pair by `now_ms`."""
        return self.ended_ms is not None and self.ended_ms <= now_ms

    def is_over(self, now_ms: int) -> bool:
        """Whether there is nothing newer of the pair, stored or not: the exchange has ended it."""
        return self.has_ended(now_ms) and not self.dropped


class CandleQuery(NamedTuple):
    """The newest `limit` (None: all) closed candles of each pair with start <= open time < end.

    `timeframe` is one that is stored. `forming` asks for the forming candle as well. `whole_ms` is the
    length of the candles that the answer is put together to, where that is another. `columns` are fields of
    a candle that are asked for besides prices and volume. `own` is where one life's rows lie, [start, end):
    the answer is as if no others were stored.
    """

    pairs: Sequence[str]
    timeframe: str
    start_ms: int
    end_ms: int
    limit: int | None
    forming: bool
    whole_ms: int | None = None
    columns: tuple[str, ...] = ()
    own: tuple[int, int] = (0, OPEN_MS)


@dataclass(frozen=True, slots=True)
class CandleRows:
    """The answer for one pair.

    `values` has shape (n, 6) or more: open time in ms (exact in a float64 until the year 287396), open,
    high, low, close, volume, and the query's `columns`, NaN where one is not known. `first_ms` and
    `newest_ms` are the open times of the first and newest closed candle stored of this series, in the
    range or not; where `values` reach an end of the range or the limit, they may speak for what lies
    beyond it. `forming` is like a row of `values`. `told` is where the series is whole, as was told before
    the rows were read; None where nobody tells.
    """

    values: NDArray[np.float64]
    first_ms: int | None
    newest_ms: int | None
    forming: tuple[float, ...] | None
    told: Interval | None = None


def as_float(value: float | None) -> float:
    """A number as `CandleRows` has it."""
    return math.nan if value is None else float(value)


class MarkRow(NamedTuple):
    """The newest mark price of a pair, with the index price of the same moment if it had one."""

    pair: str
    time_ms: int
    mark_price: float
    index_price: float | None


class FundingRow(NamedTuple):
    """The newest running funding rate of a pair, with the last settled rate if one is known.

    `regular_ms` is the newest regular settlement; `then_ms` the first running rate after it that announced
    a later one, and `then_next_ms` when that was to be. They are None where none is stored.
    `settled_ms` is when `settled_rate` was settled, None where it is not stored by itself.
    """

    pair: str
    time_ms: int
    rate: float
    settled_rate: float | None
    next_funding_time_ms: int
    regular_ms: int | None = None
    then_ms: int | None = None
    then_next_ms: int | None = None
    settled_ms: int | None = None


class SettledRow(NamedTuple):
    """One settlement; `kind` is Binance's `rateType` (`Regular`, `Special`)."""

    time_ms: int
    rate: float
    kind: str


class Announced(NamedTuple):
    """From `from_ms` on (the grid of running rates) the next settlement was to be at `next_ms`."""

    from_ms: int
    next_ms: int
