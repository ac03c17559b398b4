"""Binance's REST API: server time, exchangeInfo, volumes, candles, funding. Every call waits for its turn.

Endpoints and weights: Binance USD-M "Market Data Endpoints". Every call has a time-out in wall seconds
(its waiting not counted) and raises ExchangeError (no answer, or not the documented one) or
ExchangeRefusedError (an error status). After a 429, 418 or 403 nothing at all is asked until the time
that the exchange names has passed, in `Retry-After` or in the words of a ban: carrying on is a ban.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias, TypeVar

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.binance.budget import BANNED, Budget, Cost, Priority, klines_weight, max_stop_s
from marketfeed.binance.decode import MAX_TIME_MS
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.klines import Past, read_klines
from marketfeed.binance.odd_rows import (
    Klines,
    OddRowError,
    documented,
    klines_of,
    listed,
    row_by_row,
    symbol_of,
    tried,
)
from marketfeed.binance.rest_queue import UNNAMED, Turns
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import ExchangeError, ExchangeRefusedError, date_s, retry_after_s, words_of
from marketfeed.grid import TILE_CANDLES, TimeRange

T = TypeVar("T")

TIMEOUT_S: Final = 20.0
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_SETTLEMENTS: Final = 1_000
MAX_INTERVAL_HOURS: Final = 24
"""The longest funding interval that is believed: Binance has 1, 2, 4 and 8 hours."""
WEIGHT_PER_MINUTE: Final = 1_200
SILENCE_S: Final[Mapping[int, float]] = {
    HTTPStatus.TOO_MANY_REQUESTS: 60.0,
    HTTPStatus.IM_A_TEAPOT: 120.0,
    HTTPStatus.FORBIDDEN: 300.0,
}
"""How long nothing is asked after such an answer, at least: the budget is one of a minute, the shortest ban
lasts two, the firewall (403) looks at five."""
BAN_MARGIN_S: Final = 1.0
"""So much later than the end that a ban names: clocks drift apart while nothing is asked."""
_USED: Final = "X-MBX-USED-WEIGHT-1M"
_FREE: Final = Cost(1)
_BANNED_UNTIL: Final = re.compile(rb"banned until (\d{13})\b")


class ServerTime(msgspec.Struct, frozen=True):
    """An answer of `/fapi/v1/time`: the server's clock, the round trip it took, and its speed.

    `speed` is in exchange seconds per wall second; only the simulator reports anything but 1.
    """

    time_ms: int
    round_trip_s: float
    speed: float


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """One settled funding rate of `symbol`, at `time_ms` rounded to the minute (Binance jitters).

    `mark_price` is None where the exchange gives none (old rows); `kind` is its `rateType`.
    """

    symbol: str
    time_ms: int
    rate: float
    mark_price: float | None
    kind: str


class OddSettlement(NamedTuple):
    """A settled rate that could not be read: of whom and when, None where that cannot be read either."""

    symbol: str | None
    time_ms: int | None


class Settlements(NamedTuple):
    """An answer of settled rates. `full`: there were as many rows as were asked for, there may be more."""

    rates: Sequence[Settlement]
    odd: Sequence[OddSettlement]
    full: bool


class _Time(msgspec.Struct, rename="camel"):
    server_time: int
    speed: float = 1.0


class _Ticker(msgspec.Struct, rename="camel"):
    symbol: str
    quote_volume: float


class _Settlement(msgspec.Struct, rename="camel", gc=False):
    symbol: str
    funding_time: int
    funding_rate: float
    mark_price: str | float | None = ""
    rate_type: str = schema.REGULAR


class _FundingInfo(msgspec.Struct, rename="camel"):
    symbol: str
    funding_interval_hours: int


class _Settled(msgspec.Struct, rename="camel"):
    funding_time: int


class BinanceRest:
    """A client of one REST address (`https://fapi.binance.com`), on a session of the caller's.

    `turns` decides who may ask when; without it the client has a budget of its own, of half the exchange's.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        rest_url: str,
        timeout_s: float = TIMEOUT_S,
        turns: Turns | None = None,
    ) -> None:
        self.turns = turns or Turns(Budget(WEIGHT_PER_MINUTE), ExchangeClock())
        self._session = session
        self._base = rest_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 10.0))

    async def server_time(self) -> ServerTime:
        """Ask the exchange's clock (weight 1), and set this host's by it."""
        body, round_trip_s, _ = await self._ask("time", {}, _FREE, Priority.LIVE)
        answer = documented("time", body, _Time)
        self.turns.clock.set_server_time(answer.server_time, round_trip_s, answer.speed)
        return ServerTime(answer.server_time, round_trip_s, answer.speed)

    async def exchange_info(self) -> bytes:
        """Fetch exchangeInfo as it is (weight 1, 1.2 MB, 51 KB on the wire)."""
        return (await self._ask("exchangeInfo", {}, _FREE, Priority.LIVE))[0]

    async def quote_volumes(self) -> Mapping[str, float]:
        """Fetch the 24 h quote volume of every symbol (weight 40)."""
        body, _, _ = await self._ask("ticker/24hr", {}, Cost(40), Priority.LIVE)

        def read(row: msgspec.Raw) -> tuple[str, float]:
            ticker = msgspec.json.decode(row, type=_Ticker, strict=False)
            return ticker.symbol, ticker.quote_volume

        return self._by_symbol("ticker/24hr", body, read)

    async def klines(
        self,
        instrument: Instrument,
        timeframe: str,
        start_ms: int,
        end_ms: int,
        priority: Priority,
    ) -> Klines:
        """Fetch the closed candles with start_ms <= open time < end_ms, oldest first (weight 1 or 2).

        `timeframe` mark_1h: the hourly candles of the mark price.

        At most `TILE_CANDLES` of them lie in that range; so many cost 5 if they have not all closed for
        certain. What has not closed by `klines.Past` is left out,
        and unclear; nothing is asked before anything is certain (ExchangeError). Raises OddAnswerError
        when there are rows, and none of them is good.
        """
        length_ms = schema.SERIES_MS[timeframe]
        within = TimeRange(start_ms, end_ms)
        is_mark = timeframe == schema.MARK_1H
        endpoint = "markPriceKlines" if is_mark else "klines"
        candles = math.ceil((end_ms - start_ms) / length_ms)
        if not 1 <= candles <= TILE_CANDLES:
            raise ValueError(f"{candles} candles asked at a time, expected 1 to {TILE_CANDLES}")
        past = self.turns.clock.past()
        if not past.certain_ms:
            raise ExchangeError(f"{endpoint}: not asked while nothing is known to have closed")
        # One more, unless all of it has closed for certain: a row that has another behind it has closed.
        limit = candles + (not past.is_certain(end_ms))
        params = {
            "symbol": instrument.symbol,
            "interval": "1h" if is_mark else timeframe,
            "startTime": str(start_ms),
            "endTime": str(end_ms + (limit - candles) * length_ms - 1),
            "limit": str(limit),
        }
        body, _, past = await self._ask(endpoint, params, Cost(klines_weight(limit)), priority)
        rows, closed_ms = read_klines(body, instrument, timeframe, within, past)
        name = f"{instrument.symbol} {timeframe}"
        odd = [(name, f"open time {key}: {why}") for key, why in rows.odd]
        self.turns.note_odd(endpoint, odd)
        return klines_of(rows, within, length_ms, closed_ms)

    async def settlements(
        self,
        start_ms: int,
        end_ms: int,
        priority: Priority,
        symbol: str | None = None,
        limit: int = MAX_SETTLEMENTS,
    ) -> Settlements:
        """Fetch the first `limit` settled rates with start_ms <= time <= end_ms, oldest first.

        Of all symbols unless one is named (one of the 500 funding requests in 5 minutes). Raises
        OddAnswerError when there are rows, and none of them is good.
        """
        params = {"startTime": str(start_ms), "endTime": str(end_ms), "limit": str(limit)}
        if symbol is not None:
            params["symbol"] = symbol
        body, _, _ = await self._ask("fundingRate", params, Cost(0, funding=True), priority)
        rows = listed("fundingRate", body)
        found = row_by_row(rows, _settlement, _settlement_key)
        self.turns.note_odd("fundingRate", [(_symbol(odd.key), odd.why) for odd in found.odd])
        found.require_some("fundingRate")
        lost = [odd.key for odd in found.odd if odd.key not in found.good]
        return Settlements(
            list(found.good.values()),
            [OddSettlement(None, None) if key is None else OddSettlement(*key[:2]) for key in lost],
            len(rows) >= limit,
        )

    async def funding_info(self, priority: Priority) -> Mapping[str, int]:
        """Fetch the funding interval, in hours, of every symbol that differs from the usual 8.

        It is one of the 500 funding requests in 5 minutes.
        """
        body, _, _ = await self._ask("fundingInfo", {}, Cost(0, funding=True), priority)

        def read(row: msgspec.Raw) -> tuple[str, int]:
            info = msgspec.json.decode(row, type=_FundingInfo, strict=False)
            if not 0 < info.funding_interval_hours <= MAX_INTERVAL_HOURS:
                raise OddRowError(f"fundingIntervalHours {info.funding_interval_hours}")
            return info.symbol, info.funding_interval_hours

        return self._by_symbol("fundingInfo", body, read)

    def _by_symbol(
        self, endpoint: str, body: bytes, read: Callable[[msgspec.Raw], tuple[str, T]]
    ) -> Mapping[str, T]:
        found = row_by_row(listed(endpoint, body), read, symbol_of)
        self.turns.note_odd(endpoint, [(odd.key or UNNAMED, odd.why) for odd in found.odd])
        found.require_some(endpoint)
        return found.good

    async def _ask(
        self, endpoint: str, params: Mapping[str, str], cost: Cost, priority: Priority
    ) -> tuple[bytes, float, Past]:
        """Returns the body, the wall seconds it took, and what was past before it was asked."""
        path = f"/fapi/v1/{endpoint}"
        try:
            taken = await self.turns.wait(cost, priority)
        except ExchangeRefusedError as error:
            raise ExchangeRefusedError(
                f"{path}: {error}", error.status, error.retry_after_s
            ) from None
        self.turns.requests[endpoint] += 1
        used: int | None = None
        past, started_s = self.turns.clock.past(), time.monotonic()
        url = self._base + path
        try:
            async with self._session.get(url, params=params, timeout=self._timeout) as response:
                used = _number(response.headers.get(_USED))
                body = await whole_body(
                    response,
                    MAX_BODY_BYTES,
                    ExchangeError(f"{path}: the answer is larger than {MAX_BODY_BYTES} bytes"),
                )
                round_trip_s = time.monotonic() - started_s
                if endpoint == "klines":
                    self.turns.note_symbol(params["symbol"], response.status, body)
                if response.status != HTTPStatus.OK:
                    raise self._refused(path, response, body)
                self.turns.answered_well()
                return body, round_trip_s, past
        except TimeoutError as error:
            raise ExchangeError(f"{url}: no answer in {self._timeout.total} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExchangeError(f"{url}: {words_of(error)}") from error
        finally:
            self.turns.answered(taken, used)

    def _refused(
        self, path: str, response: aiohttp.ClientResponse, body: bytes
    ) -> ExchangeRefusedError:
        status, headers = response.status, response.headers
        # The date of the answer is by the clock that a date in it is meant by.
        answered_s = date_s(headers.get("Date"))
        now_s = self.turns.now().now_ms / 1000
        wait_s = retry_after_s(
            headers.get("Retry-After"), now_s if answered_s is None else answered_s
        )
        silence_s = SILENCE_S.get(status)
        text = f"{path}: status {status}: {body[:200].decode('utf-8', 'replace')}"
        self.turns.refused[status] += 1
        if silence_s is None:
            if wait_s is not None:
                wait_s = min(max(wait_s, 0.0), max_stop_s(status))
            return ExchangeRefusedError(text, status, wait_s)
        wait_s = max(silence_s, wait_s or 0.0)
        if ban := _BANNED_UNTIL.search(body):
            status = BANNED
            # Exchange time: by its clock if that is known, which is never ahead then.
            known_s = self.turns.clock.certain_ms() / 1000 or answered_s or now_s
            wait_s = max(wait_s, int(ban[1]) / 1000 - known_s + BAN_MARGIN_S)
        wait_s = min(wait_s, max_stop_s(status))
        self.turns.stop(wait_s, status, text)
        return ExchangeRefusedError(text, response.status, wait_s)


_RATE_TYPE: Final = re.compile(r"\w{1,32}")

_SettlementKey: TypeAlias = tuple[str | None, int | None, str | None]


def _settlement(raw: msgspec.Raw) -> tuple[_SettlementKey, Settlement]:
    row = msgspec.json.decode(raw, type=_Settlement, strict=False)
    try:
        # The rate is as good without it: old rows have none.
        mark_price = float(row.mark_price) if row.mark_price else None
    except ValueError:
        mark_price = -1.0
    if (
        not -1.0 < row.funding_rate < 1.0
        or not 0 < row.funding_time < MAX_TIME_MS
        or (mark_price is not None and not 0.0 <= mark_price < float("inf"))
        # It becomes part of a list in InfluxDB, and of the journal's key.
        or not _RATE_TYPE.fullmatch(row.rate_type)
    ):
        raise OddRowError(f"makes no sense: {row}")
    time_ms = schema.to_minute(row.funding_time)
    settlement = Settlement(
        row.symbol, time_ms, row.funding_rate, mark_price or None, row.rate_type
    )
    return (row.symbol, time_ms, row.rate_type), settlement


def _settlement_key(row: msgspec.Raw) -> _SettlementKey:
    settled = tried(row, _Settled)
    at_ms = settled.funding_time if settled and 0 < settled.funding_time < MAX_TIME_MS else None
    # Whatever its kind: of the two of one time, either may be meant.
    return symbol_of(row), None if at_ms is None else schema.to_minute(at_ms), None


def _symbol(key: _SettlementKey | None) -> str:
    return (key[0] if key else None) or UNNAMED


async def whole_body(
    response: aiohttp.ClientResponse, max_bytes: int, too_large: ExchangeError
) -> bytes:
    """The body of an answer; raises `too_large` when it has more than `max_bytes`."""
    # In pieces as they come: a single read gives no more than has arrived.
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _number(header: str | None) -> int | None:
    return int(header) if header is not None and header.isascii() and header.isdigit() else None
