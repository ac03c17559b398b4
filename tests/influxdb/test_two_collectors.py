"""Two collectors, each with its journal, and one bucket: either may die, and what they ship is whole."""

import contextlib
import json
import sqlite3
import urllib.request
from pathlib import Path
from typing import Final

import msgspec
import pytest
from influxd import Influxd

from marketfeed import schema
from marketfeed.collector.status_report import StatusReport
from marketfeed.simulator.published import Published
from tests.faults.soak_process import Process
from tests.waiting import wait_until

TIMEFRAMES: Final = ("1m", "3m")
PAIRS: Final = 6
SPEED: Final = 60
ALONE_MINUTES: Final = 2
"""Exchange minutes for which one of the two is dead."""


class Exchange:
    """The simulated exchange, as a process of its own."""

    def __init__(self, process: Process) -> None:
        self.urls = process.urls()

    def published(self) -> list[Published]:
        with get(self.urls["rest_url"] + "/simulator/published?after=0") as body:
            return msgspec.json.decode(body.read(), type=list[Published])

    def now_ms(self) -> int:
        with get(self.urls["rest_url"] + "/fapi/v1/time") as body:
            return int(json.load(body)["serverTime"])

    def newest_published_ms(self) -> int:
        return max((one.open_time_ms for one in self.published()), default=0)


class Host:
    """One of the two: its settings and its journal outlive its process."""

    def __init__(self, folder: Path, exchange: Exchange, influxd: Influxd, database: str) -> None:
        folder.mkdir()
        self.journal = folder / "journal.db"
        self.config = folder / "config.yaml"
        self.runs = 0
        settings = {
            "exchange": {
                "ws_url": exchange.urls["ws_url"],
                "rest_url": exchange.urls["rest_url"],
                "pairs": {"top": PAIRS},
                "timeframes": list(TIMEFRAMES),
                "mark_price_every": "1s",
            },
            "history": {"days": 0},
            "influxdb": {"url": influxd.url, "api": "v1", "bucket": database},
            "journal": {"path": str(self.journal)},
            "status": {"port": 0},
        }
        self.config.write_text(json.dumps(settings))

    def start(self) -> Process:
        self.runs += 1
        log = self.journal.with_name(f"{self.runs}.log")
        return Process(log, "run", f"--config={self.config}")


def get(url: str) -> urllib.request.addinfourl:  # type: ignore[name-defined]
    return urllib.request.urlopen(url, timeout=180)  # noqa: S310 - loopback


def until_well(process: Process) -> None:
    url = process.urls()["status_url"] + "/status"

    def well() -> bool:
        process.check()
        with get(url) as body:
            report = msgspec.json.decode(body.read(), type=StatusReport)
        return report.healthy and report.mark_price_age_s is not None and not report.missing_candles

    wait_until(well, "not well again")


def stored(influxd: Influxd, database: str, timeframe: str) -> list[tuple[str, int, list[float]]]:
    """Every candle in the bucket: pair, open time (ms) and its numbers."""
    fields = ", ".join(schema.CANDLE_FIELDS)
    text = f'SELECT {fields} FROM "ohlcv_{timeframe}" GROUP BY pair'  # noqa: S608 - constants
    return [
        (series["tags"]["pair"], at_ms, numbers)
        for series in influxd.query(text, database)
        for at_ms, *numbers in series["values"]
    ]


def newest_ms(influxd: Influxd, database: str) -> int:
    return max((at_ms for _, at_ms, _ in stored(influxd, database, "1m")), default=0)


def marks(path: Path) -> set[tuple[str, int, float, float]]:
    """The mark prices of a journal."""
    text = (
        "SELECT pair, time, mark_price, index_price FROM mark_price JOIN pair ON pair.id = pair_id"
    )
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return set(db.execute(text))


@pytest.mark.long(40)
def test_either_of_two_collectors_may_die(influxd: Influxd, database: str, tmp_path: Path) -> None:
    arguments = (f"--pairs={PAIRS}", f"--timeframes={','.join(TIMEFRAMES)}", f"--speed={SPEED}")
    with Process(tmp_path / "exchange.log", "simulate", *arguments, "--port=0") as simulator:
        exchange = Exchange(simulator)
        hosts = [Host(tmp_path / name, exchange, influxd, database) for name in ("one", "two")]
        first, second = hosts[0].start(), hosts[1].start()
        with first, second:
            until_well(first)
            until_well(second)
            since_ms = exchange.now_ms()

            first.kill()
            alone(exchange, influxd, database)
            first = hosts[0].start()
            with first:
                until_well(first)

                second.kill()
                alone(exchange, influxd, database)
                second = hosts[1].start()
                with second:
                    until_well(second)

                    # The exchange goes on: of one whose time stands still, collectors that go by the
                    # clock take for closed what is not.
                    until_ms = exchange.now_ms()
                    wait_until(lambda: newest_ms(influxd, database) >= until_ms, "the last candle")
                    until_well(first)
                    until_well(second)
                    # A clean stop ships what is left.
                    assert (first.stop(), second.stop()) == (0, 0)
                    stopped_ms = exchange.now_ms()
                    wait_until(
                        lambda: exchange.newest_published_ms() >= stopped_ms, "all that closed"
                    )
                    published = exchange.published()

    truth = {
        (one.pair, one.timeframe, one.open_time_ms): [
            getattr(one, name) for name in schema.CANDLE_FIELDS
        ]
        for one in published
        if one.open_time_ms >= since_ms
    }
    due = {
        (pair, timeframe, at_ms)
        for pair, timeframe, at_ms in truth
        if at_ms + schema.TIMEFRAMES_MS[timeframe] <= until_ms
    }
    assert len(due) > 2 * ALONE_MINUTES * PAIRS
    rows = [
        ((pair, timeframe, at_ms), numbers)
        for timeframe in TIMEFRAMES
        for pair, at_ms, numbers in stored(influxd, database, timeframe)
        if at_ms >= since_ms
    ]
    found = dict(rows)
    assert len(found) == len(rows), "doubled"
    assert due <= found.keys(), "missing"
    # What closed until the stop is there or not; what is there has the numbers with which it closed.
    assert found == {key: truth.get(key) for key in found}

    # Of mark prices, that nobody can ask for later, the bucket holds what either has seen, once.
    one, two = (marks(host.journal) for host in hosts)
    assert one - two
    assert two - one
    in_bucket = [
        (series["tags"]["pair"], at_ms, mark, index)
        for series in influxd.query(
            "SELECT mark_price, index_price FROM mark_price GROUP BY pair", database
        )
        for at_ms, mark, index in series["values"]
    ]
    assert len(in_bucket) == len({row[:2] for row in one | two})
    assert set(in_bucket) <= one | two


def alone(exchange: Exchange, influxd: Influxd, database: str) -> None:
    """Wait for some minutes of the exchange; what closes meanwhile is in the bucket."""
    since_ms = exchange.now_ms()
    until_ms = since_ms + ALONE_MINUTES * schema.MINUTE_MS
    wait_until(lambda: newest_ms(influxd, database) >= until_ms, "one collector alone")
