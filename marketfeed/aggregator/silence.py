"""Which feeders have not posted for long: a silent one lowers every quorum, and nothing else shows it.

Times are ms since the epoch by the ledger's clock. What was posted before this start stands in the ledger;
it is looked through from the newest signal back, slice by slice, so that votes pass in between.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.errors import JournalError
from marketfeed.schema import DAY_MS

log = logging.getLogger(__name__)

SLICE: Final = 2_000
"""Signals that one look goes through: a few ms of the ledger's thread."""
RETRY_S: Final = 5.0
SILENT_MS: Final = DAY_MS
"""A feeder that has posted nothing for so long is silent."""


class Silence:
    """When each of `feeders` posted last; `began_ms` is when this run did."""

    def __init__(self, feeders: Iterable[str], began_ms: int) -> None:
        self._last_ms: dict[str, int | None] = dict.fromkeys(feeders)
        self._began_ms = began_ms
        self._oldest_ms: int | None = None
        self._is_known = False

    def heard(self, feeder: str, received_ms: int) -> None:
        """A signal of this feeder has been stored."""
        known_ms = self._last_ms.get(feeder, received_ms)
        if feeder in self._last_ms and (known_ms is None or known_ms < received_ms):
            self._last_ms[feeder] = received_ms

    def looked_back(self, oldest_ms: int | None) -> None:
        """Nobody else stands in the ledger, which goes back to there; None: it is empty."""
        self._oldest_ms, self._is_known = oldest_ms, True

    def is_looked_for(self) -> bool:
        """Whether the ledger may know more of a feeder."""
        return not self._is_known and None in self._last_ms.values()

    def silent_ms(self, now_ms: int) -> dict[str, int]:
        """For how long each has been silent.

        One that has never posted is so since this run began: before that, it may not have been a feeder.
        Left out are those of whom it is not known yet. What is dated ahead of the clock counts as now.
        """
        return {
            feeder: max(now_ms - (self._began_ms if last_ms is None else last_ms), 0)
            for feeder, last_ms in self._last_ms.items()
            if last_ms is not None or self._is_known
        }

    def warnings(self, now_ms: int) -> list[str]:
        """A sentence for each that is silent."""
        found = []
        for feeder, ms in self.silent_ms(now_ms).items():
            if self._last_ms[feeder] is not None:
                if ms >= SILENT_MS:
                    found.append(
                        f"feeder {feeder} has posted nothing for {_words(ms)}: its vote is missing in "
                        "every decision of its side"
                    )
            elif (
                now_ms - (self._began_ms if self._oldest_ms is None else self._oldest_ms)
                >= SILENT_MS
            ):
                found.append(
                    f"feeder {feeder} has never posted, as far as the ledger goes back: its vote is "
                    "missing in every decision of its side"
                )
        return found

    async def look_back(self, ledger: LedgerThread) -> None:
        """Find in the ledger whoever has not been heard. What the disk refuses is tried again."""
        below: int | None = None
        oldest_ms: int | None = None
        while self.is_looked_for():
            try:
                found, below, first_ms = await ledger.call(_slice_of(below))
            except JournalError as error:
                log.debug("signals not looked through error=%r", str(error))
                await asyncio.sleep(RETRY_S)
                continue
            for feeder, received_ms in found.items():
                self.heard(feeder, received_ms)
            oldest_ms = oldest_ms if first_ms is None else first_ms
            if below is None:
                self.looked_back(oldest_ms)
        self._is_known = True


def _slice_of(
    below: int | None,
) -> Callable[[Ledger], tuple[Mapping[str, int], int | None, int | None]]:
    """Of the signals below this number, the newest: by feeder, and where the next slice begins.

    None there: these were the last. And when the oldest of them was received; None: there is none.
    """

    def read(ledger: Ledger) -> tuple[Mapping[str, int], int | None, int | None]:
        rows = ledger.db.execute(
            "SELECT feeder, max(received), min(number), min(received), count(*) FROM "
            "(SELECT feeder, received, number FROM signal WHERE number < ? "
            "ORDER BY number DESC LIMIT ?) GROUP BY feeder",
            ((1 << 62) if below is None else below, SLICE),
        ).fetchall()
        if not rows:
            return {}, None, None
        more = sum(count for *_, count in rows) == SLICE
        lowest = min(number for _, _, number, _, _ in rows)
        found = {feeder: received_ms for feeder, received_ms, *_ in rows}
        return found, lowest if more else None, min(row[3] for row in rows)

    return read


def _words(ms: int) -> str:
    hours = ms / 3_600_000
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} d"
