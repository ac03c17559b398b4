"""What the reader costs beyond the bare SQLite fetch of the same rows, beside pandas' own."""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from marketfeed import schema
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle, CatalogEntry, FundingRate
from reader import MarketReader
from tests.bench import workload
from tests.bench.child import BenchError
from tests.bench.report import Column, Row, Section

CANDLES: Final = 2_000
LIMIT: Final = 500
RUNS: Final = 300
RUNS_OF_MANY: Final = 30
TIMEFRAME: Final = "3m"
GOAL_BEYOND_MS: Final = 1.5
GOAL_MANY_MS: Final = 200.0
FUNDING_STEPS: Final = 60

ReportProgress = Callable[[str], None]
_COLUMNS: Final = ("date", "open", "high", "low", "close", "volume")
_BARE: Final = """
SELECT open_time, open, high, low, close, volume FROM candle
WHERE pair_id = ? AND timeframe_ms = ? ORDER BY open_time DESC LIMIT ?"""
_BARE_FUNDING: Final = """
SELECT pair, f.time, f.rate, f.settled_rate, f.next_funding_time
FROM pair CROSS JOIN funding_rate AS f ON f.pair_id = pair.id
    AND f.time = (SELECT max(time) FROM funding_rate WHERE pair_id = pair.id)"""


def read(report_progress: ReportProgress) -> Section:
    """Time the reader's calls, the bare fetch and pandas' in turn."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        path = Path(name) / "journal.db"
        report_progress(f"reader: writing {workload.PAIRS} pairs × {CANDLES:,} candles")
        # The journal stays open: readers find it as it is while a collector runs.
        with Journal.open(path) as journal:
            pairs, now_ms = _fill(journal)
            report_progress("reader: reading")
            with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as reader:
                bare = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                try:
                    rows = _measure(reader, bare, pairs)
                finally:
                    bare.close()
    taken = (
        f"{RUNS} runs ({RUNS_OF_MANY} for all pairs), each kind in turn; beyond: the difference of the "
        "medians, and of the 99th percentiles of 300 runs, to the bare fetch"
    )
    notes = [
        taken,
        "pandas: read_sql_query, oldest first, the date converted: the same frame, compared once",
    ]
    columns = (
        Column("p50 ms", 2),
        Column("p99 ms", 2),
        Column("beyond p50", 2),
        Column("beyond p99", 2),
        Column("× fetch", 1),
    )
    return Section(
        f"Reading a journal of {workload.PAIRS} pairs × {CANDLES:,} candles", columns, rows, notes
    )


def _fill(journal: Journal) -> tuple[dict[str, int], int]:
    """Write in the order of time, as a collector does. Returns pair -> id, and the time of the end."""
    instruments = workload.listed()
    length_ms = schema.TIMEFRAMES_MS[TIMEFRAME]
    start_ms = workload.START_MS
    end_ms = start_ms + CANDLES * length_ms
    batch = Batch()
    for instrument in instruments:
        batch.add(
            CatalogEntry(
                instrument.pair, instrument.symbol, (TIMEFRAME,), start_ms, None, None, start_ms
            )
        )
    for turn in range(CANDLES):
        open_ms = start_ms + turn * length_ms
        for number, instrument in enumerate(instruments):
            price = 100.0 + number + turn % 97 / 8
            candle = Candle(
                instrument.pair, TIMEFRAME, open_ms, price, price + 1.5, price - 1.25, price + 0.5,
                1_000.25 + turn, 100_000.5, 500.125, 40,
                closed=True, event_time_ms=open_ms + length_ms,
            )  # fmt: skip
            batch.add(candle)
        if turn % 20 == 19:
            journal.write(batch)
            batch = Batch()
    for step in range(FUNDING_STEPS):
        time_ms = end_ms - (FUNDING_STEPS - step) * schema.MINUTE_MS
        for instrument in instruments:
            batch.add(FundingRate(instrument.pair, time_ms, 0.0001, end_ms + schema.HOUR_MS))
    journal.write(batch)
    with sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True) as db:
        ids = dict(db.execute("SELECT pair, id FROM pair"))
    db.close()
    return ids, end_ms + schema.SECOND_MS


def _measure(reader: MarketReader, bare: sqlite3.Connection, ids: dict[str, int]) -> list[Row]:
    names = list(ids)
    length_ms = schema.TIMEFRAMES_MS[TIMEFRAME]

    def fetch(pair: str) -> list[Any]:
        return bare.execute(_BARE, (ids[pair], length_ms, LIMIT)).fetchall()

    def by_pandas(pair: str) -> pd.DataFrame:
        frame = pd.read_sql_query(_BARE, bare, params=(ids[pair], length_ms, LIMIT))
        frame.columns = pd.Index(_COLUMNS)
        frame = frame.iloc[::-1].reset_index(drop=True)
        frame["date"] = pd.to_datetime(frame["date"], unit="ms", utc=True)
        return frame

    def funding_by_pandas() -> pd.DataFrame:
        frame = pd.read_sql_query(_BARE_FUNDING, bare, index_col="pair")
        for column in ("time", "next_funding_time"):
            frame[column] = pd.to_datetime(frame[column], unit="ms", utc=True)
        return frame

    ours = reader.get_ohlcv(names[0], TIMEFRAME, LIMIT)
    if len(ours) != LIMIT or ours.attrs["missing"]:
        raise BenchError(f"get_ohlcv: {len(ours)} rows, missing {ours.attrs['missing'][:3]}")
    pd.testing.assert_frame_equal(ours, by_pandas(names[0]))
    if len(reader.get_all_pairs_funding_rates()) != len(names):
        raise BenchError("get_all_pairs_funding_rates: pairs are missing")

    turn = iter(range(1 << 30))

    def any_pair() -> str:
        return names[next(turn) % len(names)]

    one = _in_turn(
        RUNS,
        lambda: reader.get_ohlcv(any_pair(), TIMEFRAME, LIMIT),
        lambda: fetch(any_pair()),
        lambda: by_pandas(any_pair()),
    )
    many = _in_turn(
        RUNS_OF_MANY,
        lambda: reader.get_ohlcv_many(names, TIMEFRAME, LIMIT),
        lambda: [fetch(pair) for pair in names],
        lambda: {pair: by_pandas(pair) for pair in names},
    )
    funding = _in_turn(
        RUNS,
        reader.get_all_pairs_funding_rates,
        lambda: bare.execute(_BARE_FUNDING).fetchall(),
        funding_by_pandas,
    )
    beyond = one[0] - one[1]
    everything = f"{len(names)} × {LIMIT}"
    return [
        _row(
            f"get_ohlcv, {LIMIT} rows", one[0], one[1],
            f"beyond ≤ {GOAL_BEYOND_MS:g} ms", met=bool((beyond <= GOAL_BEYOND_MS).all()),
        ),
        _row("  bare fetchall", one[1], one[1]),
        _row("  pandas.read_sql_query", one[2], one[1]),
        _row(
            f"get_ohlcv_many, {everything}", many[0], many[1],
            f"≤ {GOAL_MANY_MS:g} ms", met=bool(many[0][0] <= GOAL_MANY_MS), tail=False,
        ),
        _row("  bare fetchall, one by one", many[1], many[1], tail=False),
        _row("  pandas.read_sql_query, one by one", many[2], many[1], tail=False),
        _row("get_all_pairs_funding_rates", funding[0], funding[1]),
        _row("  bare fetchall", funding[1], funding[1]),
        _row("  pandas.read_sql_query", funding[2], funding[1]),
    ]  # fmt: skip


def _in_turn(runs: int, *calls: Callable[[], object]) -> list[Any]:
    """Time each call `runs` times, one after the other. Returns (median, 99th percentile) in ms each."""
    taken_ns = np.zeros((len(calls), runs), np.int64)
    for call in calls:
        call()
    for run in range(runs):
        for number, call in enumerate(calls):
            started_ns = time.perf_counter_ns()
            call()
            taken_ns[number, run] = time.perf_counter_ns() - started_ns
    return list(np.quantile(taken_ns, (0.5, 0.99), axis=1).T / 1e6)


def _row(
    what: str, times: Any, fetch: Any, goal: str = "", *, met: bool | None = None, tail: bool = True
) -> Row:
    values = {
        "p50 ms": float(times[0]),
        "p99 ms": float(times[1]),
        "× fetch": float(times[0] / fetch[0]),
    }
    if times is not fetch:
        values["beyond p50"] = float(times[0] - fetch[0])
        if tail:
            values["beyond p99"] = float(times[1] - fetch[1])
    return Row(what, values, goal, met)
