"""Has the `-wal` of a durable file begin anew beside readers that come and go.

SQLite's own checkpoints begin no `-wal` anew while anybody reads it, be it always another one. One that waits
for readers (RESTART) does: who comes after all of it is in the file reads the file alone. It holds up
commits, so most of the work is done before it by another connection, beside the writer.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from marketfeed.errors import JournalError
from marketfeed.storage.file_thread import FileThread
from marketfeed.storage.files import identity, wal_bytes
from marketfeed.storage.numbered_file import NumberedFile

log = logging.getLogger(__name__)

FOLD_BYTES: Final = 32 * 10**6
"""So much is more than a burst of commits leaves in a `-wal` that nobody reads."""
EVERY_S: Final = 60.0
WAIT_MS: Final = 300
"""For so long commits may wait: many short readers took 10 to 240 ms."""
_LOOK_S: Final = 5.0
_AUTOMATIC_PAGES: Final = 1_000
"""SQLite's own: after a commit that leaves more in the `-wal` it is folded back."""

F = TypeVar("F", bound=NumberedFile)


class Folding:
    """Of the file of `thread`, whose `-wal` may have `bound_bytes` before anything is done."""

    def __init__(self, thread: FileThread[F], bound_bytes: int = FOLD_BYTES) -> None:
        self.is_held: bool | None = None
        """Whether a reader was in a transaction for all of WAIT_MS at the last attempt; None without one."""
        self._call = thread.call
        self._path = thread.path.resolve()
        self._bound_bytes = bound_bytes

    async def run(self) -> None:
        """Look on and on, until it is cancelled; an error ends an attempt, and not this."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if await self.fold():
                await asyncio.sleep(EVERY_S - _LOOK_S)

    async def fold(self) -> bool:
        """Make an attempt if the `-wal` is above its bound; whether one was made."""
        try:
            if wal_bytes(self._path) <= self._bound_bytes:
                self.is_held = None
                return False
            # The commit after a reader's long transaction would fold all of it back, and hold up others.
            opened = await self._call(_leave_to_others)
            left = await asyncio.to_thread(_fold_beside, self._path, opened)
            if left is not None and left <= self._bound_bytes:
                # Such a size is left from before: it has begun anew by itself.
                self.is_held = False
                await self._call(lambda file: _set_automatic(file.db, _AUTOMATIC_PAGES))
                return True
            started_s = time.monotonic()
            was_held, self.is_held = (
                self.is_held,
                not await self._call(lambda file: begin_anew(file.db)),
            )
            took_s = time.monotonic() - started_s
        except (JournalError, sqlite3.Error, OSError) as error:
            log.warning("-wal not folded back, trying again later error=%r", str(error))
            with contextlib.suppress(JournalError):
                await self._call(lambda file: _set_automatic(file.db, _AUTOMATIC_PAGES))
            return True
        if not self.is_held:
            log.info("-wal begins anew path=%s seconds=%.3f", self._path, took_s)
        elif not was_held:
            log.warning(
                "-wal cannot begin anew: a reader is in a transaction for more than %d ms path=%s; "
                "trying again each minute",
                WAIT_MS,
                self._path,
            )
        return True


def begin_anew(db: sqlite3.Connection) -> bool:
    """Have the next commit begin the `-wal` anew; False when a reader holds it for all of WAIT_MS.

    For the writer's connection. Raises sqlite3.Error. When it succeeds, SQLite folds back by itself again.
    """
    (before_ms,) = db.execute("PRAGMA busy_timeout").fetchone()
    db.execute(f"PRAGMA busy_timeout = {WAIT_MS}").fetchall()
    try:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(before_ms)}").fetchall()
    if not busy:
        _set_automatic(db, _AUTOMATIC_PAGES)
    return not busy


def _set_automatic(db: sqlite3.Connection, pages: int) -> None:
    db.execute(f"PRAGMA wal_autocheckpoint = {pages}").fetchall()


def _leave_to_others(file: NumberedFile) -> tuple[int, int] | None:
    """Have no commit fold the `-wal` back; which file that is."""
    _set_automatic(file.db, 0)
    return file.identity


def _fold_beside(path: Path, opened: tuple[int, int] | None) -> int | None:
    """Write into the file what no reader hinders; how many bytes the `-wal` has in use, None if unknown.

    Commits go on beside it. Raises sqlite3.Error and OSError.
    """
    url = f"file://{quote(bytes(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(url, uri=True, isolation_level=None)) as db:
        # Another file that has come to stand there is not this one's to write.
        if opened is None or identity(path) != opened:
            return None
        db.execute("PRAGMA synchronous = FULL")
        _, frames, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    return None if frames < 0 else int(frames) * int(page_bytes)
