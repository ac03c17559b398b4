"""Holes are fetched from a real HTTP server that plays the exchange's klines as each test wants them."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
from aiohttp import web

from marketfeed.binance.backoff import ConnectionStatus
from marketfeed.binance.budget import Budget
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import Instrument
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.healer import PAUSES_S, REQUESTS, Healer
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import Promises
from marketfeed.gaps.supervisor import Supervisor, candle_due_ms
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in
from marketfeed.history.backfill import Backfill
from marketfeed.ingest.intake import Intake
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import LATE_FOR_MS, NO_CANDLE, NOT_KEPT, STORED, Key, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap
from marketfeed.schema import DAY_MS, MINUTE_MS, TIMEFRAMES_MS
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


def closing_frame(item: Candle) -> bytes:
    k = {
        "t": item.open_time_ms, "T": item.close_time_ms - 1, "s": SYMBOL, "i": item.timeframe,
        "f": 1, "L": 2, "o": str(item.open), "c": str(item.close), "h": str(item.high),
        "l": str(item.low), "v": str(item.volume), "n": item.trades, "x": True,
        "q": str(item.quote_volume), "V": str(item.taker_buy_volume), "Q": "1", "B": "0",
    }  # fmt: skip
    data = {"e": "kline", "E": item.close_time_ms, "s": SYMBOL, "k": k}
    return json.dumps({"stream": "btcusdt@kline_1m", "data": data}).encode()


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
        self.asked_s: list[float] = []
        """When, by the line's clock (exchange s)."""
        self.clock = ExchangeClock()
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
        after = first + int(query["limit"]) * TIMEFRAMES_MS[query["interval"]] // MINUTE_MS
        assert end_ms == start_ms + (after - first) * MINUTE_MS - 1
        self.asked.append((first, after))
        self.asked_s.append(self.clock.elapsed_s())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.failing is not None:
                # Those that are asked together overlap.
                await asyncio.sleep(0.05)
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
    """Intake, supervisor, promises and healer over a journal, without a feed.

    Candles are numbered from T0 on. Nothing of before the first start is promised, but what `store` says.
    """

    def __init__(self, path: Path, exchange: Exchange, instrument: Instrument | None) -> None:
        self.path = path
        self.exchange = exchange
        self.instrument = instrument
        self.clock = exchange.clock
        self.counters = CollectorCounters()

    @contextlib.asynccontextmanager
    async def running(self, at: int, speed: float, channels: Sequence[str]) -> AsyncIterator[None]:
        """Run from 5 s after the close of candle `at` - 1 on."""
        self.clock.set_server_time(T0 + at * MINUTE_MS + 5_000, 0.0, speed)
        collected = [] if self.instrument is None else [self.instrument]
        async with JournalWriter(self.path) as writer, aiohttp.ClientSession() as session:
            self.writer = writer
            writer.gap_states = self.counters.gaps
            await writer.call(lambda journal: setattr(journal, "gap_states", self.counters.gaps))
            decoder = FrameDecoder({SYMBOL: PAIR})
            self.intake = Intake(
                writer, decoder, self.counters, self.clock, MINUTE_MS, lambda: None
            )
            self.holes = Holes(
                lambda: writer.coverage,
                lambda: self.intake.received,
                lambda: candle_due_ms(self.clock.speed),
            )
            self.supervisor = Supervisor(
                self.intake, self.clock, self.counters, collected, channels, 3_000, self.holes
            )
            turns = Turns(Budget(1_000_000), self.clock)
            self.rest = rest = BinanceRest(session, self.exchange.url, turns=turns)
            self.healer = Healer(
                self.holes, rest, self.intake, writer, self.clock, self.counters,
                {one.pair: one for one in collected}.get,
            )  # fmt: skip
            self.supervisor.on_reconnected = self.healer.recheck
            promised = asyncio.Event()
            promises = Promises(writer, self.clock, lambda: collected, channels, 0, promised.set)
            # Anew: however long this took, nothing has closed meanwhile.
            self.clock.set_server_time(T0 + at * MINUTE_MS + 5_000, 0.0, speed)
            self.supervisor.start()
            tasks = [
                asyncio.create_task(self.intake.run()),
                asyncio.create_task(promises.run()),
                asyncio.create_task(self.healer.run()),
            ]
            try:
                if collected:
                    await promised.wait()
                yield
            finally:
                self.intake.end()
                await tasks[0]
                for task in tasks[1:]:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    def set_time(self, now_ms: int) -> None:
        """Let it be `now_ms` at the exchange, by its frames too."""
        for _ in range(2):
            self.clock.set_server_time(now_ms, 0.0, self.clock.speed)
        self.clock.on_stamp(now_ms)

    def come(self, *numbers: int) -> None:
        """Let the stream bring closed candles."""
        for number in numbers:
            self.intake.on_frame(closing_frame(candle(number)))
        self.supervisor.take_in()

    @property
    def missing(self) -> int:
        """How many candles are due and not there, what the exchange does not have included."""
        now_ms = self.clock.now_ms()
        return sum(
            candles_in(hole.time_range, TIMEFRAMES_MS[key[1]])
            for key in self.holes.series()
            for hole in self.holes.lacking(key, now_ms)
        )

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
    instrument: Instrument | None = BITCOIN,
    until_number: int | None = None,
) -> Line:
    """Check a line that runs from 5 s after candle `at` on; its pair ends with candle `until_number` - 1."""
    collected = instrument
    if instrument is not None and until_number is not None:
        end_ms = T0 + until_number * MINUTE_MS
        collected = msgspec.structs.replace(instrument, delivery_ms=end_ms)

    async def main() -> Line:
        async with serving() as exchange:
            before(exchange)
            line = Line(path, exchange, collected)
            async with line.running(at, speed, channels):
                await check(line)
            return line

    return asyncio.run(main())


def store(path: Path, *records: Candle | Gap) -> None:
    """What an earlier run has left: its series are promised from their first candles on."""
    batch = Batch()
    batch.extend(records)
    first_ms: dict[Key, int] = {}
    for item in batch.candles:
        key = item.pair, item.timeframe
        first_ms[key] = min(item.open_time_ms, first_ms.get(key, item.open_time_ms))
    with Journal.open(path) as journal:
        journal.promise([Promise(*key, now_ms=at_ms, keep_ms=0) for key, at_ms in first_ms.items()])
        journal.write(batch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_the_holes_of_a_series_are_fetched_at_once_and_stored(path: Path) -> None:
    async def check(line: Line) -> None:
        line.set_time(T0 + 8 * MINUTE_MS + 2_000)
        line.come(0, 3, 4, 7)
        assert line.missing == 4
        await line.committed()
        # In the journal with the candles behind them: after a crash nobody else would find them.
        assert [row[:4] for row in line.gaps()] == [
            ("candle_1m", 1, 3, "found"),
            ("candle_1m", 5, 7, "found"),
        ]
        assert line.exchange.hold is not None
        line.exchange.hold.set()
        await until(lambda: line.missing == 0)

    def before(exchange: Exchange) -> None:
        exchange.hold = asyncio.Event()
        # A minute without a trade is a candle as well.
        exchange.trades = lambda number: 0 if number == 5 else 3

    line = run(path, check, before=before)
    assert line.exchange.asked == [(1, 7)]
    assert line.stored() == {0: 7, 1: 3, 2: 3, 3: 7, 4: 7, 5: 0, 6: 3, 7: 7}
    assert line.gaps() == [
        ("candle_1m", 1, 3, "healed", STORED),
        ("candle_1m", 5, 7, "healed", STORED),
    ]
    assert line.counters.gaps == {"found": 2, "healed": 2}
    assert sum(line.counters.healed_lag.counts) == 4
    # What came by its stream is counted apart.
    assert sum(line.counters.close_lag.counts) == 4


def test_a_candle_that_does_not_come_is_fetched_4_s_after_its_close(path: Path) -> None:
    async def check(line: Line) -> None:
        line.set_time(T0 + MINUTE_MS + 4_000)
        assert line.missing == 0
        await until(lambda: line.exchange.asked)
        assert line.clock.now_ms() > T0 + MINUTE_MS + 4_000
        await until(lambda: line.missing == 0)
        await line.committed()

    line = run(path, check)
    assert line.exchange.asked == [(0, 1)]
    assert line.stored() == {0: 7}


def test_what_has_come_is_not_asked_for_while_the_disk_refuses(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.writer.call(refuse)
        line.set_time(T0 + 2 * MINUTE_MS + 5_000)
        line.come(0, 1)
        await until(lambda: line.counters.commit_failures >= 2)
        # A full disk is no silence.
        line.supervisor._look()
        assert line.supervisor.overdue == []
        line.set_time(T0 + 4 * MINUTE_MS + 5_000)
        await until(lambda: len(line.exchange.asked) == 1)
        await until(lambda: line.missing == 0)
        assert line.stored() == {}
        # It is asked for no more, and no series is silent for that; but no reader has it.
        failures = line.counters.commit_failures
        await until(lambda: line.counters.commit_failures >= failures + 2)
        line.supervisor.take_in()
        line.supervisor._look()
        assert line.holes.count(line.clock.now_ms()) == {}
        assert line.holes.for_healing((PAIR, "1m"), line.clock.now_ms()) == []
        assert line.holes.open_longer_than(0.0, line.clock.now_ms()).total() == 4
        await line.writer.call(take_again)
        await line.committed()

    def refuse(journal: Journal) -> None:
        journal.db.execute("PRAGMA query_only = ON")

    def take_again(journal: Journal) -> None:
        journal.db.execute("PRAGMA query_only = OFF")

    line = run(path, check)
    assert line.exchange.asked == [(2, 4)]
    assert line.stored() == dict.fromkeys(range(4), 7)


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

    line = run(path, check, before=before, at=10, speed=20.0, until_number=10)
    assert line.stored() == {**dict.fromkeys(range(9), 7), 9: 12}
    assert line.counters.rechecked_different == 2
    assert line.exchange.asked == [(7, 10)]


def test_a_long_absence_is_filled_newest_first_and_beyond_the_newest_by_history(
    path: Path,
) -> None:
    store(path, candle(-1_200))

    async def check(line: Line) -> None:
        assert line.missing == 1_199
        assert line.healer.report().backlog == 1_199
        await until(lambda: line.exchange.at_once == 1)
        assert line.healer.report().open_gaps == {"healing": 1}
        # A hole of now goes before the rest of it.
        line.set_time(T0 + 2 * MINUTE_MS + 5_000)
        line.come(1)
        assert line.exchange.hold is not None
        line.exchange.hold.set()
        await until(lambda: line.missing == 1_199 - 499)
        await line.committed()
        # What is older is history's, and nothing is nobody's.
        now_ms = line.clock.now_ms()
        assert line.holes.for_healing((PAIR, "1m"), now_ms) == []
        assert line.holes.for_history((PAIR, "1m"), now_ms) == (
            TimeRange(T0 - 1_199 * MINUTE_MS, T0 - 499 * MINUTE_MS),
        )
        assert sorted(line.stored()) == [-1_200, *range(-499, 2)]
        assert line.exchange.asked == [(-499, 0), (0, 1)]
        await history(line).fill()

    def before(exchange: Exchange) -> None:
        exchange.hold = asyncio.Event()

    line = run(path, check, before=before)
    assert sorted(line.stored()) == list(range(-1_200, 2))
    assert {row[3:] for row in line.gaps()} == {("healed", STORED)}


def history(line: Line) -> Backfill:
    return Backfill(
        line.writer, line.rest, None, line.clock, lambda: [(BITCOIN, ("1m",))], line.holes, 0, 10**9
    )  # fmt: skip


def test_the_newest_of_many_series_are_asked_for_first(path: Path) -> None:
    channels = ("1m", "3m", "5m", "15m")
    store(path, candle(-10), *(other(name) for name in channels[1:]))

    async def check(line: Line) -> None:
        await until(lambda: line.exchange.at_once == 4)
        ends = [tile.end_ms for tile in line.healer._asking.values()]
        assert ends == sorted(ends, reverse=True)
        assert len(set(ends)) > 1
        # Of each series one at a time.
        assert line.healer._tiles() == []
        line.exchange.failing = 503
        line.exchange.hold.set()

    def before(exchange: Exchange) -> None:
        exchange.hold = asyncio.Event()

    run(path, check, before=before, channels=channels)


def test_what_rest_does_not_have_is_given_up_with_its_reason_and_may_come_late(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["unresolvable"] == 2)
        await line.committed()
        report = line.healer.report()
        assert report.ended["unresolvable"] == 2
        assert (report.open_gaps, report.backlog) == ({}, 0)
        given_up = [row for row in line.gaps() if row[3] == "unresolvable"]
        assert given_up == [
            ("candle_1m", -20, -10, "unresolvable", NO_CANDLE),
            ("candle_1m", -5, -4, "unresolvable", NO_CANDLE),
        ]
        assert line.missing == 11
        # It is waited for no more: a feeder is not kept from the rest.
        assert line.holes.complete_until((PAIR, "1m"), line.clock.now_ms()) == T0
        assert line.holes.ready((PAIR, "1m"), 40, line.clock.now_ms())
        line.come(-5)
        await line.committed()
        assert line.missing == 10

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if -20 <= n < -10 or n == -5 else 7

    line = run(path, check, before=before, at=15, speed=3_000.0, until_number=0)
    # Again only what was left.
    assert line.exchange.asked[0] == (-39, 0)
    assert set(line.exchange.asked[1:]) == {(-20, -4)}
    assert sorted(line.stored()) == [n for n in range(-40, 0) if not -20 <= n < -10]
    assert ("candle_1m", -5, -4, "healed", STORED) in line.gaps()


def test_what_rest_answers_without_is_asked_for_with_growing_pauses_until_two_count(
    path: Path,
) -> None:
    store(path, candle(-1))

    async def check(line: Line) -> None:
        # Closed for ten minutes: before that it may come late.
        await until(lambda: line.counters.gaps["unresolvable"] == 1)
        assert line.clock.now_ms() >= T0 + MINUTE_MS + LATE_FOR_MS
        asked = len(line.exchange.asked)
        await until(lambda: line.clock.now_ms() > T0 + 20 * MINUTE_MS)
        assert len(line.exchange.asked) == asked

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda _: None

    line = run(path, check, before=before, at=1, speed=120.0, until_number=1)
    assert set(line.exchange.asked) == {(0, 1)}
    asked_s = line.exchange.asked_s
    assert 2 <= len(asked_s) <= len(PAUSES_S) + 2
    for before_s, after_s, pause_s in zip(asked_s, asked_s[1:], PAUSES_S, strict=False):
        assert after_s - before_s >= pause_s
    # Found once, however often it was asked for.
    assert line.counters.gaps == {"found": 1, "unresolvable": 1}


def test_an_odd_row_costs_itself_and_is_asked_for_until_it_is_good(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(
            lambda: sum(first == -5 for first, _ in line.exchange.asked) > len(PAUSES_S) + 3
        )
        # REST is there all the while: nobody else waits for this candle.
        assert not line.healer.trouble
        assert line.healer.report().open_gaps["healing"] >= 1
        assert line.missing >= 1
        await line.committed()
        assert {n for n in line.stored() if n < 0} == {*range(-40, 0)} - {-5}
        line.exchange.odd.clear()
        await until(lambda: -5 in line.stored())
        assert line.counters.gaps["unresolvable"] == 0

    def before(exchange: Exchange) -> None:
        exchange.odd = {-5}

    run(path, check, before=before, speed=3_000.0, until_number=0)


def test_what_was_given_up_and_is_stored_by_history_is_missing_no_more(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        await until(lambda: line.counters.gaps["unresolvable"] == 2)
        assert line.missing == 11
        # An hour later the exchange has them: an audit, or a command, stores them.
        found = [candle(n) for n in (*range(-20, -10), -5)]
        await line.writer.call(lambda journal: journal.write(Batch(candles=found)))
        assert line.missing == 0

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if -20 <= n < -10 or n == -5 else 7

    line = run(path, check, before=before, at=10, speed=1_000.0, until_number=0)
    healed = [row[:4] for row in line.gaps() if row[1] in (-20, -5)]
    assert healed == [("candle_1m", -20, -10, "healed"), ("candle_1m", -5, -4, "healed")]
    assert {row[3] for row in line.gaps()} == {"healed"}


def test_what_was_given_up_stays_so_at_the_next_start_and_what_was_not_is_asked_for(
    path: Path,
) -> None:
    store(path, *(candle(n) for n in (-30, -8, -7, -3, -1)))
    key = PAIR, "1m"
    with Journal.open(path) as journal:
        for minutes in (-2, 0):
            batch = Batch()
            where = TimeRange(T0 - 29 * MINUTE_MS, T0 - 20 * MINUTE_MS)
            batch.absent = [(key, where, T0 + minutes * MINUTE_MS)]
            journal.write(batch)

    async def check(line: Line) -> None:
        await until(lambda: line.missing == 9)
        await line.committed()

    line = run(path, check)
    assert [row[1:4] for row in line.gaps()] == [
        (-29, -20, "unresolvable"),
        (-20, -8, "healed"),
        (-6, -3, "healed"),
        (-2, -1, "healed"),
    ]
    assert line.exchange.asked == [(-20, -1)]


def test_a_candle_that_appears_late_is_taken(path: Path) -> None:
    async def check(line: Line) -> None:
        line.come(1)
        await until(lambda: len(line.exchange.asked) == 3)
        assert line.missing == 1
        line.exchange.trades = lambda _: 4
        await until(lambda: line.missing == 0)

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda _: None

    line = run(path, check, before=before, at=0, speed=60.0, until_number=2)
    assert line.gaps() == [("candle_1m", 0, 1, "healed", STORED)]


def test_nothing_is_asked_for_that_a_pairs_end_cuts(path: Path) -> None:
    store(path, candle(-3))
    ended = Instrument(SYMBOL, PAIR, "USDT", "SETTLING", "PERPETUAL", 0, T0 - MINUTE_MS)

    async def check(line: Line) -> None:
        await until(lambda: line.missing == 0)
        await line.committed()

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if n >= -1 else 7

    line = run(path, check, before=before, instrument=ended)
    assert line.exchange.asked == [(-2, -1)]
    # Nor is it a gap in the journal.
    assert line.gaps() == [("candle_1m", -2, -1, "healed", STORED)]


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
        assert sum(report.open_gaps.values()) >= 4
        # The first look asked for all of them together, later ones one by one.
        assert line.exchange.most_at_once <= min(REQUESTS, len(channels))
        line.exchange.most_at_once = 0
        await until(lambda: len(line.exchange.asked) >= 16)
        assert line.exchange.most_at_once == 1
        assert line.counters.gaps["unresolvable"] == 0
        known = line.holes.series().values()
        assert all(hole.empty_1_ms is None for covered in known for hole in covered.holes)

    def before(exchange: Exchange) -> None:
        exchange.failing = status

    run(path, check, before=before, speed=200.0, channels=channels)


def other(timeframe: str) -> Candle:
    length_ms = TIMEFRAMES_MS[timeframe]
    open_ms = (T0 - DAY_MS) // length_ms * length_ms
    return Candle(PAIR, timeframe, open_ms, 1, 1, 1, 1, 1, 1, 1, 1, True, open_ms + length_ms)


def test_holes_that_an_earlier_run_left_are_taken_up(path: Path) -> None:
    def old(number: int) -> Candle:
        return msgspec.structs.replace(candle(number), pair="OLD/USDT:USDT")

    # Of a pair that nobody follows any more, too.
    store(
        path,
        *(candle(n) for n in (-100, -60, -59, -31, -1)),
        *(old(n) for n in (-10, -8)),
    )

    async def check(line: Line) -> None:
        await until(lambda: line.missing == 0)
        await line.committed()
        assert list(line.writer.coverage) == [(PAIR, "1m")]

    line = run(path, check)
    asked = {n for first, after in line.exchange.asked for n in range(first, after)}
    assert {*range(-99, -60), *range(-58, -31), *range(-30, -1)} <= asked
    assert [(row[1], row[3], row[4]) for row in line.gaps()] == [
        (-99, "healed", STORED),
        (-58, "healed", STORED),
        (-30, "healed", STORED),
        (-9, "unresolvable", NOT_KEPT),
    ]


def test_holes_of_a_pair_that_nobody_knows_are_released(path: Path) -> None:
    store(path, candle(-3), candle(-1))

    async def check(line: Line) -> None:
        await until(lambda: not line.writer.coverage)

    line = run(path, check, instrument=None)
    assert line.exchange.asked == []
    assert line.gaps() == [("candle_1m", -2, -1, "unresolvable", NOT_KEPT)]
    assert line.stored() == {-3: 7, -1: 7}


def test_a_hole_that_leaves_the_newest_candles_keeps_its_pause(path: Path) -> None:
    store(path, candle(-1 - TILE_CANDLES - 3))

    async def check(line: Line) -> None:
        # All are missing at the exchange, and one candle of the window goes by each minute.
        await until(lambda: len(line.exchange.asked) == 1)
        for number in range(1, 4):
            await line.committed()
            line.set_time(T0 + number * MINUTE_MS + 5_000)
            line.come(number - 1)
            (hole,) = line.holes.for_healing((PAIR, "1m"), line.clock.now_ms())
            assert hole.start_ms == T0 + (number - TILE_CANDLES) * MINUTE_MS
            assert line.healer._tiles() == []

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda _: None

    run(path, check, before=before)


def test_pauses_are_kept_of_what_is_missing_alone(path: Path) -> None:
    store(path, candle(-40))

    async def check(line: Line) -> None:
        # Also by the stamps of frames, while old ones come.
        line.set_time(T0 + 5_000)
        await until(lambda: len(line.exchange.asked) == 2)
        await line.committed()
        line.healer._tiles()
        assert len(line.healer._pauses[PAIR, "1m"]) == 10
        line.come(*range(-20, -10, 2))
        await line.committed()
        line.healer._tiles()
        assert len(line.healer._pauses[PAIR, "1m"]) == 5
        line.come(*range(-10, 0, 2))
        await line.committed()
        line.healer._tiles()
        assert line.healer._pauses == {}

    def before(exchange: Exchange) -> None:
        exchange.trades = lambda n: None if n % 2 == 0 and n >= -20 else 7

    run(path, check, before=before)
