"""The journal on a thread of its own, and a fresh one in its place when it is damaged."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.damage import find_damage, is_certain, require_readable
from marketfeed.storage.database import CHECK_S, translate_sqlite_errors
from marketfeed.storage.file_thread import FileThread
from marketfeed.storage.files import identity

log = logging.getLogger(__name__)

T = TypeVar("T")


class JournalWriter(FileThread[Journal]):
    """The thread of the journal at `path`.

    A file is looked over for `check_s` wall seconds when it is opened. Entering raises what
    `Journal.open` raises, but for damage: a damaged file is set aside, wherever a start meets that. One that
    its disk does not let read is not damaged.
    """

    def __init__(self, path: Path, check_s: float = CHECK_S) -> None:
        super().__init__(KIND, path)
        self.on_damage: Callable[[JournalError], None] = lambda _: None
        """Called on the event loop when a call has met damage: the file is to be replaced."""
        self.set_aside: Path | None = None
        """Where the last damaged file was put, at the start or while running."""
        self.bytes_used = 0
        self.rejected_frames = 0
        self.refused_lines = 0
        self.gap_states = Counter[str]()
        """Gaps of candles that were found, healed and given up since the start, by state."""
        # What the journal held when it was looked at, and `gap_states` then.
        self._gaps_held = Counter[str](), Counter[str]()
        self._documents: dict[str, tuple[bytes, int]] = {}
        self._check_s = check_s
        # The file that was gone on with after damage had been met in it, by its identity.
        self._reprieved: tuple[int, int] | None = None
        # Whether something was met since then that no failed read can look like.
        self._certain = False

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

    async def call(self, function: Callable[[Journal], T]) -> T:
        """Run `function` on the journal, after all calls before. Raises what it raises.

        What SQLite raises comes as JournalWriteError.
        """
        try:
            return await super().call(function)
        except JournalWriteError as error:
            if error.damaged:
                self._certain |= is_certain(error.__cause__)
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

        A file that proves to be whole is gone on with: a read had failed, closing it has mended it, or it
        is a backup. What is met in it again lies beyond the checks of a start: then all of it is checked.

        Raises JournalError when it cannot be read, or no fresh file can be made; it may be tried again.
        """
        # Beside all calls: the heartbeat does not wait until a large file is read.
        distrusted = await asyncio.to_thread(self._is_damaged)
        await self._in_thread(partial(self._replace, distrusted=distrusted))

    async def require_whole(self) -> None:
        """Raise JournalWriteError (`damaged`) when readers cannot read the file; beside all calls."""
        journal = self._file
        if journal is not None:
            try:
                await asyncio.to_thread(journal.require_whole)
            except JournalError:
                if journal is self._file:
                    raise

    async def take_stock(self) -> None:
        """Bring what is counted of the file up to date: bytes, rejected frames, refused lines, gaps."""
        await self.call(self._note)

    def _open(self, *, distrusted: bool = False, proven: bool = False) -> None:
        try:
            self._open_and_look(distrusted=distrusted, proven=proven)
        except JournalWriteError as error:
            if distrusted:
                raise
            log.warning("journal could not be read, reading it again error=%r", str(error))
            self._open_again(proven=proven)
        self._look_beside()

    def _open_again(self, *, proven: bool) -> None:
        if not proven:
            require_readable(KIND.name, self.path)
        try:
            self._open_and_look(distrusted=False, proven=True)
        except JournalWriteError as error:
            if not error.damaged:
                raise
            # The check at opening did not come as far as the damage.
            self._open_and_look(distrusted=True, proven=True)

    def _open_and_look(self, *, distrusted: bool, proven: bool) -> None:
        """Open the file, and prove that what a collector reads first can be read."""
        self._file = journal = Journal.open(
            self.path, distrusted=distrusted, proven=proven, check_s=self._check_s
        )
        journal.gap_states = self.gap_states
        try:
            self._run(self._note)
            self._run(partial(Journal.require_whole, at_start=True))
        except BaseException:
            self._close()
            raise
        finally:
            if journal.set_aside is not None:
                self.set_aside = journal.set_aside
        self.generation += 1

    def _is_damaged(self) -> bool:
        """Whether the file is the one that was gone on with, and damage is proven by now."""
        require_readable(KIND.name, self.path)
        found = self._identity()
        if found is None or found != self._reprieved:
            return False
        if self._certain:
            return True
        with translate_sqlite_errors(KIND, self.path):
            what = find_damage(self.path)
        if not what:
            return False
        require_readable(KIND.name, self.path)
        with translate_sqlite_errors(KIND, self.path):
            return find_damage(self.path) == what

    def _replace(self, *, distrusted: bool) -> None:
        self._close()
        found = self._identity()
        self._open(distrusted=distrusted, proven=True)
        self._run(self._save_documents)
        # Last: what failed for another reason (a full disk) is tried again with the same file. A fresh
        # one has no damage behind it.
        self._reprieved = found if self._identity() == found else None
        self._certain = False

    def _identity(self) -> tuple[int, int] | None:
        try:
            return identity(self.path)
        except OSError as error:
            raise JournalError(f"journal {self.path}: {error.strerror or error}") from error

    def _save_documents(self, journal: Journal) -> None:
        for name, (body, saved_ms) in self._documents.items():
            journal.save_document(name, body, saved_ms)

    def _note(self, journal: Journal) -> None:
        counts = journal.counts()
        self.bytes_used = counts["bytes"]
        self.rejected_frames = counts["rejected_frames"]
        self.refused_lines = counts["refused_lines"]
        self._gaps_held = journal.gaps_by_state(), self.gap_states.copy()
