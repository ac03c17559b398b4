"""Which feeders decided an order, by the aggregator's ledger, where it is on this host and readable."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.bots.books import Key
from marketfeed.errors import JournalError
from marketfeed.storage.reading import reading

FILLED_MS: Final = 60_000
"""A trade opens at most so long after its order was decided (`aggregator.expire_s` and the bot's answer)."""
CLOCKS_MS: Final = 5_000


class LedgerFeeders:
    """Reads the ledger at `path`, beside its aggregator if it has one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def find(self, orders: Sequence[tuple[Key, str]]) -> list[tuple[Key, str | None]]:
        """For each trade (key, tag) the feeders of its decision, by comma; None: it has none.

        Empty where the ledger is not readable: whoever asks, asks again.
        """
        return await asyncio.to_thread(self._find, orders)

    def _find(self, orders: Sequence[tuple[Key, str]]) -> list[tuple[Key, str | None]]:
        try:
            if not self._path.exists():
                return []
            with reading(KIND, self._path) as db:
                found: list[tuple[Key, str | None]] = []
                for key, tag in orders:
                    # The same tag comes again: the last decision before the trade opened.
                    row = db.execute(
                        """SELECT feeders FROM decision
                           WHERE tag = ? AND decided BETWEEN ? AND ? ORDER BY decided DESC LIMIT 1""",
                        (tag, key[0] - FILLED_MS, key[0] + CLOCKS_MS),
                    ).fetchone()
                    found.append((key, None if row is None else str(row[0])))
                return found
        except (JournalError, OSError):
            return []
