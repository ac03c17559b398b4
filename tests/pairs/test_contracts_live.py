"""Contracts halt, end, come back and become others' while the collector runs, and exchangeInfo lacks rows."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import uvloop
from test_lifecycle import Following, _running, run_following

from marketfeed.binance.rollover import Ages
from marketfeed.pairs import listing
from marketfeed.schema import MINUTE_MS, TIMEFRAMES_MS, floor_to
from marketfeed.simulator.fault_kinds import ShrinkExchangeInfo
from marketfeed.simulator.listings import Delist, Enlist, SetOnboard, SetStatus
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


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


def test_halts_between_two_runs_are_told_by_a_second_answer_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are silent then, and nobody asks for that: the start itself has to ask once more."""
    # Nothing but a reason to ask has it asked.
    monkeypatch.setattr(listing, "LISTING_EVERY_S", 1e9)

    async def run() -> None:
        options = SimulatorOptions(pairs=4, timeframes=("1m",), speed=240.0)
        async with Simulator(options) as sim:
            names = [one.pair for one in sim.market.instruments]
            async with _running(path, sim, {"pairs": names}) as following:
                await until(lambda: following.delivering)
            for pair in names[:2]:
                sim.change(SetStatus(pair, "TRADING_HALT"))
            async with _running(path, sim, {"pairs": names}) as following:
                await until(
                    lambda: (
                        following.collector.report().halted
                        == dict.fromkeys(names[:2], "TRADING_HALT")
                    )
                )
                await until(lambda: following.collector.report().reasons == [])
                assert following.pairs == 4
                assert {one.ended_ms for one in following.catalog().values()} == {None}

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


def test_connections_roll_over_while_rows_are_missing_and_a_pair_has_halted(path: Path) -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=10, timeframes=("1m",), speed=60.0)
        ages = Ages(roll_from_s=120.0, roll_before_s=240.0, hard_s=1e9)
        async with (
            Simulator(options) as sim,
            _running(path, sim, {"pairs": "all"}, ages=ages) as following,
        ):
            await until(lambda: following.delivering)
            halted = sim.market.instruments[1].pair
            sim.change(SetStatus(halted, "TRADING_HALT"))
            await sim.faults.start(ShrinkExchangeInfo(share=0.7))
            asked = sim.rest.requests["exchangeInfo"]
            await until(lambda: sim.rest.requests["exchangeInfo"] >= asked + 2)

            def rolled() -> int:
                rollovers = following.collector.report().rollovers
                assert not rollovers.get("unproven")
                return rollovers.get("proven", 0)

            before, streams = following.undisturbed(), following.collector.report().streams
            begun = rolled() + following.collector.report().rollovers.get("given_up", 0)
            # One that has halted proves nothing: it does not hold the others up for ever.
            await until(
                lambda: rolled() + following.collector.report().rollovers.get("given_up", 0) > begun
            )
            sim.change(SetStatus(halted, "TRADING"))
            proven = rolled()
            await until(lambda: rolled() > proven)
            assert following.undisturbed().isdisjoint(before)
            assert following.collector.report().streams == streams == 10 * 2
            await sim.faults.end()
            await until(lambda: following.delivering)

    uvloop.run(run())
