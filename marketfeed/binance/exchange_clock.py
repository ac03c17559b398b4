"""Exchange time.

Two clocks, both of them driven by this host's *monotonic* ones, so that a jump of the wall clock
moves neither: `now_ms()` is the exchange's own time, `elapsed_s()` counts exchange seconds since an
arbitrary start and never goes back. Against the simulator an exchange second may be shorter than a
wall second; `speed` says how many pass in one.
"""

import asyncio
import time
from typing import Final

from marketfeed.binance.exchange_time import ExchangeTime
from marketfeed.binance.klines import Past
from marketfeed.clock import boottime_s

WALL_AT_LEAST_S: Final = 0.05
"""The shortest pause in wall seconds: against a fast simulator an exchange second is over in a moment."""


class ExchangeClock:
    """The exchange's time by its frames and its `time`; `exchange_time` has the rules.

    Before either it assumes that the host's wall clock is right, and is certain of nothing.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.stamped = asyncio.Event()
        """Set once a frame has come whose stamp counts."""
        self._time = ExchangeTime(time.time() * 1000.0, boottime_s(), speed)
        self._anchor_s = time.monotonic()
        self._elapsed_s = 0.0

    @property
    def speed(self) -> float:
        """Exchange seconds per wall second: 1 against the real exchange."""
        return self._time.speed

    def wall_s(self, exchange_s: float, at_least_s: float = WALL_AT_LEAST_S) -> float:
        """How long so many exchange seconds take in wall seconds; `at_least_s` in any case."""
        return max(exchange_s / self.speed, at_least_s)

    def now_ms(self) -> int:
        """Exchange time, ms since the epoch: what is due by it should have come, and ages count from it."""
        return self._time.due_ms(boottime_s())

    def certain_ms(self) -> int:
        """Exchange time that is past for certain: what closes by it has closed. 0 while none is."""
        return self._time.certain_ms(boottime_s())

    def past(self) -> Past:
        """What is past for certain, and what REST may be asked for."""
        now_s = boottime_s()
        return Past(self._time.certain_ms(now_s), self._time.confirmed_ms(now_s))

    def frames_ahead_s(self) -> float:
        """How far frames are ahead of `time` (exchange s) if two answers were far from them, else 0."""
        return self._time.frames_ahead_s(boottime_s())

    def is_doubted(self) -> bool:
        """Whether `time` should be asked soon."""
        return self._time.is_doubted(boottime_s())

    def elapsed_s(self) -> float:
        """Monotonic exchange seconds since this clock was made. Not moved by the exchange's time."""
        return self._elapsed_s + (time.monotonic() - self._anchor_s) * self.speed

    def offset_ms(self) -> float:
        """How far the exchange's clock is ahead of this host's wall clock, in ms."""
        return self.now_ms() - time.time() * 1000.0

    def await_frames(self) -> None:
        """Be certain of nothing before the first frame."""
        self._time.awaits_frames = True

    def on_stamp(self, stamp_ms: int) -> bool:
        """Take in the stamp of a frame that has just come; whether the frame may be stored."""
        if not self._time.on_stamp(stamp_ms, boottime_s()):
            return False
        self.stamped.set()
        return True

    def set_server_time(self, server_time_ms: int, round_trip_s: float, speed: float = 1.0) -> None:
        """Take in an answer of `time` that has just come, `round_trip_s` wall seconds after it was asked."""
        self._elapsed_s, self._anchor_s = self.elapsed_s(), time.monotonic()
        self._time.on_answer(server_time_ms, round_trip_s, speed, boottime_s())
