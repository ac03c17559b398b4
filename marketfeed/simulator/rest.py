"""The REST side: `/fapi/v1`, with the exchange's answers, error bodies, weights and headers.

Sources: Binance USD-M "Market Data Endpoints" and recorded bodies. Weights are charged before anything
else is looked at: refused and mistaken requests cost as well.
"""

import gzip
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from marketfeed import schema
from marketfeed.simulator import book
from marketfeed.simulator.catalogue import ExchangeInfo
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.limits import (
    FUNDING_REQUESTS,
    FUNDING_WINDOW_MS,
    CountLimit,
    WeightLimit,
    klines_weight,
)
from marketfeed.simulator.venue import Venue

_PREFIX: Final = "/fapi/v1/"
_MAX_KLINES: Final = 1_500
_MAX_SETTLEMENTS: Final = 1_000
# Levels that may be asked for -> weight.
_DEPTH_WEIGHTS: Final = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1_000: 20}
_DEPTH_LEVELS: Final = 500
# Weight of a request whose `limit` is refused for being too large.
_TOO_LARGE_WEIGHT: Final = 10
_USED: Final = "X-MBX-USED-WEIGHT-1M"
_JSON: Final = "application/json"
_ASKED_KEPT: Final = 10_000


class _ApiError(Exception):
    """An error body `{"code": …, "msg": …}` with HTTP status 400."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


_Body = Callable[[Mapping[str, str]], bytes]


class Rest:
    """Answers REST requests from a venue.

    `now_ms` gives exchange time; `catch_up` brings the venue to it, so that an answer never shows less
    than what is past on the clock that `time` returns; `speed` is exchange seconds per wall second.
    """

    def __init__(
        self,
        venue: Venue,
        now_ms: Callable[[], int],
        catch_up: Callable[[], None],
        speed: Callable[[], float],
    ) -> None:
        self._venue = venue
        self._now_ms = now_ms
        self._catch_up = catch_up
        self._speed = speed
        self._listed: dict[str, Instrument] = {}
        self._last_listed: Sequence[Instrument] = ()
        self._whole_info = ExchangeInfo(())
        self._shrunk_info: ExchangeInfo | None = None
        self._take_listed()
        self.weight = WeightLimit()
        """What was used of the weight, this minute and at most."""
        self._funding_requests = CountLimit(FUNDING_REQUESTS, FUNDING_WINDOW_MS)
        self.requests: Counter[str] = Counter()
        self.asked: deque[tuple[float, str]] = deque(maxlen=_ASKED_KEPT)
        """The newest requests: when they came (monotonic wall seconds), and to which endpoint."""
        self.told_ms = 0
        """The newest exchange time that an answer has told of, but for the shift."""
        self.clock_shift_ms = 0
        """By how much `time` answers a later time than it is: a fault."""
        self.on_request: Callable[[str], Awaitable[web.Response | None]] | None = None
        """Called with the endpoint of each request; an answer that it gives is sent instead."""

    def list_only(self, listed: Sequence[Instrument] | None) -> None:
        """Let exchangeInfo list these contracts only; None lists all again."""
        self._shrunk_info = None if listed is None else ExchangeInfo(listed)

    def _take_listed(self) -> None:
        """Take in what the venue lists now. What was listed once can still be asked for."""
        listed = self._venue.listed
        if listed is not self._last_listed:
            self._last_listed = listed
            self._listed |= {instrument.symbol: instrument for instrument in listed}
            self._whole_info = ExchangeInfo(listed)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [
            self._weighed("time", self._time, lambda _: 1),
            self._route("exchangeInfo", self._exchange_info),
            self._weighed("klines", self._klines, _weight_of_klines),
            self._weighed(
                "ticker/24hr",
                self._rows(self._venue.ticker),
                lambda query: 1 if "symbol" in query else 40,
            ),
            self._weighed(
                "premiumIndex",
                self._rows(self._venue.premium),
                lambda query: 1 if "symbol" in query else 10,
            ),
            self._weighed("markPriceKlines", self._mark_klines, _weight_of_klines),
            self._weighed("depth", self._depth, _weight_of_depth),
            self._weighed(
                "ticker/bookTicker", self._book_tickers, lambda query: 2 if "symbol" in query else 5
            ),
            self._counted("fundingRate", self._funding_rate),
            self._counted("fundingInfo", self._funding_info),
            web.get("/{path:(?:fapi|dapi|api|sapi)/.*}", self._not_found),
        ]

    def _route(
        self, name: str, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.RouteDef:
        async def answer(request: web.Request) -> web.Response:
            self.requests[name] += 1
            self.asked.append((time.monotonic(), name))
            if self.on_request is not None:
                instead = await self.on_request(name)
                if instead is not None:
                    return instead
            return await handler(request)

        return web.get(_PREFIX + name, answer)

    async def _not_found(self, request: web.Request) -> web.Response:
        """Answer what is not simulated, and count it by its whole path: nobody asks unseen."""
        self.requests[request.path] += 1
        return web.Response(status=HTTPStatus.NOT_FOUND, text="404 Not Found")

    # --- limits -----------------------------------------------------------------------------------

    def _weighed(
        self, name: str, body: _Body, weight: Callable[[Mapping[str, str]], int]
    ) -> web.RouteDef:
        async def answer(request: web.Request) -> web.Response:
            headers, refused = self._charge(weight(request.query))
            return refused or self._respond(body, request, headers)

        return self._route(name, answer)

    def _counted(self, name: str, body: _Body) -> web.RouteDef:
        """Funding requests: no weight header; 500 in 5 minutes, then the firewall's 403."""

        async def answer(request: web.Request) -> web.Response:
            if not self._funding_requests.allow(self._now_ms()):
                return web.Response(status=HTTPStatus.FORBIDDEN, text="403 Forbidden")
            return self._respond(body, request, {})

        return self._route(name, answer)

    def _charge(self, weight: int) -> tuple[dict[str, str], web.Response | None]:
        used, retry_after_s = self.weight.charge(self._now_ms(), weight)
        headers = {_USED: str(used)}
        if retry_after_s is None:
            return headers, None
        message = (
            f"Too many requests; current limit is {self.weight.limit} request weight per 1 MINUTE. "
            "Please use the websocket for live updates to avoid polling the API."
        )
        headers["Retry-After"] = str(retry_after_s)
        return headers, _error(HTTPStatus.TOO_MANY_REQUESTS, -1003, message, headers)

    def _respond(
        self, body: _Body, request: web.Request, headers: Mapping[str, str]
    ) -> web.Response:
        self._catch_up()
        try:
            content = body(request.query)
        except _ApiError as error:
            return _error(HTTPStatus.BAD_REQUEST, error.code, error.message, headers)
        return web.Response(body=content, content_type=_JSON, headers=headers)

    # --- endpoints --------------------------------------------------------------------------------

    def _time(self, _: Mapping[str, str]) -> bytes:
        return msgspec.json.encode({"serverTime": self._shown_ms(), "speed": self._speed()})

    def _shown_ms(self) -> int:
        self.told_ms = self._now_ms()
        return self.told_ms + self.clock_shift_ms

    async def _exchange_info(self, request: web.Request) -> web.Response:
        headers, refused = self._charge(1)
        if refused is not None:
            return refused
        self._catch_up()
        self._take_listed()
        body = (self._shrunk_info or self._whole_info).body(self._shown_ms())
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, content_type=_JSON, headers=headers)

    def _instrument(self, query: Mapping[str, str]) -> Instrument:
        symbol = query.get("symbol")
        if not symbol:
            raise _ApiError(
                -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            )
        self._take_listed()
        instrument = self._listed.get(symbol)
        if instrument is None:
            raise _ApiError(-1121, "Invalid symbol.")
        return instrument

    def _klines(self, query: Mapping[str, str]) -> bytes:
        instrument, timeframe, start_ms, end_ms, limit = self._kline_query(query)
        if timeframe not in self._venue.timeframes:
            raise _ApiError(-1120, "Invalid interval.")
        return self._venue.klines(instrument.symbol, timeframe, start_ms, end_ms, limit)

    def _mark_klines(self, query: Mapping[str, str]) -> bytes:
        return self._venue.mark_klines(*self._kline_query(query))

    def _kline_query(
        self, query: Mapping[str, str]
    ) -> tuple[Instrument, str, int | None, int | None, int]:
        instrument = self._instrument(query)
        timeframe = query.get("interval", "")
        if timeframe not in schema.TIMEFRAMES_MS:
            raise _ApiError(-1120, "Invalid interval.")
        start_ms, end_ms = _integer(query, "startTime"), _integer(query, "endTime")
        limit = _limit(query, 500, _MAX_KLINES)
        _check_order(start_ms, end_ms)
        return instrument, timeframe, start_ms, end_ms, limit

    def _depth(self, query: Mapping[str, str]) -> bytes:
        instrument = self._instrument(query)
        levels = _integer(query, "limit")
        if levels not in {None, *_DEPTH_WEIGHTS}:
            raise _ApiError(-4021, f"{levels} is not valid depth limit.")
        last_price = self._venue.last_price(instrument)
        return msgspec.json.encode(
            book.depth(instrument, last_price, self._now_ms(), levels or _DEPTH_LEVELS)
        )

    def _book_tickers(self, query: Mapping[str, str]) -> bytes:
        now_ms = self._now_ms()
        return self._rows(lambda one: book.book_ticker(one, self._venue.last_price(one), now_ms))(
            query
        )

    def _trading(self) -> list[Instrument]:
        return [one for one in self._venue.listed if one.status == "TRADING"]

    def _rows(self, row: Callable[[Instrument], object]) -> _Body:
        """The row of the symbol that is asked for, or those of all that trade."""

        def body(query: Mapping[str, str]) -> bytes:
            if "symbol" in query:
                return msgspec.json.encode(row(self._instrument(query)))
            return msgspec.json.encode([row(one) for one in self._trading()])

        return body

    def _funding_rate(self, query: Mapping[str, str]) -> bytes:
        chosen = [self._instrument(query)] if "symbol" in query else self._trading()
        limit = _limit(query, 100, _MAX_SETTLEMENTS)
        start_ms, end_ms = _integer(query, "startTime"), _integer(query, "endTime")
        _check_order(start_ms, end_ms)
        newest = start_ms is None
        until_ms = self._now_ms() if end_ms is None else end_ms
        rows = [
            row
            for instrument in chosen
            for row in self._venue.settlements(
                instrument, start_ms or 0, until_ms, limit, newest=newest
            )
        ]
        rows.sort(key=lambda row: row.funding_time)
        return msgspec.json.encode(rows[-limit:] if newest else rows[:limit])

    def _funding_info(self, _: Mapping[str, str]) -> bytes:
        return msgspec.json.encode(self._venue.funding_infos())


def _error(status: HTTPStatus, code: int, message: str, headers: Mapping[str, str]) -> web.Response:
    body = msgspec.json.encode({"code": code, "msg": message})
    return web.Response(status=status, body=body, content_type=_JSON, headers=headers)


def _integer(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise _ApiError(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
        )
    return int(text)


def _limit(query: Mapping[str, str], default: int, most: int) -> int:
    limit = _integer(query, "limit")
    if limit is None:
        return default
    if not 1 <= limit <= most:
        raise _ApiError(-1130, "Data sent for parameter 'limit' is not valid.")
    return limit


def _check_order(start_ms: int | None, end_ms: int | None) -> None:
    if start_ms is not None and end_ms is not None and start_ms > end_ms:
        raise _ApiError(-1023, "Start time is greater than end time.")


def _weight_of_klines(query: Mapping[str, str]) -> int:
    try:
        limit = _integer(query, "limit")
    except _ApiError:
        return klines_weight(None)
    return _TOO_LARGE_WEIGHT if limit is not None and limit > _MAX_KLINES else klines_weight(limit)


def _weight_of_depth(query: Mapping[str, str]) -> int:
    try:
        levels = _integer(query, "limit")
    except _ApiError:
        levels = None
    return _DEPTH_WEIGHTS.get(_DEPTH_LEVELS if levels is None else levels, _TOO_LARGE_WEIGHT)
