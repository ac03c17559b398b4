"""What a demo asks of its simulated exchange: how it stands, what it has sent, which candles it has."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import aiohttp
import msgspec

from marketfeed.binance.budget import Budget, Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import Instrument, parse_exchange_info
from marketfeed.errors import ExchangeError
from marketfeed.grid import TimeRange, candles_in, tiles
from marketfeed.records import Candle
from marketfeed.schema import TIMEFRAMES_MS
from marketfeed.simulator.control import State
from marketfeed.simulator.published import Published

SeriesRanges: TypeAlias = Mapping[tuple[str, str], TimeRange]
"""Which candles of each pair and timeframe are meant."""

WEIGHT_PER_MINUTE: Final = 2_000
"""Of the exchange's 2,400: the collector has used some of its last minute."""
ASK_AGAIN_S: Final = 0.5
TRIES: Final = 60
"""REST leaves out what has not closed for certain by the exchange's clock: that is asked for again."""


class DemoExchange:
    """The simulator at `rest_url`; `clock` is its time as this process knows it."""

    def __init__(self, http: aiohttp.ClientSession, rest_url: str) -> None:
        self.clock = ExchangeClock()
        self._http = http
        self._url = rest_url
        turns = Turns(Budget(WEIGHT_PER_MINUTE), self.clock)
        # A busy machine answers late: that is no reason to end.
        self._rest = BinanceRest(http, rest_url, timeout_s=120.0, turns=turns)

    async def sync(self) -> None:
        """Take over its time and speed. Raises ExchangeError."""
        await self._rest.server_time()

    async def state(self) -> State:
        """How it stands."""
        async with self._http.get(f"{self._url}/simulator/state") as response:
            return msgspec.json.decode(await response.read(), type=State)

    async def published(self, after: int) -> list[Published]:
        """The closing frames with a number above `after` that were handed to somebody."""
        url = f"{self._url}/simulator/published"
        async with self._http.get(url, params={"after": after}) as response:
            items = msgspec.json.decode(await response.read(), type=list[Published])
        return [item for item in items if item.receivers]

    async def control(self, what: str) -> None:
        """`pause` its time, or `resume` it."""
        async with self._http.post(f"{self._url}/simulator/{what}") as response:
            response.raise_for_status()

    async def slow_down(self, speed: float) -> None:
        """Let it go on at another speed, from where its frames are: it is not behind any more."""
        async with self._http.post(
            f"{self._url}/simulator/speed", json={"speed": speed}
        ) as response:
            response.raise_for_status()
        await self.sync()

    async def candles(self, ranges: SeriesRanges) -> dict[tuple[str, str], list[Candle]]:
        """Its candles of these ranges, by its REST API, whole: all have closed.

        Raises ExchangeError, also when it goes on leaving some out.
        """
        await self.sync()
        listed = parse_exchange_info(await self._rest.exchange_info()).instruments
        return {
            (pair, timeframe): await self._series(listed[pair], timeframe, time_range)
            for (pair, timeframe), time_range in ranges.items()
        }

    async def _series(
        self, instrument: Instrument, timeframe: str, time_range: TimeRange
    ) -> list[Candle]:
        length_ms = TIMEFRAMES_MS[timeframe]
        candles: list[Candle] = []
        for tile in tiles(time_range, length_ms):
            candles += await self._tile(instrument, timeframe, tile, candles_in(tile, length_ms))
        return candles

    async def _tile(
        self, instrument: Instrument, timeframe: str, tile: TimeRange, count: int
    ) -> Sequence[Candle]:
        got: Sequence[Candle] = ()
        for _ in range(TRIES):
            answer = await self._rest.klines(instrument, timeframe, *tile, Priority.LIVE)
            got = answer.candles
            if len(got) == count:
                return got
            await asyncio.sleep(ASK_AGAIN_S)
        raise ExchangeError(
            f"{instrument.pair} {timeframe}: the simulator has {len(got)} of {count} candles"
        )
