"""What is shipped apart from the cursor, every few seconds: forming candles, and the catalog again.

Of a forming candle only the last state matters. A row of the catalog is shipped again at the start and once a
day, stamped anew: shipped once, at the time when it changed, a bucket that keeps 30 days would forget it.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from marketfeed.influxdb.delivery import Refused
from marketfeed.influxdb.outbox import Outbox
from marketfeed.schema import DAY_MS

log = logging.getLogger(__name__)


class Fresh(NamedTuple):
    """Lines to ship now, and how far they go: the highest seq of forming candles and of the catalog."""

    texts: list[str]
    forming_seq: int
    catalog_seq: int
    catalog_ms: int


class States:
    """What of them has been shipped. `every_s`: monotonic seconds between two looks.

    `now_ms` is the exchange's time, at which the catalog is shipped; None: a file without a catalog.
    """

    def __init__(self, every_s: float, now_ms: Callable[[], int] | None) -> None:
        self._every_s = every_s
        self._now_ms = now_ms
        self._forming_seq = 0
        self._catalog_seq = 0
        self._catalog_ms = 0
        self._shipped_s = -every_s
        self._refusal = ""

    def begin_anew(self) -> None:
        """Ship all of them, as from a journal that is shipped from its start."""
        self._forming_seq = self._catalog_seq = 0

    def are_due(self, now_s: float) -> bool:
        """Whether it is time for a look."""
        return now_s - self._shipped_s >= self._every_s

    def take(self, outbox: Outbox) -> Fresh:
        """Read what has changed. Raises JournalError."""
        texts, forming_seq = outbox.forming(self._forming_seq)
        catalog, seq, at_ms = self._catalog(outbox)
        return Fresh([*texts, *catalog], forming_seq, seq, at_ms)

    def note(self, fresh: Fresh, now_s: float) -> None:
        """Note that what was taken has been shipped."""
        _, self._forming_seq, self._catalog_seq, self._catalog_ms = fresh
        self._shipped_s = now_s

    def note_refused(self, refused: Refused) -> None:
        """Log that states were refused, once for each answer of the server."""
        if refused:
            line, answer = refused[0]
            if answer != self._refusal:
                log.error(
                    "forming candles, catalog or coverage refused lines=%d answer=%r line=%r",
                    len(refused),
                    answer,
                    line,
                )
            self._refusal = answer

    def _catalog(self, outbox: Outbox) -> tuple[list[str], int, int]:
        if self._now_ms is not None:
            at_ms = max(self._now_ms(), self._catalog_ms + 1)
            is_due = at_ms - self._catalog_ms >= DAY_MS
            # A row that is noted at one time and committed later: shipped in between, its former state
            # would be the newest.
            if is_due or outbox.catalog_changed(self._catalog_seq, self._catalog_ms):
                texts, seq = outbox.catalog_as_of(at_ms)
                if texts:
                    return texts, seq, at_ms
        return [], self._catalog_seq, self._catalog_ms
