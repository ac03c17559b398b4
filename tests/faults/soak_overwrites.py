"""Watches a journal from outside while it is written: which candle gave way to a worse one."""

import contextlib
import sqlite3
from pathlib import Path


class Overwrites:
    """Follows every change of a closed candle by the rows' numbers; one with fewer trades is worse."""

    def __init__(self, path: Path) -> None:
        self.rewritten = 0
        """How often a candle was stored again with other numbers."""
        self.worse: list[str] = []
        self._path = path
        self._known: dict[tuple[str, int, int], int] = {}
        self._seq = 0

    def look(self) -> None:
        """Take in what was stored since the last look."""
        # Another collector may just be opening the file, or not have made it.
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db,
        ):
            rows = db.execute(
                """SELECT pair.pair, timeframe_ms, open_time, trades, seq
                   FROM candle JOIN pair ON pair.id = pair_id WHERE seq > ?""",
                (self._seq,),
            ).fetchall()
            for pair, length_ms, open_ms, trades, seq in rows:
                key = pair, length_ms, open_ms
                known = self._known.get(key)
                if known is not None:
                    self.rewritten += 1
                    if trades < known:
                        self.worse.append(f"{pair} {length_ms} {open_ms}: {known} to {trades}")
                self._known[key] = trades
                self._seq = max(self._seq, seq)
