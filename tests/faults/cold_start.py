"""Cold starts around a minute's boundary: when feeders have their 499 candles, and what `/health` answers.

`python -m tests.faults.cold_start --moments 12 --pairs 40` runs a simulated exchange in real time, and beside
it, some at a time, collectors that begin with a fresh journal at moments around a minute's boundary. A feeder
asks for the newest 499 closed candles of every pair, over and over. Exit 1 when they are not whole within
45 s of a start, or when a collector calls itself well while one lacks.
"""

import argparse
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from reader import MarketReader, ReaderError
from reader.feeder import FUTURES, Download, Feeder
from tests.faults.proc_commands import (
    Collecting,
    Exchange,
    exchange,
    get,
    run_command,
    write_config,
)

MOMENTS_S: Final = (12.0, 1.0, 58.0, 4.0, 7.0, 59.5, 2.5, 30.0, 56.0, 10.0, 45.0, 14.5, 0.0, 20.0)
"""Seconds after a minute's boundary, the most telling first; most are close to it."""
WHOLE_WITHIN_S: Final = 45.0
WATCHED_S: Final = 60.0
"""Wall seconds that a collector gets in all: it is to be well by then, too."""
STAYS_S: Final = 3.0
"""For so long after all is whole and well it is looked at."""
CLOSED: Final = 499
LOOK_EVERY_S: Final = 0.25
APART_S: Final = 4
"""Every so many moments, by their time, begin in one minute: beside each other, but not at once."""
_MINUTE_S: Final = 60.0


class Start(msgspec.Struct, frozen=True):
    """What came of one cold start, `at_s` seconds after a minute's boundary.

    Wall seconds from the start of the process: `whole_s` until a feeder had all candles of all pairs (None:
    not within `WATCHED_S`), `well_s` until its state was `well` from then on. `well_while_lacking` is what
    the feeder lacked at looks before and after which it was `well`, the first of them.
    """

    at_s: float
    pairs: int
    whole_pairs: int
    whole_s: float | None
    well_s: float | None
    well_while_lacking: str
    not_well: str

    @property
    def good(self) -> bool:
        """Whether bots were served in time, and nothing lacked behind a collector that was well."""
        in_time = self.whole_s is not None and self.whole_s <= WHOLE_WITHIN_S
        return in_time and self.well_s is not None and not self.well_while_lacking


def moments(count: int) -> list[float]:
    """So many moments, at most all of them."""
    return sorted(MOMENTS_S[:count])


def campaign(
    directory: Path, chosen: Sequence[float], pairs: int, report_progress: Callable[[str], None]
) -> list[Start]:
    """Start at each of the chosen moments, those far apart within the same minute."""
    together = math.ceil(len(chosen) / APART_S)
    with exchange(directory, pairs, speed=1.0, timeframes="1m") as sim:
        found: list[Start] = []
        for first in range(together):
            begun_s = time.monotonic()
            group = chosen[first::together]
            # Counted from the same boundary, so that they begin apart.
            wait_s = _MINUTE_S - exchange_s(sim) % _MINUTE_S
            if wait_s > _MINUTE_S - min(group) - 2.0:
                wait_s -= _MINUTE_S
            with ThreadPoolExecutor(len(group)) as pool:
                starts = [
                    pool.submit(start_at, directory, sim, at_s, pairs, begun_s + wait_s + at_s)
                    for at_s in group
                ]
                for start in starts:
                    found.append(start.result())
                    report_progress(row(found[-1]))
    return sorted(found, key=lambda one: one.at_s)


def exchange_s(sim: Exchange) -> float:
    """The exchange's time (s)."""
    now_ms: int = get(sim.rest_url + "/simulator/state").json["exchange_time_ms"]
    return now_ms / 1000


def start_at(directory: Path, sim: Exchange, at_s: float, pairs: int, due_s: float) -> Start:
    """Start a collector with a fresh journal at `due_s` (monotonic), and look until all is whole and well."""
    home = directory / f"at-{at_s:04.1f}"
    home.mkdir()
    config = write_config(
        home,
        sim.ws_url,
        sim.rest_url,
        exchange={"pairs": "all", "timeframes": ["1m"], "archive_url": sim.rest_url},
        history={"days": 1},
    )
    ahead_ms = int(exchange_s(sim) * 1000) - time.time() * 1000
    threading.Event().wait(max(0.0, due_s - time.monotonic()))
    begun_s = time.monotonic()
    whole_pairs, whole_s, well_s = 0, None, None
    well_while_lacking = not_well = ""
    with Collecting(run_command(config), home / "run.log") as collecting:
        while (passed_s := time.monotonic() - begun_s) < WATCHED_S:
            before = _health(collecting)
            complete, lacking = _look(home / "journal.db", pairs, ahead_ms)
            after = _health(collecting)
            whole_pairs = len(complete)
            if lacking:
                whole_s = None
                if before == after == "":
                    well_while_lacking = well_while_lacking or f"{passed_s:.1f} s: {lacking}"
            elif whole_s is None:
                whole_s = time.monotonic() - begun_s
            if after:
                well_s, not_well = None, after
            elif well_s is None:
                well_s = time.monotonic() - begun_s
            if (
                whole_s is not None
                and well_s is not None
                and passed_s > max(whole_s, well_s) + STAYS_S
            ):
                break
            threading.Event().wait(LOOK_EVERY_S)
        assert collecting.stop() == 0, collecting.log
    return Start(at_s, pairs, whole_pairs, whole_s, well_s, well_while_lacking, not_well)


def _health(collecting: Collecting) -> str:
    """What else than well it is; empty if it is."""
    if "status_url=" not in collecting.log:
        return "not listening"
    answer = collecting.health()
    return "" if answer.json["state"] == "well" else answer.body.decode()


def _look(journal: Path, pairs: int, ahead_ms: float) -> tuple[list[str], str]:
    """The pairs whose 499 closed candles a feeder has, and what is wrong with another one, if anything."""

    def now_ms() -> int:
        return int(time.time() * 1000 + ahead_ms)

    try:
        with MarketReader.connect(f"sqlite:///{journal}", now_ms=now_ms) as market:
            names = [info.pair for info in market.pairs()]
            # One row more: that of the forming candle.
            asked = [Download(pair, "1m", FUTURES, None, CLOSED + 1) for pair in names]
            answers = dict(zip(names, Feeder(market, now_ms).answer(asked), strict=True))
    except ReaderError as error:
        return [], str(error)
    complete = [pair for pair, rows in answers.items() if not isinstance(rows, ReaderError)]
    refused = [str(rows) for rows in answers.values() if isinstance(rows, ReaderError)]
    if not refused and len(complete) < pairs:
        refused = [f"{len(complete)} of {pairs} pairs are in the catalog"]
    return complete, refused[0] if refused else ""


_HEAD: Final = "after the boundary  pairs whole  whole after  well after  well while one lacked"


def row(start: Start) -> str:
    """One line of the table."""
    whole, well = (
        "never" if value is None else f"{value:.1f} s" for value in (start.whole_s, start.well_s)
    )
    return (
        f"{start.at_s:16.1f} s  {f'{start.whole_pairs}/{start.pairs}':>11}  {whole:>11}  {well:>10}  "
        f"{start.well_while_lacking or '-'}"
    )


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cold_start", description=__doc__)
    parser.add_argument("--moments", type=int, default=12, choices=range(1, len(MOMENTS_S) + 1))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marketfeed-cold-") as name:
        found = campaign(Path(name), moments(given.moments), given.pairs, _print_progress)
    if given.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write("\n".join([_HEAD, *map(row, found)]) + "\n")
    bad = [start for start in found if not start.good]
    for start in bad:
        sys.stderr.write(f"not good: {start}\n")
    return 1 if bad else 0


def _print_progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
