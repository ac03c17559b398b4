"""What a journal holds, in numbers and as lines, for the comparison with a bucket.

On a connection of its own, and pair by pair: no read holds the file's log back for longer than one pair's.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.holds import time_of
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.outbox import key_of
from marketfeed.influxdb.reconcile import NONE, Numbers
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from marketfeed.storage.ranges import Acknowledged

MOST_UNACKNOWLEDGED: Final = 200_000
"""With more numbers than these that are not acknowledged, shipping is waited for: they are looked at."""


class Series(NamedTuple):
    """A measurement that is compared by numbers: sums are of `field`, rows are `length_ms` apart."""

    measurement: str
    table: str
    time: str
    field: str
    length_ms: int
    timeframe_ms: int | None = None

    @property
    def source(self) -> str:
        """The name under which its rows are acknowledged."""
        return "ohlcv" if self.table == "candle" else self.measurement

    @property
    def where(self) -> str:
        """What picks its rows of the table, before other conditions."""
        return "" if self.timeframe_ms is None else f"timeframe_ms = {self.timeframe_ms} AND"


SERIES: Final = (
    *(
        Series(schema.ohlcv_measurement(name), "candle", "open_time", "trades", ms, ms)
        for name, ms in schema.TIMEFRAMES_MS.items()
    ),
    Series(schema.MARK_PRICE, "mark_price", "time", "mark_price", SECOND_MS),
    Series(schema.MARK_1H, schema.TABLE_MARK_1H, "open_time", "open", HOUR_MS),
    Series(schema.FUNDING_RATE, "funding_rate", "time", "rate", MINUTE_MS),
)
SMALL: Final = (schema.FUNDING_SETTLED, schema.FEED_GAP, schema.FEED_CATALOG)
"""Those that are read whole."""


class Held(NamedTuple):
    """What a journal holds of a series: the oldest row of each pair, by the pair's number and name."""

    series: Series
    pairs: dict[int, str]
    oldest_ms: dict[int, int]


class Unacknowledged(NamedTuple):
    """Times of rows that are not acknowledged, by measurement; `is_all`: they were not too many."""

    times_ms: dict[str, set[int]]
    is_all: bool

    def below(self, measurement: str, start_ms: int, end_ms: int) -> int:
        """Where a range ends, below the oldest row of it that is not acknowledged."""
        times_ms = self.times_ms.get(measurement, ())
        return min((at_ms for at_ms in times_ms if start_ms <= at_ms < end_ms), default=end_ms)


class JournalNumbers(JournalOutbox):
    """Reads a journal for the comparison. For one thread at a time. Raises JournalError."""

    def __init__(self, path: Path, collector: str) -> None:
        super().__init__(path, collector)
        self._hours: dict[tuple[str, int, int, int], Numbers] = {}
        self._seen: int | None = None
        # What was read of lines that were put aside, and by what it is seen that there are others.
        self._put_aside: tuple[tuple[Any, ...], tuple[set[tuple[str, int]], int]] | None = None

    def held(self) -> list[Held]:
        """What there is to compare."""
        with self._one_state():
            names = dict(self._db.execute("SELECT id, pair FROM pair"))
        found = []
        for series in SERIES:
            if series.table == schema.TABLE_MARK_1H and not self._has_marks:
                continue
            text = f"SELECT min({series.time}) FROM {series.table} WHERE {series.where} pair_id = ?"
            with self._one_state():
                oldest = {n: self._db.execute(text, (n,)).fetchone()[0] for n in names}
            there = {number: at_ms for number, at_ms in oldest.items() if at_ms is not None}
            if there:
                found.append(Held(series, {number: names[number] for number in there}, there))
        return found

    def unacknowledged(self, acknowledged: Acknowledged) -> Unacknowledged:
        """The times of rows that are not `acknowledged`."""
        found: dict[str, set[int]] = {}
        with self._one_state():
            pieces = list(acknowledged.pieces(self._next_seq()))
            if sum(piece.last - piece.first + 1 for piece in pieces) > MOST_UNACKNOWLEDGED:
                return Unacknowledged({}, is_all=False)
            for piece in pieces:
                for name, at_ms in self._times(piece.first, piece.last, piece.measurements):
                    found.setdefault(name, set()).add(at_ms)
        return Unacknowledged(found, is_all=True)

    def _times(self, first: int, last: int, sources: Sequence[str]) -> Iterator[tuple[str, int]]:
        # The index on `seq` holds the key, too: no row is read.
        for series in SERIES:
            if series.source not in sources:
                continue
            if series.table == schema.TABLE_MARK_1H and not self._has_marks:
                continue
            for (at_ms,) in self._db.execute(
                f"SELECT {series.time} FROM {series.table} "
                f"WHERE {series.where} seq BETWEEN ? AND ?",
                (first, last),
            ):
                yield series.measurement, at_ms

    def numbers(
        self, series: Series, pair_id: int, start_ms: int, end_ms: int, step_ms: int
    ) -> dict[int, Numbers]:
        """A pair's numbers of a range, by the start of each tile of `step_ms`."""
        where = f"{series.where} pair_id = ? AND {series.time} >= ? AND {series.time} < ?"
        asked = (pair_id, start_ms, end_ms)
        if series.table == "candle":
            text = (
                f"SELECT {series.time} / {step_ms}, count(*), sum({series.field}) "
                f"FROM {series.table} WHERE {where} GROUP BY 1"
            )
            with self._one_state():
                rows = self._db.execute(text, asked).fetchall()
            return {tile * step_ms: Numbers(count, total) for tile, count, total in rows}
        text = (
            f"SELECT {series.time}, {series.field} FROM {series.table} WHERE {where} "
            f"ORDER BY {series.time}"
        )
        with self._one_state():
            rows = self._db.execute(text, asked).fetchall()
        # One after the other, as InfluxDB adds them: neither SQLite's sum nor Python's does.
        counts: dict[int, int] = {}
        totals: dict[int, float] = {}
        for at_ms, value in rows:
            tile = at_ms // step_ms
            counts[tile] = counts.get(tile, 0) + 1
            totals[tile] = totals[tile] + value if tile in totals else value
        return {tile * step_ms: Numbers(counts[tile], totals[tile]) for tile in counts}

    def hour(self, held: Held, start_ms: int, end_ms: int, now_ms: int) -> dict[int, Numbers]:
        """The numbers of all pairs in an hour up to `end_ms`; those of a closed hour are kept."""
        is_closed = end_ms == start_ms + HOUR_MS and end_ms <= now_ms
        found = {}
        for number in held.pairs:
            key = (held.series.measurement, number, start_ms, end_ms)
            numbers = self._hours.get(key) if is_closed else None
            if numbers is None:
                by_tile = self.numbers(held.series, number, start_ms, end_ms, HOUR_MS)
                numbers = by_tile.get(start_ms // HOUR_MS * HOUR_MS, NONE)
                if is_closed:
                    self._hours[key] = numbers
            found[number] = numbers
        return found

    def forget_changed(self, before_ms: int) -> None:
        """Forget numbers of hours in which rows have changed since the last time, and of `before_ms`."""
        with self._one_state():
            end = self._next_seq()
            changed: set[tuple[str, int, int]] = set()
            if self._seen is None or end - self._seen > MOST_UNACKNOWLEDGED:
                self._hours.clear()
            else:
                for series in SERIES:
                    if series.table == schema.TABLE_MARK_1H and not self._has_marks:
                        continue
                    changed |= {
                        (series.measurement, number, hour * HOUR_MS)
                        for number, hour in self._db.execute(
                            f"SELECT DISTINCT pair_id, {series.time} / {HOUR_MS} FROM {series.table} "
                            f"WHERE {series.where} seq >= ?",
                            (self._seen,),
                        )
                    }
            self._seen = end
        self._hours = {
            key: numbers
            for key, numbers in self._hours.items()
            if key[:3] not in changed and key[2] >= before_ms
        }

    def number_of(self, pair: str) -> int:
        """A pair's number in the file, -1 if it has none."""
        with self._one_state():
            found = self._db.execute("SELECT id FROM pair WHERE pair = ?", (pair,)).fetchone()
        return -1 if found is None else int(found[0])

    def lines(self, series: Series, pair: str, span: TimeRange) -> list[str]:
        """A pair's rows of a series as lines."""
        ((table, where, keys, write),) = self._series(series.measurement)
        with self._one_state():
            rows = self._db.execute(
                f"SELECT seq, {self._columns[table]} FROM {table} WHERE {where} "
                "pair_id = (SELECT id FROM pair WHERE pair = ?) "
                f"AND {series.time} >= ? AND {series.time} < ?",
                (*keys, pair, span.start_ms, span.end_ms),
            ).fetchall()
            return write(rows) if rows else []

    def refused(self, target: str) -> tuple[set[tuple[str, int]], int]:
        """The points of lines that were put aside, and below which time (ms) the bucket keeps none."""
        places: set[tuple[str, int]] = set()
        too_old_ms = 0
        with self._one_state():
            text = "SELECT count(*), max(id) FROM refused_line"
            state = (target, *self._db.execute(text).fetchone())
            if self._put_aside is not None and self._put_aside[0] == state:
                return self._put_aside[1]
            for line, answer in self._db.execute(
                "SELECT line, answer FROM refused_line WHERE target = ?", (target,)
            ):
                places.add((key_of(line), time_of(line)))
                if "retention policy" in answer:
                    too_old_ms = max(too_old_ms, time_of(line) + 1)
        self._put_aside = state, (places, too_old_ms)
        return places, too_old_ms


def rows_a_day(series: Series) -> float:
    """How many rows a pair has in a day at most."""
    return DAY_MS / series.length_ms
