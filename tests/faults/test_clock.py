"""The host's wall clock is wrong, or jumps; and name servers that fail or hang.

libfaketime gives `marketfeed run` another wall clock than the exchange has; the monotonic clock stays true.
"""

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import proc_tools
import pytest
from proc_commands import (
    MARKETFEED,
    Collecting,
    Exchange,
    environment,
    exchange,
    get,
    run_command,
    unlike,
    write_config,
)
from proc_disk import namespace_command
from scoreboard import Row, Scoreboard

from marketfeed.collector.reasons import Kind
from tests.waiting import wait_until

SPEED = 60.0
HOURS_MS = 3 * 3_600_000
CANDLES_BETWEEN = 16
"""Published between two jumps: a few minutes of exchange time."""


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange"), speed=SPEED) as running:
        yield running


class WallClock:
    """The wall clock of processes with `environment`: `set` moves it at once, also of those that run."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "wall-clock"
        self.set("+0")

    def set(self, offset: str) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(offset + "\n")
        fresh.replace(self._file)

    def environment(self) -> dict[str, str]:
        return environment(
            LD_PRELOAD=str(proc_tools.faketime().path),
            DONT_FAKE_MONOTONIC="1",
            FAKETIME_TIMESTAMP_FILE=str(self._file),
            FAKETIME_NO_CACHE="1",
            # Without it the waits of threads (the GIL's) end at once, and burn CPU.
            FAKETIME_FORCE_MONOTONIC_FIX="0",
        )


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.mark.long(25)
def test_a_wall_clock_that_jumps_moves_nothing(
    tmp_path: Path, venue: Exchange, clock: WallClock, scoreboard: Scoreboard
) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url)
    command = run_command(config)
    with Collecting(command, tmp_path / "run.log", clock.environment()) as collector:
        wait_until(collector.is_delivering)
        # What was under way at the start may be late on a busy machine; it is no jump's doing.
        wait_until(lambda: collector.status()["missing_candles"] == 0)
        first = venue.published_number()
        seen: list[dict[str, Any]] = []

        def watch(until_number: int) -> bool:
            report = collector.status()
            seen.append(report)
            return venue.published_number() >= until_number

        for offset, ahead_ms in (("+3h", HOURS_MS), ("-3h", -HOURS_MS), ("+0", 0)):
            clock.set(offset)
            wait_until(partial(watch, venue.published_number() + CANDLES_BETWEEN))
            # The jump did reach the process.
            assert abs(wall_clock_ms(seen[-1]) - time.time() * 1_000 - ahead_ms) < 60_000
        # A jump that moved a deadline would leave candles of the future missing for hours.
        wait_until(lambda: collector.status()["missing_candles"] == 0)
        # What is under way when it is stopped is nobody's fault.
        last = venue.published_number() - 6
        metrics = get(collector.url + "/metrics").body.decode()
        assert collector.stop() == 0, collector.log
    assert [report["reasons"] for report in seen if not report["healthy"]] == []
    assert {c["opened"] for report in seen for c in report["connections"]} == {1}
    assert "marketfeed_resubscribed_total 0.0" in metrics
    assert seen[-1]["rejects"] == {}
    published = [item for item in venue.published(first) if item.number < last]
    assert len(published) > 2 * CANDLES_BETWEEN
    assert unlike(tmp_path / "journal.db", published) == []
    scoreboard.add(
        Row(fault="the wall clock jumps by +3 h, -6 h, +3 h", lost="nothing; nothing found overdue")
    )


def wall_clock_ms(report: dict[str, Any]) -> float:
    """What the collector's process takes for the time."""
    exchange_ms, ahead_ms = report["exchange_time_ms"], report["clock_offset_ms"]
    return float(exchange_ms - ahead_ms)


@pytest.mark.long(12)
@pytest.mark.parametrize("offset", ["+3h", "-3h"])
def test_retention_deletes_nothing_for_a_wrong_wall_clock(
    tmp_path: Path, venue: Exchange, clock: WallClock, offset: str
) -> None:
    short = {"candles": "1h", "mark_price": "1h", "funding_rate": "1h"}
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, journal={"retention": short})
    command = run_command(config)
    path = tmp_path / "journal.db"

    def rows(table: str, column: str) -> set[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as db:
            return set(db.execute(f"SELECT pair_id, {column} FROM {table}"))  # noqa: S608

    tables = {"candle": "timeframe_ms, open_time", "mark_price": "time", "funding_rate": "time"}
    with Collecting(command, tmp_path / "first.log") as collector:
        wait_until(lambda: sum(t["candles"] for t in collector.status()["timeframes"]) >= 6)
        assert collector.stop() == 0
    before = {table: rows(table, column) for table, column in tables.items()}
    assert all(before.values())
    clock.set(offset)
    with Collecting(command, tmp_path / "second.log", clock.environment()) as collector:
        # Retention runs at the start; by then it has.
        wait_until(lambda: sum(t["candles"] for t in collector.status()["timeframes"]) >= 6)
        wait_until(lambda: collector.status()["journal"]["bytes_used"] > 0)
        assert collector.stop() == 0
    for table, column in tables.items():
        assert before[table] <= rows(table, column)


@contextlib.contextmanager
def name_server(directory: Path, *, hangs: bool) -> Iterator[list[str]]:
    """What to put before a command so that its name server is one that refuses, or never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        # All of 127.0.0.0/8 is this host: an address that no test beside this one uses.
        address = str(IPv4Address("127.53.0.0") + os.getpid() % 65_536)
        if hangs:
            try:
                server.bind((address, 53))
            except PermissionError:
                pytest.skip("port 53 is root's")
        file = directory / "resolv.conf"
        # As long as a resolver can wait: who stops at once does not wait for it.
        file.write_text(f"nameserver {address}\noptions timeout:30 attempts:2\n")
        script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
        yield [*namespace_command(), "sh", "-c", script, "sh", str(file)]


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_no_name_server_at_the_start(
    tmp_path: Path, scoreboard: Scoreboard, *, hangs: bool
) -> None:
    config = write_config(tmp_path, "ws://exchange.invalid", "http://exchange.invalid")
    with (
        name_server(tmp_path, hangs=hangs) as prefix,
        Collecting(
            [*prefix, *MARKETFEED, "run", "--config", config], tmp_path / "run.log"
        ) as collector,
    ):
        health = collector.health()
        assert health.status == 503
        assert health.json["reasons"][0] == str(Kind.STARTING.reason())
        if not hangs:
            collector.line("exchange not ready error='http://exchange.invalid/")
            # It is notified, too, of what is waited for.
            assert "exchange.invalid" in str(collector.health().json["reasons"])
        assert collector.stop() == 0, collector.log
        assert "Traceback" not in collector.log
    scoreboard.add(
        Row(
            fault=f"a name server that {'hangs' if hangs else 'refuses'}, at the start",
            lost="nothing: it asks again, logs that, and stops at once",
        )
    )
