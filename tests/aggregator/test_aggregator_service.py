"""The aggregator as a service: ready, fed for while its bots are down, hung and restarted, stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from running import FLEET, basic, config, rows

sys.path.append(str(Path(__file__).parents[1] / "faults"))

import proc_tools
from proc_commands import MARKETFEED, Process, get
from proc_disk import SmallDisk, on_small_disk
from service_manager import TRACED_ABORT_S, Manager

from tests.waiting import wait_until

WATCHDOG_S = 3.0
DEAD_BOTS = {"long": "http://127.0.0.1:9", "short": "http://127.0.0.2:9"}
DISK_BYTES = 8 << 20
BOT = Path(__file__).with_name("bot.py")


def aggregate(file: Path) -> list[str | Path]:
    return [*MARKETFEED, "aggregate", "--config", file]


def address(log: Path, mark: str = "aggregator listening url=") -> str:
    """The feeders' door, as the newest run has logged it."""
    found = [line for line in log.read_text().splitlines() if mark in line]
    return found[-1].split(mark)[1].split()[0]


def post(url: str, pair: str, feeder: str = "73") -> int:
    body = json.dumps({"pair": pair, "enter_tag": f"from {feeder} conf=0.9"}).encode()
    try:
        request = Request(f"{url}/api/v1/forceenter", body, basic(FLEET))  # noqa: S310 - loopback
        with urlopen(request, timeout=180) as answer:  # noqa: S310
            return int(answer.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


def test_ready_and_fed_for_while_both_bots_are_down(tmp_path: Path) -> None:
    file = config(tmp_path, DEAD_BOTS, window_s=0.2, min_agreements=1, expire_s=600)
    with Manager(aggregate(file), tmp_path, WATCHDOG_S) as manager:
        manager.ready()
        # Ready: feeders can post.
        assert post(address(manager.log), "BTC/USDT:USDT") == 200
        manager.fed_for(1.5 * WATCHDOG_S)
        wait_until(
            lambda: "10 feeders, 2 bots, not well: bot of " in manager.reported("STATUS")[-1]
        )
        assert manager.stop() == 0, manager.log.read_text()
        assert manager.reported("STOPPING") == ["1"]
        assert manager.ends == [("exit", 0)]
        assert len(manager.reported("READY")) == 1
    assert rows(tmp_path, "SELECT state FROM forward") == [("queued",)]
    assert rows(tmp_path, "SELECT beats > 5 FROM heartbeat") == [(1,)]


def test_a_hung_disk_is_not_fed_for_and_restarted(tmp_path: Path) -> None:
    tool = proc_tools.strace()
    file = config(tmp_path, DEAD_BOTS)
    with Manager(aggregate(file), tmp_path, WATCHDOG_S, abort_s=TRACED_ABORT_S) as manager:
        manager.ready()
        with subprocess.Popen(
            [
                tool.path, "-f", "-o", os.devnull, "-p", str(manager.runs[0]),
                "-e", "trace=fdatasync,fsync",
                "-e", "inject=fdatasync,fsync:delay_enter=600000000",
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | tool.environment(),
        ) as strace:  # fmt: skip
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            if "Operation not permitted" in attached:
                (pytest.fail if os.environ.get("CI") else pytest.skip)(
                    f"no tracing here: {attached}"
                )
            assert "attached" in attached
            try:
                # The disk hangs until then: what goes on meanwhile is in no log.
                manager.aborted_in("marketfeed/aggregator/ledger.py")
            finally:
                # A tracer that waits holds up the end of what it traces.
                strace.kill()
        manager.ready(runs=2)
        ((why, code),) = manager.ends
        assert why == "watchdog"
        assert code in (-signal.SIGABRT, -signal.SIGKILL)
        assert manager.stop() == 0, manager.log.read_text()


def test_not_ready_with_wrong_settings(tmp_path: Path) -> None:
    file = config(tmp_path, {})
    with Manager(aggregate(file), tmp_path, WATCHDOG_S, restart=False) as manager:
        wait_until(lambda: manager.ends)
        assert (manager.ends, manager.notifications) == ([("exit", 2)], [])


def test_a_full_disk_stores_nothing_forwards_nothing_and_heals(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    orders = tmp_path / "orders.jsonl"
    with Process([sys.executable, BOT, "--log", orders], tmp_path / "bot.log") as bot:
        bot_url = bot.line(r"http://\S+")[0]
        file = config(
            tmp_path,
            {"long": bot_url},
            window_s=0.2,
            min_agreements=1,
            expire_s=600,
            ledger={"path": str(disk / "ledger.db")},
        )
        command = [*on_small_disk(disk, DISK_BYTES), *aggregate(file)]
        with Manager(command, tmp_path, WATCHDOG_S) as manager:
            manager.ready()
            small = SmallDisk(manager.runs[0], disk)
            url = address(manager.log)
            health = address(manager.log, "status listening status_url=") + "/health"
            small.fill()
            taken: list[str] = []
            refused: list[str] = []
            # What SQLite has room for in its files yet is taken; then nothing is.
            while len(refused) < 3:
                pair = f"P{len(taken) + len(refused)}/USDT:USDT"
                found = post(url, pair)
                assert found in (200, 503)
                (taken if found == 200 else refused).append(pair)
                assert len(taken) < 20_000
            answer = get(health)
            assert answer.status == 503
            assert "signals cannot be stored: ledger " in str(answer.json)
            held = set(ordered(orders)) - noted(manager.runs[0], small.path, tmp_path)
            assert not held, "ordered, and the ledger did not hold it before"
            # No restart would make room: it is fed for.
            manager.fed_for(1.2 * WATCHDOG_S)
            assert get(health).status == 503
            small.make_room()
            # Also when nobody posts.
            wait_until(lambda: get(health).status == 200)
            assert post(url, "AFTER/USDT:USDT") == 200
            wanted = sorted({*taken, "AFTER/USDT:USDT"})
            wait_until(lambda: len(ordered(orders)) >= len(wanted))
            assert manager.stop() == 0, manager.log.read_text()
        # Whatever was answered 200 became one order, and what was refused none.
        assert ordered(orders) == wanted
        log = manager.log.read_text()
        assert log.count("votes cannot be stored") == 1
        assert log.count("ledger takes votes again") == 1
        assert log.count("ledger cannot be used") <= 1


def noted(pid: int, disk: Path, scratch: Path) -> set[str]:
    """The pairs whose orders may have been sent, as the ledger holds them while its process stands still."""
    (copy := scratch / "copy").mkdir()
    os.kill(pid, signal.SIGSTOP)
    try:
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copyfile(disk / name, copy / name)
    finally:
        os.kill(pid, signal.SIGCONT)
    found = rows(copy, "SELECT pair FROM forwarded WHERE state NOT IN ('queued', 'expired')")
    return {pair for (pair,) in found}


def ordered(path: Path) -> list[str]:
    """The pairs of all orders that the bot has received."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(json.loads(line)["pair"] for line in lines)
