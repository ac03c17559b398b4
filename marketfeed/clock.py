"""The host's time, and waiting; what the exchange's time is, `binance/exchange_time.py` says."""

import asyncio
import contextlib
import time


class HostClock:
    """The time of this host as of its start, carried on by a clock that no jump of the wall clock moves.

    `started_ms` is what the wall clock said then, now unless given.
    """

    def __init__(self, started_ms: float | None = None) -> None:
        self._started_ms = time.time() * 1000.0 if started_ms is None else started_ms
        self._started_s = boottime_s()

    def now_ms(self) -> int:
        """Time, ms since the epoch."""
        return int(self._started_ms + self.elapsed_s() * 1000.0)

    def elapsed_s(self) -> float:
        """Seconds since this clock was made."""
        return boottime_s() - self._started_s

    def offset_ms(self) -> float:
        """How far this clock is ahead of the wall clock, in ms."""
        return self.now_ms() - time.time() * 1000.0


def boottime_s() -> float:
    """Wall seconds since the host's start, those included in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def wait_at_most(timeout_s: float | None, event: asyncio.Event) -> bool:
    """Wait until `event` is set, `timeout_s` wall seconds at most (None: however long); whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
