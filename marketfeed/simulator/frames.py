"""How the exchange writes candles and mark prices, byte by byte.

Shapes are those of recorded frames (mainnet, 2026): key order, the blanks after the commas inside
`k`, prices with the symbol's precision, quote volumes with the decimals of price and quantity together.
Everything here is written by hand with one `%` per frame: an encoder of objects is five times slower.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from marketfeed.simulator.instrument import Instrument, decimal

PURE = True


class Bar(NamedTuple):
    """The numbers of one candle, in the whole units of its `Instrument`.

    Prices in price units, `volume` and `taker_buy` in lots, the `quote` ones in their product.
    """

    open: int
    high: int
    low: int
    close: int
    volume: int
    trades: int
    quote: int
    taker_buy: int
    taker_buy_quote: int


def _number(precision: int) -> str:
    return f"%d.%0{precision}d" if precision else "%d"


class KlineWriter:
    """Writes the kline frames of one instrument and timeframe."""

    __slots__ = ("_length_ms", "_price", "_quantity", "_quote", "_template")

    def __init__(self, instrument: Instrument, timeframe: str) -> None:
        if instrument.price_precision < 1:
            raise ValueError(f"{instrument.symbol}: a price has at least one decimal")
        price = _number(instrument.price_precision)
        quantity = _number(instrument.quantity_precision)
        quote = _number(instrument.quote_precision)
        symbol = instrument.symbol
        self._length_ms = schema.TIMEFRAMES_MS[timeframe]
        self._price = instrument.price_scale
        self._quantity = instrument.quantity_scale
        self._quote = instrument.quote_scale
        self._template = (
            f'{{"e":"kline","E":%d,"s":"{symbol}","k":{{"t":%d, "T":%d, "s":"{symbol}", '
            f'"i":"{timeframe}", "f":%d, "L":%d, "o":"{price}", "c":"{price}", "h":"{price}", '
            f'"l":"{price}", "v":"{quantity}", "n":%d, "x":%s, "q":"{quote}", "V":"{quantity}", '
            f'"Q":"{quote}", "B":"0"}}}}'
        )

    def write(
        self, event_ms: int, open_ms: int, first_id: int, last_id: int, closed: bool, bar: Bar
    ) -> bytes:
        """Return the frame's `data` object: what `/market/ws` sends as it is.

        `event_ms` becomes `E`; the ids are those of the candle's first and last trade, -1 without any.
        """
        open_, high, low, close, volume, trades, quote, buy, buy_quote = bar
        price_scale = self._price
        scale = self._quantity
        quote_scale = self._quote
        end_ms = open_ms + self._length_ms - 1
        flag = "true" if closed else "false"
        if scale == 1:
            return (
                self._template
                % (
                    event_ms, open_ms, end_ms, first_id, last_id,
                    *divmod(open_, price_scale), *divmod(close, price_scale),
                    *divmod(high, price_scale), *divmod(low, price_scale),
                    volume, trades, flag, *divmod(quote, quote_scale),
                    buy, *divmod(buy_quote, quote_scale),
                )
            ).encode()  # fmt: skip
        return (
            self._template
            % (
                event_ms, open_ms, end_ms, first_id, last_id,
                *divmod(open_, price_scale), *divmod(close, price_scale),
                *divmod(high, price_scale), *divmod(low, price_scale),
                *divmod(volume, scale), trades, flag, *divmod(quote, quote_scale),
                *divmod(buy, scale), *divmod(buy_quote, quote_scale),
            )
        ).encode()  # fmt: skip


def kline_rows(
    instrument: Instrument, timeframe: str, first_open_ms: int, bars: Sequence[Bar]
) -> bytes:
    """Return the body of `/fapi/v1/klines`: the candles from `first_open_ms` on, without a hole."""
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    price = instrument.price_precision
    quantity = instrument.quantity_precision
    quote = instrument.quote_precision
    rows = []
    open_ms = first_open_ms
    for bar in bars:
        rows.append(
            f'[{open_ms},"{decimal(bar.open, price)}","{decimal(bar.high, price)}",'
            f'"{decimal(bar.low, price)}","{decimal(bar.close, price)}",'
            f'"{decimal(bar.volume, quantity)}",{open_ms + length_ms - 1},'
            f'"{decimal(bar.quote, quote)}",{bar.trades},"{decimal(bar.taker_buy, quantity)}",'
            f'"{decimal(bar.taker_buy_quote, quote)}","0"]'
        )
        open_ms += length_ms
    return f"[{','.join(rows)}]".encode()


def mark_kline_rows(
    timeframe: str, first_open_ms: int, marks: Sequence[float], per_candle: int
) -> bytes:
    """Return the body of `/fapi/v1/markPriceKlines` from mark prices, `per_candle` to a candle."""
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    rows = []
    for number in range(math.ceil(len(marks) / per_candle)):
        part = marks[number * per_candle : (number + 1) * per_candle]
        open_ms = first_open_ms + number * length_ms
        rows.append(
            f'[{open_ms},"{part[0]:.8f}","{max(part):.8f}","{min(part):.8f}","{part[-1]:.8f}",'
            f'"0",{open_ms + length_ms - 1},"0",{len(part)},"0","0","0"]'
        )
    return f"[{','.join(rows)}]".encode()


USD_M: Final = 1
COIN_M: Final = 2


def mark_price(
    symbol: str,
    event_ms: int,
    mark: float,
    index: float,
    settle: float,
    rate: float | None,
    next_funding_ms: int,
    family: int = USD_M,
) -> bytes:
    """Return a `markPriceUpdate`: prices in the quote, `rate` a fraction per interval.

    A contract without funding (`rate` None) has an empty `r` and `T` 0, as quarterlies have.
    """
    running = "" if rate is None else f"{rate:.8f}"
    return (
        f'{{"e":"markPriceUpdate","E":{event_ms},"s":"{symbol}","p":"{mark:.8f}","ap":"{mark:.8f}",'
        f'"P":"{settle:.8f}","i":"{index:.8f}","r":"{running}","T":{next_funding_ms},"st":{family}}}'
    ).encode()


def combined_head(stream: str) -> bytes:
    """Return what stands before the data in a combined frame of `stream`; a `}` follows it."""
    return f'{{"stream":"{stream}","data":'.encode()
