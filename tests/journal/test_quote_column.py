"""The column `taker_buy_quote_volume`: what fills it, how a file gets and loses it, what is asked again."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.journal import quotes
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.quotes import Unquoted
from marketfeed.journal.view import JournalView
from marketfeed.records import Candle
from marketfeed.storage.database import convert
from tests import older_versions
from tests.older_versions import ETH, M1, PAIR, T0, columns, content, journal_3, shape

KEY: Final = (PAIR, "1m")
END: Final = 2**62


def candle(n: int = 0, quote: float | None = 8.5, close: float = 1.5, trades: int = 7) -> Candle:
    at_ms = T0 + n * M1
    numbers = (1.0, 2.0, 0.5, close, 10.0, 15.0, 5.0, trades)
    return Candle(PAIR, "1m", at_ms, *numbers, True, at_ms + M1, quote)


def stored(journal: Journal) -> list[Candle]:
    return journal.candles(*KEY, 0, END)


def written_by_another(path: Path, *rows: tuple[Any, ...]) -> None:
    """As an older version 3 writes: (open time, close, trades) of PAIR, by names, with its own count."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (number,) = db.execute("SELECT next FROM sequence").fetchone()
        for at, (open_ms, close, trades) in enumerate(rows):
            db.execute(
                """INSERT INTO candle (pair_id, timeframe_ms, open_time, open, high, low, close, volume,
                    quote_volume, taker_buy_volume, trades, seq)
                   SELECT id, 60000, ?, 1, 2, 0.5, ?, 10, 15, 5, ?, ? FROM pair WHERE pair = ?
                   ON CONFLICT DO UPDATE SET close = excluded.close, trades = excluded.trades,
                    seq = excluded.seq""",
                (open_ms, close, trades, number + at, PAIR),
            )
        db.execute(
            "UPDATE sequence SET next = ?, commits = commits + 1, covered_commits = commits + 1",
            (number + len(rows),),
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


# --- the rule -----------------------------------------------------------------------------------------

VARIANTS: Final = st.builds(
    lambda quote, close, trades: candle(0, quote, close, trades),
    st.sampled_from([None, 0.0, 1.25, 8.5]),
    st.sampled_from([1.25, 1.5]),
    st.integers(1, 3),
)
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(["write", "repair", "fill"]), VARIANTS), min_size=1, max_size=12
)


def after(known: Candle | None, what: str, fresh: Candle) -> Candle | None:
    """The rule in plain words: what is stored of a candle when `fresh` has come."""
    if known is None:
        return None if what == "fill" else fresh
    same = (known.close, known.trades) == (fresh.close, fresh.trades)
    quote = fresh.taker_buy_quote_volume
    if quote is None:
        quote = known.taker_buy_quote_volume
    if same:
        return candle(0, quote, known.close, known.trades)
    if what == "repair" or (what == "write" and fresh.trades >= known.trades):
        return candle(0, quote, fresh.close, fresh.trades)
    return known


@given(STEPS)
def test_a_value_fills_none_and_none_never_replaces_one(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[tuple[str, Candle]]
) -> None:
    path = tmp_path_factory.mktemp("rule") / "journal.db"
    known: Candle | None = None
    with Journal.open(path) as journal:
        for what, fresh in steps:
            wanted = after(known, what, fresh)
            before = journal.next_seq
            if what == "write":
                changed = journal.write(Batch(candles=[fresh]))
            elif what == "repair":
                changed = journal.repair([fresh])
            else:
                changed = journal.fill_quotes([fresh], {})
            assert stored(journal) == ([] if wanted is None else [wanted])
            # What is no news takes no number: it is not shipped again.
            assert changed == (wanted != known)
            (seq,) = journal.db.execute("SELECT coalesce(max(seq), 0) FROM candle").fetchone()
            assert (seq >= before) == (wanted != known)
            known = wanted


def test_forming_candles_have_it_too(path: Path) -> None:
    forming = Candle(PAIR, "1m", T0, 1.0, 2.0, 0.5, 1.5, 1.0, 2.0, 0.5, 3, False, T0 + 9, 0.75)
    batch = Batch()
    batch.add(forming)
    with Journal.open(path) as journal:
        journal.write(batch)
        text = "SELECT taker_buy_quote_volume FROM forming"
        assert journal.db.execute(text).fetchall() == [(0.75,)]


# --- files of older versions -------------------------------------------------------------------------


def test_a_file_of_before_gets_it_when_it_is_opened(path: Path, tmp_path: Path) -> None:
    held = content(journal_3(path))
    view = JournalView(path)
    before = view.candles(*KEY, TimeRange(0, END))
    assert {one.taker_buy_quote_volume for one in before} == {None}
    with Journal.open(path) as journal:
        assert journal.has_quotes
        assert stored(journal) == before
        assert journal.quotes_asked() == {}
    # Neither rows nor numbers have changed.
    assert content(path) == held
    with Journal.open(path) as journal:
        assert journal.next_seq == 740
        assert journal.write(Batch(candles=[candle(1_000)])) == 1
    Journal.open(tmp_path / "fresh.db").close()
    assert columns(path) == columns(tmp_path / "fresh.db")
    assert shape(path) == shape(tmp_path / "fresh.db")
    assert view.candles(*KEY, TimeRange(0, END))[-1] == candle(1_000)


def test_no_row_of_candles_is_read_for_it(path: Path) -> None:
    """What SQLite executes at the opening does not grow with the rows."""
    executed: list[int] = []
    for rows in (10, 20_000):
        one = path.with_name(f"{rows}.db")
        older_versions.empty(one, "journal_version_3.sql", schema.APPLICATION_ID, 3)
        with contextlib.closing(sqlite3.connect(one, isolation_level=None)) as db:
            db.execute("INSERT INTO pair VALUES (1, ?)", (PAIR,))
            db.execute(
                """WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?)
                   INSERT INTO candle SELECT 1, 60000, n * 60000, 1, 2, 0.5, 1.5, 1, 1, 1, 1, n FROM n""",
                (rows,),
            )
            looks = 0

            def look() -> int:
                nonlocal looks
                looks += 1
                return 0

            db.set_progress_handler(look, 1)
            assert KIND.grow is not None
            KIND.grow(db)
            executed.append(looks)
            db.set_progress_handler(None, 1)
            assert db.execute(schema.HAS_TAKER_BUY_QUOTE).fetchone() == (1,)
    assert executed[0] == executed[1]


def test_version_2_goes_on_without(path: Path) -> None:
    older_versions.journal(path, 2)
    with Journal.open(path) as journal:
        assert not journal.has_quotes
        assert journal.write(Batch(candles=[candle(1_000)])) == 1
        assert journal.write(Batch(candles=[candle(1_000)])) == 0
        assert journal.repair([candle(1_000, close=1.75)]) == 1
        assert stored(journal)[-1] == candle(1_000, None, close=1.75)
    convert(KIND, path, 3)
    with Journal.open(path) as journal:
        assert journal.has_quotes
        assert journal.fill_quotes([candle(1_000, close=1.75)], {}) == 1


def test_the_way_back_reads_no_candles_and_loses_no_value(path: Path) -> None:
    older_versions.journal(path, 2)
    shape_2 = shape(path)
    convert(KIND, path, 3)
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(n) for n in range(1_000, 1_003)]))
        journal.fill_quotes([], {KEY: 0})
    convert(KIND, path, 2)
    assert shape(path) == shape_2
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        # As the first release does it: without naming the columns.
        row = (1, M1, T0 + 1_001 * M1, 1, 2, 0.5, 1.75, 10, 15, 5, 9, 600)
        db.execute(
            """INSERT INTO candle SELECT * FROM (VALUES (?,?,?,?,?,?,?,?,?,?,?,?)) WHERE true
               ON CONFLICT DO UPDATE SET close = excluded.close, trades = excluded.trades""",
            row,
        )
        db.execute(
            "INSERT INTO candle VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", (1, M1, T0 - M1, *row[3:])
        )
    # A copy, as a backup or VACUUM makes one, is as good.
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    convert(KIND, path, 3)
    with Journal.open(path) as journal:
        found = {
            (one.open_time_ms - T0) // M1: one.taker_buy_quote_volume for one in stored(journal)
        }
        assert (found[1_000], found[1_002]) == (8.5, 8.5)
        # Of the one that was replaced, and the new one, nothing is known.
        assert (found[1_001], found[-1]) == (None, None)
        assert journal.quotes_asked() == {}
        asked = journal.newest_without_quote(KEY, None)
        assert asked is not None
        assert asked.within.end_ms == T0 + 1_002 * M1


def test_what_an_older_writer_has_done_is_asked_for_again(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(n) for n in range(5)]))
        journal.fill_quotes([], {KEY: 0})
    # Opened again by this version, nothing is doubted.
    with Journal.open(path) as journal:
        assert journal.quotes_asked() == {KEY: 0}
        assert journal.newest_without_quote(KEY, None) is None
    # It replaces one, whose value is of the former candle then, and adds one.
    written_by_another(path, (T0 + 2 * M1, 1.75, 9), (T0 + 5 * M1, 1.5, 7))
    with Journal.open(path) as journal:
        assert journal.quotes_asked() == {}
        found = journal.newest_without_quote(KEY, None)
        assert found is not None
        assert found.within == TimeRange(T0 + 2 * M1, T0 + 6 * M1)
        assert found.candles == 2
        fresh = [candle(2, 9.25, 1.75, 9), candle(5)]
        assert journal.fill_quotes(fresh, {KEY: found.down_to_ms}) == 2
        assert stored(journal)[2] == fresh[0]
        assert journal.newest_without_quote(KEY, None) is None


@pytest.mark.parametrize(
    ("down_to_ms", "doubted"),
    [(None, [2, 4]), (T0 + 3 * M1, [2, 4]), (0, [4])],
    ids=["not begun", "in part", "to its end"],
)
def test_a_doubt_is_kept_until_it_was_asked_about_to_its_end(
    path: Path, down_to_ms: int | None, doubted: list[int]
) -> None:
    """An older version writes twice: what it wrote first is not forgotten for what it wrote then."""
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(n) for n in range(5)]))
        journal.fill_quotes([], {KEY: 0})
    written_by_another(path, (T0 + 2 * M1, 1.75, 9))
    with Journal.open(path) as journal:
        assert journal.quotes_asked() == {}
        if down_to_ms is not None:
            # The exchange's answers had nothing that fits: what is stored stays.
            journal.fill_quotes([], {KEY: down_to_ms})
    written_by_another(path, (T0 + 4 * M1, 1.75, 9))
    with Journal.open(path) as journal:
        assert journal.quotes_asked() == {}
        found = journal.newest_without_quote(KEY, None)
        assert found is not None
        ends = TimeRange(T0 + doubted[0] * M1, T0 + (doubted[-1] + 1) * M1)
        assert (found.within, found.candles) == (ends, len(doubted))
    # Opened once more with nothing written meanwhile it is the same.
    with Journal.open(path) as journal:
        assert journal.newest_without_quote(KEY, None) == found


def test_what_an_older_version_has_shipped_is_shipped_again_with_it(path: Path) -> None:
    every = [(name, 1, 2) for name in KIND.measurements]
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(n) for n in range(5)]))
        journal.note_shipped("a", every)
        assert list(journal.shipped("a")["ohlcv"]) == [(1, 2)]
    # Nobody else has written: what is acknowledged stays so.
    with Journal.open(path) as journal:
        assert list(journal.shipped("a")["ohlcv"]) == [(1, 2)]
    written_by_another(path, (T0 + 5 * M1, 1.5, 7))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE shipped SET last = 6 WHERE measurement IN (?, ?)", ("ohlcv", "feed_gap"))
        db.execute("INSERT INTO shipped VALUES ('b', 'ohlcv', 1, 6)")
    with Journal.open(path) as journal:
        assert list(journal.shipped("a")["ohlcv"]) == [(1, 2)]
        # Of the others it is as good.
        assert list(journal.shipped("a")["feed_gap"]) == [(1, 6)]
        assert list(journal.shipped("b")["ohlcv"]) == []
        journal.note_shipped("a", [("ohlcv", 1, 6)])
    with Journal.open(path) as journal:
        assert list(journal.shipped("a")["ohlcv"]) == [(1, 6)]
        assert list(journal.shipped("b")["ohlcv"]) == []


def test_what_was_shipped_of_a_file_of_before_is_not_shipped_again(path: Path) -> None:
    journal_3(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO shipped VALUES ('a', 'ohlcv', 1, 739)")
    for _ in range(2):
        with Journal.open(path) as journal:
            assert list(journal.shipped("a")["ohlcv"]) == [(1, 739)]


# --- what is to be asked for -------------------------------------------------------------------------


def test_it_is_asked_for_from_the_newest_down_in_tiles(path: Path) -> None:
    with Journal.open(path) as journal:
        quotes = dict.fromkeys((0, 3, 400, 1200), 1.0)
        journal.write(Batch(candles=[candle(n, quotes.get(n)) for n in range(1_201)]))
        found: list[Unquoted] = []
        below_ms = None
        while (one := journal.newest_without_quote(KEY, below_ms)) is not None:
            found.append(one)
            below_ms = one.down_to_ms
    ranges = [((a - T0) // M1, (b - T0) // M1) for (a, b), _, _ in found]
    assert ranges == [(1_200 - TILE_CANDLES, 1_200), (202, 701), (1, 202)]
    assert [one.candles for one in found] == [499, 498, 200]


def test_only_what_lacks_it_is_changed(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(0, None), candle(1, None), candle(2, 3.0)]))
        answer = [candle(0), candle(1, 8.5, close=1.75), candle(2, None), candle(3)]
        assert journal.fill_quotes(answer, {KEY: T0}) == 1
        # One differs: it is the audit's. One is not stored: it is a hole, or is not promised.
        assert stored(journal) == [candle(0), candle(1, None), candle(2, 3.0)]
        assert journal.quotes_asked() == {KEY: T0}
        # The same again is no news.
        before = journal.next_seq
        journal.fill_quotes(answer, {KEY: T0})
        assert (stored(journal)[0], journal.next_seq - before) == (candle(0), len(answer))
        assert journal.write(Batch(candles=[candle(1, 8.5, close=1.75)])) == 1


def test_what_fails_notes_nothing(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(0, None)]))
        journal.db.execute(
            """CREATE TEMP TRIGGER fails BEFORE INSERT ON quote_asked BEGIN
                SELECT raise(ABORT, 'full'); END"""
        )
        with pytest.raises(JournalError, match="full"):
            journal.fill_quotes([candle(0)], {KEY: 0, (ETH, "1m"): 0})
        assert stored(journal) == [candle(0, None)]
        assert journal.quotes_asked() == {}
        journal.db.execute("DROP TRIGGER fails")
        assert journal.fill_quotes([candle(0)], {KEY: 0, (ETH, "1m"): 0}) == 1
        assert journal.quotes_asked() == {KEY: 0, (ETH, "1m"): 0}


def test_a_start_that_could_not_note_what_others_wrote_does_not_take_it_for_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the opening goes on without, and the doubt is noted at the next one."""
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[candle(0), candle(1)]))
    written_by_another(path, (T0 + M1, 1.75, 9))

    def full(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(quotes, "add", full)
        with Journal.open(path) as journal:
            assert not journal.has_quotes
            journal.write(Batch(candles=[candle(2)]))
    with Journal.open(path) as journal:
        assert journal.has_quotes
        (first, until) = journal.db.execute(
            "SELECT doubted_from, doubted_until FROM sequence"
        ).fetchone()
        (number,) = journal.db.execute(
            "SELECT seq FROM candle WHERE open_time = ?", (T0 + M1,)
        ).fetchone()
        assert first <= number < until
