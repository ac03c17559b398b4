"""Candles without `taker_buy_quote_volume` are asked for once more, the newest of all series first."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import uvloop
from aiohttp import web

from marketfeed import schema
from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.commands.history import AuditRequest, run_audit, run_backfill
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.history.continuous_audit import Auditor
from marketfeed.history.plan import CandleSeries
from marketfeed.history.quotes import QuoteVolumes
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.schema import APPLICATION_ID
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests import older_versions
from tests.waiting import until

LENGTH_MS: Final = 3 * schema.MINUTE_MS
NOW_MS: Final = schema.floor_to(1_792_800_000_000, LENGTH_MS) + 90_000
END_MS: Final = NOW_MS - 90_000


def series(symbol: str) -> CandleSeries:
    one = Instrument(symbol, f"{symbol}/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS)
    return CandleSeries(one, "3m")


X, Y = series("X"), series("Y")


def at(number: int) -> int:
    """The open time of a candle, counted back from the newest, which is -1."""
    return END_MS + number * LENGTH_MS


def candle(one: CandleSeries, number: int, quote: float | None = None, **other: Any) -> Candle:
    numbers = {"open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0} | other
    open_ms = at(number)
    return Candle(
        one.instrument.pair, "3m", open_ms, *numbers.values(), 15.0, 5.0, 3, True,
        open_ms + LENGTH_MS, quote,
    )  # fmt: skip


class Exchange:
    """Klines of all symbols and times; what it is asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        """Symbol, and numbers of the first candle and the one after the last."""
        self.quote: object = "7.5"
        """What stands in each row; `...`: the row ends before it."""
        self.status = 200
        self.refused = ""
        """A symbol that is refused."""
        self.url = ""
        self.before: Callable[[], Awaitable[None]] | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if request.path.endswith("/time"):
            return web.json_response({"serverTime": NOW_MS})
        asked = request.query
        start_ms, end_ms = int(asked["startTime"]), int(asked["endTime"]) + 1
        self.asked.append(
            (asked["symbol"], (start_ms - END_MS) // LENGTH_MS, (end_ms - END_MS) // LENGTH_MS)
        )
        if self.before is not None:
            await self.before()
        if self.status != 200 or asked["symbol"] == self.refused:
            status = 400 if self.status == 200 else self.status
            return web.json_response({"code": -1121, "msg": "Invalid symbol."}, status=status)
        last = [] if self.quote is ... else [self.quote, "0"]
        rows = [
            [ms, "1", "2", "0.5", "1.5", "10", ms + LENGTH_MS - 1, "15", 3, "5", *last]
            for ms in range(start_ms, end_ms, LENGTH_MS)
        ]
        return web.json_response(rows)


@contextlib.asynccontextmanager
async def filling(
    path: Path, exchange: Exchange, every: Iterable[CandleSeries] = (X,), **other: Any
) -> AsyncIterator[QuoteVolumes]:
    """The journal, its writer, and what fills it; with candles of these `every` that lack it."""
    app = web.Application()
    app.router.add_get("/{path:.*}", exchange.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    exchange.url = "http://{}:{}".format(*runner.addresses[0][:2])
    clock = ExchangeClock()
    chosen = {"is_busy": lambda: False, "max_bytes": 10**9, **other}
    try:
        async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
            rest = BinanceRest(session, exchange.url, turns=Turns(Budget(100_000), clock))
            await rest.server_time()
            await writer.take_stock()
            yield QuoteVolumes(writer, rest, clock, lambda: list(every), **chosen)
    finally:
        await runner.cleanup()


async def store(path: Path, *candles: Candle, days: int = 3) -> None:
    async with JournalWriter(path) as writer:
        await writer.call(lambda journal: journal.write(Batch(candles=candles)))
        promises = [
            Promise(pair, "3m", NOW_MS, days * schema.DAY_MS) for pair in {c.pair for c in candles}
        ]
        await writer.call(lambda journal: journal.promise(promises))


def quotes(path: Path, one: CandleSeries = X) -> list[float | None]:
    found = JournalView(path).candles(*one.key, TimeRange(0, 2**62))
    return [candle.taker_buy_quote_volume for candle in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_the_newest_of_all_series_come_first_and_each_is_asked_for_once(path: Path) -> None:
    exchange = Exchange()

    async def run() -> None:
        await store(path, *(candle(one, n) for one in (X, Y) for n in range(-1_200, 0)))
        async with filling(path, exchange, (X, Y)) as found:
            assert (found.report().state, found.report().candles_left) == ("waiting", 2 * 1_439)
            await found.fill()
            report = found.report()
            assert (report.state, report.candles_left, report.trouble) == ("complete", 0, "")
            assert (report.asked, report.filled) == (2_400, 2_400)
            await found.fill()
        # Another start knows it.
        async with filling(path, exchange, (X, Y)) as found:
            await found.fill()
            assert (found.report().state, found.report().asked) == ("complete", 0)

    asyncio.run(run())
    tiles = [(-499, 0), (-998, -499), (-1_200, -998)]
    assert sorted(exchange.asked) == sorted((s, *tile) for s in ("X", "Y") for tile in tiles)
    assert [tile for _, *tile in exchange.asked] == sorted(
        ([*tile] for tile in tiles for _ in "XY"), reverse=True
    )
    assert quotes(path, X) == quotes(path, Y) == [7.5] * 1_200


def test_only_what_lacks_it_is_asked_for(path: Path) -> None:
    exchange = Exchange()

    async def run() -> None:
        with_it = {n: 7.5 for n in range(-1_200, 0) if n not in (-1_190, -700, -690, -5)}
        await store(path, *(candle(X, n, with_it.get(n)) for n in range(-1_200, 0)))
        async with filling(path, exchange) as found:
            await found.fill()
            assert (found.report().asked, found.report().filled) == (4, 4)

    asyncio.run(run())
    assert [(a, b) for _, a, b in exchange.asked] == [(-5, -4), (-700, -689), (-1_190, -1_189)]
    assert quotes(path) == [7.5] * 1_200


@pytest.mark.parametrize("quote", [None, ..., "-1", "nan"])
def test_what_the_exchange_does_not_give_is_not_asked_for_again(path: Path, quote: object) -> None:
    exchange = Exchange()
    exchange.quote = quote

    async def run() -> None:
        await store(path, *(candle(X, n) for n in range(-600, 0)))
        for _ in range(2):
            async with filling(path, exchange) as found:
                for _ in range(2):
                    await found.fill()
                assert (found.report().state, found.report().filled) == ("complete", 0)

    asyncio.run(run())
    assert len(exchange.asked) == 2
    assert quotes(path) == [None] * 600


def test_one_that_differs_is_left_to_the_audit(path: Path) -> None:
    exchange = Exchange()

    async def run() -> None:
        await store(path, candle(X, -3), candle(X, -2, close=1.25), candle(X, -1))
        async with filling(path, exchange) as found:
            await found.fill()
            assert (found.report().asked, found.report().filled) == (3, 2)

    asyncio.run(run())
    assert quotes(path) == [7.5, None, 7.5]
    assert JournalView(path).candles(*X.key, TimeRange(0, 2**62))[1].close == 1.25


def test_holes_go_first(path: Path) -> None:
    exchange = Exchange()
    busy = True

    async def run() -> None:
        nonlocal busy
        await store(path, candle(X, -1))
        async with filling(path, exchange, is_busy=lambda: busy) as found:
            task = asyncio.create_task(found.fill())
            await until(lambda: found.report().state == "filling")
            await asyncio.sleep(0.05)
            assert exchange.asked == []
            busy = False
            await task
            assert found.report().state == "complete"

    asyncio.run(run())
    assert quotes(path) == [7.5]


def test_an_exchange_that_fails_is_asked_later_and_a_symbol_that_it_refuses_is_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketfeed.history.quotes.RETRY_FIRST_S", 0.001)
    exchange = Exchange()

    async def run() -> None:
        await store(path, *(candle(one, n) for one in (X, Y) for n in range(-600, 0)))
        exchange.status = 500
        async with filling(path, exchange, (X, Y)) as found:
            await found.fill()
            report = found.report()
            assert (report.state, report.filled) == ("incomplete", 0)
            assert "status 500" in report.trouble
            exchange.status, exchange.refused = 200, "Y"
            exchange.asked.clear()
            await found.fill()
            await found.fill()
            report = found.report()
            # What is left is of the one that is refused.
            assert (report.state, report.filled, report.candles_left) == ("incomplete", 600, 1_439)

    asyncio.run(run())
    assert [symbol for symbol, *_ in exchange.asked].count("Y") == 1
    assert quotes(path, Y) == [None] * 600


def test_it_stops_before_the_disk_budget_would_delete_it_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketfeed.history.quotes.RETRY_FIRST_S", 0.001)
    exchange = Exchange()

    async def run() -> None:
        await store(path, candle(X, -1))
        async with filling(path, exchange, max_bytes=1_000) as found:
            await found.fill()
            assert "no room for more" in found.report().trouble

    asyncio.run(run())
    assert exchange.asked == []


def test_a_stop_costs_nothing_and_a_pair_that_joins_has_its_turn(path: Path) -> None:
    exchange = Exchange()
    every = [X]

    async def run() -> None:
        await store(path, *(candle(one, n) for one in (X, Y) for n in range(-1_200, 0)))
        async with filling(path, exchange, every) as found:
            third = asyncio.Event()

            async def wait_at_the_third() -> None:
                if len(exchange.asked) == 2:
                    third.set()
                    await asyncio.sleep(60)

            exchange.before = wait_at_the_third
            task = asyncio.create_task(found.run())
            await third.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            exchange.before = None
        exchange.asked.clear()
        async with filling(path, exchange, every) as found:
            task = asyncio.create_task(found.run())
            await until(lambda: found.report().state == "complete")
            every.append(Y)
            found.wake()
            await until(lambda: found.report().filled == 1_200 + 701)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    uvloop.run(run())
    # What was asked for and not committed is asked for again.
    assert [tile for symbol, *tile in exchange.asked if symbol == "X"] == [
        [-998, -499],
        [-1_200, -998],
    ]
    assert quotes(path, X) == quotes(path, Y) == [7.5] * 1_200


def test_version_2_has_it_off(path: Path) -> None:
    exchange = Exchange()
    older_versions.empty(path, "journal_version_2.sql", APPLICATION_ID, 2)

    async def run() -> None:
        await store(path, candle(X, -1))
        async with filling(path, exchange) as found:
            await found.fill()
            assert found.report().state == "off"

    asyncio.run(run())
    assert exchange.asked == []


# --- audits -------------------------------------------------------------------------------------------


def forget(path: Path) -> int:
    """Have every third candle as an older version has stored it; returns how many these are."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        return db.execute(
            "UPDATE candle SET taker_buy_quote_volume = NULL WHERE open_time / 180000 % 3 = 0"
        ).rowcount


def test_for_an_audit_it_is_no_mismatch_and_a_repair_fills_it(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=1, timeframes=("3m",), speed=1.0, start_ms=NOW_MS)
        async with Simulator(options) as sim:
            settings = Settings.model_validate(
                {
                    "exchange": {
                        "ws_url": sim.ws_url,
                        "rest_url": sim.rest_url,
                        "pairs": "all",
                        "timeframes": ["3m"],
                    },
                    "journal": {"path": str(path)},
                    "status": {"port": 0},
                }
            )
            await run_backfill(settings, 2, None, "rest", lambda *_: None)
            key = (JournalView(path).catalog()[0].pair, "3m")
            before = JournalView(path).candles(*key, TimeRange(0, 2**62))
            assert all(one.taker_buy_quote_volume is not None for one in before)
            forgotten = forget(path)
            request = AuditRequest(days=1, weight_per_minute=2_400)
            report = await run_audit(settings, request, lambda _: None)
            lacking = [
                one
                for one in JournalView(path).candles(*key, TimeRange(report.since_ms, 2**62))
                if one.taker_buy_quote_volume is None and one.close_time_ms <= report.until_ms
            ]
            assert 100 < len(lacking) < forgotten
            assert (report.good, report.different, report.filled) == (True, 0, 0)
            assert report.lacking == len(lacking)
            request = AuditRequest(days=2, weight_per_minute=2_400, repair=True)
            report = await run_audit(settings, request, lambda _: None)
            assert report.good
            assert (report.repaired, report.lacking, report.filled) == (0, forgotten, forgotten)
            assert JournalView(path).candles(*key, TimeRange(0, 2**62)) == before

    uvloop.run(run())


def test_the_continuous_audit_fills_what_it_meets(path: Path) -> None:
    exchange = Exchange()

    async def run() -> None:
        await store(path, *(candle(X, n) for n in range(-1_440, 0)))
        async with filling(path, exchange) as found:
            auditor = Auditor(found._writer, found._rest, found._clock, lambda: [X])
            await auditor.look()
            report = auditor.report()
            assert (report.audited, report.different, report.mended, report.unmended) == (
                99,
                0,
                0,
                [],
            )

    asyncio.run(run())
    assert quotes(path).count(7.5) == 99


def test_its_budget_is_historys(path: Path) -> None:
    """A tile of 499 costs what a tile of history costs."""
    exchange = Exchange()

    async def run() -> None:
        await store(path, *(candle(X, n) for n in range(-TILE_CANDLES, 0)))
        async with filling(path, exchange) as found:
            before = found._rest.turns.report().weight_used
            await found.fill()
            assert found._rest.turns.report().weight_used - before == 2

    asyncio.run(run())
