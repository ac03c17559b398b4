"""How long after a candle's close another process reads it, at the pace of real time.

The real collector beside the simulated exchange at speed 1: pairs whose next trade closes their candles,
pairs that only a timer closes (2 s), and pairs whose closing frames are lost, so that REST brings them.
"""

import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.collector.status_report import StatusReport
from marketfeed.schema import TIMEFRAMES_MS
from marketfeed.simulator.fault_kinds import Mute
from marketfeed.simulator.published import Published
from reader import MarketReader, ReaderError
from tests.bench import workload
from tests.bench.child import BenchError, Service
from tests.bench.report import Column, Row, Section
from tests.waiting import wait_until

TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
LOST_EVERY: Final = 8
"""Of so many pairs one loses its closing frames."""
TIMER_MS: Final = 1_900
"""A closing frame stamped later than this after the close was sent by the exchange's timer."""
START_TIMEOUT_S: Final = 60.0
LAST_ONES_S: Final = 12.0
GOAL_HEALED_MS: Final = 6_000.0

ReportProgress = Callable[[str], None]
Key = tuple[str, str, int]
"""Pair, timeframe, open time in ms."""


def closes(report_progress: ReportProgress, seconds: int, history_days: int = 0) -> Section:
    """Watch for `seconds`; with `history_days` while the collector fills its history by REST."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        report_progress("closes: starting simulator and collector")
        with Service(
            "simulate",
            f"--pairs={workload.PAIRS}",
            f"--timeframes={','.join(TIMEFRAMES)}",
            "--speed=1",
            "--port=0",
        ) as simulator:
            simulator.wait_listening(START_TIMEOUT_S)
            rest_url = simulator.urls["rest_url"]
            config = _configure(directory, simulator.urls, history_days)
            with Service("run", f"--config={config}") as collector:
                collector.wait_listening(START_TIMEOUT_S)
                status_url = collector.urls["status_url"] + "/status"

                def status() -> StatusReport:
                    return msgspec.json.decode(_ask(status_url), type=StatusReport)

                wait_until(
                    lambda: status().state == "well",
                    "the collector to be well",
                    timeout_s=START_TIMEOUT_S,
                )
                lost = _lose_closing_frames(rest_url)
                clock = _clock(rest_url)
                since_ms = clock.now_ms()
                rss_mb: list[float] = []
                with _Watch(directory / "journal.db", clock) as watch:
                    started_s = time.monotonic()
                    while (passed_s := time.monotonic() - started_s) < seconds:
                        report_progress(f"closes: {passed_s:.0f} of {seconds} s")
                        collector.check()
                        rss_mb.append(collector.rss_bytes() / 1e6)
                        time.sleep(1.0)
                    until_ms = clock.now_ms()
                    time.sleep(LAST_ONES_S)
                    watch.check()
                    published = _published(rest_url)
                    report = status()
                    seen_ms = dict(watch.seen_ms)
    found = [
        one
        for one in published
        if since_ms <= one.open_time_ms + TIMEFRAMES_MS[one.timeframe] <= until_ms
    ]
    return _section(found, lost, seen_ms, rss_mb, report, seconds)


def _section(
    published: Sequence[Published],
    lost: frozenset[str],
    seen_ms: dict[Key, float],
    rss_mb: Sequence[float],
    report: StatusReport,
    seconds: int,
) -> Section:
    kinds: dict[str, list[tuple[float, float]]] = {"next trade": [], "timer": [], "healed": []}
    for one in published:
        close_ms = one.open_time_ms + TIMEFRAMES_MS[one.timeframe]
        seen = seen_ms.get((one.pair, one.timeframe, one.open_time_ms))
        if seen is None:
            raise BenchError(f"not read: {one.pair} {one.timeframe} {one.open_time_ms}")
        by_timer = one.event_time_ms - close_ms >= TIMER_MS
        kind = "healed" if one.pair in lost else "timer" if by_timer else "next trade"
        kinds[kind].append((seen - close_ms, seen - one.event_time_ms))
    rows = []
    for kind, name in (
        ("next trade", "liquid: the next trade closes it"),
        ("timer", "quiet: a timer closes it after 2 s"),
        ("healed", "healed: its frame was lost"),
    ):
        delays = np.array(kinds[kind])
        if not len(delays):
            raise BenchError(f"no candle of that kind: {name}")
        p50, p99 = (float(value) for value in np.quantile(delays[:, 0], (0.5, 0.99)))
        values = {
            "candles": len(delays),
            "p50 ms": p50,
            "p99 ms": p99,
            "max ms": float(delays[:, 0].max()),
        }
        if kind != "healed":
            values["after its frame p99 ms"] = float(np.quantile(delays[:, 1], 0.99))
            rows.append(Row(name, values))
        else:
            goal = f"p99 ≤ {GOAL_HEALED_MS:,.0f} ms"
            rows.append(Row(name, values, goal, p99 <= GOAL_HEALED_MS))
    history = report.history.history if report.history is not None else None
    setting = (
        f"{workload.PAIRS} pairs × {','.join(TIMEFRAMES)}, {seconds} s at speed 1, {len(lost)} pairs "
        "without closing frames; another process reads the journal"
    )
    notes = [
        setting,
        f"collector's RSS MB: median {np.median(rss_mb):.0f}, most {max(rss_mb):.0f}",
    ]
    if history is not None:
        notes.append(
            f"meanwhile history of {history.days} days: {history.state}, {history.stored:,} candles "
            f"stored, {history.candles_left:,} left, weight {report.rest.weight_used} a minute"
        )
    columns = (
        Column("candles", 0),
        Column("p50 ms", 0),
        Column("p99 ms", 0),
        Column("max ms", 0),
        Column("after its frame p99 ms", 0),
    )
    return Section("Candle closed → candle read, ms", columns, rows, notes)


def _configure(directory: Path, urls: dict[str, str], history_days: int) -> Path:
    settings = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": workload.PAIRS},
            "timeframes": list(TIMEFRAMES),
        },
        "journal": {"path": str(directory / "journal.db")},
        "status": {"port": 0},
        "history": {"days": history_days},
    }
    config = directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings), encoding="utf-8")
    return config


def _lose_closing_frames(rest_url: str) -> frozenset[str]:
    """Have every so-manieth pair's closing frames lost from now on; returns the pairs."""
    info = json.loads(_ask(f"{rest_url}/fapi/v1/exchangeInfo"))
    symbols = {
        f"{row['baseAsset']}/USDT:USDT": row["symbol"]
        for row in info["symbols"]
        if row["contractType"] == "PERPETUAL" and row["quoteAsset"] == "USDT"
    }
    chosen = sorted(symbols)[::LOST_EVERY]
    for pair in chosen:
        fault = Mute(f"{symbols[pair].lower()}@kline_*", closing_only=True)
        _ask(f"{rest_url}/simulator/faults", msgspec.json.encode(fault))
    return frozenset(chosen)


def _clock(rest_url: str) -> ExchangeClock:
    clock = ExchangeClock()
    started_s = time.monotonic()
    answer = json.loads(_ask(f"{rest_url}/fapi/v1/time"))
    clock.set_server_time(answer["serverTime"], time.monotonic() - started_s, answer["speed"])
    return clock


def _published(rest_url: str) -> list[Published]:
    return msgspec.json.decode(
        _ask(f"{rest_url}/simulator/published?after=0"), type=list[Published]
    )


def _ask(url: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data=body, timeout=20) as response:  # noqa: S310 - loopback
        answer: bytes = response.read()
    return answer


class _Watch:
    """A thread that reads on and on, and notes when (exchange ms) each newest candle could be read."""

    def __init__(self, journal: Path, clock: ExchangeClock) -> None:
        self.seen_ms: dict[Key, float] = {}
        self._journal = journal
        self._clock = clock
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise BenchError if the thread has failed."""
        if self._error is not None:
            raise BenchError(f"the reader failed: {self._error!r}")

    def _run(self) -> None:
        try:
            with MarketReader.connect(f"sqlite:///{self._journal}") as reader:
                self._read_on(reader)
        except ReaderError as error:
            self._error = error

    def _read_on(self, reader: MarketReader) -> None:
        newest: dict[tuple[str, str], int] = {}
        while not self._stop.is_set():
            version = reader.version()
            for timeframe in TIMEFRAMES:
                found = reader.newest(timeframe)
                now_ms = self._clock.now_ms()
                for pair, open_ms in found.items():
                    if newest.get((pair, timeframe)) != open_ms:
                        newest[pair, timeframe] = open_ms
                        self.seen_ms[pair, timeframe, open_ms] = now_ms
            reader.wait_change(version, timeout_s=0.25)
