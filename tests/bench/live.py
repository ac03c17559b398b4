"""The real collector beside the simulated exchange at the pace of real time, watched from outside.

Processes as users start them; the truth is what the exchange reports as sent. A reader in this process
notes when each newest candle could first be read.
"""

import contextlib
import json
import sqlite3
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from marketfeed.collector.status_report import StatusReport
from marketfeed.simulator.published import Published
from reader import MarketReader
from tests.bench.child import BenchError, Service
from tests.coverage_check import check_coverage
from tests.faults.fault_truth import judge
from tests.waiting import wait_until

TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
WARM_UP_S: Final = 10
START_TIMEOUT_S: Final = 120.0
DRAIN_S: Final = 15.0
PARTS: Final = 3
"""Of the time, whose lags are compared: the last must not be later than the first."""

ReportProgress = Callable[[str], None]
Quantiles = tuple[float, float]
"""p50 and p99."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was like. MB are 10^6 bytes.

    `read_ms` are wall ms from a closing frame's sending until its candle was read, by parts of the time;
    `commit_ms` exchange ms from its close until its commit, the exchange's own delay included, from the
    collector's histogram.
    """

    pairs: int
    seconds: float
    rss_mb: list[float]
    rss_slope_mb: float
    cpu_percent: float
    frames_per_s: float
    journal_mb_per_hour: float
    published: int
    missing: int
    wrong: int
    covered_series: int
    """Whose coverage in the file is what the rows say, at the end."""
    read_ms: list[Quantiles]
    read_all_ms: Quantiles
    commit_ms: Quantiles


def watch(report_progress: ReportProgress, what: str, pairs: int, seconds: int) -> Measured:
    """Run for `seconds` after a warm-up. Raises BenchError if the collector is not well in the end."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        report_progress(f"{what}: starting simulator and collector with {pairs} pairs")
        with Service(
            "simulate",
            f"--pairs={pairs}",
            f"--timeframes={','.join(TIMEFRAMES)}",
            "--speed=1",
            "--port=0",
        ) as simulator:
            simulator.wait_listening(START_TIMEOUT_S)
            journal = directory / "journal.db"
            config = _configure(directory, journal, simulator.urls, pairs)
            with Service("run", f"--config={config}") as collector:
                collector.wait_listening(START_TIMEOUT_S)
                return _Run(report_progress, what, simulator, collector, journal, pairs).measure(
                    seconds
                )


def _configure(directory: Path, journal: Path, urls: dict[str, str], pairs: int) -> Path:
    settings = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": pairs},
            "timeframes": list(TIMEFRAMES),
        },
        "journal": {"path": str(journal)},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    config = directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings), encoding="utf-8")
    return config


class _Run:
    def __init__(
        self,
        report_progress: ReportProgress,
        what: str,
        simulator: Service,
        collector: Service,
        journal: Path,
        pairs: int,
    ) -> None:
        self._report_progress = report_progress
        self._what = what
        self._simulator = simulator
        self._collector = collector
        self._journal = journal
        self._pairs = pairs

    def measure(self, seconds: int) -> Measured:
        """Watch for so many seconds."""
        wait_until(self._well, "the collector to be well", timeout_s=START_TIMEOUT_S)
        self._report_progress(f"{self._what}: warm-up, {WARM_UP_S} s")
        time.sleep(WARM_UP_S)
        collector = self._collector
        skip = max((one.number for one in self._published(0)), default=0)
        since_ms = self._exchange_ms()
        with _Watch(self._journal) as read:
            before, lag_before = self._status(), self._close_lag()
            bytes_before = _bytes_used(self._journal)
            before_cpu_s, started_s, started_ns = (
                collector.cpu_s(),
                time.monotonic(),
                time.monotonic_ns(),
            )
            at_s: list[float] = []
            rss_mb: list[float] = []
            for second in range(seconds):
                if second % 10 == 0:
                    self._report_progress(f"{self._what}: {second} of {seconds} s")
                self._simulator.check()
                collector.check()
                at_s.append(time.monotonic() - started_s)
                rss_mb.append(collector.rss_bytes() / 1e6)
                time.sleep(max(0.0, started_s + second + 1 - time.monotonic()))
            lasted_s = time.monotonic() - started_s
            cpu_percent = 100.0 * (collector.cpu_s() - before_cpu_s) / lasted_s
            after, lag_after = self._status(), self._close_lag()
            grown_mb = (_bytes_used(self._journal) - bytes_before) / 1e6
            if after.rejects or not after.healthy or any(c.opened > 1 for c in after.connections):
                raise BenchError(f"the collector is not well: {after.reasons} {after.rejects}")
            until_ms = self._exchange_ms()
            self._post("/simulator/pause")
            published = [one for one in self._published(skip) if one.receivers]
            missing, wrong = self._compare(published, since_ms, until_ms)
            covered = check_coverage(self._journal)
            if covered.mistakes or not covered.trusted:
                raise BenchError(f"coverage is not what the rows say: {covered.mistakes[:3]}")
            seen_ns = read.stop()
        sent = [
            (one.sent_monotonic_ns, seen_ns[key])
            for one in published
            if (key := (one.pair, one.timeframe, one.open_time_ms)) in seen_ns
        ]
        part_ns = lasted_s * 1e9 / PARTS
        parts = [
            [
                (seen - at) / 1e6
                for at, seen in sent
                if part * part_ns <= at - started_ns < (part + 1) * part_ns
            ]
            for part in range(PARTS)
        ]
        return Measured(
            pairs=self._pairs,
            seconds=lasted_s,
            rss_mb=rss_mb,
            rss_slope_mb=float(np.polyfit(at_s, rss_mb, 1)[0]) * 60.0,
            cpu_percent=cpu_percent,
            frames_per_s=(after.frames - before.frames) / lasted_s,
            journal_mb_per_hour=grown_mb / (lasted_s / 3_600),
            published=len(published),
            missing=missing,
            wrong=wrong,
            covered_series=covered.series,
            read_ms=[_quantiles(part) for part in parts if part],
            read_all_ms=_quantiles([(seen - at) / 1e6 for at, seen in sent]),
            commit_ms=_from_histogram(lag_before, lag_after),
        )

    def _compare(
        self, published: Sequence[Published], since_ms: int, until_ms: int
    ) -> tuple[int, int]:
        """How many of the published candles are missing and how many stored ones are wrong."""
        # A frame that was sent last may be on its way, and quiet candles are fetched after 4 s.
        deadline_s = time.monotonic() + DRAIN_S
        while True:
            verdict = judge(self._journal, published, since_ms, until_ms)
            wrong = len(verdict.wrong) + len(verdict.invented)
            missing = verdict.published - verdict.identical - len(verdict.wrong)
            if not missing or time.monotonic() > deadline_s:
                return missing, wrong
            time.sleep(0.5)

    def _well(self) -> bool:
        report = self._status()
        ready = report.ready_pairs == report.pairs
        return report.healthy and ready and report.mark_price_age_s is not None

    def _status(self) -> StatusReport:
        body = _get(self._collector.urls["status_url"] + "/status")
        return msgspec.json.decode(body, type=StatusReport)

    def _close_lag(self) -> dict[float, float]:
        """The histogram from close to commit: how many were at most so many seconds."""
        text = _get(self._collector.urls["status_url"] + "/metrics").decode()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            if family.name == "marketfeed_close_to_commit_seconds"
            for sample in family.samples
            if sample.name.endswith("_bucket")
        }

    def _published(self, after: int) -> list[Published]:
        body = _get(f"{self._simulator.urls['rest_url']}/simulator/published?after={after}")
        return msgspec.json.decode(body, type=list[Published])

    def _exchange_ms(self) -> int:
        body = _get(self._simulator.urls["rest_url"] + "/fapi/v1/time")
        return int(json.loads(body)["serverTime"])

    def _post(self, path: str) -> None:
        url = self._simulator.urls["rest_url"] + path
        request = urllib.request.Request(url, method="POST")  # noqa: S310 - loopback
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - loopback


class _Watch:
    """A thread that reads on and on, and notes when each newest candle first could be read."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._seen_ns: dict[tuple[str, str, int], int] = {}
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def stop(self) -> dict[tuple[str, str, int], int]:
        """End it; when (ns, monotonic) each candle was first seen. Raises BenchError."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise BenchError(f"the reader failed: {self._error!r}")
        return self._seen_ns

    def _run(self) -> None:
        try:
            with MarketReader.connect(f"sqlite:///{self._journal}") as reader:
                self._read_on(reader)
        except Exception as error:
            self._error = error

    def _read_on(self, reader: MarketReader) -> None:
        newest: dict[tuple[str, str], int] = {}
        while not self._stop.is_set():
            version = reader.version()
            for timeframe in TIMEFRAMES:
                found = reader.newest(timeframe)
                now_ns = time.monotonic_ns()
                for pair, open_ms in found.items():
                    if newest.get((pair, timeframe)) != open_ms:
                        newest[pair, timeframe] = open_ms
                        self._seen_ns[pair, timeframe, open_ms] = now_ns
            reader.wait_change(version, timeout_s=0.25)


def _bytes_used(journal: Path) -> int:
    """What the journal holds at this instant, free pages apart."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - loopback
        body: bytes = response.read()
        return body


def _quantiles(values: Sequence[float]) -> Quantiles:
    if not values:
        return float("nan"), float("nan")
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return float(p50), float(p99)


def _from_histogram(before: dict[float, float], after: dict[float, float]) -> Quantiles:
    """p50 and p99 in ms, interpolated within their bucket as Prometheus does."""
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    found = []
    for share in (0.5, 0.99):
        rank, low_s, low = share * counts[-1], 0.0, 0.0
        for bound, count in zip(bounds, counts, strict=True):
            if count >= rank and count > 0:
                width_s = 0.0 if bound == float("inf") else bound - low_s
                found.append(1_000 * (low_s + width_s * (rank - low) / max(count - low, 1.0)))
                break
            low_s, low = bound, count
        else:
            found.append(float("nan"))
    return found[0], found[1]
