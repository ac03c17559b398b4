"""What the reader costs beyond the bare question to a real InfluxDB, beside influxdb-client's data frames.

The peer's rows are the same ones, as the annotated CSV in which InfluxDB 2.x answers Flux: ready made, so
that its time is the transport and its own parsing alone. This module, run by itself, is the server of them.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd
import urllib3
from influxdb_client import InfluxDBClient

from marketfeed import schema
from marketfeed.influxdb import line_protocol as lines
from reader import MarketReader
from tests.bench import jobs, workload
from tests.bench.child import BenchError, Child
from tests.bench.report import Column, Row, Section
from tests.influxdb.influxd import Influxd, InfluxdError

CANDLES: Final = 2_000
LIMIT: Final = 500
TIMEFRAME: Final = "3m"
RUNS: Final = 300
RUNS_OF_MANY: Final = 20
BLOCK: Final = 10
FUNDING_STEPS: Final = 60
START_TIMEOUT_S: Final = 60.0
GOAL_RATIO: Final = 1.3
GOAL_FASTER: Final = 5.0
GOAL_FUNDING_MS: Final = 15.0

ReportProgress = Callable[[str], None]
_BUCKET: Final = "market_data"
_FIELDS: Final = ("open", "high", "low", "close", "volume")
_BATCH: Final = 10_000
_MSGPACK: Final = {"Accept": "application/x-msgpack"}


class FluxJob(msgspec.Struct, frozen=True):
    """Serve `folder`: `one` to a question for one pair, `many` to any other."""

    folder: str


def influx_read(report_progress: ReportProgress) -> Section:
    """Time the reader's calls, the bare question and influxdb-client's in turn."""
    pairs = [instrument.pair for instrument in workload.listed()]
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        folder = Path(name)
        report_progress("influx: starting influxd")
        try:
            server = Influxd(folder / "influxd")
        except InfluxdError as error:
            raise BenchError(f"no influxd to read from: {error}") from error
        with server, server.database(_BUCKET):
            report_progress(f"influx: writing {len(pairs)} pairs × {CANDLES:,} candles")
            for batch in _batches(_points(pairs)):
                server.write(_BUCKET, batch)
            for answer, members in (("one", pairs[:1]), ("many", pairs)):
                (folder / answer).write_text(_flux_csv(members), encoding="utf-8")
            job = FluxJob(str(folder))
            with (
                Child("influx_read", job) as flux,
                MarketReader.connect(server.url, bucket=_BUCKET, now_ms=_end_ms) as reader,
            ):
                port = flux.receive(jobs.Listening, START_TIMEOUT_S).port
                with InfluxDBClient(f"http://127.0.0.1:{port}", "no token", org="bench") as client:
                    report_progress("influx: reading")
                    rows = _measure(reader, server.url, client, pairs)
    bare = (
        f"{RUNS} runs ({RUNS_OF_MANY} for all pairs), {BLOCK} of a kind by turns; bare: one POST of a plain "
        "InfluxQL question by urllib3, and msgspec's decoding of the answer into lists, no frame"
    )
    notes = [
        bare,
        "query_data_frame: influxdb-client's, over the same rows as pivoted annotated CSV, ready made",
        "× bare and × faster are ratios of medians",
    ]
    columns = (
        Column("p50 ms", 2),
        Column("p99 ms", 2),
        Column("× bare", 2),
        Column("× faster", 1),
    )
    title = f"Reading an InfluxDB 1.6.7 of {len(pairs)} pairs × {CANDLES:,} candles"
    return Section(title, columns, rows, notes)


# --- what is stored ---------------------------------------------------------------------------------


def _end_ms() -> int:
    return workload.START_MS + CANDLES * schema.TIMEFRAMES_MS[TIMEFRAME]


def _values(number: int, turn: int) -> tuple[float, float, float, float, float]:
    price = 100.0 + number + turn % 97 / 7
    return price, price * 1.0123, price * 0.9871, price + 0.1 / 3, 1_000.25 / 3 + turn


def _points(pairs: Sequence[str]) -> Iterator[str]:
    length_ms = schema.TIMEFRAMES_MS[TIMEFRAME]
    measurement = schema.ohlcv_measurement(TIMEFRAME)
    tags = [lines.escape_tag(pair) for pair in pairs]
    for turn in range(CANDLES):
        open_ms = workload.START_MS + turn * length_ms
        for number, tag in enumerate(tags):
            values = _values(number, turn)
            yield lines.candle_text(measurement, tag, *values, 100_000.5, 500.125, 40, open_ms)
    for step in range(FUNDING_STEPS):
        time_ms = _end_ms() - (FUNDING_STEPS - step) * schema.MINUTE_MS
        for tag in tags:
            yield lines.funding_rate_text(tag, time_ms, step / 7e5, None, _end_ms())
    for tag in tags:
        yield lines.catalog_text(tag, TIMEFRAME, None, None, workload.START_MS)
        yield lines.funding_settled_text(tag, _end_ms() - schema.HOUR_MS, 0.0001, 100.5)


def _batches(points: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(points, _BATCH)):
        yield batch


def _flux_csv(pairs: Sequence[str]) -> str:
    """What 2.x answers to a pivoted question for the last LIMIT candles of `pairs`."""
    length_ms = schema.TIMEFRAMES_MS[TIMEFRAME]
    start, stop = (_rfc3339(ms) for ms in (_end_ms() - LIMIT * length_ms, _end_ms()))
    times = ",".join(["dateTime:RFC3339"] * 3)
    text = [
        f"#datatype,string,long,{times},string,string,{','.join(['double'] * len(_FIELDS))}",
        "#group,false,false,true,true,false,true,true,false,false,false,false,false",
        "#default,_result,,,,,,,,,,,",
        ",result,table,_start,_stop,_time,_measurement,pair,close,high,low,open,volume",
    ]
    for number, pair in enumerate(pairs):
        for turn in range(CANDLES - LIMIT, CANDLES):
            o, high, low, c, volume = _values(number, turn)
            at = _rfc3339(workload.START_MS + turn * length_ms)
            text.append(
                f",,{number},{start},{stop},{at},ohlcv_{TIMEFRAME},{pair},{c!r},{high!r},{low!r},{o!r},"
                f"{volume!r}"
            )
    return "\r\n".join([*text, "", ""])


def _rfc3339(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the calls --------------------------------------------------------------------------------------


def _measure(
    reader: MarketReader, url: str, client: InfluxDBClient, pairs: Sequence[str]
) -> list[Row]:
    pool = urllib3.PoolManager(retries=False)
    api = client.query_api()
    start_ms = _end_ms() - LIMIT * schema.TIMEFRAMES_MS[TIMEFRAME]
    decode = msgspec.msgpack.Decoder().decode

    def ask(text: str, bound: dict[str, str]) -> Any:
        fields = {
            "db": _BUCKET,
            "q": text,
            "epoch": "ms",
            "params": msgspec.json.encode(bound).decode(),
        }
        answer = pool.request(
            "POST", f"{url}/query", fields=fields, encode_multipart=False, headers=_MSGPACK
        )
        return decode(answer.data)["results"]

    def candles(members: Sequence[str]) -> Any:
        bound = {f"p{number}": pair for number, pair in enumerate(members)}
        condition = " OR ".join(f"pair = ${name}" for name in bound)
        return ask(
            f"SELECT {', '.join(_FIELDS)} FROM ohlcv_{TIMEFRAME} "  # noqa: S608 - constants
            f"WHERE ({condition}) AND time >= {start_ms}ms GROUP BY pair",
            bound,
        )

    def funding() -> Any:
        start = _end_ms() - 10 * schema.MINUTE_MS
        return ask(
            "SELECT last(rate), settled_rate, next_funding_time FROM funding_rate "  # noqa: S608 - constants
            f"WHERE time >= {start}ms GROUP BY pair; "
            f"SELECT last(rate) FROM funding_settled WHERE time >= {_end_ms() - schema.DAY_MS}ms "
            "GROUP BY pair",
            {},
        )

    def by_client(members: Sequence[str]) -> pd.DataFrame:
        only = f'|> filter(fn: (r) => r.pair == "{members[0]}") ' if len(members) == 1 else ""
        fields = " or ".join(f'r._field == "{name}"' for name in _FIELDS)
        return api.query_data_frame(
            f'from(bucket: "{_BUCKET}") |> range(start: {start_ms // 1000}) '
            f'|> filter(fn: (r) => r._measurement == "ohlcv_{TIMEFRAME}") {only}'
            f"|> filter(fn: (r) => {fields}) "
            '|> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")'
        )

    _same(reader.get_ohlcv(pairs[0], TIMEFRAME, LIMIT), by_client(pairs[:1]))
    many = reader.get_ohlcv_many(pairs, TIMEFRAME, LIMIT)
    of_client = by_client(pairs)
    for pair in (pairs[0], pairs[-1]):
        _same(many[pair], of_client[of_client["pair"] == pair])
    rates = reader.get_all_pairs_funding_rates()
    if len(rates) != len(pairs) or {rate.settled_rate for rate in rates.values()} != {0.0001}:
        raise BenchError("get_all_pairs_funding_rates: pairs or settled rates are missing")

    turn = itertools.cycle(pairs)
    one = _in_turn(
        RUNS,
        lambda: reader.get_ohlcv(next(turn), TIMEFRAME, LIMIT),
        lambda: candles([next(turn)]),
        lambda: by_client(pairs[:1]),
    )
    of_all = _in_turn(
        RUNS_OF_MANY,
        lambda: reader.get_ohlcv_many(pairs, TIMEFRAME, LIMIT),
        lambda: candles(pairs),
        lambda: by_client(pairs),
    )
    latest = _in_turn(RUNS, reader.get_all_pairs_funding_rates, funding)
    goal = f"≤ {GOAL_RATIO:g} × bare, ≥ {GOAL_FASTER:g} × faster than query_data_frame"
    pool.clear()
    return [
        _ours(f"get_ohlcv, {LIMIT} rows", one, goal),
        _row("  bare request and parse", one[1], one[1]),
        _row("  influxdb-client, query_data_frame", one[2], one[1]),
        _ours(f"get_ohlcv_many, {len(pairs)} × {LIMIT}", of_all, goal),
        _row("  bare request and parse", of_all[1], of_all[1]),
        _row("  influxdb-client, query_data_frame", of_all[2], of_all[1]),
        _row(
            "get_all_pairs_funding_rates", latest[0], latest[1],
            f"≤ {GOAL_FUNDING_MS:g} ms", met=bool(latest[0][0] <= GOAL_FUNDING_MS),
        ),
        _row("  bare request and parse", latest[1], latest[1]),
    ]  # fmt: skip


def _same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    fields = list(_FIELDS)
    if len(ours) != LIMIT or not np.array_equal(ours[fields].to_numpy(), theirs[fields].to_numpy()):
        raise BenchError(f"{len(ours)} and {len(theirs)} candles differ")


def _in_turn(runs: int, *calls: Callable[[], object]) -> list[Any]:
    """Time each call `runs` times, BLOCK of a kind by turns. Returns (median, 99th percentile) in ms each.

    In blocks, so that caches and the server are as warm as for whoever reads pair after pair.
    """
    taken_ns = np.zeros((len(calls), runs), np.int64)
    for start in range(0, runs, BLOCK):
        for number, call in enumerate(calls):
            call()
            for run in range(start, min(start + BLOCK, runs)):
                started_ns = time.perf_counter_ns()
                call()
                taken_ns[number, run] = time.perf_counter_ns() - started_ns
    return list(np.quantile(taken_ns, (0.5, 0.99), axis=1).T / 1e6)


def _ours(what: str, times: Sequence[Any], goal: str) -> Row:
    ours, bare, client = (float(each[0]) for each in times)
    met = ours <= GOAL_RATIO * bare and client >= GOAL_FASTER * ours
    row = _row(what, times[0], times[1], goal, met=met)
    return Row(what, {**row.values, "× faster": client / ours}, goal, met)


def _row(what: str, times: Any, bare: Any, goal: str = "", *, met: bool | None = None) -> Row:
    values = {
        "p50 ms": float(times[0]),
        "p99 ms": float(times[1]),
        "× bare": float(times[0] / bare[0]),
    }
    return Row(what, values, goal, met)


# --- the server of ready-made answers ---------------------------------------------------------------


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    answers = {name: (folder / name).read_bytes() for name in ("one", "many")}

    class Flux(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = self.rfile.read(int(self.headers["Content-Length"]))
            body = answers["one" if b"r.pair ==" in question else "many"]
            self.send_response(200)
            self.send_header("Content-Type", "text/csv; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    return Flux


def _serve() -> None:
    job = jobs.take(FluxJob)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Path(job.folder)))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    jobs.send(jobs.Listening(server.server_address[1]))
    jobs.until_dismissed()
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    sys.exit(_serve())
