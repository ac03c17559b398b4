"""A bucket beside the journal that is shipped into it: tiles with the numbers of both, and their rows.

What waits to be shipped, is passed over or has expired is no part of a tile: it cannot lack.
"""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from marketfeed.grid import TimeRange
from marketfeed.influxdb.admin import StatementError
from marketfeed.influxdb.bucket_numbers import BucketNumbers
from marketfeed.influxdb.holds import time_of
from marketfeed.influxdb.journal_numbers import Held, JournalNumbers, Series, Unacknowledged
from marketfeed.influxdb.outbox import START, key_of
from marketfeed.influxdb.reconcile import Differing, Judged, judge, paired, recent_start_ms
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.writer import JournalWriter
from marketfeed.schema import DAY_MS, HOUR_MS

T = TypeVar("T")

_LATE_MS: Final = 10_000
"""Rows of so young a time may be on their way."""
_NARROWED: Final = 5_000
"""A tile of more rows is read by those of its hours that differ."""
_SMALL_SPAN_MS: Final = 2 * DAY_MS
SAMPLES: Final = 3
"""So many old tiles that are empty mean that the bucket was emptied."""


class NotNowError(Exception):
    """There is nothing to compare now; the text says why."""


class Step(NamedTuple):
    """A part of a round: what a pair has of a series in some days."""

    series: Series
    pair_id: int
    pair: str
    start_ms: int
    end_ms: int


class BothSides:
    """Asks the journal of `writer` and `bucket`. Raises JournalError, InfluxError, NotNowError.

    `target` is what the bucket is known by, `now_ms` the exchange's time.
    """

    def __init__(
        self,
        writer: JournalWriter,
        shipper: Shipper,
        bucket: BucketNumbers,
        target: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._writer = writer
        self._shipper = shipper
        self._bucket = bucket
        self._target = target
        self.now_ms = now_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compare")
        self._journal: JournalNumbers | None = None
        self._generation = 0
        self._refused: set[tuple[str, int]] = set()
        self._refused_ms = 0
        self.skipped: dict[str, str] = {}
        """Measurements that the server gives no numbers of, with its words."""
        self.asked_s = 0.0
        """For how long the server was asked (wall)."""
        self.read_s = 0.0
        """For how long the journal was read."""

    async def begin(self) -> bool:
        """Open the journal that is shipped now, if it is not; whether it was opened."""
        shipping = self._shipper.report()
        if shipping.state != "shipping" or shipping.acknowledged_ago_s is None:
            raise NotNowError(
                f"shipping is {shipping.state}: {shipping.trouble or 'no answer yet'}"
            )
        if self._generation == self._writer.generation and self._journal is not None:
            return False
        await self._ask(self._bucket.require_readable())
        generation = self._writer.generation
        await self._in_thread(self._open)
        self._generation = generation
        return True

    async def close(self) -> None:
        """Let go of the journal."""
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def held(self) -> list[Held]:
        """What the journal has to compare."""
        return await self._read(JournalNumbers.held)

    async def recent(self, helds: Sequence[Held]) -> list[Differing]:
        """The tiles of the last hours."""
        now_ms = self.now_ms()
        first_ms = recent_start_ms(now_ms)
        unacknowledged, floor_ms = await self._outside()
        await self._read(lambda journal: journal.forget_changed(first_ms))
        found: list[Differing] = []
        for held in helds:
            name = held.series.measurement
            until_ms = now_ms - _LATE_MS - held.series.length_ms
            for hour_ms in range(first_ms, now_ms, HOUR_MS):
                start_ms = max(hour_ms, floor_ms)
                end_ms = min(hour_ms + HOUR_MS, until_ms)
                end_ms = unacknowledged.below(name, start_ms, end_ms)
                if start_ms >= end_ms or self._waits(name, start_ms, end_ms):
                    continue
                try:
                    found += await self._hour(held, start_ms, end_ms, now_ms)
                    self.skipped.pop(name, None)
                except StatementError as error:
                    # A field of another type, say: the others are compared.
                    self.skipped[name] = str(error)
                    break
        return found

    async def _hour(self, held: Held, start_ms: int, end_ms: int, now_ms: int) -> list[Differing]:
        name = held.series.measurement
        numbers = await self._read(lambda journal: journal.hour(held, start_ms, end_ms, now_ms))
        theirs = await self._ask(self._bucket.of_pairs(name, held.series.field, start_ms, end_ms))
        return paired(
            held.series.measurement,
            {start_ms: end_ms},
            {(held.pairs[number], start_ms): found for number, found in numbers.items()},
            {(pair, start_ms): found for pair, found in theirs.items()},
        )

    async def days(self, step: Step) -> list[Differing]:
        """The tiles of some days of a pair, but those of which rows are to be shipped or passed over."""
        name, pair = step.series.measurement, step.pair
        unacknowledged, floor_ms = await self._outside()
        start_ms = max(step.start_ms, floor_ms)
        if start_ms >= step.end_ms:
            return []
        numbers = await self._read(
            lambda journal: journal.numbers(
                step.series, step.pair_id, start_ms, step.end_ms, DAY_MS
            )
        )
        try:
            theirs = await self._ask(
                self._bucket.of_pair(name, step.series.field, pair, start_ms, step.end_ms, DAY_MS)
            )
        except StatementError as error:
            self.skipped[name] = str(error)
            return []
        ends_ms, starts_ms = {}, {}
        for day_ms in numbers:
            first_ms, end_ms = max(day_ms, start_ms), min(day_ms + DAY_MS, step.end_ms)
            is_whole = unacknowledged.below(name, first_ms, end_ms) == end_ms
            if is_whole and not self._waits(name, first_ms, end_ms):
                ends_ms[first_ms] = end_ms
                starts_ms[day_ms] = first_ms
        return paired(
            name,
            ends_ms,
            {(pair, starts_ms[day]): one for day, one in numbers.items() if day in starts_ms},
            {(pair, starts_ms[day]): one for day, one in theirs.items() if day in starts_ms},
        )

    async def rows(self, series: Series, found: Differing) -> Judged:
        """Read a tile row by row: what is to be sent of it. Lines that were refused, or wait, are not."""
        judged = Judged([], [], [])
        _, floor_ms = await self._outside()
        for start_ms, end_ms in await self._narrowed(series, found):
            span = TimeRange(max(start_ms, floor_ms), end_ms)
            if span.start_ms < span.end_ms:
                some = await self._rows_of(series, found.tile.pair, span)
                judged = Judged(*(old + new for old, new in zip(judged, some, strict=True)))
        return self._sendable(judged)

    async def _rows_of(self, series: Series, pair: str, span: TimeRange) -> Judged:
        ours = await self._read(lambda journal: journal.lines(series, pair, span))
        theirs = await self._ask(self._bucket.lines(series.measurement, pair, span))
        return await asyncio.to_thread(judge, ours, theirs)

    async def _narrowed(self, series: Series, found: Differing) -> list[tuple[int, int]]:
        """What of a tile is to be read row by row."""
        name, pair, start_ms, end_ms = found.tile
        if found.ours.rows <= _NARROWED:
            return [(start_ms, end_ms)]
        numbers = await self._read(
            lambda journal: journal.numbers(
                series, journal.number_of(pair), start_ms, end_ms, HOUR_MS
            )
        )
        theirs = await self._ask(
            self._bucket.of_pair(name, series.field, pair, start_ms, end_ms, HOUR_MS)
        )
        return [
            (max(hour, start_ms), min(hour + HOUR_MS, end_ms))
            for hour, ours in sorted(numbers.items())
            if ours != theirs.get(hour)
        ]

    async def small(self, measurement: str) -> Judged:
        """Read the last days of a small measurement whole."""
        now_ms = self.now_ms()
        _, floor_ms = await self._outside()
        span = TimeRange(max(now_ms - _SMALL_SPAN_MS, floor_ms), now_ms - _LATE_MS)
        ours, _ = await self._read(
            lambda journal: journal.between(measurement, span, START, 1 << 40)
        )
        theirs = await self._ask(self._bucket.lines(measurement, None, span))
        return self._sendable(await asyncio.to_thread(judge, ours, theirs))

    async def are_old_tiles_empty(self) -> bool:
        """Whether the bucket has nothing of SAMPLES old tiles, drawn from those that were acknowledged."""
        found: dict[tuple[str, int, int], Step] = {}
        unacknowledged, floor_ms = await self._outside()
        end_ms = recent_start_ms(self.now_ms())
        candidates = [
            (held, number, max(oldest_ms, floor_ms))
            for held in await self.held()
            for number, oldest_ms in held.oldest_ms.items()
            if max(oldest_ms, floor_ms) < end_ms
        ]
        for _ in range(20 * SAMPLES if candidates else 0):
            held, number, oldest_ms = random.choice(candidates)
            day_ms = random.randrange(oldest_ms, end_ms) // DAY_MS * DAY_MS
            span = TimeRange(max(day_ms, oldest_ms), min(day_ms + DAY_MS, end_ms))
            step = Step(held.series, number, held.pairs[number], *span)
            name = held.series.measurement
            is_sent = unacknowledged.below(name, *span) == span.end_ms
            if is_sent and not self._waits(name, *span) and await self._has_rows(step):
                found[name, number, day_ms] = step
            if len(found) == SAMPLES:
                break
        for step in found.values():
            name, field = step.series.measurement, step.series.field
            if await self._ask(
                self._bucket.of_pair(name, field, step.pair, step.start_ms, step.end_ms, DAY_MS)
            ):
                return False
        return len(found) == SAMPLES

    async def _has_rows(self, step: Step) -> bool:
        span = step.start_ms, step.end_ms
        return bool(
            await self._read(
                lambda journal: journal.numbers(step.series, step.pair_id, *span, DAY_MS)
            )
        )

    # --- what is no part of a tile ----------------------------------------------------------------

    async def _outside(self) -> tuple[Unacknowledged, int]:
        """What is not acknowledged, and below which time (ms) rows may have expired."""
        acknowledged = self._shipper.shipped.copy()
        found = await self._read(lambda journal: journal.unacknowledged(acknowledged))
        if not found.is_all:
            raise NotNowError("many rows are to be shipped first")
        self._refused, self._refused_ms = await self._read(
            lambda journal: journal.refused(self._target)
        )
        floor_ms = self._shipper.held.book.floor_ms(self.now_ms())
        # An hour more, in which a server drops what has expired.
        return found, max(floor_ms + HOUR_MS if floor_ms else 0, self._refused_ms)

    def _waits(self, measurement: str, start_ms: int, end_ms: int) -> bool:
        """Whether rows of a range are passed over, or sent again soon."""
        has_floor = bool(self._shipper.held.book.floor_ms(self.now_ms()))
        return any(
            span.start_ms < end_ms and start_ms < span.end_ms
            for span in self._shipper.held.lacking(measurement)
            # What has expired ends at a floor, which is known more closely.
            if span.start_ms or not has_floor
        )

    def _sendable(self, judged: Judged) -> Judged:
        def some(lines: list[str]) -> list[str]:
            kept = [line for line in lines if (key_of(line), time_of(line)) not in self._refused]
            return self._shipper.held.sent(kept)

        return Judged(*map(some, judged))

    # --- asking -----------------------------------------------------------------------------------

    async def _ask(self, question: Awaitable[T]) -> T:
        started_s = time.monotonic()
        try:
            return await question
        finally:
            self.asked_s += time.monotonic() - started_s

    async def _read(self, read: Callable[[JournalNumbers], T]) -> T:
        journal = self._journal
        if journal is None or self._generation != self._writer.generation:
            raise NotNowError("the journal was replaced")
        started_s = time.monotonic()
        try:
            return await self._in_thread(lambda: read(journal))
        finally:
            self.read_s += time.monotonic() - started_s

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _open(self) -> None:
        self._close()
        self._journal = JournalNumbers(self._writer.path, socket.gethostname())

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
