"""What a journal tells of its series explains what a reader does not find."""

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from covered import cover
from stored import D1, H1, M3, OTHER, PAIR, START_MS, candle, entry, store, url, write

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from reader import GapError, MarketReader, UnknownPairError, UnknownTimeframeError
from reader.errors import ArgumentError
from reader.feeder import FUTURES, Download, Feeder, NotStoredError
from tests import older_versions

KEY = (PAIR, "3m")
MANY = 40
NOW_MS = START_MS + MANY * M3


def slots(start: int, end: int) -> TimeRange:
    return TimeRange(START_MS + start * M3, START_MS + end * M3)


def stored(path: Path, lacking: set[int], *, keep: int = MANY, absent: TimeRange | None = None):
    """A journal with MANY candles but those, promised `keep` candles back."""
    store(path, entry(), [candle(START_MS + n * M3) for n in range(MANY) if n not in lacking])
    cover(path, NOW_MS, keep * M3, absent=[] if absent is None else [(KEY, absent)])


@pytest.fixture
def reader(path: Path, clock):
    """A reader of the journal, made when it is asked for."""
    clock.ms = NOW_MS + 20_000
    made: list[MarketReader] = []

    class Late:
        def __getattr__(self, name: str):
            if not made:
                made.append(MarketReader.connect(url(path), now_ms=clock.now_ms))
            return getattr(made[0], name)

    yield Late()
    for one in made:
        one.close()


# --- frames -------------------------------------------------------------------------------------------


def test_missing_stays_what_lacks_and_absent_says_what_will_never_come(path: Path, reader) -> None:
    stored(path, {10, 11, 30}, absent=slots(10, 12))
    frame = reader.get_ohlcv(PAIR, "3m", since=START_MS)
    assert frame.attrs["missing"] == [START_MS + n * M3 for n in (10, 11, 30)]
    # Told is the newest part without a hole: what lies below the one that is open is not in it.
    assert frame.attrs["absent"] == []
    with Journal.open(path) as journal:
        write(journal, candle(START_MS + 30 * M3))
    frame = reader.get_ohlcv(PAIR, "3m", since=START_MS)
    assert frame.attrs["missing"] == frame.attrs["absent"] == [START_MS + n * M3 for n in (10, 11)]
    with pytest.raises(GapError):
        reader.get_ohlcv(PAIR, "3m", strict=True)


def test_a_resampled_candle_is_absent_if_a_part_is(path: Path, reader) -> None:
    stored(path, {10, 11}, absent=slots(10, 12))
    frame = reader.get_ohlcv(PAIR, "15m", since=START_MS)
    assert frame.attrs["missing"] == frame.attrs["absent"] == [START_MS + 2 * 5 * M3]


@pytest.mark.parametrize(
    ("asked", "short"),
    [
        ({"limit": MANY}, None),
        ({"limit": MANY + 1}, "history"),
        ({"since": START_MS}, None),
        ({"since": START_MS - 1}, None),
        ({"since": START_MS - M3}, "history"),
        ({"since": START_MS - M3, "limit": 5}, None),
        ({"limit": 3, "until": START_MS + M3}, "history"),
    ],
)
def test_short_says_why_a_frame_begins_later_than_asked(
    path: Path, reader, asked: dict[str, int], short: str | None
) -> None:
    stored(path, set())
    assert reader.get_ohlcv(PAIR, "3m", **asked).attrs["short"] == short


def test_what_is_filled_is_told_from_where_it_is_whole(path: Path, reader) -> None:
    """While history is filled, and afterwards, a frame begins where the store's history does."""
    stored(path, set(range(25)))
    assert reader.get_ohlcv(PAIR, "3m", 30).attrs["short"] == "history"
    assert reader.get_ohlcv(PAIR, "3m", 15).attrs["short"] is None


@pytest.mark.parametrize(("listed", "timeframe"), [(1, "3m"), (0, "3m"), (0, "15m"), (1, "15m")])
def test_a_frame_that_begins_with_the_listing(
    path: Path, reader, listed: int, timeframe: str
) -> None:
    store(
        path,
        entry(listed_ms=START_MS + listed),
        [candle(START_MS + n * M3) for n in range(MANY)],
    )
    # The listing is told by the catalog, coverage or none.
    assert reader.get_ohlcv(PAIR, timeframe, 500).attrs["short"] == "listed"
    assert reader.ready(PAIR, timeframe, 500)


def test_attrs_survive_what_pandas_does_with_a_frame(path: Path, reader) -> None:
    stored(path, {10}, absent=slots(10, 11))
    frame = reader.get_ohlcv(PAIR, "3m", 30)
    assert frame.copy()[["date"]].tail(3).attrs["absent"] == [START_MS + 10 * M3]


# --- nothing is told ------------------------------------------------------------------------------------


def told_nothing(reader) -> None:
    frame = reader.get_ohlcv(PAIR, "3m", 500)
    assert (frame.attrs["absent"], frame.attrs["short"]) == ([], "unknown")
    assert frame.attrs["missing"] == [START_MS + 10 * M3]
    assert reader.wait_closed("3m", START_MS + 10 * M3, 0) == (PAIR,)
    assert not reader.ready(PAIR, "3m", 30)
    assert reader.ready(PAIR, "3m", 29)


@pytest.mark.parametrize(
    "then",
    [
        "DELETE FROM coverage",
        "UPDATE coverage SET released = 1",
        # An older writer, or a hand.
        "UPDATE sequence SET commits = commits + 1",
        "DELETE FROM candle WHERE open_time = 0; UPDATE sequence SET deleted = deleted + 1",
        "UPDATE coverage SET looked = looked + 1000000000000",
    ],
)
def test_where_nobody_tells_all_is_as_it_was(path: Path, reader, then: str) -> None:
    stored(path, {10}, absent=slots(10, 11))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(then)
    told_nothing(reader)


def test_a_journal_of_version_2_tells_nothing(path: Path, reader) -> None:
    older_versions.empty(path, "journal_version_2.sql", schema.APPLICATION_ID, 2)
    stored(path, {10}, absent=slots(10, 11))
    told_nothing(reader)


def test_a_pair_of_two_lives_is_told_of_the_one_that_reaches_furthest(path: Path, reader) -> None:
    """As the next version of a journal keeps them: each life has its promise."""
    stored(path, {10, 30}, absent=slots(10, 11))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE gap SET state = 'unresolvable', empty_2 = 1 WHERE empty_2 IS NULL")
        db.execute(
            """INSERT INTO coverage SELECT pair_id, timeframe_ms, 1, "from" + ?, looked + ?, promised, 0
               FROM coverage""",
            (20 * M3, 20 * M3),
        )
        db.execute("UPDATE coverage SET looked = ? WHERE life = 0", (NOW_MS,))
    frame = reader.get_ohlcv(PAIR, "3m", since=START_MS)
    assert frame.attrs["absent"] == [START_MS + 30 * M3]


# --- ready ----------------------------------------------------------------------------------------------


def test_ready_is_the_newest_that_are_due_without_a_hole(path: Path, reader, clock) -> None:
    stored(path, {10, 20}, absent=slots(10, 11))
    assert reader.ready(PAIR, "3m", MANY - 21)
    assert not reader.ready(PAIR, "3m", MANY - 20)
    with Journal.open(path) as journal:
        write(journal, candle(START_MS + 20 * M3))
    assert reader.ready(PAIR, "3m", MANY), "what the exchange does not have is not waited for"
    assert not reader.ready(PAIR, "3m", MANY + 1), "nobody promises so many"
    assert reader.ready(PAIR, "15m", MANY // 5)
    # The next candle is due 15 s after its close.
    clock.ms = NOW_MS + M3 + 14_999
    assert reader.ready(PAIR, "3m", 5)
    clock.ms += 1
    assert not reader.ready(PAIR, "3m", 5)
    assert not reader.ready(PAIR, "3m", 1)


def test_ready_does_not_look_further_back_than_asked(path: Path, reader) -> None:
    """For the candle that the exchange does not have, an older one is read, from behind an open hole."""
    stored(path, {20, 30}, absent=slots(30, 31))
    assert len(reader.get_ohlcv(PAIR, "3m", 19)) == 19
    assert reader.ready(PAIR, "3m", 19)
    assert not reader.ready(PAIR, "3m", 20)


def test_ready_of_pairs_that_are_over(path: Path, reader) -> None:
    gone, dropped, new = "GONE/USDT:USDT", "DROP/USDT:USDT", "NEW/USDT:USDT"
    end_ms = START_MS + 20 * M3
    store(
        path,
        entry(gone, ended_ms=end_ms),
        entry(dropped, ended_ms=end_ms, dropped=True),
        entry(new),
        [candle(START_MS + n * M3, pair) for n in range(20) for pair in (gone, dropped)],
    )
    assert reader.ready(gone, "3m", 20)
    assert not reader.ready(dropped, "3m", 1)
    assert not reader.ready(new, "3m", 1)


def test_what_ready_refuses(path: Path, reader) -> None:
    stored(path, set())
    for number in (0, -1, 1.0, True, None, "5"):
        with pytest.raises(ArgumentError, match=r"^n: "):
            reader.ready(PAIR, "3m", number)
    with pytest.raises(UnknownPairError):
        reader.ready(OTHER, "3m", 1)
    with pytest.raises(UnknownTimeframeError):
        reader.ready(PAIR, "1m", 1)


# --- waiting --------------------------------------------------------------------------------------------


def test_a_candle_that_the_exchange_does_not_have_is_not_awaited(path: Path, reader) -> None:
    stored(path, {10, 20}, absent=slots(10, 11))
    assert reader.wait_closed("3m", START_MS + 20 * M3, 0) == (PAIR,)
    # Below an open hole nothing is told.
    assert reader.wait_closed("3m", START_MS + 10 * M3, 0) == (PAIR,)
    with Journal.open(path) as journal:
        write(journal, candle(START_MS + 20 * M3))
    assert reader.wait_closed("3m", START_MS + 10 * M3, 60) == ()


def test_a_halted_pair_is_not_awaited_and_one_that_trades_again_is(
    path: Path, reader, clock
) -> None:
    other = (OTHER, "3m")
    store(
        path,
        entry(),
        entry(OTHER),
        [candle(START_MS + n * M3) for n in range(MANY)],
        [candle(START_MS + n * M3, OTHER) for n in range(MANY - 10)],
    )
    # Of the newest five nobody has asked twice yet.
    halted = [(other, slots(MANY - 10, MANY - 5))]
    cover(path, NOW_MS, MANY * M3, (KEY, other), halted)
    assert reader.wait_closed("3m", NOW_MS - M3, 60) == ()
    clock.ms += M3
    assert reader.wait_closed("3m", NOW_MS, 0) == (PAIR,)
    with Journal.open(path) as journal:
        write(journal, candle(NOW_MS, OTHER))
    clock.ms += M3
    assert reader.wait_closed("3m", NOW_MS + M3, 0) == (PAIR, OTHER)


def test_a_wait_ends_when_the_exchange_has_answered_without(path: Path, clock) -> None:
    stored(path, {MANY - 1})
    clock.ms = NOW_MS + 20_000
    with (
        Journal.open(path) as journal,
        MarketReader.connect(url(path), now_ms=clock.now_ms) as reader,
    ):
        found: list[tuple[str, ...]] = []
        waiting = threading.Thread(
            target=lambda: found.append(reader.wait_closed("3m", NOW_MS - M3, 60))
        )
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive()
        # Nothing is stored afterwards: what it looked at a moment before the last commit is looked at again.
        for hours in (1, 2):
            batch = Batch()
            batch.absent.append((KEY, slots(MANY - 1, MANY), NOW_MS + hours * H1))
            journal.write(batch)
        waiting.join(180)
        assert not waiting.is_alive()
        assert found == [()]


# --- feeders --------------------------------------------------------------------------------------------


def test_a_feeder_takes_a_hole_that_the_exchange_has_too(path: Path, reader) -> None:
    stored(path, {10, 20}, absent=slots(10, 11))
    feeder = Feeder(reader, now_ms=lambda: NOW_MS + 20_000)
    asked = [
        Download(PAIR, "3m", FUTURES, None, limit, START_MS - D1) for limit in (MANY, MANY - 12)
    ]
    assert all(isinstance(one, NotStoredError) for one in feeder.answer(asked))
    with Journal.open(path) as journal:
        write(journal, candle(START_MS + 20 * M3))
    whole, part = feeder.answer(asked)
    assert isinstance(whole, list)
    assert isinstance(part, list)
    expected = [START_MS + n * M3 for n in range(1, MANY + 1) if n != 10]
    assert [row[0] for row in whole] == expected, "and nothing from further back in its place"
    assert [row[0] for row in part] == [NOW_MS - n * M3 for n in reversed(range(MANY - 12))]
    since = Download(PAIR, "3m", FUTURES, START_MS, 15, START_MS - D1)
    (rows,) = feeder.answer([since])
    assert isinstance(rows, list)
    assert [row[0] for row in rows] == [START_MS + n * M3 for n in range(15) if n != 10]


def test_a_feeder_still_calls_a_halted_pair_stale(path: Path, reader) -> None:
    stored(path, set(range(30, MANY)), absent=slots(30, MANY))
    feeder = Feeder(reader, now_ms=lambda: NOW_MS + 20_000, late_s=0)
    (answer,) = feeder.answer([Download(PAIR, "3m", FUTURES, None, 20, START_MS - D1)])
    assert not isinstance(answer, list)
