"""Whether a demo's line keeps up with its exchange, and how much slower it would have to be.

Pure: what simulator and collector say of themselves, and the wall time, are passed in.
"""

from typing import Final

from marketfeed.errors import MarketfeedError

PURE = True

BEHIND_S: Final = 2.0
"""Wall seconds: so far behind, for as long as this, the machine is too busy for the speed."""
MARKS_EVERY_S: Final = 6.0
"""Exchange seconds that a mark price may be old by itself: one is sent every 3 s."""
LEAST_SPEED: Final = 1.0
"""No slower than the real exchange: data that comes late is right all the same."""
_SLOWER: Final = 4.0
_OF_REACHED: Final = 0.5


class FellBehindError(MarketfeedError):
    """The machine is too busy for this speed: it has to be slower."""


class Pace:
    """What was seen of one attempt at `speed` (exchange seconds per wall second)."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.most_behind_s = 0.0
        """Wall seconds that the line was behind at most."""
        self.who = "simulator"
        """Who was that far behind: `simulator` or `collector`."""
        self._behind_since_s: float | None = None
        self._first: tuple[float, int] | None = None
        self._newest: tuple[float, int] | None = None

    def look(self, now_s: float, reached_ms: int, lag_ms: int, mark_age_s: float | None) -> None:
        """Take in one look, at `now_s` (monotonic wall time). Raises FellBehindError.

        `reached_ms` is the exchange time up to which frames were sent, `lag_ms` how far that is behind the
        exchange's clock; `mark_age_s` the age (exchange s) of the oldest mark price that the collector has.
        """
        simulator_s = lag_ms / 1000.0 / self.speed
        collector_s = 0.0 if mark_age_s is None else (mark_age_s - MARKS_EVERY_S) / self.speed
        behind_s = max(simulator_s, collector_s)
        if behind_s > self.most_behind_s:
            self.most_behind_s = behind_s
            # Old mark prices are the simulator's, as far as it has not sent newer ones.
            self.who = "simulator" if simulator_s >= collector_s / 2 else "collector"
        self._first = self._first or (now_s, reached_ms)
        self._newest = now_s, reached_ms
        if behind_s < BEHIND_S:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = now_s
        elif now_s - self._behind_since_s >= BEHIND_S and self.speed > LEAST_SPEED:
            raise FellBehindError(self.words())

    def words(self) -> str:
        """How far behind it was, for people."""
        return f"at speed {self.speed:g} the {self.who} fell {self.most_behind_s:.1f} s behind"

    def slower(self) -> float:
        """The speed to go on with: a quarter, or half of what was reached if that is less."""
        speed = self.speed / _SLOWER
        if self._first is not None and self._newest is not None:
            passed_s = self._newest[0] - self._first[0]
            if passed_s > 0.0:
                reached = (self._newest[1] - self._first[1]) / 1000.0 / passed_s
                speed = min(speed, reached * _OF_REACHED)
        return max(LEAST_SPEED, float(round(speed)))
