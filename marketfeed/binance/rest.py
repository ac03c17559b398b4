"""Binance's REST API, as far as the collector asks it: server time, exchangeInfo, 24 h volumes.

Endpoints and weights: Binance USD-M "Market Data Endpoints". Every call has a time-out in wall seconds
and raises ExchangeError (no answer, or not the documented one) or ExchangeRefusedError (an error status).
After a 429 or 418 nothing at all is asked until its `Retry-After` has passed: carrying on is a ban.
"""

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
import msgspec

from marketfeed.errors import ExchangeError, ExchangeRefusedError

TIMEOUT_S: Final = 20.0
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
SILENCE_S: Final = 60.0
"""How long nothing is asked after a 429 or 418 that does not tell: the budget is one of a minute."""
_LIMITS: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.IM_A_TEAPOT})


class ServerTime(msgspec.Struct, frozen=True):
    """An answer of `/fapi/v1/time`: the server's clock, the round trip it took, and its speed.

    `speed` is in exchange seconds per wall second; only the simulator says anything but 1.
    """

    time_ms: int
    round_trip_s: float
    speed: float


class _Time(msgspec.Struct, rename="camel"):
    server_time: int
    speed: float = 1.0


class _Ticker(msgspec.Struct, rename="camel"):
    symbol: str
    quote_volume: float


class BinanceRest:
    """A client of one REST address (`https://fapi.binance.com`), on a session of the caller's.

    `elapsed_s` are the seconds in which the exchange counts its `Retry-After`: its own.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        rest_url: str,
        timeout_s: float = TIMEOUT_S,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._base = rest_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 10.0))
        self._elapsed_s = elapsed_s
        # What ended in a limit, and until when nothing is asked.
        self._limited: ExchangeRefusedError | None = None
        self._silent_until_s = 0.0

    async def server_time(self) -> ServerTime:
        """Ask the exchange's clock (weight 1)."""
        started_s = time.monotonic()
        body = await self._get("/fapi/v1/time")
        round_trip_s = time.monotonic() - started_s
        try:
            answer = msgspec.json.decode(body, type=_Time)
        except msgspec.DecodeError as error:
            raise ExchangeError(f"time: not the documented answer: {error}") from error
        return ServerTime(answer.server_time, round_trip_s, answer.speed)

    async def exchange_info(self) -> bytes:
        """Fetch exchangeInfo as it is (weight 1, 1.2 MB, 51 KB on the wire)."""
        return await self._get("/fapi/v1/exchangeInfo")

    async def quote_volumes(self) -> Mapping[str, float]:
        """Fetch the 24 h quote volume of every symbol (weight 40)."""
        body = await self._get("/fapi/v1/ticker/24hr")
        try:
            tickers = msgspec.json.decode(body, type=list[_Ticker], strict=False)
        except msgspec.DecodeError as error:
            raise ExchangeError(f"ticker/24hr: not the documented answer: {error}") from error
        return {ticker.symbol: ticker.quote_volume for ticker in tickers}

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        url = self._base + path
        self._keep_silence(path)
        try:
            async with self._session.get(url, params=params, timeout=self._timeout) as response:
                body = await _whole(path, response)
                if response.status != 200:
                    raise self._refused(path, response, body)
                return body
        except TimeoutError as error:
            raise ExchangeError(f"{url}: no answer in {self._timeout.total} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExchangeError(f"{url}: {error or type(error).__name__}") from error

    def _refused(
        self, path: str, response: aiohttp.ClientResponse, body: bytes
    ) -> ExchangeRefusedError:
        wait_s = _retry_after_s(response.headers.get("Retry-After"))
        limited = response.status in _LIMITS
        if limited and wait_s is None:
            wait_s = SILENCE_S
        text = f"{path}: status {response.status}: {_excerpt(body)}"
        error = ExchangeRefusedError(text, response.status, wait_s)
        if limited and wait_s is not None:
            self._limited = error
            self._silent_until_s = self._elapsed_s() + wait_s
        return error

    def _keep_silence(self, path: str) -> None:
        left_s = self._silent_until_s - self._elapsed_s()
        if self._limited is not None and left_s > 0.0:
            text = f"{path}: not asked for {left_s:.0f} s more, after {self._limited}"
            raise ExchangeRefusedError(text, self._limited.status, left_s)
        self._limited = None


async def _whole(path: str, response: aiohttp.ClientResponse) -> bytes:
    # In pieces as they come: a single read gives no more than has arrived.
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ExchangeError(f"{path}: the answer is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _excerpt(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace")


def _retry_after_s(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
