"""The collector as a service: ready, fed for, hung and restarted, stopped. Real processes throughout.

An exchange that is down restarts nothing; a hung event loop or disk does.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import proc_tools
import pytest
from proc_commands import Exchange, exchange, get, run_command, write_config
from scoreboard import Row, Scoreboard
from service_manager import ABORT_S, TRACED_ABORT_S, Fifo, Manager

from marketfeed.journal.journal import Journal
from tests.waiting import wait_until

WATCHDOG_S = 5.0
STOP_WITHIN_S = 15.0
"""Half of what systemd gives it (TimeoutStopSec)."""


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange"), pairs=2) as running:
        yield running


def faults(venue: Exchange, method: str, fault: dict[str, object] | None = None) -> None:
    """Start a fault, or end all of them."""
    with closing(HTTPConnection(urlsplit(venue.rest_url).netloc, timeout=180.0)) as connection:
        connection.request(method, "/simulator/faults", json.dumps(fault))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


def service(
    directory: Path, venue: Exchange, stderrs: tuple[Path, ...] = (), abort_s: float = ABORT_S
) -> Manager:
    config = write_config(directory, venue.ws_url, venue.rest_url, exchange={"pairs": {"top": 2}})
    return Manager(run_command(config), directory, WATCHDOG_S, stderrs, abort_s=abort_s)


def url(log: Path) -> str:
    """The status address that the newest run has logged."""
    found = [line for line in log.read_text().splitlines() if "status_url=" in line]
    return found[-1].rsplit("status_url=", 1)[1]


@pytest.mark.long(15)
def test_an_exchange_outage_restarts_nothing(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    with service(tmp_path, venue) as manager:
        manager.ready()
        address = url(manager.log)
        wait_until(lambda: get(address + "/health").status == 200)
        wait_until(lambda: "2 pairs, well" in manager.reported("STATUS"))
        faults(venue, "POST", {"fault": "refuse_rest"})
        faults(venue, "POST", {"fault": "refuse"})
        faults(venue, "POST", {"fault": "drop", "connections": "all"})
        try:
            wait_until(lambda: get(address + "/health").status == 503)
            manager.fed_for(1.5 * WATCHDOG_S)
            assert get(address + "/health").status == 503
            assert "not well" in manager.reported("STATUS")[-1]
        finally:
            faults(venue, "DELETE")
        wait_until(lambda: get(address + "/health").status == 200)
        assert len(manager.reported("READY")) == 1
        started_s = time.monotonic()
        assert manager.stop() == 0, manager.log.read_text()
        assert time.monotonic() - started_s < STOP_WITHIN_S
        assert manager.reported("STOPPING") == ["1"]
        assert manager.ends == [("exit", 0)]
    with Journal.open(tmp_path / "journal.db") as journal:
        assert journal.load_document("heartbeat") is not None
    scoreboard.add(Row(fault="exchange down under systemd's watchdog", lost="nothing; no restart"))


def test_ready_without_an_exchange_and_stopped_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, "ws://127.0.0.1:1", "http://127.0.0.1:1")
    with Manager(run_command(config), tmp_path, WATCHDOG_S) as manager:
        manager.ready()
        wait_until(lambda: "does not tell what it trades" in manager.reported("STATUS")[-1])
        assert manager.stop() == 0
        assert manager.reported("STOPPING") == ["1"]


def test_not_ready_with_wrong_settings_or_a_journal_that_is_taken(
    tmp_path: Path, venue: Exchange
) -> None:
    (other := tmp_path / "other").mkdir()
    wrong = write_config(other, venue.ws_url, venue.rest_url, history={"days": "many"})
    with Manager(run_command(wrong), other, WATCHDOG_S, restart=False) as manager:
        wait_until(lambda: manager.ends)
        assert manager.ends == [("exit", 2)]
        assert manager.notifications == []
    path = tmp_path / "journal.db"
    taken = write_config(other, venue.ws_url, venue.rest_url, path)
    with (
        Journal.open(path),
        Manager(run_command(taken), other, WATCHDOG_S, restart=False) as manager,
    ):
        wait_until(lambda: manager.ends)
        assert manager.ends == [("exit", 1)]
        assert manager.notifications == []


def test_a_hung_event_loop_is_restarted(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    with Fifo(tmp_path / "stderr") as stderr, service(tmp_path, venue, (stderr.path,)) as manager:
        manager.ready()
        wait_until(lambda: "2 pairs, well" in manager.reported("STATUS"))
        # The next line of its log is written for ever.
        stderr.fill()
        faults(venue, "POST", {"fault": "drop", "connections": "open", "count": 100})
        faults(venue, "DELETE")
        manager.ready(runs=2)
        # faulthandler hangs at the same place: what SIGABRT does not end, SIGKILL does.
        assert manager.ends == [("watchdog", -signal.SIGKILL)]
        wait_until(lambda: "2 pairs, well" in manager.reported("STATUS"))
        assert manager.stop() == 0, manager.log.read_text()
    scoreboard.add(Row(fault="hung event loop", lost="what was not committed", whole_after_s=None))


@pytest.mark.long(18)
def test_a_hung_disk_is_restarted_and_the_log_tells_where_it_hung(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    tool = proc_tools.strace()
    with service(tmp_path, venue, abort_s=TRACED_ABORT_S) as manager:
        manager.ready()
        wait_until(lambda: "2 pairs, well" in manager.reported("STATUS"))
        address = url(manager.log)
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
                # The loop lives on meanwhile: it is the journal's thread that hangs.
                wait_until(lambda: get(address + "/status").json["journal"]["pending"] > 20)
                # The disk hangs until then: what goes on meanwhile is in no log.
                manager.aborted_in("marketfeed/journal/")
            finally:
                # A tracer that waits holds up the end of what it traces.
                strace.kill()
        manager.ready(runs=2)
        ((why, code),) = manager.ends
        assert why == "watchdog"
        assert code in (-signal.SIGABRT, -signal.SIGKILL)
        wait_until(lambda: "2 pairs, well" in manager.reported("STATUS"))
        assert manager.stop() == 0, manager.log.read_text()
    scoreboard.add(
        Row(fault="hung disk (fdatasync does not return)", lost="what was not committed")
    )
