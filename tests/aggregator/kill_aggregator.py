"""Kills an aggregator again and again, at random moments between a signal's receipt and the bot's answer.

Run as a program of its own (`python kill_aggregator.py KILLS SEED DIRECTORY LOST_AFTER_S`), because it forks:
imports are paid for once, and this process never has a second thread. A bot that counts and feeders that
post without end live through all kills, in processes of their own. Prints a report as one JSON line.

A pair is used once, by five feeders at the most, of whom three decide: so there is one decision to forward
for a pair, whatever is killed, and two orders for a pair are two for one decision.
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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import aiohttp
import msgspec
import uvloop
from bot import CountingBot
from running import FLEET, LONG, basic, rows, settings

from marketfeed.aggregator.aggregator import Aggregator
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.timing import DEFAULT_PACE, Pace
from marketfeed.settings.model import Settings
from marketfeed.storage.reading import inspect
from tests.ports import held_port

GIVE_UP_S: Final = 180.0
PAIR_EVERY_S: Final = 0.1
WINDOW_S: Final = 0.1
BOT_TIMEOUT_S: Final = 0.5
RESOLVED_WITHIN_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1
ASKED: Final = ("sending", "unknown", "accepted", "refused", "found", "lost")
"""States of a forward whose order may have been sent: no way leads back from them."""
NEW_SIGNALS: Final = "SELECT number, pair, feeder FROM signal WHERE number > ? ORDER BY number"


class Plan(msgspec.Struct, frozen=True):
    """When to kill: `after_s` after so many signals were answered ("s"), orders received ("o"), or the fork.

    With `stop` a SIGTERM is sent at that moment, and the kill comes `stop_s` later.
    """

    event: str
    count: int
    after_s: float
    stop: bool = False
    stop_s: float = 0.0


def make_plan(random_: random.Random) -> Plan:
    """Draw one: while starting, around a commit, while an order is on its way, or while stopping."""
    kind = random_.random()
    if kind < 0.15:
        return Plan("", 0, random_.uniform(0.0, 0.15))
    if kind < 0.4:
        return Plan("s", random_.randint(1, 8), random_.uniform(0.0, 0.02))
    if kind < 0.85:
        return Plan("o", random_.choice((1, 1, 1, 2)), random_.uniform(0.0, 0.08))
    return Plan("o", 1, 0.0, stop=True, stop_s=random_.uniform(0.0, 0.1))


class Report(msgspec.Struct):
    """What came of it; `fault` is empty when nothing was lost and nothing sent twice."""

    kills: int = 0
    seconds: float = 0.0
    signals_answered: int = 0
    signals_stored: int = 0
    windows: int = 0
    decided_to_go: int = 0
    orders: int = 0
    trades: int = 0
    killed_while: Counter[str] = msgspec.field(default_factory=Counter)
    ends: dict[str, int] = msgspec.field(default_factory=dict)
    longest_unknown_s: float = 0.0
    skipped_for: list[str] = msgspec.field(default_factory=list)
    fault: str = ""


class Fault(Exception):  # noqa: N818 - a finding
    """Something was lost, or sent twice."""


def require(good: object, text: str) -> None:
    if not good:
        raise Fault(text)


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
def living(function: Callable[[], None]) -> Iterator[None]:
    """A process that lives until the block ends."""
    pid = os.fork()
    if pid == 0:
        in_child(function)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Events:
    """What bot and feeders report while they go on: a byte for each order received and signal answered."""

    def __init__(self) -> None:
        self._near, self.far = os.pipe()

    def emit(self, event: bytes) -> None:
        os.write(self.far, event)

    def forget(self) -> None:
        """Drop what has been reported so far."""
        while select.select([self._near], [], [], 0)[0]:
            os.read(self._near, 1 << 16)

    def wait(self, event: str, count: int) -> None:
        deadline_s = time.monotonic() + GIVE_UP_S
        while count > 0:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._near], [], [], left_s)[0]:
                raise Fault(f"no {event!r} in {GIVE_UP_S:.0f} s: the service does not come back")
            count -= os.read(self._near, 1 << 16).count(event.encode())


class Lines:
    """A file that another process appends lines to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        path.touch()

    def new(self) -> list[str]:
        """The whole lines that have come since."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data, _, _ = file.read().rpartition(b"\n")
        self._offset += len(data) + 1 if data else 0
        return data.decode().splitlines()


# --- who lives on -----------------------------------------------------------------------------------


def run_bot(port: int, events: Events, log: Path) -> None:
    async def run() -> None:
        async with CountingBot("mixed", port=port, slow_s=0.08, log=log, emit=events.emit):
            await asyncio.Event().wait()

    uvloop.run(run())


def run_feeders(port: int, events: Events, log: Path, seed: int) -> None:
    random_ = random.Random(seed)
    url = f"http://127.0.0.1:{port}/api/v1/forceenter"

    async def post(
        session: aiohttp.ClientSession, pair: str, feeder: str, after_s: float, *, keyed: bool
    ) -> None:
        await asyncio.sleep(after_s)
        headers = basic(FLEET)
        if keyed:
            headers["Idempotency-Key"] = f"{pair}_{feeder}"
        body = {"pair": pair, "enter_tag": f"from {feeder} conf=0.9"}
        while True:
            try:
                async with session.post(url, json=body, headers=headers) as answer:
                    status = answer.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                status = 0
            if status == 200:
                with log.open("a") as file:
                    file.write(f"{pair} {feeder}\n")
                events.emit(b"s")
            # Without a key it is not posted again: nobody knows whether it was taken.
            if status not in (0, 503) or not keyed:
                return
            await asyncio.sleep(0.03)

    async def run() -> None:
        number = 0
        timeout = aiohttp.ClientTimeout(total=GIVE_UP_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            while True:
                number += 1
                votes = random_.choice((2, 3, 3, 4, 5, 5))
                keyed = random_.random() < 0.5
                for feeder in random_.sample(LONG, votes):
                    after_s = random_.uniform(0.0, 0.05)
                    pair = f"P{number}/USDT:USDT"
                    group.create_task(post(session, pair, feeder, after_s, keyed=keyed))
                await asyncio.sleep(PAIR_EVERY_S)

    uvloop.run(run())


# --- who is killed ----------------------------------------------------------------------------------


def aggregate(given: Settings, pace: Pace) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await Aggregator(given, pace).run(stop)

    uvloop.run(run())


class Victim:
    """A forked aggregator."""

    def __init__(self, given: Settings, pace: Pace) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            in_child(lambda: aggregate(given, pace))

    def end(self, how: int) -> None:
        """Send the signal and wait. Raises Fault when it had ended by itself, or does not end well."""
        os.kill(self.pid, how)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -how):
            raise Fault(f"the aggregator ended with {code}")


# --- what has to hold -------------------------------------------------------------------------------


class Truth:
    """What bot and feeders know; compared with the ledger after every kill."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.orders = Counter[str]()
        self.answered: set[tuple[str, str]] = set()
        self._stored: set[tuple[str, str]] = set()
        self._newest = 0
        self._order_lines = Lines(directory / "orders")
        self._answer_lines = Lines(directory / "answered")

    def look(self) -> str:
        """Raise Fault if something is not as it must be; return what the kill fell into."""
        orders = [json.loads(line)["pair"] for line in self._order_lines.new()]
        new = {(pair, feeder) for pair, _, feeder in map(_parted, self._answer_lines.new())}
        self.orders.update(orders)
        self.answered |= new
        found = []
        ledger = inspect(KIND, self.directory / "ledger.db")
        # A kill while it was made leaves a file without tables.
        if ledger is not None and ledger.version > 0:
            found = rows(self.directory, NEW_SIGNALS, (self._newest,))
        for number, pair, feeder in found:
            self._newest = number
            self._stored.add((pair, feeder))
        # What was answered is on the disk: perhaps since a life before this answer.
        missing = new - self._stored
        require(not missing, f"answered and not stored: {sorted(missing)[:3]}")
        twice = [pair for pair in orders if self.orders[pair] > 1]
        require(not twice, f"two orders for {twice[:3]}")
        if not found and not orders:
            return "nothing new"
        state = dict(rows(self.directory, "SELECT pair, state FROM forwarded"))
        # Before the order was sent the ledger held that: it will never be sent again.
        wrong = [pair for pair in orders if state.get(pair) not in ASKED]
        require(not wrong, f"ordered and not noted: {[(p, state.get(p)) for p in wrong[:3]]}")
        states = set(state.values())
        for name in ("sending", "queued", "unknown"):
            if name in states:
                return name
        ((open_,),) = rows(
            self.directory,
            "SELECT count(DISTINCT window) FROM vote WHERE window NOT IN (SELECT window FROM decision)",
        )
        return "window open" if open_ else "all answered"

    def unresolved(self) -> int:
        """Windows that are not decided, and forwards that have not ended."""
        ((undecided, underway),) = rows(
            self.directory,
            "SELECT (SELECT count(*) FROM vote WHERE window NOT IN (SELECT window FROM decision)), "
            "(SELECT count(*) FROM forward WHERE state IN ('queued', 'sending', 'unknown'))",
        )
        return int(undecided + underway)

    def judge(self, report: Report, opened: list[str]) -> None:
        """What has to hold in the end, between ledger, orders and the bot's own trades."""
        state = dict(rows(self.directory, "SELECT pair, state FROM forwarded"))
        for pair in self.orders:
            require(state.get(pair) in ("accepted", "refused", "found", "lost"), f"{pair}: no end")
        for pair, end in state.items():
            if end in ("accepted", "refused", "found"):
                require(self.orders[pair] == 1, f"{pair}: {end} without an order")
            if end == "expired":
                require(self.orders[pair] == 0, f"{pair}: expired, and ordered")
        for pair in opened:
            require(state[pair] in ("accepted", "found"), f"{pair}: a trade, and {state[pair]}")
        require(len(opened) == len(set(opened)), "two trades for one decision")
        goes = [
            pair
            for (pair,) in rows(
                self.directory, "SELECT pair FROM decision WHERE outcome = 'forward'"
            )
        ]
        require(sorted(goes) == sorted(state), "a decision to forward without a forward")
        require(
            not rows(self.directory, "SELECT 1 FROM decision WHERE reasons = ''"),
            "a decision without a reason",
        )
        require(
            not rows(
                self.directory,
                "SELECT 1 FROM forward WHERE answer = '' AND state IN ('expired', 'lost', 'refused')",
            ),
            "an end without a reason",
        )
        report.ends = dict(sorted(Counter(state.values()).items()))
        ((report.windows, report.signals_stored),) = rows(
            self.directory, "SELECT (SELECT count(*) FROM decision), (SELECT count(*) FROM signal)"
        )
        report.decided_to_go = len(goes)
        report.trades = len(opened)
        report.skipped_for = sorted(
            {
                reasons.split(" of ")[-1].split(":")[0]
                for (reasons,) in rows(
                    self.directory, "SELECT DISTINCT reasons FROM decision WHERE outcome = 'skip'"
                )
            }
        )[:5]
        ((longest_ms,),) = rows(
            self.directory,
            "SELECT coalesce(max(changed - sent), 0) FROM forward WHERE state IN ('found', 'lost')",
        )
        report.longest_unknown_s = longest_ms / 1000


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


# --- the run ----------------------------------------------------------------------------------------


def run(kills: int, seed: int, directory: Path, unconfirmed_s: float) -> Report:
    """Kill `kills` times; ends early, with the fault in the report, when something is wrong."""
    report, events, random_ = Report(), Events(), random.Random(seed)
    # Behind an order of which nobody knows, others go on soon: or hardly one would be sent between two kills.
    pace = msgspec.structs.replace(DEFAULT_PACE, look_s=0.2, settle_s=0.3, searched_s=0.3)
    port, bot_port = held_port(), held_port()
    given = settings(
        directory,
        {"long": f"http://127.0.0.1:{bot_port}"},
        BOT_TIMEOUT_S,
        port=port,
        window_s=WINDOW_S,
        expire_s=2,
        unconfirmed_s=unconfirmed_s,
    )
    truth = Truth(directory)
    started_s = time.monotonic()
    plan: Plan | None = None
    with living(lambda: run_bot(bot_port, events, directory / "orders")):
        try:
            with living(lambda: run_feeders(port, events, directory / "answered", seed)):
                for _ in range(kills):
                    plan = make_plan(random_)
                    events.forget()
                    victim = Victim(given, pace)
                    if plan.event:
                        events.wait(plan.event, plan.count)
                    time.sleep(plan.after_s)
                    if plan.stop:
                        os.kill(victim.pid, signal.SIGTERM)
                        time.sleep(plan.stop_s)
                    victim.end(signal.SIGKILL)
                    report.kills += 1
                    report.killed_while[truth.look()] += 1
            plan = None
            last = Victim(given, pace)
            deadline_s = time.monotonic() + RESOLVED_WITHIN_S + GIVE_UP_S
            while truth.unresolved():
                require(time.monotonic() < deadline_s, f"{truth.unresolved()} are not resolved")
                time.sleep(0.1)
            last.end(signal.SIGTERM)
            truth.look()
            truth.judge(report, asyncio.run(opened_trades(bot_port)))
        except Fault as fault:
            report.fault = f"kill {report.kills}, {plan}: {fault}"
    report.seconds = time.monotonic() - started_s
    report.signals_answered = len(truth.answered)
    report.orders = truth.orders.total()
    return report


async def opened_trades(port: int) -> list[str]:
    """The pairs of all trades that the bot knows."""
    async with aiohttp.ClientSession() as session:
        headers = basic(("freqtrader", "invented-b0t-password"))
        url = f"http://127.0.0.1:{port}/api/v1"
        async with session.get(f"{url}/status", headers=headers) as answer:
            found = await answer.json()
        async with session.get(f"{url}/trades?limit=1000000", headers=headers) as answer:
            found += (await answer.json())["trades"]
    return [trade["pair"] for trade in found]


def main() -> None:
    """See the module's docstring."""
    kills, seed, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    # What aggregators log while they are killed is of interest only when something is wrong.
    logging.basicConfig(filename=directory / "log", level=logging.INFO)
    report = run(kills, seed, directory, float(sys.argv[4]))
    sys.stdout.write(json.dumps(msgspec.to_builtins(report)) + "\n")


if __name__ == "__main__":
    main()
