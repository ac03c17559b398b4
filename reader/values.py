"""What the reader returns that is no DataFrame. All of it is immutable and can be pickled.

Times are `pandas.Timestamp` in UTC, exchange time; ages are seconds.
"""

from typing import ClassVar, NamedTuple, NoReturn, Self

import pandas as pd

PURE = True


class _Reading(float):
    """A float that knows where it comes from; arithmetic on it gives plain floats."""

    __slots__ = ("age_s", "pair", "time")

    _parts: ClassVar[tuple[str, ...]]

    pair: str
    time: pd.Timestamp
    age_s: float

    @classmethod
    def _made(cls, number: float, *parts: object) -> Self:
        self = float.__new__(cls, number)
        for name, value in zip(cls._parts, parts, strict=True):
            object.__setattr__(self, name, value)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (float(self), *(getattr(self, name) for name in self._parts))

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={getattr(self, name)!s}" for name in self._parts)
        return f"{type(self).__name__}({float.__repr__(self)}, {parts})"

    # Feeders print rates and write them into messages: there it stays the bare number.
    __str__ = float.__repr__


class FundingRate(_Reading):
    """The running funding rate of a pair, a fraction per interval: an estimate until the settlement.

    `settled_rate` is the last settlement's rate (None until one is known), `next_funding_time` the
    next settlement. `time` is the grid time of the value, `age_s` counts from there. `interval_h` are the
    hours from the last regular settlement to the next one; the exchange changes them as it likes. None
    where that is not known for sure, as in the moments after a settlement.
    """

    __slots__ = ("interval_h", "next_funding_time", "settled_rate")

    _parts = ("pair", "settled_rate", "next_funding_time", "time", "age_s", "interval_h")

    settled_rate: float | None
    next_funding_time: pd.Timestamp
    interval_h: float | None

    def __new__(
        cls,
        rate: float,
        pair: str,
        settled_rate: float | None,
        next_funding_time: pd.Timestamp,
        time: pd.Timestamp,
        age_s: float,
        interval_h: float | None = None,
    ) -> Self:
        """Make one out of its parts."""
        return cls._made(rate, pair, settled_rate, next_funding_time, time, age_s, interval_h)


class MarkPrice(_Reading):
    """The mark price of a pair in its quote currency, with `index_price` of the same moment.

    `index_price` is None where the exchange gives none (a contract without an index yet).
    `time` is the event time floored to the second, `age_s` counts from there.
    """

    __slots__ = ("index_price",)

    _parts = ("pair", "index_price", "time", "age_s")

    index_price: float | None

    def __new__(
        cls,
        mark_price: float,
        pair: str,
        index_price: float | None,
        time: pd.Timestamp,
        age_s: float,
    ) -> Self:
        """Make one out of its parts."""
        return cls._made(mark_price, pair, index_price, time, age_s)


class PairInfo(NamedTuple):
    """What is collected of a pair: its timeframes, since when, and when the exchange ends it.

    `ended` is None as long as no end is known. An announced one lies ahead, and the pair trades until
    then. One that the collector's settings have dropped ended then, and has no timeframes.
    `pandas.DataFrame(reader.pairs())` makes a table of them.
    """

    pair: str
    timeframes: tuple[str, ...]
    since: pd.Timestamp
    ended: pd.Timestamp | None


class Life(NamedTuple):
    """One contract that a pair has been the name of: a symbol can come back as another coin.

    `symbol` is the exchange's name of it (empty while an older collector alone tells of it), `listed` when it
    was listed (None where that is not known), and `ended` when it ended: None while it trades and no end is
    known. An announced one lies ahead.
    """

    symbol: str
    listed: pd.Timestamp | None
    ended: pd.Timestamp | None
