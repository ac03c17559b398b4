"""A process that gives points to cryptofeed's own InfluxDB backends at an even rate. Runs on 2.x and 3.x.

Nine of ten points are candles, one is a funding; point `i` is of second `i // per_s`.
Needs cryptofeed alone: it may run on another interpreter than the one that tests.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
from decimal import Decimal

from cryptofeed.backends.influxdb import CandlesInflux, FundingInflux
from cryptofeed.types import Candle, Funding

START_S = 1_767_225_600
TICKS_PER_S = 20
IDLE_S = 20.0
"""Its last retry comes within 12 s: after so long without progress nothing more will."""


def give(number: int, per_s: int) -> Candle | Funding:
    second, index = divmod(number, per_s)
    at_s = float(START_S + second)
    symbol = f"P{index:04d}-USDT-PERP"
    price = Decimal(number % 99_991) / 7 + 1
    if index % 10 == 9:
        return Funding(
            "BINANCE_FUTURES", symbol, price, price, at_s + 3_600, at_s, predicted_rate=price
        )
    return Candle(
        "BINANCE_FUTURES", symbol, at_s, at_s + 59, "1m", 7, price, price, price, price, price, True, at_s
    )  # fmt: skip


async def run(url: str, org: str, bucket: str, token: str, per_s: int) -> None:
    candles = CandlesInflux(url, org, bucket, token)
    fundings = FundingInflux(url, org, bucket, token)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(candles, "start_writer"):  # 3.x
            group = await stack.enter_async_context(asyncio.TaskGroup())
            candles.start_writer(group, "candles")
            fundings.start_writer(group, "fundings")
        else:
            candles.start(loop)
            fundings.start(loop)
        await give_evenly(candles, fundings, per_s, stop)


async def give_evenly(
    candles: CandlesInflux, fundings: FundingInflux, per_s: int, stop: asyncio.Event
) -> None:
    """Give points until `stop`, wait until nothing more is taken, and report how many there were."""
    send_progress(begun=True)
    number, ticks, started_s = 0, 0, time.monotonic()
    while not stop.is_set():
        for _ in range(per_s // TICKS_PER_S):
            point = give(number, per_s)
            await (candles if isinstance(point, Candle) else fundings)(point, time.time())
            number += 1
        ticks += 1
        wait_s = started_s + ticks / TICKS_PER_S - time.monotonic()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.001, wait_s))
    left, since_s = -1, time.monotonic()
    while left and time.monotonic() - since_s < IDLE_S:
        now = candles.queue.qsize() + fundings.queue.qsize()
        if now != left:
            left, since_s = now, time.monotonic()
        await asyncio.sleep(0.1)
    # What was taken from the queue last may still be on its way.
    with contextlib.suppress(Exception):
        await asyncio.wait_for(asyncio.gather(candles.stop(), fundings.stop()), IDLE_S)
    await asyncio.sleep(1.0)
    send_progress(points=number, left_in_queue=left)


def send_progress(**what: int) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    address = json.loads(sys.argv[1])
    asyncio.run(
        run(address["url"], address["org"], address["bucket"], address["token"], int(sys.argv[2]))
    )
