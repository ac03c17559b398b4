"""The main job with nothing else at hand: simulator, collector and reader, and a comparison at the end.

The simulator and the collector are processes of their own, started as a user would start them; this one
only reads, through the public reader. The truth is what the simulator says it has sent.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from marketfeed.clock import ExchangeClock
from marketfeed.collector.status_report import StatusReport
from marketfeed.commands.demo_report import (
    DemoError,
    DemoOptions,
    DemoResult,
    Watch,
    compare_readers,
    compare_stored,
    make_report,
)
from marketfeed.commands.processes import (
    START_TIMEOUT_S,
    Process,
    collector_process,
    influx_environment,
    simulator_process,
)
from marketfeed.settings.load import load_settings
from marketfeed.simulator.published import Published

STORED_TIMEOUT_S: Final = 10.0


async def run_demo(options: DemoOptions, progress: Callable[[str, float], None]) -> DemoResult:
    """Run the demonstration; `progress` is called with the stage and how far it is (0 to 1).

    Raises DemoError.
    """
    async with contextlib.AsyncExitStack() as stack:
        if options.directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marketfeed-")))
        else:
            directory = options.directory
            directory.mkdir(parents=True, exist_ok=True)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        progress("starting the simulated exchange", 0.0)
        simulator = await stack.enter_async_context(simulator_process(options))
        journal_path = directory / "journal.db"
        progress("starting the collector", 0.0)
        collector = await stack.enter_async_context(
            collector_process(options, simulator.urls, directory, journal_path)
        )
        await _all_subscribed(http, collector, options)
        clock = await _clock_of(http, simulator.urls["rest_url"])
        watch = stack.enter_context(Watch(journal_path, options.timeframes, clock))
        first = await _published(http, simulator.urls["rest_url"])
        skip = first[-1].number if first else 0
        await _let_run(options.seconds, progress, (simulator, collector))
        await _post(http, simulator.urls["rest_url"] + "/simulator/pause")
        published = await _published(http, simulator.urls["rest_url"], skip)
        paused_ms = await _time_ms(http, simulator.urls["rest_url"])
        progress("reading back", 1.0)
        await _wait_stored(watch, published)
        status = await _status(http, collector.urls["status_url"])
        watch.stop()
        await collector.stop()
        comparison, sample = compare_stored(journal_path, published, paused_ms, clock)
        report = make_report(options, status, published, comparison, watch, journal_path)
        if options.influx_url is not None:
            settings = load_settings(None, influx_environment(options)).influxdb
            influxdb = await compare_readers(
                http, settings, journal_path, {(s.pair, s.timeframe) for s in comparison}
            )
            report = msgspec.structs.replace(report, influxdb=influxdb)
        return DemoResult(report, comparison, sample)


async def _let_run(
    seconds: float, progress: Callable[[str, float], None], processes: Sequence[Process]
) -> None:
    started_s = time.monotonic()
    while (passed_s := time.monotonic() - started_s) < seconds:
        progress("streaming", passed_s / seconds)
        for process in processes:
            process.check()
        await asyncio.sleep(min(0.1, seconds - passed_s))


async def _all_subscribed(
    http: aiohttp.ClientSession, collector: Process, options: DemoOptions
) -> None:
    """Wait until the collector is healthy and has a mark price of every pair: only data proves."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    report: StatusReport | None = None
    while time.monotonic() < deadline_s:
        collector.check()
        report = await _status(http, collector.urls["status_url"])
        if report.healthy and report.mark_price_age_s is not None:
            if report.pairs < options.pairs:
                raise DemoError(f"only {report.pairs} of {options.pairs} pairs are collected")
            return
        await asyncio.sleep(0.05)
    reasons = "; ".join(report.reasons) if report is not None else "no answer"
    raise DemoError(f"not all streams deliver: {reasons}\n{collector.tail()}")


async def _wait_stored(watch: Watch, published: Sequence[Published]) -> None:
    """Wait until the newest candle of each series is readable, or time is up (then it is missing)."""
    newest = {(item.pair, item.timeframe): item for item in published}
    deadline_s = time.monotonic() + STORED_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if all(watch.has(item) for item in newest.values()):
            return
        await asyncio.sleep(0.02)


async def _time_ms(http: aiohttp.ClientSession, rest_url: str) -> int:
    async with http.get(rest_url + "/fapi/v1/time") as response:
        return int((await response.json())["serverTime"])


async def _clock_of(http: aiohttp.ClientSession, rest_url: str) -> ExchangeClock:
    clock = ExchangeClock()
    started_s = time.monotonic()
    async with http.get(rest_url + "/fapi/v1/time") as response:
        answer = await response.json()
    clock.set_server_time(answer["serverTime"], time.monotonic() - started_s, answer["speed"])
    return clock


async def _published(http: aiohttp.ClientSession, rest_url: str, after: int = 0) -> list[Published]:
    async with http.get(f"{rest_url}/simulator/published", params={"after": after}) as response:
        items = msgspec.json.decode(await response.read(), type=list[Published])
    return [item for item in items if item.receivers]


async def _post(http: aiohttp.ClientSession, url: str) -> None:
    async with http.post(url) as response:
        response.raise_for_status()


async def _status(http: aiohttp.ClientSession, status_url: str) -> StatusReport:
    async with http.get(status_url + "/status") as response:
        return msgspec.json.decode(await response.read(), type=StatusReport)
