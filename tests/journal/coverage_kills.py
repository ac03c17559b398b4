"""Kills a process that has a random history with a journal, again and again, and looks at what it left.

Run as a program of its own (`python -m tests.journal.coverage_kills KILLS SEED DIRECTORY`), because it forks.
It prints a report as one JSON line. Migrations are among what is killed.
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

from tests.coverage_check import check_coverage
from tests.journal.test_coverage_file import History

KILLED_WITHIN_S: Final = 0.1
GIVE_UP_S: Final = 180.0


def _live(path: Path, seed: int, now: int, pipe_fd: int) -> None:
    """What the process that is killed does, until it is."""

    def say(name: str) -> None:
        os.write(pipe_fd, name.encode() + b"\n")

    history = History(path, seed, now, on_event=say)
    say("opened")
    # Whoever else changes rows is no matter here: what is left is to be trusted.
    history.run(1_000_000, without=("meddle", "fail"))


def _kill_one(path: Path, seed: int, now: int, after_s: float) -> str:
    """Fork one and kill it `after_s` after it has opened the file; returns what it was doing."""
    near, far = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(near)
            _live(path, seed, now, far)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(far)
    said = b""
    deadline_s = time.monotonic() + GIVE_UP_S
    while b"\n" not in said and time.monotonic() < deadline_s:
        if select.select([near], [], [], 1.0)[0]:
            part = os.read(near, 4_096)
            if not part:
                break
            said += part
    if b"\n" in said:
        time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    while part := os.read(near, 4_096):
        said += part
    os.close(near)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != -signal.SIGKILL:
        raise AssertionError(f"it ended with {code} before it was killed, seed {seed}")
    return said.decode().split("\n")[-2] if b"\n" in said else "starting"


def _main() -> None:
    kills, seed, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    rng = random.Random(seed)
    while_: Counter[str] = Counter()
    found = {"kills": 0, "series": 0, "candles": 0, "holes": 0, "wal_left": 0, "fault": ""}
    path = directory / "journal.db"
    for number in range(kills):
        after_s = rng.uniform(0.0, KILLED_WITHIN_S)
        while_[_kill_one(path, rng.randrange(10**9), 100 + 20 * number, after_s)] += 1
        found["kills"] += 1
        wal = Path(f"{path}-wal")
        found["wal_left"] += wal.exists() and wal.stat().st_size > 0
        checked = check_coverage(path)
        found["series"] += checked.series
        found["candles"] += checked.candles
        found["holes"] += checked.holes
        if checked.mistakes or not checked.trusted:
            found["fault"] = f"kill {number}, trusted {checked.trusted}: {checked.mistakes[:3]}"
            break
    sys.stdout.write(json.dumps({**found, "killed_while": while_}) + "\n")


if __name__ == "__main__":
    _main()
