"""What the supervisor finds is stored with what it was found by."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.liveness import Missing
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import ExchangeClock
from marketfeed.intake import Intake
from marketfeed.metrics import Counters
from marketfeed.schema import DAY_MS, MINUTE_MS
from marketfeed.supervise import Supervisor
from marketfeed.writer import JournalWriter

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
            counters = Counters()
            decoder = FrameDecoder({"BTCUSDT": PAIR})
            intake = Intake(writer, decoder, counters, clock.now_ms, MINUTE_MS, lambda: None)
            supervisor = Supervisor(intake, clock, counters, [BITCOIN], ["1m"], 3_000)
            supervisor.start({}, DAY_MS)
            committing = asyncio.create_task(intake.run())
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
            counters = Counters()
            intake = Intake(
                writer, FrameDecoder({}), counters, clock.now_ms, MINUTE_MS, lambda: None
            )
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
