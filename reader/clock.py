"""What time it is for a reader: the store's own clock where it has one, else the host's wall clock.

A journal's commits are stamped with exchange time and the host's CLOCK_BOOTTIME: on the same run of the
host that is the time, whatever the wall clock says. A server over HTTP dates its answers. Where neither helps
it is the wall clock, and what is stored with a later time than it tells that it is behind: that is logged.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from reader.host import boot_ms, wall_ms

log = logging.getLogger(__name__)

ASKED_EVERY_S: Final = 1.0
"""Wall seconds after which a store is asked for its clock again."""
AHEAD_MS: Final = 3_000
"""So much later than the wall clock stored data may be: exchange and host are no better in step."""
APART_MS: Final = 10_000
"""A wall clock that is so far from the store's clock is logged."""


class StoreClock(NamedTuple):
    """What a store tells of the time.

    `ahead_ms` is how far exchange time is ahead of `boot_ms` of this host, None if that is not known here.
    `told_ms` is the last time (exchange, ms) that was told there. Where the wall clock is within `within_ms`
    of it, it is the better one.
    """

    ahead_ms: int | None
    told_ms: int
    within_ms: int = 0


class ReaderClock:
    """Gives `now_ms` of a reader. `ask` asks its store.

    Without a lock: at worst two threads ask at once.
    """

    def __init__(self, ask: Callable[[], StoreClock | None]) -> None:
        self._ask = ask
        self._told: StoreClock | None = None
        self._asked_s: float | None = None
        self._seen_ahead_ms: int | None = None
        self._is_wall = True
        self._logged: set[str] = set()

    def now_ms(self) -> int:
        """Exchange time, ms since the epoch. Raises what the store raises when it cannot be asked."""
        asked_s = time.monotonic()
        if self._asked_s is None or asked_s - self._asked_s >= ASKED_EVERY_S:
            self._told, self._asked_s = self._ask(), asked_s
        wall, told = wall_ms(), self._told
        self._is_wall = True
        if told is None:
            return wall
        if told.ahead_ms is None:
            self._note_ahead(told.told_ms, wall, "last commit")
            return wall
        now_ms = told.ahead_ms + boot_ms()
        if abs(now_ms - wall) <= told.within_ms or self._is_disproved(now_ms, wall):
            return wall
        if abs(now_ms - wall) > APART_MS:
            self._log(
                "apart",
                "this host's clock is %.0f s %s that of the store, which counts",
                abs(now_ms - wall) / 1000,
                "behind" if wall < now_ms else "ahead of",
            )
        self._is_wall = False
        return now_ms

    def saw(self, times_ms: Iterable[int | None]) -> None:
        """Take in what times stored data is of: they are past."""
        time_ms = max((ms for ms in times_ms if ms is not None), default=None)
        if time_ms is None:
            return
        ahead_ms = time_ms - boot_ms()
        if self._seen_ahead_ms is None or ahead_ms > self._seen_ahead_ms:
            self._seen_ahead_ms = ahead_ms
        if self._is_wall:
            self._note_ahead(time_ms, wall_ms(), "data")

    def _is_disproved(self, now_ms: int, wall: int) -> bool:
        """Whether data is stored of after `now_ms`, and not of after `wall`: the server's clock is wrong."""
        if self._seen_ahead_ms is None or not (self._told and self._told.within_ms):
            return False
        # It was past when it was seen, and as much later it is now.
        seen_ms = self._seen_ahead_ms + boot_ms()
        if now_ms + AHEAD_MS >= seen_ms or wall + AHEAD_MS < seen_ms:
            return False
        self._log(
            "server",
            "the store's server has a clock that is %.0f s behind its data: not used",
            (seen_ms - now_ms) / 1000,
        )
        return True

    def _note_ahead(self, time_ms: int, wall: int, what: str) -> None:
        if time_ms - wall > AHEAD_MS:
            self._log(
                "ahead",
                "this host's clock is behind: the store's %s is %.0f s ahead of it; "
                "ages are too small by that at least",
                what,
                (time_ms - wall) / 1000,
            )

    def _log(self, what: str, text: str, *values: object) -> None:
        if what not in self._logged:
            self._logged.add(what)
            log.warning(text, *values)


class GivenClock:
    """The clock that a caller has given: nothing is known better."""

    def __init__(self, given: Callable[[], int]) -> None:
        self._given = given

    def now_ms(self) -> int:
        """What it says."""
        return self._given()

    def saw(self, times_ms: Iterable[int | None]) -> None:
        """Nothing."""


def clock_of(
    ask: Callable[[], StoreClock | None], given: Callable[[], int] | None
) -> ReaderClock | GivenClock:
    """The clock of a reader: `given` if there is one, else what the store and the host tell."""
    return ReaderClock(ask) if given is None else GivenClock(given)
