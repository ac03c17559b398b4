"""The journal on a thread of its own: one caller at a time, the event loop never waits for the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from marketfeed.errors import JournalError
from marketfeed.journal import Journal

T = TypeVar("T")


class JournalWriter:
    """Opens the journal at `path` and runs calls on it, in their order. An async context manager.

    Entering raises what `Journal.open` raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None
        """Where the last damaged file was put, at the start or while running."""
        self.generation = 0
        """Rises by one with every file that is opened: the numbers of a fresh one begin anew."""
        self.next_seq = 0
        self.bytes_used = 0
        self.dead_letters = 0
        self.refused_lines = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: Journal | None = None
        self._documents: dict[str, tuple[bytes, int]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def call(self, function: Callable[[Journal], T]) -> T:
        """Run `function` on the journal, after all calls before. Raises what it raises."""
        return await self._in_thread(lambda: self._run(function))

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

        A file that proves to be whole is gone on with (closing it has mended it, or it is a backup).

        Raises JournalError when no fresh file can be made; it may be tried again.
        """
        await self._in_thread(self._replace)

    async def require_whole(self) -> None:
        """Raise JournalWriteError (`damaged`) when readers cannot read the file; beside all calls."""
        journal = self._journal
        if journal is not None:
            try:
                await asyncio.to_thread(journal.require_whole)
            except JournalError:
                if journal is self._journal:
                    raise

    def _open(self, *, distrusted: bool = False) -> None:
        self._journal = journal = Journal.open(self.path, distrusted=distrusted)
        self.generation += 1
        if journal.set_aside is not None:
            self.set_aside = journal.set_aside
        self._note(journal)

    def _replace(self) -> None:
        self._close()
        self._open()
        try:
            self._run(Journal.require_whole)
        except JournalError:
            # The check at opening did not come as far as the damage.
            self._close()
            self._open(distrusted=True)
        self._run(self._save_documents)

    def _save_documents(self, journal: Journal) -> None:
        for name, (body, saved_ms) in self._documents.items():
            journal.save_document(name, body, saved_ms)

    def _run(self, function: Callable[[Journal], T]) -> T:
        if self._journal is None:
            raise JournalError(f"journal {self.path}: not open")
        try:
            return function(self._journal)
        finally:
            self.next_seq = self._journal.next_seq

    def _note(self, journal: Journal) -> None:
        counts = journal.counts()
        self.bytes_used = counts["bytes"]
        self.dead_letters = counts["dead_letters"]
        self.refused_lines = counts["refused_lines"]
        self.next_seq = journal.next_seq

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    async def take_stock(self) -> None:
        """Bring `bytes_used` and `dead_letters` up to date."""
        await self.call(self._note)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
