"""The journal on a thread of its own, and a fresh one in its place when it is damaged."""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from marketfeed.counters import Lately
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.damage import meaning_of
from marketfeed.storage.file_thread import FileThread
from marketfeed.storage.files import identity
from marketfeed.storage.opening import AGAIN_AFTER_S

log = logging.getLogger(__name__)

T = TypeVar("T")
Question: TypeAlias = Callable[[Journal], object]


class JournalWriter(FileThread[Journal]):
    """The thread of the journal at `path`.

    Entering raises what `Journal.open` raises, but for damage: a damaged file is set aside, wherever a start
    meets that. A call that cannot read is made again, `again_after_s` (wall seconds) later each time, past
    what SQLite has in memory: what fails three times at the same place has the file replaced.
    """

    def __init__(self, path: Path, again_after_s: Sequence[float] = AGAIN_AFTER_S) -> None:
        super().__init__(KIND, path)
        self.on_damage: Callable[[JournalError], None] = lambda _: None
        """Called on the event loop when a call has met damage: the file is to be replaced."""
        self.set_aside: Path | None = None
        """Where the last damaged file was put, at the start or while running."""
        self.failed_reads = Lately()
        """When the file could not be read last, be it that it could at once after."""
        self.bytes_used = 0
        self.rejected_frames = 0
        self.refused_lines = 0
        self.gap_states = Counter[str]()
        """Gaps of candles that were found, healed and given up since the start, by state."""
        # What the journal held when it was looked at, and `gap_states` then.
        self._gaps_held = Counter[str](), Counter[str]()
        self._documents: dict[str, tuple[bytes, int]] = {}
        self.again_after_s = tuple(again_after_s)
        """Wall seconds until what could not be read is asked for again."""
        # Which file that is that is open, or was last.
        self._opened: tuple[int, int] | None = None
        # The call that could not read to the end.
        self._unanswered: Question | None = None

    @property
    def coverage(self) -> Mapping[Key, Covered]:
        """What is promised of each series, and missing, as of the last commit; empty without a file."""
        journal = self._file
        return {} if journal is None else journal.coverage

    @property
    def mark_coverage(self) -> Mapping[Key, Covered]:
        """As `coverage`, of the hourly candles of mark prices."""
        journal = self._file
        return {} if journal is None else journal.mark_coverage

    @property
    def all_coverage(self) -> Mapping[Key, Covered]:
        """Both."""
        return {**self.coverage, **self.mark_coverage}

    @property
    def has_marks(self) -> bool:
        """Whether hourly candles of mark prices are stored; not without a file."""
        journal = self._file
        return journal is not None and journal.has_marks

    def ended_gaps(self) -> dict[str, int]:
        """How many gaps of candles the journal holds that are healed, and given up.

        As of the last look, and what has come since: one given up that is healed after all counts as both
        until the next look.
        """
        held, then = self._gaps_held
        return {
            state: held[state] + self.gap_states[state] - then[state]
            for state in ("healed", "unresolvable")
        }

    @property
    def has_quotes(self) -> bool:
        """Whether candles are stored with `taker_buy_quote_volume`."""
        journal = self._file
        return journal is not None and journal.has_quotes

    async def call(self, function: Callable[[Journal], T], generation: int | None = None) -> T:
        """Run `function` on the journal, after all calls before. Raises what it raises.

        What SQLite raises comes as JournalWriteError. When it could not read, it is run again: other calls
        pass in between, and the file may be replaced. With `generation` it is run on that file only:
        JournalError once another one is open. What is said of a file must not be written into its successor.
        """

        def of_that_file(journal: Journal) -> T:
            # On the thread: nothing can replace the file between this and the call.
            if generation is not None and generation != self.generation:
                raise JournalError(f"journal {self.path}: it was replaced meanwhile")
            return function(journal)

        for pause_s in self.again_after_s:
            try:
                return await super().call(of_that_file)
            except JournalWriteError as error:
                if not meaning_of(error).is_of_reading:
                    raise
                log.warning("journal could not be read, reading it again error=%r", str(error))
                self.failed_reads.met(error)
            await asyncio.sleep(pause_s)
            await self._in_thread(self._forget_pages)
        try:
            return await super().call(of_that_file)
        except JournalWriteError as error:
            if meaning_of(error).is_of_reading:
                self.failed_reads.met(error)
                self._unanswered = function
                self.on_damage(error)
            raise

    async def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document in the journal, and in the one that may have to replace it."""
        self._documents[name] = (body, saved_ms)
        await self.call(lambda journal: journal.save_document(name, body, saved_ms))

    async def load_document(self, name: str) -> tuple[bytes, int] | None:
        """Return what was last saved under `name` and when (ms), or None."""
        found = await self.call(lambda journal: journal.load_document(name))
        if found is not None:
            self._documents[name] = found
        return found

    async def replace(self) -> None:
        """Start anew after damage: the file is set aside as at a start, documents are kept.

        A file that proves to be whole is gone on with: a backup, say. So the call that could not read is
        among what is asked of it.

        Raises JournalError when it cannot be read, or no fresh file can be made; it may be tried again.
        """
        await self._in_thread(self._replace)

    async def require_whole(self) -> None:
        """Raise JournalWriteError (`damaged`) when readers cannot read the file; beside all calls."""
        journal = self._file
        if journal is not None:
            try:
                if met := await asyncio.to_thread(journal.require_whole):
                    self.failed_reads.met(met)
            except JournalError as error:
                if journal is self._file:
                    self.failed_reads.met(error)
                    raise

    async def take_stock(self) -> None:
        """Bring what is counted of the file up to date: bytes, rejected frames, refused lines, gaps."""
        await self.call(self._note)

    def _open(self) -> None:
        """Open the file, and prove that what a collector reads first can be read."""

        def look(journal: Journal) -> None:
            self._note(journal)
            journal.require_whole(at_start=True)
            # What could not be answered; not of a fresh file, which has nothing to answer with.
            if self._unanswered is not None and journal.next_seq > 1:
                self._unanswered(journal)

        started_s = time.monotonic()
        self._file = journal = Journal.open(self.path, again_after_s=self.again_after_s, look=look)
        with contextlib.suppress(OSError):
            self._opened = identity(self.path)
        journal.gap_states = self.gap_states
        self.next_seq = journal.next_seq
        if journal.set_aside is not None:
            self.set_aside = journal.set_aside
        self.generation += 1
        self._look_beside()
        log.info("journal open seconds=%.2f path=%s", time.monotonic() - started_s, self.path)

    def _replace(self) -> None:
        before, there = self._opened, None
        with contextlib.suppress(OSError):
            there = identity(self.path)
        self._close()
        self._open()
        # A file that was removed is looked for before it is closed: a fresh one may get its inode then.
        if there != before or self._opened != before:
            # It tells of another file.
            self.failed_reads.at_s = -math.inf
        self._run(self._save_documents)
        # Last: what failed for another reason (a full disk) is tried again with the same file.
        self._unanswered = None

    def _forget_pages(self) -> None:
        if self._file is not None:
            self._run(lambda journal: journal.db.execute("PRAGMA shrink_memory").fetchall())

    def _save_documents(self, journal: Journal) -> None:
        for name, (body, saved_ms) in self._documents.items():
            journal.save_document(name, body, saved_ms)

    def _note(self, journal: Journal) -> None:
        counts = journal.counts()
        self.bytes_used = counts["bytes"]
        self.rejected_frames = counts["rejected_frames"]
        self.refused_lines = counts["refused_lines"]
        self._gaps_held = journal.gaps_by_state(), self.gap_states.copy()
