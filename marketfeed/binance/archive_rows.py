"""Rows of the public archive's files -> candles and funding rates. A file is taken whole or not at all.

Columns of candles: open_time, open, high, low, close, volume, close_time, quote_volume, count,
taker_buy_volume, taker_buy_quote_volume, ignore. Of funding rates: calc_time, funding_interval_hours,
last_funding_rate. Times are in ms. Recent files begin with a line of names, older ones do not.
"""

from collections.abc import Iterator
from typing import Final

from marketfeed import schema
from marketfeed.binance.decode import candle_problem
from marketfeed.errors import ArchiveError
from marketfeed.grid import TimeRange
from marketfeed.records import Candle, FundingSettled

PURE = True

_BOM: Final = b"\xef\xbb\xbf"
_LEAST_COLUMNS: Final = 11
_RATE_COLUMNS: Final = 3
_MAX_INTERVAL_HOURS: Final = 24


def parse_rows(text: bytes, pair: str, timeframe: str, time_range: TimeRange) -> list[Candle]:
    """Read the file of `time_range` (its day or month); the candles are in order, none comes twice.

    Raises ArchiveError for the first row that is not as documented, makes no sense, or lies outside, and
    where there is none.
    """
    candles: list[Candle] = []
    awaited_ms = time_range.start_ms
    for number, line in _rows(text, b"open_time"):
        candle = _candle(line, number, pair, timeframe)
        if not awaited_ms <= candle.open_time_ms < time_range.end_ms:
            raise ArchiveError(
                f"line {number}: open time {candle.open_time_ms} is out of order, or not of the file"
            )
        awaited_ms = candle.close_time_ms
        candles.append(candle)
    return candles


def parse_rates(text: bytes, pair: str, time_range: TimeRange) -> list[FundingSettled]:
    """Read the file of settled funding rates of `time_range` (its month), in order, one for each minute.

    Its rows name no kind, and settlements of two kinds may share a minute: such a file is refused. Raises
    ArchiveError as `parse_rows`.
    """
    rates: list[FundingSettled] = []
    awaited_ms = time_range.start_ms
    for number, line in _rows(text, b"calc_time"):
        rate = _rate(line, number, pair)
        if not awaited_ms <= rate.time_ms < time_range.end_ms:
            raise ArchiveError(
                f"line {number}: settlement {rate.time_ms} is out of order, of a minute that was, "
                "or not of the file"
            )
        awaited_ms = rate.time_ms + schema.MINUTE_MS
        rates.append(rate)
    return rates


def _rows(text: bytes, first_name: bytes) -> Iterator[tuple[int, bytes]]:
    """The rows of a file with their lines' numbers; `first_name` is what its line of names begins with.

    Raises ArchiveError when there is none: that is no file of the archive, but an error's page, say.
    """
    found = False
    is_first = True
    for number, raw in enumerate(text.removeprefix(_BOM).split(b"\n"), 1):
        line = raw.strip()
        if not line:
            continue
        is_names = is_first and line.split(b",")[0].strip().lower() == first_name
        is_first = False
        if is_names:
            continue
        if not line[:1].isdigit():
            raise ArchiveError(f"line {number}: no row of numbers: {line[:80]!r}")
        found = True
        yield number, line
    if not found:
        raise ArchiveError("holds no row")


def _rate(line: bytes, number: int, pair: str) -> FundingSettled:
    columns = line.split(b",")
    if len(columns) < _RATE_COLUMNS or b"_" in line:
        raise ArchiveError(f"line {number}: not the documented columns: {line[:80]!r}")
    try:
        time_ms, hours, rate = int(columns[0]), int(columns[1]), float(columns[2])
    except ValueError as error:
        raise ArchiveError(f"line {number}: {error}") from error
    if not 0 < hours <= _MAX_INTERVAL_HOURS or not -1.0 < rate < 1.0:
        raise ArchiveError(f"line {number}: interval of {hours} h, rate {rate}")
    # It is off by some ms, as REST's is.
    nearest_ms = schema.floor_to(time_ms + schema.MINUTE_MS // 2, schema.MINUTE_MS)
    return FundingSettled(pair, nearest_ms, rate, None)


def _candle(line: bytes, number: int, pair: str, timeframe: str) -> Candle:
    columns = line.split(b",")
    if len(columns) < _LEAST_COLUMNS or b"_" in line:
        raise ArchiveError(f"line {number}: not the documented columns: {line[:80]!r}")
    open_text, o, high, low, close, volume, last_text, quote, trades, taker, taker_quote, *_ = (
        columns
    )
    try:
        open_ms = int(open_text)
        candle = Candle(
            pair,
            timeframe,
            open_ms,
            float(o),
            float(high),
            float(low),
            float(close),
            float(volume),
            float(quote),
            float(taker),
            int(trades),
            True,
            open_ms + schema.TIMEFRAMES_MS[timeframe],
            float(taker_quote),
        )
        last_ms = int(last_text)
    except ValueError as error:
        raise ArchiveError(f"line {number}: {error}") from error
    if problem := candle_problem(candle, last_ms):
        raise ArchiveError(f"line {number}: {problem}")
    return candle
