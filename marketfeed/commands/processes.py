"""The processes of a demo: simulator and collector, as a user would start them."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from marketfeed.commands.demo_report import (
    DemoError,
    DemoOptions,
)

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
"""Wall seconds as `Patience` counts them."""
PATIENCE_AT_MOST_S: Final = 900.0
"""So long at most, however busy the machine is: somebody waits."""
_LOOK_EVERY_S: Final = 0.25


def influx_environment(options: DemoOptions) -> dict[str, str]:
    """The operator's own variables about InfluxDB (api, org, token …), with the URL of the options."""
    if options.influx_url is None:
        return {}
    given = {k: v for k, v in os.environ.items() if k.upper().startswith("MARKETFEED_INFLUXDB__")}
    return given | {"MARKETFEED_INFLUXDB__URL": options.influx_url}


class Patience:
    """Wall seconds since it was made, but for those in which one of `processes` waited for a CPU.

    On a busy machine a process that gets no CPU is not one that hangs, and its data is not lost.
    """

    def __init__(self, timeout_s: float, *processes: "Process") -> None:
        self._timeout_s = timeout_s
        self._started_s = time.monotonic()
        self._processes = {process: process.waited_s() for process in processes}

    @property
    def is_over(self) -> bool:
        """Whether they have had their time."""
        wall_s = time.monotonic() - self._started_s
        waited_s = max(
            (one.waited_s() - before for one, before in self._processes.items()), default=0.0
        )
        return wall_s - waited_s >= self._timeout_s or wall_s >= PATIENCE_AT_MOST_S


class Process:
    """A marketfeed process, the lines it has logged, and the addresses it has reported."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.urls: dict[str, str] = {}
        self._process = process
        self._tail: list[str] = []
        self._addresses_known = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    def waited_s(self) -> float:
        """For how many seconds it has stood ready and had no CPU: its event loop, since its start."""
        try:
            with open(f"/proc/{self._process.pid}/schedstat", encoding="ascii") as file:  # noqa: PTH123 - as in counters
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            # It has ended, or the kernel does not count that.
            return 0.0

    async def started(self) -> None:
        """Wait until the process has reported its addresses. Raises DemoError."""
        patience = Patience(START_TIMEOUT_S, self)
        waiting = asyncio.create_task(self._addresses_known.wait())
        try:
            while not (waiting.done() or self._reading.done() or patience.is_over):
                await asyncio.wait(
                    (waiting, self._reading),
                    timeout=_LOOK_EVERY_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if not waiting.done():
                raise DemoError(f"the {self.name} did not start:\n{self.tail()}")
        finally:
            waiting.cancel()

    def check(self) -> None:
        """Raise DemoError if the process has ended."""
        if self._process.returncode is not None:
            raise DemoError(
                f"the {self.name} ended early (exit {self._process.returncode}):\n{self.tail()}"
            )

    def tail(self) -> str:
        """The last lines that the process has logged."""
        return "\n".join(self._tail[-20:])

    async def stop(self) -> None:
        """Ask it to stop (SIGTERM) and wait. Raises DemoError if it does not, or not cleanly."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        patience = Patience(STOP_TIMEOUT_S, self)
        ending = asyncio.create_task(self._process.wait())
        while not ending.done() and not patience.is_over:
            await asyncio.wait((ending,), timeout=_LOOK_EVERY_S)
        if not ending.done():
            self._process.kill()
            await ending
            raise DemoError(f"the {self.name} did not stop:\n{self.tail()}")
        await self._reading
        if code := ending.result():
            raise DemoError(f"the {self.name} ended with exit {code}:\n{self.tail()}")

    async def _read(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        async for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail = [*self._tail[-99:], line]
            if " listening " in line:
                self.urls |= dict(re.findall(r"(\w+_url)=(\S+)", line))
                self._addresses_known.set()


@contextlib.asynccontextmanager
async def _process(
    name: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "marketfeed",
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    process = Process(name, child)
    try:
        await process.started()
        yield process
    finally:
        if child.returncode is None:
            with contextlib.suppress(DemoError):
                await process.stop()


def _clean_environment() -> dict[str, str]:
    # The operator's own settings must not reach the demonstration.
    return {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}


def simulator_process(options: DemoOptions) -> contextlib.AbstractAsyncContextManager[Process]:
    """A simulator that serves what the options ask for. Entering raises DemoError."""
    arguments = [
        "simulate",
        f"--pairs={options.pairs}",
        f"--speed={options.speed}",
        f"--timeframes={','.join(options.timeframes)}",
        "--port=0",
    ]
    return _process("simulator", arguments, _clean_environment())


def collector_process(
    options: DemoOptions, urls: Mapping[str, str], directory: Path, journal_path: Path
) -> contextlib.AbstractAsyncContextManager[Process]:
    """A collector of all pairs of a simulator at `urls`. Entering raises DemoError."""
    settings: dict[str, Any] = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": options.pairs},
            "timeframes": list(options.timeframes),
        },
        "journal": {"path": str(journal_path)},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    config = directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    environment = _clean_environment() | influx_environment(options)
    return _process("collector", ["run", f"--config={config}"], environment)
