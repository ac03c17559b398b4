"""The main job with nothing else at hand: simulator, collector and reader, and a comparison at the end.

The simulator and the collector are processes of their own, started as a user would start them; this one
only reads, through the public reader. The truth is what the simulator says it has sent.
"""

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.clock import ExchangeClock
from marketfeed.collector.status_report import StatusReport
from marketfeed.errors import MarketfeedError
from marketfeed.influx_compare import compare
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.journal.journal import Journal
from marketfeed.settings.load import load_settings
from marketfeed.simulator.published import Published
from reader import MarketReader

START_TIMEOUT_S: Final = 60.0
SETTLE_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 20.0


class DemoError(MarketfeedError):
    """The demo could not be carried out: a process did not start, or ended early."""


class DemoOptions(msgspec.Struct, frozen=True):
    """What to demonstrate. `seconds` are wall seconds, `speed` exchange seconds per wall second."""

    pairs: int = 164
    timeframes: tuple[str, ...] = ("1m", "3m")
    seconds: float = 30.0
    speed: float = 60.0
    directory: Path | None = None
    influx_url: str | None = None


class Latency(msgspec.Struct, frozen=True):
    """Quantiles of wall milliseconds."""

    p50: float
    p99: float
    max: float


class InfluxResult(msgspec.Struct, frozen=True):
    """InfluxDB against the journal: rows, those that differ, and whether both readers answer the same."""

    rows: int
    missing: int
    extra: int
    frames: int
    unequal_frames: int

    @property
    def good(self) -> bool:
        """Whether everything is there as the journal has it."""
        return self.rows > 0 and not (self.missing or self.extra or self.unequal_frames)


class DemoReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it. `close_to_reader_ms`: from a closing frame's sending to its being readable.

    `influxdb` is there only when one was used.
    """

    pairs: int
    timeframes: list[str]
    seconds: float
    speed: float
    frames: int
    candles_expected: int
    candles_stored: int
    missing: int
    wrong: int
    mark_prices: int
    funding_rates: int
    close_to_reader_ms: Latency
    rss_mb: float
    influxdb: InfluxResult | None = None

    @property
    def good(self) -> bool:
        """Whether something was expected, and every candle is there with its numbers."""
        there = self.candles_expected > 0 and self.missing == 0 and self.wrong == 0
        return there and (self.influxdb is None or self.influxdb.good)


class SeriesResult(msgspec.Struct, frozen=True):
    """The comparison of one pair and timeframe."""

    pair: str
    timeframe: str
    expected: int
    stored: int
    missing: int
    wrong: int


class DemoResult(msgspec.Struct, frozen=True):
    """The report, the comparison series by series, and a few rows as the reader gives them."""

    report: DemoReport
    series: list[SeriesResult]
    sample: str


async def run_demo(options: DemoOptions, progress: Callable[[str, float], None]) -> DemoResult:
    """Run the demonstration; `progress` is told the stage and how far it is (0 to 1).

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
        simulator = await stack.enter_async_context(_simulator(options))
        journal_path = directory / "journal.db"
        progress("starting the collector", 0.0)
        collector = await stack.enter_async_context(
            _collector(options, simulator.urls, directory, journal_path)
        )
        await _all_subscribed(http, collector, options)
        clock = await _clock_of(http, simulator.urls["rest_url"])
        watch = stack.enter_context(_Watch(journal_path, options.timeframes, clock))
        first = await _published(http, simulator.urls["rest_url"])
        skip = first[-1].number if first else 0
        await _let_run(options.seconds, progress, (simulator, collector))
        await _post(http, simulator.urls["rest_url"] + "/simulator/pause")
        published = await _published(http, simulator.urls["rest_url"], skip)
        paused_ms = await _time_ms(http, simulator.urls["rest_url"])
        progress("reading back", 1.0)
        await _settled(watch, published)
        status = await _status(http, collector.urls["status_url"])
        watch.stop()
        await collector.stop()
        comparison, sample = _compare(journal_path, published, paused_ms, clock)
        report = _report(options, status, published, comparison, watch, journal_path)
        if options.influx_url is not None:
            influxdb = await _compare_influx(
                http, options, journal_path, {(s.pair, s.timeframe) for s in comparison}
            )
            report = msgspec.structs.replace(report, influxdb=influxdb)
        return DemoResult(report, comparison, sample)


def _report(
    options: DemoOptions,
    status: StatusReport,
    published: Sequence[Published],
    comparison: Sequence[SeriesResult],
    watch: "_Watch",
    journal_path: Path,
) -> DemoReport:
    with Journal.open(journal_path) as journal:
        counts = journal.row_counts()
    return DemoReport(
        pairs=len({item.pair for item in published}),
        timeframes=list(options.timeframes),
        seconds=options.seconds,
        speed=options.speed,
        frames=status.frames,
        candles_expected=len(published),
        candles_stored=sum(series.stored for series in comparison),
        missing=sum(series.missing for series in comparison),
        wrong=sum(series.wrong for series in comparison),
        mark_prices=counts[schema.TABLE_MARK_PRICE],
        funding_rates=counts[schema.TABLE_FUNDING_RATE],
        close_to_reader_ms=_quantiles(watch.latencies_ms(published)),
        rss_mb=round(status.rss_bytes / 1e6, 1),
    )


def _quantiles(values: Sequence[float]) -> Latency:
    if not values:
        return Latency(math.nan, math.nan, math.nan)
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.99) - 1)]
    return Latency(round(ordered[(len(ordered) - 1) // 2], 1), round(p99, 1), round(ordered[-1], 1))


def _compare(
    journal_path: Path, published: Sequence[Published], paused_ms: int, clock: ExchangeClock
) -> tuple[list[SeriesResult], str]:
    """Read every series back through the reader and compare it with what was sent, number by number.

    What a reader's frame does not hold (quote volume, taker volume, trades) is compared in the journal. The
    exchange stops at `paused_ms`: a candle that has closed by then, but whose frame it has not sent any more,
    may have been fetched by REST. It is left out.
    """
    truth: dict[tuple[str, str], dict[int, Published]] = defaultdict(dict)
    for item in published:
        truth[item.pair, item.timeframe][item.open_time_ms] = item
    results: list[SeriesResult] = []
    with (
        MarketReader.connect(f"sqlite:///{journal_path}", now_ms=clock.now_ms) as reader,
        Journal.open(journal_path) as journal,
    ):
        for (pair, timeframe), expected in sorted(truth.items()):
            since_ms = min(expected)
            frame = reader.get_ohlcv(pair, timeframe, since=since_ms, max_age_s=None)
            rows = dict(
                zip(
                    (int(date.timestamp() * 1000) for date in frame["date"]),
                    frame[["open", "high", "low", "close", "volume"]].to_numpy().tolist(),
                    strict=True,
                )
            )
            length_ms = schema.TIMEFRAMES_MS[timeframe]
            newest_ms = max(expected)
            rows = {
                open_ms: row
                for open_ms, row in rows.items()
                if not newest_ms < open_ms <= paused_ms - length_ms
            }
            stored = {
                candle.open_time_ms: candle
                for candle in journal.candles(pair, timeframe, since_ms, paused_ms)
            }
            wrong = sum(
                open_ms not in expected
                or open_ms not in stored
                or row != [getattr(expected[open_ms], name) for name in _IN_FRAMES]
                or any(
                    getattr(stored[open_ms], name) != getattr(expected[open_ms], name)
                    for name in schema.CANDLE_FIELDS
                )
                for open_ms, row in rows.items()
            )
            missing = len(expected.keys() - rows.keys())
            results.append(SeriesResult(pair, timeframe, len(expected), len(rows), missing, wrong))
        pair, timeframe = min(truth, key=lambda series: (series[0] != _SAMPLE_PAIR, series))
        return results, _sample(reader, pair, timeframe)


async def _compare_influx(
    http: aiohttp.ClientSession,
    options: DemoOptions,
    journal_path: Path,
    series: set[tuple[str, str]],
) -> InfluxResult:
    """Compare InfluxDB with the journal, row by row and as their readers answer."""
    settings = load_settings(None, _influx_environment(options)).influxdb
    admin = InfluxAdmin(settings, http)
    rows = await compare(admin, settings.bucket, journal_path, socket.gethostname())
    token = None if settings.token is None else settings.token.get_secret_value()
    unequal = 0
    with (
        MarketReader.connect(f"sqlite:///{journal_path}") as one,
        MarketReader.connect(options.influx_url, token=token, bucket=settings.bucket) as other,
    ):
        for pair, timeframe in sorted(series):
            frames = [r.get_ohlcv(pair, timeframe, 500, max_age_s=None) for r in (one, other)]
            unequal += not frames[0].equals(frames[1])
    total = sum(rows.rows.values())
    return InfluxResult(total, rows.missing, rows.extra, len(series), unequal)


def _influx_environment(options: DemoOptions) -> dict[str, str]:
    """The operator's own variables about InfluxDB (api, org, token …), with the URL of the options."""
    if options.influx_url is None:
        return {}
    given = {k: v for k, v in os.environ.items() if k.upper().startswith("MARKETFEED_INFLUXDB__")}
    return given | {"MARKETFEED_INFLUXDB__URL": options.influx_url}


def _sample(reader: MarketReader, pair: str, timeframe: str) -> str:
    """Answers of the reader as a user would see them. Ages mean nothing: the exchange stands still."""
    frame = reader.get_ohlcv(pair, timeframe, 5, max_age_s=None)
    mark = reader.get_mark_price(pair, max_age_s=None)
    funding = reader.get_funding_rate(pair, max_age_s=None)
    return (
        f'>>> reader.get_ohlcv("{pair}", "{timeframe}", 5)\n{frame.to_string(index=False)}\n'
        f'>>> reader.get_mark_price("{pair}")\n{float(mark)}\n'
        f'>>> reader.get_funding_rate("{pair}")\n{float(funding)}, next settlement '
        f"{funding.next_funding_time}"
    )


_SAMPLE_PAIR: Final = schema.PAIR_EXAMPLE
_IN_FRAMES: Final = ("open", "high", "low", "close", "volume")


# --- watching ---------------------------------------------------------------------------------------


class _Watch:
    """A thread that reads on and on, and notes when each newest candle first could be read."""

    def __init__(self, journal_path: Path, timeframes: Sequence[str], clock: ExchangeClock) -> None:
        self._timeframes = timeframes
        self._reader = MarketReader.connect(f"sqlite:///{journal_path}", now_ms=clock.now_ms)
        self._seen_ns: dict[tuple[str, str, int], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._reader.close()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def has(self, item: Published) -> bool:
        """Whether this candle was seen, or a newer one of its series."""
        return (item.pair, item.timeframe, item.open_time_ms) in self._seen_ns

    def latencies_ms(self, published: Sequence[Published]) -> list[float]:
        """Wall milliseconds from sending to reading, of each candle that was seen as the newest."""
        seen = self._seen_ns
        return [
            (seen[key] - item.sent_monotonic_ns) / 1e6
            for item in published
            if (key := (item.pair, item.timeframe, item.open_time_ms)) in seen
        ]

    def _read_on(self) -> None:
        newest: dict[tuple[str, str], int] = {}
        while not self._stop.is_set():
            version = self._reader.version()
            for timeframe in self._timeframes:
                found = self._reader.newest(timeframe)
                now_ns = time.monotonic_ns()
                for pair, open_ms in found.items():
                    if newest.get((pair, timeframe)) != open_ms:
                        newest[pair, timeframe] = open_ms
                        self._seen_ns[pair, timeframe, open_ms] = now_ns
            self._reader.wait_change(version, timeout_s=0.25)


# --- processes ----------------------------------------------------------------------------------------


class _Process:
    """A marketfeed process, the lines it has logged, and the addresses it has told."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.urls: dict[str, str] = {}
        self._process = process
        self._tail: list[str] = []
        self._told = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def started(self) -> None:
        """Wait until the process has told its addresses. Raises DemoError."""
        telling = asyncio.create_task(self._told.wait())
        done, _ = await asyncio.wait(
            (telling, self._reading), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        telling.cancel()
        if telling not in done:
            raise DemoError(f"the {self.name} did not start:\n{self.tail()}")

    def check(self) -> None:
        """Raise DemoError if the process has ended."""
        if self._process.returncode is not None:
            raise DemoError(
                f"the {self.name} ended early (exit {self._process.returncode}):\n{self.tail()}"
            )

    def tail(self) -> str:
        """The last lines that the process has logged."""
        return "\n".join(self._tail[-20:])

    async def stop(self) -> None:
        """Ask it to stop (SIGTERM) and wait. Raises DemoError if it does not, or not cleanly."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await self._process.wait()
                await self._reading
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise DemoError(f"the {self.name} did not stop:\n{self.tail()}") from None
        if code != 0:
            raise DemoError(f"the {self.name} ended with exit {code}:\n{self.tail()}")

    async def _read(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        async for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail = [*self._tail[-99:], line]
            if " listening " in line:
                self.urls |= dict(re.findall(r"(\w+_url)=(\S+)", line))
                self._told.set()


@contextlib.asynccontextmanager
async def _process(
    name: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[_Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "marketfeed",
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    process = _Process(name, child)
    try:
        await process.started()
        yield process
    finally:
        if child.returncode is None:
            with contextlib.suppress(DemoError):
                await process.stop()


def _clean_environment() -> dict[str, str]:
    # The operator's own settings must not reach the demonstration.
    return {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}


def _simulator(options: DemoOptions) -> contextlib.AbstractAsyncContextManager[_Process]:
    arguments = [
        "simulate",
        f"--pairs={options.pairs}",
        f"--speed={options.speed}",
        f"--timeframes={','.join(options.timeframes)}",
        "--port=0",
    ]
    return _process("simulator", arguments, _clean_environment())


def _collector(
    options: DemoOptions, urls: Mapping[str, str], directory: Path, journal_path: Path
) -> contextlib.AbstractAsyncContextManager[_Process]:
    settings: dict[str, Any] = {
        "exchange": {
            "ws_url": urls["ws_url"],
            "rest_url": urls["rest_url"],
            "pairs": {"top": options.pairs},
            "timeframes": list(options.timeframes),
        },
        "journal": {"path": str(journal_path)},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    config = directory / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    environment = _clean_environment() | _influx_environment(options)
    return _process("collector", ["run", f"--config={config}"], environment)


async def _let_run(
    seconds: float, progress: Callable[[str, float], None], processes: Sequence[_Process]
) -> None:
    started_s = time.monotonic()
    while (passed_s := time.monotonic() - started_s) < seconds:
        progress("streaming", passed_s / seconds)
        for process in processes:
            process.check()
        await asyncio.sleep(min(0.1, seconds - passed_s))


async def _all_subscribed(
    http: aiohttp.ClientSession, collector: _Process, options: DemoOptions
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


async def _settled(watch: _Watch, published: Sequence[Published]) -> None:
    """Wait until the newest candle of each series is readable, or time is up (then it is missing)."""
    newest = {(item.pair, item.timeframe): item for item in published}
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
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
