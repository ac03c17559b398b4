"""The simulated week: what happens in it, that it is whole, and that what would be wrong is seen.

Long: `python -m tests.pairs.simulated_week`, which `make proofs` runs as well.
"""

import contextlib
import itertools
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, floor_to
from marketfeed.simulator.fault_kinds import Fault
from marketfeed.simulator.listings import Delist, EndByStatus, Enlist, ListingChange, minute_from
from reader import MarketReader
from tests.pairs import week_compare as compare
from tests.pairs.simulated_week import FIRST, NEW, START_MS, Options, Week, run_week
from tests.pairs.week_compare import Compared
from tests.pairs.week_events import FINAL_AFTER_MS, KINDS, Contract, Events


class Clocked:
    """An exchange that does nothing but tell when."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.ends: Counter[str] = Counter()
        self.faults = 0

    def change(self, change: ListingChange) -> int:
        if isinstance(change, Delist | EndByStatus):
            self.ends[change.pair] += 1
        if isinstance(change, Delist | Enlist | EndByStatus):
            return minute_from(self.now_ms, change.in_s)
        return self.now_ms

    def start(self, fault: Fault) -> None:
        self.faults += 1


def play(seed: int, days: int) -> tuple[Events, Clocked]:
    exchange = Clocked()
    first = [Contract(pair, START_MS - 400 * DAY_MS, first=True) for pair in FIRST]
    events = Events(seed, exchange, first, NEW)
    while exchange.now_ms < START_MS + days * DAY_MS:
        exchange.now_ms += 2 * MINUTE_MS
        events.go_on(exchange.now_ms, may_begin=exchange.now_ms % DAY_MS < 22 * HOUR_MS)
        for one in events.contracts:
            if one.ended_ms is not None and one.ended_ms + FINAL_AFTER_MS <= exchange.now_ms:
                one.final = True
    return events, exchange


@pytest.mark.parametrize("seed", range(6))
def test_each_kind_comes_several_times_in_a_week(seed: int) -> None:
    events, exchange = play(seed, 7)
    assert exchange.faults
    rare = {kind: events.happened[kind] for kind in KINDS if events.happened[kind] < 4}
    assert rare == {}
    assert sum(events.happened.values()) > 150


@pytest.mark.parametrize("seed", range(6))
def test_contracts_of_a_name_follow_each_other(seed: int) -> None:
    events, exchange = play(seed, 7)
    by_pair: dict[str, list[Contract]] = {}
    for one in events.contracts:
        by_pair.setdefault(one.pair, []).append(one)
        for halt in one.halts:
            assert halt.until_ms is None or halt.until_ms > halt.from_ms
        live_halts = [halt for halt in one.halts if halt.until_ms is None]
        assert len(live_halts) <= 1
    assert max(map(len, by_pair.values())) > 2
    for mine in by_pair.values():
        for before, after in itertools.pairwise(mine):
            assert before.ended_ms is not None
            assert before.ended_ms + FINAL_AFTER_MS <= after.listed_ms
            assert floor_to(before.listed_ms, DAY_MS) < floor_to(after.listed_ms, DAY_MS)
    live = sum(one.is_live(exchange.now_ms) for one in events.newest().values())
    assert 3 <= live <= 15


@pytest.mark.long(80)
def test_hours_of_it_through_the_real_collector_and_what_would_be_wrong_is_seen(
    tmp_path: Path,
) -> None:
    options = Options(240.0, 0.2, 3, tmp_path, influx=False, every_ms=5 * MINUTE_MS)
    seen: dict[str, list[str]] = {}

    def look(week: Week) -> None:
        journal, now_ms = tmp_path / "journal.db", week.now_ms()
        end_ms = START_MS + int(options.days * DAY_MS)
        one = week.events.contracts[0]

        def wrong(name: str) -> list[str]:
            told = Compared()
            contracts = week.events.contracts
            if name == "candles":
                found = compare.wrong_candles(journal, week.truth, contracts, now_ms, end_ms, told)
                return list(found)
            if name == "coverage":
                return list(compare.wrong_coverage(journal, contracts, now_ms, told))
            with MarketReader.connect(f"sqlite:///{journal}", now_ms=lambda: now_ms) as reader:
                if name == "lives":
                    return list(compare.wrong_lives(reader, contracts, now_ms, told))
                if name == "frames":
                    return list(compare.wrong_frames(reader, week.truth, contracts, now_ms, end_ms))
                return list(
                    compare.wrong_settled(reader, week.truth, contracts, now_ms, end_ms, told)
                )

        names = ("candles", "coverage", "lives", "frames", "settled")
        assert {name: wrong(name) for name in names} == {name: [] for name in names}
        with contextlib.closing(sqlite3.connect(journal)) as db, db:
            (pair_id,) = db.execute("SELECT id FROM pair WHERE pair = ?", (one.pair,)).fetchone()
            db.execute(
                "DELETE FROM candle WHERE pair_id = ? AND timeframe_ms = ? AND open_time = ?",
                (pair_id, MINUTE_MS, START_MS + HOUR_MS),
            )
            db.execute("UPDATE life SET ended = listed + 1 WHERE pair_id = ?", (pair_id,))
            db.execute("DELETE FROM funding_settled WHERE pair_id = ?", (pair_id,))
        seen.update({name: wrong(name) for name in names})

    told: list[str] = []
    outcome = run_week(options, told.append, look)
    assert outcome.complaints() == []
    assert len(told) == 1
    assert sum(outcome.happened.values()) >= 5
    assert outcome.days[0].candles > 2_000
    assert outcome.days[0].downloads > 10
    (lost,) = seen["candles"]
    assert "missing (a hole without a reason)" in lost
    assert seen["coverage"]
    assert any("has another end than" in text for text in seen["lives"])
    assert seen["settled"]
