"""Settled rates after each settlement, their history with the fewest requests, and where that goes on."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.binance.budget import Priority
from marketfeed.binance.rest import MAX_SETTLEMENTS, BinanceRest
from marketfeed.binance.symbols import parse_exchange_info
from marketfeed.collector.collector import Collector
from marketfeed.grid import TimeRange
from marketfeed.history.funding import SETTLED_AFTER_S
from marketfeed.history.funding_plan import plan
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import FundingRate, FundingSettled
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from reader import MarketReader
from tests.history.rates_exchange import T0, Line, Rates, instrument, run, settled
from tests.waiting import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


# --- which way needs the fewest requests -----------------------------------------------------------

MONTH = TimeRange(T0 - 30 * DAY_MS, T0)


def test_few_pairs_are_asked_one_by_one_and_many_together() -> None:
    listed = [f"S{n}USDT" for n in range(530)]
    few = plan({name: [MONTH] for name in listed[:10]}, {}, listed)
    assert (few.singly, few.requests) == (True, 10)
    most = plan({name: [MONTH] for name in listed[:164]}, {}, listed)
    assert not most.singly
    assert most.requests < 164
    # An hour that is missing of all is one request, of one pair as well.
    hour = [TimeRange(T0 - HOUR_MS, T0)]
    assert plan(dict.fromkeys(listed[:164], hour), {}, listed).requests == 1
    assert plan({listed[0]: hour}, {}, listed).requests == 1


@given(
    st.dictionaries(
        st.sampled_from([f"S{n}" for n in range(40)]),
        st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, 900)), min_size=1, max_size=4),
        max_size=40,
    ),
    st.sampled_from([1, 4, 8]),
)
def test_what_is_asked_together_holds_every_missing_time_once(
    holes: Mapping[str, list[tuple[int, int]]], hours: int
) -> None:
    wanted = {
        name: [TimeRange(T0 + a * MINUTE_MS, T0 + (a + b) * MINUTE_MS) for a, b in parts]
        for name, parts in holes.items()
    }
    names = [f"S{n}" for n in range(400)]
    found = plan(wanted, dict.fromkeys(names, hours), names)
    if found.singly:
        assert found.parts == []
        return
    asked = [at for part in found.parts for at in range(*part, MINUTE_MS)]
    assert len(asked) == len(set(asked))
    needed = {at for parts in wanted.values() for part in parts for at in range(*part, MINUTE_MS)}
    assert set(asked) == needed
    assert found.parts == sorted(found.parts, reverse=True)


# --- against a server that has many rates at one time ------------------------------------------------


async def complete(line: Line) -> None:
    await until(
        lambda: (
            line.settled_rates.report().rates > 0 and not line.settled_rates.report().history_pairs
        )
    )


async def complete_at_once(line: Line) -> None:
    # It knows what it wants as soon as it knows what there is.
    await until(lambda: line.settled_rates._generation > 0)
    assert line.settled_rates.report().history_pairs == 0


@pytest.mark.parametrize(
    ("collected", "listed", "most"),
    # 1,400 rates at one time are more than one answer holds.
    [(3, 530, 4), (300, 530, 40), (5, 1_400, 6)],
    ids=["few", "many", "crowded"],
)
def test_history_is_complete_and_a_restart_asks_for_nothing_again(
    path: Path, collected: int, listed: int, most: int
) -> None:
    rates = run(path, complete, collected=collected, listed=listed, days=3)
    assert len(rates.asked) <= most
    rows = settled(path)
    # From three days before now on: nine settlements of each.
    assert len(rows) == collected * 9
    times = sorted({time_ms for _, time_ms, _, _ in rows})
    assert times == [T0 - n * 8 * HOUR_MS for n in reversed(range(9))]
    assert {rate for _, _, rate, _ in rows} <= {n / 10_000 for n in range(1, 10)}
    assert {mark for _, _, _, mark in rows} == {None, 100.5}

    # It looks less far back: where the first look began depends on how late it came.
    again = run(path, complete_at_once, collected=collected, listed=listed, days=2)
    assert again.asked == []
    # New pairs are fetched; the others are not asked for again, or in passing.
    more = run(path, complete, collected=collected + 1, listed=listed, days=3)
    assert len(settled(path)) == (collected + 1) * 9
    assert 0 < len(more.asked) <= most


def test_what_is_listed_later_counts_when_history_is_asked(path: Path) -> None:
    trading = 4

    async def check(line: Line) -> None:
        nonlocal trading
        await complete(line)
        # Few are listed: it began with all of them at once.
        assert line.rates.asked[:2] == ["info", None]
        line.rates.asked.clear()
        trading = 1_400
        line.settled_rates.set_instruments([instrument(n) for n in range(5)])
        # Not that it is under way: that may be over between two looks.
        await until(lambda: "S4USDT" in line.rates.asked)
        await complete(line)
        # Now that would take a request for every few hours.
        assert line.rates.asked == ["info", "S4USDT"]

    run(path, check, collected=4, listed=1_400, days=3, trading=lambda: trading)
    assert len(settled(path)) == 5 * 9


def test_more_rates_at_one_time_than_an_answer_holds(path: Path) -> None:
    async def check(line: Line) -> None:
        fetched = await line.settled_rates._rates.fetch(
            None, TimeRange(T0 - HOUR_MS, T0 + MINUTE_MS), Priority.SETTLED
        )
        assert len(fetched.rates) == 5

    rates = run(path, check, collected=5, listed=MAX_SETTLEMENTS + 400, days=0)
    assert [symbol for symbol in rates.asked if symbol] == [f"S{n}USDT" for n in range(5)]
    assert len(settled(path)) == 5


def test_history_goes_on_after_a_failure_and_after_a_kill(path: Path) -> None:
    async def failing(line: Line) -> None:
        line.rates.failing = True
        await until(lambda: len(line.rates.asked) >= 3)
        assert "status 500" in line.settled_rates.report().trouble
        assert line.settled_rates.report().history_pairs == 4
        line.rates.failing = False
        await until(lambda: line.settled_rates.report().rates > 0)
        # Ended in the middle, perhaps.

    run(path, failing, collected=4, listed=530, days=20)
    if len(settled(path)) < 4 * 60:
        run(path, complete, collected=4, listed=530, days=20)
    assert len(settled(path)) == 4 * 60


def test_an_odd_rate_costs_itself_and_is_asked_for_again(path: Path) -> None:
    odd = instrument(1).symbol, T0 - 16 * HOUR_MS

    async def check(line: Line) -> None:
        line.rates.odd = lambda *row: row == odd
        await until(lambda: line.settled_rates.report().history_pairs == 1)
        assert len(settled(path)) == 300 * 6 - 1
        assert line.settled_rates.report().trouble == ""
        line.rates.odd = lambda *_: False
        await until(lambda: line.settled_rates.report().history_pairs == 0)

    run(path, check, collected=300, listed=530, days=2, speed=200.0)
    assert len(settled(path)) == 300 * 6
    # What was once odd is complete now, for a restart, too.
    assert run(path, complete_at_once, collected=300, listed=530, days=1).asked == []


def test_a_restart_asks_for_what_was_odd(path: Path) -> None:
    odd = instrument(1).symbol, T0 - 16 * HOUR_MS

    async def check(line: Line) -> None:
        line.rates.odd = lambda *row: row == odd
        await until(lambda: line.settled_rates.report().history_pairs == 1)

    run(path, check, collected=300, listed=530, days=2)
    run(path, complete, collected=300, listed=530, days=2)
    assert len(settled(path)) == 300 * 6


def test_a_symbol_without_any_good_row_keeps_no_other_waiting(path: Path) -> None:
    async def check(line: Line) -> None:
        line.rates.odd = lambda symbol, _: symbol == instrument(0).symbol
        await until(lambda: line.settled_rates.report().history_pairs == 1)
        assert len(settled(path)) == 2 * 60
        line.rates.odd = lambda *_: False
        await until(lambda: line.settled_rates.report().history_pairs == 0)

    run(path, check, collected=3, listed=530, days=20, speed=200.0)
    assert len(settled(path)) == 3 * 60


def test_a_symbol_that_the_exchange_does_not_know_keeps_no_other_waiting(path: Path) -> None:
    async def check(line: Line) -> None:
        line.rates.unknown = {instrument(0).symbol}
        await until(lambda: len(settled(path)) == 2 * 60)
        await until(lambda: line.settled_rates.report().trouble == "")

    # So few pairs and so many symbols that each is asked by itself.
    rates = run(path, check, collected=3, listed=530, days=20, speed=200.0)
    assert instrument(0).symbol in rates.asked
    assert len(settled(path)) == 2 * 60


def test_each_settlement_is_asked_for_when_it_has_passed_and_again_until_published(
    path: Path,
) -> None:
    ours = [instrument(n) for n in range(3)]

    async def check(line: Line) -> None:
        line.announce(T0, *ours)
        await until(lambda: line.settled_rates.report().awaited == 3)
        await until(lambda: len(line.rates.asked) >= 1)
        # Two of them are published at once, the third only later; meanwhile its next one is known.
        line.announce(T0 + 8 * HOUR_MS, *ours)
        await until(lambda: line.settled_rates.report().awaited == 1)
        asked = len(line.rates.asked)
        await until(lambda: len(line.rates.asked) >= asked + 2)
        line.rates.published_from_ms.clear()
        await until(lambda: line.settled_rates.report().awaited == 0)
        assert line.clock.now_ms() >= T0 + SETTLED_AFTER_S * 1000

    async def main(line: Line) -> None:
        line.rates.published_from_ms[ours[2].symbol] = T0 + 1
        await check(line)

    rates = run(path, main, collected=3, listed=530, days=0, now_ms=T0 - 1_000)
    assert set(rates.asked) == {None}
    assert [(pair, time_ms) for pair, time_ms, _, _ in settled(path)] == [
        (one.pair, T0) for one in ours
    ]


def test_a_rate_that_is_never_published_is_given_up(path: Path) -> None:
    async def check(line: Line) -> None:
        line.rates.published_from_ms[instrument(0).symbol] = T0 + 1
        line.announce(T0, instrument(0))
        await until(lambda: line.settled_rates.report().given_up == 1)
        assert line.settled_rates.report().awaited == 0

    run(path, check, collected=1, listed=1, days=0, now_ms=T0 + 1_000, speed=3_000.0)
    assert settled(path) == []


def test_a_rate_that_is_published_after_it_was_given_up_is_fetched(path: Path) -> None:
    """Until then its time does not count as complete, whatever is published of later ones."""
    late, other = instrument(0), instrument(1)

    async def given_up(line: Line) -> None:
        line.rates.published_from_ms[late.symbol] = T0 + 1
        line.announce(T0, late, other)
        await until(lambda: line.settled_rates.report().given_up == 1)
        line.announce(T0 + 8 * HOUR_MS, late, other)

    async def after_all(line: Line) -> None:
        await given_up(line)
        line.rates.published_from_ms.clear()
        await until(lambda: line.settled_rates.report().given_up == 0)

    async def later(line: Line) -> None:
        await given_up(line)
        end_ms = T0 + 8 * HOUR_MS
        await until(lambda: line.clock.now_ms() >= end_ms)
        line.announce(T0 + 16 * HOUR_MS, late, other)
        await until(lambda: (late.pair, end_ms) in {row[:2] for row in settled(path)})
        assert line.settled_rates.report().given_up == 1

    def run_at(now_ms: int, check: Callable[[Line], Awaitable[None]], days: int) -> Rates:
        return run(path, check, collected=2, listed=2, days=days, now_ms=now_ms, speed=6_000.0)

    run_at(T0 + 1_000, after_all, 0)
    assert (late.pair, T0) in {row[:2] for row in settled(path)}
    path.unlink()
    run_at(T0 + 1_000, later, 0)
    assert (late.pair, T0) not in {row[:2] for row in settled(path)}
    # Nor is it complete after a restart.
    run_at(T0 + 20 * HOUR_MS, complete, 1)
    assert (late.pair, T0) in {row[:2] for row in settled(path)}


def test_what_was_settled_just_before_the_start_and_is_not_published_yet_is_awaited(
    path: Path,
) -> None:
    ours = [instrument(n) for n in range(2)]
    # Their frames said so until the stop: no interval does.
    with Journal.open(path) as journal:
        batch = Batch()
        batch.extend(FundingRate(one.pair, T0 - MINUTE_MS, 0.1, T0) for one in ours)
        journal.write(batch)

    async def check(line: Line) -> None:
        line.rates.unpublished.add((ours[0].symbol, T0))
        await until(lambda: line.settled_rates.report().awaited == 1)
        await until(lambda: line.settled_rates.report().history_pairs == 0)
        line.rates.unpublished.clear()
        await until(lambda: line.settled_rates.report().awaited == 0)

    run(path, check, collected=2, listed=2, days=1, now_ms=T0 + 30 * MINUTE_MS)
    times = [T0 - 16 * HOUR_MS, T0 - 8 * HOUR_MS, T0]
    assert [row[:2] for row in settled(path)] == [(one.pair, at) for one in ours for at in times]


def test_a_pair_that_joins_late_is_asked_for_what_it_lacks_and_not_all_pairs_again(
    path: Path,
) -> None:
    """After 60 days: the first settlement of one that was just listed, and of one that comes back."""
    first_days, step_ms = 60, 8 * HOUR_MS
    ours = [instrument(n) for n in range(3)]
    now_ms = T0 + first_days * DAY_MS

    async def check(line: Line) -> None:
        settled_rates = line.settled_rates
        line.clock.set_server_time(T0 - 3_000, 0.0, 20.0)
        line.announce(T0, *ours[:2])
        await until(lambda: settled_rates.report().rates == 2)
        # The second one is halted for weeks; those that go on are complete until now.
        settled_rates.set_instruments(ours[:1])
        line.clock.set_server_time(now_ms - step_ms - 3_000, 0.0, 20.0)
        line.announce(now_ms - step_ms, ours[0])
        await until(lambda: (ours[0].pair, now_ms - step_ms) in times())
        await until(lambda: settled_rates.report().awaited == 0)
        line.rates.asked.clear()
        line.clock.set_server_time(now_ms - 30_000, 0.0, 20.0)
        settled_rates.set_instruments(ours)
        await until(lambda: bool(line.rates.asked) and not settled_rates.report().history_pairs)
        # What the two of them lack since the start, though no history is wanted.
        assert set(line.rates.asked) == {"info", "S1USDT", "S2USDT"}
        line.rates.asked.clear()
        line.announce(now_ms, *ours)
        await until(lambda: {(one.pair, now_ms) for one in ours} <= times())
        await until(lambda: settled_rates.report().awaited == 0)
        # And not 60 days of all 40 contracts, which are eight answers.
        assert set(line.rates.asked) == {None}
        assert len(line.rates.asked) <= 2

    def times() -> set[tuple[str, int]]:
        return {row[:2] for row in settled(path)}

    run(path, check, collected=2, listed=40, days=0, now_ms=T0 - 60_000)
    every = [T0 + n * step_ms for n in range(first_days * 3 + 1)]
    for one in ours:
        assert [time_ms for pair, time_ms, _, _ in settled(path) if pair == one.pair] == every


# --- the collector against the simulated exchange ------------------------------------------------------


def test_the_collector_has_settlements_and_their_history(path: Path) -> None:
    async def rates_of(sim: Simulator, since_ms: int, until_ms: int) -> dict[tuple[str, int], Any]:
        found: dict[tuple[str, int], Any] = {}
        async with aiohttp.ClientSession() as session:
            rest = BinanceRest(session, sim.rest_url)
            info = parse_exchange_info(await rest.exchange_info())
            for one in sim.market.instruments:
                symbol = info.instruments[one.pair].symbol
                answer = await rest.settlements(since_ms, until_ms, Priority.HISTORY, symbol=symbol)
                for row in answer.rates:
                    found[one.pair, row.time_ms] = row.rate
        return found

    async def main() -> tuple[dict[tuple[str, int], Any], int]:
        options = SimulatorOptions(
            pairs=8, timeframes=("1m",), speed=120.0, start_ms=T0 - 2 * MINUTE_MS
        )
        async with Simulator(options) as sim:
            settings = Settings.model_validate(
                {
                    "exchange": {
                        "ws_url": sim.ws_url,
                        "rest_url": sim.rest_url,
                        "pairs": [one.pair for one in sim.market.instruments],
                        "timeframes": ["1m"],
                    },
                    "history": {"days": 4},
                    "journal": {"path": str(path)},
                    "status": {"port": 0},
                }
            )
            collector = Collector(settings)
            stop = asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            try:
                await until(
                    lambda: (
                        sim.now_ms() > T0 + 60_000
                        and (report := collector.report().settled) is not None
                        and not report.history_pairs
                        and not report.awaited
                        and report.rates
                    )
                )
                # A running rate after it.
                after_ms = sim.now_ms() + 2 * MINUTE_MS
                await until(lambda: sim.now_ms() >= after_ms)
            finally:
                stop.set()
                await running
            return await rates_of(sim, after_ms - 3 * DAY_MS, after_ms), after_ms

    truth, now_ms = asyncio.run(main())
    rows = {(pair, time_ms): rate for pair, time_ms, rate, _ in settled(path)}
    assert len(truth) >= 8 * 9
    assert {key: rows.get(key) for key in truth} == truth
    newest = {pair: max(t for p, t in truth if p == pair) for pair, _ in truth}
    assert T0 in newest.values()
    with closing(sqlite3.connect(path)) as db:
        noted = dict(
            db.execute(
                """SELECT pair.pair, (SELECT settled_rate FROM funding_rate
                       WHERE pair_id = pair.id ORDER BY time DESC LIMIT 1) FROM pair"""
            ).fetchall()
        )
    with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as reader:
        for pair, time_ms in newest.items():
            assert noted[pair] == truth[pair, time_ms]
            assert reader.get_funding_rate(pair, max_age_s=None).settled_rate == noted[pair]


def test_running_rates_hold_what_was_settled_before_them(path: Path) -> None:
    pair = "BTC/USDT:USDT"

    def write(journal: Journal, *records: FundingRate | FundingSettled) -> None:
        batch = Batch()
        batch.extend(records)
        journal.write(batch)

    with Journal.open(path) as journal:
        write(journal, FundingRate(pair, T0 - MINUTE_MS, 0.1, T0))
        write(
            journal,
            FundingSettled(pair, T0, 0.2, None),
            FundingSettled(pair, T0, 0.9, None, "Special"),
        )
        write(journal, FundingSettled(pair, T0 - 8 * HOUR_MS, 0.3, None))
        write(journal, FundingRate(pair, T0 + MINUTE_MS, 0.4, T0 + 8 * HOUR_MS))
        # One that comes late does not hold what was known after it.
        write(journal, FundingRate(pair, T0 - 3 * MINUTE_MS, 0.5, T0))
    with Journal.open(path) as journal:
        # Known again after a restart.
        write(journal, FundingRate(pair, T0 + 2 * MINUTE_MS, 0.6, T0 + 8 * HOUR_MS))
        assert journal.newest_settled() == {pair: (T0, 0.2)}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(
            "SELECT time, settled_rate FROM funding_rate ORDER BY time"
        ).fetchall() == [
            (T0 - 3 * MINUTE_MS, None),
            (T0 - MINUTE_MS, None),
            (T0 + MINUTE_MS, 0.2),
            (T0 + 2 * MINUTE_MS, 0.2),
        ]
