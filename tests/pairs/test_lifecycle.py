"""Pairs come and go while the collector runs: listing, delisting, renames, odd statuses, odd answers."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from marketfeed.binance.rollover import Ages
from marketfeed.collector.collector import Collector
from marketfeed.journal.journal import Journal
from marketfeed.records import CatalogEntry, Life, differing_fields
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES_MS, floor_to
from marketfeed.settings.model import Settings
from marketfeed.simulator.fault_kinds import RefuseRest, ShiftClock
from marketfeed.simulator.listings import Delist, Enlist, Rename, SetStatus
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader
from tests.waiting import until

NEW = "NEWCOIN/USDT:USDT"


class Following:
    """A collector that follows its exchange's list."""

    def __init__(self, sim: Simulator, collector: Collector, path: Path) -> None:
        self.sim = sim
        self.collector = collector
        self.path = path

    @property
    def delivering(self) -> bool:
        report = self.collector.report()
        ready = report.ready_pairs == report.pairs
        return report.healthy and ready and report.mark_price_age_s is not None

    @property
    def pairs(self) -> int:
        return self.collector.report().pairs

    @property
    def filled(self) -> int:
        """Pairs whose history is complete."""
        state = self.collector.report().history
        report = None if state is None else state.history
        return report.pairs_done if report is not None and report.complete else 0

    async def until_ms(self, time_ms: int) -> None:
        await until(lambda: self.sim.now_ms() >= time_ms)

    async def wait_stored(self) -> None:
        """Wait until what has closed is stored."""
        await self.until_ms(self.sim.now_ms() + 10_000)
        await until(lambda: not self.collector.report().missing_candles)
        commits = self.collector.report().journal.commits
        await until(lambda: self.collector.report().journal.commits >= commits + 2)

    def catalog(self) -> dict[str, CatalogEntry]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            rows = db.execute(
                """SELECT pair, symbol, timeframes, since, listed, ended, changed, dropped
                   FROM catalog JOIN pair ON pair.id = pair_id"""
            )
            return {
                row[0]: CatalogEntry(row[0], row[1], tuple(row[2].split(",")), *row[3:])
                for row in rows
            }

    def lives(self) -> dict[str, list[Life]]:
        found: dict[str, list[Life]] = {}
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            for row in db.execute(
                """SELECT pair, symbol, listed, ended, evidence
                   FROM life JOIN pair ON pair.id = pair_id ORDER BY listed"""
            ):
                found.setdefault(row[0], []).append(Life(*row))
        return found

    def reader(self) -> MarketReader:
        return MarketReader.connect(f"sqlite:///{self.path}", now_ms=self.sim.now_ms)

    def undisturbed(self) -> set[int]:
        """The numbers of the connections that are open, as the exchange counts them."""
        return {one.number for one in self.sim.hub.connections}


@contextlib.asynccontextmanager
async def _running(
    path: Path,
    sim: Simulator,
    exchange: dict[str, Any],
    history: dict[str, Any] | None = None,
    ages: Ages | None = None,
) -> AsyncIterator[Following]:
    settings = Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "pairs": "all",
                "timeframes": list(sim.options.timeframes),
                **exchange,
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": history or {"days": 0},
        }
    )
    collector = Collector(settings, ages=ages)
    stop = asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        yield Following(sim, collector, path)
    finally:
        stop.set()
        await task


def run_following(
    path: Path,
    check: Callable[[Following], Awaitable[None]],
    exchange: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    async def run() -> None:
        chosen = {"pairs": 6, "timeframes": ("1m", "3m"), "speed": 120.0, **options}
        async with (
            Simulator(SimulatorOptions(**chosen)) as sim,
            _running(path, sim, exchange or {}) as following,
        ):
            await until(
                lambda: following.delivering or bool(following.collector.report().refused_pairs)
            )
            await check(following)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(run())


def assert_published_is_stored(
    following: Following, from_ms: int, until_ms: int, pairs: set[str]
) -> None:
    """What was published of each of `pairs` in a range of time was heard, and is stored."""
    found = set()
    with Journal.open(following.path) as journal:
        for one in following.sim.published():
            close_ms = one.open_time_ms + TIMEFRAMES_MS[one.timeframe]
            if one.pair not in pairs or not from_ms <= one.open_time_ms < close_ms <= until_ms:
                continue
            assert one.receivers > 0, one
            (candle,) = journal.candles(
                one.pair, one.timeframe, one.open_time_ms, one.open_time_ms + 1
            )
            assert not differing_fields(candle, one)
            found.add(one.pair)
    assert found == pairs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_new_listing_joins_without_disturbing_the_others(path: Path) -> None:
    time_range: list[int] = []
    held: list[Following] = []

    async def check(following: Following) -> None:
        held.append(following)
        time_range.append(following.sim.now_ms())
        before = following.undisturbed()
        at_ms = following.sim.change(Enlist(NEW, in_s=60.0))
        await until(lambda: NEW in following.catalog())
        # What a reader is shown can be read: no call for all pairs fails because of a newcomer.
        with following.reader() as reader:
            assert NEW in reader.get_all_pairs_funding_rates(max_age_s=3_600)
            assert reader.get_mark_price(NEW, max_age_s=3_600) > 0
        entry = following.catalog()[NEW]
        assert (entry.symbol, entry.listed_ms, entry.ended_ms) == ("NEWCOINUSDT", at_ms, None)
        assert entry.timeframes == ("1m", "3m")
        joined_ms = following.sim.now_ms()
        time_range.append(joined_ms)
        await following.until_ms(joined_ms + 7 * MINUTE_MS)
        time_range.append(following.sim.now_ms())
        await following.wait_stored()
        assert following.undisturbed() == before
        assert following.pairs == 7
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            known = db.execute(
                """SELECT min(at) FROM (
                       SELECT pair_id, start AS at FROM gap
                       UNION ALL SELECT pair_id, open_time FROM candle
                   ) JOIN pair ON pair.id = pair_id WHERE pair = ?""",
                (NEW,),
            ).fetchone()
        # From its first candle on: what closed before it joined is known to be missing, to be fetched.
        assert known == (floor_to(at_ms, TIMEFRAMES_MS["3m"]),)

    run_following(path, check)
    from_ms, joined_ms, until_ms = time_range
    # Nothing of the others is missing from before it came until long after.
    names = {one.pair for one in held[0].sim.market.instruments}
    assert_published_is_stored(held[0], from_ms, until_ms, names)
    assert_published_is_stored(held[0], joined_ms, until_ms, {*names, NEW})


def test_a_delisted_pair_ends_at_its_date_and_never_looks_stale(path: Path) -> None:
    async def check(following: Following) -> None:
        pair = following.sim.market.instruments[0].pair
        before = following.undisturbed()
        end_ms = following.sim.change(Delist(pair, in_s=900.0))
        await until(lambda: following.catalog()[pair].ended_ms == end_ms)
        assert following.sim.now_ms() < end_ms
        assert following.pairs == 6
        await until(lambda: following.pairs == 5)
        assert following.sim.now_ms() >= end_ms
        await following.until_ms(end_ms + 3 * MINUTE_MS)
        await until(lambda: following.delivering)
        stored_ms = following.sim.now_ms()
        await following.wait_stored()
        assert following.collector.report().streams == 5 * 3
        assert following.undisturbed() == before
        assert "btcusdt@kline_1m" not in {
            name for one in following.sim.hub.connections for name in one.names
        }
        with following.reader() as reader:
            assert pair not in reader.get_all_pairs_funding_rates(max_age_s=3_600)
            (info,) = [one for one in reader.pairs() if one.pair == pair]
            assert info.ended is not None
            assert info.ended.timestamp() * 1000 == end_ms
            # Its last candle is there, and nothing after it is missing.
            frame = reader.get_ohlcv(pair, "1m", 5)
            assert frame["date"].iloc[-1].timestamp() * 1000 == end_ms - MINUTE_MS
            assert frame.attrs["missing"] == []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            # Of what closed after that a busy machine may just be late.
            assert (
                db.execute(
                    'SELECT * FROM gap WHERE NOT healed AND "end" <= ?', (stored_ms,)
                ).fetchall()
                == []
            )

    run_following(path, check)


def test_the_history_of_a_pair_that_joins_is_filled_at_once(path: Path) -> None:
    """Not with the next look for holes, an hour later."""

    async def run() -> None:
        options = SimulatorOptions(pairs=3, timeframes=("1m",), speed=60.0)
        async with Simulator(options) as sim:
            pair = sim.market.instruments[2].pair
            sim.change(SetStatus(pair, "SETTLING"))
            names = [one.pair for one in sim.market.instruments]
            history = {"days": 1, "weight_per_minute": 2_400}
            async with _running(path, sim, {"pairs": names}, history) as following:
                await until(lambda: following.filled == 2)
                sim.change(SetStatus(pair, "TRADING"))
                await until(lambda: following.filled == 3)
                await until(lambda: pair in following.catalog())
                with following.reader() as reader:
                    assert len(reader.get_ohlcv(pair, "1m", 1_000, max_age_s=None)) == 1_000

    uvloop.run(run())


def test_a_pair_that_ends_while_its_history_is_filled_is_filled_all_the_same(path: Path) -> None:
    """The exchange still has its candles, and the state is not `filling` for ever."""

    async def run() -> None:
        options = SimulatorOptions(pairs=3, timeframes=("1m",), speed=60.0)
        history = {"days": 30, "weight_per_minute": 60}
        async with (
            Simulator(options) as sim,
            _running(path, sim, {"pairs": "all"}, history) as following,
        ):
            await until(lambda: following.collector.report().ready_pairs == 3)
            pair = sim.market.instruments[2].pair
            sim.change(SetStatus(pair, "SETTLING"))
            await until(lambda: following.pairs == 2)
            known = following.collector.report()
            assert known.state == "filling"
            assert known.history is not None
            assert known.history.history is not None
            assert known.history.history.candles_left > 1_000
            await until(lambda: following.filled == 2)
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                await until(lambda: _open_history(db, pair) == 0)
            await until(lambda: following.collector.report().state == "well")

    uvloop.run(run())


def _open_history(db: sqlite3.Connection, pair: str) -> int:
    """How many holes of its first filling a pair still has."""
    (left,) = db.execute(
        """SELECT count(*) FROM gap JOIN pair ON pair.id = pair_id
           WHERE pair = ? AND state = 'found' AND kind = 'history_1m'""",
        (pair,),
    ).fetchone()
    return int(left)


def test_a_rename_is_logged_and_not_stitched(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check(following: Following) -> None:
        pair = following.sim.market.instruments[2].pair
        at_ms = following.sim.change(Rename(pair, NEW, in_s=300.0))
        await until(lambda: following.sim.now_ms() > at_ms + 2 * MINUTE_MS)
        await until(lambda: following.pairs == 6 and NEW in following.catalog())
        await following.wait_stored()
        with following.reader() as reader:
            assert reader.get_ohlcv(pair, "1m", 3, max_age_s=None)["date"].iloc[
                -1
            ].timestamp() * 1000 == (at_ms - MINUTE_MS)
        words = f"nothing is stitched old={pair} new={NEW}"
        await until(lambda: words in caplog.text)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            first = db.execute(
                """SELECT min(open_time) FROM candle JOIN pair ON pair.id = pair_id
                   WHERE pair = ?""",
                (NEW,),
            ).fetchone()[0]
        assert first is None or first >= floor_to(at_ms, TIMEFRAMES_MS["3m"])

    run_following(path, check)


def test_a_server_time_that_is_hours_ahead_ends_no_pair_before_its_time(path: Path) -> None:
    async def check(following: Following) -> None:
        pair = following.sim.market.instruments[0].pair
        end_ms = following.sim.change(Delist(pair, in_s=2_400.0))
        await until(lambda: following.catalog()[pair].ended_ms == end_ms)
        await following.sim.faults.start(ShiftClock(offset_ms=3 * HOUR_MS))
        parts = following.collector._reporter.parts
        assert parts is not None
        for _ in range(2):
            await parts.rest.server_time()
        assert following.collector.report().exchange_time_ms > end_ms
        looks = parts.supervisor.looks
        await until(lambda: parts.supervisor.looks >= looks + 10)
        assert (following.pairs, following.sim.now_ms() < end_ms) == (6, True)
        await following.sim.faults.end()
        await parts.rest.server_time()
        await until(lambda: following.pairs == 5)
        assert following.sim.now_ms() >= end_ms

    run_following(path, check)


@pytest.mark.parametrize("names", [[NEW], ["BTC/USDT:USDT", NEW]])
def test_a_configured_pair_joins_once_it_trades(path: Path, names: list[str]) -> None:
    async def check(following: Following) -> None:
        assert list(following.collector.report().refused_pairs) == [NEW]
        following.sim.change(Enlist(NEW))
        await until(lambda: following.pairs == len(names))
        await until(lambda: following.delivering)
        assert following.collector.report().refused_pairs == {}

    run_following(path, check, {"pairs": names})


@pytest.mark.parametrize("pairs", ["named", "top"])
def test_a_pair_that_the_settings_drop_is_no_longer_live_and_may_be_taken_up_again(
    path: Path, caplog: pytest.LogCaptureFixture, pairs: str
) -> None:
    async def run() -> None:
        async with Simulator(
            SimulatorOptions(pairs=6, timeframes=("1m", "3m"), speed=240.0)
        ) as sim:
            names = [one.pair for one in sim.market.instruments]
            more: Any = names if pairs == "named" else {"top": 6}
            fewer: Any = names[:4] if pairs == "named" else {"top": 4}
            async with _running(path, sim, {"pairs": more}) as following:
                await until(lambda: following.delivering)
                assert following.pairs == 6
            for _ in range(2):
                async with _running(path, sim, {"pairs": fewer}) as following:
                    await until(lambda: following.delivering)
                    # Until candles have closed that the dropped ones lack.
                    await following.until_ms(sim.now_ms() + 2 * MINUTE_MS)
                    await following.wait_stored()
                    catalog = following.catalog()
                    kept = {pair for pair, one in catalog.items() if one.ended_ms is None}
                    assert len(kept) == following.pairs == 4
                    gone = [catalog[pair] for pair in set(names) - kept]
                    assert all(one.dropped for one in gone)
                    # The second start leaves them as they are.
                    assert all(one.ended_ms == one.changed_ms < sim.now_ms() for one in gone)
                    with following.reader() as reader:
                        rates = reader.get_all_pairs_funding_rates(max_age_s=3_600)
                        assert rates.keys() == kept
                        newest = reader.newest("1m")
                        open_ms = min(newest[pair] for pair in kept)
                        assert open_ms > max(newest.get(one.pair, 0) for one in gone)
                        assert reader.wait_closed("1m", open_ms, 20.0) == ()
            async with _running(path, sim, {"pairs": more}) as following:
                await until(lambda: following.delivering)
                await following.wait_stored()
                assert {one.ended_ms for one in following.catalog().values()} == {None}
                assert {one.timeframes for one in following.catalog().values()} == {("1m", "3m")}
                with following.reader() as reader:
                    rates = reader.get_all_pairs_funding_rates(max_age_s=3_600)
                    assert rates.keys() == set(names)

    uvloop.run(run())
    assert caplog.text.count("pairs dropped: the settings name them no more count=2") == 1


def test_an_end_while_the_collector_does_not_run_is_found_at_its_start(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=6, timeframes=("1m",), speed=240.0)
        async with Simulator(options) as sim:
            pair = sim.market.instruments[0].pair
            async with _running(path, sim, {"pairs": {"top": 6}}) as following:
                await until(lambda: following.delivering)
            end_ms = sim.change(Delist(pair))
            await following.until_ms(end_ms + MINUTE_MS)
            async with _running(path, sim, {"pairs": {"top": 6}}) as following:
                await until(lambda: following.catalog()[pair].ended_ms == end_ms)
                await until(lambda: following.delivering)
                assert following.pairs == 5

    uvloop.run(run())


def test_what_a_halted_pair_lacks_of_its_history_is_filled_all_the_same(path: Path) -> None:
    """Older than its newest 499 it is history's, and history fills what is collected."""

    async def run() -> None:
        options = SimulatorOptions(pairs=2, timeframes=("1m",), speed=60.0)
        async with Simulator(options) as sim:
            halted, other = (one.pair for one in sim.market.instruments)
            refusing = await sim.faults.start(RefuseRest("klines", 503))
            async with _running(
                path, sim, {"pairs": [halted, other]}, {"days": 1, "weight_per_minute": 2_400}
            ) as following:
                await until(lambda: following.collector.report().mark_price_age_s is not None)
                sim.change(SetStatus(halted, "BREAK"))
                await until(lambda: halted in following.collector.report().halted)
                lacking = following.collector.report().missing_of_ended
                assert lacking > 1_400
                await sim.faults.end(refusing)
                await until(lambda: not following.collector.report().missing_of_ended)
                await until(lambda: following.filled == 2)
                assert following.collector.report().reasons == []
                history = following.collector.report().history
                assert history is not None
                assert history.history is not None
                # It is collected all the time.
                assert history.history.pairs == following.pairs == 2

    uvloop.run(run())


def test_what_the_exchange_does_not_know_of_an_ended_pair_is_absent(path: Path) -> None:
    """REST answers 400 for its candles: nobody fills them, and nobody has to."""

    async def run() -> None:
        options = SimulatorOptions(pairs=2, timeframes=("1m",), speed=240.0)
        async with Simulator(options) as sim:
            other, ended = (one.pair for one in sim.market.instruments)
            await sim.faults.start(RefuseRest("klines", 400))
            async with _running(
                path, sim, {"pairs": [ended, other]}, {"days": 1, "weight_per_minute": 2_400}
            ) as following:
                await until(lambda: following.collector.report().mark_price_age_s is not None)
                sim.change(SetStatus(ended, "SETTLING"))
                await until(lambda: following.pairs == 1)
                await until(lambda: not following.collector.report().missing_of_ended)
                holes = following.collector._writer.coverage[ended, "1m"].holes
                # Its last minutes came as frames.
                absent_ms = sum(hole.end_ms - hole.start_ms for hole in holes)
                assert absent_ms > DAY_MS - 30 * MINUTE_MS
                assert all(hole.is_absent for hole in holes)
                assert following.collector.report().absent_candles >= absent_ms // MINUTE_MS

    uvloop.run(run())
