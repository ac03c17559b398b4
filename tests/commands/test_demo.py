"""The demo is honest: what was healed is right, a busy machine slows it down, a real difference is told."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from marketfeed.commands.demo_pace import LEAST_SPEED, FellBehindError, Pace
from marketfeed.commands.processes import Patience
from tests.waiting import wait_until

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")},
    "COLUMNS": "200",
    "NO_COLOR": "1",
}


@contextmanager
def journal(directory: Path) -> Iterator[sqlite3.Connection]:
    path = directory / "journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=180.0)) as db:
        yield db


class Running:
    """A demo of a few pairs that keeps its files in `directory`."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.process = process
        self.directory = directory

    def simulator(self) -> str:
        """The simulator's address, as the collector's settings have it."""
        config = self.directory / "config.yaml"
        wait_until(lambda: self.ended or (config.is_file() and config.read_text().endswith("}")))
        return str(json.loads(config.read_text())["exchange"]["rest_url"])

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_stored(self, candles: int) -> None:
        wait_until(lambda: self.ended or self.stored() >= candles)

    def stored(self) -> int:
        try:
            with journal(self.directory) as db:
                return int(db.execute("SELECT count(*) FROM candle").fetchone()[0])
        except sqlite3.Error:
            return 0

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it has printed."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err


def demo(
    directory: Path, meanwhile: Callable[[Running], None], *options: str
) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "marketfeed", "demo", "--pairs=6", f"--keep={directory}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    running = Running(process, directory)
    try:
        meanwhile(running)
        return running.end()
    finally:
        process.kill()


def collector_of(pid: int) -> int:
    """The process of the collector that a demo has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [
        int(child)
        for child in children
        if b"\0run\0" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found


def start_fault(rest_url: str, **fault: Any) -> None:
    async def start() -> None:
        async with (
            aiohttp.ClientSession(rest_url, raise_for_status=True) as session,
            session.post("/simulator/faults", json=fault),
        ):
            pass

    asyncio.run(start())


def test_candles_that_rest_has_healed_are_right(tmp_path: Path) -> None:
    """What the simulator sent to nobody, and the collector fetched, was once called wrong."""

    def mute(running: Running) -> None:
        rest_url = running.simulator()
        running.wait_stored(12)
        start_fault(rest_url, fault="mute", closing_only=True, for_s=150.0)

    code, out, err = demo(tmp_path, mute, "--seconds=5", "--json")
    assert code == 0, out + err
    report = json.loads(out)
    assert report["missing"] == report["wrong"] == 0
    assert report["candles_stored"] == report["candles_expected"] >= 6 * 4
    with journal(tmp_path) as db:
        healed = db.execute("SELECT count(*) FROM gap WHERE healed AND kind LIKE 'candle%'")
        assert healed.fetchone()[0] > 0


@pytest.mark.parametrize("as_json", [True, False])
def test_a_candle_that_differs_is_named_and_exits_1(tmp_path: Path, as_json: bool) -> None:
    def spoil(running: Running) -> None:
        """Another hand is at the newest candle of BTC, again and again: one at least is compared."""
        running.wait_stored(12)
        while not running.ended:
            try:
                with journal(tmp_path) as db, db:
                    db.execute(
                        """UPDATE candle SET high = high + 1.0 WHERE timeframe_ms = 60000 AND
                           (pair_id, open_time) IN (
                               SELECT pair_id, max(open_time) FROM candle JOIN pair ON id = pair_id
                               WHERE pair = 'BTC/USDT:USDT' AND timeframe_ms = 60000
                           )"""
                    )
            except sqlite3.OperationalError:
                continue  # the collector writes just now
            if running.stored() > 60:
                return

    code, out, err = demo(tmp_path, spoil, "--seconds=6", *(["--json"] if as_json else []))
    assert code == 1, out + err
    if as_json:
        report = json.loads(out)
        assert report["wrong"] >= 1
        assert report["missing"] == 0
        (text, *_) = report["differences"]
    else:
        assert re.search(r"missing 0, wrong \d+", out)
        text = out
    assert re.search(r"BTC/USDT:USDT 1m \d+: high stored [\d.]+, exchange [\d.]+", text)


def test_a_candle_that_is_gone_is_missing_and_exits_1(tmp_path: Path) -> None:
    def delete(running: Running) -> None:
        """Again and again: the collector's own audit stores what it finds to be gone."""
        running.wait_stored(60)
        with journal(tmp_path) as db:
            (open_ms,) = db.execute(
                """SELECT DISTINCT open_time FROM candle WHERE timeframe_ms = 60000
                   ORDER BY open_time DESC LIMIT 1 OFFSET 1"""
            ).fetchone()
        while not running.ended:
            with contextlib.suppress(sqlite3.OperationalError), journal(tmp_path) as db, db:
                db.execute(
                    "DELETE FROM candle WHERE timeframe_ms = 60000 AND open_time = ?", (open_ms,)
                )
            time.sleep(0.02)

    code, out, err = demo(tmp_path, delete, "--seconds=8", "--json")
    assert code == 1, out + err
    report = json.loads(out)
    assert 1 <= report["missing"] <= 6
    assert report["wrong"] == 0
    assert all(text.endswith(": not stored") for text in report["differences"])


@pytest.mark.long(55)
def test_what_cannot_keep_up_is_slowed_down_and_says_so(tmp_path: Path) -> None:
    """The first collector gets a hundredth of its time, as if the machine were busy with something else."""

    def starve(running: Running) -> None:
        running.wait_stored(6)
        pid = collector_of(running.process.pid)
        with contextlib.suppress(ProcessLookupError):
            while not running.ended:
                for number, for_s in ((signal.SIGSTOP, 0.99), (signal.SIGCONT, 0.01)):
                    os.kill(pid, number)
                    time.sleep(for_s)

    code, out, err = demo(tmp_path, starve, "--seconds=15", "--speed=600", "--json")
    assert code == 0, out + err
    report = json.loads(out)
    assert report["slowed_from"] == 600
    assert 1 <= report["speed"] <= 150
    assert report["missing"] == report["wrong"] == 0
    assert report["candles_expected"] > 0
    assert re.match(
        r"This machine is busy: at speed 600 the (simulator|collector) fell [\d.]+ s behind; "
        r"slowed down to speed \d+\.$",
        report["notes"][0],
    )


# --- the pace --------------------------------------------------------------------------------------


def looks(pace: Pace, seconds: int, lag_ms: int = 0, mark_age_s: float | None = 3.0) -> None:
    """A look each second of `seconds`, at an exchange that is reached as fast as it runs."""
    for second in range(seconds):
        pace.look(float(second), int(second * pace.speed * 1000), lag_ms, mark_age_s)


def test_a_hiccup_slows_nothing_down() -> None:
    pace = Pace(60.0)
    for lag_s in (0.1, 5.0, 0.3, 4.0, 0.2):
        looks(pace, 2, int(lag_s * 60_000))
    assert pace.most_behind_s == 5.0


def test_who_stays_behind_is_slowed_down() -> None:
    with pytest.raises(FellBehindError, match=r"^at speed 60 the simulator fell 3\.0 s behind$"):
        looks(Pace(60.0), 10, 180_000)
    with pytest.raises(FellBehindError, match=r"^at speed 60 the collector fell 3\.0 s behind$"):
        looks(Pace(60.0), 10, 100, mark_age_s=6.0 + 180.0)


def test_nothing_is_slower_than_the_real_exchange() -> None:
    pace = Pace(LEAST_SPEED)
    looks(pace, 100, 60_000)
    assert pace.most_behind_s == 60.0
    assert pace.slower() == LEAST_SPEED


def test_a_few_steps_lead_to_the_least_speed() -> None:
    """A quarter each time, or half of what was reached: nobody waits for many attempts."""
    numbers = random.Random(1)
    for _ in range(200):
        speed, steps = numbers.uniform(1.0, 1000.0), 0
        while speed > LEAST_SPEED:
            pace = Pace(speed)
            reached = numbers.uniform(0.0, speed)
            for second in range(5):
                pace.look(float(second), int(second * reached * 1000), 0, None)
            assert LEAST_SPEED <= pace.slower() <= max(LEAST_SPEED, speed / 4 + 0.5, reached / 2)
            speed, steps = pace.slower(), steps + 1
        assert steps <= 6


def test_patience_without_processes_that_wait_is_wall_time() -> None:
    assert Patience(0.0).is_over
    assert not Patience(3_600.0).is_over
