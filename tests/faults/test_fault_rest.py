"""REST is down, hangs, refuses or lies: the collector reports it, asks patiently, collects what it can."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvloop
from fault_line import START_MS, Line, run_line, settings_for
from scoreboard import Row, Scoreboard

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.klines import Past
from marketfeed.binance.rest import SILENCE_S, BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.collector import Collector
from marketfeed.collector.upkeep import CLOCK_DOUBT_EVERY_S
from marketfeed.errors import ExchangeRefusedError
from marketfeed.schema import HOUR_MS, MINUTE_MS
from marketfeed.settings.model import Settings
from marketfeed.simulator.fault_kinds import (
    Fault,
    HangRest,
    Mute,
    RefuseRest,
    ShiftClock,
    ShrinkExchangeInfo,
)
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

SPEED = 20.0
REST_TIMEOUT_S = 0.4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def started_once(path: Path) -> None:
    """Let a collector know what the exchange trades, and end."""

    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)

    run_line(path, check, speed=SPEED)


async def assert_unhealthy(line: Line, *words: str) -> None:
    await line.assert_shown(*words)
    assert await line.metric("marketfeed_healthy") == 0.0
    assert await line.metric("marketfeed_unhealthy_reasons") != 0.0


DOWN = [
    pytest.param(RefuseRest(status=503), "status 503", id="down"),
    pytest.param(RefuseRest("exchangeInfo", 503), "exchangeInfo: status 503", id="info-down"),
    pytest.param(HangRest("exchangeInfo"), "no answer in", id="info-hangs"),
    pytest.param(HangRest(), "no answer in", id="all-hangs"),
]


@pytest.mark.parametrize(("fault", "words"), DOWN)
def test_down_at_the_very_first_start(
    path: Path, scoreboard: Scoreboard, fault: Fault, words: str
) -> None:
    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        found_ms = await line.until(lambda: line.reports("does not tell what it trades", words))
        await assert_unhealthy(line, "does not tell what it trades", words)
        assert line.report.pairs == 0
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        assert line.report.pairs == 8
        name = fault.endpoint or "all of REST" if isinstance(fault, RefuseRest | HangRest) else ""
        how = "hangs" if isinstance(fault, HangRest) else "answers 503"
        scoreboard.add(
            Row(
                fault=f"{name} {how} at the very first start",
                lost="everything meanwhile",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[fault], speed=SPEED, rest_timeout_s=REST_TIMEOUT_S)


@pytest.mark.parametrize(
    ("fault", "words", "text"),
    [
        (RefuseRest("exchangeInfo", 503), "status 503", "answers 503"),
        (HangRest("exchangeInfo"), "no answer in", "hangs"),
    ],
    ids=["down", "hangs"],
)
def test_the_last_known_list_is_used(
    path: Path, scoreboard: Scoreboard, fault: Fault, words: str, text: str
) -> None:
    started_once(path)

    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        found_ms = await line.until(lambda: line.reports("its last known copy is used", words))
        await line.until(lambda: line.flowing)
        assert line.report.pairs == 8
        assert line.report.refused_pairs == {}
        # All else goes on, and this stays reported until the exchange has answered.
        await assert_unhealthy(line, "its last known copy is used", words)
        asked = line.sim.rest.requests["exchangeInfo"]
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] > asked)
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        close_ms = START_MS + MINUTE_MS
        await line.settled(close_ms)
        verdict = line.judge(START_MS, close_ms)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 8), verdict
        scoreboard.add(
            Row(
                fault=f"exchangeInfo {text} at a later start",
                lost=verdict.text(),
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[fault], speed=SPEED, rest_timeout_s=REST_TIMEOUT_S)


def test_what_a_shrunken_list_lacks_at_a_later_start_is_collected_all_the_same(
    path: Path, scoreboard: Scoreboard
) -> None:
    """A missing row ends nothing: these pairs are known to the journal."""
    started_once(path)

    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        whole_ms = await line.until(lambda: line.delivering)
        assert line.report.pairs == 8
        assert line.report.refused_pairs == {}
        close_ms = START_MS + MINUTE_MS
        await line.settled(close_ms)
        verdict = line.judge(START_MS, close_ms)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 8), verdict
        scoreboard.add(
            Row(
                fault="exchangeInfo has lost half of its contracts at a later start",
                lost=verdict.text(),
                noticed_after_s=None,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    fault = ShrinkExchangeInfo(0.5)
    run_line(path, check, before=[fault], speed=SPEED, rest_timeout_s=REST_TIMEOUT_S)


def test_what_a_shrunken_list_lacks_at_the_very_first_start_is_named(
    path: Path, scoreboard: Scoreboard
) -> None:
    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        found_ms = await line.until(lambda: bool(line.report.refused_pairs))
        await line.until(lambda: line.delivering)
        report = line.report
        assert 0 < report.pairs < 8
        assert len(report.refused_pairs) == 8 - report.pairs
        assert set(report.refused_pairs.values()) == {"the exchange lists no such contract"}
        assert await line.metric("marketfeed_pairs") == report.pairs
        scoreboard.add(
            Row(
                fault="exchangeInfo has lost half of its contracts at the very first start",
                lost=f"{8 - report.pairs} of 8 pairs are not collected, and named",
                noticed_after_s=(found_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[ShrinkExchangeInfo(0.5)], speed=SPEED)


@pytest.mark.parametrize(
    ("status", "retry_after_s", "pause_s"),
    [(429, 2, SILENCE_S[429]), (418, None, SILENCE_S[418]), (403, 1, SILENCE_S[403])],
    ids=["429", "418", "403"],
)
def test_refused_at_the_start_it_keeps_trying_without_hammering(
    path: Path,
    scoreboard: Scoreboard,
    status: int,
    retry_after_s: int | None,
    pause_s: float,
) -> None:
    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        found_ms = await line.until(lambda: line.reports(f"status {status}"))
        await assert_unhealthy(line, f"status {status}")
        whole_ms = await line.until(lambda: line.delivering)
        asked = list(line.sim.rest.asked)
        refused = [endpoint for _, endpoint in asked].index("exchangeInfo")
        # What such an answer costs at least, and no request of any kind in between.
        between_s = asked[refused + 1][0] - asked[refused][0]
        assert between_s >= pause_s / SPEED - 2 * line.stall_s - 0.01
        scoreboard.add(
            Row(
                fault=f"REST answers {status} at the start"
                + (f", Retry-After {retry_after_s}" if retry_after_s else ""),
                lost="everything meanwhile; asked again no sooner than demanded",
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(
        path,
        check,
        before=[RefuseRest("exchangeInfo", status, retry_after_s, count=1)],
        speed=SPEED,
    )


@pytest.mark.parametrize("hours", [3, -3])
def test_an_exchange_whose_clock_is_hours_off_this_hosts(
    path: Path, scoreboard: Scoreboard, hours: int
) -> None:
    # START_MS is no more this host's time than what is hours from it: all of the exchange is off.
    start_ms = START_MS + hours * HOUR_MS + 45_000

    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        first_ms = start_ms // MINUTE_MS * MINUTE_MS
        await line.settled(first_ms + 2 * MINUTE_MS)
        await line.until(lambda: line.delivering)
        # A moment in which this host is busy is many seconds here; what it must not be is hours.
        assert abs(line.report.exchange_time_ms - line.sim.now_ms()) < MINUTE_MS
        offset_s = await line.metric("marketfeed_clock_offset_seconds")
        assert offset_s is not None
        assert abs(offset_s) > HOUR_MS / 1000
        verdict = line.judge(first_ms, first_ms + 2 * MINUTE_MS)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 16), verdict
        scoreboard.add(
            Row(fault=f"this host's clock off the exchange's, {hours:+d} h", lost=verdict.text())
        )

    run_line(path, check, speed=40.0, start_ms=start_ms)


@pytest.mark.parametrize("hours", [3, -3])
def test_a_server_time_that_the_frames_contradict(
    path: Path, scoreboard: Scoreboard, hours: int
) -> None:
    async def check(line: Line) -> None:
        fault_ms = line.sim.state().start_ms
        reported = f"frames are stamped {'-' if hours > 0 else '+'}10"
        found_ms = await line.until(lambda: line.reports(reported))
        await assert_unhealthy(line, reported)
        await line.sim.faults.end()
        # It is asked again soon, not in minutes.
        whole_ms = await line.until(lambda: line.delivering)
        assert (whole_ms - fault_ms) / 1000 < 3 * CLOCK_DOUBT_EVERY_S * 40.0 + line.margin_s()
        # A moment in which this host is busy is many seconds here; what it must not be is hours.
        assert abs(line.report.exchange_time_ms - line.sim.now_ms()) < MINUTE_MS
        # Candles are due by the right clock again: one that does not come is found.
        first_ms = whole_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.settled(first_ms + MINUTE_MS)
        verdict = line.judge(first_ms, first_ms + MINUTE_MS)
        assert (verdict.good, verdict.listed, verdict.published) == (True, 0, 8), verdict
        scoreboard.add(
            Row(
                fault=f"the server answers a time {hours:+d} h off its frames'",
                lost=verdict.text(),
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, before=[ShiftClock(offset_ms=hours * HOUR_MS)], speed=40.0)


def test_a_server_time_that_jumps_once_while_frames_agree_with_the_clock_is_not_taken(
    path: Path,
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        clock = line.collector._clock
        async with aiohttp.ClientSession() as session:
            rest = BinanceRest(session, line.sim.rest_url, turns=Turns(Budget(1_200), clock))
            await rest.server_time()
            await line.sim.faults.start(ShiftClock(offset_ms=3 * HOUR_MS))
            await rest.server_time()
            assert abs(clock.now_ms() - line.sim.now_ms()) < 1_000
            assert clock.is_doubted()
            await line.sim.faults.end()
            await rest.server_time()
            assert not clock.is_doubted()

    run_line(path, check, speed=SPEED)


@pytest.mark.parametrize("minutes", [180, 2], ids=["three-hours", "two-minutes"])
def test_a_server_time_that_is_ahead_twice_is_a_reason_and_closes_nothing(
    path: Path, scoreboard: Scoreboard, minutes: int
) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        fault_ms = await line.start(ShiftClock(offset_ms=minutes * MINUTE_MS))
        clock = line.collector._clock
        async with aiohttp.ClientSession() as session:
            rest = BinanceRest(session, line.sim.rest_url, turns=Turns(Budget(1_200), clock))
            # The collector would in ten minutes; once in doubt, it asks again by itself.
            await rest.server_time()
        found_ms = await line.until(lambda: line.reports("frames are stamped -"))
        await assert_unhealthy(line, "frames are stamped -")
        # What is due follows, what has closed does not.
        assert line.report.exchange_time_ms > line.sim.now_ms() + (minutes - 1) * MINUTE_MS
        assert clock.certain_ms() <= line.sim.now_ms()
        await line.sim.faults.end()
        whole_ms = await line.until(lambda: line.delivering)
        assert abs(line.report.exchange_time_ms - line.sim.now_ms()) < MINUTE_MS
        close_ms = whole_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        await line.healed(close_ms)
        verdict = line.judge(fault_ms // MINUTE_MS * MINUTE_MS, close_ms)
        assert (verdict.good, verdict.listed) == (True, 0), verdict
        scoreboard.add(
            Row(
                fault=f"the server answers a time {minutes} min ahead, from some moment on",
                lost=verdict.text(),
                noticed_after_s=(found_ms - fault_ms) / 1000,
                whole_after_s=(whole_ms - fault_ms) / 1000,
            )
        )

    run_line(path, check, speed=SPEED)


@contextlib.asynccontextmanager
async def _after_a_pause(path: Path) -> AsyncIterator[tuple[Simulator, Settings]]:
    """An exchange, and a journal that a collector left some minutes ago."""
    options = SimulatorOptions(pairs=2, timeframes=("1m",), speed=60.0)
    async with Simulator(options) as sim:
        settings = settings_for(path, sim)
        async with _collecting(Collector(settings)) as first:
            await until(lambda: first.report().timeframes[0].candles >= 2)
        stopped_ms = sim.now_ms()
        await until(lambda: sim.now_ms() >= stopped_ms + 2 * MINUTE_MS)
        yield sim, settings


def test_a_start_fetches_no_candle_before_the_first_frame(path: Path) -> None:
    """The exchange's `time` may be ahead: what REST answers of forming candles would close."""

    async def run() -> None:
        async with _after_a_pause(path) as (sim, settings):
            klines = sim.rest.requests["klines"]
            await sim.faults.start(ShiftClock(offset_ms=3 * HOUR_MS))
            mute = await sim.faults.start(Mute())
            async with _collecting(Collector(settings)) as second:
                # Candles are missing by the time that it tells.
                await until(lambda: second.report().missing_candles > 100)
                asked = sim.rest.requests["exchangeInfo"]
                await until(lambda: sim.rest.requests["exchangeInfo"] > asked)
                assert sim.rest.requests["klines"] == klines
                assert second._clock.certain_ms() == 0
                await sim.faults.end(mute)
                await until(lambda: sim.rest.requests["klines"] > klines)
                assert 0 < second._clock.certain_ms() <= sim.now_ms()
                await sim.faults.end()
                # The time is asked again soon, not in ten minutes.
                await until(lambda: not second.report().missing_candles)
                await until(lambda: second.report().healthy)

    uvloop.run(run())


def test_a_start_while_no_time_is_told_goes_by_its_frames(path: Path) -> None:
    """Its clock is ahead by less than frames are held against: they say what has closed."""

    async def run() -> None:
        async with _after_a_pause(path) as (sim, settings):
            klines = sim.rest.requests["klines"]
            await sim.faults.start(RefuseRest("time", 503))
            clock = ExchangeClock(speed=60.0)
            clock.set_server_time(sim.now_ms() + 9_000, 0.0, 60.0)
            async with _collecting(Collector(settings, clock)) as second:
                await until(lambda: sim.rest.requests["klines"] > klines)
                assert clock.certain_ms() <= sim.now_ms() < clock.now_ms()
                await until(lambda: not second.report().missing_candles)
                assert not second.report().healthy
                await sim.faults.end()
                # The time is asked again soon, not in ten minutes.
                await until(lambda: second.report().healthy)

    uvloop.run(run())


@contextlib.asynccontextmanager
async def _collecting(collector: Collector) -> AsyncIterator[Collector]:
    stop = asyncio.Event()
    running = asyncio.create_task(collector.run(stop))
    try:
        yield collector
    finally:
        stop.set()
        await running


def test_to_ask_what_is_traded_sets_no_clock(path: Path) -> None:
    async def check(line: Line) -> None:
        await line.until(lambda: line.delivering)
        await line.sim.faults.start(ShiftClock(offset_ms=3 * HOUR_MS))
        asked = line.sim.rest.requests["exchangeInfo"]
        await line.until(lambda: line.sim.rest.requests["exchangeInfo"] >= asked + 3)
        assert abs(line.collector._clock.now_ms() - line.sim.now_ms()) < HOUR_MS

    run_line(path, check, speed=240.0)


class _Clock:
    """A clock that stands still until it is set to what has passed."""

    speed = 1.0

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_ms(self) -> int:
        return HOUR_MS + int(self.passed_s * 1000)

    def certain_ms(self) -> int:
        return self.now_ms()

    def past(self) -> Past:
        return Past(self.now_ms(), self.now_ms())

    def set_server_time(self, *_: object) -> None:
        pass

    def elapsed_s(self) -> float:
        return self.passed_s


def test_after_a_limit_nothing_at_all_is_asked() -> None:
    async def run() -> None:
        clock = _Clock()
        async with Simulator(SimulatorOptions(pairs=1)) as sim, aiohttp.ClientSession() as session:
            rest = BinanceRest(session, sim.rest_url, turns=Turns(Budget(1_200), clock))
            for status, retry_after_s, silence_s in (
                (429, 90, 90.0),
                (418, None, SILENCE_S[418]),
                (403, None, SILENCE_S[403]),
            ):
                await sim.faults.start(RefuseRest("time", status, retry_after_s, count=1))
                with pytest.raises(ExchangeRefusedError, match=f"status {status}"):
                    await rest.server_time()
                asked = len(sim.rest.asked)
                clock.passed_s += silence_s - 1.0
                with pytest.raises(ExchangeRefusedError, match="not asked for 1 s more") as caught:
                    await rest.exchange_info()
                assert (caught.value.status, caught.value.retry_after_s) == (status, 1.0)
                assert len(sim.rest.asked) == asked
                clock.passed_s += 1.0
                await rest.exchange_info()

    asyncio.run(run())
