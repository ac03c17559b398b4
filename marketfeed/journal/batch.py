"""Records on their way to one commit.

Between two commits only the newest state of a forming candle matters, and of the mark prices and
funding rates only the first of each grid step, so a batch stays small however fast frames come.
"""

from collections.abc import Container, Iterable
from itertools import islice
from typing import Any, NamedTuple

from marketfeed import schema
from marketfeed.grid import TimeRange, joined
from marketfeed.journal.coverage import Key
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    MarkPrice,
    Record,
    RejectedFrame,
)

PURE = True


class Stamp(NamedTuple):
    """Exchange time, where CLOCK_BOOTTIME is the clock that is meant (`clock.boot_place`), and that clock."""

    exchange_ms: int
    boot: str
    boot_ms: int


class Due(NamedTuple):
    """Candles of a series are due that open before `until_ms`; those in `missing` had not come.

    Ranges, as after a month's absence these are millions.
    """

    until_ms: int
    missing: tuple[TimeRange, ...]

    def had_not_come(self, open_ms: int) -> bool:
        """Whether a candle is one of those."""
        return any(start_ms <= open_ms < end_ms for start_ms, end_ms in self.missing)


class Batch:
    """What one commit will write.

    `funding_rate_every_ms` is the grid of the running funding rate; mark prices lie on whole seconds.
    `candles` are closed ones to begin with, also of the mark price (`mark_1h`).
    A grid step holds the *earliest* event that falls into it: a point stamped T must not hold what was
    only known after T (and the result does not depend on the order of arrival).
    """

    __slots__ = (
        "absent",
        "candles",
        "catalog",
        "due",
        "forming",
        "funding_every_ms",
        "funding_rates",
        "gaps",
        "mark_prices",
        "marks",
        "rejected_frames",
        "settled",
        "stamp",
    )

    def __init__(
        self, funding_rate_every_ms: int = schema.MINUTE_MS, candles: Iterable[Candle] = ()
    ) -> None:
        self.funding_every_ms = funding_rate_every_ms
        every = list(candles)
        self.candles = [candle for candle in every if candle.timeframe != schema.MARK_1H]
        self.marks: list[Candle] = []
        """Candles of the mark price, all closed."""
        if len(self.candles) < len(every):
            self.marks = [candle for candle in every if candle.timeframe == schema.MARK_1H]
        self.forming: dict[tuple[str, str], Candle] = {}
        self.mark_prices: dict[tuple[str, int], MarkPrice] = {}
        self.funding_rates: dict[tuple[str, int], FundingRate] = {}
        self.settled: list[FundingSettled] = []
        self.gaps: dict[tuple[str, str | None, int], Gap] = {}
        self.catalog: list[CatalogEntry] = []
        self.rejected_frames: list[RejectedFrame] = []
        self.due: dict[Key, Due] = {}
        """What is due of a series by now, and had not come."""
        self.absent: list[tuple[Key, TimeRange, int]] = []
        """Where the exchange has answered without candles of a series, and when (ms)."""
        self.stamp: Stamp | None = None
        """What time it is, where readers are to be told with this commit."""

    def __len__(self) -> int:
        return (
            len(self.candles)
            + len(self.marks)
            + len(self.due)
            + len(self.absent)
            + len(self.forming)
            + len(self.mark_prices)
            + len(self.funding_rates)
            + len(self.settled)
            + len(self.gaps)
            + len(self.catalog)
            + len(self.rejected_frames)
        )

    def add(self, record: Record) -> None:
        """Take one record in, coalescing it with what the batch holds already."""
        if isinstance(record, Candle):
            if record.closed:
                self.candles.append(record)
            else:
                self._add_forming(record)
        elif isinstance(record, MarkPrice):
            key = (record.pair, schema.floor_to(record.event_time_ms, schema.SECOND_MS))
            mark = self.mark_prices.get(key)
            if mark is None or record.event_time_ms < mark.event_time_ms:
                self.mark_prices[key] = record
        elif isinstance(record, FundingRate):
            key = (record.pair, schema.floor_to(record.event_time_ms, self.funding_every_ms))
            funding = self.funding_rates.get(key)
            if funding is None or record.event_time_ms < funding.event_time_ms:
                self.funding_rates[key] = record
        elif isinstance(record, RejectedFrame):
            self.rejected_frames.append(record)
        elif isinstance(record, Gap):
            # The newest state of a gap counts.
            self.gaps[record.kind, record.pair, record.start_ms] = record
        elif isinstance(record, CatalogEntry):
            self.catalog.append(record)
        else:
            self.settled.append(record)

    def forget_due(self, pairs: Container[str]) -> None:
        """Take back what was taken in as due of these pairs, and is not stored as such."""
        for key in [key for key in self.due if key[0] in pairs]:
            del self.due[key]

    def expect(self, key: Key, due: Due) -> None:
        """Take in that candles of a series are due, and had not come when that was noticed."""
        known = self.due.get(key)
        if known is not None:
            both = tuple(joined((*known.missing, *due.missing), 1, within=0))
            due = Due(max(known.until_ms, due.until_ms), both)
        self.due[key] = due

    def extend(self, records: Iterable[Record]) -> None:
        """Take many records in."""
        for record in records:
            self.add(record)

    def merge(self, newer: "Batch") -> None:
        """Take in all of a batch that was gathered later (after a commit that failed)."""
        for candle in newer.forming.values():
            self._add_forming(candle)
        self.candles += newer.candles
        self.marks += newer.marks
        self.extend(newer.mark_prices.values())
        self.extend(newer.funding_rates.values())
        self.settled += newer.settled
        self.gaps |= newer.gaps
        self.catalog += newer.catalog
        self.rejected_frames += newer.rejected_frames
        self.absent += newer.absent
        self.stamp = newer.stamp or self.stamp
        for key, due in newer.due.items():
            self.expect(key, due)

    def shrink_to(self, max_records: int) -> dict[str, int]:
        """Give up records until at most `max_records` are left; returns how many of each kind went.

        For when the disk refuses for long: what the exchange answered without goes first, as it is asked
        again; then mark prices (the oldest of them), running funding rates, rejected frames, forming
        candles, and closed candles last.
        """
        gone: dict[str, int] = {}
        kept: tuple[tuple[str, list[Any] | dict[Any, Any]], ...] = (
            ("answer", self.absent),
            ("mark_price", self.mark_prices),
            ("funding_rate", self.funding_rates),
            ("rejected_frame", self.rejected_frames),
            ("forming", self.forming),
            ("candle", self.candles),
        )
        excess = len(self) - max_records
        for kind, records in kept:
            count = min(max(excess, 0), len(records))
            if not count:
                continue
            if isinstance(records, dict):
                for key in list(islice(records, count)):
                    del records[key]
            else:
                del records[:count]
            gone[kind] = count
            excess -= count
        return gone

    def _add_forming(self, candle: Candle) -> None:
        key = (candle.pair, candle.timeframe)
        known = self.forming.get(key)
        if known is None or (candle.open_time_ms, candle.event_time_ms) >= (
            known.open_time_ms,
            known.event_time_ms,
        ):
            self.forming[key] = candle
