"""Single streams fall silent among living ones: each is found within its deadline, and the others go on."""

from pathlib import Path

import pytest
from fault_line import START_MS, Line, run_line
from scoreboard import Row, Scoreboard

from marketfeed.gaps.deadlines import CANDLE_SILENT_MS, MARK_PRICE_DUE_S
from marketfeed.gaps.supervisor import candle_due_ms
from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.fault_kinds import Mute

PAIR = "ETH/USDT:USDT"
MARK = "ethusdt@markPrice"
KLINE = "ethusdt@kline_1m"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def only_overdue(line: Line, *words: str) -> bool:
    """Exactly one series is silent, and it is the one meant."""
    report = line.report
    return sum(report.overdue.values()) == 1 and all(w in report.overdue_series[0] for w in words)


async def assert_one_found(line: Line, pair: str, channel: str) -> None:
    """The silent series is shown everywhere, and no connection was touched for it."""
    await line.assert_shown("1 series are silent", pair, channel)
    assert line.report.overdue == {channel: 1}
    assert await line.metric("marketfeed_overdue_series", channel=channel) == 1.0
    assert [connection.opened for connection in line.report.connections] == [1] * len(
        line.report.connections
    )


def test_a_mark_price_that_is_mute_from_its_first_message(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.sim.hub.listeners(MARK) > 0)
        subscribed_ms = line.sim.now_ms()
        found_ms = await line.until(lambda: only_overdue(line, PAIR, "mark_price"))
        noticed_s = (found_ms - subscribed_ms) / 1000
        assert noticed_s <= MARK_PRICE_DUE_S + line.margin_s()
        await assert_one_found(line, PAIR, "mark_price")
        assert line.report.mark_price_age_s is None
        # It is asked for again, for as long as that changes nothing.
        await line.until(lambda: line.report.resubscribed >= 2)
        assert line.report.resubscribed == await line.metric("marketfeed_resubscribed_total")
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.flowing)
        verdict = line.judge(START_MS, whole_ms - 5_000)
        assert (verdict.good, verdict.listed) == (True, 0), verdict
        scoreboard.add(
            Row(
                fault="mark price mute from its first message",
                lost=f"mark prices of 1 of 8 pairs meanwhile; {verdict.text()}",
                noticed_after_s=noticed_s,
                whole_after_s=(whole_ms - subscribed_ms) / 1000,
            )
        )

    run_line(path, check, before=[Mute(MARK)], speed=30.0)


@pytest.mark.long(20)
def test_one_of_656_streams_falls_silent(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        assert line.report.streams == 656
        victim = line.sim.market.instruments[100]
        stream = f"{victim.symbol.lower()}@markPrice"
        others_before = line.report.frames
        fault_ms = await line.start(Mute(stream))
        found_ms = await line.until(lambda: only_overdue(line, victim.pair, "mark_price"))
        noticed_s = (found_ms - fault_ms) / 1000
        assert noticed_s <= MARK_PRICE_DUE_S + line.margin_s()
        await assert_one_found(line, victim.pair, "mark_price")
        # 655 others go on: three mark prices of each in ten seconds, and more.
        assert line.report.frames - others_before > 3 * 163
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.flowing)
        assert line.report.missing_candles == 0
        scoreboard.add(
            Row(
                fault="one mark price of 656 streams falls silent",
                lost="mark prices of 1 of 164 pairs meanwhile",
                noticed_after_s=noticed_s,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, pairs=164, timeframes=("1m", "3m", "5m"), speed=10.0)


def test_a_kline_stream_falls_silent_while_its_mark_price_lives(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        close_ms = START_MS + MINUTE_MS
        await line.until(lambda: line.sim.now_ms() < close_ms)
        fault_ms = await line.start(Mute(KLINE))
        found_ms = await line.until(lambda: only_overdue(line, PAIR, "1m"))
        assert found_ms - close_ms <= CANDLE_SILENT_MS + line.margin_s() * 1000
        await assert_one_found(line, PAIR, "1m")
        # The next one is missing as well, and a mark price comes all the time. What is fetched
        # meanwhile does not speak for the stream.
        await line.healed(START_MS + 2 * MINUTE_MS)
        assert line.report.overdue == {"1m": 1}
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: not line.report.overdue)
        gaps = [
            (gap.kind, gap.pair, gap.start_ms, gap.end_ms, gap.state)
            for gap in line.gaps()
            if gap.pair == PAIR and gap.start_ms >= START_MS
        ][:2]
        assert gaps == [
            (
                *("candle_1m", PAIR, START_MS + at * MINUTE_MS, START_MS + (at + 1) * MINUTE_MS),
                "healed",
            )
            for at in range(2)
        ]
        verdict = line.judge(START_MS, START_MS + 2 * MINUTE_MS)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 16), verdict
        scoreboard.add(
            Row(
                fault="kline stream silent, its mark price alive",
                lost=verdict.text(),
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=40.0)


def test_a_closing_frame_is_lost(path: Path, scoreboard: Scoreboard) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        # What closed at the start, of each series.
        before = line.collector._counters.gaps["found"]
        fault_ms = await line.start(Mute(KLINE, closing_only=True, count=1))
        close_ms = START_MS + MINUTE_MS
        found_ms = await line.until(lambda: line.collector._counters.gaps["found"] > before)
        assert found_ms - close_ms <= candle_due_ms(40.0) + line.margin_s() * 1000
        whole_ms = await line.until(lambda: line.report.missing_candles == 0)
        await line.healed(close_ms)
        assert await line.metric("marketfeed_missing_candles") == 0.0
        assert await line.metric("marketfeed_gaps_total", state="healed") == before + 1.0
        # Its stream lives: it is not asked for again.
        assert line.report.resubscribed == 0
        verdict = line.judge(START_MS, close_ms)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 8), verdict
        (lost,) = [one for one in line.sim.published() if one.withheld]
        gaps = [gap for gap in line.gaps() if gap.kind == "candle_1m" and gap.start_ms >= START_MS]
        assert [(gap.pair, gap.start_ms, gap.state) for gap in gaps] == [
            (lost.pair, lost.open_time_ms, "healed")
        ]
        scoreboard.add(
            Row(
                fault="a closing frame is lost",
                lost=verdict.text(),
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=40.0)
