"""Two collector processes, one bucket: no mark candle is fought over, though the exchange corrects one.

One of the two is given another close of an hour than the other, until that is in the bucket: they
disagree, and its audit finds out. Everything that either writes is counted on its way to influxd.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
import uvloop
from aiohttp import web
from influxd import Influxd

from marketfeed.schema import DAY_MS, HOUR_MS, MARK_1H, floor_to
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.faults.proc_commands import Collecting, run_command, run_marketfeed, write_config
from tests.faults.scripted_rest import Asked, scripted_rest_of
from tests.waiting import until

PAIRS: Final = 3
DAYS: Final = 1
SPEED: Final = 300.0
START_MS: Final = floor_to(1_790_006_400_000, HOUR_MS) + 50 * 60_000
"""Ten minutes before the turn of an hour."""
CORRECTED_MS: Final = floor_to(START_MS, HOUR_MS)
"""The hour that is over when the collectors have started: its first answer differs."""

Point = tuple[str, int]
"""A pair and an hour's open time."""
Prices = tuple[float, ...]


class Written(NamedTuple):
    """A mark candle that was written to the bucket."""

    point: Point
    prices: Prices


class Relay:
    """An InfluxDB's address of one collector's own: passes all on, and keeps which mark candles it wrote."""

    def __init__(self, influxd: Influxd, session: aiohttp.ClientSession) -> None:
        self.written: list[Written] = []
        self.url = ""
        self._influxd = influxd
        self._session = session

    async def answer(self, request: web.Request) -> web.Response:
        """Pass a request on, and its answer back."""
        body = await request.read()  # unpacked, if it was packed
        passed = {"Content-Encoding", "Content-Length", "Host", "Transfer-Encoding"}
        headers = {name: text for name, text in request.headers.items() if name not in passed}
        async with self._session.request(
            request.method, self._influxd.url + request.path_qs, data=body, headers=headers
        ) as response:
            answer = await response.read()
            if request.path == "/write" and response.status == 204:
                lines = body.decode().splitlines()
                self.written += [_written(one) for one in lines if one.startswith(f"{MARK_1H},")]
            return web.Response(
                status=response.status, body=answer, content_type=response.content_type
            )

    def since(self, number: int) -> Counter[Point]:
        """How often each point was written after the first `number` writes."""
        return Counter(one.point for one in self.written[number:])


def _written(line: str) -> Written:
    head, fields, time = line.rsplit(" ", 2)
    prices = dict(field.split("=") for field in fields.split(","))
    pair = head.partition("pair=")[2]
    return Written((pair, int(time)), tuple(float(prices[name]) for name in _NAMES))


_NAMES: Final = ("open", "high", "low", "close")


@contextlib.asynccontextmanager
async def relay(influxd: Influxd) -> AsyncIterator[Relay]:
    """Serve one on loopback."""
    async with aiohttp.ClientSession() as session:
        made = Relay(influxd, session)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", made.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield made
        finally:
            await runner.cleanup()


def in_journal(path: Path) -> dict[Point, Prices]:
    """Every mark candle of a journal."""
    columns = ", ".join(_NAMES)
    text = f"SELECT pair, open_time, {columns} FROM mark_1h JOIN pair ON pair.id = pair_id"  # noqa: S608 - constants
    # Its collector may just be making it.
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
    ):
        return {(pair, at): tuple(prices) for pair, at, *prices in db.execute(text)}
    return {}


def in_bucket(influxd: Influxd, database: str) -> dict[Point, Prices]:
    """Every mark candle of the bucket."""
    text = f"SELECT {', '.join(_NAMES)} FROM {MARK_1H} GROUP BY pair"  # noqa: S608 - constants
    return {
        (series["tags"]["pair"], at): tuple(prices)
        for series in influxd.query(text, database)
        for at, *prices in series["values"]
    }


class Corrected:
    """Answers to markPriceKlines: the close of one hour is another one until `is_corrected`."""

    def __init__(self, symbol: str, is_corrected: Callable[[], bool]) -> None:
        self.given: Prices | None = None
        self._symbol = symbol
        self._is_corrected = is_corrected

    def __call__(self, asked: Asked, body: Any) -> Any:
        """The rows as they are given."""
        if asked.endpoint == "markPriceKlines" and asked.query["symbol"] == self._symbol:
            for row in body:
                if row[0] == CORRECTED_MS and not self._is_corrected():
                    row[2] = row[4] = str(float(row[2]) * 1.01)
                    self.given = tuple(map(float, row[1:5]))
        return body


class Truth:
    """Answers to markPriceKlines as they are, all kept."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], Prices] = {}

    def __call__(self, asked: Asked, body: Any) -> Any:
        """The rows as they are given."""
        if asked.endpoint == "markPriceKlines":
            for row in body:
                self.rows[asked.query["symbol"], row[0]] = tuple(map(float, row[1:5]))
        return body


def _text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.long(50)
def test_no_row_is_fought_over(influxd: Influxd, database: str, tmp_path: Path) -> None:
    def config(folder: Path, rest_url: str, ws_url: str, influx_url: str) -> Path:
        folder.mkdir()
        return write_config(
            folder,
            ws_url,
            rest_url,
            exchange={
                "pairs": {"top": PAIRS}, "timeframes": ["15m"], "mark_price_every": "3s"
            },
            history={"days": DAYS, "weight_per_minute": 2_400},
            influxdb={"url": influx_url, "api": "v1", "bucket": database},
        )  # fmt: skip

    async def run() -> None:
        options = SimulatorOptions(pairs=PAIRS, timeframes=("15m",), speed=SPEED, start_ms=START_MS)
        async with (
            Simulator(options) as sim,
            scripted_rest_of(sim) as one_rest,
            scripted_rest_of(sim) as two_rest,
            relay(influxd) as first,
            relay(influxd) as second,
        ):
            relays = (first, second)
            pair_of = {one.symbol: one.pair for one in sim.market.instruments}
            symbol = sim.market.instruments[0].symbol
            corrected = (pair_of[symbol], CORRECTED_MS)
            one_rest.changed = answers = Corrected(
                symbol, lambda: Written(corrected, answers.given or ()) in first.written
            )
            two_rest.changed = truths = Truth()
            await until(lambda: sim.now_ms() >= CORRECTED_MS + HOUR_MS)
            configs = [
                config(tmp_path / name, rest.url, sim.ws_url, each.url)
                for name, rest, each in zip(
                    ("one", "two"), (one_rest, two_rest), relays, strict=True
                )
            ]
            journals = [one.with_name("journal.db") for one in configs]

            def truth() -> dict[Point, Prices]:
                return {(pair_of[name], at): prices for (name, at), prices in truths.rows.items()}

            def agree(until_ms: int) -> bool:
                """Whether both journals and the bucket have each hour up to there, and as it is now."""
                true = truth()
                found = [*map(in_journal, journals), in_bucket(influxd, database)]
                newest = {(pair, until_ms) for pair in pair_of.values()}
                return all(
                    newest <= each.keys() and all(true.get(point) == each[point] for point in each)
                    for each in found
                )

            async def agreed(until_ms: int) -> None:
                while not await asyncio.to_thread(agree, until_ms):
                    assert sim.now_ms() < until_ms + 24 * HOUR_MS, "they do not agree"
                    await asyncio.sleep(0.1)

            async def started(number: int, name: str) -> Collecting:
                log = configs[number].with_name(name)
                return stack.enter_context(Collecting(run_command(configs[number]), log))

            with contextlib.ExitStack() as stack:
                one, two = await started(0, "1.log"), await started(1, "1.log")
                await agreed(CORRECTED_MS)
                assert answers.given is not None
                # The next hour is fetched by both as it ends; then one of them is killed, and goes on.
                next_ms = floor_to(sim.now_ms(), HOUR_MS)
                await agreed(next_ms)
                two.process.kill()
                await asyncio.to_thread(two.process.wait)
                two = await started(1, "2.log")
                after_ms = floor_to(sim.now_ms(), HOUR_MS)
                await agreed(after_ms)
                numbers = [len(each.written) for each in relays]
                last_ms = floor_to(sim.now_ms(), HOUR_MS)
                await agreed(last_ms)
                audits = [
                    (await asyncio.to_thread(each.status))["history"]["audit"]
                    for each in (one, two)
                ]
                assert [await asyncio.to_thread(each.stop) for each in (one, two)] == [0, 0]
            assert [audit["unmended"] for audit in audits] == [[], []]
            assert [audit["missing"] for audit in audits] == [0, 0]
            # What has been agreed on once is written no more: only what has come since, and what the one that
            # was killed had not seen acknowledged.
            for number, each in zip(numbers, relays, strict=True):
                fresh = each.since(number)
                assert {at for _, at in fresh} <= set(range(next_ms, sim.now_ms(), HOUR_MS))
                assert set(fresh.values()) == {1}
            true = truth()
            wrong = [
                [one for one in each.written if one.prices != true[one.point]] for each in relays
            ]
            assert wrong == [[Written(corrected, answers.given)], []]
            counts = [each.since(0) for each in relays]
            # It had to be written again once, and by the one that had it; all else was by each only once,
            # but what the one that was killed had not seen acknowledged.
            assert counts[0].pop(corrected) == 2
            assert set(counts[0].values()) == {1}
            assert set(counts[1].values()) <= {1, 2}
            # The exchange goes on meanwhile: of what has closed since nobody has anything.
            since, until_end = map(_text, (last_ms - DAYS * DAY_MS // 2, last_ms + HOUR_MS))
            for path in configs:
                command = (
                    "audit", "--config", path, "--all", "--json",
                    "--since", since, "--until", until_end,
                )  # fmt: skip
                done = await asyncio.to_thread(run_marketfeed, *command)
                report = json.loads(done.stdout)
                assert (done.returncode, report["different"], report["missing"]) == (0, 0, 0), (
                    report
                )
                compared = [s["compared"] for s in report["series"] if s["timeframe"] == MARK_1H]
                assert len(compared) == PAIRS
                assert min(compared) >= 12 * DAYS

    uvloop.run(run())
