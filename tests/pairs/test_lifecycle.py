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

from marketfeed.collector.collector import Collector
from marketfeed.journal.journal import Journal
from marketfeed.records import CatalogEntry, Life, differing_fields
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES_MS, floor_to
from marketfeed.settings.model import Settings
from marketfeed.simulator.fault_kinds import RefuseRest, ShiftClock, ShrinkExchangeInfo
from marketfeed.simulator.listings import Delist, Enlist, Rename, SetOnboard, SetStatus
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
    collector = Collector(settings)
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
        chosen = {"pairs": 6, "timeframes": ("1m", "3m"), "speed": 240.0, **options}
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
        end_ms = following.sim.change(Delist(pair, in_s=300.0))
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


def test_a_status_ends_a_pair_after_two_answers_and_it_may_come_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(following: Following) -> None:
        stops = dict(
            zip(
                [one.pair for one in following.sim.market.instruments[1:4]],
                ("SETTLING", "DELIVERED", "CLOSE"),
                strict=True,
            )
        )
        stopped_ms = {
            pair: following.sim.change(SetStatus(pair, status)) for pair, status in stops.items()
        }
        await until(lambda: following.pairs == 3)
        for pair, at_ms in stopped_ms.items():
            await until(lambda: following.catalog()[pair].ended_ms is not None)  # noqa: B023
            ended_ms = following.catalog()[pair].ended_ms
            assert ended_ms is not None
            assert at_ms <= ended_ms <= following.sim.now_ms() - MINUTE_MS
        await until(lambda: following.delivering)
        lives = following.lives()
        assert [len(lives[pair]) for pair in stops] == [1, 1, 1]
        for pair, status in stops.items():
            assert lives[pair][0].ended_ms == following.catalog()[pair].ended_ms
            assert status in lives[pair][0].evidence
            following.sim.change(SetStatus(pair, "TRADING"))
        await until(lambda: following.pairs == 6)
        await until(lambda: all(following.catalog()[pair].ended_ms is None for pair in stops))
        # An end that is withdrawn goes on with the same life.
        lives = following.lives()
        assert [[life.ended_ms for life in lives[pair]] for pair in stops] == [[None]] * 3
        with following.reader() as reader:
            assert stops.keys() <= reader.get_all_pairs_funding_rates(max_age_s=None).keys()
        await until(lambda: following.collector.report().mark_price_age_s is not None)

    run_following(path, check)
    assert caplog.text.count("pair is back") == 3


def test_a_pair_that_halts_stays_and_goes_on_by_itself(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the word, and with no row at all: its streams are kept, and what it says is stored at once."""

    async def check(following: Following) -> None:
        before = following.undisturbed()
        stops = dict(
            zip(
                [one.pair for one in following.sim.market.instruments[1:4]],
                ("TRADING_HALT", "NEVER_SEEN_BEFORE", None),
                strict=True,
            )
        )
        for pair, status in stops.items():
            following.sim.change(SetStatus(pair, status))
        halted = {pair: status for pair, status in stops.items() if status is not None}
        await until(lambda: following.collector.report().halted == halted)
        asked = following.sim.rest.requests["exchangeInfo"]
        await until(lambda: following.sim.rest.requests["exchangeInfo"] >= asked + 3)
        report = following.collector.report()
        assert (report.pairs, report.streams, report.halted) == (6, 6 * 3, halted)
        assert {one.ended_ms for one in following.catalog().values()} == {None}
        resumed_ms = {pair: following.sim.change(SetStatus(pair, "TRADING")) for pair in stops}
        await until(lambda: not following.collector.report().halted)
        await until(lambda: following.delivering)
        since_ms = max(resumed_ms.values())
        await following.until_ms(since_ms + 3 * MINUTE_MS)
        await following.wait_stored()
        assert following.undisturbed() == before
        with following.reader() as reader:
            for pair in stops:
                newest = reader.get_ohlcv(pair, "1m", 1, max_age_s=None)["date"].iloc[-1]
                assert newest.timestamp() * 1000 >= since_ms
        assert len(following.lives()) == 6
        assert all(len(lives) == 1 for lives in following.lives().values())

    run_following(path, check)
    assert caplog.text.count("pair has halted") == 2
    assert caplog.text.count("pair trades again") == 2
    assert "pair ended" not in caplog.text
    assert "pair is back" not in caplog.text


def test_all_pairs_may_halt_at_once(path: Path) -> None:
    async def check(following: Following) -> None:
        pairs = [one.pair for one in following.sim.market.instruments]
        for pair in pairs:
            following.sim.change(SetStatus(pair, "BREAK"))
        await until(lambda: len(following.collector.report().halted) == 6)
        asked = following.sim.rest.requests["exchangeInfo"]
        await until(lambda: following.sim.rest.requests["exchangeInfo"] >= asked + 2)
        assert following.pairs == 6
        assert {one.ended_ms for one in following.catalog().values()} == {None}
        for pair in pairs:
            following.sim.change(SetStatus(pair, "TRADING"))
        await until(lambda: not following.collector.report().halted)
        await until(lambda: following.delivering)

    run_following(path, check)


def test_a_pair_that_has_halted_before_the_start_is_collected(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=3, timeframes=("1m",), speed=240.0)
        async with Simulator(options) as sim:
            names = [one.pair for one in sim.market.instruments]
            sim.change(SetStatus(names[0], "TRADING_HALT"))
            async with _running(path, sim, {"pairs": names}) as following:
                await until(
                    lambda: following.collector.report().halted == {names[0]: "TRADING_HALT"}
                )
                assert following.pairs == 3
                assert following.collector.report().refused_pairs == {}
                sim.change(SetStatus(names[0], "TRADING"))
                await until(lambda: following.delivering)
                since_ms = sim.now_ms()
            # One whose row is missing at a start is known to the catalog.
            sim.change(SetStatus(names[0], None))
            async with _running(path, sim, {"pairs": names}) as following:
                await until(lambda: following.pairs == 3)
                sim.change(SetStatus(names[0], "TRADING"))
                await until(lambda: following.delivering)
                await following.until_ms(max(since_ms, sim.now_ms()) + 2 * MINUTE_MS)
                await following.wait_stored()
                with following.reader() as reader:
                    frame = reader.get_ohlcv(names[0], "1m", 1, max_age_s=None)
                    assert frame["date"].iloc[-1].timestamp() * 1000 > since_ms

    uvloop.run(run())


def test_a_symbol_that_comes_back_as_another_coin_is_another_life(path: Path) -> None:
    bounds: list[int] = []

    async def check(following: Following) -> None:
        # It costs some 3,400.
        pair = following.sim.market.instruments[1].pair
        end_ms = following.sim.change(Delist(pair, in_s=180.0))
        await until(lambda: following.pairs == 5)
        at_ms = following.sim.change(Enlist(pair, in_s=120.0, price=3.0))
        assert at_ms > end_ms
        bounds.extend((end_ms, at_ms))
        await until(lambda: following.pairs == 6)
        await following.until_ms(at_ms + 10 * MINUTE_MS)
        await until(lambda: following.delivering)
        await following.wait_stored()
        first, second = following.lives()[pair]
        assert (first.ended_ms, second.listed_ms, second.ended_ms) == (end_ms, at_ms, None)
        entry = following.catalog()[pair]
        assert (entry.listed_ms, entry.ended_ms) == (at_ms, None)
        for timeframe in ("1m", "3m"):
            length_ms = TIMEFRAMES_MS[timeframe]
            covered = following.collector._writer.coverage[pair, timeframe]
            assert covered.from_ms == floor_to(at_ms, length_ms)
            assert covered.holes == ()
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                candles = db.execute(
                    """SELECT open_time, close FROM candle JOIN pair ON pair.id = pair_id
                       WHERE pair = ? AND timeframe_ms = ?""",
                    (pair, length_ms),
                ).fetchall()
            older = [close for open_ms, close in candles if open_ms < end_ms]
            newer = [close for open_ms, close in candles if open_ms >= floor_to(at_ms, length_ms)]
            # Nothing lies between them, and each has its own prices.
            assert len(older) + len(newer) == len(candles)
            assert older
            assert len(newer) >= 3
            assert all(1.0 < close < 9.0 for close in newer)
            assert all(close > 1_000.0 for close in older)

    run_following(path, check)


def test_a_later_date_of_listing_that_is_wrong_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The exchange is asked for the day before it, and it traded then."""

    async def check(following: Following) -> None:
        sim = following.sim
        pair = sim.market.instruments[2].pair
        before, lives = following.catalog()[pair], following.lives()
        covered = following.collector._writer.coverage[pair, "1m"]
        sim.change(SetOnboard(pair, days_ago=2.0))
        await until(lambda: "traded_before=True" in caplog.text)
        listings = sim.rest.requests["exchangeInfo"]
        await until(lambda: sim.rest.requests["exchangeInfo"] >= listings + 3)
        assert caplog.text.count("traded_before=") == 1
        assert following.lives() == lives
        assert following.catalog()[pair].listed_ms == before.listed_ms
        assert following.collector._writer.coverage[pair, "1m"].from_ms == covered.from_ms
        assert following.pairs == 6

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
                await until(lambda: following.filled == 3, timeout_s=30.0)
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
            await until(lambda: following.collector.report().state == "well", timeout_s=20.0)

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


def test_an_answer_with_far_fewer_contracts_changes_nothing(path: Path) -> None:
    """Nor is it refused: a row that is missing is no end."""

    async def check(following: Following) -> None:
        before, streams = following.catalog(), following.collector.report().streams
        await following.sim.faults.start(ShrinkExchangeInfo(share=0.3))
        asked = following.sim.rest.requests["exchangeInfo"]
        await until(lambda: following.sim.rest.requests["exchangeInfo"] >= asked + 4)
        report = following.collector.report()
        assert (report.pairs, report.streams, report.halted) == (6, streams, {})
        assert following.catalog() == before
        assert not any("exchangeInfo" in reason for reason in report.reasons)

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
