"""The collector beside an exchange that has faults all the time: what it loses, and whether it reports that.

`python -m tests.faults.soak --exchange-hours 24 --speed 120` starts both as processes of their own and
strikes by a seeded schedule. At the end every closing candle that was published must be stored with its
numbers, nothing else may be stored, the exchange's REST must answer the same, and the collector's memory,
file descriptors and tasks must be where they were. Exit 1 if not so.

The proof of healing, some hours long: `--exchange-hours 48 --speed 60 --disconnects 1000 --kills 10
--outage-hours 1 --rollovers 30 --silent-empty`, and that all is whole 30 exchange seconds after the last
fault: `--exchange-hours 1 --speed 5 --within 30 …`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.collector.status_report import StatusReport
from marketfeed.history.audit import AuditReport
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.control import State
from marketfeed.simulator.fault_kinds import Fault, FaultReport, StopListening
from marketfeed.simulator.published import Published
from tests.coverage_check import check_coverage
from tests.faults.fault_audit import Audit, audit
from tests.faults.fault_truth import judge, read_gaps
from tests.faults.scoreboard import VARIABLE, Scoreboard
from tests.faults.soak_child import MODULE
from tests.faults.soak_outcome import Outcome, Sample, complaints, quarters, row, table
from tests.faults.soak_overwrites import Overwrites
from tests.faults.soak_process import Process, SoakError, environment
from tests.faults.soak_schedule import Schedule

TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
SAMPLE_EVERY_S: Final = 1.0
WHOLE_TIMEOUT_S: Final = 240.0
"""Wall seconds to come back after the last fault: waits between attempts grow up to a minute."""
CALM_S: Final = 60.0
"""Exchange seconds after the last candle that counts: all deadlines have passed by then."""
AUDIT_TIMEOUT_S: Final = 300.0
HOURLY_S: Final = 600.0
"""Exchange seconds after an hour in which mark candles may still be asked for."""
CLOSED_FOR_MS: Final = 10_000
BANNED_S: Final = 500.0
ROLL_FROM_S: Final = 90.0
ROLL_BEFORE_S: Final = 400.0
"""Exchange seconds after which connections are old, when rollovers are asked for."""
PAGE: Final = 50_000


class Options(msgspec.Struct, frozen=True):
    """What to do. `every_s` is the mean wall time between two random faults.

    Besides, `disconnects` cut connections and `kills` the collector at random moments, and for
    `outage_hours` in the middle (exchange time) the exchange does not listen at all.
    """

    exchange_hours: float
    speed: float
    pairs: int
    seed: int
    every_s: float
    directory: Path
    disconnects: int = 0
    kills: int = 0
    outage_hours: float = 0.0
    rollovers: int = 0
    """So many at least; connections are old after minutes then."""
    silent_empty: bool = False
    """Whether nothing reports intervals without trades."""
    within_s: float | None = None
    """Exchange seconds after the last fault at which the collector is stopped; None: when all is well."""


class Exchange:
    """The simulated exchange's controls over HTTP; it may be asked not to listen for a while."""

    def __init__(self, rest_url: str) -> None:
        self._url = f"{rest_url}/simulator/"

    def state(self) -> State:
        """How it stands."""
        return msgspec.json.decode(_ask("GET", self._url + "state"), type=State)

    def faults(self) -> FaultReport:
        """The faults at work."""
        return msgspec.json.decode(_ask("GET", self._url + "faults"), type=FaultReport)

    def start(self, fault: Fault) -> None:
        """Start a fault."""
        _ask("POST", self._url + "faults", msgspec.json.encode(fault))

    def end_faults(self) -> None:
        """End all faults."""
        _ask("DELETE", self._url + "faults")

    def published(self) -> list[Published]:
        """Every closing candle that was sent."""
        found: list[Published] = []
        while True:
            after = found[-1].number if found else 0
            body = _ask("GET", f"{self._url}published?after={after}&limit={PAGE}")
            page = msgspec.json.decode(body, type=list[Published])
            if not page:
                return found
            found += page


def _ask(method: str, url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=180.0) as response:  # noqa: S310 - loopback
        answer: bytes = response.read()
    return answer


def soak(options: Options, report_progress: Callable[[str], None]) -> Outcome:
    """Run, strike, wait, compare. Raises SoakError when a process does what it should not."""
    directory = options.directory
    log, timeframes = directory / "simulator.log", ",".join(TIMEFRAMES)
    plain = (
        "simulate",
        f"--pairs={options.pairs}",
        f"--speed={options.speed}",
        f"--timeframes={timeframes}",
        f"--seed={options.seed}",
        "--port=0",
    )
    silent = ("simulate", *map(str, (options.pairs, options.speed, timeframes, options.seed)))
    with (
        Process(log, *silent, module=MODULE) if options.silent_empty else Process(log, *plain)
    ) as simulator:
        urls = simulator.urls()
        run = _Run(options, simulator, urls)
        try:
            run.until_flowing(report_progress)
            run.strike(report_progress)
            run.end(report_progress)
            return run.outcome()
        finally:
            run.close()


def _configure(options: Options, urls: dict[str, str]) -> Path:
    settings = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": options.pairs},
            "timeframes": list(TIMEFRAMES),
        },
        "journal": {"path": str(options.directory / "journal.db")},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    config = options.directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings), "utf-8")
    return config


class _Run:
    """One soak under way."""

    def __init__(
        self,
        options: Options,
        simulator: Process,
        urls: dict[str, str],
    ) -> None:
        self._options = options
        self._rest_url = urls["rest_url"]
        self._exchange = Exchange(self._rest_url)
        self._simulator = simulator
        self._config = _configure(options, urls)
        self._collectors: list[Process] = []
        self._status_url = ""
        self._start_collector()
        self._samples: list[Sample] = []
        self._struck: Counter[str] = Counter()
        self._since_ms = self._until_ms = 0
        self._whole_after_s = 0.0
        self._started_s = time.monotonic()
        self._report: StatusReport | None = None
        self._published: list[Published] = []
        self._exit_code = self._resubscribed = self._kills = 0
        self._healed_after_s = 0.0
        self._audit: Audit | None = None
        self._command: AuditReport | None = None
        self._overwrites = Overwrites(options.directory / "journal.db")
        self._first_tasks = self._last_tasks = 0

    def until_flowing(self, report_progress: Callable[[str], None]) -> None:
        """Wait until all of it comes."""
        report_progress("starting")
        self._wait_flowing()
        self._first_tasks = self._quiet_tasks()
        self._since_ms = self._exchange.state().exchange_time_ms
        self._started_s = time.monotonic()

    def strike(self, report_progress: Callable[[str], None]) -> None:
        """Start fault after fault until the exchange time is over, and look at the collector."""
        options = self._options
        symbols = [f"{pair.partition('/')[0]}USDT" for pair in self._pairs()]
        schedule = Schedule(options.seed, symbols, TIMEFRAMES, options.speed)
        lasts_s = options.exchange_hours * 3_600.0 / options.speed
        next_fault_s = schedule.wait_s(options.every_s)
        next_sample_s = 0.0
        disconnects = schedule.moments(options.disconnects, lasts_s)
        kills = schedule.moments(options.kills, lasts_s)
        outages = [lasts_s / 2] if options.outage_hours else []
        while (at_s := time.monotonic() - self._started_s) < lasts_s:
            self._check()
            if outages and at_s >= outages[0]:
                outages.pop()
                self._strike_once(lambda _: StopListening(for_s=options.outage_hours * 3_600.0))
            # Behind time, for nobody could be asked, they come one by one later on.
            if disconnects and at_s >= disconnects[0] and self._strike_once(schedule.disconnect):
                disconnects.pop(0)
            if kills and at_s >= kills[0]:
                kills.pop(0)
                self._kill()
            if at_s >= next_sample_s:
                next_sample_s += SAMPLE_EVERY_S
                self._sample()
                report_progress(f"{at_s:.0f} of {lasts_s:.0f} s, {self._struck.total()} faults")
            self._overwrites.look()
            if at_s >= next_fault_s:
                next_fault_s += schedule.wait_s(options.every_s)
                # The exchange's bans outlast the fault, minutes for a 403: those come before.
                last = options.within_s is not None and lasts_s - at_s < BANNED_S / options.speed
                self._strike_once(schedule.fault_of_streams if last else schedule.fault)
            time.sleep(0.05 if not disconnects else 0.01)

    def end(self, report_progress: Callable[[str], None]) -> None:
        """End all faults, wait until everything due has come or is reported missing, and stop."""
        report_progress("waiting")
        _patiently(self._exchange.end_faults)
        ended_s = time.monotonic()
        if self._options.within_s is not None:
            self._watch_healing(self._options.within_s)
        else:
            self._wait_flowing()
            self._whole_after_s = time.monotonic() - ended_s
            self._wait_healed()
            self._healed_after_s = (time.monotonic() - ended_s) * self._options.speed
        self._last_tasks = self._quiet_tasks(self._first_tasks)
        self._sample()
        self._until_ms = self._exchange.state().exchange_time_ms
        if self._options.within_s is None:
            # By the collector's clock, and by a look of its supervisor.
            time.sleep(CALM_S / self._options.speed + 1.0)
            self._wait_healed()
        else:
            # What closed less than this before may be on its way.
            self._until_ms -= CLOSED_FOR_MS
        self._report = self._status()
        self._resubscribed = self._metric("marketfeed_resubscribed_total")
        # Not read while the collector still takes candles: they would be invented ones.
        self._exit_code = self._collector.stop()
        self._published = self._exchange.published()
        self._overwrites.look()
        report_progress("auditing")
        self._command = self._audit_by_command()
        self._audit = audit(
            self._options.directory / "journal.db",
            self._rest_url,
            {one.pair: one.symbol for one in self._published},
            TIMEFRAMES,
            _full_minute(self._since_ms),
            self._until_ms,
        )

    def outcome(self) -> Outcome:
        """Compare, and return the outcome."""
        options, report = self._options, self._report
        if report is None or self._audit is None or self._command is None:
            raise SoakError("not ended")
        samples = b"".join(msgspec.json.encode(one) + b"\n" for one in self._samples)
        (options.directory / "samples.jsonl").write_bytes(samples)
        # The first whole minute; of longer timeframes the first candle that opens after it.
        since_ms = _full_minute(self._since_ms)
        path = options.directory / "journal.db"
        files = [sample.files for sample in self._samples]
        tasks = [sample.tasks for sample in self._samples if sample.tasks is not None]
        covered = check_coverage(path)
        return Outcome(
            exchange_hours=options.exchange_hours,
            wall_s=time.monotonic() - self._started_s,
            faults=dict(sorted(self._struck.items())),
            verdict=judge(path, self._published, since_ms, self._until_ms),
            connections_opened=sum(one.opened for one in report.connections),
            resubscribed=self._resubscribed,
            rejects=sum(report.rejects.values()),
            healthy_share=statistics.mean(sample.healthy for sample in self._samples),
            whole_after_s=self._whole_after_s,
            rss_mb=quarters([sample.rss_bytes / 1e6 for sample in self._samples]),
            files=(files[0], max(files), files[-1]),
            tasks=(self._first_tasks, max(tasks), self._last_tasks),
            exit_code=self._exit_code,
            errors=[
                line
                for collector in self._collectors
                for line in collector.lines()
                # It is logged once when the exchange forbids more requests: a fault here.
                if "level=ERROR" in line and "REST stopped" not in line
            ],
            kills=self._kills,
            healed_after_s=self._healed_after_s,
            gaps=dict(Counter(g.state for g in read_gaps(path) if g.kind.startswith("candle"))),
            audit=self._audit,
            rollovers=self._rollovers(),
            rollovers_asked=options.rollovers,
            within_s=options.within_s,
            percent=self._command.percent,
            series=len(self._command.series),
            command_missing=self._command.missing,
            command_different=self._command.different,
            command_errors=self._command.errors,
            rewritten=self._overwrites.rewritten,
            worse=self._overwrites.worse,
            covered_series=covered.series,
            coverage_mistakes=[
                *covered.mistakes,
                *([] if covered.trusted else ["somebody else has changed rows"]),
            ],
        )

    # --- inside -----------------------------------------------------------------------------------

    def _pairs(self) -> list[str]:
        return sorted(
            line.partition('pair="')[2].partition('"')[0]
            for line in self._metrics()
            if line.startswith("marketfeed_mark_price_age_seconds{")
        )

    @property
    def _collector(self) -> Process:
        return self._collectors[-1]

    def close(self) -> None:
        """Leave no process behind."""
        for collector in self._collectors:
            collector.__exit__()

    def _check(self) -> None:
        for process in (self._simulator, self._collector):
            process.check()

    def _start_collector(self) -> None:
        log = self._options.directory / f"collector-{len(self._collectors) + 1}.log"
        if self._options.rollovers:
            ages = (str(ROLL_FROM_S), str(ROLL_BEFORE_S))
            collector = Process(log, "collect", str(self._config), *ages, module=MODULE)
        else:
            collector = Process(log, "run", f"--config={self._config}")
        self._collectors.append(collector)
        self._status_url = collector.urls()["status_url"]

    def _kill(self) -> None:
        self._collector.kill()
        self._kills += 1
        self._start_collector()

    def _strike_once(self, draw: Callable[[Sequence[int]], Fault]) -> bool:
        try:
            fault = draw(self._exchange.faults().connections)
            self._exchange.start(fault)
        except urllib.error.URLError:
            # It does not listen: that is the fault just now.
            return False
        self._struck[_name(fault)] += 1
        return True

    def _watch_healing(self, within_s: float) -> None:
        """Look on for so many exchange seconds: how long candles were missing, and series silent."""
        speed = self._options.speed
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) * speed < within_s:
            self._check()
            report = self._status()
            if report.missing_candles:
                self._healed_after_s = passed_s * speed
            if report.overdue or any(one.state != "open" for one in report.connections):
                self._whole_after_s = passed_s
            time.sleep(0.02)

    def _rollovers(self) -> dict[str, int]:
        """How those of all runs ended, by their logs: the counters of a killed one are gone."""
        found: Counter[str] = Counter()
        for collector in self._collectors:
            for line in collector.lines():
                if " rolled over from=" in line:
                    found["unproven" if " unproven " in line else "proven"] += 1
                elif " rollover given up " in line:
                    found["given up"] += 1
        return dict(sorted(found.items()))

    def _audit_by_command(self) -> AuditReport:
        """What the operator's command reports of the whole journal, from the first whole minute on."""
        since_ms = _full_minute(self._since_ms)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "marketfeed", "audit", "--all", "--json"),
                *(f"--config={self._config}", "--weight=2400"),
                *(f"--since={_utc(since_ms)}", f"--until={_utc(self._until_ms)}"),
            ],
            env=environment(),
            capture_output=True,
            check=False,
            timeout=AUDIT_TIMEOUT_S,
        )
        try:
            return msgspec.json.decode(done.stdout, type=AuditReport)
        except msgspec.DecodeError:
            raise SoakError(f"audit ended with {done.returncode}: {done.stderr!r}") from None

    def _wait_healed(self) -> None:
        deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
        while True:
            self._check()
            report = self._status()
            if report.missing_candles == 0:
                return
            if time.monotonic() > deadline_s:
                raise SoakError(f"not healed: {report.missing_candles}, {report.healing}")
            time.sleep(0.05)

    def _sample(self) -> None:
        try:
            healthy = self._status().healthy
            tasks: int | None = self._metric("marketfeed_tasks")
        except urllib.error.URLError:
            healthy, tasks = False, None
        self._samples.append(
            Sample(self._collector.rss_bytes(), self._collector.open_files(), tasks, healthy)
        )

    def _wait_flowing(self) -> None:
        deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
        while True:
            self._check()
            if any("simulator failed" in line for line in self._simulator.lines()):
                raise SoakError("the simulator failed: see its log (--keep)")
            report = self._status()
            if (
                report.mark_price_age_s is not None
                and not report.overdue
                and all(one.state == "open" for one in report.connections)
            ):
                return
            if time.monotonic() > deadline_s:
                raise SoakError(f"not well again: {'; '.join(report.reasons)}")
            time.sleep(0.1)

    def _status(self) -> StatusReport:
        return msgspec.json.decode(_ask("GET", self._status_url + "/status"), type=StatusReport)

    def _metrics(self) -> list[str]:
        return _ask("GET", self._status_url + "/metrics").decode().splitlines()

    def _quiet_tasks(self, wanted: int = 0) -> int:
        """The fewest tasks at many looks: some come and go, for a request or a command.

        Those of mark candles ask after each hour, for some minutes: until there are as few as `wanted`, on a
        busy machine for 30 s.
        """
        found = []
        calm_s = time.monotonic() + 2.0
        until_s = calm_s + (max(HOURLY_S / self._options.speed, 30.0) if wanted else 0.0)
        while time.monotonic() < calm_s or (min(found) > wanted and time.monotonic() < until_s):
            found.append(self._metric("marketfeed_tasks"))
            time.sleep(0.05)
        return min(found)

    def _metric(self, name: str) -> int:
        for line in self._metrics():
            if line.startswith(f"{name} "):
                return int(float(line.rpartition(" ")[2]))
        raise SoakError(f"no metric {name}")


def _patiently(call: Callable[[], None]) -> None:
    deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
    while True:
        try:
            call()
        except urllib.error.URLError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return


def _full_minute(time_ms: int) -> int:
    return time_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS


def _utc(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}"


def _name(fault: Fault) -> str:
    tag = str(fault.__struct_config__.tag)
    if getattr(fault, "connections", None) in ("open", "all") and fault.count is None:
        tag += " all"
    how = getattr(fault, "how", "") or ("closing" if getattr(fault, "closing_only", False) else "")
    return f"{tag} {how}".rstrip()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--exchange-hours", type=float, default=24.0)
    parser.add_argument("--speed", type=float, default=120.0)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=4.0, help="wall seconds between faults")
    parser.add_argument("--disconnects", type=int, default=0, help="so many more cut connections")
    parser.add_argument("--kills", type=int, default=0, help="so many times kill the collector")
    parser.add_argument(
        "--outage-hours", type=float, default=0.0, help="exchange away, at half time"
    )
    parser.add_argument("--rollovers", type=int, default=0, help="at least so many, in all runs")
    parser.add_argument(
        "--silent-empty", action="store_true", help="no frame closes an interval without trades"
    )
    parser.add_argument(
        "--within", type=float, help="audit what is stored so many exchange s after the last fault"
    )
    parser.add_argument("--keep", type=Path, help="keep journal and logs in this directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marketfeed-soak-") as name:
        directory = given.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        options = Options(
            given.exchange_hours,
            given.speed,
            given.pairs,
            given.seed,
            given.every,
            directory,
            given.disconnects,
            given.kills,
            given.outage_hours,
            given.rollovers,
            given.silent_empty,
            given.within,
        )
        quiet = given.json or not sys.stderr.isatty()
        report_progress = (lambda _: None) if quiet else _print_progress
        outcome = soak(options, report_progress)
    if given.json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    else:
        sys.stdout.write("\n".join(table(outcome)) + "\n")
    wrong = complaints(outcome)
    for complaint in wrong:
        sys.stderr.write(f"not good: {complaint}\n")
    named = os.environ.get(VARIABLE)
    if named:
        Scoreboard(Path(named)).add(row(outcome))
    return 1 if wrong else 0


def _print_progress(text: str) -> None:
    sys.stderr.write(f"\r\033[K{text}")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
