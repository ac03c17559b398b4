"""Answers that lack what is stored: the audit believes the second one, and of the same contract alone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.errors import ExchangeError
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import look_through
from marketfeed.history.background import History
from marketfeed.history.continuous_audit import AGAIN_AFTER_S, Auditor
from marketfeed.history.plan import CandleSeries
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import AGAIN_AFTER_MS as SECOND_ANSWER_MS
from marketfeed.journal.coverage import LATE_FOR_MS, Promise
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.schema import DAY_MS, HOUR_MS, MARK_1H
from marketfeed.settings.model import Settings

PAIR: Final = "LIT/USDT:USDT"
END_MS: Final = 20_800 * DAY_MS
NOW_MS: Final = END_MS + 20 * 60_000
OLD: Final = Instrument("LITUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS)
HOURS: Final = 72


class Patient(ExchangeClock):
    """A clock that the test lets go on."""

    later_s = 0.0

    def elapsed_s(self) -> float:
        return super().elapsed_s() + self.later_s


class Exchange:
    """Hourly rows of one symbol, mark prices' or trades', without those that it lacks."""

    def __init__(self) -> None:
        self.asked = 0
        self.status = 200
        self.lacks: set[int] = set()
        """Open times."""
        self.before: Callable[[], Awaitable[None]] | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if request.path.endswith("/time"):
            return web.json_response({"serverTime": NOW_MS})
        self.asked += 1
        if self.before is not None:
            await self.before()
        if self.status != 200:
            return web.json_response({"code": -1, "msg": "no"}, status=self.status)
        start_ms, end_ms = int(request.query["startTime"]), int(request.query["endTime"]) + 1
        rows = [
            [ms, "1", "2", "0.5", "1.5", "0", ms + HOUR_MS - 1, "0", 0, "0", "0", "0"]
            for ms in range(start_ms, end_ms, HOUR_MS)
            if ms not in self.lacks
        ]
        return web.json_response(rows)


def hour(number: int) -> int:
    """The open time of an hour, counted back from the newest, which is -1."""
    return END_MS + number * HOUR_MS


def stored(timeframe: str) -> list[Candle]:
    return [
        Candle(
            PAIR, timeframe, hour(n), 1.0, 2.0, 0.5, 1.5, 0.0, 0.0, 0.0, 0, True,
            hour(n) + HOUR_MS, 0.0,
        )
        for n in range(-HOURS, 0)
    ]  # fmt: skip


class Place:
    """A journal with three days of hours, and who asks the exchange."""

    def __init__(self, writer: JournalWriter, rest: BinanceRest, clock: Patient) -> None:
        self.writer = writer
        self.rest = rest
        self.clock = clock
        self.series = [CandleSeries(OLD, MARK_1H)]
        self.auditor = Auditor(writer, rest, clock, lambda: self.series)

    def seen(self) -> tuple[int, int]:
        """How many differences were counted, and are known now."""
        report = self.auditor.report()
        return report.different, len(report.unmended)


@contextlib.asynccontextmanager
async def place(path: Path, exchange: Exchange) -> AsyncIterator[Place]:
    app = web.Application()
    app.router.add_get("/{path:.*}", exchange.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    clock = Patient()
    try:
        async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
            for name in (MARK_1H, "1h"):
                batch = Batch(candles=stored(name))
                await writer.call(lambda journal, batch=batch: journal.write(batch))
                promise = Promise(PAIR, name, NOW_MS, (HOURS + 1) * HOUR_MS)
                await writer.call(lambda journal, one=promise: journal.promise([one]))
            rest = BinanceRest(session, url, turns=Turns(Budget(100_000), clock))
            await rest.server_time()
            await writer.take_stock()
            yield Place(writer, rest, clock)
    finally:
        await runner.cleanup()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_what_an_answer_lacks_is_believed_of_a_second_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange()

    async def run() -> None:
        async with place(path, exchange) as found:
            await found.auditor.look()
            assert found.auditor.report().audited == HOURS
            exchange.lacks = {hour(-3), hour(-5)}
            await found.auditor.look()
            await found.auditor.look()
            assert found.seen() == (0, 0)
            # It has one of them again, and lacks another one: that has a second answer of its own.
            exchange.lacks = {hour(-3), hour(-9)}
            found.clock.later_s += AGAIN_AFTER_S
            await found.auditor.look()
            assert found.seen() == (1, 1)
            assert f"a candle differs {PAIR} mark_1h {hour(-3)}: the exchange has no" in caplog.text
            found.clock.later_s += AGAIN_AFTER_S
            # The one that waits since the second look is asked for first.
            for _ in range(3):
                await found.auditor.look()
            assert found.seen() == (2, 2)
            # And what it has again is known to differ no more.
            exchange.lacks = set()
            await found.auditor.look()
            assert found.seen() == (2, 0)

    asyncio.run(run())


def test_a_second_answer_that_fails_is_asked_for_again(path: Path) -> None:
    exchange = Exchange()
    exchange.lacks = {hour(-3)}

    async def run() -> None:
        async with place(path, exchange) as found:
            await found.auditor.look()
            exchange.status = 500
            found.clock.later_s += AGAIN_AFTER_S
            with pytest.raises(ExchangeError):
                await found.auditor.look()
            exchange.status = 200
            found.clock.later_s += AGAIN_AFTER_S
            await found.auditor.look()
            assert found.seen() == (1, 1)

    asyncio.run(run())


def test_an_answer_that_may_be_another_contracts_says_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange()
    new = CandleSeries(replace(OLD, listed_ms=hour(-1)), MARK_1H)

    async def run() -> None:
        async with place(path, exchange) as found:

            async def replaced() -> None:
                found.series[:] = [new]

            exchange.lacks = {hour(n) for n in range(-HOURS, -1)}
            # It was still the older one's as it was first asked.
            await found.auditor.look()
            exchange.before = replaced
            found.clock.later_s += AGAIN_AFTER_S
            await found.auditor.look()
            assert found.seen() == (0, 0)
            exchange.before = None
            # What the first answer lacked is not asked for any more, of a contract that was not there then.
            found.clock.later_s += AGAIN_AFTER_S
            for _ in range(3):
                await found.auditor.look()
            assert found.seen() == (0, 0)
            assert found.auditor.report().missing == 0

    asyncio.run(run())
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_a_pair_that_is_perhaps_replaced_is_neither_audited_nor_are_its_mark_candles_fetched(
    path: Path,
) -> None:
    exchange = Exchange()
    replaced = {PAIR}
    settings = Settings.model_validate(
        {"exchange": {"timeframes": ["1h"]}, "journal": {"path": str(path)}}
    )

    async def run() -> None:
        async with place(path, exchange) as found:
            # Two hours of mark candles are missing.
            holes = Holes(lambda: found.writer.mark_coverage, dict)
            history = History(
                settings,
                found.writer,
                found.rest,
                found.rest._session,
                found.clock,
                lambda: [OLD],
                holes,
                perhaps_replaced=lambda: replaced,
            )
            await look_through(found.writer)
            promise = Promise(PAIR, MARK_1H, NOW_MS, (HOURS + 3) * HOUR_MS)
            await found.writer.call(lambda journal: journal.promise([promise]))
            auditor = history._auditor
            for _ in range(5):
                await auditor.look()
            await history.marks.backfill.fill()
            assert exchange.asked == 0
            replaced.clear()
            await auditor.look()
            assert exchange.asked == 1
            await history.marks.backfill.fill()
            assert exchange.asked == 2
            (covered,) = found.writer.mark_coverage.values()
            assert covered.holes == ()

    asyncio.run(run())


def test_what_was_believed_absent_is_promised_no_more_once_another_contract_has_the_symbol(
    path: Path,
) -> None:
    """Its answers may come some minutes before exchangeInfo's: what they lacked was the older one's."""
    exchange = Exchange()

    async def run() -> None:
        async with place(path, exchange) as found:
            key = (PAIR, MARK_1H)
            await look_through(found.writer)
            longer = Promise(PAIR, MARK_1H, NOW_MS, (HOURS + 3) * HOUR_MS)
            await found.writer.call(lambda journal: journal.promise([longer]))
            (hole,) = found.writer.mark_coverage[key].holes
            for now_ms in (NOW_MS, NOW_MS + max(SECOND_ANSWER_MS, LATE_FOR_MS)):
                batch = Batch()
                batch.absent = [(key, hole.time_range, now_ms)]
                await found.writer.call(lambda journal, batch=batch: journal.write(batch))
            (absent,) = found.writer.mark_coverage[key].holes
            assert absent.is_absent
            new = longer._replace(listed_ms=hour(-1) + 60_000)
            await found.writer.call(lambda journal: journal.promise([new]))
            covered = found.writer.mark_coverage[key]
            assert (covered.from_ms, covered.holes) == (hour(-1), ())

    asyncio.run(run())
