"""A week of what exchanges do to contracts, through the real collector, faster than it is.

`python -m tests.pairs.simulated_week --speed 240 --days 7 --seed 1` (42 minutes) runs a simulated exchange, a
collector beside it (`marketfeed run`, cryptofeed over WebSockets, a journal on disk) and a real influxd it
ships to, each a process of its own. Contracts are listed off the grid, halt, end by date and by status, are
announced to end and go on, come back as other coins; types and settlements change; the list lacks rows, has
odd ones and wrong dates. At each exchange day's end, and at the end of all, everything that is stored is
compared with what the exchange has: every candle of every contract, lives, coverage, settlements, what both
readers and feeders get. Exit 1 if anything is not so.

At speed 240 a wall second is four minutes of the exchange, and what the collector waits for in wall seconds
is long. So it is fair to hold, and held:

* that all is stored and read alike `WHOLE_S` wall seconds after a day's end at the latest; shipping has
  `SHIPPED_S`, as some of what is shipped is told once a minute of this machine's time;
* that `/health` is not `well` while a candle is due and missing for 60 exchange and 5 wall seconds together
  (21 minutes of the exchange at speed 240); what it says besides is counted, and not judged: 15 seconds of
  silence are a sixteenth of a second there;
* that an end by status alone is known 45 exchange minutes later: two answers of the list, one every three
  minutes, and two wall seconds of silence; a listing as well;
* settlements of an ended contract until an hour before its end: REST's list of all that trades has none of it
  after, and minutes go by until it is asked. Those of a contract that goes on are all held.

What cannot be held is not played: two contracts of a name listed on one day (`lives` joins by the day), and
another coin within an hour of an end. Candles of a halt are the exchange's, whose REST goes on as if nothing
were.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.errors import SettingsError
from marketfeed.schema import DAY_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import Fault
from marketfeed.simulator.listings import ListingChange
from reader import MarketReader, ReaderError
from tests.faults.lanes import end_with_parent, python
from tests.faults.proc_commands import (
    Collecting,
    Exchange,
    exchange_of,
    get,
    run_command,
    write_config,
)
from tests.faults.soak_child import MODULE as CHILD
from tests.influxdb.influxd import Influxd, InfluxdError
from tests.pairs import week_compare as compare
from tests.pairs.week_compare import TIMEFRAMES, Compared, Truth
from tests.pairs.week_events import EVERY_MS, KINDS, Contract, Events
from tests.pairs.week_watch import Watch, shown

MODULE: Final = "tests.pairs.simulated_week"
START_MS: Final = 20_790 * DAY_MS
FIRST: Final = tuple(f"{base}/USDT:USDT" for base in ("ETH", "SOL", "XAU", "XRP", "DOGE", "ADA"))
NEW: Final = tuple(f"NEW{number}/USDT:USDT" for number in range(1, 9))
LIVELINESS: Final = 0.04
CALM_MS: Final = 90 * MINUTE_MS
"""So long before a day's end, and until it is compared, nothing new begins."""
AFTER_MS: Final = 20 * MINUTE_MS
"""So long after it is compared: what was settled is published ten minutes later at the latest."""
WHOLE_S: Final = 60.0
SHIPPED_S: Final = 150.0
LOOK_S: Final = 1.0
TICK_S: Final = 0.1
SHOWN: Final = 12
BUCKET: Final = "week"


class Options(msgspec.Struct, frozen=True):
    """What to run."""

    speed: float
    days: float
    seed: int
    directory: Path
    influx: bool
    every_ms: int = EVERY_MS


class Day(msgspec.Struct, frozen=True):
    """What came of one day's end: what was compared, when (wall s) it was whole, and what was wrong then."""

    at: str
    contracts: int
    events: int
    candles: int
    series: int
    lives: int
    settled: int
    downloads: int
    whole_s: float
    wrong: list[str]


class Outcome(msgspec.Struct, frozen=True):
    """What came of all."""

    days: list[Day]
    happened: dict[str, int]
    health: str
    reasons: str
    soon: str
    with_reasons: int
    well_while_missing: list[str]
    log: list[str]
    exit_code: int
    wall_s: float

    def complaints(self) -> list[str]:
        """What is not as it should be."""
        found = [f"{day.at}: {text}" for day in self.days for text in day.wrong]
        found += [f"well while missing: {text}" for text in self.well_while_missing]
        found += [f"the collector logged: {line}" for line in self.log]
        if self.exit_code:
            found.append(f"the collector ended with {self.exit_code}")
        return found


class _Played:
    """The exchange's controls over HTTP."""

    def __init__(self, rest_url: str) -> None:
        self._url = f"{rest_url}/simulator/"

    def change(self, change: ListingChange) -> int:
        at_ms: int = json.loads(self._post("listings", msgspec.json.encode(change)))["at_ms"]
        return at_ms

    def start(self, fault: Fault) -> None:
        self._post("faults", msgspec.json.encode(fault))

    def _post(self, name: str, body: bytes) -> bytes:
        request = urllib.request.Request(self._url + name, data=body)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=180.0) as response:  # noqa: S310 - loopback
                answer: bytes = response.read()
        except urllib.error.HTTPError as error:
            raise SettingsError(f"{body!r}: {error.read()!r}") from error
        return answer


class Week:
    """A week under way. `truth` is what the exchange has, `events` what has happened."""

    def __init__(
        self,
        options: Options,
        sim: Exchange,
        influx: Influxd | None,
        report: Callable[[str], None],
    ) -> None:
        self._options = options
        self._report = report
        self._sim = sim
        self._influx = influx
        self._journal = options.directory / "journal.db"
        self._log = options.directory / "run.log"
        state = get(sim.rest_url + "/simulator/state").json
        self._ahead_ms = state["exchange_time_ms"] - time.monotonic() * 1_000 * options.speed
        self._until_ms = START_MS + int(options.days * DAY_MS) // MINUTE_MS * MINUTE_MS
        self.truth = Truth(sim.rest_url, START_MS)
        self.events = Events(
            options.seed, _Played(sim.rest_url), _listed(sim.rest_url), NEW, options.every_ms
        )
        self._watch = Watch(self._journal, START_MS, options.speed)
        self._looked_s = 0.0
        self._days: list[Day] = []

    def now_ms(self) -> int:
        """Exchange time."""
        return int(self._ahead_ms + time.monotonic() * 1_000 * self._options.speed)

    def run(self) -> Outcome:
        """See the module."""
        begun_s = time.monotonic()
        whole = int(self._options.days)
        ends = [START_MS + day * DAY_MS for day in range(1, whole + 1)]
        if not ends or ends[-1] < self._until_ms:
            ends.append(self._until_ms)
        settings: dict[str, dict[str, object]] = {
            "exchange": {
                "pairs": "all",
                "contracts": ["perpetual", "tradifi"],
                "timeframes": list(TIMEFRAMES),
            },
            "history": {"days": 2, "weight_per_minute": 2_400},
        }
        if self._influx is not None:
            settings["influxdb"] = {"url": self._influx.url, "api": "v1", "bucket": BUCKET}
        directory = self._options.directory
        config = write_config(
            directory, self._sim.ws_url, self._sim.rest_url, self._journal, **settings
        )
        with Collecting(run_command(config), self._log) as collecting:
            collecting.line("status_url=")
            for number, end_ms in enumerate(ends):
                self._play(collecting, end_ms)
                self._days.append(self._compare(collecting, end_ms, last=number + 1 == len(ends)))
                self._report(_row(self._days[-1]))
            exit_code = collecting.stop(60.0)
            lines = collecting.log.splitlines()
        (directory / "events.txt").write_text("\n".join(self.events.told) + "\n", "utf-8")
        return Outcome(
            self._days,
            {kind: self.events.happened[kind] for kind in dict.fromkeys(KINDS)},
            shown(self._watch.said),
            shown(self._watch.first_reasons),
            shown(self._watch.soon),
            self._watch.with_reasons,
            self._watch.well_while_missing,
            [line for line in lines if "level=ERROR" in line or "Traceback" in line],
            exit_code,
            time.monotonic() - begun_s,
        )

    # --- inside -----------------------------------------------------------------------------------

    def _play(self, collecting: Collecting, end_ms: int) -> None:
        """Let happen what is due until some time after a day's end."""
        calm_ms = min(CALM_MS, int(self._options.days * DAY_MS) // 4)
        begin_ms = START_MS + calm_ms
        while (now_ms := self.now_ms()) < end_ms + AFTER_MS:
            self._tick(collecting, now_ms, may_begin=begin_ms <= now_ms < end_ms - calm_ms)

    def _tick(self, collecting: Collecting, now_ms: int, *, may_begin: bool = False) -> None:
        assert collecting.process.poll() is None, collecting.log[-3_000:]
        self.events.go_on(now_ms, may_begin=may_begin)
        self.truth.finish(self.events.contracts, now_ms)
        if time.monotonic() - self._looked_s >= LOOK_S:
            self._looked_s = time.monotonic()
            answer = collecting.health()
            reasons = [] if not answer.status else collecting.status()["reasons"]
            self._watch.look(answer, reasons, self.events.contracts, now_ms)
        threading.Event().wait(TICK_S)

    def _compare(self, collecting: Collecting, end_ms: int, *, last: bool) -> Day:
        """Compare everything up to a day's end, again and again until it is whole or that is too late."""
        begun_s = time.monotonic()
        contracts = self.events.contracts
        for one in contracts:
            if one.listed_ms < end_ms and not one.final:
                self.truth.fetch(one, end_ms)
        wrong: list[str] = []
        told = Compared()
        limit_s = SHIPPED_S if self._influx is not None else WHOLE_S
        while True:
            told = Compared()
            passed_s = time.monotonic() - begun_s
            wrong = list(self._wrong(end_ms, told))
            if not wrong or passed_s > limit_s:
                break
            # What the bucket is still to be told has its own time.
            if passed_s > WHOLE_S and not all(text.startswith("influx") for text in wrong):
                break
            self._tick(collecting, self.now_ms())
        return Day(
            f"{datetime.fromtimestamp(end_ms / 1_000, UTC):%a %d %H:%M}{' (end)' if last else ''}",
            len(contracts),
            sum(self.events.happened.values()),
            told.candles,
            told.series,
            told.lives,
            told.settled,
            told.downloads,
            round(time.monotonic() - begun_s, 1),
            wrong,
        )

    def _wrong(self, end_ms: int, told: Compared) -> Iterator[str]:
        truth, contracts = self.truth, self.events.contracts
        yield from compare.wrong_candles(
            self._journal, truth, contracts, self.now_ms(), end_ms, told
        )
        yield from compare.wrong_coverage(self._journal, contracts, self.now_ms(), told)
        stores = {"sqlite": f"sqlite:///{self._journal}"}
        if self._influx is not None:
            stores["influx"] = self._influx.url
        for store, url in stores.items():
            try:
                with MarketReader.connect(url, bucket=BUCKET, now_ms=self.now_ms) as reader:
                    for text in self._wrong_read(reader, end_ms, told):
                        yield f"{store}: {text}"
            except ReaderError as error:
                yield f"{store}: {error!r}"

    def _wrong_read(self, reader: MarketReader, end_ms: int, told: Compared) -> Iterator[str]:
        truth, contracts = self.truth, self.events.contracts
        yield from compare.wrong_lives(reader, contracts, self.now_ms(), told)
        yield from compare.wrong_frames(reader, truth, contracts, self.now_ms(), end_ms)
        yield from compare.wrong_settled(reader, truth, contracts, self.now_ms(), end_ms, told)
        yield from compare.wrong_downloads(reader, truth, contracts, self.now_ms, end_ms, told)


def _listed(rest_url: str) -> list[Contract]:
    """The contracts that trade at first, as exchangeInfo has them."""
    rows = {
        f"{row['baseAsset']}/USDT:USDT": row["onboardDate"]
        for row in get(f"{rest_url}/fapi/v1/exchangeInfo").json["symbols"]
        if row["quoteAsset"] == "USDT" and row["contractType"] == "PERPETUAL"
    }
    return [Contract(pair, rows[pair], first=True) for pair in FIRST]


def run_week(
    options: Options, report: Callable[[str], None], look: Callable[[Week], None] = lambda _: None
) -> Outcome:
    """Run it; `report` is told of each day, `look` called while the exchange is still there.

    Raises InfluxdError without an influxd where one is wanted.
    """
    command = python(
        *("-m", CHILD, "simulate_quiet", START_MS, ",".join(FIRST), ",".join(TIMEFRAMES)),
        *(options.speed, options.seed, LIVELINESS),
    )
    with contextlib.ExitStack() as stack:
        influx = None
        if options.influx:
            influx = stack.enter_context(Influxd(options.directory / "influxd"))
            influx.query(f"CREATE DATABASE {BUCKET}")
        sim = stack.enter_context(exchange_of(command, options.directory, options.speed))
        week = Week(options, sim, influx, report)
        outcome = week.run()
        look(week)
        return outcome


_HEAD: Final = (
    "day's end        contracts  events  candles  series  lives  settled  downloads  whole  wrong"
)


def _row(day: Day) -> str:
    return (
        f"{day.at:16} {day.contracts:9}  {day.events:6}  {day.candles:7}  {day.series:6}  {day.lives:5}  "
        f"{day.settled:7}  {day.downloads:9}  {day.whole_s:3.0f} s  {len(day.wrong):5}"
    )


def total(outcome: Outcome) -> str:
    """All in a few lines."""
    happened = ", ".join(f"{kind} {count}" for kind, count in outcome.happened.items())
    last = outcome.days[-1]
    return (
        f"{sum(outcome.happened.values())} events: {happened}\n"
        f"/health, a look a second: {outcome.health}; {outcome.with_reasons} times it was not well while "
        f"something was missing for long, {len(outcome.well_while_missing)} times it was well\n"
        f"while something was missing for 60 exchange seconds it said: {outcome.soon}\n"
        f"its reasons: {outcome.reasons}\n"
        f"{last.candles:,} candles, {last.lives} lives, {last.settled} settlements, {last.series} series "
        f"at the end, {len(outcome.complaints())} not as they should be; {outcome.wall_s / 60:.1f} minutes"
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--speed", type=float, default=240.0, help="exchange seconds a second")
    parser.add_argument("--days", type=float, default=7.0, help="of the exchange")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-influx", action="store_true", help="compare the journal alone")
    parser.add_argument("--keep", type=Path, help="keep journal, logs and events in this directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    # Whoever stops this is to leave no process behind.
    end_with_parent()

    def report(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    with contextlib.ExitStack() as stack:
        directory = given.keep
        if directory is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="marketfeed-week-"))
            directory = Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        options = Options(
            given.speed, given.days, given.seed, directory.absolute(), not given.without_influx
        )
        report(
            f"{given.days:g} days at speed {given.speed:g}: {given.days * 1_440 / given.speed:.0f} min"
        )
        report(_HEAD)
        try:
            outcome = run_week(options, report)
        except InfluxdError as error:
            parser.error(f"no influxd ({error}): --without-influx does without")
    if given.json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    else:
        rows = "\n".join([_HEAD, *map(_row, outcome.days)])
        sys.stdout.write(f"{rows}\n{total(outcome)}\n")
    wrong = outcome.complaints()
    for text in wrong[:SHOWN]:
        report(f"not good: {text}")
    if len(wrong) > SHOWN:
        report(f"not good: {len(wrong) - SHOWN} more")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
