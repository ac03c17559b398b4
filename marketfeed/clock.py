"""Exchange time.

Two readings, both of them driven by this host's *monotonic* clock, so that a jump of the wall clock
moves neither: `now_ms()` is the exchange's own time, `elapsed_s()` counts exchange seconds since an
arbitrary start and never goes back. Against the simulator an exchange second may be shorter than a
wall second; `speed` says how many pass in one.
"""

import asyncio
import contextlib
import math
import time
from typing import Final

WALL_AT_LEAST_S: Final = 0.05
"""The shortest pause in wall seconds: against a fast simulator an exchange second is over in a moment."""
STAMPS_HOLD_S: Final = 60.0
"""Wall seconds for which the last stamp of a frame can contradict this clock: a reconnect takes less."""


class ExchangeClock:
    """The exchange's time, learnt from its server and carried on by the monotonic clock.

    Before the first `set_server_time` it assumes the host's wall clock is right, and is certain of nothing.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed
        self._anchor_s = time.monotonic()
        self._anchor_ms = time.time() * 1000.0
        self._elapsed_s = 0.0
        self._error_ms: float | None = None
        # A stamp (ms), when it was heard (elapsed s), and how far from it this clock may be (ms).
        self._heard: tuple[int, float, float] | None = None

    @property
    def speed(self) -> float:
        """Exchange seconds per wall second: 1 against the real exchange."""
        return self._speed

    def wall_s(self, exchange_s: float, at_least_s: float = WALL_AT_LEAST_S) -> float:
        """How long so many exchange seconds take in wall seconds; `at_least_s` in any case."""
        return max(exchange_s / self._speed, at_least_s)

    def now_ms(self) -> int:
        """Exchange time, ms since the epoch."""
        return int(self._anchor_ms + (time.monotonic() - self._anchor_s) * 1000.0 * self._speed)

    @property
    def error_ms(self) -> float | None:
        """How far `now_ms` may be off, by what its last setting took; None before the first."""
        return self._error_ms

    def certain_ms(self) -> int:
        """Exchange time that is past for certain: what `now_ms` may be ahead is taken off.

        0 before the first setting. While frames say that it is far ahead, the time that they tell.
        """
        if self._error_ms is None:
            return 0
        now_ms = self.now_ms()
        return now_ms - math.ceil(self._ahead_ms(now_ms)) - math.ceil(self._error_ms)

    def is_contradicted(self) -> bool:
        """Whether frames say that `now_ms` is far ahead."""
        return self._ahead_ms(self.now_ms()) > 0

    def hear(self, stamp_ms: int, tolerance_s: float) -> None:
        """Note the exchange time that fresh frames are stamped with: `now_ms` is there, more or less.

        `tolerance_s` are exchange seconds.
        """
        self._heard = stamp_ms, self.elapsed_s(), tolerance_s * 1000.0

    def elapsed_s(self) -> float:
        """Monotonic exchange seconds since this clock was made. Not moved by `set_server_time`."""
        return self._elapsed_s + (time.monotonic() - self._anchor_s) * self._speed

    def offset_ms(self) -> float:
        """How far the exchange's clock is ahead of this host's wall clock, in ms."""
        return self.now_ms() - time.time() * 1000.0

    def set_server_time(self, server_time_ms: int, round_trip_s: float, speed: float = 1.0) -> None:
        """Take over the exchange's time from an answer of its `time` endpoint received just now.

        Half of `round_trip_s` (wall seconds) is assumed to have passed since the server read its clock:
        none may have, or all.
        """
        monotonic_s = time.monotonic()
        self._elapsed_s += (monotonic_s - self._anchor_s) * self._speed
        self._anchor_s = monotonic_s
        self._error_ms = round_trip_s / 2.0 * 1000.0 * speed
        self._anchor_ms = server_time_ms + self._error_ms
        self._speed = speed

    def _ahead_ms(self, now_ms: int) -> float:
        """How far `now_ms` is ahead of what frames tell; 0 within their tolerance, or without any."""
        if self._heard is None:
            return 0.0
        stamp_ms, heard_s, tolerance_ms = self._heard
        passed_s = self.elapsed_s() - heard_s
        # Carried on by the monotonic clock, which stands still while a host is suspended: not for ever.
        if passed_s > STAMPS_HOLD_S * self._speed:
            return 0.0
        ahead_ms = now_ms - (stamp_ms + passed_s * 1000.0)
        return ahead_ms if ahead_ms > tolerance_ms else 0.0


async def wait_at_most(timeout_s: float | None, event: asyncio.Event) -> bool:
    """Wait until `event` is set, `timeout_s` wall seconds at most (None: however long); whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
