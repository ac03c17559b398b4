"""Candles of the exchange's REST: which rows of an answer have closed. Pure.

REST has no mark of being closed. `Past.closed_until_ms` is the only rule for it.
"""

from typing import Final, NamedTuple

import msgspec

from marketfeed.binance.decode import candle_problem
from marketfeed.binance.odd_rows import (
    OddRowError,
    Rows,
    listed,
    row_by_row,
    tried,
)
from marketfeed.binance.symbols import Instrument
from marketfeed.grid import TimeRange
from marketfeed.records import Candle
from marketfeed.schema import MARK_1H, SERIES_MS

PURE = True

CLOSED_AFTER_MS: Final = 1_000
"""How far the time that is certain must be past a row's close for it to count as closed."""
FOLLOWED_AFTER_MS: Final = 3_000
"""How far REST's own `time` must be past the close of a row with a later one behind it.

The exchange closes quiet pairs by a timer of 2 s, and a candle is asked for 4 s after its close.
"""


class Past(NamedTuple):
    """Exchange time that was past at one moment.

    `certain_ms` by frames, 0 while nothing is; `confirmed_ms` by these or by two answers of `time`, never
    less.
    """

    certain_ms: int
    confirmed_ms: int

    def is_certain(self, end_ms: int) -> bool:
        """Whether what ends then has closed for certain."""
        return end_ms <= self.certain_ms - CLOSED_AFTER_MS

    def closed_until_ms(self, newest_ms: int) -> int:
        """Up to where candles have closed of an answer whose newest row opens at `newest_ms`.

        `confirmed_ms` alone closes nothing: `time` may be wrong, and klines may come from servers that are
        behind it. A later row shows that they have come to the end of those before.
        """
        followed_ms = min(newest_ms, self.confirmed_ms - FOLLOWED_AFTER_MS)
        return max(self.certain_ms - CLOSED_AFTER_MS, followed_ms)


class _Kline(msgspec.Struct, array_like=True, gc=False):
    open_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    last_ms: int
    quote_volume: float
    trades: int
    taker_buy_volume: float
    taker_buy_quote_volume: float | None = None


_decode_kline = msgspec.json.Decoder(_Kline, strict=False).decode


class _Opened(msgspec.Struct, array_like=True):
    open_ms: int


def read_klines(
    body: bytes, instrument: Instrument, timeframe: str, within: TimeRange, past: Past
) -> tuple[Rows[int, Candle], int]:
    """Read the rows of `within` that have closed, and up to when rows have closed (exchange ms).

    `timeframe` mark_1h: rows of markPriceKlines, whose volumes and trades mean nothing.

    The answer may have one row more; `past` is of before it was asked for, as a row is older than its
    answer. Raises ExchangeError when it is no list.
    """
    length_ms = SERIES_MS[timeframe]
    rows = listed("klines", body)
    behind = TimeRange(within.start_ms, within.end_ms + length_ms)
    closed_ms = past.closed_until_ms(_newest_ms(rows, instrument, timeframe, behind))

    left_out = TimeRange(min(closed_ms - length_ms + 1, within.end_ms), behind.end_ms)

    def key_of(row: msgspec.Raw) -> int | None:
        opened = tried(row, _Opened)
        return opened.open_ms if opened and _is_place(opened.open_ms, within, length_ms) else None

    def read(row: msgspec.Raw) -> tuple[int, Candle] | None:
        try:
            kline = _decode_kline(row)
        except msgspec.DecodeError:
            opened = tried(row, _Opened)
            if opened and left_out.start_ms <= opened.open_ms < left_out.end_ms:
                return None
            raise
        if left_out.start_ms <= kline.open_ms < left_out.end_ms:
            return None
        if not _is_place(kline.open_ms, within, length_ms):
            raise OddRowError(f"open time {kline.open_ms} is none of those asked for")
        return kline.open_ms, _candle(instrument, timeframe, kline)

    return row_by_row(rows, read, key_of), closed_ms


def _newest_ms(
    rows: list[msgspec.Raw], instrument: Instrument, timeframe: str, asked: TimeRange
) -> int:
    """When the last good row opens, 0 without one. An odd one is no sign of anything."""
    for row in reversed(rows):
        kline = tried(row, _Kline)
        if kline is None or not _is_place(kline.open_ms, asked, SERIES_MS[timeframe]):
            continue
        try:
            return _candle(instrument, timeframe, kline).open_time_ms
        except OddRowError:
            continue
    return 0


def _is_place(open_ms: int, within: TimeRange, length_ms: int) -> bool:
    return within.start_ms <= open_ms < within.end_ms and not open_ms % length_ms


def _candle(instrument: Instrument, timeframe: str, row: _Kline) -> Candle:
    if timeframe == MARK_1H:
        # What stands there of trades is no number of trades: how often the price was looked at.
        row.volume = row.quote_volume = row.taker_buy_volume = row.taker_buy_quote_volume = 0.0
        row.trades = 0
    candle = Candle(
        instrument.pair,
        timeframe,
        row.open_ms,
        row.open,
        row.high,
        row.low,
        row.close,
        row.volume,
        row.quote_volume,
        row.taker_buy_volume,
        row.trades,
        True,
        row.last_ms + 1,
        row.taker_buy_quote_volume,
    )
    if problem := candle_problem(candle, row.last_ms):
        raise OddRowError(problem)
    return candle
