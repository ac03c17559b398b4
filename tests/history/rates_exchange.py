"""An exchange that answers `fundingRate` from what a test has it settle, and `SettledRates` before it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from marketfeed import schema
from marketfeed.binance.budget import Budget
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import ExchangeInfo, Instrument
from marketfeed.counters import CollectorCounters
from marketfeed.history.funding import SettledRates
from marketfeed.ingest.intake import Intake
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import FundingRate
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS

T0: Final = 1_790_006_400_000
"""A full 8 hours."""
assert T0 % (8 * HOUR_MS) == 0


def settled(path: Path) -> list[tuple[str, int, float, float | None]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(
            """SELECT pair.pair, time, rate, mark_price FROM funding_settled
               JOIN pair ON pair.id = pair_id ORDER BY 1, 2"""
        ).fetchall()


class Rates:
    """Answers fundingRate as the exchange does, for as many symbols as it is given."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols
        self.hours = 8
        self.asked: list[str | None] = []
        self.published_from_ms: dict[str, int] = {}
        self.unpublished: set[tuple[str, int]] = set()
        self.odd: Callable[[str, int], bool] = lambda *_: False
        """Whether the row of a symbol and time has no rate."""
        self.unknown: set[str] = set()
        """Symbols that are answered as invalid ones."""
        self.halted: set[str] = set()
        """Symbols that have halted: an answer for all has none of theirs."""
        self.failing = False
        self.rows: list[dict[str, Any]] | None = None
        """What was settled in place of that: rows as the exchange has them."""
        self.url = ""

    async def rates(self, request: web.Request) -> web.Response:
        query = request.query
        symbol = query.get("symbol")
        self.asked.append(symbol)
        if self.failing:
            return web.json_response({"code": -1}, status=500)
        if symbol in self.unknown:
            return web.json_response({"code": -1121, "msg": "Invalid symbol."}, status=400)
        start_ms, end_ms = int(query["startTime"]), int(query["endTime"])
        if self.rows is not None:
            found = [
                row
                for row in self.rows
                if (
                    symbol == row["symbol"] or (symbol is None and row["symbol"] not in self.halted)
                )
                and start_ms <= row["fundingTime"] <= end_ms
            ]
            return web.json_response(found[: int(query["limit"])])
        step_ms = self.hours * HOUR_MS
        first_ms = schema.ceil_to(start_ms, step_ms)
        rows = [
            {
                "symbol": name,
                "fundingTime": time_ms + number % 7,
                "fundingRate": None if self.odd(name, time_ms) else f"0.000{number % 9 + 1}",
                "markPrice": "" if number % 2 else "100.5",
            }
            for time_ms in range(first_ms, end_ms + 1, step_ms)
            for number, name in enumerate(self.symbols)
            if (symbol == name or (symbol is None and name not in self.halted))
            and time_ms >= self.published_from_ms.get(name, 0)
            and (name, time_ms) not in self.unpublished
        ]
        rows.sort(key=lambda row: row["fundingTime"])
        return web.json_response(rows[: int(query["limit"])])

    async def info(self, _: web.Request) -> web.Response:
        self.asked.append("info")
        return web.json_response([])


def instrument(number: int) -> Instrument:
    name = f"S{number}"
    return Instrument(f"{name}USDT", f"{name}/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 0, 0)


class Line:
    """`SettledRates` over a journal, without a feed; `announce` lets a running rate come, `say` stores it."""

    def __init__(
        self,
        intake: Intake,
        settled_rates: SettledRates,
        clock: ExchangeClock,
        rates: Rates,
        writer: JournalWriter,
    ):
        self.intake = intake
        self.writer = writer
        self.settled_rates = settled_rates
        self.clock = clock
        self.rates = rates

    def announce(self, next_ms: int, *instruments: Instrument) -> None:
        self.intake.next_funding_ms.update((i.pair, next_ms) for i in instruments)

    async def say(self, next_ms: int, *instruments: Instrument, at_ms: int | None = None) -> None:
        said_ms = self.clock.now_ms() if at_ms is None else at_ms
        batch = Batch()
        batch.extend(FundingRate(one.pair, said_ms, 0.0001, next_ms) for one in instruments)
        await self.writer.call(lambda journal: journal.write(batch))
        self.announce(next_ms, *instruments)


def run(
    path: Path,
    check: Callable[[Line], Awaitable[None]],
    *,
    collected: int,
    listed: int,
    days: int,
    trading: Callable[[], int] | None = None,
    now_ms: int = T0 + 2 * HOUR_MS,
    speed: float = 20.0,
) -> Rates:
    async def main() -> Rates:
        instruments = [instrument(n) for n in range(listed)]
        rates = Rates([i.symbol for i in instruments])
        app = web.Application()
        app.router.add_get("/fapi/v1/fundingRate", rates.rates)
        app.router.add_get("/fapi/v1/fundingInfo", rates.info)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        clock = ExchangeClock()
        clock.set_server_time(now_ms, 0.0, speed)
        counters = CollectorCounters()
        async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
            turns = Turns(Budget(1_000, funding_requests=10_000), clock)
            intake = Intake(writer, FrameDecoder({}), counters, clock, MINUTE_MS, lambda: None)
            settled_rates = SettledRates(
                BinanceRest(session, f"http://{host}:{port}", turns=turns),
                intake,
                writer,
                clock,
                counters,
                lambda: ExchangeInfo(
                    {
                        i.pair: msgspec.structs.replace(i, status="TRADING_HALT")
                        if i.symbol in rates.halted
                        else i
                        for i in instruments[: trading and trading()]
                    },
                    0,
                ),
                instruments[:collected],
                days * DAY_MS,
            )
            task = asyncio.create_task(settled_rates.run())
            try:
                await check(Line(intake, settled_rates, clock, rates, writer))
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await runner.cleanup()
        return rates

    return asyncio.run(main())
