"""The ledger on a thread of its own: one caller at a time, the event loop never waits for the disk."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import KIND
from marketfeed.errors import JournalError
from marketfeed.storage.damage import set_aside_beside
from marketfeed.storage.database import errors_told

T = TypeVar("T")


class LedgerThread:
    """Opens the ledger at `path` and runs calls on it, in their order. An async context manager.

    Entering raises what `Ledger.open` raises.
    """

    generation: Final = 1
    """One file for as long as this runs: a damaged one ends the service, and is set aside at the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loss = ""
        """What became of a ledger that should stand here; empty when nothing is known to be lost."""
        self.beside: tuple[str, ...] = ()
        """The damaged ledgers that lie beside this one, by this run or an earlier; see `look_beside`."""
        self.next_seq = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None

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

    async def call(self, function: Callable[[Ledger], T]) -> T:
        """Run `function` on the ledger, after all calls before. Raises what it raises.

        What SQLite raises comes as JournalWriteError.
        """
        return await self._in_thread(lambda: self._run(function))

    async def look_beside(self) -> None:
        """Bring `beside` up to date; it stays as it is while the disk does not say."""
        with contextlib.suppress(OSError):
            self.beside = await asyncio.to_thread(set_aside_beside, self.path)

    def _open(self) -> None:
        # A predecessor that was killed may take a moment to go.
        self._ledger = ledger = Ledger.open(self.path, wait_lock_s=2.0)
        self.loss = ledger.loss
        self.next_seq = ledger.next_seq
        with contextlib.suppress(OSError):
            self.beside = set_aside_beside(self.path)

    def _run(self, function: Callable[[Ledger], T]) -> T:
        if self._ledger is None:
            raise JournalError(f"ledger {self.path}: not open")
        try:
            with errors_told(KIND, self.path):
                return function(self._ledger)
        finally:
            self.next_seq = self._ledger.next_seq

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
