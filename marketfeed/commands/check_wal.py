"""Who keeps the journal's `-wal` from being folded back: all that hold a read transaction open, by name."""

import asyncio
import time
from pathlib import Path

from marketfeed.commands.finding import Finding
from marketfeed.storage.files import identity
from marketfeed.storage.wal import HELD_S, WAL_BOUND_BYTES, held_by, process, readers, wal_bytes

_SUBJECT = "readers"


class WalCheck:
    """Two looks at who reads the journal at `path`: the first one now, the second `apart_s` later."""

    def __init__(self, path: Path, apart_s: float = HELD_S) -> None:
        self._path = path.resolve()
        self._first = readers(self._path, marks=True)
        self._due_s = time.monotonic() + apart_s

    async def findings(self) -> list[Finding]:
        """What the two looks have seen, when the time between them is over; none where there is no file."""
        try:
            if identity(self._path) is None:
                return []
        except OSError:
            # Of the file itself another finding tells.
            return []
        if self._first:
            await asyncio.sleep(max(self._due_s - time.monotonic(), 0.0))
        found = wal_bytes(self._path)
        size = f"the -wal has {found / 1e6:,.1f} MB"
        large = found > WAL_BOUND_BYTES
        if self._first is None:
            text = f"{size}; /proc/locks cannot be read here: run this as root on the host itself"
            return [Finding(_SUBJECT, "warning" if large else "good", text)]
        if holders := held_by(self._first, readers(self._path, marks=True) or ()):
            named = ", ".join(map(process, holders))
            text = (
                f"{named}: a read transaction is open for {HELD_S:.0f} s and more; {size}, and grows by "
                "every commit until it ends"
            )
            return [Finding(_SUBJECT, "warning", text)]
        if large:
            text = (
                f"{size}, and no process is seen to hold it: it is one of a container or of the host (run "
                "this there, as root), or the collector folds it back within a minute, also beside many "
                "that come and go; if it does not, its log names what it met (`-wal`)"
            )
            return [Finding(_SUBJECT, "warning", text)]
        return [Finding(_SUBJECT, "good", f"{size}; nobody holds a read transaction open")]
