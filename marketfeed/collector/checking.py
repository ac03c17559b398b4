"""The check of the journal that runs behind a collector: begun at most weekly, slice by slice, and shown.

What it finds is a reason of `/health`. The file goes on: most of it can be read, and readers of that part
are told by their own errors. It is set aside when a call of the collector's meets what it found.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal.slices import Position, SlicedCheck, Unreadable
from marketfeed.journal.writer import JournalWriter
from marketfeed.storage.damage import meaning_of
from marketfeed.storage.opening import AGAIN_AFTER_S

log = logging.getLogger(__name__)

DOCUMENT: Final = "check"
"""In which a journal keeps how far its check is: after a restart it goes on from there."""
EVERY_MS: Final = 7 * schema.DAY_MS
BEGIN_AFTER_S: Final = 60.0
"""Wall seconds after a start: catching up goes first."""
LOOK_EVERY_S: Final = 600.0
"""Wall seconds until what was found is read again, while no check is under way."""
SAVE_EVERY_S: Final = 60.0
IDLE: Final = 4.0
"""It rests so many times as long as a slice took: others want the disk, and the core."""
MOST_FOUND: Final = 100
"""After so many findings it ends: the file is beyond a list."""


class CheckReport(msgspec.Struct, frozen=True):
    """How the check stands: `waiting` for its time, or `checking`; `done` of it is a fraction.

    `ended_ms` is when the last one ended (exchange time), None before the first. `unreadable` names what
    cannot be read, by series and range.
    """

    state: str
    done: float
    ended_ms: int | None
    unreadable: list[str]


class _Saved(msgspec.Struct):
    """The document. `begun_ms` is 0 when no check is under way."""

    begun_ms: int = 0
    ended_ms: int = 0
    position: Position = Position()
    unreadable: list[Unreadable] = []


class JournalCheck:
    """Checks the journal of `writer`. `idle` and `begin_after_s` are as the constants say."""

    def __init__(
        self,
        writer: JournalWriter,
        clock: ExchangeClock,
        *,
        begin_after_s: float = BEGIN_AFTER_S,
        idle: float = IDLE,
        again_after_s: tuple[float, ...] = AGAIN_AFTER_S,
        look_every_s: float = LOOK_EVERY_S,
        make: Callable[[], SlicedCheck] | None = None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._begin_after_s = begin_after_s
        self._idle = idle
        self._again_after_s = again_after_s
        self._look_every_s = look_every_s
        self._make = make
        self._saved = _Saved()
        self._done = 0.0
        self._is_checking = False
        self._generation = 0

    @property
    def unreadable(self) -> list[Unreadable]:
        """What cannot be read, as far as it is known."""
        return self._saved.unreadable

    def report(self) -> CheckReport:
        """How it stands."""
        return CheckReport(
            "checking" if self._is_checking else "waiting",
            self._done if self._is_checking else 0.0,
            self._saved.ended_ms or None,
            [str(found) for found in self.unreadable],
        )

    async def run(self) -> None:
        """Check when it is time, until cancelled. Never raises for what the disk does."""
        await self._load()
        await asyncio.sleep(self._begin_after_s)
        while True:
            try:
                if self._generation != self._writer.generation:
                    await self._load()
                saved = self._saved
                now_ms = self._clock.now_ms()
                # By a clock that was ahead it would never be time again.
                is_due = not saved.ended_ms <= now_ms < saved.ended_ms + EVERY_MS
                if saved.begun_ms or is_due:
                    await self._check()
                elif saved.unreadable:
                    await self._look_again()
            except (JournalError, OSError) as error:
                log.warning("journal not checked, trying again later error=%r", str(error))
            except Exception as error:
                # Nobody knows what a bad page gives: it is shown, and collecting goes on.
                log.exception("journal check ended by what it did not expect")
                self._note_unexpected(error)
            await asyncio.sleep(self._look_every_s)

    async def _load(self) -> None:
        self._generation = self._writer.generation
        self._saved = _Saved()
        try:
            known = await self._writer.call(
                lambda journal: journal.load_document(DOCUMENT), self._generation
            )
            if known is not None:
                self._saved = msgspec.json.decode(known[0], type=_Saved)
        except (JournalError, msgspec.DecodeError) as error:
            log.warning("journal's last check is not known error=%r", str(error))

    def _note_unexpected(self, error: Exception) -> None:
        saved = self._saved
        walk, at = saved.position.walk, saved.position.at
        why = f"the check cannot go on: {error!r}"
        if not any(found.why == why for found in saved.unreadable):
            saved.unreadable.append(
                Unreadable(walk, walk or "journal", at, None, why, is_time=False)
            )
        if saved.begun_ms:
            # The next one begins anew, in a week.
            saved.begun_ms, saved.ended_ms, saved.position = 0, self._clock.now_ms(), Position()

    async def _save(self) -> None:
        body, now_ms = msgspec.json.encode(self._saved), self._clock.now_ms()
        # Not as a document of the writer: a fresh journal has not been checked.
        await self._writer.call(
            lambda journal: journal.save_document(DOCUMENT, body, now_ms), self._generation
        )

    async def _check(self) -> None:
        saved = self._saved
        if not saved.begun_ms:
            saved.begun_ms, saved.position, saved.unreadable = self._clock.now_ms(), Position(), []
        check = (
            SlicedCheck(self._writer.path, saved.position) if self._make is None else self._make()
        )
        log.info("journal check begins from=%r", saved.position.walk)
        self._is_checking, saved_s = True, time.monotonic()
        before = list(saved.unreadable)
        try:
            while await self._sliced(check):
                if self._generation != self._writer.generation:
                    return
                saved.position, self._done = check.position, check.fraction
                saved.unreadable = before + check.unreadable
                if len(saved.unreadable) >= MOST_FOUND:
                    break
                if time.monotonic() - saved_s > SAVE_EVERY_S:
                    await self._save()
                    saved_s = time.monotonic()
            saved.unreadable = before + check.unreadable
            saved.begun_ms, saved.ended_ms, saved.position = 0, self._clock.now_ms(), Position()
            await self._save()
        finally:
            self._is_checking = False
            await asyncio.to_thread(check.close)
        log.info("journal checked unreadable=%d", len(saved.unreadable))

    async def _sliced(self, check: SlicedCheck) -> bool:
        """One slice; what cannot be read three times is a finding."""
        for pause_s in (*self._again_after_s, None):
            started_s = time.monotonic()
            try:
                goes_on = await asyncio.to_thread(check.step)
            except JournalWriteError as error:
                if not meaning_of(error).is_of_reading:
                    raise
                await asyncio.to_thread(check.close)
                if pause_s is None:
                    known = len(check.unreadable)
                    await asyncio.to_thread(check.skip, error)
                    for found in check.unreadable[known:]:
                        log.error("journal cannot be read in part what=%r", str(found))
                    return True
                self._writer.failed_reads.met(error)
                await asyncio.sleep(pause_s)
            else:
                await asyncio.sleep(self._idle * (time.monotonic() - started_s))
                return goes_on
        raise AssertionError("the last attempt returns or raises")

    async def _look_again(self) -> None:
        saved = self._saved
        check = SlicedCheck(self._writer.path)
        try:
            left = [
                found
                for found in saved.unreadable
                if not await asyncio.to_thread(check.reads, found)
            ]
        finally:
            await asyncio.to_thread(check.close)
        if len(left) < len(saved.unreadable):
            log.info("journal can be read again ranges=%d", len(saved.unreadable) - len(left))
            saved.unreadable = left
            await self._save()
