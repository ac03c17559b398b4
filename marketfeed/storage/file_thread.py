"""A durable file on a thread of its own: one caller at a time, the event loop never waits for the disk."""

import abc
import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Self, TypeVar

from marketfeed.errors import JournalError
from marketfeed.storage.damage import set_aside_beside
from marketfeed.storage.database import Kind, translate_sqlite_errors
from marketfeed.storage.numbered_file import NumberedFile

F = TypeVar("F", bound=NumberedFile)
T = TypeVar("T")


class FileThread(abc.ABC, Generic[F]):
    """Opens the file at `path` and runs calls on it, in their order. An async context manager."""

    def __init__(self, kind: Kind, path: Path) -> None:
        self.path = path
        self.beside: tuple[str, ...] = ()
        """The damaged files that lie beside this one, by this run or an earlier; see `look_beside`."""
        self.generation = 0
        """Rises by one with every file that is opened: the numbers of a fresh one begin anew."""
        self.next_seq = 0
        self._kind = kind
        self._file: F | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=kind.name)

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

    @property
    def version(self) -> int:
        """The schema version of the file; 0 of none."""
        file = self._file
        return 0 if file is None else file.version

    async def call(self, function: Callable[[F], T]) -> T:
        """Run `function` on the file, after all calls before. Raises what it raises.

        What SQLite raises comes as JournalWriteError.
        """
        return await self._in_thread(lambda: self._run(function))

    async def look_beside(self) -> None:
        """Bring `beside` up to date; it stays as it is while the disk cannot be read."""
        await asyncio.to_thread(self._look_beside)

    @abc.abstractmethod
    def _open(self) -> None:
        """Open the file: `_file`, `generation` and `beside` are as it stands then."""

    def _look_beside(self) -> None:
        with contextlib.suppress(OSError):
            self.beside = set_aside_beside(self.path)

    def _run(self, function: Callable[[F], T]) -> T:
        if self._file is None:
            raise JournalError(f"{self._kind.name} {self.path}: not open")
        try:
            with translate_sqlite_errors(self._kind, self._file.path):
                return function(self._file)
        finally:
            self.next_seq = self._file.next_seq

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
