"""Filling history against the simulated exchange and archives: all of it, once, within the limits."""

import asyncio
import contextlib
import logging
import math
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web

from marketfeed import schema
from marketfeed.binance.archive import TERMS
from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import SILENCE_S, BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.commands.history import AuditRequest, run_audit, run_backfill
from marketfeed.errors import JournalError
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import look_through
from marketfeed.grid import TILE_CANDLES, TimeRange, missing
from marketfeed.history.archive_fill import Source
from marketfeed.history.backfill import (
    AGAIN_S,
    AT_ONCE,
    DOUBTED_FOR_S,
    PROGRESS_S,
    Backfill,
    HistoryReport,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import BELIEVED_FOR_MS, LATE_FOR_MS, Hole, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader
from tests.waiting import until

log = logging.getLogger(__name__)

START_MS = 1_792_800_020_000  # 2026-10-24, 20 s past midnight
LENGTH_MS = 3 * schema.MINUTE_MS
SPEED = 60.0


def made(open_ms: int) -> Candle:
    return Candle(
        ONE.pair, "3m", open_ms, 1.0, 2.0, 0.5, 1.5, 1.0, 1.5, 0.5, 1, True, open_ms + LENGTH_MS
    )


def settings_for(path: Path, sim: Simulator, **sections: dict[str, Any]) -> Settings:
    plain: dict[str, dict[str, Any]] = {
        "exchange": {
            "ws_url": sim.ws_url,
            "rest_url": sim.rest_url,
            "archive": True,
            "archive_url": sim.rest_url,
            "pairs": "all",
            "timeframes": ["3m"],
        },
        "journal": {"path": str(path)},
        "status": {"port": 0},
    }
    for name, section in sections.items():
        plain[name] = plain.get(name, {}) | section
    return Settings.model_validate(plain)


async def fill(settings: Settings, days: int, source: Source = "rest") -> HistoryReport:
    outcome = await run_backfill(settings, days, None, source, lambda *_: None)
    return outcome.history


async def require_whole(settings: Settings, days: float, until_ms: int | None = None) -> None:
    """Compare everything with the exchange's REST."""
    request = AuditRequest(days=days, until_ms=until_ms, weight_per_minute=2_400)
    report = await run_audit(settings, request, lambda _: None)
    assert report.errors == []
    assert (report.missing, report.different) == (0, 0)
    assert report.compared == report.expected > 0


@contextlib.asynccontextmanager
async def simulated(pairs: int = 3, **options: Any) -> AsyncIterator[Simulator]:
    chosen = {"pairs": pairs, "timeframes": ("1m",), "speed": SPEED, **options}
    if chosen["speed"] == 1.0:
        # No candle closes within the next minutes, between a filling and a look at it.
        chosen = {"start_ms": START_MS, **chosen}
    async with Simulator(SimulatorOptions(**chosen)) as sim:
        yield sim


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_cold_start_costs_what_it_must_and_stays_within_the_set_weight(path: Path) -> None:
    """MARKETFEED_COLD_START=164x30 shows the whole of it (minutes): 58 of weight a pair."""
    size = os.environ.get("MARKETFEED_COLD_START", "6x5")
    pairs, _, days = size.partition("x")
    weight = 1_200 if size != "6x5" else 60
    speed = float(os.environ.get("MARKETFEED_COLD_START_SPEED", "60"))

    async def run() -> None:
        async with simulated(int(pairs), speed=speed) as sim:
            settings = settings_for(path, sim, history={"weight_per_minute": weight})
            before_ms = sim.now_ms()
            report = await fill(settings, int(days))
            took_s = (sim.now_ms() - before_ms) / 1_000
            assert report.complete
            assert report.pairs_done == int(pairs)
            assert sim.rest.weight.most_used <= weight
            # 480 candles a day, 499 of them for a weight of 2; what is left over may cost 1.
            requests = math.ceil(int(days) * 480 / 499)
            klines = sim.rest.requests["klines"]
            assert klines == int(pairs) * requests
            assert sim.rest.weight.total <= klines * 2 + 10
            log.warning(
                "pairs=%s days=%s candles=%d requests=%d weight=%d most_in_a_minute=%d exchange_s=%.0f",
                pairs,
                days,
                report.stored,
                klines,
                sim.rest.weight.total,
                sim.rest.weight.most_used,
                took_s,
            )
            if weight == 1_200:
                assert took_s <= 600
                return
            # Nothing is left to ask for a second time, but what has closed since.
            again = await fill(settings, int(days))
            assert again.complete
            assert again.candles <= int(pairs) * 10
            await require_whole(settings, int(days), before_ms)

    uvloop.run(run())


def test_readers_see_the_newest_candles_of_all_series_first(path: Path) -> None:
    async def run() -> None:
        async with simulated(3, speed=1.0) as sim:
            settings = settings_for(
                path,
                sim,
                exchange={"timeframes": ["1m", "3m"]},
                history={"weight_per_minute": 2_400},
            )
            assert (await fill(settings, 4)).complete
            with contextlib.closing(sqlite3.connect(path)) as db:
                rows = db.execute(
                    "SELECT pair_id, timeframe_ms, open_time, seq FROM candle"
                ).fetchall()
            newest: dict[tuple[int, int], int] = {}
            for pair_id, length_ms, open_ms, _ in rows:
                key = pair_id, length_ms
                newest[key] = max(newest.get(key, 0), open_ms)
            assert len(newest) == 6
            # The third request of a series is stored after the first one of each: eight are under way.
            third = min(seq for p, n, ms, seq in rows if ms < newest[p, n] - 2 * 499 * n)
            first = max(seq for p, n, ms, seq in rows if ms > newest[p, n] - 499 * n)
            assert first < third
            with MarketReader.connect(f"sqlite:///{path}", now_ms=sim.now_ms) as reader:
                frame = reader.get_ohlcv("BTC/USDT:USDT", "3m", 500)
                assert len(frame) == 500
                assert frame.attrs["missing"] == []

    uvloop.run(run())


def test_only_what_is_missing_is_asked_and_nothing_stored_is_touched(path: Path) -> None:
    async def run() -> None:
        async with simulated(2, speed=1.0) as sim:
            settings = settings_for(path, sim, history={"weight_per_minute": 2_400})
            assert (await fill(settings, 3)).complete
            # A worse candle and a better one than the exchange has, and three holes.
            pair = "BTC/USDT:USDT"
            with Journal.open(path) as journal:
                stored = journal.candles(pair, "3m", 0, 2**62)
                batch = Batch()
                batch.candles = [
                    msgspec.structs.replace(stored[700], close=stored[700].high, trades=10**6)
                ]
                journal.write(batch)
            with contextlib.closing(sqlite3.connect(path)) as db:
                for first, last in ((0, 9), (800, 801), (1_100, 1_105)):
                    db.execute(
                        """DELETE FROM candle WHERE open_time BETWEEN ? AND ?
                           AND pair_id = (SELECT id FROM pair WHERE pair = ?)""",
                        (stored[first].open_time_ms, stored[last].open_time_ms, pair),
                    )
                db.commit()
            asked = sim.rest.requests["klines"]
            report = await fill(settings, 3)
            assert report.complete
            assert report.candles == report.stored == 10 + 2 + 6
            # The two holes near each other are one request.
            assert sim.rest.requests["klines"] == asked + 2
            now = JournalView(path).candles(pair, "3m", TimeRange(0, 2**62))
            assert now[:700] == stored[:700]
            assert now[700].trades == 10**6
            assert now[701:] == stored[701:]

    uvloop.run(run())


def test_a_backfill_takes_no_promise_back_and_fills_no_more_than_its_own_days(path: Path) -> None:
    """A collector that is to keep more has nothing to promise anew, and nothing is forgotten meanwhile."""

    async def run() -> None:
        async with simulated(1, speed=1.0) as sim:
            settings = settings_for(path, sim, history={"weight_per_minute": 2_400})
            assert (await fill(settings, 2)).stored == pytest.approx(960, abs=1)
            # As a collector that was stopped early: three more days are promised and missing.
            with Journal.open(path) as journal:
                (key,) = journal.coverage
                longer = Promise(*key, sim.now_ms(), 5 * schema.DAY_MS)
                journal.promise([longer])
                promised = journal.coverage[key]
                assert len(promised.holes) == 1
            asked = sim.rest.requests["klines"]
            report = await fill(settings, 1)
            assert (report.state, report.stored, report.days) == ("complete", 0, 1)
            assert sim.rest.requests["klines"] == asked
            assert JournalView(path).coverage()[key] == promised
            # More than that, and it is kept by the collector, too.
            report = await fill(settings, 4)
            assert report.complete
            assert report.stored == pytest.approx(960, abs=1)
            (hole,) = JournalView(path).coverage()[key].holes
            assert hole.end_ms - hole.start_ms == pytest.approx(schema.DAY_MS, abs=LENGTH_MS)

    uvloop.run(run())


@pytest.mark.parametrize("speed", [1.0, 600.0])
def test_a_backfill_ends_with_what_it_began_with(path: Path, speed: float) -> None:
    """What closes meanwhile is not waited for, however fast that goes on."""

    async def run() -> None:
        async with simulated(3, speed=speed) as sim:
            settings = settings_for(
                path,
                sim,
                exchange={"timeframes": ["1m", "3m"]},
                history={"weight_per_minute": 2_400},
            )
            assert (await fill(settings, 2)).complete
            assert (await fill(settings, 2)).complete

    uvloop.run(run())


def test_months_and_days_of_the_archive_with_holes_in_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def run() -> None:
        async with simulated(1, speed=1.0) as sim:
            settings = settings_for(path, sim, exchange={"timeframes": ["3m", "1h"]})
            assert sim.archive is not None
            # One is broken on the way, the newest days are not there yet: REST has both.
            sim.archive.corrupt.add("BTCUSDT-3m-2026-10-12.zip")
            report = await fill(settings, 40, "auto")
            assert report.complete
            assert report.files_refused == 1
            assert report.files == sim.archive.served - 1
            # Of 3m September as a month, and October's days but the newest two and the broken one.
            # Of 1h September; a day of it is fetched from REST for less.
            assert 20 <= report.files <= 24
            # The newest of both series, the broken day, the newest days, and October of 1h.
            assert sim.rest.requests["klines"] <= 2 + 2 + 2 + 2
            assert 40 * (480 + 24) - 4 <= report.stored <= 40 * (480 + 24)
            await require_whole(settings, 40)

    uvloop.run(run())
    refused = [r.getMessage() for r in caplog.records if "refused, REST instead" in r.getMessage()]
    assert len(refused) == 1
    assert "BTCUSDT-3m-2026-10-12.zip: sha256" in refused[0]


@pytest.mark.parametrize(
    ("setting", "source", "used"),
    [
        (False, "auto", False),
        (False, "archive", True),
        (True, "auto", True),
        (True, "rest", False),
    ],
)
def test_the_archive_is_used_as_the_operator_says_and_its_terms_are_named(
    path: Path, caplog: pytest.LogCaptureFixture, *, setting: bool, source: Source, used: bool
) -> None:
    async def run() -> None:
        async with simulated(1, speed=1.0) as sim:
            settings = settings_for(path, sim, exchange={"archive": setting})
            report = await fill(settings, 10, source)
            assert report.complete
            assert sim.archive is not None
            assert (sim.archive.asked > 0) == (report.files > 0) == used
            await require_whole(settings, 10)

    uvloop.run(run())
    assert caplog.text.count(TERMS) == used


def test_an_archive_that_is_not_available_costs_nothing_but_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with simulated(1, speed=1.0) as sim:
            settings = settings_for(
                path,
                sim,
                exchange={"archive_url": "http://127.0.0.1:1"},
                history={"weight_per_minute": 2_400},
            )
            report = await fill(settings, 14, "archive")
            assert report.complete
            assert report.files == 0
            await require_whole(settings, 14)

    uvloop.run(run())
    assert caplog.text.count("archive cannot be fetched, REST instead") == 1


def test_another_exchange_than_the_archives_is_filled_from_rest_alone(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with simulated(1, speed=1.0) as sim:
            settings = settings_for(
                path,
                sim,
                exchange={"archive_url": "https://data.binance.vision"},
                history={"weight_per_minute": 2_400},
            )
            report = await fill(settings, 5, "archive")
            assert report.complete
            assert report.files == report.files_absent == 0

    uvloop.run(run())
    assert TERMS not in caplog.text


# --- an exchange that a test makes ----------------------------------------------------------------


class Scripted:
    """Klines of one pair from `begins_ms` on, but for `holes`; `status` other than 200 refuses."""

    def __init__(self, begins_ms: int, holes: tuple[TimeRange, ...] = ()) -> None:
        self.begins_ms = begins_ms
        self.empty: set[int] = set()
        """Numbers of requests that are answered without any candle."""
        self.limited: dict[int, int] = {}
        """Number of a request -> the status that it is answered with; go on after a second, it says."""
        self.speed = 1.0
        self.odd: set[int] = set()
        """Open times of rows that have no volume, of any symbol or of one."""
        self.odd_of = ""
        self.asked_s: list[float] = []
        self.holes = holes
        self.asked: list[TimeRange] = []
        self.fail_next = 0
        self.status = 200
        self.on_request: Callable[[], Awaitable[None] | None] = lambda: None
        self.now_ms = NOW_MS
        self.symbols: list[str] = []
        self.series: list[tuple[Instrument, tuple[str, ...]]] = []
        """What is filled."""

    def is_odd(self, open_ms: int, symbol: str) -> bool:
        """Whether a row has no volume."""
        return open_ms in self.odd and self.odd_of in ("", symbol)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer /fapi/v1/klines and time."""
        if request.path.endswith("/time"):
            return web.json_response({"serverTime": self.now_ms, "speed": self.speed})
        self.symbols.append(request.query["symbol"])
        if (waiting := self.on_request()) is not None:
            await waiting
        start_ms, end_ms = int(request.query["startTime"]), int(request.query["endTime"]) + 1
        self.asked.append(TimeRange(start_ms, end_ms))
        self.asked_s.append(time.monotonic())
        if status := self.limited.get(len(self.asked)):
            return web.Response(status=status, headers={"Retry-After": "1"})
        if self.fail_next:
            self.fail_next -= 1
            return web.Response(status=500)
        if self.status != 200:
            return web.json_response({"code": -1121, "msg": "Invalid symbol."}, status=self.status)
        rows = [
            [
                ms,
                "1",
                "2",
                "0.5",
                "1.5",
                None if self.is_odd(ms, request.query["symbol"]) else "10",
                ms + LENGTH_MS - 1,
                "15",
                3,
                "5",
                "7",
                "0",
            ]
            for ms in range(start_ms, end_ms, LENGTH_MS)
            if ms >= self.begins_ms and not any(s <= ms < e for s, e in self.holes)
            if len(self.asked) not in self.empty
        ]
        return web.json_response(rows)


NOW_MS = schema.floor_to(1_792_800_000_000, LENGTH_MS) + 90_000
ONE = Instrument("XUSDT", "X/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS)


DAYS_MS = 30 * schema.DAY_MS
END_MS = NOW_MS - 90_000
KEY = (ONE.pair, "3m")


class Hurried(Backfill):
    """One whose clock is put on where it would wait."""

    waited_s: list[float]

    async def _until_woken(self, timeout_s: float) -> None:
        self.waited_s.append(timeout_s)
        put_on(self, timeout_s * self._clock.speed)
        await asyncio.sleep(0)


def put_on(backfill: Backfill, passed_s: float) -> None:
    """Let so many exchange seconds pass."""
    clock = backfill._clock
    clock.set_server_time(clock.now_ms() + int(passed_s * 1_000), 0.0, clock.speed)
    clock._elapsed_s += passed_s


async def promise(backfill: Backfill, *instruments: Instrument) -> None:
    """Promise 30 days of these, and look through what is stored of them."""
    every = [
        Promise(one.pair, "3m", NOW_MS, DAYS_MS, one.listed_ms) for one in instruments or (ONE,)
    ]
    await backfill._writer.call(lambda journal: journal.promise(every))
    await look_through(backfill._writer)


def is_ready(backfill: Backfill, pair: str = ONE.pair) -> bool:
    """Whether the newest candles of a pair are there."""
    holes = Holes(lambda: backfill._writer.coverage, dict)
    return holes.ready((pair, "3m"), TILE_CANDLES, NOW_MS)


def scripted(
    path: Path,
    exchange: Scripted,
    check: Callable[[Backfill], Awaitable[None]],
    doubted_for_s: float = DOUBTED_FOR_S,
    *,
    hurried: bool = True,
    healed: bool = False,
) -> None:
    """Run `check` with a backfill of 30 days of that exchange: all of it, but for the newest if `healed`."""

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", exchange.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://{}:{}".format(*runner.addresses[0][:2])
        clock = ExchangeClock()
        try:
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                rest = BinanceRest(session, url, turns=Turns(Budget(100_000), clock))
                await rest.server_time()
                one = [(ONE, ("3m",))]
                exchange.series = one
                backfill = (Hurried if hurried else Backfill)(
                    writer, rest, None, clock, lambda: one, Holes(lambda: writer.coverage, dict), 30,
                    10**9, doubted_for_s=doubted_for_s,
                    within=None if healed else TimeRange(NOW_MS - DAYS_MS, NOW_MS - 60_000),
                )  # fmt: skip
                if isinstance(backfill, Hurried):
                    backfill.waited_s = []
                await promise(backfill)
                await check(backfill)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_the_newest_candles_of_a_series_are_there_before_the_rest(path: Path) -> None:
    """Before they are promised it is not ready; with the rest of the history that has nothing to do."""
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        assert not is_ready(backfill)
        reported: list[bool] = []
        exchange.on_request = lambda: reported.append(is_ready(backfill))
        await backfill.fill()
        assert is_ready(backfill)
        assert reported[0] is False
        # Well before the last of 29 requests.
        assert True in reported
        await asyncio.to_thread(path.unlink)
        await backfill._writer.replace()
        assert not is_ready(backfill)

    scripted(path, exchange, check)


def test_what_the_exchange_answers_without_is_awaited_for_ten_minutes(path: Path) -> None:
    late = TimeRange(END_MS - 2 * LENGTH_MS, END_MS - LENGTH_MS)
    exchange = Scripted(0, (late,))

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        assert backfill.report().state == "incomplete"
        assert not is_ready(backfill)
        # Asked for twice, and still it may come.
        assert exchange.asked.count(late) == 1
        put_on(backfill, LATE_FOR_MS / 1_000)
        await backfill.fill()
        report = backfill.report()
        assert (report.state, report.absent, report.candles_left) == ("complete", 1, 0)
        assert is_ready(backfill)
        # A week later it is asked for again, which changes nothing; when it comes, it is stored.
        exchange.asked.clear()
        await backfill.fill()
        assert exchange.asked == []
        put_on(backfill, BELIEVED_FOR_MS / 1_000 + 1)
        await backfill.fill()
        assert exchange.asked == [late]
        assert backfill.report().complete
        assert is_ready(backfill)
        exchange.holes = ()
        put_on(backfill, BELIEVED_FOR_MS / 1_000 + 1)
        await backfill.fill()
        assert backfill._writer.coverage[KEY].holes == ()

    scripted(path, exchange, check)


def test_a_pass_is_not_complete_before_what_is_left_to_healing_has_come(path: Path) -> None:
    """It asks for none of that: healing does, which is sooner."""
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        report = backfill.report()
        assert (report.state, report.complete, report.candles_left) == ("filling", False, 499)
        assert (report.pairs, report.pairs_done) == (1, 0)
        newest_ms = END_MS - 499 * LENGTH_MS
        assert max(part.end_ms for part in exchange.asked) == newest_ms
        assert len(exchange.asked) == 28
        candles = [made(open_ms) for open_ms in range(newest_ms, END_MS, LENGTH_MS)]
        await backfill._writer.call(lambda journal: journal.write(Batch(candles=candles)))
        report = backfill.report()
        assert (report.complete, report.pairs_done) == (True, 1)

    scripted(path, exchange, check, healed=True)


def test_what_becomes_too_old_for_healing_within_a_pass_is_asked_at_its_end(path: Path) -> None:
    """Not at the next look, a minute later: until then a start would not be `well`."""
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        newest_ms = END_MS - 499 * LENGTH_MS

        def pass_two_candles() -> None:
            if len(exchange.asked) == 20:
                put_on(backfill, 2 * LENGTH_MS / 1000)

        exchange.on_request = pass_two_candles
        running = asyncio.create_task(backfill.run())
        await until(
            lambda: (
                max((part.end_ms for part in exchange.asked), default=0)
                == newest_ms + 2 * LENGTH_MS
            ),
            timeout_s=AGAIN_S / 2,
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    scripted(path, exchange, check, hurried=False, healed=True)


def test_a_pass_before_anything_is_promised_is_none(path: Path) -> None:
    """The collector's audit waits for the first one: its weight is for history."""
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        await backfill._writer.call(lambda journal: journal.release([KEY]))
        assert backfill.report().state == "waiting"
        await backfill.fill()
        assert not backfill.first_pass.is_set()
        assert not backfill.report().complete

    scripted(path, exchange, check, healed=True)


def test_filling_is_stuck_when_nothing_comes_for_ten_minutes(path: Path) -> None:
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        put_on(backfill, PROGRESS_S - 1)
        assert not backfill.is_stuck({ONE.pair})
        put_on(backfill, 2.0)
        assert backfill.is_stuck({ONE.pair})
        # Nobody waits for what the exchange does not know any more.
        assert not backfill.is_stuck({"ELSE/USDT:USDT"})
        exchange.odd = {END_MS - 700 * LENGTH_MS}
        await backfill.fill()
        # Something is left, and something has come.
        assert backfill.report().state == "incomplete"
        assert not backfill.is_stuck({ONE.pair})
        put_on(backfill, PROGRESS_S + 1)
        await backfill.fill()
        assert backfill.is_stuck({ONE.pair})
        exchange.odd = set()
        await backfill.fill()
        put_on(backfill, PROGRESS_S + 1)
        assert not backfill.is_stuck({ONE.pair})

    scripted(path, exchange, check)


def test_what_was_before_the_first_trade_is_not_asked_again(path: Path) -> None:
    exchange = Scripted(END_MS - 1_000 * LENGTH_MS)

    async def first(backfill: Backfill) -> None:
        await backfill.fill()
        report = backfill.report()
        assert report.complete
        assert report.stored == 1_000
        assert report.absent == report.candles - 1_000 > 13_000
        # Each that holds something once, each without a candle (and what one lacks) twice.
        assert len(exchange.asked) == 29 + 27
        exchange.asked.clear()
        await backfill.fill()
        assert backfill.report().complete

    async def after_a_restart(backfill: Backfill) -> None:
        await backfill.fill()
        assert backfill.report().complete

    scripted(path, exchange, first)
    scripted(path, exchange, after_a_restart)
    assert exchange.asked == []
    # An exchange that says so by mistake is not believed for ever.
    exchange.now_ms += 8 * schema.DAY_MS
    exchange.begins_ms = 0
    scripted(path, exchange, after_a_restart)
    with Journal.open(path) as journal:
        assert len(journal.candles(ONE.pair, "3m", 0, 2**62)) == 14_399


def test_of_a_journal_that_was_replaced_nothing_is_reported_before_it_was_looked_at(
    path: Path,
) -> None:
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        assert backfill.report().complete
        await asyncio.to_thread(path.unlink)
        await backfill._writer.replace()
        assert (backfill.report().state, backfill.report().complete) == ("scanning", False)
        await backfill.fill()
        assert not backfill.report().complete
        await promise(backfill)
        await backfill.fill()
        assert (backfill.report().state, backfill.report().stored) == ("complete", 14_399)

    scripted(path, exchange, check)


def test_a_pass_ends_when_the_journal_is_replaced_meanwhile(path: Path) -> None:
    """What it has asked for is of another file; the next pass asks for what this one lacks."""
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        replaced: list[int] = []

        async def replace() -> None:
            if len(exchange.asked) == 5 and not replaced:
                replaced.append(5)
                await asyncio.to_thread(path.unlink)
                await backfill._writer.replace()

        exchange.on_request = replace
        await backfill.fill()
        assert backfill.report().trouble == "the journal was replaced meanwhile"
        assert len(exchange.asked) <= 5 + 2 * AT_ONCE
        await promise(backfill)
        await backfill.fill()
        assert backfill.report().complete

    scripted(path, exchange, check)
    assert len(JournalView(path).candles(*KEY, TimeRange(0, 2**62))) == 14_399


def test_what_is_stored_meanwhile_is_not_asked_for(path: Path) -> None:
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        stored: list[int] = []

        async def store() -> None:
            if len(exchange.asked) == 2 and not stored:
                stored.append(2)
                opens = range(END_MS - 14_000 * LENGTH_MS, END_MS - 9_000 * LENGTH_MS, LENGTH_MS)
                candles = [made(open_ms) for open_ms in opens]
                await backfill._writer.call(lambda journal: journal.write(Batch(candles=candles)))

        exchange.on_request = store
        await backfill.fill()
        report = backfill.report()
        # Whoever has stored it.
        assert (report.state, report.candles, report.stored) == ("complete", 14_399, 14_399)
        # Ten of 29 hold some of it, eight of them nothing else.
        assert len(exchange.asked) <= 29 - 8

    scripted(path, exchange, check)
    candles = JournalView(path).candles(*KEY, TimeRange(0, 2**62))
    assert sum(candle.trades == 1 for candle in candles) == 5_000


def test_one_empty_answer_is_not_believed(path: Path) -> None:
    """Not of that range, nor of what is older; a like answer a while later is."""
    exchange = Scripted(0)
    exchange.empty = {2, 20}

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        report = backfill.report()
        assert (report.state, report.absent, report.stored) == ("complete", 0, 14_399)
        assert len(exchange.asked) == 29 + 2

    scripted(path, exchange, check)
    assert JournalView(path).coverage()[KEY].holes == ()


def test_what_was_answered_just_now_is_left_and_asked_again_when_woken(path: Path) -> None:
    exchange = Scripted(0)
    # All of them the first time, and then ten once more.
    exchange.empty = set(range(1, 29 + 10 + 1))

    async def check(backfill: Backfill) -> None:
        running = asyncio.create_task(backfill.run())
        await until(lambda: len(exchange.asked) >= 29)
        # Woken by a new pair: nothing is waited for then, and nothing believed.
        backfill.wake()
        await until(
            lambda: len(exchange.asked) >= 29 + 29 and backfill.report().candles_left <= 10 * 499
        )
        report = backfill.report()
        assert (report.state, report.absent, report.stored) == ("filling", 0, 14_399 - 10 * 499)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    scripted(path, exchange, check, doubted_for_s=3_600.0, hurried=False)


def test_a_pair_that_joins_a_long_pass_has_its_newest_candles_first(path: Path) -> None:
    exchange = Scripted(0)
    other = msgspec.structs.replace(ONE, symbol="YUSDT", pair="Y/USDT:USDT")
    woken_at: list[int] = []

    async def check(backfill: Backfill) -> None:
        async def on_request() -> None:
            if len(exchange.asked) == 2 and not woken_at:
                woken_at.append(0)
                await promise(backfill, other)
                exchange.series.append((other, ("3m",)))
                assert not is_ready(backfill, other.pair)
                woken_at[0] = len(exchange.symbols)
                backfill.wake()

        exchange.on_request = on_request
        running = asyncio.create_task(backfill.run())
        await until(lambda: backfill.report().complete)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        # Those that were under way, and the newest of the other series, go before it.
        assert exchange.symbols.index("YUSDT") <= woken_at[0] + AT_ONCE + 1
        assert is_ready(backfill, other.pair)

    scripted(path, exchange, check, hurried=False)


def test_what_the_exchange_lacks_in_between_is_remembered_and_the_newest_is_not(path: Path) -> None:
    old = TimeRange(END_MS - 700 * LENGTH_MS, END_MS - 690 * LENGTH_MS)
    late = TimeRange(END_MS - 2 * LENGTH_MS, END_MS - LENGTH_MS)
    exchange = Scripted(0, (old, late))

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        report = backfill.report()
        assert (report.absent, report.candles_left, report.state) == (10, 1, "incomplete")
        exchange.asked.clear()
        exchange.holes = ()
        await backfill.fill()
        assert backfill.report().complete
        assert exchange.asked == [late]

    scripted(path, exchange, check)


def test_an_odd_row_is_not_absent_and_its_hole_is_asked_for_again_less_and_less_often(
    path: Path,
) -> None:
    odd_ms = END_MS - 700 * LENGTH_MS
    hole = TimeRange(odd_ms, odd_ms + LENGTH_MS)
    exchange = Scripted(0)
    exchange.odd = {odd_ms}

    async def check(backfill: Backfill) -> None:
        waits_s: list[float] = []

        async def note(timeout_s: float) -> None:
            waits_s.append(timeout_s)
            if len(waits_s) == 9:
                exchange.odd = set()
            if len(waits_s) == 11:
                raise EOFError

        backfill._until_woken = note  # type: ignore[method-assign]
        await backfill.fill()
        report = backfill.report()
        assert (report.state, report.absent, report.candles_left) == ("incomplete", 0, 1)
        assert report.stored == 14_399 - 1
        assert backfill._writer.coverage[KEY].holes == (Hole(*hole, is_first=True),)
        exchange.asked.clear()
        with contextlib.suppress(EOFError):
            await backfill.run()
        assert exchange.asked == [hole] * 10
        # When it has come, all is there, and holes are looked for as often as ever.
        assert waits_s[:9] == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]
        assert waits_s[9:] == [60.0, 60.0]
        assert backfill.report().complete

    scripted(path, exchange, check)
    assert JournalView(path).coverage()[KEY].holes == ()


def test_what_is_left_of_one_pair_leaves_the_others_complete(path: Path) -> None:
    exchange = Scripted(0)
    exchange.odd = {END_MS - 700 * LENGTH_MS}
    other = msgspec.structs.replace(ONE, symbol="YUSDT", pair="Y/USDT:USDT")

    async def check(backfill: Backfill) -> None:
        assert backfill.report().pairs_done == 0
        await backfill.fill()
        assert backfill.report().pairs_done == 0
        await promise(backfill, other)
        exchange.series.append((other, ("3m",)))
        exchange.odd_of = "XUSDT"
        await backfill.fill()
        report = backfill.report()
        assert (report.state, report.candles_left) == ("incomplete", 1)
        assert (report.pairs, report.pairs_done) == (2, 1)
        assert backfill._writer.coverage[other.pair, "3m"].holes == ()

    scripted(path, exchange, check)


def test_an_error_is_tried_again_and_a_refused_symbol_is_left_out(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Scripted(END_MS - 100 * LENGTH_MS)
    exchange.fail_next = 2

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        assert backfill.report().complete
        assert backfill.report().trouble == ""

    scripted(path, exchange, check)
    exchange.status = 400

    async def refused(backfill: Backfill) -> None:
        await backfill.fill()
        report = backfill.report()
        assert report.state == "incomplete"
        assert report.candles_left > 0

    scripted(path.with_name("other.db"), exchange, refused)
    assert caplog.text.count("history is refused") == 1


def test_after_a_429_418_or_403_nothing_is_asked_until_the_time_is_over(path: Path) -> None:
    exchange = Scripted(0)
    exchange.limited = {5: 429, 14: 418, 23: 403}
    exchange.speed = 100.0

    async def check(backfill: Backfill) -> None:
        await backfill.fill()
        assert backfill.report().complete
        assert backfill.report().candles_left == 0

    scripted(path, exchange, check)
    asked_s = exchange.asked_s
    for number, status in exchange.limited.items():
        refused_s, silence_s = asked_s[number - 1], SILENCE_S[status] / exchange.speed
        # Those that were under way arrive, be it late.
        assert sum(0.0 < at_s - refused_s < silence_s for at_s in asked_s) < AT_ONCE
    # The three that were refused were asked once more, nothing else was.
    assert len(exchange.asked) == 29 + 3
    with Journal.open(path) as journal:
        assert len(journal.candles(ONE.pair, "3m", 0, 2**62)) == 14_399


def test_it_stops_before_the_disk_budget_would_delete_it_again(path: Path) -> None:
    exchange = Scripted(0)

    async def check(backfill: Backfill) -> None:
        backfill._max_bytes = 1
        await backfill.fill()
        assert backfill.report().state == "incomplete"
        assert "journal.max_bytes" in backfill.report().trouble

    scripted(path, exchange, check)
    with Journal.open(path) as journal:
        assert journal.row_counts()["candle"] == 0


def test_holes_are_found_as_a_plain_search_finds_them(path: Path) -> None:
    chance = random.Random(5)
    with Journal.open(path) as journal:
        opens = sorted(chance.sample(range(500), 300))
        batch = Batch()
        batch.candles = [made(at * LENGTH_MS) for at in opens]
        journal.write(batch)
        view = JournalView(path)
        for _ in range(200):
            start, end = sorted((chance.randrange(520), chance.randrange(520)))
            time_range = TimeRange(start * LENGTH_MS, end * LENGTH_MS)
            expected = missing([at * LENGTH_MS for at in opens], time_range, LENGTH_MS)
            assert view.holes(ONE.pair, "3m", time_range) == (expected if start < end else [])
        assert view.holes("Y/USDT:USDT", "3m", TimeRange(0, LENGTH_MS)) == [TimeRange(0, LENGTH_MS)]
    # After a clean stop: read as it is, nothing is created beside it.
    assert view.holes(ONE.pair, "3m", TimeRange(600 * LENGTH_MS, 600 * LENGTH_MS)) == []
    assert len(view.candles(ONE.pair, "3m", TimeRange(0, 2**62))) == 300
    assert not Path(f"{path}-wal").exists()
    with pytest.raises(JournalError, match="there is none"):
        JournalView(path.with_name("none.db")).require()
