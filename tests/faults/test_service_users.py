"""The collector's files under the unit's group and modes: who is in the group reads, nobody else does."""

import os
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from proc_commands import environment, exchange, get, run_command, write_config

from marketfeed.journal.journal import KIND
from marketfeed.storage.backup import back_up
from reader import MarketReader, StoreUnavailableError
from tests.waiting import wait_until

GROUP = 64_001
MEMBER, STRANGER = 64_002, 64_003

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can become another user"
)


def as_user(uid: int, groups: list[int], function: Callable[[], None]) -> None:
    """Run a function in a child process of that user; its failure fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback"


def test_local_feeders_of_the_group_read_while_it_runs_and_after_a_stop(
    tmp_path: Path, shared_path: Path
) -> None:
    # What StateDirectory=, StateDirectoryMode=, Group= and UMask= of the unit make.
    state = shared_path / "marketfeed"
    state.mkdir()
    os.chown(state, 0, GROUP)
    state.chmod(0o750)
    (mine := shared_path / "mine").mkdir()
    os.chown(mine, MEMBER, MEMBER)
    path = state / "journal.db"

    def member_reads() -> None:
        with MarketReader.connect(f"sqlite:///{path}") as reader:
            # Two questions: the second finds what was committed since.
            first = reader.get_mark_price("BTC/USDT:USDT", max_age_s=None)
            deadline_s = time.monotonic() + 180
            while (
                running
                and reader.get_mark_price("BTC/USDT:USDT", max_age_s=None).time == first.time
            ):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            assert len(reader.get_ohlcv("BTC/USDT:USDT", "1m", max_age_s=None)) > 0

    def member_backs_up(name: str) -> Callable[[], None]:
        def backs_up() -> None:
            assert back_up(KIND, path, mine / name, lambda *_: None).bytes > 0

        return backs_up

    def stranger() -> None:
        with pytest.raises(StoreUnavailableError, match="collector's group"):
            MarketReader.connect(f"sqlite:///{path}")

    running = True
    with exchange(tmp_path, pairs=2) as venue, (tmp_path / "log").open("wb") as log:
        config = write_config(tmp_path, venue.ws_url, venue.rest_url, path)
        process = subprocess.Popen(
            run_command(config), stderr=log, env=environment(), group=GROUP, umask=0o027
        )
        try:
            wait_until(lambda: "status_url=" in (tmp_path / "log").read_text())
            url = (tmp_path / "log").read_text().rsplit("status_url=", 1)[1].split()[0]
            wait_until(lambda: get(url + "/health").status == 200)
            wait_until(lambda: get(url + "/status").json["timeframes"][0]["candles"] > 3)
            for file in state.iterdir():
                assert (file.stat().st_gid, file.stat().st_mode & 0o777) == (GROUP, 0o640)
            as_user(MEMBER, [GROUP], member_reads)
            as_user(MEMBER, [GROUP], member_backs_up("running.db"))
            as_user(STRANGER, [], stranger)
        finally:
            process.terminate()
            assert process.wait(180) == 0
    running = False
    assert {file.name for file in state.iterdir()} == {"journal.db", "journal.db.lock"}
    as_user(MEMBER, [GROUP], member_reads)
    as_user(MEMBER, [GROUP], member_backs_up("stopped.db"))
    as_user(STRANGER, [], stranger)
    assert {file.name for file in state.iterdir()} == {"journal.db", "journal.db.lock"}
