"""What the supervisor finds is stored with what it was found by."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.deadlines import Missing, Series
from marketfeed.gaps.supervisor import Supervisor
from marketfeed.ingest.intake import Intake
from marketfeed.journal.writer import JournalWriter
from marketfeed.schema import DAY_MS, MINUTE_MS

PAIR: Final = "BTC/USDT:USDT"
BITCOIN: Final = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, 0)
START_MS: Final = 1_790_000_160_000


def closing_frame(open_ms: int) -> bytes:
    k = {
        "t": open_ms, "T": open_ms + MINUTE_MS - 1, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 2,
        "o": "1", "c": "1", "h": "1", "l": "1", "v": "1", "n": 2, "x": True, "q": "1", "V": "1",
        "Q": "1", "B": "0",
    }  # fmt: skip
    data = {"e": "kline", "E": open_ms + MINUTE_MS, "s": "BTCUSDT", "k": k}
    return json.dumps({"stream": "btcusdt@kline_1m", "data": data}).encode()


def test_a_hole_is_committed_with_the_candle_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    clock = ExchangeClock()
    clock.set_server_time(START_MS + 5_000, 0.0)

    async def run() -> None:
        async with JournalWriter(path) as writer:
            counters = CollectorCounters()
            decoder = FrameDecoder({"BTCUSDT": PAIR})
            intake = Intake(writer, decoder, counters, clock, MINUTE_MS, lambda: None)
            supervisor = Supervisor(intake, clock, counters, [BITCOIN], ["1m"], 3_000)
            supervisor.start({(PAIR, "1m"): START_MS - MINUTE_MS}, DAY_MS)
            committing = asyncio.create_task(intake.run())
            clock.set_server_time(START_MS + 3 * MINUTE_MS, 0.0)
            # Nobody looks around: there are commits only, as before a crash.
            for number in (0, 2):
                intake.on_frame(closing_frame(START_MS + number * MINUTE_MS))
            while not counters.commits:
                await asyncio.sleep(0.001)
            assert counters.commits == 1
            intake.end()
            await committing

    asyncio.run(run())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute('SELECT kind, start, "end", healed, state FROM gap').fetchall() == [
            ("candle_1m", START_MS + MINUTE_MS, START_MS + 2 * MINUTE_MS, 0, "found")
        ]
        assert db.execute("SELECT count(*) FROM candle").fetchone() == (2,)


def test_what_a_returning_pair_lacks_is_missing_as_far_back_as_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    clock = ExchangeClock()
    now_ms = START_MS + 5_000
    clock.set_server_time(now_ms, 0.0)

    async def run() -> list[Missing]:
        found: list[Missing] = []
        async with JournalWriter(path) as writer:
            counters = CollectorCounters()
            intake = Intake(writer, FrameDecoder({}), counters, clock, MINUTE_MS, lambda: None)
            supervisor = Supervisor(intake, clock, counters, [], ["1m"], 3_000)
            supervisor.on_missing = found.append
            supervisor.start({}, DAY_MS)
            # It traded last ten days ago; a day is kept.
            supervisor.join(
                [BITCOIN], {(PAIR, "1m"): now_ms // MINUTE_MS * MINUTE_MS - 10 * DAY_MS}
            )
        return found

    found = asyncio.run(run())
    assert found
    first_ms = min(gap.start_ms for gap in found)
    assert now_ms - DAY_MS - MINUTE_MS <= first_ms <= now_ms - DAY_MS + MINUTE_MS


def test_a_series_is_unfilled_while_it_lacks_what_closed_before_its_subscription(
    tmp_path: Path,
) -> None:
    clock = ExchangeClock()
    series = Series(PAIR, "1m")

    async def run(
        stored: dict[tuple[str, str], int], now_ms: int
    ) -> tuple[Supervisor, list[Missing]]:
        found: list[Missing] = []
        clock.set_server_time(now_ms, 0.0)
        async with JournalWriter(tmp_path / "journal.db") as writer:
            intake = Intake(
                writer, FrameDecoder({}), CollectorCounters(), clock, MINUTE_MS, lambda: None
            )
            supervisor = Supervisor(intake, clock, CollectorCounters(), [BITCOIN], ["1m"], 3_000)
            supervisor.on_missing = found.append
            supervisor.start(stored, 30 * DAY_MS)
        return supervisor, found

    # Before it is due, too.
    supervisor, found = asyncio.run(run({}, START_MS + 1_000))
    assert (supervisor.unfilled(), found) == ({series: 1}, [])
    supervisor, _ = asyncio.run(run({}, START_MS + 12_000))
    supervisor._look()
    assert supervisor.unfilled() == {series: 1}
    # What is given up is unfilled no more.
    supervisor.give_up(series, START_MS - MINUTE_MS, "the exchange has none")
    assert (supervisor.unfilled(), supervisor.missing_candles) == ({}, 1)
    # After a long absence so many as feeders ask for count.
    supervisor, found = asyncio.run(run({(PAIR, "1m"): START_MS - 2 * DAY_MS}, START_MS + 12_000))
    assert supervisor.unfilled() == {series: 499}
    assert supervisor.missing_candles == 2 * 1_440 - 1
    # All is there; what is lost later is no matter of the start.
    supervisor, _ = asyncio.run(run({(PAIR, "1m"): START_MS - MINUTE_MS}, START_MS + 12_000))
    clock.set_server_time(START_MS + MINUTE_MS + 12_000, 0.0)
    supervisor._look()
    assert (supervisor.unfilled(), supervisor.missing_candles) == ({}, 1)


def test_nothing_is_awaited_from_before_a_listing(tmp_path: Path) -> None:
    clock = ExchangeClock()
    clock.set_server_time(START_MS + 12_000, 0.0)
    new = msgspec.structs.replace(BITCOIN, listed_ms=START_MS)

    async def run() -> Supervisor:
        async with JournalWriter(tmp_path / "journal.db") as writer:
            intake = Intake(
                writer, FrameDecoder({}), CollectorCounters(), clock, MINUTE_MS, lambda: None
            )
            supervisor = Supervisor(intake, clock, CollectorCounters(), [new], ["1m"], 3_000)
            supervisor.start({}, DAY_MS)
            supervisor._look()
        return supervisor

    supervisor = asyncio.run(run())
    assert (supervisor.unfilled(), supervisor.missing_candles) == ({}, 0)
