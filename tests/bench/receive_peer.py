"""The peers' side of a measurement: cryptofeed as it comes, with no-op callbacks or its InfluxDB backend.

Its own feed, connections, parsing and types; only its symbols are given instead of fetched, and the
addresses point to this host. One feed for each timeframe: a cryptofeed feed knows one.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec
import uvloop
from cryptofeed import FeedHandler
from cryptofeed.backends.influxdb import CandlesInflux, FundingInflux
from cryptofeed.defines import CANDLES, FUNDING
from cryptofeed.exchanges.binance_futures import BinanceFutures
from cryptofeed.symbols import Symbols

from marketfeed.counters import cpu_s
from tests.bench import jobs, workload

_LOOK_EVERY_S: Final = 0.01
_CONFIG: Final = {"uvloop": False, "log": {"disabled": True}}
_HOST: Final = "wss://fstream.binance.com"


class _Loopback(BinanceFutures):  # type: ignore[misc] # cryptofeed has no types
    """The feed with its connections pointed to a port of this host."""

    port = 0

    def connect(self) -> Any:
        connections = super().connect()
        for connection, *_ in connections:
            connection.address = connection.address.replace(_HOST, f"ws://127.0.0.1:{self.port}")
        return connections


async def _no_op(item: object, receipt_timestamp: float) -> None:
    pass


def _symbols() -> list[str]:
    wanted = {instrument.symbol for instrument in workload.listed()}
    rows = msgspec.json.decode(workload.exchange_info())["symbols"]
    rows = [row for row in rows if row["symbol"] in wanted]
    Symbols.set(_Loopback.id, *_Loopback._parse_symbol_data({"symbols": rows}))
    symbols: dict[str, str] = _Loopback.symbol_mapping()
    return [symbol for symbol, name in symbols.items() if name in wanted]


def _callback(job: jobs.ReceiveJob, backend: Callable[..., Any]) -> Any:
    if job.influx_port is None:
        return _no_op
    return backend(f"http://127.0.0.1:{job.influx_port}", "org", "market_data", "token")


async def _receive(job: jobs.ReceiveJob) -> None:
    _Loopback.port = job.port
    symbols = _symbols()
    candles, funding = _callback(job, CandlesInflux), _callback(job, FundingInflux)
    feeds = []
    handler = FeedHandler(config=_CONFIG)
    for number, timeframe in enumerate(job.timeframes):
        channels = {CANDLES: candles} if number else {CANDLES: candles, FUNDING: funding}
        feed = _Loopback(
            symbols=symbols,
            channels=list(channels),
            callbacks=channels,
            candle_interval=timeframe,
            candle_closed_only=job.closed_only,
            config=_CONFIG,
        )
        feeds.append(feed)
        handler.add_feed(feed)

    async def until(frames: int) -> int:
        while True:
            seen: int = sum(one.conn.received for f in feeds for one in f.connection_handlers)
            if seen >= frames:
                return seen
            await asyncio.sleep(_LOOK_EVERY_S)

    running = None
    if hasattr(handler, "run_async"):
        running = asyncio.create_task(handler.run_async(install_signal_handlers=False))
    else:
        handler.run(start_loop=False, install_signal_handlers=False)
    first = await until(max(job.skip, 1))
    before_s, started_s = cpu_s(), time.monotonic()
    last = await until(job.frames)
    used_s, lasted_s = cpu_s() - before_s, time.monotonic() - started_s
    points = 0
    if job.influx_port is not None:
        url = f"http://127.0.0.1:{job.influx_port}/wait?points={job.points}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            points = msgspec.json.decode(await response.read(), type=jobs.Points).points
    stored_cpu_s, stored_wall_s = cpu_s() - before_s, time.monotonic() - started_s
    if running is not None and running.done():
        await running
    result = jobs.Received(
        frames=last - first,
        cpu_s=used_s,
        wall_s=lasted_s,
        stored_cpu_s=stored_cpu_s,
        stored_wall_s=stored_wall_s,
        points=points,
    )
    jobs.send(result)
    # cryptofeed 2's connection tasks have no end of their own.
    os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    uvloop.run(_receive(jobs.take(jobs.ReceiveJob)))
