"""Kills a process that ships, again and again, at random moments; at last lets one ship what is left.

Run as a program of its own, because it forks: imports are paid for once, and this process never has a
second thread. Each kill ships to one of the targets on the standard input, in turn, from the one journal; now
and then it is demanded before that everything be shipped again.
It prints a report as one JSON line.
"""

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
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
from kill_ship_child import ANSWERED, NOTED, NOTING, OPENED, SENDING, ship_and_report

from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.acknowledged import demand_again

GIVE_UP_S: Final = 20.0
LAST_S: Final = 180.0
AGAIN: Final = 0.15
"""How often it is demanded, before a process starts, that everything be shipped again."""
PR_SET_PDEATHSIG: Final = 1
_STAGE: Final = {
    0: "starting",
    OPENED: "between requests",
    SENDING: "sending",
    ANSWERED: "between requests",
    NOTING: "noting",
    NOTED: "between requests",
}


class Report(msgspec.Struct):
    """What came of it; `fault` is empty when every process ended as it should."""

    kills: int = 0
    seconds: float = 0.0
    requests: int = 0
    demands: int = 0
    killed_while: Counter[str] = msgspec.field(default_factory=Counter)
    fault: str = ""


class Victim:
    """A forked process that ships; `last` is what it reported last, `reported` how often it reported each."""

    def __init__(self, path: Path, influx: InfluxSettings, seconds: float | None = None) -> None:
        self.last = 0
        self.reported: Counter[int] = Counter()
        self.ended = False
        self._pipe, far_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            # It ends with its parent.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            code = 1
            try:
                os.close(self._pipe)
                ship_and_report(path, influx, far_end, seconds)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(far_end)

    def listen(self, seconds: float, what: int | None = None, times: int = 1) -> None:
        """Take in what is reported for so long, or until it has reported `what` so often, or its end."""
        until_s = time.monotonic() + seconds
        while not self.ended and (what is None or self.reported[what] < times):
            left_s = until_s - time.monotonic()
            if left_s <= 0.0 or not select.select([self._pipe], [], [], left_s)[0]:
                return
            self._take()

    def end(self, *, kill: bool) -> int:
        """Kill it, or wait for its end; returns its exit code."""
        if kill:
            os.kill(self._pid, signal.SIGKILL)
        while not self.ended:
            self._take()
        os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _take(self) -> None:
        data = os.read(self._pipe, 1 << 16)
        self.ended = not data
        self.reported.update(data)
        if data:
            self.last = data[-1]


def run(kills: int, seed: int, path: Path, targets: list[InfluxSettings]) -> Report:
    """See the module's docstring."""
    report, random_ = Report(), random.Random(seed)
    started_s = time.monotonic()
    for number in range(kills):
        influx = targets[number % len(targets)]
        if random_.random() < AGAIN:
            report.demands += demand_again(KIND, path, target_of(influx)) is not None
        victim = Victim(path, influx)
        moment = random_.choice([OPENED, SENDING, SENDING, ANSWERED, NOTING, NOTED])
        times = 1 if moment == OPENED else 1 + int(random_.expovariate(1 / 5))
        victim.listen(GIVE_UP_S, moment, times)
        victim.listen(random_.uniform(0.0, 0.003))
        code = victim.end(kill=True)
        report.kills += 1
        report.requests += victim.reported[SENDING]
        report.killed_while[_STAGE[victim.last]] += 1
        if code != -signal.SIGKILL:
            report.fault = f"kill {report.kills}: it had ended by itself with {code}"
            return report
    for influx in targets:
        code = Victim(path, influx, LAST_S).end(kill=False)
        if code != 0:
            report.fault = f"the last run, to {influx.url}, ended with {code}"
    report.seconds = time.monotonic() - started_s
    return report


def main() -> None:
    """Arguments: how many kills, a seed, the journal's path."""
    kills, seed, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    targets = [InfluxSettings.model_validate(item) for item in json.load(sys.stdin)]
    logging.basicConfig(filename=path.with_name("log"), level=logging.INFO)
    report = run(kills, seed, path, targets)
    sys.stdout.write(json.dumps(msgspec.to_builtins(report)) + "\n")


if __name__ == "__main__":
    main()
