"""What refusals of InfluxDB cost the rows that it takes: real processes, and every row asked for at the end.

    python -m tests.influxdb.refusals [--only NAME]… [--keep DIR] [--json]

* `clash`: a collector (`marketfeed run`) of a simulated exchange, minutes around a Monday's midnight, and a
  bucket in which an older writer has left an integer where we write a float, in one measurement of the old
  week. The lag of all other measurements is from the row's commit to its acknowledgement, by what this
  process sees of the journal and of the requests.
* `too old`: 5,000 points older than what the bucket keeps among 100 that are not, beside a candle every
  0.1 s, in the words of up to 2.7.11 and of later versions. The token may not read buckets, so that their
  expiry is not seen.
* `expiry`: a journal of 400 days, a bucket of 30.

Requests are counted at the tests' 2.x front, before a real influxd 1.6.7.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import msgspec
import uvloop
from aiohttp import web

HERE: Final = Path(__file__).parent
# As pytest finds them.
sys.path.append(str(HERE))

from filled import PAIRS  # noqa: E402 - the directory has to be known first
from front import Front, Rights  # noqa: E402
from influxd import Influxd  # noqa: E402
from shipped import shipping  # noqa: E402

from marketfeed.commands.compare_influxdb import compare  # noqa: E402
from marketfeed.influxdb.admin import InfluxAdmin  # noqa: E402
from marketfeed.influxdb.holds import measurement_of, shard_of, time_of  # noqa: E402
from marketfeed.influxdb.pace import DEFAULT_PACE  # noqa: E402
from marketfeed.journal.batch import Batch  # noqa: E402
from marketfeed.journal.writer import JournalWriter  # noqa: E402
from marketfeed.records import Candle, MarkPrice  # noqa: E402
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS  # noqa: E402
from marketfeed.settings.model import InfluxSettings  # noqa: E402
from tests.faults.lanes import end_with_parent, python  # noqa: E402
from tests.faults.proc_commands import (  # noqa: E402
    Collecting,
    environment,
    exchange_of,
    run_command,
    run_marketfeed,
    write_config,
)
from tests.faults.soak_child import MODULE as CHILD  # noqa: E402
from tests.waiting import until, wait_until  # noqa: E402

BUCKET: Final = "market_data"
CLASHING: Final = "ohlcv_1m"
SPEED: Final = 5.0
BEFORE_S: Final = 150.0
"""Wall seconds until Monday; the rest of the run has as many."""
LAG_S: Final = 2.0
NAMED_S: Final = 30.0
ARRIVED_S: Final = 240.0
NEXT_WEEK_MS: Final = shard_of(1_767_225_600_000, None)[1]


class Check(msgspec.Struct, frozen=True):
    """One thing that was to be shown: what was found, and what is allowed at most (None: it is only told)."""

    what: str
    found: float
    most: float | None

    @property
    def good(self) -> bool:
        """Whether it is so."""
        return self.most is None or self.found <= self.most


class Request(msgspec.Struct, frozen=True):
    """A write: when it was answered (monotonic), how, and the newest time of each measurement in it."""

    at_s: float
    status: int
    newest: dict[str, int]
    lines: int
    is_of_week: bool


class CountingFront(Front):
    """The 2.x front, which notes what each write held."""

    def __init__(self, influxd: Influxd) -> None:
        super().__init__(influxd)
        self.requests: list[Request] = []

    async def _store(
        self, request: web.Request, body: bytes, *, partial: bool = False
    ) -> web.Response:
        response = await super()._store(request, body, partial=partial)
        newest: dict[str, int] = {}
        is_of_week = False
        # A question of rights has none.
        lines = [line for line in body.decode().split("\n") if line.strip()]
        for line in lines:
            name, at_ms = measurement_of(line), time_of(line)
            newest[name] = max(newest.get(name, 0), at_ms)
            is_of_week |= name == CLASHING and at_ms < NEXT_WEEK_MS
        self.requests.append(
            Request(time.monotonic(), response.status, newest, len(lines), is_of_week)
        )
        return response


@contextlib.contextmanager
def server(folder: Path) -> Iterator[CountingFront]:
    """A server with an empty bucket."""
    with Influxd(folder / "influxd") as influxd, CountingFront(influxd) as front:
        front.add_bucket(BUCKET)
        yield front


def settings_of(front: Front, token: str | None = None) -> dict[str, Any]:
    """Settings that ship there."""
    return {
        "url": front.url,
        "org": front.org,
        "token": token or front.token,
        "bucket": BUCKET,
    }


def compared(front: Front, journal: Path) -> tuple[int, int]:
    """How many rows the bucket lacks, and how many are too many."""
    influx = InfluxSettings.model_validate(settings_of(front))

    async def ask() -> tuple[int, int]:
        async with aiohttp.ClientSession() as session:
            admin = InfluxAdmin(influx, session)
            found = await compare(admin, BUCKET, journal, socket.gethostname())
        return found.missing, found.extra

    return asyncio.run(ask())


# --- another type -----------------------------------------------------------------------------------


class Commits:
    """What is newest in a journal, and when that was first seen: a thread that looks 20 times a second."""

    SOURCES: Final = {
        "mark_price": "SELECT time FROM mark_price ORDER BY seq DESC LIMIT 1",
        "funding_rate": "SELECT time FROM funding_rate ORDER BY seq DESC LIMIT 1",
        "ohlcv_3m": "SELECT max(open_time) FROM candle WHERE timeframe_ms = 180000 AND pair_id = "
        "(SELECT min(pair_id) FROM candle)",
    }

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="commits")
        self.seen: list[tuple[str, int, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        last: dict[str, int] = {}
        with contextlib.closing(
            sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10.0)
        ) as db:
            while not self._end.wait(0.05):
                for name, text in self.SOURCES.items():
                    (at_ms,) = db.execute(text).fetchone() or (None,)
                    if at_ms is not None and at_ms > last.get(name, 0):
                        last[name] = at_ms
                        self.seen.append((name, at_ms, time.monotonic()))

    def lag_s(self, requests: list[Request], from_s: float) -> float:
        """The longest from a commit that was seen after `from_s` to its acknowledgement."""
        longest_s = 0.0
        for name, at_ms, seen_s in self.seen:
            if seen_s >= from_s:
                acknowledged = (
                    one.at_s
                    for one in requests
                    if one.status == 204 and one.newest.get(name, 0) >= at_ms
                )
                longest_s = max(longest_s, next(acknowledged, float("inf")) - seen_s)
        return longest_s


def most_in_a_minute(times_s: list[float]) -> int:
    """The most of them within 60 s."""
    return max((sum(1 for other in times_s if 0 <= other - at < 60.0) for at in times_s), default=0)


def clash(folder: Path) -> list[Check]:
    """See the module's docstring."""
    start_ms = NEXT_WEEK_MS - int(BEFORE_S * SPEED * 1_000)
    pairs = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT")
    command = python(
        *("-m", CHILD, "simulate_quiet", start_ms, ",".join(pairs), "1m,3m", SPEED, 1, 20.0)
    )
    journal = folder / "journal.db"
    with server(folder) as front, exchange_of(command, folder, SPEED) as sim:
        database = front.buckets[BUCKET].database
        clashing = f"{CLASHING},pair=OLD/USDT:USDT close=6i {NEXT_WEEK_MS - DAY_MS}"
        front.influxd.write(database, [clashing])
        influx = settings_of(front)
        token = influx.pop("token")
        config = write_config(folder, sim.ws_url, sim.rest_url, journal, influxdb=influx)
        env = environment(MARKETFEED_INFLUXDB__TOKEN=token)

        def stored(condition: str) -> int:
            where = f"pair != 'OLD/USDT:USDT' AND {condition}"
            text = f"SELECT count(close) FROM {CLASHING} WHERE {where}"  # noqa: S608 - ours
            found = front.influxd.query(text, database)
            return sum(row[1] for series in found for row in series["values"])

        of_week, after = f"time < {NEXT_WEEK_MS}ms", f"time >= {NEXT_WEEK_MS}ms"
        with Collecting(run_command(config), folder / "collector.log", env) as collector:
            started_s = time.monotonic()

            def is_named() -> bool:
                return f"{CLASHING} of " in collector.health().body.decode()

            wait_until(lambda: any(one.status == 422 for one in front.requests))
            refused_s = time.monotonic()
            wait_until(is_named)
            named_s = time.monotonic() - refused_s
            with Commits(journal) as commits:
                from_s = time.monotonic()
                wait_until(lambda: stored(after) > 0, timeout_s=4 * BEFORE_S)
                # As long again, of the new week.
                until_s = time.monotonic() + max(61.0, BEFORE_S - 60.0)
                wait_until(lambda: time.monotonic() >= until_s, timeout_s=4 * BEFORE_S)
                still_named = is_named()
                waiting = stored(of_week)
                refusals_s = [
                    one.at_s for one in front.requests if one.is_of_week and one.at_s > from_s
                ]
                lag_s = commits.lag_s(
                    [*front.requests], from_s
                )  # those of the last second are on their way
            first = [one for one in front.requests if one.is_of_week and one.at_s <= from_s]
            front.influxd.query(f"DROP MEASUREMENT {CLASHING}", database)
            mended_s = time.monotonic()
            wait_until(lambda: stored(of_week) > 0, timeout_s=ARRIVED_S)
            wait_until(lambda: not is_named(), timeout_s=ARRIVED_S)
            arrived_s = time.monotonic() - mended_s
            # The new week's were dropped with the rest.
            done = run_marketfeed("setup", "--ship-again", "--config", config, env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            wait_until(lambda: "everything is shipped again" in collector.log)
            wait_until(lambda: collector.status()["shipping"]["unshipped"] == 0)
            refused = collector.status()["shipping"]["refused"]
            assert collector.stop() == 0, collector.log
            ran_s = time.monotonic() - started_s
        missing, extra = compared(front, journal)
    return [
        Check("wall seconds that the collector ran", round(ran_s), None),
        Check("requests for the refused week until it was held", len(first), 20),
        Check("wall s from the first refusal until /health named it", round(named_s, 1), NAMED_S),
        Check("requests for it in a minute afterwards, at most", most_in_a_minute(refusals_s), 2),
        Check("lag of all other measurements at most, wall s", round(lag_s, 2), LAG_S),
        Check("its rows of the old week that were stored before it was mended", waiting, 0),
        Check("not named any more while they waited", int(not still_named), 0),
        Check("wall s from the mend until they had come", round(arrived_s, 1), ARRIVED_S),
        Check("lines put aside", refused, 0),
        Check("rows that the bucket lacks at the end", missing, 0),
        Check("rows too many", extra, 0),
    ]


# --- too old ----------------------------------------------------------------------------------------


async def written(writer: JournalWriter, *records: Candle | MarkPrice) -> None:
    """Commit records."""
    batch = Batch()
    batch.extend(records)
    await writer.call(lambda journal: journal.write(batch))


def minute_candle(at_ms: int) -> Candle:
    """One of a minute."""
    end_ms = at_ms + MINUTE_MS
    return Candle("LIVE/USDT:USDT", "1m", at_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, True, end_ms)


async def live(writer: JournalWriter, front: CountingFront, is_over: Callable[[], bool]) -> float:
    """Commit a candle every 0.1 s until it is over; returns the longest until one was acknowledged."""
    commits: list[tuple[int, float]] = []
    ending_s = time.monotonic() + 240.0
    at_ms = time.time_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS
    while not is_over() or len(commits) < 50:
        if time.monotonic() > ending_s:
            raise TimeoutError("not shipped")
        at_ms += MINUTE_MS
        await written(writer, minute_candle(at_ms))
        commits.append((at_ms, time.monotonic()))
        await asyncio.sleep(0.1)
    await until(lambda: any(one.newest.get(CLASHING, 0) >= at_ms for one in front.requests))
    acknowledged = [one for one in front.requests if one.status == 204]
    return max(
        next(one.at_s for one in acknowledged if one.newest.get(CLASHING, 0) >= at_ms) - at_s
        for at_ms, at_s in commits
    )


def too_old(folder: Path, *, old_words: bool) -> list[Check]:
    """See the module's docstring."""
    now_ms = time.time_ns() // 1_000_000
    # One for each second: of more the journal keeps the first.
    second_ms = now_ms // 1_000 * 1_000
    old = [MarkPrice("OLD/USDT:USDT", second_ms - DAY_MS + n * 1_000, 7, 8) for n in range(5_000)]
    good = [MarkPrice("GOOD/USDT:USDT", second_ms - n * 1_000, 7.0, 8.0) for n in range(100)]
    mixed = [one for n in range(100) for one in (*old[n * 50 : n * 50 + 50], good[n])]

    async def run(front: CountingFront) -> tuple[float, int]:
        journal = folder / "journal.db"
        settings = settings_of(front, "writer")
        async with shipping(journal, settings, DEFAULT_PACE, holds=True) as (writer, shipper):
            await written(writer, *mixed)
            lag_s = await live(writer, front, lambda: shipper.refused == len(old))
        return lag_s, shipper.refused

    with server(folder) as front:
        front.old_words = old_words
        front.expire(BUCKET, 3_600)
        front.tokens["writer"] = Rights(read=frozenset(), manage=False, orgs=False)
        lag_s, refused = uvloop.run(run(front))
        # All but those of live candles alone.
        requests = [one for one in front.requests if one.status != 204 or one.lines >= 50]
        text = "SELECT count(mark_price) FROM mark_price WHERE pair = 'GOOD/USDT:USDT'"
        found = front.influxd.query(text, front.buckets[BUCKET].database)
    of = "in the old words" if old_words else "in the new words"
    stored = found[0]["values"][0][1] if found else 0
    return [
        Check(f"{of}: requests with old points", len(requests), 20),
        Check(f"{of}: good points that lack", len(good) - stored, 0),
        Check(f"{of}: old points neither stored nor put aside", len(old) - refused, 0),
        Check(f"{of}: live lag at most, wall s", round(lag_s, 2), LAG_S),
    ]


def expiry(folder: Path) -> list[Check]:
    """See the module's docstring."""
    now_ms = time.time_ns() // 1_000_000
    hour_ms = now_ms // HOUR_MS * HOUR_MS

    def candles() -> Iterator[Candle]:
        for number in range(400 * 24):
            at_ms = hour_ms - (number + 1) * HOUR_MS
            for pair in PAIRS:
                end_ms = at_ms + HOUR_MS
                yield Candle(pair, "1h", at_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, True, end_ms)

    async def run(front: CountingFront) -> float:
        journal = folder / "journal.db"
        settings = settings_of(front)
        async with shipping(journal, settings, DEFAULT_PACE, holds=True) as (writer, shipper):
            await written(writer, *candles())
            return await live(
                writer, front, lambda: shipper.shipped_below() > 400 * 24 * len(PAIRS)
            )

    with server(folder) as front:
        front.expire(BUCKET, 30 * 86_400)
        lag_s = uvloop.run(run(front))
        found = front.influxd.query(
            "SELECT count(close) FROM ohlcv_1h", front.buckets[BUCKET].database
        )
        refused = sum(one.status != 204 for one in front.requests)
    # The bucket's end goes on while it runs.
    since_ms = time.time_ns() // 1_000_000 - hour_ms
    kept = (30 * DAY_MS - MINUTE_MS - since_ms) // HOUR_MS
    return [
        Check("refused requests", refused, 0),
        Check("candles of 30 days that lack", kept * len(PAIRS) - found[0]["values"][0][1], 0),
        Check("live lag at most, wall s", round(lag_s, 2), LAG_S),
    ]


SCENARIOS: Final[dict[str, Callable[[Path], list[Check]]]] = {
    "clash": clash,
    "too old": lambda folder: [
        *too_old(folder / "old", old_words=True),
        *too_old(folder / "new", old_words=False),
    ],
    "expiry": expiry,
}


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.influxdb.refusals")
    parser.add_argument("--only", action="append", default=[], choices=SCENARIOS)
    parser.add_argument("--keep", type=Path, help="keep journals and logs there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    end_with_parent()
    outcomes: dict[str, list[Check]] = {}
    with contextlib.ExitStack() as stack:
        home = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in given.only or SCENARIOS:
            folder = home.absolute() / name.replace(" ", "-")
            for part in (folder, folder / "old", folder / "new"):
                part.mkdir(parents=True, exist_ok=True)
            outcomes[name] = SCENARIOS[name](folder)
            if not given.json:
                for one in outcomes[name]:
                    verdict = "good" if one.good else f"NOT GOOD, at most {one.most}"
                    sys.stdout.write(f"{name:8} {one.what:72} {one.found:10,g}  {verdict}\n")
                sys.stdout.flush()
    if given.json:
        shown = {
            name: [{**msgspec.structs.asdict(one), "good": one.good} for one in found]
            for name, found in outcomes.items()
        }
        sys.stdout.write(json.dumps({"refusals": shown}, indent=2) + "\n")
    return 0 if all(one.good for found in outcomes.values() for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
