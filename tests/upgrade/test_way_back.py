"""From version 3 of a journal back to 2, on with the released version, and to 3 again, shipping all along.

WAY_BACK_S: for how long (wall s) the released version collects; `make proofs` takes 600.
"""

import contextlib
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from line_server import LineServer, is_row
from proc_commands import (
    Collecting,
    Exchange,
    environment,
    exchange,
    run_command,
    run_marketfeed,
    unlike,
    write_config,
)
from released import Released, own_environment

from marketfeed import schema
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND, Journal
from marketfeed.settings.load import load_settings
from marketfeed.simulator.catalogue import choose_pairs
from marketfeed.storage.ranges import Acknowledged
from marketfeed.storage.reading import reading
from reader import MarketReader
from tests.faults.scoreboard import Row, Scoreboard
from tests.shipped_ranges import ranges_of
from tests.waiting import wait_until

SPEED: Final = 60.0
COLLECTED_S: Final = float(os.environ.get("WAY_BACK_S", "12"))
PAIRS: Final = choose_pairs(5)
KEPT: Final = PAIRS[:4]
EVERYTHING: Final = 2**40


class Line:
    """A journal, its exchange, the InfluxDB that it is shipped to, and its collectors one after the other."""

    def __init__(self, directory: Path, sim: Exchange, released: Released) -> None:
        self.path = directory / "journal.db"
        self.server = LineServer()
        self.sim = sim
        self._directory = directory
        self._released = released
        self._number = 0

    def write_config(self, pairs: Sequence[str]) -> Path:
        """The settings of every collector and command; the last dropped some pairs."""
        return write_config(
            self._directory,
            self.sim.ws_url,
            self.sim.rest_url,
            exchange={"pairs": list(pairs)},
            influxdb={"url": self.server.url, "api": "v1", "bucket": "market_data"},
        )

    @contextlib.contextmanager
    def collecting(self, *, old: bool = False, cut: bool = True) -> Iterator[Collecting]:
        """Run a collector. `cut`: at the end it is killed with a batch under way, else it stops cleanly."""
        self._number += 1
        config = self._directory / "config.yaml"
        command = self._released.command("run", "--config", config) if old else run_command(config)
        log = self._directory / f"collector-{self._number}.log"
        env = own_environment() if old else environment()
        with Collecting(command, log, env) as collector:
            wait_until(collector.is_delivering)
            yield collector
            if cut:
                self.server.hold()
                collector.process.kill()
                collector.wait()
                self.server.answer()
            else:
                assert collector.stop() == 0, collector.log
        assert "Traceback" not in collector.log

    def upgrade(self, *arguments: str) -> None:
        """Run `marketfeed upgrade`; it has to end well."""
        config = self._directory / "config.yaml"
        done = run_marketfeed("upgrade", *arguments, "--config", config)
        assert done.returncode == 0, done.stdout + done.stderr

    def shipped(self) -> tuple[int, list[tuple[int, int]]]:
        """The journal's version, and the ranges that have been acknowledged, of every measurement alike."""
        settings = load_settings(self._directory / "config.yaml", {})
        with Journal.open(self.path) as journal:
            ranges = ranges_of(journal.shipped(target_of(settings.influxdb)))
            assert all(last < journal.next_seq for _, last in ranges)
            return journal.version, ranges

    def catalog(self) -> dict[str, dict[str, Any]]:
        """The catalog as it is stored, by pair and column."""
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.row_factory = sqlite3.Row
            found = db.execute("SELECT * FROM catalog JOIN pair ON pair.id = pair_id")
            return {row["pair"]: dict(row) for row in found}


@pytest.mark.long(65)
def test_a_journal_goes_back_to_the_released_version_and_returns(
    tmp_path: Path, released: Released, scoreboard: Scoreboard
) -> None:
    gone = PAIRS[-1]
    with exchange(tmp_path, len(PAIRS), SPEED) as sim:
        line = Line(tmp_path, sim, released)
        with line.server.serving():
            line.write_config(PAIRS)
            with line.collecting(cut=False):
                begun = sim.published_number()
                with MarketReader.connect(f"sqlite:///{line.path}") as reader:
                    # Without history the next run heals a series from its first stored candle on.
                    wait_until(
                        lambda: len(reader.newest("3m")) == len(reader.newest("1m")) == len(PAIRS)
                    )
                before_drop = sim.published_number()
                sim.wait_for_candles(len(PAIRS))
            assert line.shipped()[0] == 3
            line.write_config(KEPT)
            # It is away for minutes, longer than a candle may take to come: there are gaps, which are healed.
            sim.wait_for_candles(10 * len(PAIRS))
            with line.collecting():
                wait_until(lambda: gaps(line.path))
                sim.wait_for_candles(2 * len(PAIRS))
            entry = line.catalog()[gone]
            assert (entry["dropped"], entry["timeframes"]) == (1, "1m,3m")
            version, acknowledged = line.shipped()
            assert version == 3

            # Without the way back the released version changes nothing.
            before = line.path.read_bytes()
            refused = released.run("run", "--config", tmp_path / "config.yaml")
            assert refused.returncode == 1
            assert "newer marketfeed" in refused.stderr
            assert line.path.read_bytes() == before

            line.upgrade("--to", "2")
            assert line.shipped() == (2, acknowledged)
            entry = line.catalog()[gone]
            assert "dropped" not in entry
            assert entry["timeframes"] == ",1m,3m"
            with line.collecting(old=True):
                at_first = sim.published_number()
                started_s = time.monotonic()
                wait_until(
                    lambda: time.monotonic() - started_s >= COLLECTED_S, timeout_s=2 * COLLECTED_S
                )
                sim.wait_for_candles(len(PAIRS))
                by_old = sim.published_number() - at_first
            version, acknowledged = line.shipped()
            assert version == 2

            line.upgrade()
            assert line.shipped() == (3, acknowledged)
            assert {pair for pair, row in line.catalog().items() if row["dropped"]} == {gone}
            assert {row["timeframes"] for row in line.catalog().values()} == {"1m,3m"}
            with line.collecting(cut=False):
                wait_until(lambda: not open_gaps(line.path))
                sim.wait_for_candles(len(PAIRS))
                ended = sim.published_number()
                # All of them have been received and committed when the stop has ended.
                sim.wait_for_candles(len(PAIRS))
            version, acknowledged = line.shipped()
            with Journal.open(line.path) as journal:
                assert acknowledged == [(1, journal.next_seq - 1)]
            published = sim.published()
        wanted = [
            item
            for number, item in enumerate(published[begun:ended], begun)
            if item.pair in KEPT or number < before_drop
        ]
        assert by_old > 0
        assert unlike(line.path, wanted) == []
        assert rows_of(line.path) - set(line.server.lines) == set()
        # What came again was under way when its collector was killed.
        repeats = line.server.repeats()
        assert repeats - line.server.under_way == Counter()
        in_catalog = [text for text in line.server.lines if text.startswith(schema.FEED_CATALOG)]
        assert any(gone.partition("/")[0] in text and "dropped=true" in text for text in in_catalog)
    assert {state for _, state in gaps(line.path)} == {"healed"}
    scoreboard.add(
        Row(
            fault=f"a journal taken back, collected into by the released version for {COLLECTED_S:.0f} s, "
            "and upgraded again; killed in a batch on each way",
            lost=f"nothing of {len(wanted)} candles; {len(line.server.lines)} lines shipped, "
            f"{sum(repeats.values())} again, of {len(line.server.under_way)} that were under way",
        )
    )


def gaps(path: Path) -> list[tuple[str, str]]:
    """The gaps that the journal holds: kind and state."""
    with reading(KIND, path) as db:
        return db.execute("SELECT kind, state FROM gap WHERE kind LIKE 'candle%'").fetchall()


def open_gaps(path: Path) -> list[tuple[str, str]]:
    """Those of them that are to be healed yet."""
    return [gap for gap in gaps(path) if gap[1] in ("found", "healing")]


def rows_of(path: Path) -> set[str]:
    """The line of every numbered row in the journal."""
    outbox = JournalOutbox(path, socket.gethostname())
    try:
        nothing = Acknowledged.alike(KIND.measurements)
        return set(filter(is_row, outbox.newest(nothing, EVERYTHING).lines))
    finally:
        outbox.close()
