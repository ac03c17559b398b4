"""Runs the parts of a long campaign side by side: each in a process of its own, so many at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
_APART_S: Final = 3.0
"""Lanes begin one after another: processes that all start at once hold each other up."""
_TAIL: Final = 20


class Part(NamedTuple):
    """One part of a campaign: its name, its command, and where its log goes."""

    name: str
    command: Sequence[str]
    log: Path


class Ended(NamedTuple):
    """A part that has ended: `output` is what it printed, `words` the last lines of its log."""

    part: Part
    code: int
    output: bytes
    words: str


def run_parts(
    parts: Sequence[Part], lanes: int, limit_s: float, on_ended: Callable[[Ended], None]
) -> None:
    """Run all parts, each for `limit_s` wall seconds at most; `on_ended` is called here as each has ended."""
    running: set[subprocess.Popen[bytes]] = set()
    begin = threading.Lock()
    stopping = threading.Event()

    def run(part: Part) -> Ended:
        with begin:
            if stopping.wait(_APART_S if running else 0.0):
                return Ended(part, 1, b"", "not begun")
            with part.log.open("wb") as log:
                process = subprocess.Popen(
                    part.command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            running.add(process)
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # It ends what it has begun.
            process.terminate()
            output, _ = process.communicate()
        finally:
            running.discard(process)
        lines = part.log.read_text("utf-8", "replace").splitlines()
        return Ended(part, process.returncode, output, "\n".join(lines[-_TAIL:]))

    with ThreadPoolExecutor(lanes) as pool:
        waiting = [pool.submit(run, part) for part in parts]
        try:
            for done in as_completed(waiting):
                on_ended(done.result())
        except BaseException:
            stopping.set()
            for one in waiting:
                one.cancel()
            for process in tuple(running):
                process.terminate()
            raise


class Progress:
    """Says on standard error how far a campaign has come: one line for each part that has ended."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._ended = 0
        self._started_s = time.monotonic()

    def ended(self, text: str) -> None:
        """Another part has ended, with this to tell of it."""
        self._ended += 1
        passed_s = time.monotonic() - self._started_s
        left_s = passed_s / self._ended * (self._parts - self._ended)
        bar = ("#" * (20 * self._ended // self._parts)).ljust(20, ".")
        # What runs in real time proves nothing where nobody gets the processor.
        load = f"load {os.getloadavg()[0]:.0f} of {os.cpu_count()}"
        head = f"[{bar}] {self._ended} of {self._parts}, {left_s / 60:.0f} min left, {load}"
        sys.stderr.write(f"{head}: {text}\n")
        sys.stderr.flush()


def end_with_parent() -> None:
    """Let SIGTERM end this process as Ctrl-C does: whatever it has begun is ended then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def python(*arguments: object) -> list[str]:
    """`python …` as a command."""
    return [sys.executable, *map(str, arguments)]
