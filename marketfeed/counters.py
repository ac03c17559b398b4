"""What a process notes of itself: plain counters, and what fails and is tried again.

The hot path counts in integers, a scrape turns them into metrics.
"""

import logging
import math
import resource
import time
from bisect import bisect_left
from collections import Counter
from typing import Final

import msgspec

CLOSE_LAG_BUCKETS_MS: Final = (50, 100, 250, 500, 1_000, 2_100, 2_500, 5_000, 10_000, 30_000)
"""Upper bounds for the time from a candle's close to its commit; quiet pairs close after 2,000 ms."""
HEALED_LAG_BUCKETS_MS: Final = (
    4_250,
    4_500,
    5_000,
    6_000,
    8_000,
    12_000,
    30_000,
    60_000,
    600_000,
    3_600_000,
)
"""Upper bounds for the time from a missing candle's close until it was stored: it is due after 4,000 ms."""


class Tally:
    """A histogram of whole milliseconds: counts per bucket and their sum."""

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_ms = 0

    def add(self, value_ms: int) -> None:
        """Count one observation."""
        self.sum_ms += value_ms
        self.counts[bisect_left(self.bounds, value_ms)] += 1


class CollectorCounters:
    """What the collector has done since it started. Written on the event loop only."""

    def __init__(self) -> None:
        self.started_s = time.time()
        self.frames = 0
        self.answers = 0
        self.refused_requests = 0
        self.connection_events: Counter[str] = Counter()
        self.rollovers: Counter[str] = Counter()
        self.resubscribed = 0
        self.gaps: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.commits = 0
        self.commit_failures = 0
        self.commit_s = 0.0
        self.rows_changed = 0
        self.records_given_up: Counter[str] = Counter()
        self.close_lag = Tally(CLOSE_LAG_BUCKETS_MS)
        self.healed_lag = Tally(HEALED_LAG_BUCKETS_MS)
        self.rechecked = 0
        self.rechecked_different = 0


def rss_bytes() -> int:
    """Resident memory of this process now, in bytes (Linux: /proc/self/statm)."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no path to speak of
        return int(file.read().split()[1]) * resource.getpagesize()


def cpu_s() -> float:
    """CPU seconds, user and system, that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Lately(msgspec.Struct, eq=False):
    """Something that is over as soon as it happens, and is to be known for a while: when it did last.

    `why` are the words of the last time.
    """

    why: str = ""
    at_s: float = -math.inf

    @property
    def ago_s(self) -> float:
        """How many wall seconds ago it was; infinite before the first time."""
        return time.monotonic() - self.at_s

    def met(self, why: object) -> None:
        """Note that it has happened."""
        self.why, self.at_s = str(why), time.monotonic()


class Trouble(msgspec.Struct, eq=False):
    """What fails now, if anything: it is true then. It is logged once, and once when it is over.

    `begins` and `over` are its two lines. `why` are the words of the last failure, empty when all is well;
    `failures` counts them in a row.
    """

    log: logging.Logger
    begins: str
    over: str
    level: int = logging.WARNING
    why: str = ""
    failures: int = 0
    since_s: float = 0.0

    def __bool__(self) -> bool:
        return self.failures > 0

    @property
    def for_s(self) -> float:
        """For how many wall seconds it has been failing; 0 when it does not."""
        return time.monotonic() - self.since_s if self.failures else 0.0

    def met(self, error: object, level: int | None = None) -> None:
        """Note a failure. It is logged if it is the first in a row, or of another `level` than the last."""
        self.why = str(error) or type(error).__name__
        if not self.failures:
            self.since_s = time.monotonic()
        if not self.failures or level not in (None, self.level):
            self.level = level or self.level
            self.log.log(self.level, "%s error=%r", self.begins, self.why)
        self.failures += 1

    def end(self) -> None:
        """Note that it has not failed. If it did before, that is logged."""
        if self.failures:
            self.log.warning("%s after_s=%.1f", self.over, self.for_s)
            self.why, self.failures = "", 0
