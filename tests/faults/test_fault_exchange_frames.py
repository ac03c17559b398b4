"""Frames come twice, in another order, spoilt, or too large: what is stored is right, the rest is listed."""

from pathlib import Path
from typing import Literal

import pytest
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.schema import MINUTE_MS, TIMEFRAMES_MS
from marketfeed.simulator.fault_kinds import Fault, Spoil
from marketfeed.simulator.published import Published

MINUTES = 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


class Spoilt:
    """What a fault of frames, at work for some minutes, has come to."""

    def __init__(self, line: Line, fault_ms: int, first_ms: int, last_ms: int) -> None:
        self.fault_ms = fault_ms
        self.verdict = line.judge(first_ms, last_ms)
        self.withheld = [
            one for one in line.sim.published() if one.withheld and _within(one, first_ms, last_ms)
        ]


def _within(one: Published, first_ms: int, last_ms: int) -> bool:
    end_ms = one.open_time_ms + TIMEFRAMES_MS[one.timeframe]
    return one.open_time_ms >= first_ms and end_ms <= last_ms


async def let_strike(line: Line, fault: Fault) -> Spoilt:
    """Let a fault strike for some minutes, wait for all that is due, and compare."""
    await line.until(lambda: line.delivering)
    # The candles that form now close under the fault.
    first_ms = line.sim.now_ms() // MINUTE_MS * MINUTE_MS
    last_ms = first_ms + MINUTES * MINUTE_MS
    fault_ms = await line.start(fault)
    await line.until(lambda: line.sim.now_ms() >= last_ms + 5_000)
    await line.sim.faults.end()
    await line.until(lambda: line.flowing)
    await line.healed(last_ms)
    return Spoilt(line, fault_ms, first_ms, last_ms)


@pytest.mark.parametrize("how", ["duplicate", "reorder"])
def test_repeats_and_another_order_cost_nothing(
    path: Path, scoreboard: Scoreboard, how: Literal["duplicate", "reorder"]
) -> None:
    async def check(line: Line) -> None:
        spoilt = await let_strike(line, Spoil(how=how, share=0.3))
        verdict = spoilt.verdict
        assert (verdict.good, verdict.listed, verdict.stale) == (True, 0, 0), verdict
        assert verdict.published >= 8 * MINUTES
        assert line.report.missing_candles == 0
        assert [connection.opened for connection in line.report.connections] == [1]
        assert line.report.rejects == {}
        scoreboard.add(Row(fault=f"frames: {how} 30 %", lost=verdict.text()))

    run_line(path, check, timeframes=("1m", "3m"), speed=120.0, start_ms=START_MS + 30_000)


@pytest.mark.parametrize("how", ["garble", "truncate"])
def test_spoilt_frames_are_refused_and_their_candles_healed(
    path: Path, scoreboard: Scoreboard, how: Literal["garble", "truncate"]
) -> None:
    async def check(line: Line) -> None:
        spoilt = await let_strike(line, Spoil(how=how, share=0.2, seed=7))
        verdict = spoilt.verdict
        assert verdict.good, verdict
        assert (verdict.listed, verdict.stale) == (0, 0)
        # Some bytes of a frame are no matter: such a candle came by its frame, and right.
        healed = [gap for gap in line.gaps() if gap.kind.startswith("candle") and gap.healed]
        assert 0 < len(healed)
        assert spoilt.withheld
        report = line.report
        assert [connection.opened for connection in report.connections] == [1]
        assert sum(report.rejects.values()) > 50
        assert report.rejects["not_json"] == await line.metric(
            "marketfeed_rejects_total", reason="not_json"
        )
        await line.until(lambda: line.delivering)
        scoreboard.add(Row(fault=f"frames: {how} 20 %", lost=verdict.text()))

    run_line(path, check, timeframes=("1m", "3m"), speed=120.0, start_ms=START_MS + 30_000)


def test_an_oversize_frame_costs_its_connection_and_no_more(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        spoilt = await let_strike(line, Spoil("*@kline_*", how="oversize", count=1))
        verdict = spoilt.verdict
        assert verdict.good, verdict
        report = line.report
        assert [connection.opened for connection in report.connections] == [2]
        assert "exceeds limit 1048576" in report.connections[0].last_error
        (gap,) = [gap for gap in line.gaps() if gap.kind.startswith("connection")]
        assert gap.healed
        assert gap.end_ms is not None
        scoreboard.add(
            Row(
                fault="a frame of more than 1 MiB",
                lost=verdict.text(),
                noticed_after_s=(gap.start_ms - spoilt.fault_ms) / 1000,
                whole_after_s=(gap.end_ms - spoilt.fault_ms) / 1000,
            )
        )

    run_line(path, check, timeframes=("1m", "3m"), speed=120.0, start_ms=START_MS + 30_000)
