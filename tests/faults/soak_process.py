"""A `python -m …` as users start it, seen from outside."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

_START_TIMEOUT_S: Final = 180.0
_STOP_TIMEOUT_S: Final = 180.0
_ADDRESS: Final = re.compile(r"(\w+_url)=(\S+)")


class SoakError(Exception):
    """A process did not start, ended by itself, or did not stop."""


def environment() -> dict[str, str]:
    """What a process gets: the operator's own settings must not reach it."""
    return {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}


class Process:
    """One process; its log goes to `log`. Asked to stop with SIGTERM on exit."""

    def __init__(self, log: Path, *arguments: str, module: str = "marketfeed") -> None:
        self.log = log
        self._name = arguments[0]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def urls(self) -> dict[str, str]:
        """Wait until it has logged its addresses, and return them."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            self.check()
            for line in self.lines():
                if " listening " in line:
                    return dict(_ADDRESS.findall(line))
            time.sleep(0.02)
        raise SoakError(f"{self._name} did not start")

    def kill(self) -> None:
        """End it at once, as a crash of the host would (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise SoakError if it has ended."""
        code = self._process.poll()
        if code is not None:
            tail = "\n".join(self.lines()[-20:])
            raise SoakError(f"{self._name} ended with {code}:\n{tail}")

    def stop(self) -> int:
        """Ask it to stop, wait, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise SoakError(f"{self._name} did not stop") from None

    def lines(self) -> list[str]:
        """What it has logged."""
        return self.log.read_text("utf-8", "replace").splitlines()

    def rss_bytes(self) -> int:
        """Its resident memory (Linux: /proc)."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def open_files(self) -> int:
        """How many file descriptors it has open, sockets included."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))
