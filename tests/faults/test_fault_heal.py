"""What streams lose is fetched within seconds of its close, and is what the exchange's REST answers."""

import asyncio
from pathlib import Path

import pytest
from fault_audit import audit
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.journal.coverage import STORED
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.fault_kinds import Fault, Mute, RefuseRest

HEALED_WITHIN_S = 6.0
SPEED = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def assert_audited(line: Line, since_ms: int, until_ms: int) -> int:
    """All candles of a range are stored as REST returns them; returns how many had no trade."""
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
    assert found.expected > 0
    return found.empty


def lags_s(line: Line) -> float:
    """An upper bound (exchange s) for the time from the close of each healed candle to its being stored."""
    tally = line.collector._counters.healed_lag
    worst = max(index for index, count in enumerate(tally.counts) if count)
    return tally.bounds[worst] / 1000 if worst < len(tally.bounds) else float("inf")


@pytest.mark.parametrize(
    ("fault", "lost", "text"),
    [
        (Mute("*", closing_only=True, for_s=10.0), 30, "all closing frames of a boundary lost"),
        (Mute("ethusdt@kline_1m", for_s=10.0), 1, "one stream mute over a boundary"),
    ],
    ids=["all", "one"],
)
def test_lost_frames_are_healed_within_seconds(
    path: Path, scoreboard: Scoreboard, fault: Fault, lost: int, text: str
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        close_ms = START_MS + MINUTE_MS
        await line.until(lambda: line.sim.now_ms() >= close_ms - 3_000)
        await line.start(fault)
        await line.until(lambda: line.collector._counters.gaps["healed"] >= lost)
        whole_ms = line.sim.now_ms()
        assert (whole_ms - close_ms) / 1000 <= HEALED_WITHIN_S + 2 * line.margin_s()
        await line.healed(close_ms)
        await line.until(lambda: line.flowing)
        # A hole that is healed is no reason to be unhealthy, and no connection was touched.
        assert [connection.opened for connection in line.report.connections] == [1]
        gaps = [gap for gap in line.gaps() if gap.start_ms == START_MS]
        assert [(gap.state, gap.reason) for gap in gaps] == [("healed", STORED)] * lost
        assert line.report.healing is not None
        assert line.report.healing.ended["healed"] >= lost
        assert await line.metric("marketfeed_gaps_total", state="healed") >= lost
        assert await line.metric("marketfeed_close_to_healed_seconds_count") >= lost
        await assert_audited(line, START_MS, close_ms)
        scoreboard.add(
            Row(
                fault=text,
                lost=f"nothing: {lost} candles fetched, each within {lags_s(line):g} s of its close",
                whole_after_s=(whole_ms - close_ms) / 1000,
            )
        )

    run_line(path, check, pairs=30, speed=SPEED, start_ms=START_MS + 45_000)


def test_intervals_without_trades_that_no_frame_tells_of(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.report.mark_price_age_s is not None)
        until_ms = START_MS + 4 * MINUTE_MS
        await line.until(lambda: line.sim.now_ms() >= until_ms)
        await line.healed(until_ms)
        empty = await assert_audited(line, START_MS, until_ms)
        assert empty > 0
        report = line.report
        assert report.healing is not None
        assert report.healing.ended["unresolvable"] == 0
        scoreboard.add(
            Row(fault=f"{empty} intervals without trades and frames", lost="nothing: fetched")
        )

    # So many pairs are more than a busy machine simulates faster: its frames would lag behind its time.
    run_line(
        path, check, pairs=60, speed=20.0, empty_closes=False, start_ms=START_MS - MINUTE_MS // 2
    )


def test_holes_wait_for_rest_and_are_reported_meanwhile(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.sim.faults.start(RefuseRest("klines", 503))
        fault_ms = await line.start(Mute("*", closing_only=True, count=8))
        close_ms = START_MS + MINUTE_MS
        await line.until(lambda: line.report.missing_candles == 8)
        await line.until(lambda: line.reports("8 closed candles are missing", "status 503"))
        await line.assert_shown("8 closed candles are missing", "status 503")
        assert await line.metric("marketfeed_open_gaps", state="healing") >= 1.0
        assert line.report.healing is not None
        assert "status 503" in line.report.healing.trouble
        # No hammering: one request asks whether it is back. After the second one pauses are 2, 4, 8 and 15 s.
        assert line.collector._reporter.parts is not None
        trouble = line.collector._reporter.parts.healer.trouble
        await line.until(lambda: trouble.failures >= 2)
        asked = line.sim.rest.requests["klines"]
        before_ms = line.sim.now_ms()
        await line.until(lambda: line.sim.now_ms() >= before_ms + 30_000)
        assert line.sim.rest.requests["klines"] - asked <= 4
        await line.sim.faults.end()
        ended_ms = line.sim.now_ms()
        whole_ms = await line.until(lambda: line.report.missing_candles == 0)
        await line.healed(close_ms)
        await line.until(lambda: line.delivering)
        await assert_audited(line, START_MS, close_ms)
        scoreboard.add(
            Row(
                fault="closing frames lost while REST answers 503",
                lost="nothing: fetched when it answered again",
                noticed_after_s=(ended_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - ended_ms) / 1000,
            )
        )

    run_line(path, check, speed=40.0)


def test_what_an_earlier_run_lacks_is_filled_at_the_next_start(
    path: Path, scoreboard: Scoreboard
) -> None:
    first_ms = START_MS - 30 * MINUTE_MS

    async def first(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.healed(first_ms + MINUTE_MS)

    # On a busy machine, too, it ends before the second one begins.
    run_line(path, first, speed=20.0, start_ms=first_ms + 30_000)

    async def second(line: Line) -> None:
        await line.until(lambda: line.flowing)
        await line.until(lambda: line.report.missing_candles == 0)
        await line.healed(START_MS + MINUTE_MS)
        # The same exchange half an hour later: its history is what was published.
        await assert_audited(line, first_ms + 2 * MINUTE_MS, START_MS + MINUTE_MS)
        gaps = [gap for gap in line.gaps() if gap.kind == "candle_1m"]
        assert {gap.state for gap in gaps} == {"healed"}
        scoreboard.add(Row(fault="half an hour not running", lost="nothing: fetched at the start"))

    run_line(path, second, speed=20.0)
