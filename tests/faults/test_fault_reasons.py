"""When a collector is not well and when that is over: by a simulated exchange, from the fault to its end."""

import asyncio
from pathlib import Path
from typing import Final

import pytest
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.collector.reasons import LATELY_S, SETTLED_TROUBLE_S, Kind
from marketfeed.gaps.deadlines import MARK_PRICE_DUE_S
from marketfeed.pairs import listing
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import HangRest, Mute, RefuseRest, ShiftStamps
from marketfeed.simulator.listings import SetStatus

SPEED: Final = 60.0
PAIR: Final = "ETH/USDT:USDT"
OTHER: Final = "BTC/USDT:USDT"
ALL_OF_PAIR: Final = "ethusdt@*"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def says(line: Line, kind: Kind) -> bool:
    """Whether `/health` gives a reason of this kind."""
    return line.reports(kind.shown.partition("N ")[0].partition("…")[0], f"(until {kind.ends})")


async def stays(line: Line, for_s: float, reasons: set[str]) -> None:
    """Look again and again for so many exchange seconds that no reason has other words than these."""
    until_ms = line.sim.now_ms() + round(for_s * 1000)
    while line.sim.now_ms() < until_ms:
        other = [r for r in line.report.reasons if not any(words in r for words in reasons)]
        assert other == []
        await asyncio.sleep(0.01)


def test_what_a_halted_pair_lacks_is_shown_and_no_reason(
    path: Path, scoreboard: Scoreboard
) -> None:
    """It halts without notice, and REST has nothing of it, nor of anybody."""

    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.start(RefuseRest("klines", 503))
        # A candle closes before exchangeInfo can be asked: that is 10 s after its last mark price.
        await line.until(lambda: line.sim.now_ms() % MINUTE_MS >= MINUTE_MS - 8_000)
        fault_ms = line.sim.now_ms()
        line.sim.change(SetStatus(PAIR, "BREAK"))
        found_ms = await line.until(lambda: line.report.perhaps_halted == PAIR)
        # What is silent and missing is shown: no reason before exchangeInfo has answered, nor then.
        while PAIR not in line.report.halted:
            assert line.report.reasons == []
            await asyncio.sleep(0.01)
        await line.until(lambda: line.report.missing_of_ended > 0)
        await stays(line, 180.0, set())
        report = line.report
        assert report.perhaps_halted == ""
        assert report.missing_candles == report.missing_of_ended
        assert report.oldest_hole_s == 0.0
        assert (await line.health())[0] == 200
        assert await line.metric("marketfeed_missing_of_ended") == report.missing_of_ended
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.report.missing_candles == 0)
        scoreboard.add(
            Row(
                fault="a pair halts without notice, REST down meanwhile",
                lost="nothing: fetched when REST answers; never a reason",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


def test_a_single_quiet_pair_is_a_reason_once_exchange_info_says_that_it_trades(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        hanging = await line.sim.faults.start(HangRest("exchangeInfo"))
        asked = line.sim.rest.requests["exchangeInfo"]
        fault_ms = await line.start(Mute(ALL_OF_PAIR))
        await line.until(lambda: line.report.perhaps_halted == PAIR)
        report = line.report
        assert report.reasons == []
        # It is shown all the same, and its candles are fetched.
        assert report.overdue_of_halted["mark_price"] == 1
        assert report.overdue_series[0].startswith(f"{PAIR} mark_price")
        assert await line.metric("marketfeed_overdue_series", channel="mark_price") is None
        # What hangs is asked at once; it says so when it is answered, and not before.
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] > asked)
        before_ms = line.sim.now_ms()
        while line.sim.now_ms() < before_ms + 60_000:
            assert (line.report.perhaps_halted, line.report.reasons) == (PAIR, [])
            await asyncio.sleep(0.005)
        await line.sim.faults.end(hanging)
        found_ms = await line.until(lambda: line.report.reasons)
        assert says(line, Kind.SILENT)
        await line.assert_shown("are silent", f"{PAIR} mark_price")
        assert line.report.perhaps_halted == ""
        assert await line.metric("marketfeed_overdue_series", channel="mark_price") == 1.0
        # So it stays until it brings data again, whatever is answered.
        asked = line.sim.rest.requests["exchangeInfo"]
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] > asked)
        assert says(line, Kind.SILENT)
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        scoreboard.add(
            Row(
                fault="a pair that trades brings nothing any more",
                lost="its mark prices meanwhile",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


def test_a_quiet_pair_beside_a_halted_one_is_asked_about_by_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halted one is told of, and is not the second of two: without an answer the other were none."""

    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        line.sim.change(SetStatus(OTHER, "BREAK"))
        await line.until(lambda: line.report.halted == {OTHER: "BREAK"})
        # Nothing but a reason to ask has it asked, once it has been by the time that was set before.
        monkeypatch.setattr(listing, "LISTING_EVERY_S", 1e9)
        asked = line.sim.rest.requests["exchangeInfo"]
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] > asked)
        asked = line.sim.rest.requests["exchangeInfo"]
        await line.start(Mute(ALL_OF_PAIR))
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] > asked)
        await line.until(lambda: says(line, Kind.SILENT))
        await line.assert_shown("are silent", f"{PAIR} mark_price")
        assert line.report.perhaps_halted == ""
        await line.sim.faults.end()
        await line.until(lambda: line.report.reasons == [])
        assert line.report.halted == {OTHER: "BREAK"}

    run_line(path, check, speed=SPEED)


def test_two_quiet_pairs_are_a_reason_at_once(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.start(Mute(ALL_OF_PAIR))
        fault_ms = await line.start(Mute("btcusdt@*"))
        found_ms = await line.until(lambda: line.reports("2 series are silent", PAIR, OTHER))
        assert (found_ms - fault_ms) / 1000 <= MARK_PRICE_DUE_S + line.margin_s()
        assert line.report.perhaps_halted == ""

    run_line(path, check, speed=20.0)


def test_settled_rates_that_cannot_be_had_are_a_reason_after_a_minute(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        fault_ms = await line.start(RefuseRest("fundingRate", 503))
        parts = line.collector._reporter.parts
        assert parts is not None
        await line.until(lambda: parts.settled_rates.trouble)
        failed_ms = line.sim.now_ms()
        found_ms = await line.until(lambda: says(line, Kind.SETTLED))
        assert (found_ms - failed_ms) / 1000 >= SETTLED_TROUBLE_S - line.margin_s()
        await line.assert_shown("settled funding rates are not fetched for", "status 503")
        assert line.report.settled is not None
        assert "status 503" in line.report.settled.trouble
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        assert not says(line, Kind.SETTLED)
        scoreboard.add(
            Row(
                fault="REST has no settled funding rates",
                lost="nothing: fetched later",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    # A settlement is due soon.
    run_line(path, check, speed=SPEED, start_ms=START_MS // (8 * HOUR_MS) * 8 * HOUR_MS - MINUTE_MS)


def test_a_frame_refused_for_its_stamp_is_a_reason_for_ten_minutes(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.start(ShiftStamps("btcusdt@markPrice*", offset_ms=DAY_MS, count=1))
        found_ms = await line.until(lambda: says(line, Kind.FRAMES_REFUSED))
        await line.assert_shown("frames were refused for their stamps", "is to come")
        await line.until(lambda: line.sim.now_ms() >= found_ms + 5 * MINUTE_MS)
        assert says(line, Kind.FRAMES_REFUSED)
        # Another one: ten minutes from then on.
        again_ms = await line.start(ShiftStamps("btcusdt@markPrice*", offset_ms=DAY_MS, count=1))
        over_ms = await line.until(lambda: not says(line, Kind.FRAMES_REFUSED))
        assert (over_ms - again_ms) / 1000 >= LATELY_S - line.margin_s()
        await line.until(lambda: line.delivering)

    run_line(path, check, speed=SPEED)


@pytest.mark.parametrize(
    ("fault", "is_reason"),
    [
        pytest.param(RefuseRest("exchangeInfo", 429, count=1), False, id="429-once"),
        pytest.param(RefuseRest(None, 429, count=2), True, id="429-twice"),
        pytest.param(RefuseRest("exchangeInfo", 418, count=1), True, id="418"),
        pytest.param(RefuseRest("exchangeInfo", 429, 90, count=1), True, id="429-90-s"),
    ],
)
def test_rest_that_is_stopped_for_more_than_a_minute_is_a_reason(
    path: Path, fault: RefuseRest, is_reason: bool
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.start(fault)
        await line.until(lambda: line.report.rest.stopped_s > 0)
        seen = False
        # Until all is over: the stops, and the pauses between the questions that were answered so.
        while line.sim.faults.active or line.report.rest.stopped_s:
            seen |= says(line, Kind.REST_STOPPED)
            await asyncio.sleep(0.002)
        assert seen == is_reason
        await line.until(lambda: line.delivering)

    run_line(path, check, speed=20.0)
