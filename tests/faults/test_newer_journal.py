"""The real commands on a journal of a newer version, as after a way back: collect, check, audit, backup."""

import json
from pathlib import Path

import pytest
from proc_commands import (
    Collecting,
    exchange,
    run_command,
    run_marketfeed,
    unlike,
    write_config,
)
from scoreboard import Row, Scoreboard

from reader import MarketReader
from tests.newer_version import VERSION, added, upgrade
from tests.waiting import wait_until

PAIRS = 6


@pytest.mark.long(20)
def test_a_collector_goes_on_with_a_newer_journal_and_commands_take_it(
    tmp_path: Path, scoreboard: Scoreboard
) -> None:
    path = tmp_path / "journal.db"
    with exchange(tmp_path) as venue:
        config = write_config(tmp_path, venue.ws_url, venue.rest_url)
        with Collecting(run_command(config), tmp_path / "first.log") as collector:
            wait_until(collector.is_delivering)
            first = venue.published_number()
            with MarketReader.connect(f"sqlite:///{path}") as reader:
                # Without history the next run heals a series from its first stored candle on.
                wait_until(lambda: len(reader.newest("3m")) == len(reader.newest("1m")) == PAIRS)
            assert collector.stop() == 0, collector.log
        with MarketReader.connect(f"sqlite:///{path}") as reader:
            before = reader.newest("1m")
            upgrade(path)
            assert reader.newest("1m") == before
            old = added(path)
            with Collecting(run_command(config), tmp_path / "second.log") as collector:
                wait_until(collector.is_delivering)
                venue.wait_for_candles(24)
                assert reader.newest("1m").keys() == before.keys()
                assert all(newest > before[pair] for pair, newest in reader.newest("1m").items())
                checked = run_marketfeed("check", "--config", config)
                audited = run_marketfeed("audit", "--json", "--config", config)
                copied = run_marketfeed("backup", "--config", config, tmp_path / "copy.db")
                last = venue.published_number()
                # All of them have been received and committed when the stop has ended.
                venue.wait_for_candles(6)
                assert collector.stop() == 0, collector.log
            assert "Traceback" not in collector.log
        assert "schema version 4 (newer than this one's, 3)" in checked.stdout
        report = json.loads(audited.stdout)
        assert audited.returncode == 0, audited.stdout + audited.stderr
        assert report["errors"] == []
        assert copied.returncode == 0, copied.stderr
        assert "schema version 4, checked" in copied.stdout
        added(tmp_path / "copy.db")
        assert unlike(path, venue.published(first)[: last - first]) == []
    new = added(path)
    # What the newer version wrote into closed candles and pairs is still there; new ones have none of it.
    assert {name: new[name][0] for name in ("candle", "pair", "catalog")} == {
        name: old[name][0] for name in ("candle", "pair", "catalog")
    }
    assert new["candle"][1] > 0
    assert not list(tmp_path.glob("*.corrupt-*"))
    scoreboard.add(
        Row(fault="a journal of a newer version that lets this one in", lost="nothing: written on")
    )


def test_commands_refuse_a_journal_that_lets_none_in(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with exchange(tmp_path) as venue:
        config = write_config(tmp_path, venue.ws_url, venue.rest_url)
        with Collecting(run_command(config), tmp_path / "run.log") as collector:
            wait_until(collector.is_delivering)
            assert collector.stop() == 0, collector.log
        before = upgrade(path, (VERSION, 5, 5)).read_bytes()
        for command, word in {
            "run": "writing",
            "check": "writing",
            "audit": "reading",
            "backup": "reading",
        }.items():
            more = [tmp_path / "copy.db"] if command == "backup" else []
            done = run_marketfeed(command, "--config", config, *more)
            assert done.returncode == 1
            output = " ".join((done.stdout + done.stderr).replace("│", " ").split())
            assert f"schema version 4: {word} it takes version 5, this one is version 3" in output
            assert "Traceback" not in output
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.corrupt-*"))
