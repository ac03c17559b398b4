"""Frames from socket to committed journal, flooded and paced, beside cryptofeed."""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from marketfeed.journal.journal import Journal
from marketfeed.records import Candle
from tests.bench import jobs, tape, workload
from tests.bench.child import BenchError, Child
from tests.bench.report import Column, Row, Section

MINUTES: Final = 73
"""Of exchange time in a flood: 598,600 frames."""
BACKEND_MINUTES: Final = 3
"""For cryptofeed's backend: a POST per point on 2.x; 3.x drops what exceeds a queue of 10,000."""
DECODE_MINUTES: Final = 20
PACE: Final = 4_000
"""Frames per wall second."""
PACED_S: Final = 10
WARM_UP_S: Final = 1
LIVE_TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
TIMEOUT_S: Final = 120.0
GOAL_RATIO: Final = 1.1
GOAL_SHARE: Final = 20.0

ReportProgress = Callable[[str], None]

_RATE = Column("k frames/CPU-s")
_LOWEST = Column("lowest")
_HIGHEST = Column("highest")
_COST = Column("CPU µs/frame", 2)
_RATIO = Column("× (a)", 2)


def ingest(report_progress: ReportProgress, repeat: int) -> Section:
    """Flood each receiver `repeat` times in turn; medians."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        report_progress("ingest: writing frames")
        flood = tape.write(directory / "flood.tape", workload.mixed(MINUTES))
        few = tape.write(directory / "few.tape", workload.mixed(BACKEND_MINUTES))
        ours: list[jobs.Received] = []
        peers: dict[bool, list[jobs.Received]] = {True: [], False: []}
        decoded: list[jobs.Received] = []
        for turn in range(1, repeat + 1):
            report_progress(f"ingest: ours, {turn} of {repeat}")
            ours.append(_ours(flood, directory, ("1m",)))
            for closed_only, results in peers.items():
                report_progress(f"ingest: cryptofeed, {turn} of {repeat}")
                results.append(_peer(flood, ("1m",), closed_only=closed_only))
            report_progress(f"ingest: decoding alone, {turn} of {repeat}")
            decode_job = jobs.DecodeJob(
                str(flood.path), DECODE_MINUTES * workload.FRAMES_PER_MINUTE
            )
            with Child("decode_only", decode_job) as child:
                decoded.append(child.receive(jobs.Received, TIMEOUT_S))
        report_progress("ingest: cryptofeed with its InfluxDB backend")
        points = len(few.closed) + BACKEND_MINUTES * workload.MARKS * workload.PAIRS
        backend = _backend(few, points)
    base = statistics.median(map(_rate, peers[True]))
    rows = [
        _row("ours: socket → committed journal", ours, base, goal=True),
        _row("(a) cryptofeed, no-op callbacks", peers[True], base),
        _row("(a') cryptofeed, no-op, every kline", peers[False], base),
        _row("(b) cryptofeed → its InfluxDB backend", [backend], base),
        _row("(c) typed decoding alone", decoded, base),
    ]
    commits = statistics.median(one.commits for one in ours)
    wall_s = statistics.median(one.stored_wall_s for one in ours)
    frames = (
        f"{flood.frames:,} frames ({few.frames:,} for (b)), {workload.PAIRS} pairs, 1m: 70 % open klines, "
        "28 % mark prices, 2 % closing"
    )
    processes = (
        f"CPU (user and system) of the receiving process until all is handled, ours and (b) until all is "
        f"stored; medians of {repeat}"
    )
    stored = (
        f"ours: all {len(flood.closed):,} closed candles read back from the journal with their numbers, "
        f"every time; {commits:,.0f} commits in {wall_s:.1f} s"
    )
    arrived = (
        f"(b): {backend.points:,} of {points:,} points arrived, "
        f"{backend.points / backend.stored_wall_s:,.0f} points/s; the server answers 204 after 1 ms"
    )
    kinds = (
        "(a) and (b) as cryptofeed comes: open klines are parsed and dropped; (a'): candle_closed_only="
        "False, each makes a Candle, as each is stored by ours"
    )
    notes = [frames, kinds, processes, stored, arrived]
    columns = (_RATE, _LOWEST, _HIGHEST, _COST, _RATIO)
    return Section("Frames per CPU second, as fast as they are taken", columns, rows, notes)


def paced(report_progress: ReportProgress) -> Section:
    """Let frames come at a real pace, one per write."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        directory = Path(name)
        seconds = PACED_S + WARM_UP_S
        minutes = math.ceil(seconds * PACE / workload.FRAMES_PER_MINUTE)
        report_progress("paced: writing frames")
        mixed = tape.write(directory / "mixed.tape", workload.mixed(minutes, PACE))
        live = tape.write(directory / "live.tape", workload.live(seconds, PACE, LIVE_TIMEFRAMES))
        rows: list[Row] = []
        notes: list[str] = []
        for text, written, timeframes in (
            ("mixed load", mixed, ("1m",)),
            ("as in real time", live, LIVE_TIMEFRAMES),
        ):
            report_progress(f"paced: ours, {text}")
            ours = _ours(written, directory, timeframes, paced=True)
            report_progress(f"paced: cryptofeed, {text}")
            closed = _peer(written, timeframes, closed_only=True, paced=True)
            every = _peer(written, timeframes, closed_only=False, paced=True)
            for who, result, goal in (
                ("ours", ours, True),
                ("(a) cryptofeed, no-op callbacks", closed, False),
                ("(a') cryptofeed, no-op, every kline", every, False),
            ):
                share = 100.0 * result.cpu_s / result.wall_s
                rows.append(
                    Row(
                        f"{text}: {who}",
                        {
                            "CPU % of a core": share,
                            _COST.name: 1e6 * result.cpu_s / result.frames,
                            "CPU × (a)": result.cpu_s / closed.cpu_s,
                        },
                        f"≤ {GOAL_SHARE:g} %" if goal else "",
                        share <= GOAL_SHARE if goal else None,
                    )
                )
            notes.append(
                f"{text}: {ours.frames / ours.wall_s:,.0f} frames/s for {ours.wall_s:.1f} s, "
                f"{len(written.closed):,} candles closed, {ours.commits:,} commits"
            )
    notes.append(
        f"mixed load: that of the flood, {workload.PAIRS} candles closing every other second; as in real "
        f"time: {','.join(LIVE_TIMEFRAMES)}, a mark price per pair and second, an hour's end in the middle"
    )
    columns = (Column("CPU % of a core"), _COST, Column("CPU × (a)", 2))
    return Section(f"CPU at {PACE:,} frames/s, one message per write", columns, rows, notes)


def _rate(result: jobs.Received) -> float:
    return result.frames / result.stored_cpu_s / 1e3


def _row(what: str, results: Sequence[jobs.Received], base: float, *, goal: bool = False) -> Row:
    rates = [_rate(result) for result in results]
    rate = statistics.median(rates)
    ratio = rate / base
    return Row(
        what,
        {
            _RATE.name: rate,
            _LOWEST.name: min(rates),
            _HIGHEST.name: max(rates),
            _COST.name: 1e3 / rate,
            _RATIO.name: ratio,
        },
        f"≥ {GOAL_RATIO:g}" if goal else "",
        ratio >= GOAL_RATIO if goal else None,
    )


def _ours(
    written: tape.Written,
    directory: Path,
    timeframes: tuple[str, ...],
    *,
    paced: bool = False,
) -> jobs.Received:
    journal = directory / "journal.db"
    with start_sender(written, paced=paced) as sender:
        port = sender.receive(jobs.Listening, TIMEOUT_S).port
        skip = WARM_UP_S * PACE if paced else 0
        job = jobs.ReceiveJob(
            port,
            written.frames,
            skip,
            timeframes,
            journal=str(journal),
            tape=str(written.path),
        )
        with Child("receive_ours", job) as receiver:
            result = receiver.receive(jobs.Received, TIMEOUT_S)
    verify(result, journal, written.closed.values())
    if paced:
        refuse_gaps(result, len(written.closed))
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{journal}{suffix}").unlink(missing_ok=True)
    return result


def _peer(
    written: tape.Written, timeframes: tuple[str, ...], *, closed_only: bool, paced: bool = False
) -> jobs.Received:
    with start_sender(written, paced=paced) as sender:
        port = sender.receive(jobs.Listening, TIMEOUT_S).port
        skip = WARM_UP_S * PACE if paced else 0
        job = jobs.ReceiveJob(port, written.frames, skip, timeframes, closed_only=closed_only)
        with Child("receive_peer", job) as receiver:
            return receiver.receive(jobs.Received, TIMEOUT_S)


def _backend(written: tape.Written, points: int) -> jobs.Received:
    with (
        Child("influx_sink") as sink,
        start_sender(written, paced=False) as sender,
    ):
        job = jobs.ReceiveJob(
            sender.receive(jobs.Listening, TIMEOUT_S).port,
            written.frames,
            0,
            ("1m",),
            influx_port=sink.receive(jobs.Listening, TIMEOUT_S).port,
            points=points,
        )
        with Child("receive_peer", job) as receiver:
            return receiver.receive(jobs.Received, TIMEOUT_S)


def start_sender(written: tape.Written, *, paced: bool, sent_path: Path | None = None) -> Child:
    """Start a server that plays a tape; `sent_path` gets the times of sending."""
    job = jobs.SendJob(str(written.path), paced, None if sent_path is None else str(sent_path))
    # cryptofeed 3 puts all names of a connection into the URL: 8 kB of it.
    return Child("sender", job, WEBSOCKETS_MAX_LINE_LENGTH="65536")


def verify(result: jobs.Received, journal_path: Path, closed: Iterable[Candle]) -> None:
    """Read every candle back from the journal.

    Raises BenchError if one is missing or different, or if the collector has refused a frame.
    """
    if result.rejects:
        raise BenchError(f"{result.rejects} frames were rejected")
    expected: dict[tuple[str, str], list[Candle]] = {}
    for candle in closed:
        expected.setdefault((candle.pair, candle.timeframe), []).append(candle)
    with Journal.open(journal_path) as journal:
        for (pair, timeframe), candles in expected.items():
            stored = journal.candles(pair, timeframe, 0, 2**62)
            if stored != candles:
                raise BenchError(
                    f"{pair} {timeframe}: {len(stored)} candles stored, {len(candles)} sent"
                    + (", numbers differ" if len(stored) == len(candles) else "")
                )


def refuse_gaps(result: jobs.Received, candles: int) -> None:
    """Raise BenchError if the collector missed many candles at their time: then the load is not whole.

    Some are late in its eyes where exchange time runs a thousand times as fast as the wall clock and one
    connection is read a few milliseconds before another. Not for floods: there it is a minute.
    """
    if result.gaps > candles // 20:
        raise BenchError(f"{result.gaps} of {candles} candles were missed")
