"""A bucket that was emptied, made anew or restored is filled again on demand: once, whatever happens."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from filled import MINUTE, ROWS, T0, fill
from front import Front
from influxd import Influxd, quoted
from shipped import Target, compared, marketfeed, shipping, v1_target, v2_target

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.commands.refused_lines import lines_gone, read_refused
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.acknowledged import REFUSED_LINES_KEPT, Demand, demand_again
from marketfeed.storage.reading import reading
from tests.shipped_ranges import of_all, ranges_of
from tests.waiting import until


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def setup(target: Target, path: Path) -> Callable[..., str]:
    """Run `marketfeed setup`, which has to end well; returns what it prints."""
    commanded = target.configure(
        path.with_name("config.yaml"),
        journal={"path": str(path)},
        aggregator={"ledger": {"path": str(path.with_name("ledger.db"))}},
    )

    def run(*arguments: str) -> str:
        done = marketfeed(commanded, "setup", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def drop(target: Target) -> None:
    target.influxd.query(f"DROP DATABASE {quoted(target.database)}")
    if target.front is not None:
        del target.front.buckets[target.settings["bucket"]]


def all_shipped(writer: JournalWriter, shipper: Shipper) -> bool:
    return writer.next_seq > 1 and shipper.shipped_below() == writer.next_seq


async def equal(path: Path, target: Target) -> None:
    rows = await compared(path, target.settings)
    assert (rows.missing, rows.extra) == (0, 0), rows.examples


def noted(path: Path) -> list[str]:
    with reading(KIND, path) as db:
        return [
            name
            for (name,) in db.execute(
                "SELECT DISTINCT target FROM shipped UNION SELECT target FROM shipping WHERE again ORDER BY 1"
            )
        ]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_bucket_that_is_dropped_and_set_up_again(
    path: Path, target: Target, setup: Callable[..., str], running: bool
) -> None:
    async def main() -> None:
        async with shipping(path, target.settings) as (writer, shipper):
            await writer.call(lambda journal: journal.write(fill()))
            await until(lambda: all_shipped(writer, shipper))
            drop(target)
            if running:
                await writer.call(lambda journal: journal.write(fill(10)))
                await until(lambda: shipper.report().state == "parked")
                output = await asyncio.to_thread(setup)
                assert f"process {os.getpid()} begins with the newest" in output
                # The catalog, the gap and the settled rate are those of before.
                await until(lambda: shipper.lines >= ROWS + 2 * 90 + 3)
                await until(lambda: all_shipped(writer, shipper))
                await asyncio.sleep(0.2)
                # What waited when the bucket came may have been on its way already.
                assert shipper.lines <= ROWS + 3 * 90 + 2 * 3
        if not running:
            output = setup()
            assert "its next writer begins with the newest" in output
            async with shipping(path, target.settings) as (writer, shipper):
                await writer.call(lambda journal: journal.write(fill(10)))
                await until(lambda: all_shipped(writer, shipper) and shipper.lines == 2 * 90 + 3)
        assert "created" in output
        await equal(path, target)
        # Neither the next start nor the next setup ships anything again.
        assert "shipped again" not in setup()
        async with shipping(path, target.settings) as (writer, shipper):
            await until(lambda: all_shipped(writer, shipper))
            await asyncio.sleep(0.2)
            assert shipper.lines == 0
        assert noted(path) == [target_of(InfluxSettings.model_validate(target.settings))]

    uvloop.run(main())


def test_a_bucket_that_was_restored_is_filled_on_demand(
    path: Path, target: Target, setup: Callable[..., str]
) -> None:
    """While the collector runs, and demanded twice before it has looked: shipped again once."""

    async def main() -> None:
        async with shipping(path, target.settings) as (writer, shipper):
            await writer.call(lambda journal: journal.write(fill()))
            await until(lambda: all_shipped(writer, shipper))
            target.influxd.query(
                "DELETE FROM mark_price WHERE time >= $since",
                target.database,
                since=(T0 + 4 * MINUTE) * 1_000_000,
            )
            target.influxd.query("DROP MEASUREMENT feed_catalog", target.database)
            given = target_of(InfluxSettings.model_validate(target.settings))

            def demand_twice() -> None:
                for _ in range(2):
                    demand_again(KIND, path, given)

            # In the shipper's own turn, so that it sees both at once.
            await writer.call(lambda _: demand_twice())
            await until(lambda: shipper.lines >= 2 * ROWS)
            await until(lambda: all_shipped(writer, shipper))
            await asyncio.sleep(0.2)
            assert shipper.lines == 2 * ROWS
            await equal(path, target)
            assert "is shipped again" in await asyncio.to_thread(setup, "--ship-again")
            await until(lambda: shipper.lines == 3 * ROWS)
        await equal(path, target)

    uvloop.run(main())


def test_without_a_journal_there_is_nothing_to_ship_again(
    path: Path, setup: Callable[..., str]
) -> None:
    assert "there is none yet" in setup("--ship-again")
    assert not path.exists()


KILLED_AT_COMMIT = """
import os, signal, sys
from pathlib import Path
from marketfeed.journal.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
journal.db.set_trace_callback(
    lambda text: os.kill(os.getpid(), signal.SIGKILL) if text == "COMMIT" else None
)
journal.forget_if_demanded("x")
"""


def test_a_demand_survives_a_kill_and_is_met_once(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.note_shipped("x", of_all([(1, 70)]))
        journal.note_shipped("y", of_all([(1, 7)]))
        assert not journal.forget_if_demanded("x")
    assert demand_again(KIND, path, "x") == Demand(True, "")
    child = subprocess.run([sys.executable, "-c", KILLED_AT_COMMIT, path], check=False, timeout=180)
    assert child.returncode == -signal.SIGKILL
    with Journal.open(path) as journal:
        assert ranges_of(journal.shipped("x")) == [(1, 70)]
        assert journal.forget_if_demanded("x")
        assert ranges_of(journal.shipped("x")) == []
        assert not journal.forget_if_demanded("x")
        assert ranges_of(journal.shipped("y")) == [(1, 7)]
        demand = demand_again(KIND, path, "x")
        assert demand == Demand(False, str(os.getpid()))
        assert not journal.forget_if_demanded("x"), "nothing has been shipped since"
    assert noted(path) == ["y"]


def test_the_ledger_is_shipped_again_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    assert demand_again(LEDGER, path, "x") is None
    with Ledger.open(path) as ledger:
        ledger.note_shipped("x", of_all([(1, 70)], LEDGER))
        assert demand_again(LEDGER, path, "x") == Demand(True, str(os.getpid()))
        assert ledger.forget_if_demanded("x")
        assert ranges_of(ledger.shipped("x"), LEDGER) == []


def test_refused_lines_that_are_too_many_are_reported(path: Path) -> None:
    lines = [(f"mark_price,pair=A mark_price=1.0 {n}", "status 422") for n in range(6_000)]
    with Journal.open(path) as journal:
        assert journal.put_aside("x", lines, T0) == 0
        assert journal.put_aside("x", lines, T0) == 12_000 - REFUSED_LINES_KEPT
        assert journal.put_aside("x", lines[:3], T0) == 3
        assert len(read_refused(path)) == REFUSED_LINES_KEPT
        assert lines_gone(path) == 2_003
        journal.note_shipped("x", of_all([(1, 70)]))
        demand_again(KIND, path, "x")
        assert journal.forget_if_demanded("x")
        assert lines_gone(path) == 0
