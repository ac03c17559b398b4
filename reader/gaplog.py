"""A log of absent candles that does not repeat itself."""

import logging
from collections.abc import Sequence
from typing import Final

from reader.arguments import timestamp

log = logging.getLogger(__name__)

_REMEMBERED: Final = 10_000


class GapLog:
    """Logs each absent candle once, however often it is asked for."""

    # No lock: at worst two threads log the same gap, and a fork leaves none locked in the child.

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], set[int]] = {}
        self._young: set[tuple[str, str]] = set()
        self._without: set[str] = set()

    def note_young(self, pair: str, timeframe: str) -> None:
        """Log that a pair is too young for a candle, once."""
        if (pair, timeframe) not in self._young:
            self._young.add((pair, timeframe))
            log.warning(
                "no candle yet, just listed: empty frame pair=%s timeframe=%s", pair, timeframe
            )

    def note_without_rate(self, pairs: Sequence[str]) -> None:
        """Log that the exchange gives no running rate of pairs, each once until it does."""
        fresh = [pair for pair in pairs if pair not in self._without]
        self._without = set(pairs)
        if fresh:
            log.warning("no running funding rate, left out pairs=%s", ", ".join(fresh))

    def note(self, pair: str, timeframe: str, missing: Sequence[int]) -> None:
        """Log, in one line, the open times that were not logged before."""
        logged = self._logged.setdefault((pair, timeframe), set())
        fresh = [time for time in missing if time not in logged]
        if not fresh:
            return
        if len(logged) + len(fresh) > _REMEMBERED:
            logged.clear()
        logged.update(fresh)
        log.warning(
            "candles missing pair=%s timeframe=%s count=%d first=%s last=%s",
            pair,
            timeframe,
            len(fresh),
            timestamp(fresh[0]).isoformat(),
            timestamp(fresh[-1]).isoformat(),
        )
