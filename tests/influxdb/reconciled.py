"""What a bucket loses comes back by itself: real losses of a real influxd, at the pace of a collector.

    python -m tests.influxdb.reconciled [--only NAME]… [--quick] [--json]

Each scenario has a journal, its shipper and its comparison in this process, and an influxd 1.6.7 of its own.
Seconds are wall seconds from the loss until every row is in the bucket again. `--quick`: a tenth of the rows,
and of the time between looks.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import uvloop

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "reader")]

from comparing import Comparing, candles, comparing, losing, marks
from influxd import Influxd

from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.reconciler import DEFAULT_PACE, ComparePace
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

DATABASE: Final = "market_data"
WITHIN_S: Final = 180.0
EMPTIED_WITHIN_S: Final = 300.0
LIVE_LAG_S: Final = 2.0
GIVE_UP_S: Final = 900.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a scenario. `within_s` is what was promised, `sent` how many lines went for it."""

    name: str
    rows: int
    lost: int
    whole_s: float | None = None
    within_s: float | None = None
    sent: int = 0
    live_lag_s: float | None = None
    note: str = ""
    good: bool = True


class Bench:
    """An influxd, and the size and pace of what is tried on it."""

    def __init__(self, home: Path, *, quick: bool) -> None:
        self.home = home
        self.influxd = Influxd(home / "influxd")
        self.quick = quick
        self.pace = faster(DEFAULT_PACE, 10) if quick else DEFAULT_PACE

    def settings(self, url: str = "") -> dict[str, str]:
        """The settings of the bucket."""
        return {"url": url or self.influxd.url, "api": "v1", "bucket": DATABASE}

    def of(self, rows: int) -> int:
        """So many, or a tenth of it."""
        return max(1, rows // 10) if self.quick else rows

    def count(self, measurement: str) -> int:
        """How many points there are."""
        field = "mark_price" if measurement == "mark_price" else "trades"
        text = f'SELECT count("{field}") FROM "{measurement}"'  # noqa: S608 - constants
        found = self.influxd.query(text, DATABASE)
        return int(found[0]["values"][0][1]) if found else 0

    def delete(self, text: str) -> None:
        """Delete as a hand does."""
        self.influxd.query(f"DELETE FROM {text}", DATABASE)  # noqa: S608

    async def until_count(self, measurement: str, rows: int) -> float:
        """Wait until there are so many; returns for how long (wall s)."""
        started_s = time.monotonic()
        while await asyncio.to_thread(self.count, measurement) < rows:
            if time.monotonic() - started_s > GIVE_UP_S:
                raise TimeoutError(f"{measurement}: {self.count(measurement)} of {rows} points")
            await asyncio.sleep(0.5)
        return time.monotonic() - started_s

    @contextlib.asynccontextmanager
    async def collector(
        self, now_ms: Callable[[], int], name: str = "one", url: str = ""
    ) -> AsyncIterator[Comparing]:
        """A collector's shipper and comparison, at the pace of a collector."""
        path, ship = self.home / f"{name}.db", Pace()
        async with comparing(path, self.settings(url), now_ms, ship, self.pace) as one:
            yield one


def faster(pace: ComparePace, times: float) -> ComparePace:
    """The same, so many times as fast."""
    fields = ("look_every_s", "again_after_s", "round_every_s", "small_every_s", "wait_s")
    return msgspec.structs.replace(pace, **{name: getattr(pace, name) / times for name in fields})


def pairs(count: int) -> list[str]:
    """Names of pairs."""
    return [f"P{number}/USDT:USDT" for number in range(count)]


def wall_ms() -> int:
    """Now."""
    return time.time_ns() // 1_000_000


async def shipped(one: Comparing, *, looked: bool = True) -> None:
    """Wait until all is acknowledged, and has been looked at since."""
    deadline_s = time.monotonic() + GIVE_UP_S
    while not one.is_shipped and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    looks = one.reconciler.report().looks
    while looked and one.reconciler.report().looks == looks and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    if time.monotonic() >= deadline_s:
        raise TimeoutError(f"not shipped, or not looked at: {one.reconciler.report()}")


def judged(
    name: str, rows: int, lost: int, whole_s: float, within_s: float, one: Comparing, note: str = ""
) -> Outcome:
    """An outcome of which one time counts."""
    return Outcome(
        name=name,
        rows=rows,
        lost=lost,
        whole_s=round(whole_s, 1),
        within_s=within_s,
        sent=one.shipper.mends.sent,
        note=note,
        good=whole_s <= within_s,
    )


async def deleted(bench: Bench) -> Outcome:
    """200 of 800 candles of the last two hours deleted by a hand."""
    start_ms = wall_ms() // MINUTE_MS * MINUTE_MS - 110 * MINUTE_MS
    async with bench.collector(wall_ms) as one:
        await one.write(candles(pairs(8), start_ms, 100))
        await shipped(one)
        end_ms = start_ms + 25 * MINUTE_MS
        bench.delete(f"ohlcv_1m WHERE time < {end_ms}ms")
        whole_s = await bench.until_count("ohlcv_1m", 800)
        return judged(
            "200 of 800 candles of the last hours deleted", 800, 200, whole_s, WITHIN_S, one
        )


async def old(bench: Bench) -> Outcome:
    """200 candles of a day long ago deleted, of 30 days; rounds every three minutes, not every hour."""
    bench.pace = faster(DEFAULT_PACE, 20)
    day_ms = wall_ms() // DAY_MS * DAY_MS - 30 * DAY_MS
    async with bench.collector(wall_ms) as one:
        await one.write(candles(pairs(4), day_ms, 30 * 96, "15m"))
        await shipped(one)
        end_ms = day_ms + 5 * DAY_MS + 50 * 15 * MINUTE_MS
        start_ms = day_ms + 5 * DAY_MS
        bench.delete(f"ohlcv_15m WHERE time >= {start_ms}ms AND time < {end_ms}ms")
        rows = 4 * 30 * 96
        whole_s = await bench.until_count("ohlcv_15m", rows)
        within_s = bench.pace.round_every_s + 60
        name = "200 candles of a day long ago deleted (rounds 20 times as often)"
        return judged(name, rows, 200, whole_s, within_s, one)


async def lost(bench: Bench) -> Outcome:
    """Ten seconds of 204 without storing, at speed 20: 40 pairs with marks and candles."""
    speed, began_ms, began_s = 20, wall_ms(), time.monotonic()
    names = pairs(40)

    def now_ms() -> int:
        return began_ms + int((time.monotonic() - began_s) * 1000) * speed

    async with (
        losing(bench.influxd) as server,
        bench.collector(now_ms, url=server.url) as one,
    ):

        async def feed(seconds: float) -> None:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                second_ms = now_ms() // SECOND_MS * SECOND_MS
                await asyncio.sleep(1.0)
                count = (now_ms() - second_ms) // SECOND_MS
                await one.write(marks(names, second_ms, count))

        await feed(10)
        server.loses = True
        await feed(10)
        server.loses = False
        rest = asyncio.create_task(feed(20))
        started_s = time.monotonic()
        await rest
        await shipped(one, looked=False)
        with contextlib.closing(sqlite3.connect(bench.home / "one.db")) as db:
            (rows,) = db.execute("SELECT count(*) FROM mark_price").fetchone()
        await bench.until_count("mark_price", rows)
        whole_s = time.monotonic() - started_s
        name = "204 and lost for 10 s at speed 20"
        return judged(name, rows, server.lost, whole_s, WITHIN_S, one)


async def emptied(bench: Bench) -> Outcome:
    """A bucket of 3.5 M rows emptied; live rows beside."""
    names = pairs(164)
    count = bench.of(21_600)
    start_ms = wall_ms() // DAY_MS * DAY_MS - 3 * DAY_MS
    async with bench.collector(wall_ms) as one:
        for name in names:
            await one.write(marks([name], start_ms, count))
        rows = len(names) * count
        await shipped(one)
        bench.influxd.query('DROP MEASUREMENT "mark_price"', DATABASE)
        lags: list[float] = []
        done = asyncio.Event()
        live = asyncio.create_task(_live(bench, one, lags, done))
        whole_s = await bench.until_count("mark_price", rows)
        done.set()
        await live
        found = judged("an emptied bucket", rows, rows, whole_s, EMPTIED_WITHIN_S, one)
        lag_s = max(lags, default=0.0)
        return msgspec.structs.replace(
            found, live_lag_s=round(lag_s, 2), good=found.good and lag_s <= LIVE_LAG_S
        )


async def _live(bench: Bench, one: Comparing, lags: list[float], done: asyncio.Event) -> None:
    """A candle now and then, timed until it can be read."""
    minute_ms = wall_ms() // MINUTE_MS * MINUTE_MS - 60 * MINUTE_MS
    for number in range(10_000):
        if done.is_set():
            return
        at_ms = minute_ms + number * SECOND_MS * 5
        await one.write(
            candles(["LIVE/USDT:USDT"], at_ms // MINUTE_MS * MINUTE_MS, 1, trades=number + 1)
        )
        started_s = time.monotonic()
        while True:
            found = await asyncio.to_thread(
                bench.influxd.query,
                f"SELECT trades FROM ohlcv_1m WHERE trades = {number + 1}",  # noqa: S608
                DATABASE,
            )
            if found:
                break
            await asyncio.sleep(0.05)
        lags.append(time.monotonic() - started_s)
        await asyncio.sleep(1.0)


async def truncated(bench: Bench) -> Outcome:
    """A server killed, and the last second of its write-ahead log gone."""
    names = pairs(164)
    start_ms = wall_ms() // MINUTE_MS * MINUTE_MS - 100 * MINUTE_MS
    async with bench.collector(wall_ms) as one:
        await one.write(candles(names, start_ms, 20))
        await shipped(one)
        wals = list((bench.home / "influxd" / "wal").rglob("*.wal"))
        sizes = {path: path.stat().st_size for path in wals}
        await one.write(candles(names, start_ms + 20 * MINUTE_MS, 5))
        await shipped(one, looked=False)
        bench.influxd.kill()
        for path in (bench.home / "influxd" / "wal").rglob("*.wal"):
            with path.open("r+b") as file:
                file.truncate(sizes.get(path, 0))
        bench.influxd.start()
        there = bench.count("ohlcv_1m")
        rows = 164 * 25
        whole_s = await bench.until_count("ohlcv_1m", rows)
        name = "killed (SIGKILL), the wal's last second gone"
        return judged(name, rows, rows - there, whole_s, WITHIN_S, one)


async def late(bench: Bench) -> Outcome:
    """An older line carried out 90 s late, after its correction."""
    at_ms = wall_ms() // MINUTE_MS * MINUTE_MS - 30 * MINUTE_MS

    def trades() -> int:
        found = bench.influxd.query("SELECT trades FROM ohlcv_1m", DATABASE)
        return int(found[0]["values"][0][1]) if found else 0

    async with (
        losing(bench.influxd) as server,
        bench.collector(wall_ms, url=server.url) as one,
    ):
        await one.write(marks(pairs(1), at_ms, 10))
        await shipped(one)
        server.delay_s = 90.0
        sent_s = time.monotonic()
        await one.write(candles(pairs(1), at_ms, 1, trades=5))
        await asyncio.sleep(2)
        await one.write(candles(pairs(1), at_ms, 1, trades=7))
        while trades() != 5:
            if time.monotonic() - sent_s > GIVE_UP_S:
                raise TimeoutError("the late line was not carried out")
            await asyncio.sleep(0.1)
        undone_s = time.monotonic()
        while trades() != 7:
            if time.monotonic() - undone_s > GIVE_UP_S:
                raise TimeoutError("not right again")
            await asyncio.sleep(0.1)
        whole_s = time.monotonic() - undone_s
        return judged("an older line carried out 90 s late", 1, 1, whole_s, WITHIN_S, one)


async def two(bench: Bench) -> Outcome:
    """Two collectors with other histories, cadences and values, at rest for sixty looks."""
    names, hour_ms = pairs(20), wall_ms() // HOUR_MS * HOUR_MS - HOUR_MS
    day_ms = wall_ms() // DAY_MS * DAY_MS - 5 * DAY_MS
    now_ms = wall_ms()
    bench.pace = faster(DEFAULT_PACE, 100 if bench.quick else 20)
    async with (
        bench.collector(lambda: now_ms) as one,
        bench.collector(lambda: now_ms, "two") as other,
    ):
        await one.write(candles(names, day_ms, 5 * 96, "15m"))
        await other.write(candles(names, day_ms + 2 * DAY_MS, 2 * 96, "15m", trades=4))
        await one.write(marks(names, hour_ms, 3_000))
        await other.write(marks(names, hour_ms, 1_000, 3_000, index=9.0))
        for each in (one, other, one, other):
            await shipped(each)
        sent, looks = 0, one.reconciler.report().looks
        await _rested(one, other)
        sent = one.shipper.mends.sent + other.shipper.mends.sent
        lines = one.shipper.lines + other.shipper.lines
        looks = one.reconciler.report().looks
        while one.reconciler.report().looks < looks + 60:
            await asyncio.sleep(0.2)
        again = one.shipper.mends.sent + other.shipper.mends.sent - sent
        more = one.shipper.lines + other.shipper.lines - lines
        rows = bench.count("mark_price")
        bench.delete(f"mark_price WHERE time = {hour_ms + 4_000}ms")
        whole_s = await bench.until_count("mark_price", rows)
        found = judged(
            "two collectors on one bucket, 60 looks at rest", rows, 20, whole_s, WITHIN_S, one
        )
        note = f"{again} rows and {more} lines sent again at rest; then 20 rows lost"
        return msgspec.structs.replace(found, note=note, good=found.good and again == 0)


async def _rested(*collectors: Comparing) -> None:
    """Wait until nothing has been sent again for twenty looks of each."""
    while True:
        sent = [each.shipper.mends.sent for each in collectors]
        looks = [each.reconciler.report().looks + 20 for each in collectors]
        while any(
            each.reconciler.report().looks < wanted
            for each, wanted in zip(collectors, looks, strict=True)
        ):
            await asyncio.sleep(0.1)
        if [each.shipper.mends.sent for each in collectors] == sent:
            return


async def cost(bench: Bench) -> Outcome:
    """What comparing costs at 164 pairs, 4 timeframes and marks at 1 s."""
    names, now_ms = pairs(164), wall_ms()
    hour_ms = now_ms // HOUR_MS * HOUR_MS
    seconds = bench.of((now_ms - hour_ms) // SECOND_MS + 2 * 3_600)
    rows = 0
    async with bench.collector(wall_ms) as one:
        for name in names:
            await one.write(
                marks([name], now_ms // SECOND_MS * SECOND_MS - seconds * SECOND_MS, seconds)
            )
            rows += seconds
            for timeframe, count in (("1m", 2_880), ("3m", 960), ("15m", 192), ("1h", 48)):
                some = bench.of(count)
                await one.write(candles([name], hour_ms - 2 * DAY_MS, some, timeframe))
                rows += some
        await shipped(one)
        before = one.reconciler.report()
        started_s, cpu_s, theirs_s = time.monotonic(), _own_cpu_s(), _cpu_s(bench.influxd.pid)
        looks = 1 if bench.quick else 3
        while one.reconciler.report().looks < before.looks + looks:
            await asyncio.sleep(0.5)
        took_s = time.monotonic() - started_s
        after = one.reconciler.report()
        ours = (_own_cpu_s() - cpu_s) / took_s
        theirs = (_cpu_s(bench.influxd.pid) - theirs_s) / took_s
        asked = (after.asked_s - before.asked_s) / took_s
        note = (
            f"ours {100 * ours:.1f} % of a core, the server {100 * theirs:.1f} %, asked "
            f"{100 * asked:.1f} % of the time; {after.tiles - before.tiles} tiles in {took_s:.0f} s"
        )
        good = after.wrong == 0 and (bench.quick or ours <= 0.02)
        return Outcome(name="cost at rest, 164 pairs", rows=rows, lost=0, note=note, good=good)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


SCENARIOS: Final[dict[str, Callable[[Bench], Awaitable[Outcome]]]] = {
    one.__name__: one for one in (deleted, old, lost, emptied, truncated, late, two, cost)
}


def tried(name: str, *, quick: bool) -> Outcome:
    """Run a scenario in a directory and on a server of its own."""
    home = Path(tempfile.mkdtemp(prefix="reconciled-"))
    try:
        bench = Bench(home, quick=quick)
        with bench.influxd as influxd:
            influxd.query(f"CREATE DATABASE {DATABASE}")
            return uvloop.run(_one(SCENARIOS[name], bench))
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def _one(scenario: Callable[[Bench], Awaitable[Outcome]], bench: Bench) -> Outcome:
    try:
        return await scenario(bench)
    except TimeoutError as error:
        return Outcome(name=scenario.__name__, rows=0, lost=0, note=str(error), good=False)


def main() -> int:
    """Run the chosen scenarios; exit 1 if one did not keep what is promised."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.influxdb.reconciled", description=__doc__
    )
    parser.add_argument("--only", action="append", choices=tuple(SCENARIOS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to try it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    for name in arguments.only or SCENARIOS:
        outcome = tried(name, quick=arguments.quick)
        found.append(outcome)
        if not arguments.json:
            sys.stdout.write(f"{'good' if outcome.good else 'BAD '} {outcome}\n")
            sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps({"reconciled": msgspec.to_builtins(found)}) + "\n")
    return 0 if all(one.good for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
