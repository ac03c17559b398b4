"""The main job with nothing else at hand: simulator, collector and reader, and a comparison at the end.

The simulator and the collector are processes of their own, started as a user would start them; this one
only reads, through the public reader. The truth are the candles that the exchange itself has, by its REST
API. A machine that is too busy for the speed makes the exchange slower, never a candle wrong.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from marketfeed.collector.status_report import StatusReport
from marketfeed.commands.demo_exchange import DemoExchange, SeriesRanges
from marketfeed.commands.demo_pace import BEHIND_S, LEAST_SPEED, FellBehindError, Pace
from marketfeed.commands.demo_report import (
    DemoError,
    DemoOptions,
    DemoReport,
    DemoResult,
    Watch,
    compare_readers,
    compare_stored,
    make_report,
)
from marketfeed.commands.processes import (
    PATIENCE_AT_MOST_S,
    START_TIMEOUT_S,
    Patience,
    Process,
    collector_process,
    influx_environment,
    simulator_process,
)
from marketfeed.errors import words_of
from marketfeed.grid import TimeRange
from marketfeed.journal.view import JournalView
from marketfeed.schema import TIMEFRAMES_MS, floor_to
from marketfeed.settings.load import load_settings

STORED_TIMEOUT_S: Final = 10.0
HEALED_WITHIN_S: Final = 60.0
"""Exchange seconds in which a candle whose frame was lost is fetched, an attempt that fails included."""
LOOK_EVERY_S: Final = 0.25
ALONE_S: Final = 0.5
"""Wall seconds for which the simulator is looked at before anybody listens to it."""
CLOSES_AT_LEAST: Final = 2.2
"""A demo that was slowed down streams on for so many candles of its shortest timeframe."""

Progress = Callable[[str, float], None]


async def run_demo(options: DemoOptions, progress: Progress) -> DemoResult:
    """Run the demonstration; `progress` is called with the stage and how far it is (0 to 1).

    Raises DemoError, or another MarketfeedError.
    """
    try:
        return await _run(options, progress)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"simulator or collector do not answer: {words_of(error)}") from error


async def _run(options: DemoOptions, progress: Progress) -> DemoResult:
    async with contextlib.AsyncExitStack() as stack:
        if options.directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marketfeed-")))
        else:
            directory = options.directory
            directory.mkdir(parents=True, exist_ok=True)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_AT_MOST_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        progress("starting the simulated exchange", 0.0)
        simulator = await stack.enter_async_context(simulator_process(options))
        exchange = DemoExchange(http, simulator.urls["rest_url"])
        pace, notes = Pace(options.speed), list[str]()
        while True:
            try:
                attempt = _Attempt(options, http, simulator, exchange, pace, directory, progress)
                result = await attempt.run()
            except FellBehindError as error:
                pace = Pace(pace.slower())
                notes.append(f"This machine is busy: {error}; slowed down to speed {pace.speed:g}.")
                progress(f"busy machine, slower: {pace.speed:g}", 0.0)
                await exchange.slow_down(pace.speed)
            else:
                report = msgspec.structs.replace(result.report, notes=[*notes, *_notes(pace)])
                return msgspec.structs.replace(result, report=report)


def _notes(pace: Pace) -> list[str]:
    """Notes on the attempt that was compared."""
    if pace.most_behind_s < BEHIND_S:
        return []
    words = f"This machine is busy: {pace.words()}. The times are its, not marketfeed's; "
    return [words + "every candle is compared all the same."]


class _Attempt:
    """One collector at one speed, until it is compared; FellBehindError says that it must be slower."""

    def __init__(
        self,
        options: DemoOptions,
        http: aiohttp.ClientSession,
        simulator: Process,
        exchange: DemoExchange,
        pace: Pace,
        directory: Path,
        progress: Progress,
    ) -> None:
        self._options = options
        self._http = http
        self._simulator = simulator
        self._exchange = exchange
        self._pace = pace
        self._directory = directory
        self._journal_path = directory / "journal.db"
        self._progress = progress

    async def run(self) -> DemoResult:
        """Start the collector, stream, stop it, compare. Raises FellBehindError and MarketfeedError."""
        options, exchange, journal_path = self._options, self._exchange, self._journal_path
        await self._simulator_keeps_up()
        async with contextlib.AsyncExitStack() as stack:
            self._progress("starting the collector", 0.0)
            collector = await stack.enter_async_context(
                collector_process(options, self._simulator.urls, self._directory, journal_path)
            )
            await self._all_subscribed(collector)
            await exchange.sync()
            watch = stack.enter_context(Watch(journal_path, options.timeframes, exchange.clock))
            state = await exchange.state()
            from_ms, sent_before = state.exchange_time_ms - state.lag_ms, state.published
            seconds = await self._stream(collector)
            state = await exchange.state()
            until_ms = state.exchange_time_ms - state.lag_ms
            self._progress("reading back", 1.0)
            published = await exchange.published(sent_before)
            pairs = {entry.pair for entry in JournalView(journal_path).catalog()}
            ranges = self._ranges(pairs | {one.pair for one in published}, from_ms, until_ms)
            await self._wait_stored(collector, ranges)
            status = await self._status(collector)
            watch.stop()
            if options.influx_url is not None:
                await self._wait_shipped(collector)
            await collector.stop()
            if not ranges:
                raise DemoError(
                    f"no candle closed within {seconds:g} s at speed {self._pace.speed:g}: "
                    "there is nothing to compare; stream for longer (--seconds)"
                )
            truth = await exchange.candles(ranges)
            comparison, differences, sample = compare_stored(journal_path, truth, exchange.clock)
            within = [
                one
                for one in published
                if (series := ranges.get((one.pair, one.timeframe))) is not None
                and series.start_ms <= one.open_time_ms < series.end_ms
            ]
            report = make_report(
                options, self._pace, seconds, status, within, comparison, watch, journal_path
            )
            report = msgspec.structs.replace(report, differences=differences)
            if options.influx_url is not None:
                report = await self._with_influxdb(report, set(ranges))
            return DemoResult(report, comparison, sample)

    async def _with_influxdb(self, report: DemoReport, series: set[tuple[str, str]]) -> DemoReport:
        settings = load_settings(None, influx_environment(self._options)).influxdb
        found = await compare_readers(self._http, settings, self._journal_path, series)
        return msgspec.structs.replace(report, influxdb=found)

    async def _simulator_keeps_up(self) -> None:
        """See that the simulator's markets alone are not too much: who asks it would wait ever longer.

        It makes up for all that it is behind before it answers REST.
        """
        while True:
            await asyncio.sleep(ALONE_S)
            self._simulator.check()
            state = await self._exchange.state()
            reached_ms = state.exchange_time_ms - state.lag_ms
            self._pace.look(time.monotonic(), reached_ms, state.lag_ms, None)
            if state.lag_ms < ALONE_S * 1000 * self._pace.speed or self._pace.speed <= LEAST_SPEED:
                return

    async def _all_subscribed(self, collector: Process) -> None:
        """Wait until the collector is healthy and has a mark price of every pair: only data proves."""
        patience = Patience(START_TIMEOUT_S, collector, self._simulator)
        report: StatusReport | None = None
        while not patience.is_over:
            report = await self._look(collector)
            if report.healthy and report.mark_price_age_s is not None:
                if report.pairs < self._options.pairs:
                    raise DemoError(
                        f"only {report.pairs} of {self._options.pairs} pairs are collected"
                    )
                return
            await asyncio.sleep(0.05)
        reasons = "; ".join(report.reasons) if report is not None else "no answer"
        raise DemoError(f"not all streams deliver: {reasons}\n{collector.tail()}")

    async def _stream(self, collector: Process) -> float:
        """Let it run for as long as asked for, and watch how it keeps up; returns the wall seconds."""
        options, speed = self._options, self._pace.speed
        seconds = options.seconds
        if speed < options.speed:
            shortest_ms = min(TIMEFRAMES_MS[name] for name in options.timeframes)
            seconds = max(seconds, CLOSES_AT_LEAST * shortest_ms / 1000 / speed)
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) < seconds:
            self._progress(f"streaming at speed {speed:g}", passed_s / seconds)
            await self._look(collector)
            await asyncio.sleep(min(LOOK_EVERY_S, seconds - passed_s))
        return passed_s

    async def _look(self, collector: Process) -> StatusReport:
        """See how both stand. Raises DemoError if one has ended, FellBehindError if they do not keep up."""
        for process in (self._simulator, collector):
            process.check()
        report = await self._status(collector)
        state = await self._exchange.state()
        reached_ms = state.exchange_time_ms - state.lag_ms
        self._pace.look(time.monotonic(), reached_ms, state.lag_ms, report.mark_price_age_s)
        return report

    def _ranges(self, pairs: Collection[str], from_ms: int, until_ms: int) -> SeriesRanges:
        """What closed of each series while it streamed, from the candle on that formed at `from_ms`."""
        found = {}
        for timeframe in self._options.timeframes:
            length_ms = TIMEFRAMES_MS[timeframe]
            time_range = TimeRange(floor_to(from_ms, length_ms), floor_to(until_ms, length_ms))
            if time_range.start_ms < time_range.end_ms:
                found.update({(pair, timeframe): time_range for pair in pairs})
        return found

    async def _wait_stored(self, collector: Process, ranges: SeriesRanges) -> None:
        """Wait until all of that can be read, or the collector has had its time (then it is missing)."""
        timeout_s = STORED_TIMEOUT_S + HEALED_WITHIN_S / self._pace.speed
        patience = Patience(timeout_s, collector, self._simulator)
        view = JournalView(self._journal_path)
        awaited = dict(ranges)
        while not patience.is_over:
            for process in (self._simulator, collector):
                process.check()
            awaited = {key: one for key, one in awaited.items() if view.holes(*key, one)}
            if not awaited:
                return
            await asyncio.sleep(0.05)

    async def _wait_shipped(self, collector: Process) -> None:
        """Wait until InfluxDB has all rows, while no more come; a stop alone waits for seconds only."""
        patience = Patience(START_TIMEOUT_S, collector, self._simulator)
        await self._exchange.control("pause")
        while not patience.is_over:
            collector.check()
            report = await self._status(collector)
            if report.shipping is None or not (report.shipping.unshipped or report.journal.pending):
                break
            await asyncio.sleep(LOOK_EVERY_S)
        await self._exchange.control("resume")

    async def _status(self, collector: Process) -> StatusReport:
        async with self._http.get(collector.urls["status_url"] + "/status") as response:
            return msgspec.json.decode(await response.read(), type=StatusReport)
