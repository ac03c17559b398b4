"""Looks at a collector: what of a simulated week is due and missing, and what `/health` says meanwhile."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from marketfeed.gaps.holes import CANDLE_DUE_MS
from marketfeed.schema import TIMEFRAMES_MS, floor_to
from tests.faults.proc_commands import Answer
from tests.pairs.week_compare import SETTLES_MS, TIMEFRAMES
from tests.pairs.week_events import Contract

OLD_S: Final = 60.0
"""Exchange seconds for which a candle may be missing while `/health` does not tell of it."""
WALL_S: Final = 5.0
"""And wall seconds: a request, a commit and the collector's own looks do not shrink with exchange time."""


class Watch:
    """What was seen, of candles from `since_ms` on. `speed` is exchange seconds per wall second."""

    def __init__(self, journal: Path, since_ms: int, speed: float) -> None:
        self.said: Counter[str] = Counter()
        self.well_while_missing: list[str] = []
        self.with_reasons = 0
        """Looks at which something was missing for so long, and `/health` was not well."""
        self.soon = Counter[str]()
        """What `/health` said when something was missing for `OLD_S` exchange seconds: not judged."""
        self.first_reasons: Counter[str] = Counter()
        self._journal = journal
        self._since_ms = since_ms
        self._old_ms = CANDLE_DUE_MS + int((OLD_S + WALL_S * speed) * 1_000)
        self._stored: dict[tuple[str, int], set[int]] = {}
        self._seq = 0
        # Up to when all of a contract's candles are stored.
        self._whole_ms: dict[tuple[int, str], int] = {}

    def look(
        self, answer: Answer, reasons: Sequence[str], contracts: Sequence[Contract], now_ms: int
    ) -> None:
        """Hold what `/health` said a moment before `now_ms` against what is missing."""
        state = str(answer.json["state"]) if answer.status else "no answer"
        self.said[state] += 1
        for reason in reasons:
            self.first_reasons[_kind(reason)] += 1
        if not self._read():
            return
        missing, soon = self._missing(contracts, now_ms)
        if missing or soon:
            self.soon[state] += 1
        if missing and state == "well":
            self.well_while_missing.append(f"{now_ms}: {'; '.join(missing[:3])}")
        elif missing:
            self.with_reasons += 1

    def _read(self) -> bool:
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{self._journal}?mode=ro", uri=True)
            ) as db:
                rows = db.execute(
                    """SELECT pair.pair, timeframe_ms, open_time, seq
                       FROM candle JOIN pair ON pair.id = pair_id WHERE seq > ?""",
                    (self._seq,),
                ).fetchall()
        except sqlite3.Error:
            # It is just being made.
            return False
        for pair, length_ms, open_ms, seq in rows:
            self._stored.setdefault((pair, length_ms), set()).add(open_ms)
            self._seq = max(self._seq, seq)
        return True

    def _missing(self, contracts: Sequence[Contract], now_ms: int) -> tuple[list[str], bool]:
        """The first candle of each series that is due for too long, and whether one is for `OLD_S`.

        Of contracts to which nothing happens.
        """
        found = []
        soon = False
        for one in contracts:
            if (
                not one.is_live(now_ms)
                or now_ms < one.listed_ms + SETTLES_MS + self._old_ms
                or one.halted_since(now_ms, SETTLES_MS + self._old_ms) is not None
            ):
                continue
            for name in TIMEFRAMES:
                length_ms = TIMEFRAMES_MS[name]
                key = id(one), name
                stored = self._stored.get((one.pair, length_ms), set())
                begin_ms = max(floor_to(one.listed_ms, length_ms), self._since_ms)
                whole_ms = self._whole_ms.get(key, begin_ms)
                while whole_ms in stored:
                    whole_ms += length_ms
                self._whole_ms[key] = whole_ms
                soon |= whole_ms + length_ms + CANDLE_DUE_MS + int(OLD_S * 1_000) <= now_ms
                if whole_ms + length_ms + self._old_ms <= now_ms:
                    late_s = (now_ms - whole_ms - length_ms) // 1_000
                    found.append(f"{one.pair} {name} {whole_ms}, closed {late_s} s before")
        return found, soon


def _kind(reason: str) -> str:
    """A reason without its numbers and names."""
    words = reason.partition(": ")[0].partition(" (until")[0].split()
    return " ".join(
        "N" if word.strip("+-.,s").replace(".", "").isdigit() else word for word in words
    )


def shown(counts: Counter[str]) -> str:
    """Counts as words, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
