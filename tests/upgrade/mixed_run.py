"""One combination of `mixed_collectors`: three collectors and their readers as processes, one exchange.

The older and the current collector ship into one bucket of a real influxd, in a given order of start; beside
them the older one alone ships into another bucket, for what its readers answer there.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self

import msgspec

from tests.faults.lanes import python
from tests.faults.proc_commands import (
    Collecting,
    Exchange,
    environment,
    exchange_of,
    write_config,
)
from tests.influxdb.influxd import Influxd
from tests.upgrade import mixed_exchange, mixed_plan
from tests.upgrade.mixed_judge import as_alone, new_reader, old_reader
from tests.upgrade.mixed_outcome import Mixed
from tests.upgrade.mixed_plan import Plan
from tests.upgrade.mixed_truth import Truth
from tests.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("mixed_reader.py")
LOOK_EVERY_S: Final = 4.0
"""Wall seconds between two looks of both readers."""
MOST: Final = 40
"""So many complaints of one run are kept."""
AS_HOST: Final = """
import runpy, socket, sys
name = sys.argv.pop(1)
socket.gethostname = lambda: name
runpy.run_module("marketfeed", run_name="__main__", alter_sys=True)
"""
"""`marketfeed …` on a host of that name: collectors of one bucket are told apart by it."""

Order = Literal["old first", "new first"]


class Version(Protocol):
    """A version's Python, and the environment for it."""

    @property
    def interpreter(self) -> str: ...

    @property
    def environment(self) -> Mapping[str, str]: ...


class Own:
    """The current version, from these files."""

    interpreter = sys.executable
    environment = environment(PYTHONPATH=str(Path(__file__).parents[2]), PYTHONSAFEPATH="1")


class Host:
    """One collector with its journal; it may be stopped, and started again with fewer pairs."""

    def __init__(
        self, directory: Path, name: str, version: Version, sim: Exchange, url: str, bucket: str
    ) -> None:
        self.name = name
        self._version = version
        self._sim = sim
        self._influx = {"url": url, "api": "v1", "bucket": bucket}
        self._directory = directory / name
        self._directory.mkdir()
        self._runs = 0
        self._pairs = list(mixed_plan.PAIRS)
        self._running: Collecting | None = None

    def start(self) -> None:
        """Start it."""
        config = write_config(
            self._directory,
            self._sim.ws_url,
            self._sim.rest_url,
            exchange={
                "pairs": self._pairs,
                "timeframes": list(mixed_plan.TIMEFRAMES),
                "mark_price_every": "3s",
            },
            history={"days": 1},
            influxdb=self._influx,
        )
        self._runs += 1
        command = [self._version.interpreter, "-c", AS_HOST, self.name, "run", "--config", config]
        log = self._directory / f"{self._runs}.log"
        self._running = Collecting(command, log, self._version.environment)

    @property
    def is_delivering(self) -> bool:
        """Whether it is well, and all that it collects comes."""
        assert self._running is not None
        assert self._running.process.poll() is None, self._running.log[-2_000:]
        return self._running.is_delivering()

    def until_delivering(self) -> None:
        """Wait for that."""
        assert self._running is not None
        log, running = "status_url=", self._running
        wait_until(lambda: running.logged(log), f"{self.name} listens", timeout_s=180.0)
        wait_until(lambda: self.is_delivering, f"{self.name} delivers", timeout_s=180.0)

    def stop(self) -> None:
        """Stop it cleanly: it ships what is left."""
        running, self._running = self._running, None
        if running is not None:
            assert running.stop(60.0) == 0, running.log[-2_000:]

    def drop(self, pair: str) -> None:
        """Start it again without a pair."""
        self.stop()
        self._pairs.remove(pair)
        self.start()
        self.until_delivering()

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()


class Reader:
    """A reader of one version in a process of its own."""

    def __init__(self, log: Path, version: Version, given: Mapping[str, Any]) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [version.interpreter, str(PROGRAM), json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=dict(version.environment),
                cwd="/",
            )
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def answer(self, now_ms: int) -> dict[str, Any]:
        """What it answers at that time of the exchange."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{now_ms}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-2_000:]
        found: dict[str, Any] = json.loads(line)
        return found


class Run:
    """One combination under way."""

    def __init__(
        self, directory: Path, plan: Plan, name: str, version: Version, order: Order
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._name = name
        self._version = version
        self._order = order
        # Each with who had it first and when, and how often.
        self._complaints: dict[str, tuple[str, int]] = {}
        self._looks = 0
        self._stopped_ms = 0

    def run(self) -> Mixed:
        """Let the plan pass; returns what was found. Raises AssertionError where it cannot be carried out."""
        begun_s = time.monotonic()
        plan = self._plan
        command = python("-m", mixed_exchange.MODULE, msgspec.json.encode(plan).decode())
        with ExitStack() as stack:
            influxd = stack.enter_context(Influxd(self._directory / "influxd"))
            buckets = [stack.enter_context(influxd.database(name)) for name in ("mixed", "alone")]
            sim = stack.enter_context(exchange_of(command, self._directory, plan.speed))
            truth = Truth(sim, plan)
            made = (self._directory, sim, influxd.url)
            old = self._host("old", self._version, *made, buckets[0])
            new = self._host("new", Own(), *made, buckets[0])
            alone = self._host("alone", self._version, *made, buckets[1])
            for host in (old, new, alone):
                stack.callback(host.kill)
            hosts = [old, new] if self._order == "old first" else [new, old]
            for host in hosts:
                host.start()
                host.until_delivering()
            alone.start()
            alone.until_delivering()
            late_s = (truth.now_ms() - plan.begin_ms) / 1000 / plan.speed
            assert late_s <= 0, f"the collectors were there {late_s:.0f} s late: lead_s, or speed"
            given = self._given(influxd.url)
            with self._readers(given, buckets[0]) as readers:
                self._watch(truth, readers, plan.begin_ms, plan.drop_ms)
                dropping = threading.Thread(target=_drop, args=(hosts, alone), daemon=True)
                dropping.start()
                self._watch(truth, readers, plan.drop_ms, plan.end_ms)
                dropping.join(180.0)
            for host in (*hosts, alone):
                host.until_delivering()
            self._stopped_ms = truth.now_ms()
            for host in (*hosts, alone):
                host.stop()
            self._judge(truth, given, buckets)
        return Mixed(
            self._name,
            self._order,
            plan.minutes,
            plan.speed,
            time.monotonic() - begun_s,
            self._looks,
            sum(map(len, truth.candles.values())),
            sum(map(len, truth.settled.values())),
            [
                f"{who}: {text}" + (f" ({times} times)" if times > 1 else "")
                for text, (who, times) in self._complaints.items()
            ][:MOST],
        )

    def _host(
        self, name: str, version: Version, directory: Path, sim: Exchange, url: str, bucket: str
    ) -> Host:
        return Host(directory, name, version, sim, url, bucket)

    def _given(self, url: str) -> dict[str, Any]:
        plan = self._plan
        return {
            "url": url,
            "pairs": list(mixed_plan.PAIRS),
            "timeframes": list(mixed_plan.TIMEFRAMES),
            "since_ms": plan.since_ms,
            "reused": mixed_plan.REUSED,
            "reused_end_ms": plan.reused_end_ms,
        }

    @contextmanager
    def _readers(self, given: Mapping[str, Any], bucket: str) -> Iterator[tuple[Reader, Reader]]:
        log = self._directory / "readers.log"
        with (
            Reader(log, Own(), {**given, "bucket": bucket}) as new,
            Reader(log, self._version, {**given, "bucket": bucket, "torn": True}) as old,
        ):
            yield new, old

    def _watch(
        self, truth: Truth, readers: tuple[Reader, Reader], from_ms: int, until_ms: int
    ) -> None:
        """Look at both readers until it is so late."""
        plan = self._plan
        while (now_ms := truth.now_ms()) < until_ms:
            if now_ms < from_ms:
                time.sleep(min(LOOK_EVERY_S, (from_ms - now_ms) / 1000 / plan.speed))
                continue
            for who, reader in zip(("new", "old"), readers, strict=True):
                now_ms = truth.now_ms()
                answer = reader.answer(now_ms)
                # What has closed while it answered is known afterwards.
                truth.update()
                truth.settle()
                self._looks += 1
                found = (
                    new_reader(answer, truth, plan, now_ms, final=False)
                    if who == "new"
                    else old_reader(answer, truth, plan, now_ms)
                )
                self._complain(who, now_ms, found)
            time.sleep(LOOK_EVERY_S)

    def _judge(self, truth: Truth, given: Mapping[str, Any], buckets: Sequence[str]) -> None:
        """All has been shipped: each reader once more, afresh, and as of one time."""
        plan = self._plan
        truth.update()
        truth.settle()
        # Late on a busy machine: who was dropped has ended for all by then.
        now_ms = max(plan.end_ms + 20_000, self._stopped_ms)
        with (
            self._readers(given, buckets[0]) as (new, old),
            Reader(
                self._directory / "readers.log", self._version, {**given, "bucket": buckets[1]}
            ) as other,
        ):
            answers = {
                "new": new.answer(now_ms),
                "old": old.answer(now_ms),
                "alone": other.answer(now_ms),
            }
        # For who wants to know more: all that was held against each other at the end.
        known = {
            "candles": {" ".join(key): rows for key, rows in truth.candles.items()},
            "settled": {pair: list(rows.items()) for pair, rows in truth.settled.items()},
        }
        (self._directory / "answers.json").write_text(json.dumps(answers | {"exchange": known}))
        self._looks += 2
        found = new_reader(answers["new"], truth, plan, now_ms, final=True)
        self._complain("new, at the end", now_ms, found)
        self._complain("old, at the end", now_ms, old_reader(answers["old"], truth, plan, now_ms))
        found = as_alone(answers["old"], answers["alone"], plan)
        self._complain("old beside old alone", now_ms, found)

    def _complain(self, who: str, now_ms: int, texts: Sequence[str]) -> None:
        minute = (now_ms - self._plan.begin_ms) / 60_000
        for text in texts:
            first, times = self._complaints.get(text, (f"{who}, minute {minute:.1f}", 0))
            self._complaints[text] = first, times + 1


def _drop(hosts: Sequence[Host], alone: Host) -> None:
    """Each is stopped, and started again without a pair, while the other one goes on."""
    for host in (*hosts, alone):
        host.drop(mixed_plan.DROPPED)
