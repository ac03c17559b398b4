"""Coverage over real journal files: after any history of calls, hands and failures it is what the rows say.

COVERAGE_HISTORIES says how many (200).
"""

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import pytest

from marketfeed import schema
from marketfeed.errors import JournalWriteError
from marketfeed.grid import TimeRange
from marketfeed.journal import coverage
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import Covered, Key, Promise
from marketfeed.journal.covering import read_coverage
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.reads import JournalReads
from marketfeed.records import Candle
from marketfeed.schema import MINUTE_MS
from marketfeed.storage.database import convert
from marketfeed.storage.files import connect_read_only
from tests.coverage_check import check_coverage, check_series, open_rows, opens_of
from tests.sweeps import delete

HISTORIES: Final = int(os.environ.get("COVERAGE_HISTORIES", "200"))
T0: Final = schema.floor_to(1_790_000_160_000, schema.HOUR_MS)
PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT")
SERIES: Final = tuple((pair, timeframe) for pair in PAIRS for timeframe in ("1m", "3m"))


def candle(key: Key, open_ms: int, trades: int = 1) -> Candle:
    end_ms = open_ms + schema.TIMEFRAMES_MS[key[1]]
    return Candle(*key, open_ms, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, trades, True, end_ms)


class History:
    """One journal file, and what happens to it; `now` is in minutes.

    `on_event` is called with the name of each event before it.
    """

    def __init__(
        self, path: Path, seed: int, now: int = 100, on_event: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.now = now
        self.done: list[str] = []
        self.on_event = on_event or self.done.append
        self.journal = self.opened()
        self.healed = healed_rows(self.journal.db)

    def opened(self) -> Journal:
        journal = Journal.open(self.path)
        # What is tested is what stands in the file, not that the disk has it.
        journal.db.execute("PRAGMA synchronous = OFF")
        return journal

    def run(self, steps: int, without: Collection[str] = ()) -> None:
        """Let so many random events happen, none of those `without`, and look after each."""
        events: list[tuple[int, Callable[[], None]]] = [
            (3, self.promise),
            (8, self.write),
            (3, self.pass_time),
            (2, self.delete),
            (1, self.repair),
            (1, self.release),
            (4, self.look_through),
            (2, self.reopen),
            (2, self.meddle),
            (2, self.fail),
            (1, self.save_other),
            (0.4, self.convert),
        ]
        events = [one for one in events if one[1].__name__ not in without]
        try:
            if self.rng.random() < 0.3:
                self.convert()
            self.promise()
            for _ in range(steps):
                (event,) = self.rng.choices(
                    [one for _, one in events], [weight for weight, _ in events]
                )
                self.on_event(event.__name__)
                event()
                self.check()
            self.settle()
        finally:
            self.journal.close()

    # --- what has to hold -----------------------------------------------------------------------------

    def check(self) -> None:
        series = dict(self.journal.coverage)
        with contextlib.closing(connect_read_only(self.path)) as db:
            self.check_healed(db)
            if self.journal.version >= schema.COVERAGE_FROM:
                read, released = read_coverage(JournalReads(db))
                assert read == series
                assert check_series(db, series, released).mistakes == []
                return
            told = open_rows(db)
            for key, known in series.items():
                wrong = coverage.mistakes(known, opens_of(db, key), length_of(key))
                assert wrong == [], key
                # What is missing of a first filling, or was answered without twice, is in memory alone.
                holes = {h[:3] for h in known.holes if not h.is_first and not h.is_absent}
                assert told.get(key, set()) == holes, key

    def check_healed(self, db: sqlite3.Connection) -> None:
        """A gap that has become healed is stored, all of it."""
        healed = healed_rows(db)
        for pair, timeframe, where in healed - self.healed:
            left = JournalReads(db).holes(pair, timeframe, where)
            assert left == [], f"{pair} {timeframe} {where}, version {self.journal.version}"
        self.healed = healed

    def settle(self) -> None:
        """In the end all of it is looked through, and every candle due is stored or in a hole."""
        keys = list(self.journal.coverage)
        while any(not known.is_looked_through for known in self.journal.coverage.values()):
            self.journal.look_through(keys, 50)
            self.check()
        batch = Batch()
        for key in keys:
            batch.expect(key, Due(self.due(key), ()))
        self.journal.write(batch)
        self.check()
        for key, known in self.journal.coverage.items():
            assert known.end_ms >= self.due(key)

    # --- events ---------------------------------------------------------------------------------------

    def due(self, key: Key) -> int:
        return schema.floor_to(T0 + self.now * MINUTE_MS, length_of(key))

    def some(self) -> list[Key]:
        return self.rng.sample(SERIES, self.rng.randint(1, len(SERIES)))

    def promise(self) -> None:
        rng = self.rng
        made = [
            Promise(
                *key,
                T0 + self.now * MINUTE_MS + rng.randrange(MINUTE_MS),
                rng.choice((0, 5, 20, 20, 60, 200)) * MINUTE_MS,
                T0 + rng.randint(0, self.now) * MINUTE_MS + 7 if rng.random() < 0.2 else 0,
            )
            for key in self.some()
        ]
        only = rng.random() < 0.3
        self.journal.promise(made, only=only)
        if only:
            assert open_rows(self.journal.db).keys() <= self.journal.coverage.keys()

    def batch(self) -> Batch:
        rng = self.rng
        batch = Batch()
        for key in self.some():
            length_ms, due_ms = length_of(key), self.due(key)
            way = rng.random()
            if way < 0.4:
                back = [1]
            elif way < 0.8:
                back = rng.sample(range(1, 40), rng.randint(1, 12))
            else:
                first = rng.randint(1, 150)
                back = list(range(first, first + rng.randint(1, 60)))
            batch.candles += [candle(key, due_ms - n * length_ms, rng.randint(1, 3)) for n in back]
            if rng.random() < 0.3:
                batch.candles.append(batch.candles[-1])
            if rng.random() < 0.3:
                start_ms = due_ms - rng.randint(1, 60) * length_ms
                where = TimeRange(start_ms, start_ms + rng.randint(1, 60) * length_ms)
                batch.absent.append((key, where, T0 + self.now * MINUTE_MS))
            if rng.random() < 0.5:
                (missing_ms,) = rng.sample([c.open_time_ms for c in batch.candles], 1)
                missing = TimeRange(missing_ms, missing_ms + length_ms)
                batch.expect(key, Due(due_ms, (missing,)))
        rng.shuffle(batch.candles)
        return batch

    def write(self) -> None:
        self.journal.write(self.batch())

    def repair(self) -> None:
        self.journal.repair(self.batch().candles)

    def pass_time(self) -> None:
        """Or the clock was ahead, and is set back."""
        self.now += self.rng.choice((1, 1, 1, 2, 3, 15, -4))

    def delete(self) -> None:
        rng = self.rng
        ids = [number for (number,) in self.journal.db.execute("SELECT id FROM pair")]
        if not ids:
            return
        before_ms = T0 + (self.now - rng.randint(0, 120)) * MINUTE_MS + rng.choice((0, 0, 1, -1))
        below = None if rng.random() < 0.6 else rng.randint(1, self.journal.next_seq)
        delete(self.journal, "candle", rng.choice(ids), before_ms, below)

    def release(self) -> None:
        self.journal.release(self.some())

    def look_through(self) -> None:
        self.journal.look_through(self.some(), self.rng.choice((3, 20, 499)))

    def save_other(self) -> None:
        """What changes no candle is counted as a commit, too."""
        self.journal.save_document("a", b"x", self.now)

    def reopen(self) -> None:
        self.journal.close()
        self.journal = self.opened()

    def meddle(self) -> None:
        """A hand deletes rows; or another version, which does not know of coverage, writes some."""
        self.journal.close()
        rng = self.rng
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            if rng.random() < 0.5:
                step = rng.randint(1, 5)
                db.execute(
                    "DELETE FROM candle WHERE open_time > ? AND open_time / 60000 % ? = 0",
                    (T0 + (self.now - rng.randint(1, 100)) * MINUTE_MS, step),
                )
            else:
                for key in self.some():
                    for n in rng.sample(range(1, 40), rng.randint(1, 9)):
                        db.execute(
                            """INSERT OR IGNORE INTO candle (
                                   pair_id, timeframe_ms, open_time, open, high, low, close,
                                   volume, quote_volume, taker_buy_volume, trades, seq
                               ) SELECT id, ?, ?, 1, 1, 1, 1, 1, 1, 1, 1, 1 FROM pair WHERE pair = ?""",
                            (length_of(key), self.due(key) - n * length_of(key), key[0]),
                        )
                with contextlib.suppress(sqlite3.OperationalError):
                    db.execute("UPDATE sequence SET commits = commits + 1")
        self.journal = self.opened()

    def fail(self) -> None:
        """A transaction that fails at one of its statements, or at the end of its room, changes nothing."""
        before = dict(self.journal.coverage)
        rng, db = self.rng, self.journal.db
        if rng.random() < 0.3:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        else:
            on = rng.choice(("INSERT ON candle", "INSERT ON gap", "UPDATE ON sequence"))
            db.execute(
                f"""CREATE TEMP TRIGGER refused AFTER {on} WHEN random() % 3 = 0
                    BEGIN SELECT RAISE(ABORT, 'refused'); END"""
            )
        try:
            event = rng.choice((self.write, self.delete, self.promise, self.release, self.repair))
            self.on_event(f"fail {event.__name__}")
            event()
        except JournalWriteError:
            assert dict(self.journal.coverage) == before
        finally:
            db.execute("PRAGMA max_page_count = 1000000")
            db.execute("DROP TRIGGER IF EXISTS refused")

    def convert(self) -> None:
        self.journal.close()
        convert(KIND, self.path, 5 - self.journal.version)
        self.journal = self.opened()


def length_of(key: Key) -> int:
    return schema.TIMEFRAMES_MS[key[1]]


def healed_rows(db: sqlite3.Connection) -> set[tuple[str, str, TimeRange]]:
    """The gaps that are told to be stored by now: pair, timeframe and where."""
    return {
        (pair, kind.split("_")[1], TimeRange(start_ms, end_ms))
        for pair, kind, start_ms, end_ms in db.execute(
            """SELECT pair, kind, start, "end" FROM gap JOIN pair ON pair.id = pair_id
               WHERE state = 'healed' AND reason = ?""",
            (coverage.STORED,),
        )
    }


@pytest.mark.parametrize("part", range(10))
def test_any_history_over_a_file(tmp_path: Path, part: int) -> None:
    for seed in range(part, HISTORIES, 10):
        history = History(tmp_path / str(seed) / "journal.db", seed)
        try:
            history.run(history.rng.randint(3, 40))
        except BaseException as error:
            error.add_note(f"seed {seed}: {history.done}")
            raise
        assert check_coverage(history.path).mistakes == []


def test_what_somebody_else_has_changed_is_known_for_good(tmp_path: Path) -> None:
    """Though the next commits, whatever they are of, count as ours again."""
    path = tmp_path / "journal.db"
    key = SERIES[0]
    with Journal.open(path) as journal:
        journal.promise([Promise(*key, T0 + 20 * MINUTE_MS, 20 * MINUTE_MS)])
        journal.write(Batch(candles=[candle(key, T0 + n * MINUTE_MS) for n in range(20)]))
        assert is_whole(journal.coverage[key])
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM candle WHERE open_time = ?", (T0 + 5 * MINUTE_MS,))
    for change in (
        lambda journal: journal.save_document("a", b"x", T0),
        lambda journal: journal.note_shipped("a", [("ohlcv", 1, 2)]),
        lambda journal: journal.write(Batch(candles=[candle(key, T0 + 20 * MINUTE_MS)])),
    ):
        with Journal.open(path) as journal:
            assert not is_whole(journal.coverage[key])
            change(journal)
    with Journal.open(path) as journal:
        assert not is_whole(journal.coverage[key])
        journal.look_through([key], 499)
        assert [tuple(hole[:2]) for hole in journal.coverage[key].holes] == [
            (T0 + 5 * MINUTE_MS, T0 + 6 * MINUTE_MS)
        ]
    assert check_coverage(path).mistakes == []


def test_what_a_hand_deletes_beside_a_collector_is_known_at_the_next_start(tmp_path: Path) -> None:
    """Though the collector commits after it, and deletes what is its own to delete."""
    path = tmp_path / "journal.db"
    key = SERIES[0]
    with Journal.open(path) as journal:
        journal.promise([Promise(*key, T0 + 20 * MINUTE_MS, 20 * MINUTE_MS)])
        journal.write(Batch(candles=[candle(key, T0 + n * MINUTE_MS) for n in range(20)]))
        (pair_id,) = journal.db.execute("SELECT id FROM pair").fetchone()
        assert delete(journal, "candle", pair_id, T0 + 3 * MINUTE_MS) == 3
    with Journal.open(path) as journal:
        # Its own is no reason to look through anything.
        assert is_whole(journal.coverage[key])
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM candle WHERE open_time = ?", (T0 + 5 * MINUTE_MS,))
        journal.write(Batch(candles=[candle(key, T0 + 20 * MINUTE_MS)]))
        assert delete(journal, "candle", pair_id, T0 + 4 * MINUTE_MS) == 1
        journal.save_document("a", b"x", T0)
    with Journal.open(path) as journal:
        assert not is_whole(journal.coverage[key])
        journal.look_through([key], 499)
        assert [tuple(hole[:2]) for hole in journal.coverage[key].holes] == [
            (T0 + 5 * MINUTE_MS, T0 + 6 * MINUTE_MS)
        ]
    with Journal.open(path) as journal:
        assert journal.coverage[key].is_looked_through
    assert check_coverage(path).mistakes == []


def is_whole(known: Covered) -> bool:
    return known.is_looked_through and not known.holes


def test_who_goes_through_it_meanwhile_is_not_disturbed(tmp_path: Path) -> None:
    """The event loop reads it while the journal's thread promises and releases."""
    with Journal.open(tmp_path / "journal.db") as journal:
        made = [Promise(*key, T0, 20 * MINUTE_MS) for key in SERIES]
        journal.promise(made[:2])
        going = iter(journal.coverage.items())
        next(going)
        journal.promise(made)
        journal.release(SERIES[:1])
        assert [key for key, _ in going] == [SERIES[1]]
        assert set(journal.coverage) == set(SERIES[1:])


@pytest.mark.parametrize("version", [2, 3])
def test_without_history_an_outage_is_missing_all_the_same(tmp_path: Path, version: int) -> None:
    """In a journal of before version 3 at each start, in one of version 3 at the first."""
    path = tmp_path / "journal.db"
    kept, dropped = SERIES[0], SERIES[2]
    Journal.open(path).close()
    convert(KIND, path, 2)
    with Journal.open(path) as journal:
        batch = Batch(candles=[candle(kept, T0 + n * MINUTE_MS) for n in range(30) if n != 7])
        batch.candles += [candle(dropped, T0 + n * MINUTE_MS) for n in range(9)]
        journal.write(batch)
    convert(KIND, path, version)
    now_ms = T0 + 1_000 * MINUTE_MS + 1
    with Journal.open(path) as journal:
        # What comes before it is promised does not make it look dropped.
        journal.write(Batch(candles=[candle(SERIES[1], T0 + 999 * MINUTE_MS)]))
        journal.promise([Promise(*key, now_ms, 0) for key in (kept, dropped, SERIES[1])])
        journal.look_through([kept], 499)
        known = journal.coverage[kept]
        assert (known.from_ms, known.end_ms) == (T0, T0 + 1_000 * MINUTE_MS)
        assert [hole.time_range for hole in known.holes] == [
            (T0 + 7 * MINUTE_MS, T0 + 8 * MINUTE_MS),
            (T0 + 30 * MINUTE_MS, T0 + 1_000 * MINUTE_MS),
        ]
        # Nobody collected these, and nobody asks for what was before.
        assert journal.coverage[dropped].from_ms == T0 + 1_000 * MINUTE_MS
        assert journal.coverage[SERIES[1]].from_ms == T0 + 999 * MINUTE_MS
