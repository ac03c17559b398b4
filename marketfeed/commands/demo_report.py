"""What `marketfeed demo` found: every stored candle compared with the exchange's."""

import math
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.collector.status_report import StatusReport
from marketfeed.commands.compare_influxdb import compare as compare_bucket
from marketfeed.commands.demo_pace import Pace
from marketfeed.errors import MarketfeedError
from marketfeed.grid import TimeRange
from marketfeed.history.comparison import compare
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.journal.journal import Journal
from marketfeed.journal.view import JournalView
from marketfeed.records import Candle
from marketfeed.settings.model import InfluxSettings
from marketfeed.simulator.published import Published
from reader import MarketReader, StaleDataError, UnknownPairError

DIFFERENCES_NAMED: Final = 10
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

    `seconds` and `speed` are those of the comparison. `influxdb` is there only when one was used, and what
    follows it only where there is something to say.
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
    slowed_from: float = 0.0
    """The speed that was asked for, where the machine was too busy for it; else 0."""
    notes: list[str] = []
    """What has to be known beside the figures, for people."""
    differences: list[str] = []
    """The first candles that are missing or wrong, each with its numbers."""

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
    pace: Pace,
    seconds: float,
    status: StatusReport,
    published: Sequence[Published],
    comparison: Sequence[SeriesResult],
    watch: "Watch",
    journal_path: Path,
) -> DemoReport:
    """Sum up what was found; `pace` and `seconds` are those of the comparison. Raises JournalError."""
    with Journal.open(journal_path) as journal:
        counts = journal.row_counts()
    slowed = pace.speed != options.speed
    return DemoReport(
        pairs=len({item.pair for item in comparison}),
        timeframes=list(options.timeframes),
        seconds=round(seconds, 1),
        speed=pace.speed,
        frames=status.frames,
        candles_expected=sum(series.expected for series in comparison),
        candles_stored=sum(series.stored for series in comparison),
        missing=sum(series.missing for series in comparison),
        wrong=sum(series.wrong for series in comparison),
        mark_prices=counts[schema.TABLE_MARK_PRICE],
        funding_rates=counts[schema.TABLE_FUNDING_RATE],
        close_to_reader_ms=_quantiles(watch.latencies_ms(published)),
        rss_mb=round(status.rss_bytes / 1e6, 1),
        slowed_from=options.speed if slowed else 0.0,
    )


def _quantiles(values: Sequence[float]) -> Latency:
    if not values:
        return Latency(math.nan, math.nan, math.nan)
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.99) - 1)]
    return Latency(round(ordered[(len(ordered) - 1) // 2], 1), round(p99, 1), round(ordered[-1], 1))


def compare_stored(
    journal_path: Path, truth: Mapping[tuple[str, str], Sequence[Candle]], clock: ExchangeClock
) -> tuple[list[SeriesResult], list[str], str]:
    """Read every series back through the reader and compare it with the exchange's candles, all numbers.

    Whether a candle came by its frame or was fetched later makes no difference: the exchange has one of
    that time. What a reader's frame does not hold (quote volume, taker volume, trades) is compared in the
    journal. Returns also the first differences, and a sample, as texts.
    """
    results: list[SeriesResult] = []
    differences: list[str] = []
    view = JournalView(journal_path)
    with MarketReader.connect(f"sqlite:///{journal_path}", now_ms=clock.now_ms) as reader:
        for (pair, timeframe), candles in sorted(truth.items()):
            time_range = TimeRange(
                candles[0].open_time_ms,
                candles[-1].open_time_ms + schema.TIMEFRAMES_MS[timeframe],
            )
            found = compare(view.candles(pair, timeframe, time_range), candles)
            differences += [
                *map(str, found.different),
                *(f"{pair} {timeframe} {one.open_time_ms}: not stored" for one in found.missing),
            ]
            wrong = {one.stored.open_time_ms for one in found.different}
            rows = _rows(reader, pair, timeframe, time_range)
            for candle in candles:
                row = rows.get(candle.open_time_ms)
                if row is not None and row != [getattr(candle, name) for name in _IN_FRAMES]:
                    wrong.add(candle.open_time_ms)
            wrong |= rows.keys() - {candle.open_time_ms for candle in candles}
            missing = len(candles) - len(rows.keys() & {one.open_time_ms for one in candles})
            results.append(
                SeriesResult(pair, timeframe, len(candles), len(rows), missing, len(wrong))
            )
        pair, timeframe = min(truth, key=lambda series: (series[0] != _SAMPLE_PAIR, series))
        return results, differences[:DIFFERENCES_NAMED], _sample(reader, pair, timeframe)


def _rows(
    reader: MarketReader, pair: str, timeframe: str, time_range: TimeRange
) -> dict[int, list[float]]:
    """What the reader gives of a series, by open time."""
    try:
        frame = reader.get_ohlcv(pair, timeframe, since=time_range.start_ms, max_age_s=None)
    except (UnknownPairError, StaleDataError):
        # Nothing is stored: all of it is missing.
        return {}
    opens_ms = (int(date.timestamp() * 1000) for date in frame["date"])
    rows = frame[list(_IN_FRAMES)].to_numpy().tolist()
    return {
        open_ms: row
        for open_ms, row in zip(opens_ms, rows, strict=True)
        if open_ms < time_range.end_ms
    }


async def compare_readers(
    http: aiohttp.ClientSession,
    settings: InfluxSettings,
    journal_path: Path,
    series: set[tuple[str, str]],
) -> InfluxResult:
    """Compare InfluxDB with the journal, row by row and as their readers answer."""
    admin = InfluxAdmin(settings, http)
    rows = await compare_bucket(admin, settings.bucket, journal_path, socket.gethostname())
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
