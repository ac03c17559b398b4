"""One round of `fault_rounds.py`: a simulated exchange, a real collector, faults, and a look each second.

A candle is due by the clock alone. What the exchange has is taken from its clock, and in the end from its
REST; what is stored from the journal, read beside its writer.
"""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from marketfeed import schema
from marketfeed.gaps.holes import CANDLE_DUE_MS
from marketfeed.simulator.catalogue import choose_pairs
from tests.coverage_check import check_coverage
from tests.faults import proc_tools
from tests.faults.fault_audit import audit
from tests.faults.fault_truth import judge
from tests.faults.proc_commands import Collecting, exchange, run_command, write_config
from tests.faults.proc_disk import BALLAST, SmallDisk
from tests.faults.round_faults import Planned
from tests.faults.soak import Exchange
from tests.faults.soak_child import MODULE
from tests.waiting import wait_until

TIMEFRAMES: Final = ("1m", "3m", "5m")
OLD_S: Final = 60.0
"""Exchange seconds that a candle may be due and missing while the collector is well."""
LOOK_EVERY_S: Final = 1.0
ANSWER_S: Final = 2.0
"""Who does not answer `/health` in so many wall seconds is not well."""
HEAL_S: Final = 720.0
"""Wall seconds to be whole and well after the last fault: pauses of REST and of retries are over by then.

So are the ten minutes for which `/health` tells of frames that were refused for their stamps.
"""
SETTLED_MS: Final = 10_000
"""What closed so long ago (exchange time) is stored when all is whole."""
RESTART_S: Final = 2.0
"""What ends by itself is started again, as systemd does."""
ROLL_S: Final = (30.0, 60.0)
"""Wall seconds after which connections are old in a round with rollovers."""

Candles = set[tuple[str, str, int]]


class RoundOptions(msgspec.Struct, frozen=True):
    """What a round is like. `speed` is exchange seconds per wall second."""

    number: int
    directory: Path
    round_s: float
    speed: float
    pairs: int


class Round(msgspec.Struct, frozen=True):
    """What came of one round.

    `seconds` counts the looks by what `/health` said, `no answer` among them. `well_while_missing` is how
    many said `well` while a candle was due and missing for more than 60 s, `worst` the first of these,
    `filling_while_missing` how many said `filling`. `whole_after_s` are wall seconds from the end of the
    last fault until all was stored and well, None if that did not come. `ended` is what the collector ended
    by itself with. `unread` looks could not read the journal.
    """

    number: int
    faults: list[str]
    seconds: dict[str, int]
    well_while_missing: int
    filling_while_missing: int
    unread: int
    worst: str
    whole_after_s: float | None
    candles: int
    wrong: list[str]
    coverage_mistakes: list[str]
    exit_code: int
    ended: list[int]
    rolled_over: int

    def complaints(self) -> list[str]:
        """What is not good about it; nothing if all is."""
        found = []
        if self.well_while_missing:
            found.append(f"well for {self.well_while_missing} s while missing: {self.worst}")
        if self.whole_after_s is None:
            found.append(f"not whole: {self.worst}")
        if not self.candles:
            found.append("nothing was compared")
        if self.wrong:
            found.append(f"{len(self.wrong)} candles are not the exchange's: {self.wrong[:3]}")
        if self.coverage_mistakes:
            found.append(f"coverage is not what the rows say: {self.coverage_mistakes[:3]}")
        if self.exit_code:
            found.append(f"the collector ended with {self.exit_code}")
        if self.ended:
            found.append(f"the collector ended by itself with {self.ended}")
        return found


def symbols(pairs: int) -> list[str]:
    """The exchange's names of the pairs that a round has."""
    return [_symbol(pair) for pair in choose_pairs(pairs)]


def run_round(options: RoundOptions, planned: Sequence[Planned]) -> Round:
    """Run one round. Raises TimeoutError when the collector is not well at first."""
    timeframes = ",".join(TIMEFRAMES)
    with exchange(options.directory, options.pairs, options.speed, timeframes) as sim:
        running = _Running(options, planned, sim.ws_url, sim.rest_url)
        try:
            return running.run()
        finally:
            running.close()


class _Running:
    """A round under way."""

    def __init__(
        self, options: RoundOptions, planned: Sequence[Planned], ws_url: str, rest_url: str
    ) -> None:
        self._options = options
        self._planned = planned
        self._rest_url = rest_url
        self._exchange = Exchange(rest_url)
        self._disk = options.directory / "disk"
        self._disk.mkdir(exist_ok=True)
        self._journal = self._disk / "journal.db"
        self._config = write_config(
            options.directory,
            ws_url,
            rest_url,
            self._journal,
            exchange={"pairs": "all", "timeframes": list(TIMEFRAMES)},
        )
        state = self._exchange.state()
        self._ahead_ms = state.exchange_time_ms - time.monotonic() * 1000 * options.speed
        self._pairs = choose_pairs(options.pairs)
        self._collectors: list[Collecting] = []
        self._is_down = self._is_full = self._is_stopped = self._is_hung = False
        self._restart_s: float | None = None
        self._tracer: subprocess.Popen[bytes] | None = None
        self._since_ms = 0
        self._seq = 0
        self._stored: Candles = set()
        self._seconds: Counter[str] = Counter()
        self._while_missing: Counter[str] = Counter()
        self._unread = 0
        self._worst = ""
        self._ended: list[int] = []

    def run(self) -> Round:
        """See `run_round`."""
        options = self._options
        self._start()
        wait_until(lambda: self._health()["state"] == "well", lambda: self._collector.log[-2000:])
        self._since_ms = schema.ceil_to(self._now_ms(), schema.MINUTE_MS)
        begun_s = time.monotonic()
        actions = self._actions()
        samples = (options.directory / "samples.jsonl").open("w", buffering=1)
        with samples:
            while (passed_s := time.monotonic() - begun_s) < options.round_s:
                while actions and actions[0][0] <= passed_s:
                    actions.pop(0)[1]()
                self._look(samples.write, passed_s)
            for _, action in actions:
                action()
            self._exchange.end_faults()
            ended_s = time.monotonic()
            whole_after_s, health = None, {}
            while (waited_s := time.monotonic() - ended_s) < HEAL_S:
                health = self._look(samples.write, time.monotonic() - begun_s)
                if health["state"] == "well" and not self._missing(self._now_ms() - SETTLED_MS):
                    whole_after_s = waited_s
                    break
        until_ms = self._now_ms() - SETTLED_MS
        if whole_after_s is None:
            words = f"{self._words(self._missing(until_ms))}; {health.get('reasons', health)}"
            self._worst = self._worst or words
        exit_code = self._collector.stop()
        candles, wrong = self._compare(until_ms)
        covered = check_coverage(self._journal)
        return Round(
            options.number,
            [one.text for one in self._planned],
            dict(self._seconds),
            self._while_missing["well"],
            self._while_missing["filling"],
            self._unread,
            self._worst,
            whole_after_s,
            candles,
            wrong,
            [*covered.mistakes, *([] if covered.trusted else ["somebody else has changed rows"])],
            exit_code,
            self._ended,
            sum(one.log.count(" rolled over from=") for one in self._collectors),
        )

    def close(self) -> None:
        """Leave no process behind."""
        self._end_tracer()
        for collector in self._collectors:
            collector.__exit__()

    # --- faults -----------------------------------------------------------------------------------

    def _actions(self) -> list[tuple[float, Callable[[], object]]]:
        """What is to be done when, in order."""
        found: list[tuple[float, Callable[[], object]]] = []
        for one in self._planned:
            end_s = one.at_s + one.for_s
            if one.fault is not None:
                fault = one.fault
                found.append((one.at_s, lambda fault=fault: self._exchange.start(fault)))
            elif one.kind == "kill":
                found += [(one.at_s, self._kill), (end_s, self._start)]
            elif one.kind == "stop":
                found += [(one.at_s, self._stop), (end_s, self._continue)]
            elif one.kind == "full disk":
                found += [(one.at_s, self._fill), (end_s, self._make_room)]
            elif one.kind == "disk hangs":
                found += [(one.at_s, self._hang), (end_s, self._end_hanging)]
            # Rollovers come by the age of the connections.
        return sorted(found, key=lambda one: one[0])

    @property
    def _collector(self) -> Collecting:
        return self._collectors[-1]

    def _start(self) -> None:
        self._is_down, self._restart_s = False, None
        log = self._options.directory / f"collector-{len(self._collectors) + 1}.log"
        command = run_command(self._config)
        if any(one.kind == "rollover" for one in self._planned):
            ages = (str(age_s * self._options.speed) for age_s in ROLL_S)
            command = [sys.executable, "-m", MODULE, "collect", str(self._config), *ages]
        self._collectors.append(Collecting(command, log))
        # What is at work strikes the new process, too.
        if self._is_hung:
            self._trace()
        if self._is_stopped:
            self._stop()

    def _kill(self) -> None:
        self._is_down = True
        self._collector.process.kill()
        # A tracer that waits holds up the end of what it traces.
        self._end_tracer()
        self._collector.process.wait()

    def _stop(self) -> None:
        self._is_stopped = True
        self._collector.process.send_signal(signal.SIGSTOP)

    def _continue(self) -> None:
        self._is_stopped = False
        self._collector.process.send_signal(signal.SIGCONT)

    def _fill(self) -> None:
        self._is_full = True
        SmallDisk("self", self._disk).fill()

    def _make_room(self) -> None:
        self._is_full = False
        (self._disk / BALLAST).unlink(missing_ok=True)

    def _hang(self) -> None:
        self._is_hung = True
        self._trace()

    def _end_hanging(self) -> None:
        self._is_hung = False
        self._end_tracer()

    def _trace(self) -> None:
        """Let no commit return: what is to be on the disk waits in fdatasync."""
        tool = proc_tools.strace()
        process = self._collector.process
        if self._is_down or process.poll() is not None:
            return
        self._end_tracer()
        # SIGSTOP, if that is another fault of this round, holds up the attaching: nobody waits for it.
        self._tracer = subprocess.Popen(
            [
                tool.path, "-f", "-o", os.devnull, "-p", str(process.pid),
                "-e", "trace=fdatasync,fsync",
                "-e", "inject=fdatasync,fsync:delay_enter=600000000",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | tool.environment(),
        )  # fmt: skip

    def _end_tracer(self) -> None:
        if self._tracer is not None:
            self._tracer.kill()
            self._tracer.wait()
            self._tracer = None

    def _supervise(self) -> None:
        """Start the collector again if it has ended by itself. Where the disk is full it may."""
        code = self._collector.process.poll()
        if self._is_down or code is None:
            return
        if self._restart_s is None:
            self._restart_s = time.monotonic() + RESTART_S
            if not self._is_full:
                self._ended.append(code)
        elif time.monotonic() >= self._restart_s:
            self._start()

    # --- looking ----------------------------------------------------------------------------------

    def _look(self, write: Callable[[str], object], passed_s: float) -> dict[str, Any]:
        """Ask and compare once, a second after the last time; returns what `/health` says."""
        looked_s = time.monotonic()
        self._supervise()
        health = self._health()
        state: str = health["state"]
        # One look of grace: that is how exactly it can be said.
        old_ms = self._now_ms() - CANDLE_DUE_MS
        old_ms -= int((OLD_S + LOOK_EVERY_S * self._options.speed) * 1000)
        # Read after the answer: what was stored by now may have been missing then, and is let pass.
        was_read = self._read()
        missing = self._missing(old_ms)
        self._seconds[state] += 1
        if not was_read:
            self._unread += 1
        elif missing and state in ("well", "filling"):
            self._while_missing[state] += 1
            if state == "well":
                self._worst = self._worst or f"{passed_s:.0f} s: {self._words(missing)}"
        sample = {"at_s": round(passed_s, 1), "old": len(missing), **health}
        write(json.dumps(sample) + "\n")
        time.sleep(max(0.0, looked_s + LOOK_EVERY_S - time.monotonic()))
        return health

    def _health(self) -> dict[str, Any]:
        found = self._collector.logged(r"status_url=(\S+)")
        if self._is_down or found is None:
            return {"state": "no answer"}
        parts = urlsplit(found[1])
        connection = HTTPConnection(parts.netloc, timeout=ANSWER_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
            except (OSError, HTTPException, ValueError):
                return {"state": "no answer"}
        return answer

    def _now_ms(self) -> int:
        """Exchange time."""
        return int(self._ahead_ms + time.monotonic() * 1000 * self._options.speed)

    def _read(self) -> bool:
        """Take in what was stored since the last look; whether that could be read."""
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{self._journal}?mode=ro", uri=True, timeout=ANSWER_S)
            ) as db:
                rows = db.execute(
                    """SELECT pair.pair, timeframe_ms, open_time, seq
                       FROM candle JOIN pair ON pair.id = pair_id WHERE seq > ?""",
                    (self._seq,),
                ).fetchall()
        except sqlite3.Error:
            # A collector just opens the file, or the disk has no room for what a reader needs.
            return False
        for pair, length_ms, open_ms, seq in rows:
            self._stored.add((pair, schema.TIMEFRAME_NAMES[length_ms], open_ms))
            self._seq = max(self._seq, seq)
        return True

    def _missing(self, closed_by_ms: int) -> Candles:
        """The candles since the first whole minute that closed by then, and are not stored."""
        found: Candles = set()
        for timeframe in TIMEFRAMES:
            length_ms = schema.TIMEFRAMES_MS[timeframe]
            first_ms = schema.ceil_to(self._since_ms, length_ms)
            opens = range(first_ms, closed_by_ms - length_ms + 1, length_ms)
            found.update((pair, timeframe, at) for at in opens for pair in self._pairs)
        return found - self._stored

    @staticmethod
    def _words(candles: Candles) -> str:
        by_series: defaultdict[str, list[int]] = defaultdict(list)
        for pair, timeframe, open_ms in sorted(candles):
            by_series[f"{pair} {timeframe}"].append(open_ms)
        first = [f"{name} {opens[0]}" for name, opens in list(by_series.items())[:2]]
        return f"{len(candles)} candles of {len(by_series)} series: {', '.join(first)}"

    def _compare(self, until_ms: int) -> tuple[int, list[str]]:
        """How many candles there are, and what is wrong: by what was sent, and by the exchange's REST."""
        sent = judge(self._journal, self._exchange.published(), self._since_ms, until_ms)
        # What closed while nobody listened was sent to nobody: only REST tells whether it is invented.
        wrong = [f"sent otherwise: {name}" for name in sent.wrong]
        wrong += [f"sent, and not stored: {name}" for name in sent.unlisted]
        wrong += [f"{count} {what}" for what, count in (
            ("sent, not stored, and listed as missing", sent.listed),
            ("listed as missing though stored", sent.stale),
        ) if count]  # fmt: skip
        names = {pair: _symbol(pair) for pair in self._pairs}
        by_rest = audit(self._journal, self._rest_url, names, TIMEFRAMES, self._since_ms, until_ms)
        wrong += [f"missing by REST: {name}" for name in by_rest.missing]
        wrong += [f"different by REST: {name}" for name in by_rest.different]
        wrong += [f"unknown to REST: {name}" for name in by_rest.extra]
        return by_rest.expected, wrong


def _symbol(pair: str) -> str:
    return f"{pair.partition('/')[0]}USDT"
