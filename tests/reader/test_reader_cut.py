"""`get_ohlcv_many` of a journal: pair by pair, each in a transaction of its own, all up to one close."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import Record
from reader import MarketReader
from reader.rows import CandleQuery, CandleRows
from reader.stores.sqlite import SqliteStore
from tests.reader.stored import M3, M15, START_MS, candle, entry, url

PAIRS = [f"P{number}/USDT:USDT" for number in range(5)]
COUNT = 40
END_MS = START_MS + COUNT * M3
"""When the newest closed candle of all closed."""


def batch_of(*records: Record) -> Batch:
    batch = Batch()
    batch.extend(records)
    return batch


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.write(
            batch_of(
                *(entry(pair) for pair in PAIRS),
                *(candle(START_MS + n * M3, pair) for pair in PAIRS for n in range(COUNT)),
                *(candle(END_MS, pair, closed=False) for pair in PAIRS),
            )
        )
        yield journal


def between_pairs(monkeypatch: pytest.MonkeyPatch, happens: Callable[[int], None]) -> list[str]:
    """Have `happens` called before each pair is read; returns the pairs that were, in their order."""
    asked: list[str] = []
    whole = SqliteStore._candles

    def one(self: SqliteStore, query: CandleQuery) -> CandleRows:
        (pair,) = query.pairs
        happens(len(asked))
        asked.append(pair)
        return whole(self, query)

    monkeypatch.setattr(SqliteStore, "_candles", one)
    return asked


@pytest.mark.parametrize("forming", [False, True])
def test_what_closes_while_pairs_are_read_is_in_no_frame(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, forming: bool
) -> None:
    def close_more(turn: int) -> None:
        # A minute's end in the middle of it, and the next candle begins.
        if turn == 2:
            journal.write(batch_of(*(candle(END_MS, pair) for pair in PAIRS)))
            journal.write(batch_of(*(candle(END_MS + M3, pair, closed=False) for pair in PAIRS)))

    asked = between_pairs(monkeypatch, close_more)
    with MarketReader.connect(url(journal.path), now_ms=lambda: END_MS + 1_000) as reader:
        frames = reader.get_ohlcv_many(PAIRS, "3m", 10, include_forming=forming, strict=True)
    assert asked == PAIRS
    last_ms = END_MS if forming else END_MS - M3
    for pair, frame in frames.items():
        opens = [stamp.value // 10**6 for stamp in frame["date"]]
        assert opens == list(range(END_MS - 10 * M3, last_ms + M3, M3))
        assert frame.attrs["forming"] is forming
        assert frame.attrs["missing"] == []
        assert frame.attrs["age_s"] == 1.0
        if forming:
            # As it stood last: closed by now, for who came late.
            assert frame["close"].iloc[-1] == candle(END_MS, pair).close
    with MarketReader.connect(url(journal.path), now_ms=lambda: END_MS + M3) as reader:
        later = reader.get_ohlcv_many(PAIRS, "3m", 10)
        assert {frame["date"].iloc[-1].value // 10**6 for frame in later.values()} == {END_MS}


def test_a_forming_candle_beyond_a_hole_is_in_the_frame(journal: Journal) -> None:
    """As in `get_ohlcv` of one pair, and as an InfluxDB answers."""
    later_ms = END_MS + 3 * M3
    journal.write(batch_of(*(candle(later_ms, pair, closed=False) for pair in PAIRS)))
    with MarketReader.connect(url(journal.path), now_ms=lambda: later_ms + 1_000) as reader:
        frames = reader.get_ohlcv_many(PAIRS, "3m", 10, include_forming=True, max_age_s=None)
        for pair, frame in frames.items():
            assert frame["date"].iloc[-1].value // 10**6 == later_ms
            alone = reader.get_ohlcv(pair, "3m", 10, include_forming=True, max_age_s=None)
            assert alone["date"].tolist() == frame["date"].tolist()


def test_a_resampled_candle_is_cut_at_the_same_close(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_more(turn: int) -> None:
        if turn == 1:
            journal.write(
                batch_of(*(candle(END_MS + n * M3, pair) for pair in PAIRS for n in range(5)))
            )

    between_pairs(monkeypatch, close_more)
    with MarketReader.connect(url(journal.path), now_ms=lambda: END_MS + 1_000) as reader:
        frames = reader.get_ohlcv_many(PAIRS, "15m", 5, strict=True)
    last_ms = END_MS // M15 * M15 - M15
    assert {frame["date"].iloc[-1].value // 10**6 for frame in frames.values()} == {last_ms}


def test_no_transaction_is_open_between_two_pairs(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[int] = []

    def fold(turn: int) -> None:
        journal.save_document("live", b"x" * 1_000, turn)
        with contextlib.closing(sqlite3.connect(journal.path)) as db:
            # Busy where a reader is in its way.
            folded.append(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    between_pairs(monkeypatch, fold)
    with MarketReader.connect(url(journal.path), now_ms=lambda: END_MS + 1_000) as reader:
        reader.get_ohlcv_many(PAIRS, "3m", 10)
    assert folded == [0] * len(PAIRS)


def test_frames_of_two_files_are_never_mixed(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.db"
    with Journal.open(other) as fresh:
        fresh.write(
            batch_of(
                *(entry(pair) for pair in PAIRS),
                # Of the same times, and other numbers.
                *(
                    candle(START_MS + n * M3, f"other {pair}")
                    for pair in PAIRS
                    for n in range(COUNT)
                ),
            )
        )
        fresh.db.execute(
            "UPDATE candle SET pair_id = (SELECT id FROM pair WHERE 'other ' || pair = "
            "(SELECT pair FROM pair WHERE id = candle.pair_id))"
        )

    def replace(turn: int) -> None:
        if turn == 2:
            journal.close()
            # This reader has kept them: beside another file they would be read as a part of it.
            for suffix in ("-wal", "-shm"):
                Path(f"{journal.path}{suffix}").unlink(missing_ok=True)
            other.replace(journal.path)

    asked = between_pairs(monkeypatch, replace)
    with MarketReader.connect(url(journal.path), now_ms=lambda: END_MS + 1_000) as reader:
        frames = reader.get_ohlcv_many(PAIRS, "3m", 10)
    assert len(asked) > len(PAIRS)
    for pair, frame in frames.items():
        assert frame["close"].iloc[-1] == candle(END_MS - M3, f"other {pair}").close
