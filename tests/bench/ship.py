"""What shipping a backlog costs beyond the writing: the real shipper beside a loop of ready-made batches.

Both write the same lines in the same order to the same influxd, each run into a database of its own.
"""

import asyncio
import http.client
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np
import uvloop

from marketfeed import schema
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.pace import DEFAULT_PACE
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, MarkPrice
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.ranges import Acknowledged
from tests.bench import workload
from tests.bench.child import BenchError
from tests.bench.report import Column, Row, Section
from tests.influxdb.influxd import Influxd, InfluxdError

TIMEFRAMES: Final = ("3m", "5m", "15m", "1h")
MARK_PRICE_EVERY_MS: Final = 3_000
MINUTES: Final = 144
"""That many minutes of 164 pairs are half a million rows."""
RUNS: Final = 5
GOAL_SHARE: Final = 0.8
TIMEOUT_S: Final = 300.0

ReportProgress = Callable[[str], None]
_ALWAYS_THERE: Final = {
    schema.MARK_PRICE: "mark_price",
    schema.FUNDING_RATE: "rate",
    schema.FUNDING_SETTLED: "rate",
    schema.FEED_CATALOG: "timeframes",
    schema.OHLCV_PREFIX: "close",
}
"""Beginnings of measurements' names, and a field that each of their points has."""


def ship(report_progress: ReportProgress) -> Section:
    """Ship a backlog and write the same lines bare, by turns."""
    with tempfile.TemporaryDirectory(prefix="marketfeed-bench-") as name:
        path = Path(name) / "journal.db"
        report_progress(f"ship: writing a journal of {MINUTES} minutes")
        rows = _fill(path)
        batches = _batches(path)
        report_progress("ship: starting influxd")
        try:
            server = Influxd(Path(name) / "influxd")
        except InfluxdError as error:
            raise BenchError(f"no influxd to ship to: {error}") from error
        taken_s: dict[str, list[float]] = {"ours": [], "bare": []}
        with server:
            for run in range(RUNS):
                report_progress(f"ship: run {run + 1} of {RUNS}")
                for kind, taken in taken_s.items():
                    # A name of its own for each: what was shipped is remembered by it.
                    with server.database(f"{kind}_{run}") as database:
                        if kind == "ours":
                            seconds = uvloop.run(_ours(path, server.url, database))
                        else:
                            seconds = _bare(batches, server.port, database)
                        taken.append(seconds)
                        _require_all(server, database, rows)
    total = sum(rows.values())
    ours_s, bare_s = (float(np.median(each)) for each in taken_s.values())
    met = bare_s / ours_s >= GOAL_SHARE
    lines_each = [
        Row(
            "marketfeed's shipper, from the journal",
            {"s": ours_s, "lines/s": total / ours_s, "share of bare": bare_s / ours_s},
            f"≥ {GOAL_SHARE:g} of bare",
            met,
        ),
        Row(
            "  bare loop of ready-made batches",
            {"s": bare_s, "lines/s": total / bare_s, "share of bare": 1.0},
        ),
    ]
    columns = (Column("s", 2), Column("lines/s", 0), Column("share of bare", 2))
    notes = [
        f"medians of {RUNS} runs each, by turns, fresh databases; every row is counted afterwards",
        f"bare: http.client posts batches of {DEFAULT_PACE.max_lines:,} lines, encoded before, one by one",
        "ours: read by cursor, made into lines, posted, and every acknowledgement committed to the journal",
    ]
    return Section(
        f"Shipping a backlog of {total:,} rows into InfluxDB 1.6.7", columns, lines_each, notes
    )


def _fill(path: Path) -> dict[str, int]:
    """Write what a collector stores, in the order of time. Returns the rows of each table."""
    pairs = [instrument.pair for instrument in workload.listed()]
    start_ms = workload.START_MS
    with Journal.open(path) as journal:
        batch = Batch()
        for pair in pairs:
            batch.add(CatalogEntry(pair, pair, TIMEFRAMES, start_ms, None, None, start_ms))
            batch.add(FundingSettled(pair, start_ms, 0.0001, 100.5))
        for minute in range(MINUTES):
            at_ms = start_ms + minute * schema.MINUTE_MS
            for number, pair in enumerate(pairs):
                # As many digits as the exchange gives.
                price = round(100.0 + number + minute / 7, 2)
                for late_ms in range(0, schema.MINUTE_MS, MARK_PRICE_EVERY_MS):
                    mark = round(price + late_ms / 3e7, 8)
                    batch.add(MarkPrice(pair, at_ms + late_ms, mark, round(mark * 0.9999, 8)))
                rate = round(minute / 7e5, 8)
                batch.add(FundingRate(pair, at_ms, rate, start_ms + 8 * schema.HOUR_MS))
                for name in TIMEFRAMES:
                    length_ms = schema.TIMEFRAMES_MS[name]
                    if at_ms % length_ms == 0:
                        prices = (price, price + 1.25, price - 1.5, price + 0.1)
                        volumes = (1_000.125 + minute, round(price * 1_000.125, 5), 500.0625)
                        open_ms = at_ms - length_ms
                        batch.add(Candle(pair, name, open_ms, *prices, *volumes, 40, True, at_ms))
            journal.write(batch)
            batch = Batch()
        counts = journal.row_counts()
    of_tables = {
        name: counts[table]
        for table, name in (
            (schema.TABLE_MARK_PRICE, schema.MARK_PRICE),
            (schema.TABLE_FUNDING_RATE, schema.FUNDING_RATE),
            (schema.TABLE_FUNDING_SETTLED, schema.FUNDING_SETTLED),
            (schema.TABLE_CANDLE, schema.OHLCV_PREFIX),
        )
    }
    return {**of_tables, schema.FEED_CATALOG: len(pairs)}


def _batches(path: Path) -> list[bytes]:
    outbox, shipped, batches = (
        JournalOutbox(path, "bench"),
        Acknowledged.alike(KIND.measurements),
        [],
    )
    try:
        while (ship_batch := outbox.newest(shipped, DEFAULT_PACE.max_lines)).lines:
            batches.append("\n".join(ship_batch.lines).encode())
            for piece in ship_batch.covers:
                shipped.add(piece)
    finally:
        outbox.close()
    return batches


def _bare(batches: list[bytes], port: int, database: str) -> float:
    started_s = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        for batch in batches:
            connection.request("POST", f"/write?db={database}&precision=ms", batch)
            answer = connection.getresponse()
            answer_body = answer.read()
            if answer.status != 204:
                raise BenchError(f"write: {answer.status} {answer_body[:200]!r}")
    finally:
        connection.close()
    return time.perf_counter() - started_s


async def _ours(path: Path, url: str, database: str) -> float:
    settings = InfluxSettings.model_validate({"url": url, "api": "v1", "bucket": database})
    async with aiohttp.ClientSession() as session, JournalWriter(path) as writer:
        started_s = time.perf_counter()
        shipper = Shipper(writer, InfluxWriter(settings, session))
        task = asyncio.create_task(shipper.run())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while shipper.shipped_below() < writer.next_seq and not task.done():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise BenchError(f"not shipped in {TIMEOUT_S:g} s: {shipper.report()}") from None
        finally:
            seconds = time.perf_counter() - started_s
            shipper.end()
            await task
    return seconds


def _require_all(server: Influxd, database: str, rows: dict[str, int]) -> None:
    found = dict.fromkeys(rows, 0)
    for kind, field in _ALWAYS_THERE.items():
        text = f'SELECT count("{field}") FROM /^{kind}/'  # noqa: S608 - constants
        for series in server.query(text, database):
            found[kind] += series["values"][0][1]
    if found != rows:
        raise BenchError(f"{database}: found {found}, expected {rows}")
