"""Rows of the public archive's files -> candles. A file is taken whole or not at all.

Columns: open_time, open, high, low, close, volume, close_time, quote_volume, count, taker_buy_volume,
taker_buy_quote_volume, ignore; times in ms. Recent files begin with a line of names, older ones do not.
"""

from typing import Final

from marketfeed import schema
from marketfeed.binance.decode import candle_problem
from marketfeed.errors import ArchiveError
from marketfeed.grid import TimeRange
from marketfeed.records import Candle

PURE = True

_LEAST_COLUMNS: Final = 11


def parse_rows(text: bytes, pair: str, timeframe: str, time_range: TimeRange) -> list[Candle]:
    """Read the file of `time_range` (its day or month); the candles are in order, none comes twice.

    Raises ArchiveError for the first row that is not as documented, makes no sense, or lies outside.
    """
    lines = text.split(b"\n")
    has_names = not text[:1].isdigit()
    candles: list[Candle] = []
    awaited_ms = time_range.start_ms
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and has_names):
            continue
        candle = _candle(line, number, pair, timeframe)
        if not awaited_ms <= candle.open_time_ms < time_range.end_ms:
            raise ArchiveError(
                f"line {number}: open time {candle.open_time_ms} is out of order, or not of the file"
            )
        awaited_ms = candle.close_time_ms
        candles.append(candle)
    return candles


def _candle(line: bytes, number: int, pair: str, timeframe: str) -> Candle:
    columns = line.split(b",")
    if len(columns) < _LEAST_COLUMNS or b"_" in line:
        raise ArchiveError(f"line {number}: not the documented columns: {line[:80]!r}")
    open_text, o, high, low, close, volume, last_text, quote, trades, taker, *_ = columns
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
        )
        last_ms = int(last_text)
    except ValueError as error:
        raise ArchiveError(f"line {number}: {error}") from error
    if problem := candle_problem(candle, last_ms):
        raise ArchiveError(f"line {number}: {problem}")
    return candle
