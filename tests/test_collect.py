"""The collector against the simulated exchange, in one event loop: nothing missing, nothing wrong, clean."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from marketfeed.binance.symbols import parse_exchange_info
from marketfeed.clock import ExchangeClock
from marketfeed.collect import Collector
from marketfeed.config import Settings
from marketfeed.errors import JournalLockedError
from marketfeed.journal import Journal
from marketfeed.schema import CANDLE_FIELDS
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader

PAIRS = 8
START_MS = 1_790_006_400_000 + 5_000
"""Not just before candles close: at speed 240 a start takes seconds, and what closes in them is fetched."""


def settings_for(path: Path, ws_url: str, rest_url: str, **exchange: Any) -> Settings:
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": ws_url,
                "rest_url": rest_url,
                "pairs": {"top": PAIRS},
                "timeframes": ["1m", "3m"],
                **exchange,
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": {"days": 0},
        }
    )


@contextlib.asynccontextmanager
async def running(
    settings: Settings, clock: ExchangeClock | None = None
) -> AsyncIterator[Collector]:
    collector = Collector(settings, clock)
    stop = asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        yield collector
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def delivering(collector: Collector) -> bool:
    report = collector.report()
    return report.healthy and report.mark_price_age_s is not None


@pytest.fixture(autouse=True)
def no_callback_fails(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> Iterator[None]:
    """The feed logs what its callbacks raise and goes on: here that is a failure."""
    yield
    failed = [r.getMessage() for r in caplog.get_records("call") if "failed" in r.getMessage()]
    # A clock that is broken on purpose breaks callbacks, too.
    expected = "a_dead_task" in request.node.name
    assert expected or not [t for t in failed if t.startswith(("on_state", "on_frame"))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_every_published_candle_is_stored_with_its_numbers(path: Path) -> None:
    async def run() -> None:
        before = asyncio.all_tasks()
        async with Simulator(
            SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=240, start_ms=START_MS)
        ) as sim:
            async with running(settings_for(path, sim.ws_url, sim.rest_url)) as collector:
                await until(lambda: delivering(collector))
                first = len(sim.published())
                # Up to 16 close at a time: the last of these are on their way when it stops.
                await until(lambda: len(sim.published()) >= first + 170)
            published = [item for item in sim.published()[first : first + 150] if item.receivers]
        with Journal.open(path) as journal:
            counts = journal.row_counts()
            for item in published:
                (candle,) = journal.candles(
                    item.pair, item.timeframe, item.open_time_ms, item.open_time_ms + 1
                )
                for name in CANDLE_FIELDS:
                    assert getattr(candle, name) == getattr(item, name)
        assert counts["dead_letter"] == counts["gap"] == 0
        assert counts["mark_price"] >= PAIRS
        assert counts["funding_rate"] >= PAIRS
        assert asyncio.all_tasks() == before

    uvloop.run(run())
    assert not Path(f"{path}-wal").exists()


def test_the_reader_follows_while_the_collector_writes(path: Path) -> None:
    async def run() -> None:
        async with (
            Simulator(
                SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=240, start_ms=START_MS)
            ) as sim,
            running(settings_for(path, sim.ws_url, sim.rest_url)) as collector,
        ):
            await until(lambda: delivering(collector))
            await until(lambda: min(t.pairs_with_newest for t in collector.report().timeframes) > 0)
            now_ms = collector.report().exchange_time_ms

            def read() -> None:
                with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as reader:
                    names = [info.pair for info in reader.pairs()]
                    assert len(names) == PAIRS
                    newest = reader.newest("1m")
                    assert reader.wait_closed("1m", min(newest.values()), 10.0) == ()
                    rates = reader.get_all_pairs_funding_rates(max_age_s=None)
                    assert sorted(rates) == sorted(names)
                    assert reader.get_mark_price(names[0], max_age_s=None) > 0

            await asyncio.to_thread(read)

    uvloop.run(run())


def test_top_pairs_are_chosen_once_and_kept(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=60)
        async with Simulator(options) as sim:
            async with running(
                settings_for(path, sim.ws_url, sim.rest_url, pairs={"top": 3})
            ) as one:
                await until(lambda: delivering(one))
            with Journal.open(path) as journal:
                chosen = journal.load_document("chosen_pairs:USDT:3")
                assert chosen is not None
                names = json.loads(chosen[0])
                assert len(names) == 3
                # As if volumes had changed since: what was chosen stays.
                kept = [*names[:2], next(p for p in sim_pairs(journal) if p not in names)]
                journal.save_document("chosen_pairs:USDT:3", json.dumps(kept).encode(), 1)
            async with running(
                settings_for(path, sim.ws_url, sim.rest_url, pairs={"top": 3})
            ) as two:
                await until(lambda: delivering(two))
                assert set(two._reporter.gauges().mark_price_age_s) == set(kept)

    def sim_pairs(journal: Journal) -> list[str]:
        info = journal.load_document("exchange_info")
        assert info is not None
        instruments = parse_exchange_info(info[0]).instruments.values()
        return sorted(i.pair for i in instruments if i.collectable and i.quote == "USDT")

    uvloop.run(run())


def test_a_pair_that_is_not_traded_is_named_and_the_rest_collected(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=60)) as sim:
            settings = settings_for(
                path,
                sim.ws_url,
                sim.rest_url,
                pairs=["BTC/USDT:USDT", "NOSUCH/USDT:USDT"],
                timeframes=["1m"],
            )
            async with running(settings) as collector:
                await until(lambda: delivering(collector))
                report = collector.report()
                assert report.pairs == 1
                assert report.refused_pairs == {
                    "NOSUCH/USDT:USDT": "the exchange lists no such contract"
                }

    uvloop.run(run())
    assert "pair=NOSUCH/USDT:USDT" in caplog.text


def test_the_exchange_may_be_down_at_the_start(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=60)
        async with Simulator(options) as sim:
            port, ws_url, rest_url = sim.port, sim.ws_url, sim.rest_url
            async with running(settings_for(path, ws_url, rest_url)) as collector:
                await until(lambda: delivering(collector))
        # Down, with a last-known list: it starts, says what is wrong, and collects once all is back.
        async with running(settings_for(path, ws_url, rest_url)) as collector:
            await until(lambda: collector.report().pairs == PAIRS)
            assert not collector.report().healthy
            async with Simulator(
                SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=60, port=port)
            ):
                await until(lambda: delivering(collector))
        # Down at the very first start: it waits, and can be stopped while it does.
        async with running(settings_for(path.with_name("new.db"), ws_url, rest_url)) as collector:
            await until(lambda: collector.report().reasons == ["the collector is starting"])

    uvloop.run(run())


def test_a_second_collector_on_the_journal_is_refused(path: Path) -> None:
    async def run() -> None:
        async with Simulator(SimulatorOptions(pairs=1, timeframes=("1m",))) as sim:
            settings = settings_for(path, sim.ws_url, sim.rest_url, timeframes=["1m"])
            async with running(settings) as collector:
                await until(lambda: collector.report().pairs > 0)
                with pytest.raises(JournalLockedError):
                    await Collector(settings).run(asyncio.Event())

    uvloop.run(run())


class _BreakableClock(ExchangeClock):
    """A clock with a bug that shows when `broken` is set: it kills the task that commits."""

    broken = False

    def now_ms(self) -> int:
        if self.broken:
            raise RuntimeError("a bug")
        return super().now_ms()


def test_a_dead_task_ends_the_run(path: Path) -> None:
    async def run() -> None:
        async with Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=240)) as sim:
            settings = settings_for(path, sim.ws_url, sim.rest_url, timeframes=["1m"])
            clock = _BreakableClock()
            collector = Collector(settings, clock)
            task = asyncio.create_task(collector.run(asyncio.Event()))
            await until(lambda: delivering(collector))
            clock.broken = True
            with pytest.raises(BaseExceptionGroup) as caught:
                await task
            assert caught.group_contains(RuntimeError, match="a bug")

    uvloop.run(run())
    Journal.open(path).close()


def test_health_metrics_and_status_are_served(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def run() -> None:
        async with (
            Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=60)) as sim,
            running(settings_for(path, sim.ws_url, sim.rest_url, timeframes=["1m"])) as collector,
            aiohttp.ClientSession() as session,
        ):
            await until(lambda: delivering(collector))
            url = next(
                word.partition("=")[2]
                for record in caplog.records
                for word in record.getMessage().split()
                if word.startswith("status_url=")
            )
            async with session.get(url + "/health") as answer:
                assert answer.status == 200
                assert await answer.json() == {"healthy": True, "reasons": []}
            async with session.get(url + "/status") as answer:
                assert (await answer.json())["pairs"] == PAIRS
            async with session.get(url + "/metrics") as answer:
                text = await answer.text()
            assert f"marketfeed_pairs {float(PAIRS)}" in text
            assert 'marketfeed_mark_price_age_seconds{pair="BTC/USDT:USDT"}' in text
            assert "marketfeed_close_to_commit_seconds_bucket" in text

    uvloop.run(run())
