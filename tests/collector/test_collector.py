"""The collector against the simulated exchange, in one event loop: nothing missing, nothing wrong, clean."""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import parse_exchange_info
from marketfeed.collector.collector import Collector
from marketfeed.collector.reasons import Kind
from marketfeed.errors import JournalLockedError, JournalWriteError
from marketfeed.history.backfill import AGAIN_S, HistoryReport
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import MarkPrice, differing_fields
from marketfeed.schema import HOUR_MS, floor_to
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader
from tests.ports import held_port
from tests.waiting import until

PAIRS = 8
SPEED = 60.0
START_MS = 1_790_006_400_000 + 5_000
"""Not just before candles close: at speed 240 a start takes seconds, and what closes in them is fetched."""


def settings_for(
    path: Path, ws_url: str, rest_url: str, days: int = 0, **exchange: Any
) -> Settings:
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
            "history": {"days": days, "weight_per_minute": 2_400},
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


def delivering(collector: Collector) -> bool:
    report = collector.report()
    ready = report.ready_pairs == report.pairs
    return report.healthy and ready and report.mark_price_age_s is not None


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
            SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=120, start_ms=START_MS)
        ) as sim:
            async with running(settings_for(path, sim.ws_url, sim.rest_url)) as collector:
                await until(lambda: delivering(collector))
                first = len(sim.published())
                # Up to 16 close at a time: the last of these are on their way when it stops.
                await until(lambda: len(sim.published()) >= first + 170)
            published = [item for item in sim.published()[first : first + 150] if item.receivers]
        with Journal.open(path) as journal:
            counts = journal.row_counts()
            assert journal.open_gaps() == []
            for item in published:
                (candle,) = journal.candles(
                    item.pair, item.timeframe, item.open_time_ms, item.open_time_ms + 1
                )
                assert not differing_fields(candle, item)
        assert (counts["dead_letter"], counts["gap"]) == (0, 0)
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
                assert set(two._reporter.mark_price_ages_s()) == set(kept)

    def sim_pairs(journal: Journal) -> list[str]:
        info = journal.load_document("exchange_info")
        assert info is not None
        instruments = parse_exchange_info(info[0]).instruments.values()
        return sorted(
            i.pair
            for i in instruments
            if i.collectable and (i.contract, i.quote) == ("perpetual", "USDT")
        )

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
        options = SimulatorOptions(pairs=PAIRS, timeframes=("1m", "3m"), speed=60, port=held_port())
        async with Simulator(options) as sim:
            ws_url, rest_url = sim.ws_url, sim.rest_url
            async with running(settings_for(path, ws_url, rest_url)) as collector:
                await until(lambda: delivering(collector))
        # Down, with a last-known list: it starts, says what is wrong, and collects once all is back.
        async with running(settings_for(path, ws_url, rest_url)) as collector:
            await until(lambda: collector.report().pairs == PAIRS)
            assert not collector.report().healthy
            async with Simulator(options):
                await until(lambda: delivering(collector))
        # Down at the very first start: it waits, and can be stopped while it does.
        async with running(settings_for(path.with_name("new.db"), ws_url, rest_url)) as collector:
            await until(lambda: collector.report().reasons == [str(Kind.STARTING.reason())])

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


def test_damage_that_no_commit_and_no_reader_meets_replaces_the_journal(path: Path) -> None:
    async def run() -> None:
        async with (
            Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=60)) as sim,
            running(settings_for(path, sim.ws_url, sim.rest_url, timeframes=["1m"])) as collector,
        ):
            await until(lambda: delivering(collector))
            writer = collector._writer
            writer._again_after_s = (0.0, 0.0)

            def spoil(journal: Journal) -> None:
                db = journal.db
                (root,) = db.execute(
                    "SELECT rootpage FROM sqlite_master WHERE name = 'refused_line'"
                ).fetchone()
                (size,) = db.execute("PRAGMA page_size").fetchone()
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                with path.open("r+b") as file:
                    file.seek((root - 1) * size)
                    file.write(b"\xff" * 100)
                db.execute("PRAGMA shrink_memory").fetchall()

            await writer.call(spoil)
            with pytest.raises(JournalWriteError, match="malformed"):
                await writer.take_stock()
            await until(lambda: collector.report().journal.set_aside is not None)
            # The feed was not disturbed, and goes on into the fresh file.
            await until(lambda: pairs_stored() == PAIRS)
            await until(lambda: "was set aside" in "".join(collector.report().reasons))
            # Whatever it has beside that page is taken over, and then it may go.
            await until(
                lambda: [one.state for one in collector.report().journal.aside] == ["drained"]
            )
            assert "was taken over" in "".join(collector.report().reasons)
            assert collector.report().journal.aside[0].rows > 0
            for file in path.parent.glob("*.corrupt-*"):
                file.unlink()
            await until(lambda: delivering(collector))
            assert [c.opened for c in collector.report().connections] == [1]

    def pairs_stored() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(DISTINCT pair_id) FROM mark_price").fetchone()[0])

    uvloop.run(run())


def test_what_the_disk_budget_took_is_recorded_as_a_gap_where_it_was(path: Path) -> None:
    async def run() -> None:
        async with Simulator(SimulatorOptions(pairs=1, timeframes=("1m",), speed=SPEED)) as sim:
            oldest_ms = floor_to(sim.now_ms() - 34 * HOUR_MS, 3_000)
            batch = Batch()
            batch.extend(
                MarkPrice("BTC/USDT:USDT", oldest_ms + number * 3_000, 1.0, 1.0)
                for number in range(40_000)
            )
            with Journal.open(path) as journal:
                journal.write(batch)
            settings = settings_for(
                path, sim.ws_url, sim.rest_url, pairs={"top": 1}, timeframes=["1m"]
            )
            # Less than settings may ask for.
            small = settings.journal.model_copy(update={"max_bytes": 1_000_000})
            async with running(settings.model_copy(update={"journal": small})) as collector:
                await until(lambda: len(gaps()) >= 1)
                await until(lambda: delivering(collector))
                # Retention has come to its end.
                await until(lambda: 0 < collector.report().journal.bytes_used <= 1_000_000)
        reported = gaps()
        # One gap tells of all turns; nothing of it is there any more, but all that came after.
        assert [start_ms for start_ms, _ in reported] == [oldest_ms]
        assert 0 <= stored()[0] - reported[-1][1] < 3_000
        assert len(stored()) >= 1_000

    def gaps() -> list[tuple[int, int]]:
        return rows(
            """SELECT start, "end" FROM gap WHERE kind = 'disk_budget_mark_price' ORDER BY 1"""
        )

    def stored() -> list[int]:
        return [ms for (ms,) in rows("SELECT time FROM mark_price ORDER BY time")]

    def rows(query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    uvloop.run(run())


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def test_history_of_a_journal_that_was_replaced_is_filled_at_once(path: Path) -> None:
    """Not with the next look for holes, an hour later."""

    async def run() -> None:
        async with (
            Simulator(SimulatorOptions(pairs=2, timeframes=("1m",), speed=SPEED)) as sim,
            running(
                settings_for(path, sim.ws_url, sim.rest_url, 1, pairs={"top": 2}, timeframes=["1m"])
            ) as collector,
        ):

            def history() -> HistoryReport:
                state = collector.report().history
                assert state is not None
                assert state.history is not None
                return state.history

            # Until it has found that nothing is left to be filled.
            await until(lambda: collector.report().history is not None)
            since_s = time.monotonic()
            while time.monotonic() - since_s < 3 * AGAIN_S / SPEED:
                if not history().complete:
                    since_s = time.monotonic()
                await asyncio.sleep(0.005)
            remove(path)
            await until(lambda: collector.report().journal.generation == 2)
            await until(lambda: history().complete and history().stored > 2_000)

    uvloop.run(run())


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
                assert await answer.json() == {
                    "state": "well",
                    "healthy": True,
                    "ready_pairs": PAIRS,
                    "reasons": [],
                }
            async with session.get(url + "/status") as answer:
                assert (await answer.json())["pairs"] == PAIRS
            async with session.get(url + "/metrics") as answer:
                text = await answer.text()
            assert f"marketfeed_pairs {float(PAIRS)}" in text
            assert 'marketfeed_mark_price_age_seconds{pair="BTC/USDT:USDT"}' in text
            assert "marketfeed_close_to_commit_seconds_bucket" in text

    uvloop.run(run())
