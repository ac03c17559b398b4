"""When a commit has returned, the kernel was asked to put it on the disk, and has answered that it is.

Seen in the system calls themselves. It proves nothing about what a disk does with that when power fails.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import proc_tools
import pytest
from scoreboard import Row, Scoreboard

COMMITS = 20
CHILD = Path(__file__).with_name("durability_commits.py")
TIMEOUT_S = 180.0


class Call(NamedTuple):
    """One system call: its name, and the file or the text it was about."""

    name: str
    what: str


def calls(trace: str) -> list[Call]:
    """The calls in the order in which they returned; those that failed raise AssertionError."""
    begun: dict[str, Call] = {}
    found = []
    for line in trace.splitlines():
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)", line)
        if match is None:
            continue
        process, name, rest = match.groups()
        if "<..." in line:
            call = begun.pop(process)
        else:
            file = re.match(r'\d+<([^>]*)>(?:, "(committed \d+))?', rest)
            assert file is not None, line
            call = Call(name, file[2] or file[1])
        if line.endswith("<unfinished ...>"):
            begun[process] = call
            continue
        assert re.search(r"= \d+$", line), line
        found.append(call)
    return found


def test_every_commit_syncs_the_wal_before_it_returns(
    tmp_path: Path, scoreboard: Scoreboard
) -> None:
    tool, trace, path = proc_tools.strace(), tmp_path / "trace", tmp_path / "journal.db"
    done = subprocess.run(
        [
            tool.path, "-f", "-y", "-s", "16", "-o", trace,
            "-e", "trace=write,pwrite64,fsync,fdatasync",
            sys.executable, CHILD, path, str(COMMITS),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=os.environ | tool.environment(),
    )  # fmt: skip
    if "Operation not permitted" in done.stderr and "ptrace" in done.stderr.lower():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no tracing here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    wal = f"{path}-wal"
    seen: list[list[Call]] = [[]]
    for call in calls(trace.read_text("utf-8")):
        seen[-1].append(call)
        if call.what.startswith("committed"):
            seen.append([])
    commits = seen[1 : COMMITS + 1]
    assert [part[-1].what for part in commits] == [f"committed {n + 1}" for n in range(COMMITS)]
    for part in commits:
        of_wal = [call.name for call in part if call.what == wal]
        assert "pwrite64" in of_wal, part
        # Nothing is written to the WAL after its last sync: all of the commit is covered by it.
        assert of_wal[-1] in ("fdatasync", "fsync"), part
    scoreboard.add(
        Row(fault=f"{COMMITS} commits under strace", lost="nothing unsynced when a commit returns")
    )
