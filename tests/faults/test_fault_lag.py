"""Frames lag by ten minutes: what is due comes by REST, and when they catch up nothing is wrong or twice."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from fault_audit import audit
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.binance import exchange_time
from marketfeed.binance.budget import Budget
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.gaps.supervisor import candle_due_ms
from marketfeed.schema import HOUR_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import Lag, ShiftClock

SPEED: Final = 60.0
LAG_MS: Final = 10 * MINUTE_MS
HOLD_S: Final = 3.0
"""Wall seconds for which the latest stamp holds: a minute of them would be an hour of the simulator's."""
HEALED_WITHIN_S: Final = 6.0
Rows = dict[tuple[int, int, int], tuple[int, int]]


def rows_of(path: Path, before_ms: int) -> Rows:
    """The number and the trades of each stored candle that opens before `before_ms`."""
    with closing(sqlite3.connect(path)) as db:
        return {
            (pair_id, length_ms, open_ms): (seq, trades)
            for pair_id, length_ms, open_ms, seq, trades in db.execute(
                """SELECT pair_id, timeframe_ms, open_time, seq, trades FROM candle
                   WHERE open_time < ?""",
                (before_ms,),
            )
        }


async def assert_audited(line: Line, since_ms: int, until_ms: int) -> int:
    """All candles of a range are stored as REST answers them, and no others; returns how many."""
    symbols = {one.pair: one.symbol for one in line.sim.market.instruments}
    found = await asyncio.to_thread(
        audit,
        line.path,
        line.sim.rest_url,
        symbols,
        line.sim.options.timeframes,
        since_ms,
        until_ms,
    )
    assert found.good, found
    return found.expected


def lag_ms(line: Line) -> int:
    return line.sim.now_ms() - line.collector._clock.certain_ms()


async def while_frames_lag(line: Line, minutes: int) -> list[float]:
    """So many boundaries pass; returns how long after each all of its candles were stored (exchange s)."""
    found = []
    for _ in range(minutes):
        close_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.until(lambda close_ms=close_ms: line.sim.now_ms() >= close_ms)
        expected = len(line.sim.market.instruments)

        def stored(close_ms: int = close_ms, expected: int = expected) -> bool:
            with closing(sqlite3.connect(line.path)) as db:
                (count,) = db.execute(
                    "SELECT count(*) FROM candle WHERE timeframe_ms = ? AND open_time = ?",
                    (MINUTE_MS, close_ms - MINUTE_MS),
                ).fetchone()
            return bool(count == expected)

        found.append((await line.until(stored) - close_ms) / 1000)
        assert lag_ms(line) > LAG_MS - MINUTE_MS
        await line.assert_shown("frames are stamped -")
    return found


def test_frames_that_begin_to_lag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scoreboard: Scoreboard
) -> None:
    monkeypatch.setattr(exchange_time, "HOLD_S", HOLD_S)

    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        since_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.until(lambda: line.sim.now_ms() > since_ms)
        fault_ms = await line.start(Lag(by_s=LAG_MS / 1000))
        found_ms = await line.until(lambda: line.reports("frames are stamped -"))
        healed_s = await while_frames_lag(line, 5)
        bound_s = HEALED_WITHIN_S + candle_due_ms(SPEED) / 1000 + 2 * line.margin_s()
        assert max(healed_s) <= bound_s
        until_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS
        await line.healed(until_ms)
        assert await assert_audited(line, since_ms, until_ms) > 0
        before = rows_of(line.path, until_ms)
        await line.sim.faults.end()
        ended_ms = line.sim.now_ms()
        whole_ms = await line.until(lambda: line.delivering)
        close_ms = whole_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.healed(close_ms)
        await assert_audited(line, since_ms, close_ms)
        # The frames that came late have changed nothing that REST had brought.
        assert rows_of(line.path, until_ms) == before
        verdict = line.judge(since_ms, close_ms)
        assert (verdict.good, verdict.listed, verdict.stale) == (True, 0, 0), verdict
        assert line.collector._counters.rechecked_different == 0
        scoreboard.add(
            Row(
                fault="all frames lag by 10 min",
                lost=f"{verdict.text()}, each fetched within {max(healed_s):.0f} s of its close",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - ended_ms) / 1000,
            )
        )

    run_line(tmp_path / "journal.db", check, timeframes=("1m", "3m"), speed=SPEED)


def test_a_start_while_frames_lag(tmp_path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.reports("frames are stamped -"))
        since_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS
        await while_frames_lag(line, 3)
        until_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS
        await line.healed(until_ms)
        assert await assert_audited(line, since_ms, until_ms) > 0
        before = rows_of(line.path, until_ms)
        await line.sim.faults.end()
        await line.until(lambda: line.delivering)
        assert rows_of(line.path, until_ms).items() >= before.items()

    run_line(
        tmp_path / "journal.db",
        check,
        before=[Lag(by_s=LAG_MS / 1000)],
        speed=SPEED,
        start_ms=START_MS - 30 * MINUTE_MS,
    )


def test_a_time_that_is_hours_ahead_closes_nothing_and_proves_nothing_absent(
    tmp_path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        since_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS
        fault_ms = await line.start(ShiftClock(offset_ms=3 * HOUR_MS))
        clock = line.collector._clock
        async with aiohttp.ClientSession() as session:
            # The collector would in ten minutes; once in doubt, it asks again by itself.
            rest = BinanceRest(session, line.sim.rest_url, turns=Turns(Budget(1_200), clock))
            await rest.server_time()
        await line.until(lambda: clock.past().confirmed_ms > line.sim.now_ms() + 2 * HOUR_MS)
        asked = line.sim.rest.requests["klines"]
        asked_ms = line.sim.now_ms()
        await line.until(lambda: line.sim.now_ms() > asked_ms + 5 * MINUTE_MS)
        asked = line.sim.rest.requests["klines"] - asked
        await line.assert_shown("frames are stamped -")
        # What REST does not have yet is no hole that it answered without: all is asked for again.
        assert asked > 0
        assert [gap for gap in line.gaps() if gap.state == "unresolvable"] == []
        newest_ms = max(open_ms for _, _, open_ms in rows_of(line.path, 1 << 62))
        assert newest_ms + MINUTE_MS <= line.sim.now_ms()
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        close_ms = whole_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.healed(close_ms)
        await assert_audited(line, since_ms, close_ms)
        scoreboard.add(
            Row(
                fault="REST's time is 3 h ahead, the frames' is not",
                lost=f"nothing; {asked} requests in 5 min for what is to come",
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(tmp_path / "journal.db", check, timeframes=("1m", "3m"), speed=20.0)
