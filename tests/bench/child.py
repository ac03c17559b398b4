"""The benchmark's processes: started, asked, and ended by it alone."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
END_TIMEOUT_S: Final = 15.0


class BenchError(Exception):
    """A measurement broke: a process failed, or what it stored is not what was sent."""


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # The operator's own settings must not reach a measurement.
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}
    return {**kept, **more}


def _cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of all threads of a process (Linux: /proc)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Child:
    """A `python -m tests.bench.<module>` that is given a job and answers; ended on exit."""

    def __init__(self, module: str, job: msgspec.Struct | None = None, **environment: str) -> None:
        self._name = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}"],
            cwd=ROOT,
            env=_environment(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        if job is not None and self._process.stdin is not None:
            self._process.stdin.write(msgspec.json.encode(job) + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        process = self._process
        try:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(END_TIMEOUT_S if exc_info[0] is None else 0.1)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()
            self._errors.close()

    def receive(self, kind: type[T], timeout_s: float) -> T:
        """Wait for the child's next message. Raises BenchError if it fails, or takes too long."""
        if self._process.stdout is None:
            raise BenchError(f"{self._name}: no pipe")
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            raise BenchError(f"{self._name} ended with {code}:\n{self._tail()}")
        return msgspec.json.decode(line, type=kind)

    def dismiss(self) -> None:
        """Tell it that it is needed no more (its stdin ends); it may answer yet."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        return _cpu_s(self._process.pid)

    def _tail(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-4_000:]


class Service:
    """A `python -m marketfeed …` as users start it; asked to stop with SIGTERM on exit."""

    def __init__(self, *arguments: str) -> None:
        self._name = arguments[0]
        self.urls: dict[str, str] = {}
        """Addresses that it has logged, such as `rest_url`, or `url`."""
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "marketfeed", *arguments],
            cwd=ROOT,
            env=_environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._thread.join()
        if code != 0 and exc_info[0] is None:
            raise BenchError(f"{self._name} ended with {code}:\n{self._tail()}")

    def wait_listening(self, timeout_s: float) -> None:
        """Wait until it has logged its addresses."""
        if not self._listening.wait(timeout_s):
            raise BenchError(f"{self._name} did not start:\n{self._tail()}")

    def check(self) -> None:
        """Raise BenchError if it has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self._name} ended early:\n{self._tail()}")

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        return _cpu_s(self._process.pid)

    def rss_bytes(self) -> int:
        """Its resident memory (VmRSS)."""
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        for line in text.splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BenchError(f"{self._name}: no VmRSS")

    def _tail(self) -> str:
        return "\n".join(self._lines[-30:])

    def _read(self) -> None:
        if self._process.stderr is None:
            return
        with self._process.stderr as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                self._lines = [*self._lines[-199:], line]
                if " listening " in line:
                    self.urls |= dict(re.findall(r"\b(\w*url)=(\S+)", line))
                    self._listening.set()
