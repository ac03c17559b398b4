"""How long it takes from a closing frame's sending until another process reads the candle."""

import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader import MarketReader, ReaderError
from tests.bench import jobs, tape, workload
from tests.bench.child import BenchError, Child
from tests.bench.ingest import refuse_gaps, start_sender, verify
from tests.bench.report import Column, Row, Section
from tests.waiting import wait_until

ONE: Final = (("1m",), 30, 400)
FIVE: Final = (("3m", "5m", "15m", "30m", "1h"), 10, 2_000)
"""Timeframes, how many boundaries, wall ms from one to the next. The five end together once an hour."""
GOAL_P99_MS: Final = 100.0
TIMEOUT_S: Final = 60.0
LAST_ONES_S: Final = 5.0

ReportProgress = Callable[[str], None]
Key = tuple[str, str, int]
"""Pair, timeframe, open time in ms."""


def close(report_progress: ReportProgress) -> Section:
    """Send all closing frames of one boundary at once, again and again."""
    rows: list[Row] = []
    notes: list[str] = []
    for (timeframes, count, every_ms), goal in ((ONE, True), (FIVE, False)):
        report_progress(f"close: {workload.PAIRS * len(timeframes)} candles at once")
        with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
            directory = Path(name)
            written = tape.write(
                directory / "close.tape", workload.boundaries(count, every_ms, timeframes)
            )
            latencies_ms = _latencies_ms(directory, written, timeframes)
        p50, p99 = (float(value) for value in np.quantile(latencies_ms, (0.5, 0.99)))
        rows.append(
            Row(
                f"{workload.PAIRS} pairs × {len(timeframes)}",
                {
                    "candles": len(latencies_ms),
                    "p50 ms": p50,
                    "p99 ms": p99,
                    "max ms": float(latencies_ms.max()),
                },
                f"p99 ≤ {GOAL_P99_MS:g} ms" if goal else "",
                p99 <= GOAL_P99_MS if goal else None,
            )
        )
        others = (written.frames - len(latencies_ms)) * 1_000 // (count * every_ms)
        notes.append(
            f"× {len(timeframes)}: {','.join(timeframes)}; {count} boundaries, {every_ms:,} ms apart, "
            f"{others:,} other frames/s in between"
        )
    notes.append("sender, collector and reader are three processes")
    columns = (Column("candles", 0), Column("p50 ms"), Column("p99 ms"), Column("max ms"))
    return Section("Closing frame sent → candle read, wall ms", columns, rows, notes)


def _latencies_ms(
    directory: Path, written: tape.Written, timeframes: tuple[str, ...]
) -> NDArray[np.float64]:
    journal = directory / "journal.db"
    sent_path = directory / "sent.npy"
    # The last candle of each boundary: those that closed in between are followed by newer ones.
    step_ms = max(schema.TIMEFRAMES_MS[name] for name in timeframes)
    keys = {
        number: (candle.pair, candle.timeframe, candle.open_time_ms)
        for number, candle in written.closed.items()
        if candle.close_time_ms % step_ms == 0
    }
    with start_sender(written, paced=True, sent_path=sent_path) as sender:
        port = sender.receive(jobs.Listening, TIMEOUT_S).port
        job = jobs.ReceiveJob(
            port, written.frames, 0, timeframes, journal=str(journal), tape=str(written.path)
        )
        with Child("receive_ours", job) as receiver, _Watch(journal, timeframes) as watch:
            sender.receive(jobs.Sent, TIMEOUT_S)
            wait_until(lambda: watch.has(keys.values()), "the last candles", timeout_s=LAST_ONES_S)
            result = receiver.receive(jobs.Received, TIMEOUT_S)
    verify(result, journal, written.closed.values())
    refuse_gaps(result, len(written.closed))
    sent_ns = np.load(sent_path)
    return np.array([(watch.seen_ns[key] - sent_ns[number]) / 1e6 for number, key in keys.items()])


class _Watch:
    """A thread that reads on and on, and notes when each newest candle first could be read."""

    def __init__(self, journal: Path, timeframes: Sequence[str]) -> None:
        self.seen_ns: dict[Key, int] = {}
        self._journal = journal
        self._timeframes = timeframes
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def has(self, keys: Collection[Key]) -> bool:
        """Whether all of these were seen. Raises BenchError if the thread has failed."""
        if self._error is not None:
            raise BenchError(f"the reader failed: {self._error!r}")
        return len(self.seen_ns) >= len(keys) and all(key in self.seen_ns for key in keys)

    def _run(self) -> None:
        try:
            with self._connected() as reader:
                self._read_on(reader)
        except BaseException as error:
            self._error = error

    def _connected(self) -> MarketReader:
        """Open the journal as soon as the collector has written what it collects."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                reader = MarketReader.connect(f"sqlite:///{self._journal}")
                if len(reader.pairs()) == workload.PAIRS:
                    return reader
                reader.close()
            except ReaderError:
                if time.monotonic() > deadline_s or self._stop.is_set():
                    raise
            time.sleep(0.01)

    def _read_on(self, reader: MarketReader) -> None:
        newest: dict[tuple[str, str], int] = {}
        while not self._stop.is_set():
            version = reader.version()
            for timeframe in self._timeframes:
                found = reader.newest(timeframe)
                now_ns = time.monotonic_ns()
                for pair, open_ms in found.items():
                    if newest.get((pair, timeframe)) != open_ms:
                        newest[pair, timeframe] = open_ms
                        self.seen_ns[pair, timeframe, open_ms] = now_ns
            reader.wait_change(version, timeout_s=0.25)
