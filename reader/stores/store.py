"""The questions that every store answers.

A store answers with rows as they are stored, oldest first; completeness, age and resampling are
judged in one place for all stores, outside. Times are exchange time, ms since the epoch.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reader.clock import StoreClock
from reader.coverage import Interval
from reader.rows import (
    Announced,
    CandleQuery,
    CandleRows,
    CatalogRow,
    FundingRow,
    MarkRow,
    SettledRow,
)


class Store(Protocol):
    """A place that the collector's data is read from.

    Safe in threads and after a fork. Every method raises StoreUnavailableError or StoreAuthError when
    the store cannot answer; a pair of which nothing is stored is absent from a mapping.
    """

    @property
    def source(self) -> str:
        """The store's address, without secrets."""

    @property
    def poll_s(self) -> float:
        """Wall seconds between two looks at `version` while waiting."""

    def clock(self) -> StoreClock | None:
        """What the store tells of the time; None if nothing."""

    def catalog(
        self, pairs: Sequence[str] | None = None, *, afresh: bool = False
    ) -> list[CatalogRow]:
        """What is collected, ordered by pair; of `pairs` alone if given. Some seconds old, or `afresh`."""

    def candles(self, query: CandleQuery) -> list[CandleRows]:
        """Answer `query`, in the order of its pairs: each from one state of the store."""

    def last_close(self, pairs: Sequence[str], timeframe: str) -> int | None:
        """When the newest closed candle of all of `pairs` closed (ms), of a stored timeframe.

        None without any, and from a store that answers for all pairs from one state.
        """

    def newest(self, timeframe: str) -> Mapping[str, int]:
        """Pair -> open time of its newest closed candle."""

    def with_candle(self, timeframe: str, open_time_ms: int) -> set[str]:
        """The pairs whose closed candle of that open time is stored."""

    def coverage(self, pairs: Sequence[str], timeframe: str) -> Mapping[str, Interval]:
        """Pair -> where its series is whole, as its collectors tell; without those of which none does."""

    def mark_prices(self, pairs: Sequence[str]) -> Mapping[str, MarkRow]:
        """The newest mark price of each of `pairs`."""

    def mark_minutes(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """Each minute's mark prices with start <= time < end, of minutes that have any, ascending.

        Shape (n, 5): the minute's start in ms, its first, greatest, least and last mark price.
        """

    def mark_hours(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """The hourly candles of the mark price with start <= open time < end, ascending.

        Shape (n, 5): open time in ms, open, high, low, close. None where the collector stores none.
        """

    def mark_coverage(self, pair: str) -> Interval | None:
        """Where they are whole, as collectors tell; None where none does."""

    def funding_rates(self, pairs: Sequence[str]) -> Mapping[str, FundingRow]:
        """The newest running funding rate of each of `pairs`."""

    def settled_rates(self, pair: str, start_ms: int, end_ms: int) -> list[SettledRow]:
        """Settlements with start <= time < end, oldest first; of one time the regular one first."""

    def announced(self, since_ms: Mapping[str, int]) -> Mapping[str, list[Announced]]:
        """Pair -> the settlements that its running rates announced, each change of them, oldest first.

        `since_ms` is pair -> from when on. The first is what stood then, if a running rate of then is stored.
        """

    def settled_to(self, pairs: Sequence[str]) -> Mapping[str, int]:
        """Up to when (ms, exclusive) all settlements of each of `pairs` are stored.

        Pairs of which the collector has noted nothing are absent.
        """

    def version(self) -> Hashable:
        """A value that differs once the store may have changed."""

    def close(self) -> None:
        """Let go of connections. Safe to call twice."""
