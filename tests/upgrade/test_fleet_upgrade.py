"""The order of an upgrade under a running fleet: readers, then the collector, then its journal.

Twelve bots with `missing=exchange` ask after every close of a minute for candles, settled funding rates and
mark prices. FLEET_SPEED sets the exchange's seconds per second; at 1, which takes ten minutes, a restart of
the collector between two rounds of the bots is noticed by none of them.

What a bot is refused while its collector restarts is the seam's tolerance: a candle that lacks is waited for
until 6 s after its close, then StaleDataError says so, old candles are taken from the bot, and it decides
nothing until new ones come. Never is one answered with what is stale, nor does it turn to the exchange.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from fleet import (
    LIMIT,
    SPEED,
    TIMEOUT_S,
    Bots,
    Clock,
    is_full,
    is_served,
    longest_without,
    mark_timeframe,
    scripted_exchange,
    stand_in,
    wait_for_quiet,
)
from proc_commands import (
    Collecting,
    environment,
    exchange,
    run_command,
    run_marketfeed,
    unlike,
    write_config,
)
from released import Released, own_environment

from marketfeed.journal.journal import KIND
from marketfeed.simulator.catalogue import choose_pairs
from marketfeed.storage.reading import require
from tests.faults.scoreboard import Row, Scoreboard
from tests.freqtrade.harness import fill
from tests.waiting import wait_until

BOTS: Final = 12
AFTER_CLOSE_MS: Final = 1_000 if SPEED < 2.0 else 30_000
"""As Freqtrade does; at speed, when a busy machine's collector may have the candle."""
PAIRS: Final = 3
NEW_JOURNAL: Final = """
import sys, pathlib
from marketfeed.journal import Journal
Journal.open(pathlib.Path(sys.argv[1])).close()
"""


def version(path: Path) -> int:
    return require(KIND, path).version


class Line:
    """One collector at a time, of one version or the other, on one journal."""

    def __init__(self, directory: Path, config: Path, released: Released) -> None:
        self._directory = directory
        self._config = config
        self._released = released
        self._number = 0
        self._left_s = 0.0
        self.away_s: list[float] = []
        """How long there was no collector (wall s), from its stop until the next one delivered."""

    @contextlib.contextmanager
    def collecting(self, *more: str, old: bool = False) -> Iterator[Collecting]:
        """Run a collector until the block ends."""
        self._number += 1
        log = self._directory / f"collector-{self._number}.log"
        command = run_command(self._config)
        if old:
            command = self._released.command("run", "--config", self._config)
        env = own_environment() if old else environment()
        with Collecting([*command, *more], log, env) as collector:
            wait_until(collector.is_delivering)
            if self._left_s:
                self.away_s.append(time.monotonic() - self._left_s)
            yield collector
            self._left_s = time.monotonic()
            assert collector.stop() == 0, collector.log
        assert "Traceback" not in collector.log


@pytest.mark.long(60)
def test_a_fleet_is_upgraded_in_order_without_a_request_to_the_exchange(
    tmp_path: Path, released: Released, scoreboard: Scoreboard
) -> None:
    path = tmp_path / "journal.db"
    pairs = choose_pairs(PAIRS)
    full = is_full(pairs)
    names = [str(number) for number in range(BOTS)]
    with (
        exchange(tmp_path, PAIRS, SPEED) as sim,
        scripted_exchange() as asked,
        contextlib.ExitStack() as stack,
    ):
        config = write_config(tmp_path, sim.ws_url, sim.rest_url, exchange={"pairs": list(pairs)})
        subprocess.run(
            [released.python, "-c", NEW_JOURNAL, path], check=True, env=own_environment()
        )
        fill(path, sim.rest_url, pairs, {"1m": LIMIT, "3m": LIMIT})
        clock = Clock(sim)
        mark = mark_timeframe(clock)
        given = {
            "url": f"sqlite:///{path}",
            "exchange": f"127.0.0.1:{asked.port}",
            "pairs": pairs,
            "limit": LIMIT,
            "after_ms": AFTER_CLOSE_MS,
            "origin_ms": clock.origin_ms,
            "origin_s": clock.origin_s,
            "speed": SPEED,
            "mark": mark,
        }
        shim = str(stand_in(tmp_path))
        old = stack.enter_context(
            Bots(
                released.python,
                own_environment(PYTHONPATH=shim),
                given | {"directory": str(tmp_path / "old")},
            )
        )
        new = stack.enter_context(
            Bots(
                sys.executable,
                environment(PYTHONPATH=shim),
                given | {"directory": str(tmp_path / "new")},
            )
        )
        line = Line(tmp_path, config, released)

        def served(bots: Bots, step: str, since_ms: int) -> None:
            """Every bot has had everything since then, and none has turned to the exchange."""
            for name in sorted(bots.running):
                bots.wait_for(name, full, since_ms)
            assert asked.requests == [], (step, asked.requests[:3])

        with line.collecting(old=True):
            assert version(path) == 2
            wait_until(lambda: is_served(path, clock, pairs, mark))
            for name in [*names, "left"]:
                old.start(name)
            served(old, "old readers, old collector", clock.now_ms())
            for name in names:
                old.stop(name)
                new.start(name)
                new.wait_for(name, full, 0)
            served(new, "new readers, old collector", clock.now_ms())
            wait_for_quiet(clock, mark)
        with line.collecting():
            assert version(path) == 2
            first = sim.published_number()
            served(new, "new collector on version 2", clock.now_ms())
            wait_for_quiet(clock, mark)
        assert run_marketfeed("upgrade", "--config", config).returncode == 0
        assert version(path) == 3
        with line.collecting():
            served(new, "upgraded", clock.now_ms())
            wait_for_quiet(clock, mark)
        assert run_marketfeed("upgrade", "--to", "2", "--config", config).returncode == 0
        assert version(path) == 2
        with line.collecting("--upgrade"):
            assert version(path) == 3
            served(new, "run --upgrade", clock.now_ms())
            # Who was left behind sees nothing, and does not turn to the exchange for that.
            left = old.wait_for("left", lambda report: bool(report.refused), clock.now_ms())
            assert not left.good
            assert all("newer marketfeed" in why for why in left.refused), left.refused
            assert asked.requests == []
            # The proof is not blind: what the store does not hold is asked for there.
            new.start("blind")
            assert new.wait_for("blind", lambda report: report.requests > 0, 0).requests >= 3
            assert asked.requests
            last = sim.published_number()
            # All of them have been received and committed when the stop has ended.
            wait_until(lambda: sim.published_number() >= last + PAIRS, timeout_s=TIMEOUT_S)
        reports = {name: new.reports(name) for name in names}
        for bots, name in [(old, name) for name in [*names, "left"]] + [
            (new, name) for name in names
        ]:
            assert [report.wrong for report in bots.reports(name) if report.wrong] == []
            assert all(report.requests == 0 for report in bots.reports(name))
        published = sim.published()
        true = {
            (item.pair, item.open_time_ms): [
                item.open,
                item.high,
                item.low,
                item.close,
                item.volume,
            ]
            for item in published
            if item.timeframe == "1m"
        }
        known = [
            (row[1:], true[pair, row[0]])
            for report in (report for name in names for report in reports[name])
            for pair, row in report.closed.items()
            if (pair, row[0]) in true
        ]
        assert known
        assert all(found == expected for found, expected in known)
        assert unlike(path, sim.published(first)[: last - first]) == []
    if SPEED < 2.0:
        assert [
            report.refused for name in names for report in reports[name] if report.refused
        ] == []
    longest_s = max(longest_without(reports[name], full) for name in names)
    refusals = sum(len(report.refused) for name in names for report in reports[name])
    scoreboard.add(
        Row(
            fault=f"an upgrade under {BOTS} bots: readers, collector, journal",
            lost=f"nothing: 0 requests to the exchange, {refusals} answers withheld at {SPEED:g} exchange "
            f"seconds a second; no collector for {max(line.away_s):.1f} s of wall time at most, "
            f"no full answer for {longest_s:.1f} s",
        )
    )
