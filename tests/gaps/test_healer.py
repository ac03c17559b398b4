"""Holes are fetched from a real HTTP server that plays the exchange's klines as each test wants them."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from marketfeed.binance.backoff import ConnectionStatus
from marketfeed.binance.budget import Budget
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.healer import ENDED, NO_CANDLE, PAUSES_S, REQUESTS, Healer
from marketfeed.gaps.supervisor import Supervisor
from marketfeed.history.backfill import Backfill
from marketfeed.ingest.intake import Intake
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES_MS, floor_to
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
SYMBOL: Final = "BTCUSDT"
BITCOIN: Final = Instrument(SYMBOL, PAIR, "USDT", "TRADING", "PERPETUAL", 0, 0)
T0: Final = 1_790_000_160_000

GapRow = tuple[str, int, int, str, str]


def candle(number: int, *, trades: int = 7, close: float = 2.0, closed: bool = True) -> Candle:
    open_ms = T0 + number * MINUTE_MS
    volume = float(trades)
    return Candle(
        PAIR, "1m", open_ms, 2.0, 2.0, min(2.0, close), close, volume,
        2.0 * volume, volume / 2, trades, closed, open_ms + MINUTE_MS,
    )  # fmt: skip


def kline_row(number: int, trades: int) -> list[Any]:
    open_ms = T0 + number * MINUTE_MS
    return [
        open_ms, "2", "2", "2", "2", str(trades), open_ms + MINUTE_MS - 1, str(2 * trades), trades,
        str(trades / 2), str(trades), "0",
    ]  # fmt: skip


class Exchange:
    """Answers klines: minute candles of `trades(number)` trades, None for one that it does not have."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        """First candle and the one after the last of each request, as numbers from T0 on."""
        self.failing: int | None = None
        self.trades: Callable[[int], int | None] = lambda _: 7
        self.odd: set[int] = set()
        """Candles whose rows have no volume."""
        self.at_once = self.most_at_once = 0
        self.hold: asyncio.Event | None = None
        self.url = ""

    async def klines(self, request: web.Request) -> web.Response:
        query = request.query
        start_ms, end_ms = int(query["startTime"]), int(query["endTime"])
        first = (start_ms - T0) // MINUTE_MS
        after = first + int(query["limit"])
        assert end_ms == T0 + after * MINUTE_MS - 1
        self.asked.append((first, after))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.failing is not None:
                return web.json_response({"code": -1, "msg": "no"}, status=self.failing)
            rows = [(n, self.trades(n)) for n in range(first, after)]
            listed = [(n, kline_row(n, count)) for n, count in rows if count is not None]
            return web.json_response(
                [[*row[:5], None, *row[6:]] if n in self.odd else row for n, row in listed]
            )
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Exchange]:
    exchange = Exchange()
    app = web.Application()
    app.router.add_get("/fapi/v1/klines", exchange.klines)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    exchange.url = f"http://{host}:{port}"
    try:
        yield exchange
    finally:
        await runner.cleanup()


class Line:
    """Intake, supervisor and healer over a journal, without a feed. Candles are numbered from T0 on."""

    def __init__(self, path: Path, exchange: Exchange, instrument: Instrument) -> None:
        self.path = path
        self.exchange = exchange
        self.instrument = instrument
        self.clock = ExchangeClock()
        self.counters = CollectorCounters()

    @contextlib.asynccontextmanager
    async def running(self, at: int, speed: float, channels: Sequence[str]) -> AsyncIterator[None]:
        """Run from 5 s after the close of candle `at` - 1 on."""
        self.clock.set_server_time(T0 + at * MINUTE_MS + 5_000, 0.0, speed)
        async with JournalWriter(self.path) as writer, aiohttp.ClientSession() as session:
            self.writer = writer
            decoder = FrameDecoder({SYMBOL: PAIR})
            self.intake = Intake(
                writer, decoder, self.counters, self.clock, MINUTE_MS, lambda: None
            )
            self.supervisor = Supervisor(
                self.intake, self.clock, self.counters, [self.instrument], channels, 3_000
            )
            turns = Turns(Budget(1_000_000), self.clock)
            self.rest = rest = BinanceRest(session, self.exchange.url, turns=turns)
            self.healer = Healer(
                self.supervisor, rest, self.intake, writer, self.clock, self.counters,
                {PAIR: self.instrument}.get,
            )  # fmt: skip
            newest = await writer.call(Journal.newest_candles)
            # Anew: however long this took, nothing has closed meanwhile.
            self.clock.set_server_time(T0 + at * MINUTE_MS + 5_000, 0.0, speed)
            # What closed before counts as stored where nothing is.
            known = {
                (PAIR, name): floor_to(self.clock.now_ms(), length_ms) - length_ms
                for name, length_ms in TIMEFRAMES_MS.items()
            }
            self.supervisor.start(known | newest, 30 * DAY_MS)
            tasks = [
                asyncio.create_task(self.intake.run()),
                asyncio.create_task(self.healer.run()),
            ]
            try:
                yield
            finally:
                self.intake.end()
                await tasks[0]
                tasks[1].cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await tasks[1]

    def come(self, *numbers: int) -> None:
        """Let the stream bring closed candles."""
        for number in numbers:
            item = candle(number)
            self.intake._pending.add(item)
            self.intake._seen.closed.append((PAIR, "1m", item.open_time_ms))
        self.supervisor.take_in()

    async def committed(self) -> None:
        await until(lambda: self.intake.pending == 0)
        # What was taken for the last commit may be under way: the journal has one thread, and an order.
        await self.writer.call(lambda _: None)

    def gaps(self) -> list[GapRow]:
        """Kind, first candle and the one after the last, state, reason."""
        with closing(sqlite3.connect(self.path)) as db:
            return [
                (kind, (start - T0) // MINUTE_MS, (end - T0) // MINUTE_MS, state, reason)
                for kind, start, end, state, reason in db.execute(
                    """SELECT kind, start, "end", state, reason FROM gap
                       WHERE kind LIKE 'candle%' ORDER BY start"""
                )
            ]

    def stored(self) -> dict[int, int]:
        """Trades of each stored candle by its number."""
        with closing(sqlite3.connect(self.path)) as db:
            return {
                (open_ms - T0) // MINUTE_MS: trades
                for open_ms, trades in db.execute(
                    "SELECT open_time, trades FROM candle ORDER BY open_time"
                )
            }


def run(
    path: Path,
    check: Callable[[Line], Awaitable[None]],
    *,
    at: int = 0,
    speed: float = 1.0,
    channels: Sequence[str] = ("1m",),
    before: Callable[[Exchange], None] = lambda _: None,
    instrument: Instrument = BITCOIN,
) -> Line:
    async def main() -> Line:
        async with serving() as exchange:
            before(exchange)
            line = Line(path, exchange, instrument)
            async with line.running(at, speed, channels):
                await check(line)
            return line

    return asyncio.run(main())


def store(path: Path, *records: Candle | Gap) -> None:
    batch = Batch()
    batch.extend(records)
    with Journal.open(path) as journal:
        journal.write(batch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_the_holes_of_a_series_are_fetched_at_once_and_stored(path: Path) -> None:
    async def check(line: Line) -> None:
        line.clock.set_server_time(T0 + 8 * MINUTE_MS + 2_000, 0.0)
        line.come(0, 3, 4, 7)
        assert line.supervisor.missing_candles == 4
        await until(lambda: line.supervisor.missing_candles == 0)

    def before(exchange: Exchange) -> None:
        # A minute without a trade is a candle as well.
        exchange.trades = lambda number: 0 if number == 5 else 3

    line = run(path, check, before=before)
    assert line.exchange.asked == [(1, 7)]
    assert line.stored() == {0: 7, 1: 3, 2: 3, 3: 7, 4: 7, 5: 0, 6: 3, 7: 7}
    assert line.gaps() == [("candle_1m", n, n + 1, "healed", "fetched") for n in (1, 2, 5, 6)]
    assert line.counters.gaps == {"found": 4, "healing": 4, "healed": 4}
    assert sum(line.counters.healed_lag.counts) == 4
    # What came by its stream is counted apart.
    assert sum(line.counters.close_lag.counts) == 4


def test_after_a_reconnect_the_last_candles_are_compared_and_no_worse_one_is_taken(
    path: Path,
) -> None:
    store(path, *(candle(number) for number in range(10)))

    async def check(line: Line) -> None:
        def reconnect() -> None:
            for state in ("closed", "open"):
                line.supervisor.on_connection(
                    ConnectionStatus("feed-1", ("btcusdt@kline_1m",), state, 0.0, 2, 1, 0.0, ""),  # type: ignore[arg-type]
                    counts=True,
                )

        reconnect()
        assert line.healer.report().rechecks == 1
        await until(lambda: line.counters.rechecked == 3)
        # Nothing has closed since: nothing to compare.
        reconnect()
        await until(lambda: line.healer.report().rechecks == 0)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda number: {8: 5, 9: 12}.get(number, 7)

    line = run(path, check, before=before, at=10, speed=20.0)
    assert line.stored() == {**dict.fromkeys(range(9), 7), 9: 12}
    assert line.counters.rechecked_different == 2
    assert line.exchange.asked == [(7, 10)]


def test_a_long_absence_is_filled_newest_first_in_tiles(path: Path) -> None:
    store(path, candle(-1_200))

    async def check(line: Line) -> None:
        assert line.supervisor.missing_candles == 1_199
        assert line.healer.report().open_gaps == {"found": 1}
        # A hole of now goes before the rest of it.
        await until(lambda: line.exchange.at_once == 1)
        line.clock.set_server_time(T0 + 2 * MINUTE_MS + 5_000, 0.0)
        line.come(1)
        assert line.exchange.hold is not None
        line.exchange.hold.set()
        await until(lambda: line.supervisor.missing_candles == 0)

    def before(exchange: Exchange) -> None:
        exchange.hold = asyncio.Event()

    line = run(path, check, before=before)
    assert line.exchange.asked[0] == (-499, 0)
    # Asked for together with what is left of the range, or alone: by its distance.
    assert line.exchange.asked[1] == (0, 1)
    assert line.exchange.asked[2:] == [(-998, -499), (-1_199, -998)]
    assert sorted(line.stored()) == list(range(-1_200, 2))
    assert line.gaps() == [
        ("candle_1m", -1_199, 0, "healed", "fetched"),
        ("candle_1m", 0, 1, "healed", "fetched"),
    ]


def test_what_rest_does_not_have_is_given_up_with_its_reason_and_may_come_late(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["unresolvable"] == 2)
        assert line.healer.report().ended == {"healed": 1, "unresolvable": 2}
        assert line.healer.report().open_gaps == {}
        await line.committed()
        assert line.gaps() == [
            ("candle_1m", -39, 0, "healed", "fetched"),
            ("candle_1m", -20, -10, "unresolvable", NO_CANDLE),
            ("candle_1m", -5, -4, "unresolvable", NO_CANDLE),
        ]
        assert line.supervisor.missing_candles == 11
        line.come(-5)
        await until(lambda: line.counters.gaps["healed"] == 2)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if -20 <= n < -10 or n == -5 else 7

    line = run(path, check, before=before, speed=3_000.0)
    # Ten pauses, and each time only what was left.
    assert line.exchange.asked == [(-39, 0)] + [(-20, -4)] * len(PAUSES_S)
    assert line.gaps()[-1][3] == "healed"


def test_an_odd_row_costs_itself_and_is_asked_for_until_it_is_good(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(
            lambda: sum(first == -5 for first, _ in line.exchange.asked) > len(PAUSES_S) + 3
        )
        # REST is there all the while: nobody else waits for this candle.
        assert not line.healer.trouble
        assert line.healer.report().open_gaps["healing"] >= 1
        assert line.supervisor.missing_candles >= 1
        await line.committed()
        assert {n for n in line.stored() if n < 0} == {*range(-40, 0)} - {-5}
        line.exchange.odd.clear()
        await until(lambda: -5 in line.stored())
        assert line.counters.gaps["unresolvable"] == 0

    def before(exchange: Exchange) -> None:
        exchange.odd = {-5}

    run(path, check, before=before, speed=3_000.0)


def test_what_was_given_up_and_is_stored_by_history_is_missing_no_more(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["unresolvable"] == 2)
        assert line.supervisor.missing_candles == 11
        # An hour later the exchange has them.
        line.exchange.trades = lambda _: 7
        backfill = Backfill(
            line.writer, line.rest, None, line.clock, lambda: [(BITCOIN, ("1m",))], HOUR_MS, 10**9,
            on_stored=line.healer.on_stored,
        )  # fmt: skip
        await backfill.fill()
        await until(lambda: line.supervisor.missing_candles == 0)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if -20 <= n < -10 or n == -5 else 7

    line = run(path, check, before=before, speed=1_000.0)
    assert [row[:4] for row in line.gaps() if row[1] < 0] == [
        ("candle_1m", -39, 0, "healed"),
        ("candle_1m", -20, -10, "healed"),
        ("candle_1m", -5, -4, "healed"),
    ]


def test_what_was_given_up_and_stored_since_is_reported_at_the_next_start(path: Path) -> None:
    def gap(first: int, after: int) -> Gap:
        return Gap(
            "candle_1m",
            PAIR,
            T0 + first * MINUTE_MS,
            T0 + after * MINUTE_MS,
            "unresolvable",
            NO_CANDLE,
        )

    stored = [candle(n) for n in (-9, -8, -7, -3, -1)]
    store(path, *stored, gap(-9, -7), gap(-7, -6), gap(-5, -4), gap(-4, -2))

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["healed"] == 2)

    line = run(path, check)
    # What is not there, or not all of it, stays given up.
    assert [row[1:4] for row in line.gaps()] == [
        (-9, -7, "healed"),
        (-7, -6, "healed"),
        (-5, -4, "unresolvable"),
        (-4, -2, "unresolvable"),
    ]
    assert line.exchange.asked == []


def test_a_candle_that_appears_late_is_taken(path: Path) -> None:
    async def check(line: Line) -> None:
        line.come(1)
        await until(lambda: len(line.exchange.asked) == 3)
        assert line.supervisor.missing_candles == 1
        line.exchange.trades = lambda _: 4
        await until(lambda: line.supervisor.missing_candles == 0)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda _: None

    line = run(path, check, before=before, at=0, speed=60.0)
    assert line.gaps() == [("candle_1m", 0, 1, "healed", "fetched")]


def test_a_pair_that_ended_is_given_as_the_reason(path: Path) -> None:
    store(path, candle(-3))
    ended = Instrument(SYMBOL, PAIR, "USDT", "SETTLING", "PERPETUAL", 0, T0 - MINUTE_MS)

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["unresolvable"] == 1)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if n >= -1 else 7

    line = run(path, check, before=before, speed=3_000.0, instrument=ended)
    assert line.gaps() == [
        ("candle_1m", -2, -1, "healed", "fetched"),
        ("candle_1m", -1, 0, "unresolvable", ENDED),
    ]


@pytest.mark.parametrize("status", [500, 503])
def test_while_rest_fails_it_is_asked_once_at_a_time_and_nothing_is_given_up(
    path: Path, status: int
) -> None:
    channels = ("1m", "3m", "5m", "15m")
    store(path, candle(-2_000), *(other(name) for name in channels[1:]))

    async def check(line: Line) -> None:
        await until(lambda: len(line.exchange.asked) >= 12)
        report = line.healer.report()
        assert f"status {status}" in report.trouble
        assert sum(report.open_gaps.values()) == 4
        # The first look asked for all of them together, later ones one by one.
        assert line.exchange.most_at_once <= min(REQUESTS, len(channels))
        line.exchange.most_at_once = 0
        await until(lambda: len(line.exchange.asked) >= 16)
        assert line.exchange.most_at_once == 1
        assert line.counters.gaps["unresolvable"] == 0

    def before(exchange: Exchange) -> None:
        exchange.failing = status

    run(path, check, before=before, speed=200.0, channels=channels)


def other(timeframe: str) -> Candle:
    length_ms = TIMEFRAMES_MS[timeframe]
    open_ms = (T0 - DAY_MS) // length_ms * length_ms
    return Candle(PAIR, timeframe, open_ms, 1, 1, 1, 1, 1, 1, 1, 1, True, open_ms + length_ms)


def test_holes_that_an_earlier_run_left_are_taken_up(path: Path) -> None:
    def gap(first: int, after: int, pair: str = PAIR, state: Any = "found") -> Gap:
        return Gap(
            "candle_1m", pair, T0 + first * MINUTE_MS, T0 + after * MINUTE_MS, state, "did not come"
        )

    store(
        path,
        *(candle(n) for n in (-100, -60, -59, -31, -1)),
        gap(-99, -60),
        gap(-58, -57),
        # Stored since, and of a pair that nobody follows any more.
        gap(-31, -30),
        gap(-9, -8, pair="OLD/USDT:USDT"),
        gap(-7, -6, state="unresolvable"),
        gap(-5, -4, state="healed"),
    )

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["healed"] == 3)

    line = run(path, check)
    asked = {n for first, after in line.exchange.asked for n in range(first, after)}
    assert {*range(-99, -60), -58} <= asked
    assert not asked & {-9, -7, -5}
    assert [(row[1], row[3], row[4]) for row in line.gaps()] == [
        (-99, "healed", "fetched"),
        (-58, "healed", "fetched"),
        (-31, "healed", "was stored meanwhile"),
        (-9, "unresolvable", "the pair is not collected any more"),
        (-7, "unresolvable", "did not come"),
        (-5, "healed", "did not come"),
    ]


def test_what_is_older_than_is_filled_is_left_alone(path: Path) -> None:
    store(path, candle(-40 * 1_440))

    async def check(line: Line) -> None:
        assert line.supervisor.missing_candles == 30 * 1_440 - 1
        await until(lambda: len(line.exchange.asked) >= 2)

    run(path, check)
