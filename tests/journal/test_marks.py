"""The hourly candles of mark prices in a journal: rows, what is promised of them, and what is not theirs."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.retention import expired
from marketfeed.journal.view import JournalView
from marketfeed.records import Candle
from marketfeed.schema import DAY_MS, HOUR_MS, MARK_1H
from marketfeed.storage.database import convert
from tests.coverage_check import check_coverage
from tests.sweeps import delete, sweep_out

PAIR: Final = "BTC/USDT:USDT"
OTHER: Final = "ETH/USDT:USDT"
KEY: Final = (PAIR, MARK_1H)
T0: Final = 1_790_006_400_000 - 1_790_006_400_000 % HOUR_MS


def mark(hour: int, close: float = 1.5, pair: str = PAIR) -> Candle:
    at_ms = T0 + hour * HOUR_MS
    return Candle(pair, MARK_1H, at_ms, 1, 2, 0.5, close, 0, 0, 0, 0, True, at_ms + HOUR_MS, 0.0)


def candle(hour: int) -> Candle:
    at_ms = T0 + hour * HOUR_MS
    return Candle(PAIR, "1h", at_ms, 1, 2, 0.5, 1.5, 1, 1, 1, 1, True, at_ms + HOUR_MS, 0.5)


def promise(hours: int, now: int, series: str = MARK_1H) -> Promise:
    return Promise(PAIR, series, T0 + now * HOUR_MS, hours * HOUR_MS)


def hours(*ranges: tuple[int, int]) -> list[TimeRange]:
    return [TimeRange(T0 + start * HOUR_MS, T0 + end * HOUR_MS) for start, end in ranges]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_row_gives_way_to_any_other_and_a_repeat_is_no_news(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.write(Batch(candles=[mark(0), mark(1)])) == 2
        before = journal.next_seq
        assert journal.write(Batch(candles=[mark(0)])) == 0
        assert journal.write(Batch(candles=[mark(1, 0.75)])) == 1
        assert journal.candles(*KEY, T0, T0 + 9 * HOUR_MS) == [mark(0), mark(1, 0.75)]
        seqs = journal.db.execute("SELECT seq FROM mark_1h ORDER BY open_time").fetchall()
        assert seqs[0][0] < before <= seqs[1][0]


def test_it_is_no_candle_of_an_hour(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.promise([promise(4, 4), promise(4, 4, "1h")])
        journal.write(Batch(candles=[mark(0), candle(3)]))
        assert journal.newest_candles() == {(PAIR, "1h"): T0 + 3 * HOUR_MS}
        assert journal.newest_marks() == {KEY: T0}
        assert [hole.time_range for hole in journal.coverage[PAIR, "1h"].holes] == hours((0, 3))
        assert [hole.time_range for hole in journal.mark_coverage[KEY].holes] == hours((1, 4))
        assert journal.coverage.keys() == {(PAIR, "1h")}
        kinds = journal.db.execute("SELECT DISTINCT kind FROM gap ORDER BY kind").fetchall()
        assert kinds == [("history_1h",), ("history_mark_1h",)]
        journal.promise([promise(4, 6)])
        late = Batch()
        late.expect(KEY, Due(T0 + 6 * HOUR_MS, tuple(hours((4, 6)))))
        journal.write(late)
        assert journal.mark_coverage[KEY].holes[-1].kind(MARK_1H) == "mark_1h"
        # Those of candles are counted, and ended, without it.
        assert journal.gaps_by_state() == {}
        journal.promise([promise(4, 4, "1h")], only=True)
        assert journal.mark_coverage == {}
    assert check_coverage(path).mistakes == []


def test_what_is_known_is_read_again_and_beside_the_writer(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.promise([promise(6, 6)])
        journal.write(Batch(candles=[mark(hour) for hour in (0, 1, 4)]))
        known = journal.mark_coverage
        view = JournalView(path)
        assert view.coverage() == known
        assert view.holes(*KEY, *hours((0, 6))) == hours((2, 4), (5, 6))
        assert view.candles(*KEY, *hours((0, 2))) == [mark(0), mark(1)]
    with Journal.open(path) as journal:
        assert journal.mark_coverage == known


def test_what_a_hand_deletes_is_looked_through_again(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.promise([promise(6, 6)])
        journal.write(Batch(candles=[mark(hour) for hour in range(6)]))
        assert journal.mark_coverage[KEY].holes == ()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM mark_1h WHERE open_time = ?", (T0 + 2 * HOUR_MS,))
    with Journal.open(path) as journal:
        assert not journal.mark_coverage[KEY].is_looked_through
        journal.look_through([KEY], 100)
        (hole,) = journal.mark_coverage[KEY].holes
        assert [hole.time_range] == hours((2, 3))
    assert check_coverage(path).mistakes == []


def test_they_are_kept_as_long_as_candles(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.promise([promise(48, 48)])
        journal.write(Batch(candles=[mark(hour) for hour in range(48)]))
        sweeps = expired(journal, {"candle": DAY_MS, "mark_1h": DAY_MS})
        assert [one.table for one in sweeps] == ["mark_1h"]
        assert sweep_out(journal, sweeps) == 23
        assert journal.mark_coverage[KEY].from_ms == T0 + 23 * HOUR_MS
    with Journal.open(path) as journal:
        assert journal.mark_coverage[KEY].is_looked_through
    assert check_coverage(path).mistakes == []


def test_a_version_2_has_none_and_gets_them_with_the_upgrade(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.promise([promise(2, 2)])
        journal.write(Batch(candles=[mark(0), mark(1)]))
    convert(KIND, path, 2)
    with Journal.open(path) as journal:
        assert (journal.version, journal.has_marks) == (2, False)
        journal.promise([promise(2, 2)])
        journal.write(Batch(candles=[mark(1), candle(1)]))
        assert journal.mark_coverage == {}
        assert expired(journal, {"mark_1h": 1}) == []
    convert(KIND, path, 3)
    with Journal.open(path) as journal:
        assert journal.has_marks
        assert journal.newest_marks() == {}
        journal.promise([promise(2, 2)])
        assert [hole.time_range for hole in journal.mark_coverage[KEY].holes] == hours((0, 2))


_HOURS: Final = 30
_STEPS: Final = st.one_of(
    st.tuples(st.just("write"), st.lists(st.integers(0, _HOURS - 1), min_size=1, max_size=12)),
    st.tuples(st.just("repair"), st.lists(st.integers(0, _HOURS - 1), min_size=1, max_size=3)),
    st.tuples(st.just("promise"), st.tuples(st.integers(0, 20), st.integers(0, _HOURS))),
    st.tuples(st.just("due"), st.integers(1, _HOURS)),
    st.tuples(st.just("absent"), st.tuples(st.integers(0, _HOURS - 1), st.integers(1, 5))),
    st.tuples(st.just("delete"), st.integers(0, _HOURS)),
    st.tuples(st.just("hand"), st.integers(0, _HOURS - 1)),
    st.tuples(st.sampled_from(["release", "look", "reopen", "candle"]), st.integers(0, 9)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEPS, min_size=1, max_size=14))
def test_whatever_happens_each_hour_is_stored_or_in_one_hole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("marks") / "journal.db"
    journal = Journal.open(path)
    answered_ms = T0 + _HOURS * HOUR_MS
    try:
        for what, how in steps:
            match what, how:
                case "write", list(opens):
                    journal.write(Batch(candles=[mark(hour) for hour in sorted(set(opens))]))
                case "repair", list(opens):
                    journal.repair([mark(hour, 0.75) for hour in sorted(set(opens))])
                case "promise", (int(keep), int(now)):
                    journal.promise([promise(keep, now)])
                case "due", int(hour):
                    batch = Batch()
                    batch.expect(KEY, Due(T0 + hour * HOUR_MS, ()))
                    journal.write(batch)
                case "absent", (int(hour), int(count)):
                    batch, answered_ms = Batch(), answered_ms + HOUR_MS
                    batch.absent = [(KEY, hours((hour, hour + count))[0], answered_ms)]
                    journal.write(batch)
                case "delete", int(hour):
                    ids = journal.db.execute("SELECT id FROM pair").fetchall()
                    for (number,) in ids:
                        delete(journal, "mark_1h", number, T0 + hour * HOUR_MS)
                case "hand", int(hour):
                    journal.close()
                    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                        at_ms = T0 + hour * HOUR_MS
                        db.execute("DELETE FROM mark_1h WHERE open_time = ?", (at_ms,))
                    journal = Journal.open(path)
                case "release", _:
                    journal.release([KEY])
                case "look", _:
                    journal.look_through([KEY], 7)
                case "reopen", _:
                    journal.close()
                    journal = Journal.open(path)
                case "candle", int(hour):
                    journal.promise([promise(9, 9, "1h")])
                    journal.write(Batch(candles=[candle(hour)]))
            assert check_coverage(path).mistakes == []
            known = dict(journal.mark_coverage)
            assert JournalView(path).coverage() == {**journal.coverage, **known}
    finally:
        journal.close()
