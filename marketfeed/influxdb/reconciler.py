"""Compares a bucket with the journal all the time, beside the shipper, and has it send what the bucket lacks.

The hours of the last two are looked at every minute, all days in a round of a day at most. What is sent goes
in the shipper's own turns (`mends.py`, `holds.py`); here only questions are asked.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from marketfeed.errors import JournalError
from marketfeed.influxdb.admin import InfluxError, UnreadableError
from marketfeed.influxdb.both_sides import BothSides, NotNowError, Step
from marketfeed.influxdb.holds import Again
from marketfeed.influxdb.journal_numbers import SMALL, Series, rows_a_day
from marketfeed.influxdb.line_protocol import LineError
from marketfeed.influxdb.reconcile import (
    MOST_MENDED,
    NONE,
    CompareReport,
    Differing,
    Judged,
    Memory,
    days,
    recent_start_ms,
)
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.journal import KIND
from marketfeed.journal.writer import JournalWriter
from marketfeed.storage.acknowledged import demand_again

log = logging.getLogger(__name__)

_ROWS_AT_ONCE: Final = 200_000
"""So many rows of a pair are counted by one question."""
_LOOK_AT_MOST_S: Final = 120.0


class ComparePace(msgspec.Struct, frozen=True):
    """How the comparison is paced, in wall seconds.

    Recent hours are looked at `look_every_s`, what differs again `again_after_s` later. A round over all days
    takes `round_s` at most, the next begins `round_every_s` after it began; meanwhile the server is asked for
    `share` of the time. Small measurements are read `small_every_s`. Where the bucket may not be read that is
    tried again `off_s` later. The whole journal is sent again after twice `everything_every_s` at the
    soonest, then after twice as long each time.
    """

    look_every_s: float = 60.0
    again_after_s: float = 15.0
    share: float = 0.02
    round_s: float = 86_400.0
    round_every_s: float = 3_600.0
    small_every_s: float = 3_600.0
    off_s: float = 600.0
    wait_s: float = 5.0
    everything_every_s: float = 3_600.0


DEFAULT_PACE: Final = ComparePace()


class _Counts(msgspec.Struct):
    tiles: int = 0
    wrong: int = 0
    lacking: int = 0
    ranges: int = 0
    everything: int = 0
    foreign: int = 0
    looks: int = 0
    rounds: int = 0


class Reconciler:
    """Compares `sides`, of which `shipper` sends what `writer` has stored to `target`.

    Where it is not wanted, it says so and does nothing.
    """

    def __init__(
        self,
        writer: JournalWriter,
        shipper: Shipper,
        sides: BothSides,
        target: str,
        pace: ComparePace = DEFAULT_PACE,
        *,
        is_wanted: bool = True,
    ) -> None:
        self._writer = writer
        self._shipper = shipper
        self._sides = sides
        self._target = target
        self._pace = pace
        self._memory = Memory(pace.look_every_s)
        self._counts = _Counts()
        self._is_wanted = is_wanted
        self._state, self._why = "waiting", "starting"
        if not is_wanted:
            self._state, self._why = "off", "influxdb.compare is false"
        self._steps: Iterator[Step] | None = None
        self._steps_done = self._steps_of_round = 0
        now_s = time.monotonic()
        self._look_due_s = self._round_s = now_s
        # Two collectors of a bucket need not ask at the same times.
        self._step_due_s = self._small_due_s = now_s + random.uniform(0.0, pace.look_every_s)
        self._everything_s: float | None = None
        self._looked_s = now_s
        self._round_ended_s: float | None = None

    def report(self) -> CompareReport:
        """How it goes now."""
        now_s = time.monotonic()
        counts = self._counts
        return CompareReport(
            target=self._target,
            state=self._state,
            why=self._why,
            tiles=counts.tiles,
            wrong=counts.wrong,
            lacking=counts.lacking,
            mended=self._shipper.mends.sent,
            ranges=counts.ranges,
            everything=counts.everything,
            foreign=counts.foreign,
            left=len(self._memory),
            looks=counts.looks,
            rounds=counts.rounds,
            round_part=self._steps_done / self._steps_of_round if self._steps_of_round else 0.0,
            asked_s=self._sides.asked_s,
            last_look_ago_s=now_s - self._looked_s,
            last_round_ago_s=None if self._round_ended_s is None else now_s - self._round_ended_s,
        )

    async def run(self) -> None:
        """Compare until it is cancelled; no answer of the server and no state of the disk ends it before."""
        try:
            while self._is_wanted:
                idle_s = await self._turn()
                await asyncio.sleep(idle_s)
        finally:
            await self._sides.close()

    async def _turn(self) -> float:
        """Do what is due first; returns for how long there is nothing to do."""
        try:
            if await self._sides.begin():
                self._steps = None
            now_s = time.monotonic()
            if now_s >= self._look_due_s:
                await self._look()
            elif now_s >= self._small_due_s:
                await self._look_at_small()
            elif now_s >= self._step_due_s:
                await self._step()
        except UnreadableError as error:
            if self._state != "off":
                log.warning("the bucket may not be read, it is not compared error=%r", str(error))
            self._state, self._why = "off", str(error)
            return self._pace.off_s
        except (InfluxError, JournalError, LineError, NotNowError) as error:
            self._state, self._why = "waiting", str(error)
            return self._pace.wait_s
        skipped = (f"{name}: {words}" for name, words in self._sides.skipped.items())
        self._state, self._why = "comparing", "; ".join(skipped)
        due_s = min(self._look_due_s, self._small_due_s, self._step_due_s)
        return max(0.0, due_s - time.monotonic())

    async def _look(self) -> None:
        """Compare the hours of the last two."""
        began_s, asked_s = time.monotonic(), self._sides.asked_s
        helds = await self._sides.held()
        series = {held.series.measurement: held.series for held in helds}
        if found := self._differing(await self._sides.recent(helds)):
            await asyncio.sleep(self._pace.again_after_s)
            names = {one.tile.measurement for one in found}
            some = [held for held in helds if held.series.measurement in names]
            again = self._twice(found, await self._sides.recent(some))
            for name in names:
                await self._mend(
                    series[name], [one for one in again if one.tile.measurement == name]
                )
        self._counts.looks += 1
        self._looked_s = time.monotonic()
        share_s = (self._sides.asked_s - asked_s) / self._pace.share
        self._look_due_s = began_s + max(self._pace.look_every_s, min(share_s, _LOOK_AT_MOST_S))

    async def _step(self) -> None:
        """Compare the next part of the round."""
        now_s = time.monotonic()
        if self._steps is None:
            await self._begin_round()
            return
        step = next(self._steps, None)
        if step is None:
            # A journal without an old row may soon have some.
            every_s = self._pace.round_every_s if self._steps_of_round else self._pace.look_every_s
            self._step_due_s = max(now_s, self._round_s + every_s)
            self._counts.rounds += 1
            self._round_ended_s = now_s
            self._steps = None
            self._steps_done = self._steps_of_round = 0
            return
        asked_s, read_s = self._sides.asked_s, self._sides.read_s
        if found := self._differing(await self._sides.days(step)):
            await asyncio.sleep(self._pace.again_after_s)
            await self._mend(step.series, self._twice(found, await self._sides.days(step)))
        self._steps_done += 1
        took_s = max(self._sides.asked_s - asked_s, self._sides.read_s - read_s)
        most_s = self._pace.round_s / max(self._steps_of_round, 1)
        self._step_due_s = time.monotonic() + min(took_s / self._pace.share, most_s)

    async def _begin_round(self) -> None:
        end_ms = recent_start_ms(self._sides.now_ms())
        steps = [
            Step(held.series, number, held.pairs[number], start_ms, until_ms)
            for held in await self._sides.held()
            for number, oldest_ms in held.oldest_ms.items()
            for start_ms, until_ms in days(
                oldest_ms, end_ms, rows_a_day(held.series), _ROWS_AT_ONCE
            )
        ]
        random.shuffle(steps)
        self._steps = iter(steps)
        self._steps_done, self._steps_of_round = 0, len(steps)
        self._round_s = time.monotonic()

    async def _look_at_small(self) -> None:
        """Read the small measurements whole."""
        first = {name: await self._sides.small(name) for name in SMALL}
        if any(any(judged) for judged in first.values()):
            await asyncio.sleep(self._pace.again_after_s)
            for name, judged in first.items():
                again = await self._sides.small(name) if any(judged) else Judged([], [], [])
                both = (
                    [line for line in new if line in set(old)]
                    for old, new in zip(judged, again, strict=True)
                )
                self._tell(name, self._send(Judged(*both)))
        self._small_due_s = time.monotonic() + self._pace.small_every_s

    # --- what differs -----------------------------------------------------------------------------

    def _differing(self, tiles: Sequence[Differing]) -> list[Differing]:
        """Those of tiles that differ, and not as they are known to."""
        self._counts.tiles += len(tiles)
        now_s = time.monotonic()
        return [one for one in tiles if self._memory.differs(one, now_s)]

    def _twice(self, first: Sequence[Differing], tiles: Sequence[Differing]) -> list[Differing]:
        """Those that differ a second time."""
        now_s = time.monotonic()
        keys = {one.tile.key for one in first}
        again = [one for one in tiles if one.tile.key in keys]
        return [one for one in again if self._memory.differs(one, now_s)]

    async def _mend(self, series: Series, found: Sequence[Differing]) -> None:
        """Have sent what tiles lack that differ twice."""
        if any(one.theirs == NONE for one in found) and await self._is_emptied():
            self._note_sent(found)
            await self._send_everything()
        lacking = sum(one.lacking for one in found)
        if lacking > MOST_MENDED:
            lack = [one for one in found if one.lacking]
            self._note_sent(lack)
            self._send_ranges(series.measurement, lack, lacking)
            found = [one for one in found if not one.lacking]
        sent: list[str] = []
        for one in found:
            lines = self._send(await self._sides.rows(series, one))
            sent += lines
            if lines:
                self._note_sent([one])
            else:
                self._memory.leave(one, time.monotonic())
        self._tell(series.measurement, sent)

    def _note_sent(self, found: Sequence[Differing]) -> None:
        now_s = time.monotonic()
        for one in found:
            self._memory.sent(one, now_s)

    def _send(self, judged: Judged) -> list[str]:
        """Have lines sent again; returns those that are."""
        lacking = [*judged.lacking, *judged.fewer]
        once = self._memory.unsent(judged.other)
        self._counts.foreign += len(judged.other) - len(once)
        self._counts.lacking += len(lacking)
        lines = [*lacking, *once]
        self._counts.wrong += bool(lines)
        self._shipper.mends.add(lines)
        return lines

    def _tell(self, measurement: str, sent: Sequence[str]) -> None:
        if sent:
            log.warning(
                "the bucket lacks rows or holds others, they are sent again measurement=%s rows=%d first=%r",
                measurement,
                len(sent),
                sent[0],
            )

    def _send_ranges(self, measurement: str, lack: Sequence[Differing], lacking: int) -> None:
        """Have whole ranges of a measurement sent again, of all pairs."""
        spans = {(one.tile.start_ms, one.tile.end_ms) for one in lack}
        for start_ms, end_ms in spans:
            self._shipper.held.book.add(Again(measurement, start_ms, end_ms))
        self._counts.wrong += len(lack)
        self._counts.ranges += len(spans)
        self._counts.lacking += lacking
        log.warning(
            "the bucket has lost many rows, ranges are sent again measurement=%s lacking=%d ranges=%d",
            measurement,
            lacking,
            len(spans),
        )

    async def _is_emptied(self) -> bool:
        now_s = time.monotonic()
        # A bucket that keeps nothing is sent all ever more rarely.
        every_s = self._pace.everything_every_s * 2 ** min(self._counts.everything, 5)
        if self._everything_s is not None and now_s - self._everything_s < every_s:
            return False
        return await self._sides.are_old_tiles_empty()

    async def _send_everything(self) -> None:
        self._everything_s = time.monotonic()
        self._counts.everything += 1
        log.error("the bucket was emptied, all is sent again target=%r", self._target)
        await asyncio.to_thread(demand_again, KIND, self._writer.path, self._target)
        raise NotNowError("the bucket was emptied, all is sent again")
