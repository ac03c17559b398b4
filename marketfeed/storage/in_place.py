"""Whether an open durable file is still where it was opened.

A writer goes on in a file that somebody has deleted, and nothing of it is ever read again. SQLite does not
notice that: it has its descriptors.
"""

import contextlib
import logging
import os
from pathlib import Path

from marketfeed.storage.files import identity

log = logging.getLogger(__name__)


class InPlace:
    """The file at `path`, its `-wal` and its `.lock`, as they are when this is made, right after its opening.

    A look is three `stat` of names that the kernel has in memory: tens of microseconds, and no disk is waited
    for. So it may be called on an event loop, before each order.
    """

    def __init__(self, path: Path, file: tuple[int, int] | None, lock_fd: int) -> None:
        self._wal = Path(f"{path}-wal")
        lock = os.fstat(lock_fd)
        self._known = {
            path: file,
            self._wal: None,
            Path(f"{path}.lock"): (lock.st_dev, lock.st_ino),
        }
        # It is there once something has been read or written, which is most often so by now.
        with contextlib.suppress(OSError):
            self._known[self._wal] = identity(self._wal)

    def gone(self) -> str:
        """What is not in its place any more, in words; empty: everything is.

        A name that cannot be looked at, as on a disk that fails, says nothing.
        """
        for name, known in self._known.items():
            try:
                found = identity(name)
            except OSError as error:
                log.debug("not looked at path=%s error=%r", name, error.strerror)
                continue
            if known is None and name is self._wal:
                # It was not there at the opening.
                self._known[name] = found
            elif found is None:
                return f"{name} is gone"
            elif found != known:
                return f"another file stands in the place of {name}"
        return ""
