"""Kills a collector again and again, at random moments, and looks each time at what it has left.

Run as a program of its own (`python kill_runner.py KILLS SEED DIRECTORY`), because it forks: imports are
paid for once, and this process never has a second thread. It prints a report as one JSON line.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import select
import signal
import sys
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import uvloop
from kill_child import (
    LENGTH,
    Begun,
    Committed,
    Message,
    Opened,
    Saving,
    Stopped,
    collect_and_report,
)
from kill_model import Known, LostError

from marketfeed.journal.journal import Journal
from marketfeed.records import differing_fields
from marketfeed.settings.model import Settings
from marketfeed.simulator.published import Published
from marketfeed.simulator.server import Simulator, SimulatorOptions

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT", "XRP/USDT:USDT")
TIMEFRAMES: Final = ("1m", "3m")
SPEED: Final = 600.0
"""Exchange seconds per second: a minute closes every 0.1 s, so that hardly a moment is without a commit."""
GIVE_UP_S: Final = 20.0
PR_SET_PDEATHSIG: Final = 1


class Plan(msgspec.Struct, frozen=True):
    """When to kill: `after_s` after the `commits`-th commit has `begun`, was `reported`, or after the fork.

    With `stop` a SIGTERM is sent at that moment, and the kill comes `stop_s` later.
    """

    moment: str
    commits: int
    after_s: float
    stop: bool = False
    stop_s: float = 0.0


def make_plan(random_: random.Random) -> Plan:
    """Draw one: anywhere while starting, in the middle of a commit, between two, or while stopping."""
    kind = random_.random()
    commits = int(random_.expovariate(1 / 3))
    if kind < 0.2:
        return Plan("fork", 0, random_.uniform(0.0, 0.04))
    if kind < 0.6:
        return Plan("begun", commits, random_.uniform(0.0, 0.0015))
    if kind < 0.8:
        return Plan("reported", commits, random_.uniform(0.0, 0.05))
    return Plan("reported", commits, 0.0, stop=True, stop_s=random_.uniform(0.0, 0.015))


class Report(msgspec.Struct):
    """What came of it; `fault` is empty when nothing was lost."""

    kills: int = 0
    seconds: float = 0.0
    commits: int = 0
    rows_checked: int = 0
    rows_numbered: int = 0
    series_checked: int = 0
    holes_checked: int = 0
    killed_while: Counter[str] = msgspec.field(default_factory=Counter)
    wal_left: int = 0
    candles: int = 0
    wrong_candles: int = 0
    fault: str = ""


class Victim:
    """A forked collector: what it has reported so far, and how far it has come."""

    def __init__(self, settings: Settings, known: Known) -> None:
        self._known = known
        self._buffer = bytearray()
        self._ended = False
        self.begun = self.reported = 0
        self.stage = "starting"
        self.pipe, far_end = os.pipe()
        self.started_s = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            in_child(lambda: collect_and_report(settings, far_end))
        os.close(far_end)

    def listen(self, until_s: float, enough: Callable[[], bool]) -> None:
        """Take in what is reported until `until_s` (monotonic), `enough`, or the end."""
        while not self._ended and not enough():
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                return
            if select.select([self.pipe], [], [], left_s)[0]:
                self._take(os.read(self.pipe, 1 << 16))

    def kill(self) -> str:
        """Kill it; return what it was doing. Raises LostError if it had ended by itself, and not well."""
        os.kill(self.pid, signal.SIGKILL)
        while not self._ended:
            self._take(os.read(self.pipe, 1 << 16))
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            raise LostError(f"the collector ended with {code} while {self.stage}")
        return self.stage

    def _take(self, data: bytes) -> None:
        self._ended = not data
        buffer = self._buffer
        buffer += data
        while len(buffer) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(buffer)
            end = LENGTH.size + size
            if len(buffer) < end:
                return
            self._note(msgspec.msgpack.decode(buffer[LENGTH.size : end], type=Message))
            del buffer[:end]

    def _note(self, message: Message) -> None:
        if isinstance(message, Opened):
            self.stage = "opened"
        elif isinstance(message, Begun | Saving):
            self.begun += 1
            self._enter("committing")
        elif isinstance(message, Stopped):
            self.stage = "stopped"
        else:
            self.reported += isinstance(message, Committed)
            self._enter("collecting")
        self._known.note(message)

    def _enter(self, stage: str) -> None:
        self.stage = f"stopping, {stage}" if self.stage.startswith("stopping") else stage


def carry_out(plan: Plan, settings: Settings, known: Known) -> str:
    """Start a collector and kill it as planned; return what it was doing."""
    victim = Victim(settings, known)
    give_up_s = victim.started_s + GIVE_UP_S
    if plan.moment == "begun":
        victim.listen(give_up_s, lambda: victim.begun > plan.commits)
    elif plan.moment == "reported":
        victim.listen(give_up_s, lambda: victim.reported > plan.commits)
    victim.listen(time.monotonic() + plan.after_s, lambda: False)
    if plan.stop:
        os.kill(victim.pid, signal.SIGTERM)
        victim.stage = "stopping"
        victim.listen(time.monotonic() + plan.stop_s, lambda: False)
    return victim.kill()


def in_child(function: Callable[[], None]) -> NoReturn:
    """Run `function` and end this (forked) process, at the latest when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def simulator(speed: float) -> Iterator[int]:
    """A simulated exchange in a process of its own; yields its port."""
    near, far = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(near)
        in_child(lambda: uvloop.run(_serve(speed, far)))
    os.close(far)
    with open(near, encoding="ascii") as file:  # noqa: PTH123 - a descriptor
        port = int(file.readline())
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def _serve(speed: float, far: int) -> None:
    options = SimulatorOptions(pairs=PAIRS, timeframes=TIMEFRAMES, speed=speed)
    async with Simulator(options) as running:
        os.write(far, b"%d\n" % running.port)
        os.close(far)
        await asyncio.Event().wait()


def settings_for(port: int, path: Path) -> Settings:
    """Short retention, so that it deletes at each start: what it deleted must not be numbered again."""
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": f"ws://127.0.0.1:{port}",
                "rest_url": f"http://127.0.0.1:{port}",
                "pairs": list(PAIRS),
                "timeframes": list(TIMEFRAMES),
            },
            "journal": {
                "path": str(path),
                "retention": {"candles": "1h", "mark_price": "1h", "funding_rate": "1h"},
            },
            "status": {"port": 0},
            "history": {"days": 0},
        }
    )


def run(kills: int, seed: int, directory: Path) -> Report:
    """Kill a collector `kills` times; ends early, with the fault in the report, when something is lost."""
    report, known, random_ = Report(), Known(), random.Random(seed)
    path, scratch = directory / "journal" / "journal.db", directory / "scratch"
    path.parent.mkdir()
    scratch.mkdir()
    started_s = time.monotonic()
    with simulator(SPEED) as port:
        settings = settings_for(port, path)
        try:
            for _ in range(kills):
                plan = make_plan(random_)
                report.killed_while[carry_out(plan, settings, known)] += 1
                report.kills += 1
                wal = Path(f"{path}-wal")
                report.wal_left += wal.exists() and wal.stat().st_size > 0
                known.look(path, scratch)
            report.candles, report.wrong_candles = compare_with_published(port, path)
        except LostError as error:
            report.fault = f"kill {report.kills}, {plan}: {error}"
    report.seconds = time.monotonic() - started_s
    report.commits = known.commits
    report.rows_checked = known.rows_checked
    report.rows_numbered = known.rows_numbered
    report.series_checked = known.series_checked
    report.holes_checked = known.holes_checked
    return report


def compare_with_published(port: int, path: Path) -> tuple[int, int]:
    """How many candles are stored in the end, and how many differ from what the exchange published."""
    url = f"http://127.0.0.1:{port}/simulator/published"
    with urllib.request.urlopen(url, timeout=GIVE_UP_S) as answer:
        published = msgspec.json.decode(answer.read(), type=list[Published])
    truth = {(item.pair, item.timeframe, item.open_time_ms): item for item in published}
    stored = wrong = 0
    with Journal.open(path) as journal:
        if journal.set_aside is not None:
            raise LostError("the file cannot be read")
        for pair in PAIRS:
            for timeframe in TIMEFRAMES:
                for candle in journal.candles(pair, timeframe, 0, 2**62):
                    item = truth.get((pair, timeframe, candle.open_time_ms))
                    stored += 1
                    wrong += item is None or bool(differing_fields(item, candle))
    return stored, wrong


def main() -> None:
    """See the module's docstring."""
    kills, seed, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    # What collectors log while they are killed is of interest only when something is lost.
    logging.basicConfig(filename=directory / "log", level=logging.INFO)
    report = run(kills, seed, directory)
    sys.stdout.write(json.dumps(msgspec.to_builtins(report)) + "\n")


if __name__ == "__main__":
    main()
