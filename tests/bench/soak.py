"""Memory and CPU of the real collector while the simulated exchange runs at the pace of real time."""

import json
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from marketfeed.status import StatusReport
from tests.bench import workload
from tests.bench.child import BenchError, Service, wait_for
from tests.bench.report import Column, Row, Section

TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
WARM_UP_S: Final = 10
START_TIMEOUT_S: Final = 60.0
GOAL_RSS_MB: Final = 150.0
GOAL_SLOPE_MB: Final = 1.0
"""Per minute, fitted; what a minute's noise comes to is of that order."""

Tell = Callable[[str], None]


def soak(tell: Tell, seconds: int) -> Section:
    """Run for `seconds` after a warm-up and look at the process every second."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        tell("soak: starting simulator and collector")
        with Service(
            "simulate",
            f"--pairs={workload.PAIRS}",
            f"--timeframes={','.join(TIMEFRAMES)}",
            "--speed=1",
            "--port=0",
        ) as simulator:
            simulator.wait_listening(START_TIMEOUT_S)
            config = _configure(directory, simulator.urls)
            with Service("run", f"--config={config}") as collector:
                collector.wait_listening(START_TIMEOUT_S)
                return _watch(tell, simulator, collector, seconds)


def _configure(directory: Path, urls: dict[str, str]) -> Path:
    settings = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": workload.PAIRS},
            "timeframes": list(TIMEFRAMES),
        },
        "journal": {"path": str(directory / "journal.db")},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    config = directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings), encoding="utf-8")
    return config


def _watch(tell: Tell, simulator: Service, collector: Service, seconds: int) -> Section:
    def status() -> StatusReport:
        url = collector.urls["status_url"] + "/status"
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
            return msgspec.json.decode(response.read(), type=StatusReport)

    wait_for(lambda: status().healthy, START_TIMEOUT_S, "the collector to be well")
    _sleep(tell, "warm-up", WARM_UP_S)
    before, before_cpu_s, started_s = status(), collector.cpu_s(), time.monotonic()
    at_s: list[float] = []
    rss_mb: list[float] = []
    for second in range(seconds):
        if second % 10 == 0:
            tell(f"soak: {second} of {seconds} s")
        simulator.check()
        collector.check()
        at_s.append(time.monotonic() - started_s)
        rss_mb.append(collector.rss_bytes() / 1e6)
        time.sleep(max(0.0, started_s + second + 1 - time.monotonic()))
    lasted_s = time.monotonic() - started_s
    share = 100.0 * (collector.cpu_s() - before_cpu_s) / lasted_s
    after = status()
    if after.rejects or not after.healthy or any(c.opened > 1 for c in after.connections):
        raise BenchError(f"the collector is not well: {after.reasons} {after.rejects}")
    slope = float(np.polyfit(at_s, rss_mb, 1)[0]) * 60.0
    met = max(rss_mb) <= GOAL_RSS_MB and slope <= GOAL_SLOPE_MB
    row = Row(
        f"{workload.PAIRS} pairs × {len(TIMEFRAMES)}, {seconds} s",
        {
            "RSS min MB": min(rss_mb),
            "median": float(np.median(rss_mb)),
            "max": max(rss_mb),
            "MB/min": slope,
            "CPU % of a core": share,
            "frames/s": (after.frames - before.frames) / lasted_s,
        },
        f"≤ {GOAL_RSS_MB:g} MB, flat",
        met,
    )
    columns = (
        Column("RSS min MB"),
        Column("median"),
        Column("max"),
        Column("MB/min", 2),
        Column("CPU % of a core"),
        Column("frames/s", 0),
    )
    run = (
        f"`marketfeed run` against `marketfeed simulate` at speed 1, {','.join(TIMEFRAMES)}, after "
        f"{WARM_UP_S} s of warm-up"
    )
    flat = (
        f"MB are 10^6 bytes; flat: a least-squares slope of at most {GOAL_SLOPE_MB:g} MB/min "
        "(--soak-seconds 600 for ten minutes); SQLite's page cache, 16 MB, fills during the first hour"
    )
    return Section("Memory and CPU of the collector", columns, [row], [run, flat])


def _sleep(tell: Tell, what: str, seconds: float) -> None:
    tell(f"soak: {what}, {seconds} s")
    time.sleep(seconds)
