"""Watches the journal's `-wal`: a reader that holds a transaction open makes it grow by gigabytes an hour."""

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from marketfeed.storage.wal import (
    HELD_S,
    WAL_BOUND_BYTES,
    Held,
    held_by,
    process,
    readers,
    wal_bytes,
)

log = logging.getLogger(__name__)

WHO: Final = "`marketfeed check`, as root on this host, names who holds it"


class WalWatch:
    """Looks at the `-wal` of the journal at `path` every few wall seconds; it may have `bound_bytes`."""

    def __init__(
        self,
        path: Path,
        bound_bytes: int = WAL_BOUND_BYTES,
        is_held: Callable[[], bool | None] = lambda: None,
    ) -> None:
        self._is_held = is_held
        self.bound_bytes = bound_bytes
        self.bytes = 0
        """Its size at the last look."""
        self.holders: list[str] = []
        """The processes that hold a transaction open while it is above its bound, as far as that is seen."""
        # The -wal is named after the file that a link points to.
        self._path = path.resolve()
        self._before: Collection[Held] = ()

    @property
    def is_above(self) -> bool:
        """Whether it is above its bound."""
        return self.bytes > self.bound_bytes

    def why(self) -> str:
        """Who keeps it from being folded back, or how to find out."""
        if self.holders:
            return f"{', '.join(self.holders)} holds a read transaction open"
        if self._is_held() is False:
            return "nobody holds it any more, the next commits cut it"
        return WHO

    async def run(self) -> None:
        """Look on and on, until it is cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(HELD_S)

    def look(self) -> None:
        """Look once."""
        was_above = self.is_above
        self.bytes = wal_bytes(self._path)
        if not self.is_above:
            if was_above:
                log.info("journal's -wal is folded back bytes=%d", self.bytes)
            self._before, self.holders = (), []
            return
        now = readers(self._path) or set()
        # Who comes and goes is not there at one of these looks.
        held = set(self._before) & now
        self.holders = [process(pid) for pid in held_by(held, now)]
        self._before = held or now
        if not was_above:
            log.error(
                "journal's -wal is above its bound, retention waits bytes=%d bound=%d; %s",
                self.bytes,
                self.bound_bytes,
                WHO,
            )
