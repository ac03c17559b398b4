"""What the host's kernel tells of time: its run, and a clock that no setting of the wall clock moves."""

import time
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = Path("/proc/self/ns/time")
# Not on macOS and Windows, where no collector runs whose stamps could be compared.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)


def wall_ms() -> int:
    """What the wall clock says, ms since the epoch."""
    return time.time_ns() // 1_000_000


def boot_ms() -> int:
    """Ms since the host's start, those included in which it was suspended."""
    if _CLOCK is None:
        return time.monotonic_ns() // 1_000_000
    return time.clock_gettime_ns(_CLOCK) // 1_000_000


def boot_place() -> str:
    """Where `boot_ms` is one clock: the run of the host and the time namespace; empty if that is not known.

    As `marketfeed/clock.py` has it.
    """
    if _CLOCK is None:
        return ""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
    try:
        namespace = str(_TIME_NAMESPACE.readlink())
    except OSError:
        # A kernel before 5.6, which has none.
        namespace = ""
    return f"{boot} {namespace}" if boot else ""
