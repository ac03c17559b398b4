"""Memory, CPU and lag of the real collector while the simulated exchange runs at the pace of real time."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tests.bench.live import TIMEFRAMES, WARM_UP_S, Measured, watch
from tests.bench.report import Column, Row, Section

GOAL_RSS_MB: Final = 150.0
GOAL_RSS_MANY_MB: Final = 300.0
MANY: Final = 164
"""More pairs than these may take more memory."""
GOAL_SLOPE_MB: Final = 1.0
"""Per minute, fitted; what a minute's noise comes to is of that order."""

ReportProgress = Callable[[str], None]
_COLUMNS: Final = (
    Column("CPU %"),
    Column("RSS MB"),
    Column("MB/min", 2),
    Column("frames/s", 0),
    Column("MB/h"),
    Column("commit p50", 0),
    Column("commit p99", 0),
    Column("read p50"),
    Column("read p99"),
    Column("candles", 0),
    Column("missing", 0),
    Column("wrong", 0),
)
_NOTES: Final = (
    f"`marketfeed run` against `marketfeed simulate` at speed 1, {','.join(TIMEFRAMES)} and marks",
    f"after {WARM_UP_S} s of warm-up; CPU in % of a core, MB are 10^6 bytes, MB/h of the journal",
    "commit: exchange ms from a candle's close to its commit (the collector's histogram), with its",
    "own delay: a busy pair closes at once, a quiet one after 2 s; read: wall ms from sending to reading",
    "RSS grows in the first hour, caches and allocators fill; tests.faults.soak shows days",
)


def soak(report_progress: ReportProgress, seconds: int, pairs: int) -> Section:
    """Run for `seconds` after a warm-up and look at the process every second."""
    found = watch(report_progress, "soak", pairs, seconds)
    rss_goal = GOAL_RSS_MB if pairs <= MANY else GOAL_RSS_MANY_MB
    flat = max(found.rss_mb) <= rss_goal and found.rss_slope_mb <= GOAL_SLOPE_MB
    whole = not (found.missing or found.wrong)
    lags = ", ".join(f"{p50:.0f} / {p99:.0f}" for p50, p99 in found.read_ms)
    notes = [
        *_NOTES,
        f"flat: a least-squares slope of at most {GOAL_SLOPE_MB:g} MB/min (--soak-seconds 600: ten minutes)",
        f"RSS {min(found.rss_mb):.1f} to {max(found.rss_mb):.1f} MB, median {np.median(found.rss_mb):.1f}",
        f"read p50 / p99 by thirds of the time, ms: {lags}",
        f"at the end, coverage in the file is what the rows say, of all {found.covered_series:,} series",
    ]
    goal = f"≤ {rss_goal:g} MB"
    row = _row(found, goal, flat and whole)
    return Section("Memory, CPU and lag of the collector", _COLUMNS, [row], notes)


def growth(report_progress: ReportProgress, seconds: int, sizes: Sequence[int]) -> Section:
    """Run with few, some and all pairs."""
    found = [watch(report_progress, "growth", pairs, seconds) for pairs in sizes]
    rows = [_row(one, "0 missing", not (one.missing or one.wrong)) for one in found]
    return Section("How the collector grows with its pairs", _COLUMNS, rows, _NOTES)


def _row(found: Measured, goal: str, met: bool) -> Row:
    values = (
        found.cpu_percent,
        max(found.rss_mb),
        found.rss_slope_mb,
        found.frames_per_s,
        found.journal_mb_per_hour,
        *found.commit_ms,
        *found.read_all_ms,
        found.published,
        found.missing,
        found.wrong,
    )
    what = f"{found.pairs} pairs × {len(TIMEFRAMES)}, {found.seconds:.0f} s"
    names = (column.name for column in _COLUMNS)
    return Row(what, dict(zip(names, values, strict=True)), goal, met)
