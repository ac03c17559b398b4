"""What outages of InfluxDB cost: our shipping beside cryptofeed's own InfluxDB backends, in one table.

    python tests/influxdb/outages.py [--peer PYTHON]… [--only NAME]… [--json]

Each scenario is a process of its own that takes points at an even rate (1,000/s) and ships them to a
real influxd. `killed` is SIGKILL and a start later, `hangs` is SIGSTOP; `refused` is the 2.x front, which
refuses connections: there the peers run, too (each PYTHON has its cryptofeed). Afterwards every point is
asked for and compared, value by value.

Compressed: in `10 min` the points of ten minutes come within 30 s (20,000/s); in `6 h` 3,542,400 points
(164 a second for six hours) stand in the journal, unshipped, when shipping begins.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from front import Front
from influxd import Influxd
from outage_ship import START_MS, Progress, Task, pair_name, values
from rich.console import Console
from rich.table import Table

HERE: Final = Path(__file__).parent
LIVE_LAG_S: Final = 2.0
AROUND_S: Final = 3.0
GIVE_UP_S: Final = 600.0
WINDOW_S: Final = 600


class Scenario(msgspec.Struct, frozen=True):
    """An outage of `outage_s` wall seconds of a `kind`, while `per_s` points a second of `pairs` come."""

    name: str
    kind: str
    outage_s: float
    pairs: int = 1_000
    per_s: int = 1_000
    backlog: int = 0


SCENARIOS: Final = (
    Scenario("3 s", "killed", 3.0),
    Scenario("3 s", "hangs", 3.0),
    Scenario("3 s", "refused", 3.0),
    Scenario("30 s", "killed", 30.0),
    Scenario("30 s", "hangs", 30.0),
    Scenario("30 s", "refused", 30.0),
    Scenario("10 min", "killed", 30.0, per_s=20_000),
    Scenario("6 h", "backlog", 0.0, pairs=164, per_s=1_000, backlog=164 * 6 * 3_600),
)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a scenario. Seconds are wall seconds, counted from the end of the outage."""

    who: str
    outage: str
    kind: str
    points: int
    lost: int
    duplicates: int
    live_after_s: float | None = None
    max_lag_s: float | None = None
    caught_up_s: float | None = None
    rss_start_mb: float | None = None
    rss_max_mb: float | None = None

    @property
    def good(self) -> bool:
        """Whether it kept what we promise."""
        return self.lost == 0 and self.duplicates == 0


@contextlib.contextmanager
def process(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes, killed at the end if it still runs."""
    running = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                pipe.close()


class Shipping:
    """Reads what a shipping process reports."""

    def __init__(self, running: subprocess.Popen[bytes]) -> None:
        assert running.stdout is not None
        assert running.stdin is not None
        self._running = running
        self._fd = running.stdout.fileno()
        self._rest = b""
        self.progress: list[Progress] = []
        self.ended = False

    def listen(self, until: Callable[[Progress], bool], give_up_s: float = GIVE_UP_S) -> Progress:
        """Read until a report fulfils a condition. Raises TimeoutError."""
        deadline_s = time.monotonic() + give_up_s
        while True:
            for progress in self._read(deadline_s):
                if until(progress):
                    return progress

    def wait(self, seconds: float) -> None:
        """Listen for so many seconds."""
        until_s = time.monotonic() + seconds
        self.listen(lambda progress: progress.at_s >= until_s)

    def stop(self) -> int:
        """Let it ship what is left and end; returns how many points it has written."""
        assert self._running.stdin is not None
        self._running.stdin.write(b"\n")
        self._running.stdin.flush()
        deadline_s = time.monotonic() + GIVE_UP_S
        while not self.ended:
            self._read(deadline_s)
        if self._running.wait(GIVE_UP_S) != 0:
            raise RuntimeError("the shipping process failed")
        return self.progress[-1].points

    def _read(self, deadline_s: float) -> list[Progress]:
        if not select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            raise TimeoutError("no such report")
        data = os.read(self._fd, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        fresh = [msgspec.json.decode(line, type=Progress) for line in lines]
        self.progress += fresh
        if self.ended and time.monotonic() > deadline_s:
            raise TimeoutError("it has ended")
        return fresh


def run_ours(
    scenario: Scenario, influxd: Influxd, front: Front, folder: Path, around_s: float = AROUND_S
) -> Outcome:
    """Run a scenario with our shipping, with `around_s` wall seconds before and after the outage."""
    database, refused = "market_data", scenario.kind == "refused"
    influx = {"url": influxd.url, "api": "v1", "bucket": database}
    if refused:
        influx = {"url": front.url, "org": front.org, "token": front.token, "bucket": database}
    task = Task(
        str(folder / "journal.db"), influx, scenario.pairs, scenario.per_s, scenario.backlog
    )
    argument = msgspec.json.encode(task).decode()
    program = HERE / "outage_ship.py"
    if scenario.backlog:
        subprocess.run([sys.executable, program, "backlog", argument], check=True)
    with process(sys.executable, program, "ship", argument) as running:
        shipping = Shipping(running)
        first = shipping.listen(lambda progress: progress.points > 0)
        if scenario.outage_s:
            shipping.wait(around_s)
            outage(scenario, influxd, front, shipping.wait)
        over_s = time.monotonic() if scenario.outage_s else first.at_s
        live = shipping.listen(
            lambda progress: progress.at_s >= over_s and progress.lag_s <= LIVE_LAG_S
        )
        # What comes in two turns is always on its way.
        few = 2 * scenario.per_s
        caught_up = shipping.listen(
            lambda progress: progress.at_s >= over_s and progress.unshipped <= few
        )
        shipping.wait(around_s)
        written = shipping.stop()
    progress = shipping.progress
    lost, duplicates = compare(influxd, database, scenario, written)
    return Outcome(
        who="marketfeed",
        outage=scenario.name,
        kind=scenario.kind,
        points=written + scenario.backlog,
        lost=lost,
        duplicates=duplicates,
        live_after_s=live.at_s - over_s,
        max_lag_s=max(item.lag_s for item in progress if item.at_s >= live.at_s),
        caught_up_s=caught_up.at_s - over_s,
        rss_start_mb=first.rss_bytes / 1e6,
        rss_max_mb=max(item.rss_bytes for item in progress) / 1e6,
    )


def outage(
    scenario: Scenario, influxd: Influxd, front: Front, wait: Callable[[float], None]
) -> None:
    """Let the server be away; `wait` takes the time."""
    if scenario.kind == "killed":
        influxd.kill()
        wait(scenario.outage_s)
        influxd.start()
    elif scenario.kind == "hangs":
        influxd.pause()
        wait(scenario.outage_s)
        influxd.resume()
    else:
        front.refuse()
        wait(scenario.outage_s)
        front.accept()


def compare(influxd: Influxd, database: str, scenario: Scenario, written: int) -> tuple[int, int]:
    """How many points are missing or differ, and how many rows are too many.

    `written` points were, besides the backlog.
    """
    pairs, lost, expected, rows = scenario.pairs, 0, 0, 0
    index_of = {pair_name(index): index for index in range(pairs)}
    first_s, last_s = -scenario.backlog // pairs, written // pairs
    for since in range(first_s, last_s + 1, WINDOW_S):
        until = since + WINDOW_S
        found = influxd.query(
            "SELECT mark_price, index_price FROM mark_price WHERE time >= $a AND time < $b "
            "GROUP BY pair",
            database,
            a=(START_MS + since * 1_000) * 1_000_000,
            b=(START_MS + until * 1_000) * 1_000_000,
        )
        stored = {
            (time_ms - START_MS) // 1_000 * pairs + index_of[series["tags"]["pair"]]: (mark, index)
            for series in found
            for time_ms, mark, index in series["values"]
        }
        for number in range(max(-scenario.backlog, since * pairs), min(until * pairs, written)):
            expected += 1
            lost += stored.get(number) != values(number)
        rows += sum(len(series["values"]) for series in found)
    (counted,) = influxd.query("SELECT count(mark_price) FROM mark_price", database)
    (in_all,) = (row[1] for row in counted["values"])
    # A row beside the expected ones is one of another series or time.
    return lost, max(in_all, rows) - (expected - lost)


def run_peer(python: str, scenario: Scenario, influxd: Influxd, front: Front) -> Outcome:
    """Run a scenario with cryptofeed's backends."""
    address = {"url": front.url, "org": front.org, "token": front.token, "bucket": "market_data"}
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('cryptofeed'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    arguments = (json.dumps(address), str(scenario.per_s))
    with process(python, HERE / "outage_peer.py", *arguments) as running:
        assert running.stdout is not None
        running.stdout.readline()  # it has begun
        time.sleep(AROUND_S)
        outage(scenario, influxd, front, time.sleep)
        time.sleep(AROUND_S)
        report = json.loads(running.communicate(b"\n", GIVE_UP_S)[0])
    rows, distinct = 0, set[tuple[str, float]]()
    for measurement, field in (("candles", "start"), ("funding", "timestamp")):
        text = f'SELECT "{field}" FROM "{measurement}-BINANCE_FUTURES" GROUP BY symbol'  # noqa: S608
        for series in influxd.query(text, "market_data"):
            rows += len(series["values"])
            distinct |= {(series["tags"]["symbol"], value) for _, value in series["values"]}
    return Outcome(
        who=f"cryptofeed {version}",
        outage=scenario.name,
        kind=scenario.kind,
        points=report["points"],
        lost=report["points"] - len(distinct),
        duplicates=rows - len(distinct),
    )


def run(
    scenarios: list[Scenario], peers: list[str], progress: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run scenarios, each with an influxd of its own."""
    outcomes: list[Outcome] = []
    for scenario in scenarios:
        for python in [None, *(peers if scenario.kind == "refused" else [])]:
            with (
                tempfile.TemporaryDirectory(prefix="outages-") as folder,
                Influxd(Path(folder) / "influxd") as influxd,
                Front(influxd) as front,
            ):
                front.add_bucket("market_data")
                if python is None:
                    outcome = run_ours(scenario, influxd, front, Path(folder))
                else:
                    outcome = run_peer(python, scenario, influxd, front)
            progress(outcome)
            outcomes.append(outcome)
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    """The outcomes as a table."""
    shown = Table("outage", "server", "who", title="Outages of InfluxDB at 1,000 points/s")
    for name in ("points", "lost", "duplicates", "live after", "max lag then", "caught up", "RSS"):
        shown.add_column(name, justify="right")

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    for item in outcomes:
        rss = "-"
        if item.rss_start_mb is not None:
            rss = f"{item.rss_start_mb:.0f} → {item.rss_max_mb:.0f} MB"
        shown.add_row(
            item.outage,
            item.kind,
            item.who,
            f"{item.points:,}",
            f"{item.lost:,}",
            f"{item.duplicates:,}",
            seconds(item.live_after_s),
            seconds(item.max_lag_s),
            seconds(item.caught_up_s),
            rss,
        )
    return shown


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], help="a Python with cryptofeed")
    parser.add_argument("--only", action="append", default=[], help="such as '3 s killed'")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    chosen = [
        item
        for item in SCENARIOS
        if not arguments.only or any(o in f"{item.name} {item.kind}" for o in arguments.only)
    ]
    console = Console(stderr=True)
    outcomes = run(chosen, arguments.peer, console.print)
    if arguments.json:
        sys.stdout.write(json.dumps({"outages": msgspec.to_builtins(outcomes)}, indent=2) + "\n")
    else:
        Console(width=140).print(table(outcomes))
    sys.exit(0 if all(item.good for item in outcomes if item.who == "marketfeed") else 1)


if __name__ == "__main__":
    main()
