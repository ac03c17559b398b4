"""The public archive of the simulated exchange: its past candles and rates as zip files with checksums.

Laid out like data.binance.vision: a day's file is there six hours after its end, a month's two days after.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from marketfeed import schema
from marketfeed.simulator.frames import Bar
from marketfeed.simulator.instrument import Instrument, decimal
from marketfeed.simulator.market import Market

DAY_AFTER_MS: Final = 6 * schema.HOUR_MS
MONTH_AFTER_MS: Final = 2 * schema.DAY_MS
COLUMNS: Final = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore"
)
"""The first line of recent files."""
RATE_COLUMNS: Final = "calc_time,funding_interval_hours,last_funding_rate"
_ROUTE: Final = "/data/futures/um/{folder:daily|monthly}/klines/{symbol}/{timeframe}/{name}"
_RATES_ROUTE: Final = "/data/futures/um/monthly/fundingRate/{symbol}/{name}"
_MOST_RATES: Final = 1_000
_ABSENT: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
    "<Message>The specified key does not exist.</Message></Error>"
)


class Archive:
    """Serves the files of a market; `now_ms` gives exchange time, `catch_up` brings the market to it.

    `corrupt` holds names of files to break: the zip is served with a byte changed. `asked` counts requests,
    whatever their answer, `served` zips.
    """

    def __init__(
        self, market: Market, now_ms: Callable[[], int], catch_up: Callable[[], None]
    ) -> None:
        self.corrupt: set[str] = set()
        self.asked = 0
        self.served = 0
        self._market = market
        self._now_ms = now_ms
        self._catch_up = catch_up
        self._listed = {instrument.symbol: instrument for instrument in market.instruments}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [web.get(_ROUTE, self._answer), web.get(_RATES_ROUTE, self._answer_rates)]

    async def _answer(self, request: web.Request) -> web.Response:
        match = request.match_info
        name = match["name"].removesuffix(".CHECKSUM")
        self._catch_up()
        body = self._zip(match["folder"], match["symbol"], match["timeframe"], name)
        return self._respond(match["name"], body)

    async def _answer_rates(self, request: web.Request) -> web.Response:
        match = request.match_info
        name = match["name"].removesuffix(".CHECKSUM")
        self._catch_up()
        return self._respond(match["name"], self._rates_zip(match["symbol"], name))

    def _respond(self, asked: str, body: bytes | None) -> web.Response:
        name = asked.removesuffix(".CHECKSUM")
        self.asked += 1
        if body is None:
            return web.Response(status=404, text=_ABSENT, content_type="application/xml")
        if asked.endswith(".CHECKSUM"):
            return web.Response(text=f"{hashlib.sha256(body).hexdigest()}  {name}\n")
        self.served += 1
        if name in self.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return web.Response(body=body, content_type="application/zip")

    def _zip(self, folder: str, symbol: str, timeframe: str, name: str) -> bytes | None:
        instrument = self._listed.get(symbol)
        if instrument is None or timeframe not in self._market.timeframes:
            return None
        where = self._there(name.removeprefix(f"{symbol}-{timeframe}-"), folder == "monthly")
        if where is None:
            return None
        text = self._rows(instrument, timeframe, *where)
        return None if text is None else pack(name.replace(".zip", ".csv"), text)

    def _there(self, date_name: str, monthly: bool) -> tuple[int, int] | None:
        """Start and end (ms) of a file's day or month; None if it is not published, or no date."""
        date_text = date_name.removesuffix(".zip")
        try:
            start = datetime.fromisoformat(f"{date_text}-01" if monthly else date_text)
        except ValueError:
            return None
        start = start.replace(tzinfo=UTC)
        start_ms = int(start.timestamp()) * 1_000
        end_ms = start_ms + schema.DAY_MS
        if monthly:
            following = start.replace(
                year=start.year + start.month // 12, month=start.month % 12 + 1
            )
            end_ms = int(following.timestamp()) * 1_000
        published = self._now_ms() >= end_ms + (MONTH_AFTER_MS if monthly else DAY_AFTER_MS)
        return (start_ms, end_ms) if published else None

    def _rates_zip(self, symbol: str, name: str) -> bytes | None:
        instrument = self._listed.get(symbol)
        where = self._there(name.removeprefix(f"{symbol}-fundingRate-"), monthly=True)
        if instrument is None or where is None:
            return None
        rates = self._market.settlements(
            instrument, where[0], where[1] - 1, _MOST_RATES, newest=False
        )
        if not rates:
            return None
        hours = instrument.funding_hours
        lines = [RATE_COLUMNS, *(f"{r.funding_time},{hours},{r.funding_rate}" for r in rates)]
        return pack(name.replace(".zip", ".csv"), "\n".join(lines) + "\n")

    def _rows(
        self, instrument: Instrument, timeframe: str, start_ms: int, end_ms: int
    ) -> str | None:
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        first_ms = max(start_ms, schema.floor_to(instrument.onboard_ms, length_ms))
        if first_ms >= end_ms:
            return None
        bars = self._market.candles(
            instrument.symbol, timeframe, first_ms, (end_ms - first_ms) // length_ms
        )
        lines = [COLUMNS]
        lines += [
            row(instrument, open_ms, length_ms, bar)
            for open_ms, bar in zip(range(first_ms, end_ms, length_ms), bars, strict=True)
        ]
        return "\n".join(lines) + "\n"


def row(instrument: Instrument, open_ms: int, length_ms: int, bar: Bar) -> str:
    """Return one candle's line, without its end."""
    price, quantity = instrument.price_precision, instrument.quantity_precision
    quote = instrument.quote_precision
    return (
        f"{open_ms},{decimal(bar.open, price)},{decimal(bar.high, price)},"
        f"{decimal(bar.low, price)},{decimal(bar.close, price)},{decimal(bar.volume, quantity)},"
        f"{open_ms + length_ms - 1},{decimal(bar.quote, quote)},{bar.trades},"
        f"{decimal(bar.taker_buy, quantity)},{decimal(bar.taker_buy_quote, quote)},0"
    )


def pack(name: str, text: str) -> bytes:
    """Return a zip of one file; the same text gives the same bytes."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as files:
        info = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
        files.writestr(info, text, zipfile.ZIP_DEFLATED, compresslevel=1)
    return body.getvalue()
