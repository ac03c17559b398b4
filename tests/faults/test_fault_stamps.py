"""Frames are stamped otherwise than the exchange's time is: what is stored, and what has closed by it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fault_line import Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.collector.reasons import Kind
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import Mute, RefuseRest, ShiftClock, ShiftStamps

SPEED = 20.0
BITCOIN = "BTC/USDT:USDT"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def newest_mark_ms(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT max(time) FROM mark_price").fetchone()[0])


def refused(line: Line) -> int:
    return line.report.rejects.get("bad_time", 0)


def is_whole(line: Line) -> bool:
    """Whether nothing is wrong any more: that frames were refused is told for another ten minutes."""
    report = line.report
    told = Kind.FRAMES_REFUSED.words.partition("{")[0]
    return (
        all(reason.startswith(told) for reason in report.reasons)
        and report.ready_pairs == report.pairs
        and report.mark_price_age_s is not None
    )


async def whole_again(line: Line, since_ms: int) -> tuple[int, str]:
    """Wait until all is whole, and well; returns when it was whole, and what was lost since `since_ms`."""
    whole_ms = await line.until(lambda: is_whole(line))
    close_ms = whole_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
    await line.healed(close_ms)
    await line.until(lambda: line.delivering)
    verdict = line.judge(since_ms // MINUTE_MS * MINUTE_MS, close_ms)
    assert (verdict.good, verdict.listed, verdict.stale) == (True, 0, 0), verdict
    assert newest_mark_ms(line.path) <= line.sim.now_ms()
    return whole_ms, verdict.text()


@pytest.mark.parametrize(
    "stream", ["btcusdt@markPrice*", "btcusdt@kline_1m"], ids=["mark-price", "candle"]
)
def test_a_frame_that_is_stamped_a_day_ahead_is_refused_and_moves_nothing(
    path: Path, scoreboard: Scoreboard, stream: str
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        fault_ms = await line.start(ShiftStamps(stream, offset_ms=DAY_MS, count=1))
        await line.until(lambda: refused(line) > 0)
        clock = line.collector._clock
        assert clock.certain_ms() <= line.sim.now_ms()
        assert abs(line.report.exchange_time_ms - line.sim.now_ms()) < MINUTE_MS
        whole_ms, lost = await whole_again(line, fault_ms)
        assert [gap for gap in line.gaps() if gap.start_ms > line.sim.now_ms()] == []
        scoreboard.add(
            Row(
                fault=f"one frame of {stream} stamped a day ahead",
                lost=lost,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


def test_a_first_frame_that_is_stamped_a_day_ahead_is_refused(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: refused(line) >= 10)
        await line.until(lambda: line.delivering)
        assert line.collector._clock.certain_ms() <= line.sim.now_ms()
        assert newest_mark_ms(path) <= line.sim.now_ms()

    # By far more than this host's clock may be ahead of the simulator's.
    run_line(path, check, before=[ShiftStamps(offset_ms=10_000 * DAY_MS, count=10)], speed=SPEED)


@pytest.mark.long(15)
def test_a_stream_that_is_stamped_a_day_ahead_is_silent(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        fault_ms = await line.start(ShiftStamps("btcusdt@*", offset_ms=DAY_MS))
        found_ms = await line.until(lambda: line.reports("are silent", f"{BITCOIN} mark_price"))
        await line.assert_shown("are silent", BITCOIN)
        # Its candles are fetched, and the others are as ever.
        await line.healed(line.sim.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS)
        assert {item.partition(" ")[0] for item in line.report.overdue_series} <= {BITCOIN}
        assert line.collector._clock.certain_ms() <= line.sim.now_ms()
        assert abs(line.report.exchange_time_ms - line.sim.now_ms()) < MINUTE_MS
        await line.sim.faults.end()
        whole_ms, lost = await whole_again(line, fault_ms)
        scoreboard.add(
            Row(
                fault="all frames of a pair stamped a day ahead",
                lost=f"{lost}; its mark prices meanwhile",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


@pytest.mark.parametrize("hours", [1, 48])
def test_an_exchange_whose_clock_steps_ahead_is_followed(
    path: Path, scoreboard: Scoreboard, hours: int
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        clock, ahead_ms = line.collector._clock, hours * HOUR_MS
        fault_ms = await line.start(ShiftStamps(offset_ms=ahead_ms))
        await line.start(ShiftClock(offset_ms=ahead_ms))

        def followed() -> bool:
            reached_ms = min(clock.certain_ms(), clock.now_ms())
            return abs(reached_ms - line.sim.now_ms() - ahead_ms) < MINUTE_MS

        found_ms = await line.until(followed)
        # What is stamped so is stored from then on.
        await line.until(lambda: newest_mark_ms(path) > found_ms + ahead_ms - MINUTE_MS)
        number = refused(line)
        await line.until(lambda: newest_mark_ms(path) > found_ms + ahead_ms + MINUTE_MS)
        assert refused(line) == number
        assert not line.reports("frames are stamped")
        scoreboard.add(
            Row(
                fault=f"the exchange's clock steps ahead by {hours} h",
                lost="mark prices until its time was asked",
                noticed_after_s=(found_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


@pytest.mark.long(15)
def test_frames_that_step_ahead_and_time_does_not_are_a_reason_and_close_nothing(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        clock = line.collector._clock
        fault_ms = await line.start(ShiftStamps(offset_ms=HOUR_MS))
        found_ms = await line.until(lambda: line.reports("frames are stamped +3"))
        await line.assert_shown("frames are stamped +3")
        # Data may be due by it; nothing has closed by it.
        assert clock.now_ms() > line.sim.now_ms() + HOUR_MS - MINUTE_MS
        assert clock.certain_ms() <= line.sim.now_ms()
        assert newest_mark_ms(path) <= line.sim.now_ms()
        await line.sim.faults.end()
        whole_ms, lost = await whole_again(line, fault_ms)
        scoreboard.add(
            Row(
                fault="all frames are stamped an hour ahead, the server's time is not",
                lost=f"{lost}; mark prices meanwhile",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


def test_without_frames_and_without_time_the_time_goes_on(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        clock = line.collector._clock
        await line.start(RefuseRest("time", 503))
        silent_ms = await line.start(Mute())
        await line.until(lambda: line.sim.now_ms() > silent_ms + 2 * MINUTE_MS)
        for now_ms in (clock.certain_ms(), clock.now_ms()):
            assert abs(now_ms - line.sim.now_ms()) < MINUTE_MS
        assert clock.certain_ms() <= line.sim.now_ms()
        await line.sim.faults.end()
        await whole_again(line, silent_ms)

    run_line(path, check, speed=SPEED)
