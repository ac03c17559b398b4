"""The lives of pairs are kept in the journal, in a table that version 3 has gained since its first day."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Candle, Life
from marketfeed.schema import DAY_MS, MINUTE_MS
from marketfeed.storage.database import convert
from tests.older_versions import shape, version

PAIR, OTHER = "LIT/USDT:USDT", "BTC/USDT:USDT"
T0 = 20_000 * DAY_MS
OLD = Life(PAIR, "LITUSDT", 0, T0, "rows before onboardDate; deliveryDate")
NEW = Life(PAIR, "LITUSDT", T0 + DAY_MS, None, "onboardDate")
BTC = Life(OTHER, "BTCUSDT", 1_569_398_400_000, None, "onboardDate")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_what_is_kept_of_a_pair_is_replaced_as_a_whole(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.lives() == {}
        journal.save_lives({PAIR: [OLD], OTHER: [BTC]})
        journal.save_lives({PAIR: [OLD, NEW]})
    with Journal.open(path) as journal:
        assert journal.lives() == {OTHER: (BTC,), PAIR: (OLD, NEW)}
        # A beginning that was corrected leaves none of before.
        journal.save_lives({PAIR: [NEW]})
        assert journal.lives()[PAIR] == (NEW,)


def test_a_file_of_before_grows_when_it_is_opened_to_be_written(path: Path, tmp_path: Path) -> None:
    with Journal.open(path) as journal:
        journal.save_lives({OTHER: [BTC]})
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE life")
    with Journal.open(path) as journal:
        assert journal.lives() == {}
        journal.save_lives({PAIR: [OLD, NEW]})
    with Journal.open(tmp_path / "fresh.db"):
        pass
    assert shape(path) == shape(tmp_path / "fresh.db")


def test_version_2_keeps_none(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.save_lives({PAIR: [OLD, NEW]})
    convert(KIND, path, 2)
    with Journal.open(path) as journal:
        assert not journal.keeps_lives
        journal.save_lives({PAIR: [NEW]})
        assert journal.lives() == {}
    assert version(path) == 2
    convert(KIND, path, 3)
    with Journal.open(path) as journal:
        assert journal.lives() == {}
        assert journal.keeps_lives


def test_one_that_cannot_grow_is_taken_back_all_the_same(path: Path) -> None:
    with Journal.open(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE life")
    convert(KIND, path, 2)
    assert version(path) == 2


def test_when_the_rows_begin_and_when_they_end_before_a_time(path: Path) -> None:
    def candle(timeframe: str, open_ms: int, length_ms: int) -> Candle:
        return Candle(PAIR, timeframe, open_ms, 1, 1, 1, 1, 1, 1, 1, 1, True, open_ms + length_ms)

    with Journal.open(path) as journal:
        journal.repair(
            [
                candle("1m", T0, MINUTE_MS),
                candle("1m", T0 + MINUTE_MS, MINUTE_MS),
                candle("3m", T0, 3 * MINUTE_MS),
            ]
        )
        assert journal.oldest_candles() == {(PAIR, "1m"): T0, (PAIR, "3m"): T0}
        for minutes, closed in ((0, None), (1, 1), (2, 2), (3, 3), (9, 3)):
            at_ms = journal.newest_close_before(PAIR, T0 + minutes * MINUTE_MS)
            assert at_ms == (None if closed is None else T0 + closed * MINUTE_MS)
        assert journal.newest_close_before(OTHER, T0 + DAY_MS) is None
