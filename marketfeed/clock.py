"""The host's time, and waiting; what the exchange's time is, `binance/exchange_time.py` says."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final, NamedTuple

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = Path("/proc/self/ns/time")


class ClockBase(NamedTuple):
    """What a clock's times are counted from: `boot` names the run of the host, empty if nobody knows.

    `booted_ms` is when that run began by this clock (ms since the epoch). It moves only when the wall clock
    is set: slewing moves CLOCK_BOOTTIME as well.
    """

    boot: str
    booted_ms: int


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

    def base(self) -> ClockBase:
        """What its times are counted from."""
        return ClockBase(boot_id(), int(self._started_ms - self._started_s * 1000.0))

    def offset_ms(self) -> float:
        """How far this clock is ahead of the wall clock, in ms."""
        return self.now_ms() - time.time() * 1000.0


def boot_id() -> str:
    """What the kernel calls this run of the host; empty if it does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def boot_place() -> str:
    """Where CLOCK_BOOTTIME is one clock: this run of the host, and the time namespace. Empty if unknown.

    Containers share the host's boot_id, but one in a time namespace of its own has another CLOCK_BOOTTIME.
    `reader/host.py` has the same.
    """
    boot = boot_id()
    try:
        namespace = str(_TIME_NAMESPACE.readlink())
    except OSError:
        # A kernel before 5.6, which has none.
        namespace = ""
    return f"{boot} {namespace}" if boot else ""


def boottime_s() -> float:
    """Wall seconds since the host's start, those included in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def wait_at_most(timeout_s: float | None, event: asyncio.Event) -> bool:
    """Wait until `event` is set, `timeout_s` wall seconds at most (None: however long); whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
