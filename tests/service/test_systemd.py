"""What systemd is notified of, over a real notify socket: proofs pass, fail, are refused and hang."""

import asyncio
import logging
import os
import socket
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from marketfeed.errors import JournalWriteError
from marketfeed.journal.writer import JournalWriter
from marketfeed.service.systemd import STATUS_CHARS, SystemdNotifier, extending_start
from tests.waiting import until

TIMEOUT_S = 180.0


class Listener:
    """The receiving end of a notify socket."""

    def __init__(self, path: Path) -> None:
        self.received: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def read(self) -> list[str]:
        """Every line that has come so far."""
        while True:
            try:
                self.received += self._socket.recv(65_536).decode("utf-8").splitlines()
            except BlockingIOError:
                return self.received

    async def until(self, line: str, times: int = 1) -> None:
        await until(lambda: self.read().count(line) >= times, line)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "notify"
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "120000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        listener = Listener(path)
        yield listener
        listener.close()


async def well() -> str:
    return ""


def notifier(
    prove: Callable[[], Awaitable[str]] = well,
    describe: Callable[[], str] = lambda: "2 pairs, well",
    stop: asyncio.Event | None = None,
) -> SystemdNotifier:
    return SystemdNotifier(prove, describe, stop or asyncio.Event())


def test_ready_fed_and_stopping(systemd: Listener) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        async with notifier(stop=stop):
            await systemd.until("WATCHDOG=1", 4)
            stop.set()
            await systemd.until("STOPPING=1")
        assert systemd.read().count("READY=1") == 1
        assert systemd.received[0] == "READY=1"
        assert systemd.received[2] == "STATUS=2 pairs, well"
        assert systemd.received[-1] == "STATUS=stopping"

    asyncio.run(run())


def test_what_has_not_turned_is_not_fed_for(
    systemd: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = ""
    proofs = 0

    async def prove() -> str:
        nonlocal proofs
        proofs += 1
        return stuck

    async def run() -> None:
        nonlocal stuck
        async with notifier(prove):
            await systemd.until("READY=1")
            stuck = "supervisor"
            seen = proofs
            async with asyncio.timeout(TIMEOUT_S):
                while proofs < seen + 2:
                    await asyncio.sleep(0.01)
            fed = systemd.read().count("WATCHDOG=1")
            while proofs < seen + 5:
                await asyncio.sleep(0.01)
            assert systemd.read().count("WATCHDOG=1") == fed
            stuck = ""
            await systemd.until("WATCHDOG=1", fed + 1)

    asyncio.run(run())
    assert "something has not turned what='supervisor'" in caplog.text


def test_a_hang_is_not_fed_for_and_a_stop_is_notified_all_the_same(systemd: Listener) -> None:
    async def prove() -> str:
        await asyncio.Event().wait()
        return ""

    async def run() -> None:
        stop = asyncio.Event()
        async with notifier(prove, stop=stop):
            await asyncio.sleep(0.1)
            assert systemd.read() == []
            stop.set()
            await systemd.until("STOPPING=1")
        assert "READY=1" not in systemd.read()

    asyncio.run(run())


def test_a_proof_that_fails_feeds_no_more_and_says_so(
    systemd: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async def prove() -> str:
        raise RuntimeError("a mistake of ours")

    async def run() -> None:
        async with notifier(prove), asyncio.timeout(TIMEOUT_S):
            while "watchdog not fed any more" not in caplog.text:
                await asyncio.sleep(0.01)
        assert systemd.read() == []

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(run())
    assert "a mistake of ours" in caplog.text


def test_a_journal_that_refuses_is_not_ready_and_later_is_fed_for(
    systemd: Listener, tmp_path: Path
) -> None:
    """A file that another connection has locked, as a full disk would be."""
    refused = 0

    async def run() -> None:
        nonlocal refused
        path = tmp_path / "journal.db"
        async with JournalWriter(path) as writer:
            # SQLite would wait for 5 s each time.
            await writer.call(lambda journal: journal.db.execute("PRAGMA busy_timeout = 50"))

            async def prove() -> str:
                nonlocal refused
                try:
                    await writer.save_document("heartbeat", b"", 0)
                except JournalWriteError:
                    refused += 1
                    raise
                return ""

            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with notifier(prove):
                    await systemd.until("EXTEND_TIMEOUT_USEC=60000000")
                    assert "database is locked" in systemd.received[-1]
                    assert "READY=1" not in systemd.received
                    other.execute("COMMIT")
                    await systemd.until("READY=1")
                    other.execute("BEGIN IMMEDIATE")
                    seen = refused
                    async with asyncio.timeout(TIMEOUT_S):
                        while refused == seen:
                            await asyncio.sleep(0.01)
                    fed = systemd.read().count("WATCHDOG=1")
                    await systemd.until("WATCHDOG=1", fed + 1)
                    other.execute("COMMIT")

    asyncio.run(run())


def test_the_status_is_one_short_line_of_ascii(systemd: Listener) -> None:
    async def run() -> None:
        async with notifier(
            describe=lambda: "币安人生/USDT:USDT is silent\nREADY=1\n" + "x" * 5_000
        ):
            await systemd.until("READY=1")

    asyncio.run(run())
    status = systemd.received[2]
    assert status.startswith(r"STATUS=\u5e01\u5b89\u4eba\u751f/USDT:USDT is silent READY=1 xxx")
    assert len(status) < 2 * STATUS_CHARS


def test_a_manager_that_does_not_read_holds_nothing_up(systemd: Listener) -> None:
    proofs = 0

    async def prove() -> str:
        nonlocal proofs
        proofs += 1
        await asyncio.sleep(0)
        return ""

    async def run() -> None:
        service = notifier(prove)
        service._watchdog_s = 1e-4
        async with service, asyncio.timeout(TIMEOUT_S):
            while proofs < 2_000:
                await asyncio.sleep(0.01)

    asyncio.run(run())


@pytest.mark.parametrize(
    "variables",
    [{"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/notify"}],
    ids=["not under systemd", "no socket there"],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_systemd_nothing_is_proven(
    systemd: Listener, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async def prove() -> str:
        raise AssertionError("not asked for")

    async def run() -> None:
        async with notifier(prove):
            await asyncio.sleep(0.02)

    asyncio.run(run())
    assert systemd.read() == []


@pytest.mark.parametrize("pid", ["1", str(os.getpid())], ids=["another", "this"])
def test_a_watchdog_of_another_process(
    systemd: Listener, monkeypatch: pytest.MonkeyPatch, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert (notifier()._watchdog_s is None) == (pid == "1")


def test_a_start_that_recovers_a_large_file_asks_for_time(
    systemd: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketfeed.service.systemd.EXTEND_S", 0.03)

    async def run() -> None:
        async with extending_start(60.0):
            await systemd.until("EXTEND_TIMEOUT_USEC=30000", times=3)
        asked = len(systemd.read())
        # For one of the usual size nothing is asked, nor once it is open.
        async with extending_start(0.0):
            await asyncio.sleep(0.0)
        assert len(systemd.read()) == asked

    asyncio.run(run())
