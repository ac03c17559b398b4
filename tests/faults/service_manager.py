"""A service manager as systemd is one: a notify socket, a watchdog, SIGABRT and SIGKILL, restarts.

It takes messages of the main process alone, as `NotifyAccess=main` does.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from proc_commands import environment

from tests.waiting import wait_until

ABORT_S: Final = 2.0
"""Wall seconds between SIGABRT and SIGKILL (TimeoutAbortSec), unless a test asks for more."""
TRACED_ABORT_S: Final = 180.0
"""Wall seconds for it where a tracer looks on: each of the many writes of faulthandler stops twice for it."""
_CREDENTIALS: Final = struct.Struct("3i")
# systemd reports the main process's id; a shell that becomes it knows that.
_AS_MAIN: Final = ("sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh")


class Notification(NamedTuple):
    """One message: when it came (monotonic s), of which process, and what it reports."""

    at_s: float
    pid: int
    reported: Mapping[str, str]


class Manager:
    """Runs one service until it is left, restarting it when it ends or its watchdog is not fed.

    `stderrs` are where the first, second … run writes its standard error (the last for all further
    ones too).
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        directory: Path,
        watchdog_s: float,
        stderrs: Sequence[Path] = (),
        restart: bool = True,
        abort_s: float = ABORT_S,
    ) -> None:
        self.notifications: list[Notification] = []
        self.runs: list[int] = []
        """The process of each run."""
        self.ends: list[tuple[str, int]] = []
        """Why each run ended (`watchdog` or `exit`), and its exit code."""
        self.log = directory / "service.log"
        self._command = [*_AS_MAIN, *map(str, command)]
        self._stderrs = [*stderrs, self.log]
        self._watchdog_s = watchdog_s
        self._restart = restart
        self._abort_s = abort_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # The path of a socket may have 107 bytes: pytest's directories can be too deep.
        self._home = tempfile.TemporaryDirectory(prefix="marketfeed-")
        self._path = Path(self._home.name) / "notify"
        self._leaving = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._manage, name="service manager")

    def __enter__(self) -> Self:
        self._socket.bind(str(self._path))
        self._socket.settimeout(0.05)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leaving.set()
        self._thread.join()
        self._socket.close()
        self._home.cleanup()

    # --- what it was notified of -------------------------------------------------------------------

    def reported(self, name: str, run: int = -1) -> list[str]:
        """All values of `name` that a run has reported, oldest first."""
        return [
            notification.reported[name]
            for notification in self._of(run)
            if name in notification.reported
        ]

    def ready(self, runs: int = 1) -> None:
        """Wait until the run of that number is ready."""
        wait_until(lambda: len(self.runs) >= runs and self.reported("READY", runs - 1))

    def fed_for(self, seconds: float) -> None:
        """Let that pass, with nothing but feedings; raises AssertionError when the run has ended."""
        runs, first = len(self.runs), len(self.reported("WATCHDOG"))
        deadline_s = time.monotonic() + seconds
        wait_until(
            lambda: time.monotonic() >= deadline_s or len(self.ends) >= runs,
            timeout_s=seconds + 180,
        )
        assert self.ends == [], self.log.read_text()
        assert len(self.reported("WATCHDOG")) > first

    def aborted_in(self, file: str) -> None:
        """Wait until faulthandler has written that a thread is in `file`."""
        wait_until(
            lambda: file in self.log.read_text().partition("Fatal Python error: Aborted")[2],
            timeout_s=self._watchdog_s + self._abort_s,
        )

    def _of(self, run: int) -> list[Notification]:
        pid = self.runs[run] if self.runs else None
        return [
            notification for notification in list(self.notifications) if notification.pid == pid
        ]

    # --- the service ----------------------------------------------------------------------------------

    def stop(self) -> int:
        """Stop the service for good (SIGTERM); return its exit code."""
        self._restart = False
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._thread.join(180.0)
        assert self.ends
        return self.ends[-1][1]

    def _manage(self) -> None:
        while not self._leaving.is_set():
            path = self._stderrs.pop(0) if len(self._stderrs) > 1 else self._stderrs[0]
            with path.open("ab") as stderr:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=environment(
                        NOTIFY_SOCKET=str(self._path),
                        WATCHDOG_USEC=f"{self._watchdog_s * 1e6:.0f}",
                    ),
                )
            self.runs.append(self._process.pid)
            why = self._watch(self._process)
            self.ends.append((why, self._process.wait()))
            if not self._restart:
                return

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        deadline_s: float | None = None
        why = "exit"
        while process.poll() is None:
            notification = self._receive()
            if notification is not None and notification.pid == process.pid:
                self.notifications.append(notification)
                if "READY" in notification.reported or "WATCHDOG" in notification.reported:
                    deadline_s = notification.at_s + self._watchdog_s
                if "STOPPING" in notification.reported:
                    deadline_s = None
            if self._leaving.is_set():
                process.kill()
            elif notification is None and deadline_s is not None and time.monotonic() > deadline_s:
                # Whatever was sent in time has been read by now.
                why, deadline_s = "watchdog", None
                process.send_signal(signal.SIGABRT)
                try:
                    process.wait(self._abort_s)
                except subprocess.TimeoutExpired:
                    process.kill()
        while (notification := self._receive()) is not None:
            self.notifications.append(notification)
        return why

    def _receive(self) -> Notification | None:
        try:
            data, extra, _, _ = self._socket.recvmsg(65_536, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            return None
        ((_, _, credentials),) = extra
        pid, _, _ = _CREDENTIALS.unpack(credentials)
        lines = data.decode("utf-8").splitlines()
        return Notification(time.monotonic(), pid, dict(line.split("=", 1) for line in lines))


class Fifo:
    """A standard error that nobody reads: once it is full, who writes to it hangs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._reading)

    def fill(self) -> None:
        """Leave no room for a single byte."""
        writing = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            for size in (4096, 1):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(writing, b"\n" * size)
        finally:
            os.close(writing)
