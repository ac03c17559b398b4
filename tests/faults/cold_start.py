"""Cold starts around a boundary: when feeders have their newest candles, and what `/health` says meanwhile.

`python -m tests.faults.cold_start --moments 40 --pairs 164 --lanes 3` runs, for each moment, a simulated
exchange in real time, whose clock is set before a boundary of 1m, 3m, 5m or 1h, and a collector that begins
with a fresh journal. A feeder asks for the newest closed candles of every pair and timeframe: 499, or as many
as a day has. Exit 1 when they are not whole in time, by what fetching them weighs, or when a collector calls
itself well while one lacks. `--days 30 --timed` only tells how long it takes.
"""

import argparse
import contextlib
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.budget import KEPT_FREE, klines_weight
from marketfeed.grid import TILE_CANDLES
from marketfeed.settings.model import HistorySettings
from reader import MarketReader, ReaderError
from reader.feeder import FUTURES, LATE_S, Download, Feeder
from tests.faults.lanes import Ended, Part, Progress, end_with_parent, python, run_parts
from tests.faults.proc_commands import (
    Collecting,
    Exchange,
    exchange_of,
    get,
    run_command,
    write_config,
)
from tests.faults.soak_child import MODULE as SIMULATOR

MODULE: Final = "tests.faults.cold_start"
TIMEFRAMES: Final = ("1m", "3m", "5m", "15m", "1h")
BOUNDARIES: Final = {"1h": 60, "1m": 7, "5m": 25, "3m": 9}
"""What closes, beside what is shorter and divides it, and a minute of the hour at which it does."""
OFFSETS_S: Final = (1.0, -2.0, 58.0, 4.0, 74.25, 7.0, 30.0, -0.5, 12.0, 44.0)
"""When a start is, after the boundary (s), the most telling first."""
APART_S: Final = 0.25
"""The starts of one boundary are so much later than those of the one before."""
MOMENTS: Final = len(BOUNDARIES) * len(OFFSETS_S)
LEAD_S: Final = 4.0
"""The exchange's clock begins so long before the start."""
PER_MINUTE: Final = HistorySettings().weight_per_minute * (1.0 - KEPT_FREE)
"""Weight that filling may use (`history.weight_per_minute`)."""
SPARE_S: Final = 75.0
"""For the start itself, and for the turn of a minute in which the weight is used up."""
WATCHED_S: Final = 120.0
"""Wall seconds that a collector gets beyond what filling all of it weighs: it is to be well by then."""
STAYS_S: Final = 5.0
"""For so long beyond the next boundary after all is whole and well it is looked at."""
LOOK_EVERY_S: Final = 1.0
LOOK_SELDOM_S: Final = 8.0
ENDS_S: Final = 120.0
"""Wall seconds for starting and stopping both processes."""


class Moment(NamedTuple):
    """A start, `at_s` seconds after a boundary of a timeframe."""

    boundary: str
    at_s: float


class Filled(NamedTuple):
    """What is to be filled: of so many pairs, so many days of these timeframes."""

    pairs: int
    days: int = 1
    timeframes: tuple[str, ...] = TIMEFRAMES

    def closed(self, timeframe: str) -> int:
        """How many closed candles a feeder asks for: all that are there in any case, and 499 at most."""
        return min(TILE_CANDLES, self._candles(timeframe) - 1)

    @property
    def newest_s(self) -> float:
        """Wall seconds that the newest candles of all series weigh."""
        return self._s(lambda candles: klines_weight(min(TILE_CANDLES, candles)))

    @property
    def all_s(self) -> float:
        """Wall seconds that all of it weighs."""

        def weight(candles: int) -> int:
            full, rest = divmod(candles, TILE_CANDLES)
            return full * klines_weight(TILE_CANDLES) + (klines_weight(rest) if rest else 0)

        return self._s(weight)

    def _candles(self, timeframe: str) -> int:
        return self.days * schema.DAY_MS // schema.SERIES_MS[timeframe]

    def _s(self, weight: Callable[[int], int]) -> float:
        series = (*self.timeframes, schema.MARK_1H)
        weights = sum(weight(self._candles(timeframe)) for timeframe in series)
        return self.pairs * weights / PER_MINUTE * 60.0


class Start(msgspec.Struct, frozen=True):
    """What came of one cold start, `at_s` seconds after a boundary of the timeframe `boundary`.

    Wall seconds from the start of the process: `whole_s` until a feeder had all candles of all series (None:
    it never had), to be at most `within_s` (None: only timed), `well_s` until its state was `well` from then
    on. `well_looks` counts the looks before and after which it was `well`, `well_while_lacking` is what the
    feeder lacked at the first of these at which it did. `not_well` is what was said last instead of `well`.
    """

    boundary: str
    at_s: float
    pairs: int
    whole_series: int
    series: int
    whole_s: float | None
    within_s: float | None
    well_s: float | None
    well_looks: int
    well_while_lacking: str
    not_well: str

    @property
    def good(self) -> bool:
        """Whether bots were served in time, and nothing lacked behind a collector that was well."""
        if self.whole_s is None or self.well_while_lacking:
            return False
        if self.within_s is None:
            return True
        return self.whole_s <= self.within_s and self.well_s is not None


def moments(count: int) -> list[Moment]:
    """So many moments, the most telling first, those of the boundaries by turns."""
    every = [
        Moment(boundary, at_s + APART_S * number)
        for at_s in OFFSETS_S
        for number, boundary in enumerate(BOUNDARIES)
    ]
    return every[:count]


def time_of(moment: Moment) -> int:
    """The exchange time (ms) of such a moment that is within an hour of this host's clock."""
    hour_ms = schema.floor_to(int(time.time() * 1000), schema.HOUR_MS)
    boundary_ms = hour_ms + BOUNDARIES[moment.boundary] * schema.MINUTE_MS
    return boundary_ms + int(moment.at_s * 1000)


def start_at(directory: Path, moment: Moment, filled: Filled, *, timed: bool = False) -> Start:
    """Start a collector with a fresh journal at that moment, and look until all is whole and well.

    If it is only `timed`, until all is whole.
    """
    start_ms = time_of(moment)
    clock_ms = start_ms - int(LEAD_S * 1000)
    names = ",".join(filled.timeframes)
    command = python("-m", SIMULATOR, "simulate_from", clock_ms, filled.pairs, names)
    with exchange_of(command, directory) as sim:
        return _Watch(directory, moment, filled, sim, start_ms, timed=timed).run()


class _Watch:
    """One cold start under way."""

    def __init__(
        self,
        directory: Path,
        moment: Moment,
        filled: Filled,
        sim: Exchange,
        start_ms: int,
        *,
        timed: bool,
    ) -> None:
        self._moment = moment
        self._filled = filled
        self._timed = timed
        self._journal = directory / "journal.db"
        self._log = directory / "run.log"
        self._config = write_config(
            directory,
            sim.ws_url,
            sim.rest_url,
            exchange={"pairs": "all", "timeframes": list(filled.timeframes)},
            history={"days": filled.days},
        )
        now_ms: int = get(sim.rest_url + "/simulator/state").json["exchange_time_ms"]
        self._ahead_ms = now_ms - time.time() * 1000
        self._due_s = time.monotonic() + (start_ms - self._now_ms()) / 1000
        self._series = filled.pairs * len(filled.timeframes)

    def run(self) -> Start:
        """See `start_at`."""
        filled, moment = self._filled, self._moment
        late_s = time.monotonic() - self._due_s
        assert late_s <= 0.0, f"the exchange was ready {late_s:.1f} s after the moment"
        threading.Event().wait(-late_s)
        begun_s = time.monotonic()
        whole_series, whole_s, well_s = 0, None, None
        well_looks = 0
        well_while_lacking = not_well = ""
        most_s = ends_s = filled.all_s + WATCHED_S
        asked_s = 0.0
        with Collecting(run_command(self._config), self._log) as collecting:
            while (passed_s := time.monotonic() - begun_s) < ends_s:
                before = _health(collecting)
                whole_series = self._whole_series()
                lacking = ""
                if before and whole_series < self._series:
                    lacking = f"{whole_series} of {self._series} series are whole"
                elif not before or whole_s is None or passed_s - asked_s > LOOK_SELDOM_S:
                    lacking, asked_s = self._ask(), passed_s
                after = _health(collecting)
                if before == after == "":
                    well_looks += 1
                    if lacking:
                        well_while_lacking = well_while_lacking or f"{passed_s:.1f} s: {lacking}"
                if lacking:
                    whole_s = None
                elif whole_s is None:
                    whole_s = time.monotonic() - begun_s
                if after:
                    well_s, not_well, ends_s = None, after, most_s
                elif well_s is None:
                    well_s = time.monotonic() - begun_s
                    # Until something has closed while it was well.
                    left_s = 60.0 - self._now_ms() % schema.MINUTE_MS / 1000
                    ends_s = min(ends_s, well_s + left_s + LATE_S + STAYS_S)
                if self._timed and whole_s is not None:
                    break
                threading.Event().wait(LOOK_EVERY_S if after else self._until_look_s())
            assert collecting.stop() == 0, collecting.log
        return Start(
            moment.boundary,
            moment.at_s,
            filled.pairs,
            whole_series,
            self._series,
            whole_s,
            None if self._timed else filled.newest_s + SPARE_S,
            well_s,
            well_looks,
            well_while_lacking,
            not_well,
        )

    def _until_look_s(self) -> float:
        """When it is well: often around a boundary, as asking for everything costs seconds of CPU."""
        in_minute_s = self._now_ms() % schema.MINUTE_MS / 1000
        if in_minute_s < LATE_S + STAYS_S:
            return LOOK_EVERY_S
        return min(LOOK_SELDOM_S, 60.0 - in_minute_s)

    def _now_ms(self) -> int:
        """Exchange time, by the bot's clock."""
        return int(time.time() * 1000 + self._ahead_ms)

    def _whole_series(self) -> int:
        """How many series have all candles that a feeder asks for, as far as they are due by now."""
        due_ms = self._now_ms() - int(LATE_S * 1000)
        try:
            with closing(sqlite3.connect(f"file:{self._journal}?mode=ro", uri=True)) as db:
                pairs = [number for (number,) in db.execute("SELECT id FROM pair")]
                return sum(
                    self._stored(db, number, timeframe, due_ms) >= self._filled.closed(timeframe)
                    for number in pairs
                    for timeframe in self._filled.timeframes
                )
        except sqlite3.Error:
            # It is not made yet.
            return 0

    def _stored(self, db: sqlite3.Connection, pair: int, timeframe: str, due_ms: int) -> int:
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        until_ms = schema.floor_to(due_ms, length_ms)
        since_ms = until_ms - self._filled.closed(timeframe) * length_ms
        count: int = db.execute(
            """SELECT count(*) FROM candle
               WHERE pair_id = ? AND timeframe_ms = ? AND open_time >= ? AND open_time < ?""",
            (pair, length_ms, since_ms, until_ms),
        ).fetchone()[0]
        return count

    def _ask(self) -> str:
        """What is wrong with an answer that a feeder gets, if anything is."""
        filled = self._filled
        try:
            with MarketReader.connect(f"sqlite:///{self._journal}", now_ms=self._now_ms) as market:
                names = [info.pair for info in market.pairs()]
                feeder = Feeder(market, self._now_ms)
                for timeframe in filled.timeframes:
                    # One row more: that of the forming candle.
                    count = filled.closed(timeframe) + 1
                    asked = [Download(name, timeframe, FUTURES, None, count) for name in names]
                    for rows in feeder.answer(asked):
                        if isinstance(rows, ReaderError):
                            return str(rows)
        except ReaderError as error:
            return str(error)
        if len(names) < filled.pairs:
            return f"{len(names)} of {filled.pairs} pairs are in the catalog"
        return ""


def _health(collecting: Collecting) -> str:
    """What else than well it is; empty if it is."""
    if collecting.logged("status_url=") is None:
        return "not listening"
    answer = collecting.health()
    if not answer.status:
        return "no answer"
    return "" if answer.json["state"] == "well" else answer.body.decode()


def campaign(
    directory: Path,
    chosen: Sequence[Moment],
    filled: Filled,
    lanes: int,
    *,
    timed: bool,
) -> tuple[list[Start], list[str]]:
    """Start at all of these moments; what came of them, and what the others died of."""
    found: list[Start] = []
    broken: list[str] = []
    progress = Progress(len(chosen))

    def on_ended(ended: Ended) -> None:
        try:
            found.append(msgspec.json.decode(ended.output, type=Start))
        except msgspec.DecodeError:
            broken.append(f"{ended.part.name} ended with {ended.code}:\n{ended.words}")
            progress.ended(f"{ended.part.name} broke")
            return
        progress.ended(row(found[-1]))

    parts = []
    for number, moment in enumerate(chosen):
        home = directory / f"start-{number + 1:02}"
        home.mkdir(parents=True)
        command = python(
            *("-m", MODULE, "--one", number, "--pairs", filled.pairs, "--days", filled.days),
            *("--timeframes", ",".join(filled.timeframes), "--keep", home),
            *(["--timed"] if timed else []),
        )
        name = f"start at {moment.boundary} {moment.at_s:+.2f} s"
        parts.append(Part(name, command, home / "start.log"))
    run_parts(parts, lanes, filled.all_s + WATCHED_S + ENDS_S, on_ended)
    return sorted(found, key=lambda one: (one.boundary, one.at_s)), broken


_HEAD: Final = (
    "boundary  after it  series whole  whole after   at most  well after  looks  well while lacking"
)


def row(start: Start) -> str:
    """One line of the table."""
    whole, within, well = (
        "-" if value is None else f"{value:.1f} s"
        for value in (start.whole_s, start.within_s, start.well_s)
    )
    return (
        f"{start.boundary:>8}  {start.at_s:+6.2f} s  {f'{start.whole_series}/{start.series}':>12}  "
        f"{whole:>11}  {within:>8}  {well:>10}  {start.well_looks:5}  {start.well_while_lacking or '-'}"
    )


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--moments", type=int, default=12, choices=range(1, MOMENTS + 1))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--days", type=int, default=1, help="of history")
    parser.add_argument("--timeframes", default=",".join(TIMEFRAMES))
    parser.add_argument("--lanes", type=int, default=1, help="starts side by side")
    parser.add_argument("--timed", action="store_true", help="judge nothing, end when it is whole")
    parser.add_argument("--keep", type=Path, help="keep journals and logs in this directory")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    # Whoever stops this is to leave no process behind.
    end_with_parent()
    filled = Filled(given.pairs, given.days, tuple(given.timeframes.split(",")))
    if given.one is not None:
        start = start_at(given.keep, moments(MOMENTS)[given.one], filled, timed=given.timed)
        sys.stdout.write(msgspec.json.encode(start).decode())
        return 0 if start.good else 1
    chosen = moments(given.moments)
    with contextlib.ExitStack() as stack:
        directory = given.keep
        if directory is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="marketfeed-cold-"))
            directory = Path(name)
        found, broken = campaign(
            directory.absolute(), chosen, filled, given.lanes, timed=given.timed
        )
    if given.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write("\n".join([_HEAD, *map(row, found)]) + "\n")
    bad = [start for start in found if not start.good]
    for start in bad:
        sys.stderr.write(f"not good: {start}\n")
    for text in broken:
        sys.stderr.write(f"not good: {text}\n")
    return 1 if bad or broken else 0


if __name__ == "__main__":
    sys.exit(main())
