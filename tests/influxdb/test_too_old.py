"""Points that a bucket no longer keeps, among others: few requests, in the words of every version."""

import random
import time

import aiohttp
import pytest
import uvloop
from front import Front

from marketfeed.influxdb.delivery import Delivery, Refused
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.settings.model import InfluxSettings

DAY_MS = 86_400_000


@pytest.mark.parametrize("old_words", [False, True])
def test_thousands_that_are_too_old_cost_few_requests(front: Front, old_words: bool) -> None:
    front.old_words = old_words
    front.expire("market_data", 3_600)
    now_ms = time.time_ns() // 1_000_000
    old = [f"m,pair=A/USDT:USDT v={n} {now_ms - DAY_MS + n}" for n in range(5_000)]
    good = [f"m,pair=A/USDT:USDT v={n} {now_ms - 60_000 + n}" for n in range(100)]
    mixed = [*old, *good]
    random.Random(1).shuffle(mixed)
    settings = InfluxSettings(
        url=front.url,
        org=front.org,
        token=front.token,  # type: ignore[arg-type]
    )

    async def run() -> tuple[Refused, int]:
        async with aiohttp.ClientSession() as session:
            delivery = Delivery(InfluxWriter(settings, session), UnansweredLines(60.0))
            return await delivery.rows(mixed, 5_000), delivery.requests

    refused, requests = uvloop.run(run())
    assert sorted(line for line, _ in refused) == sorted(old)
    assert requests <= 20
    (series,) = front.influxd.query("SELECT v FROM m", front.buckets["market_data"].database)
    assert [value for _, value in series["values"]] == list(range(100))
