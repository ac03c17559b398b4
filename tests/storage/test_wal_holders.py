"""Who keeps a `-wal` from being folded back: readers that hold, come and go, or are stopped, by name."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from marketfeed.collector.wal_watch import WHO, WalWatch
from marketfeed.commands.check_wal import WalCheck
from marketfeed.commands.finding import Finding
from marketfeed.journal.journal import Journal
from marketfeed.storage import wal
from tests.waiting import wait_until

HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM document").fetchone()
print("holds", flush=True)
sys.stdin.read()
"""
COME_AND_GO = """
import sqlite3, sys, threading
over = threading.Event()
def poll():
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    while not over.wait(0.02):
        db.execute("SELECT count(*) FROM document").fetchone()
threads = [threading.Thread(target=poll) for _ in range(25)]
for thread in threads: thread.start()
print("poll", flush=True)
sys.stdin.read()
over.set()
"""
APART_S = 0.3


@contextlib.contextmanager
def child(code: str, path: Path) -> Iterator[int]:
    """A process that runs `code` on the journal until it is let go."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


class Commits:
    """A journal that is committed to all the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._count = 0

    def _run(self) -> None:
        with Journal.open(self.path) as journal:
            while not self._over.is_set():
                journal.save_document("live", os.urandom(40_000), self._count)
                self._count += 1

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_commits()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def wait_commits(self) -> None:
        before = self._count
        wait_until(lambda: self._count > before + 3)


@pytest.fixture
def commits(tmp_path: Path) -> Iterator[Commits]:
    with Commits(tmp_path / "journal.db") as commits:
        yield commits


def findings(commits: Commits) -> list[Finding]:
    check = WalCheck(commits.path, APART_S)
    commits.wait_commits()
    return asyncio.run(check.findings())


def test_nobody_is_named_where_nobody_holds(commits: Commits) -> None:
    with child(COME_AND_GO, commits.path), child(COME_AND_GO, commits.path):
        (finding,) = findings(commits)
    assert finding.verdict == "good"
    assert "nobody holds" in finding.text


def test_one_that_holds_is_named_beside_50_that_come_and_go(commits: Commits) -> None:
    with (
        child(COME_AND_GO, commits.path) as first,
        child(COME_AND_GO, commits.path) as second,
        child(HOLD, commits.path) as holder,
    ):
        (finding,) = findings(commits)
    assert finding.verdict == "warning"
    assert f"process {holder} (" in finding.text
    assert str(first) not in finding.text
    assert str(second) not in finding.text


def test_one_that_is_stopped_is_named_so(commits: Commits) -> None:
    with child(HOLD, commits.path) as holder:
        os.kill(holder, signal.SIGSTOP)
        wait_until(lambda: "stopped" in wal.process(holder))
        (finding,) = findings(commits)
        assert f"process {holder} (" in finding.text
        assert "stopped" in finding.text
        # Its arguments are not shown: a token may stand there.
        assert "sqlite3" not in finding.text


def test_of_a_stopped_journal_nothing_is_said_of_readers(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    assert asyncio.run(WalCheck(path, APART_S).findings()) == []
    Journal.open(path).close()
    (finding,) = asyncio.run(WalCheck(path, APART_S).findings())
    assert finding.verdict == "good"


def test_a_look_ends_no_lock_of_this_process(commits: Commits) -> None:
    """SQLite's locks are POSIX locks: closing any descriptor of the file would end them."""
    with contextlib.closing(sqlite3.connect(commits.path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM document").fetchone()
        for _ in range(2):
            found = wal.readers(commits.path, marks=True)
            assert found is not None
            assert os.getpid() in {one.pid for one in found}


def test_the_watch_names_who_holds_while_it_is_above_its_bound(commits: Commits) -> None:
    watch = WalWatch(commits.path, bound_bytes=1_000_000)
    with child(HOLD, commits.path) as holder:
        wait_until(lambda: (watch.look(), watch.is_above)[1])
        # Seen once it may be one that comes and goes.
        assert watch.why() == WHO
        watch.look()
        assert f"process {holder} (" in watch.why()
    with contextlib.closing(sqlite3.connect(commits.path)) as db:
        wait_until(lambda: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    watch.look()
    assert not watch.holders


def test_where_locks_cannot_be_read_the_command_is_named(
    commits: Commits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a unit with ProcSubset=pid."""
    monkeypatch.setattr(wal.readers, "__defaults__", (tmp_path / "none",))
    watch = WalWatch(commits.path, bound_bytes=1)
    watch.look()
    watch.look()
    assert watch.is_above
    assert watch.why() == WHO
    assert "marketfeed check" in WHO
    (finding,) = findings(commits)
    assert "as root" in finding.text


def proc(tmp_path: Path, status: str) -> Path:
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242" / "status").write_text(status)
    return tmp_path


def test_a_process_of_a_container_is_called_so(tmp_path: Path) -> None:
    status = "Name:\tpython3\nState:\tS (sleeping)\nUid:\t4000000\t0\t0\t0\nNSpid:\t4242\t7\n"
    text = wal.process(4242, proc(tmp_path, status))
    assert text == ("a process of a container (4242 on this host: python3, user 4000000)")
    # The kernel gives no number of one that this namespace does not see.
    assert wal.process(0, tmp_path) == "a process of a container"


def test_locks_of_other_files_and_other_bytes_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    (tmp_path / "journal.db-shm").touch()
    shm = (tmp_path / "journal.db-shm").stat()
    device = f"{os.major(shm.st_dev):02x}:{os.minor(shm.st_dev):02x}"
    locks = tmp_path / "locks"
    lines = [
        f"1: POSIX  ADVISORY  READ 11 {device}:{shm.st_ino} 124 124",
        f"1: -> POSIX  ADVISORY  WRITE 12 {device}:{shm.st_ino} 124 124",
        f"2: POSIX  ADVISORY  READ 13 {device}:{shm.st_ino} 128 128",
        f"3: POSIX  ADVISORY  WRITE 14 {device}:{shm.st_ino} 120 120",
        f"4: POSIX  ADVISORY  READ 15 {device}:{shm.st_ino + 1} 124 124",
        f"5: POSIX  ADVISORY  READ 16 7f:7f:{shm.st_ino} 124 124",
        f"6: FLOCK  ADVISORY  WRITE 17 {device}:{shm.st_ino} 0 EOF",
        f"7: POSIX  ADVISORY  READ 18 {device}:{shm.st_ino} 123 127",
        "nonsense",
    ]
    locks.write_text("\n".join(lines))
    found = wal.readers(path, locks)
    assert found is not None
    assert sorted((one.pid, one.byte) for one in found) == [
        (11, 124), (18, 123), (18, 124), (18, 125), (18, 126), (18, 127),
    ]  # fmt: skip
    # A file system whose device stat names otherwise.
    locks.write_text(f"1: POSIX  ADVISORY  READ 16 7f:7f:{shm.st_ino} 124 124")
    assert {one.pid for one in wal.readers(path, locks) or ()} == {16}
