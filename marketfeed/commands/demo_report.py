"""What `marketfeed demo` found: every stored candle compared with what the simulator published."""

import math
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.clock import ExchangeClock
from marketfeed.collector.status_report import StatusReport
from marketfeed.commands.compare_influxdb import compare
from marketfeed.errors import MarketfeedError
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.journal.journal import Journal
from marketfeed.records import differing_fields
from marketfeed.settings.model import InfluxSettings
from marketfeed.simulator.published import Published
from reader import MarketReader

_SAMPLE_PAIR: Final = schema.PAIR_EXAMPLE
_IN_FRAMES: Final = ("open", "high", "low", "close", "volume")


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


def make_report(
    options: DemoOptions,
    status: StatusReport,
    published: Sequence[Published],
    comparison: Sequence[SeriesResult],
    watch: "Watch",
    journal_path: Path,
) -> DemoReport:
    """Sum up what was found. Raises JournalError."""
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


def compare_stored(
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
                or bool(differing_fields(stored[open_ms], expected[open_ms]))
                for open_ms, row in rows.items()
            )
            missing = len(expected.keys() - rows.keys())
            results.append(SeriesResult(pair, timeframe, len(expected), len(rows), missing, wrong))
        pair, timeframe = min(truth, key=lambda series: (series[0] != _SAMPLE_PAIR, series))
        return results, _sample(reader, pair, timeframe)


async def compare_readers(
    http: aiohttp.ClientSession,
    settings: InfluxSettings,
    journal_path: Path,
    series: set[tuple[str, str]],
) -> InfluxResult:
    """Compare InfluxDB with the journal, row by row and as their readers answer."""
    admin = InfluxAdmin(settings, http)
    rows = await compare(admin, settings.bucket, journal_path, socket.gethostname())
    token = None if settings.token is None else settings.token.get_secret_value()
    unequal = 0
    with (
        MarketReader.connect(f"sqlite:///{journal_path}") as one,
        MarketReader.connect(settings.url, token=token, bucket=settings.bucket) as other,
    ):
        for pair, timeframe in sorted(series):
            frames = [r.get_ohlcv(pair, timeframe, 500, max_age_s=None) for r in (one, other)]
            unequal += not frames[0].equals(frames[1])
    total = sum(rows.rows.values())
    return InfluxResult(total, rows.missing, rows.extra, len(series), unequal)


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


class Watch:
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
