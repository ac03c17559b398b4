"""Settlements that change their rhythm, through the real collector, both stores and the feeders' seam."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from influxd import Influxd

from marketfeed import schema
from marketfeed.binance.budget import Priority
from marketfeed.binance.rest import BinanceRest
from marketfeed.collector.collector import Collector
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader, ReaderError, sum_settlements
from reader.feeder import FUNDING_RATE, Download, Feeder
from tests.waiting import until

T0 = 1_790_006_400_000
"""A full 8 hours."""
SPEED = 240.0
Rows = list[tuple[int, float, str]]


async def truth_of(sim: Simulator, since_ms: int, until_ms: int) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    async with aiohttp.ClientSession() as session:
        rest = BinanceRest(session, sim.rest_url)
        for one in sim.market.instruments:
            answer = await rest.settlements(since_ms, until_ms, Priority.HISTORY, one.symbol)
            found[one.pair] = [(row.time_ms, row.rate, row.kind) for row in answer.rates]
    return found


def stored(reader: MarketReader, pair: str, since_ms: int) -> Rows:
    frame = reader.get_funding_history(pair, since_ms)
    times_ms = [at.value // 1_000_000 for at in frame["date"]]
    return list(zip(times_ms, frame["rate"].tolist(), frame["kind"].tolist(), strict=True))


@pytest.mark.long(20)
def test_rhythms_and_specials_through_the_whole_line(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    options = SimulatorOptions(
        pairs=6, timeframes=("1m",), speed=SPEED, start_ms=T0 - 2 * MINUTE_MS
    )
    end_ms = T0 + 2 * HOUR_MS + 15 * MINUTE_MS
    since_ms = T0 - DAY_MS
    refused: dict[str, list[str]] = {}

    def opened(now_ms: Callable[[], int]) -> MarketReader:
        return MarketReader.connect(influxd.url, bucket=database, now_ms=now_ms)

    async def main() -> tuple[dict[str, Rows], int]:
        async with Simulator(options) as sim:
            longer, shorter, later, special, *_ = (one.symbol for one in sim.market.instruments)
            funding = sim.market.funding
            for symbol, first_h, then_h, minutes in (
                (longer, 1, 4, 3),
                (shorter, 8, 1, 20),
                (later, 4, 8, 1),
                (special, 8, 8, 1),
            ):
                # Long before the collector's time, and while it runs.
                funding[symbol].change_rhythm(0, first_h)
                funding[symbol].change_rhythm(T0 + minutes * MINUTE_MS, then_h)
            funding[special].settle_specially(T0, 0.009)
            funding[special].settle_specially(T0 + 40 * MINUTE_MS, -0.004)
            settings = Settings.model_validate(
                {
                    "exchange": {
                        "ws_url": sim.ws_url,
                        "rest_url": sim.rest_url,
                        "pairs": [one.pair for one in sim.market.instruments],
                        "timeframes": ["1m"],
                    },
                    "history": {"days": 2},
                    "journal": {"path": str(path)},
                    "status": {"port": 0},
                    "influxdb": {"url": influxd.url, "api": "v1", "bucket": database},
                }
            )
            collector = Collector(settings)
            stop = asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            pairs = [one.pair for one in sim.market.instruments]
            try:
                await until(
                    lambda: (
                        sim.now_ms() > T0 + MINUTE_MS
                        and (report := collector.report().settled) is not None
                        and not report.history_pairs
                        and not report.awaited
                        and report.rates
                    )
                )
                with (
                    MarketReader.connect(f"sqlite:///{path}", now_ms=sim.now_ms) as journal,
                    await asyncio.to_thread(opened, sim.now_ms) as bucket,
                ):
                    feeders = [Feeder(reader, sim.now_ms) for reader in (journal, bucket)]
                    # What was stored so far is shipped: at this speed ten minutes are two seconds.
                    late_ms = T0 + schema.SETTLED_LATE_MS
                    while (
                        sim.now_ms() <= late_ms
                        or not bucket.pairs()
                        or not await asyncio.to_thread(ask, feeders[1], pairs)
                    ):
                        await asyncio.sleep(0.2)
                    refused.clear()
                    while sim.now_ms() < end_ms:
                        for feeder in feeders:
                            await asyncio.to_thread(ask, feeder, pairs)
                        await asyncio.sleep(0.2)
                    # Each hour's came, and what was announced for the end is known.
                    for feeder in feeders:
                        while not await asyncio.to_thread(ask, feeder, pairs):
                            await asyncio.sleep(0.2)
                await until(lambda: not collector.report().settled.awaited)
                now_ms = sim.now_ms()
                await until(lambda: not collector.report().shipping.unshipped)
            finally:
                stop.set()
                await running
            return await truth_of(sim, since_ms, now_ms), now_ms

    def ask(feeder: Feeder, pairs: list[str]) -> bool:
        asked = [Download(pair, "1h", FUNDING_RATE, since_ms, 1_000, since_ms) for pair in pairs]
        answers = feeder.answer(asked)
        for pair, found in zip(pairs, answers, strict=True):
            if isinstance(found, ReaderError):
                refused.setdefault(pair, []).append(str(found))
        return not any(isinstance(found, ReaderError) for found in answers)

    truth, now_ms = asyncio.run(main())
    longer, shorter, later, special, *_ = truth
    with (
        MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as journal,
        opened(lambda: now_ms) as bucket,
    ):
        for pair, rows in truth.items():
            assert stored(journal, pair, since_ms) == rows
            assert stored(bucket, pair, since_ms) == rows
            # It is said once a minute of this machine's time, of before at the latest.
            frames = [reader.get_funding_history(pair, since_ms) for reader in (journal, bucket)]
            assert 0 < frames[1].attrs["settled_to"] <= frames[0].attrs["settled_to"]
        kinds = [kind for _, _, kind in truth[special]]
        assert kinds[-3:] == ["Regular", "Special", "Special"]
        summed = sum_settlements(bucket.get_funding_history(special, T0))["rate"].tolist()
        assert np.allclose(summed, [truth[special][-3][1] + 0.009, -0.004])
        hours = [reader.get_all_pairs_funding_rates(max_age_s=None) for reader in (journal, bucket)]
        assert {pair: rate.interval_h for pair, rate in hours[0].items()} == {
            pair: rate.interval_h for pair, rate in hours[1].items()
        }
        assert [hours[0][pair].interval_h for pair in (longer, shorter, later, special)] == [
            *(4.0, 1.0, 8.0, 8.0)
        ]
    # Those that did not settle again were refused at no time; another one for its settlement alone, should
    # this machine have been too busy to fetch it within the ten minutes.
    assert not {longer, later, special} & set(refused), refused
    for pair, texts in refused.items():
        times = {schema.to_minute(at_ms) for at_ms, _, _ in truth[pair]}
        for text in texts:
            (named,) = re.findall(r"the settled rate of (\S+ \S+)", text)
            at_ms = int(np.datetime64(named.replace(" ", "T")[:16], "ms").astype(np.int64))
            assert at_ms in times, text
