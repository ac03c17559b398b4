"""The journal keeps what it has committed, once, and closed candles are closed for good."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.errors import (
    JournalError,
    JournalForeignError,
    JournalLockedError,
    JournalNewerError,
    JournalWriteError,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.rejected import REJECTED_FRAMES_KEPT
from marketfeed.journal.retention import expired, over_budget
from marketfeed.records import (
    Candle,
    CatalogEntry,
    FundingRate,
    FundingSettled,
    Gap,
    MarkPrice,
    Record,
    RejectedFrame,
)
from marketfeed.storage.reading import inspect
from tests.sweeps import sweep_out

PAIR = "BTC/USDT:USDT"
T0 = 1_791_360_000_000
MINUTE = 60_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path) as opened:
        yield opened


def candle(number: int = 0, *, closed: bool = True, **changes: Any) -> Candle:
    open_ms = T0 + number * MINUTE
    values: dict[str, Any] = {
        "pair": PAIR,
        "timeframe": "1m",
        "open_time_ms": open_ms,
        "open": 10.0 + number,
        "high": 12.0 + number,
        "low": 9.0 + number,
        "close": 11.0 + number,
        "volume": 1.5,
        "quote_volume": 16.25,
        "taker_buy_volume": 0.5,
        "taker_buy_quote_volume": 8.5,
        "trades": 7,
        "closed": closed,
        "event_time_ms": open_ms + (MINUTE + 100 if closed else 1_000),
    }
    return Candle(**(values | changes))


def batch_of(*records: Record) -> Batch:
    batch = Batch()
    batch.extend(records)
    return batch


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def test_every_kind_of_record_is_stored_and_a_repeat_changes_nothing(
    journal: Journal, path: Path
) -> None:
    batch = batch_of(
        candle(),
        candle(1, closed=False),
        MarkPrice(PAIR, T0 + 1_234, 100.5, 100.25),
        FundingRate(PAIR, T0 + 1_234, -0.0001, T0 + 8 * schema.HOUR_MS),
        FundingSettled(PAIR, T0, 0.0002, None),
        Gap("connection", None, T0, T0 + 5, "found", "lost"),
        CatalogEntry(PAIR, "BTCUSDT", ("1m", "3m"), T0, 5, None, T0),
    )
    assert journal.write(batch) == 7
    after = journal.next_seq
    assert rows(path, "SELECT * FROM candle") == [
        (1, MINUTE, T0, 10.0, 12.0, 9.0, 11.0, 1.5, 16.25, 0.5, 7, 1, 8.5)
    ]
    assert rows(path, "SELECT open_time, close, event_time FROM forming") == [
        (T0 + MINUTE, 12.0, T0 + MINUTE + 1_000)
    ]
    assert rows(path, "SELECT time, offset_ms, mark_price, index_price FROM mark_price") == [
        (T0 + 1_000, 234, 100.5, 100.25)
    ]
    assert rows(path, "SELECT time, offset_ms, rate, settled_rate FROM funding_rate") == [
        (T0, 1_234, -0.0001, None)
    ]
    assert rows(path, "SELECT time, kind, rate, mark_price FROM funding_settled") == [
        (T0, "Regular", 0.0002, None)
    ]
    assert rows(path, 'SELECT kind, pair_id, start, "end", healed FROM gap') == [
        ("connection", 0, T0, T0 + 5, 0)
    ]
    assert journal.catalog() == batch.catalog
    seqs = (
        "SELECT seq FROM candle UNION ALL SELECT seq FROM mark_price UNION ALL SELECT seq FROM gap"
    )
    before = rows(path, seqs)
    assert journal.write(batch) == 0
    assert rows(path, seqs) == before
    assert journal.next_seq >= after


def test_a_changed_row_takes_a_new_seq(journal: Journal, path: Path) -> None:
    journal.write(batch_of(candle()))
    ((first,),) = rows(path, "SELECT seq FROM candle")
    journal.write(batch_of(candle(close=11.5, trades=8)))
    assert rows(path, "SELECT close, trades, seq > ? FROM candle".replace("?", str(first))) == [
        (11.5, 8, 1)
    ]


def test_a_candle_with_fewer_trades_does_not_replace_a_better_one(
    journal: Journal, path: Path
) -> None:
    journal.write(batch_of(candle()))
    assert journal.write(batch_of(candle(close=9.5, trades=6))) == 0
    assert rows(path, "SELECT close, trades FROM candle") == [(11.0, 7)]


def test_a_grid_step_keeps_its_earliest_event(journal: Journal, path: Path) -> None:
    journal.write(batch_of(MarkPrice(PAIR, T0 + 500, 2.0, 2.0), FundingRate(PAIR, T0 + 5, 0.2, 1)))
    journal.write(batch_of(MarkPrice(PAIR, T0 + 900, 3.0, 3.0), FundingRate(PAIR, T0 + 9, 0.3, 1)))
    journal.write(batch_of(MarkPrice(PAIR, T0 + 100, 1.0, 1.0), FundingRate(PAIR, T0 + 1, 0.1, 1)))
    assert rows(path, "SELECT time, mark_price FROM mark_price") == [(T0, 1.0)]
    assert rows(path, "SELECT time, rate FROM funding_rate") == [(T0, 0.1)]


def test_settled_funding_fills_in_its_mark_price_and_keeps_it(journal: Journal, path: Path) -> None:
    journal.write(batch_of(FundingSettled(PAIR, T0, 0.1, None)))
    journal.write(batch_of(FundingSettled(PAIR, T0, 0.1, 5.0)))
    assert journal.write(batch_of(FundingSettled(PAIR, T0, 0.1, None))) == 0
    assert rows(path, "SELECT rate, mark_price FROM funding_settled") == [(0.1, 5.0)]


frames = st.permutations(
    [
        candle(0, closed=False, trades=1, event_time_ms=T0 + 1),
        candle(0, closed=False, trades=2, event_time_ms=T0 + 2),
        candle(0),
        candle(0),
        candle(1, closed=False, trades=1, event_time_ms=T0 + MINUTE + 1),
        candle(1, closed=False, trades=5, event_time_ms=T0 + MINUTE + 9),
        candle(1),
        candle(2, closed=False, trades=3, event_time_ms=T0 + 2 * MINUTE + 4),
        candle(2, closed=False, trades=4, event_time_ms=T0 + 2 * MINUTE + 5),
    ]
)


@given(frames, st.lists(st.integers(1, 4), min_size=9, max_size=9), st.integers(0, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_order_of_frames_changes_what_is_stored(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[Candle],
    sizes: list[int],
    restart_after: int,
) -> None:
    path = tmp_path_factory.mktemp("order") / "journal.db"
    opened = Journal.open(path)
    left = list(order)
    for turn, size in enumerate(sizes):
        if turn == restart_after:
            opened.close()
            opened = Journal.open(path)
        opened.write(batch_of(*left[:size]))
        left = left[size:]
    opened.write(batch_of(*left, *order[:3]))
    opened.close()
    assert rows(path, "SELECT open_time, close, trades FROM candle ORDER BY open_time") == [
        (T0, 11.0, 7),
        (T0 + MINUTE, 12.0, 7),
    ]
    assert rows(path, "SELECT open_time, trades FROM forming") == [(T0 + 2 * MINUTE, 4)]


@given(st.lists(st.lists(st.integers(0, 900), max_size=700), max_size=4))
@settings(max_examples=20, deadline=None)
def test_batches_of_any_size_are_stored_whole(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("sizes") / "journal.db"
    with Journal.open(path) as opened:
        for numbers in batches:
            opened.write(batch_of(*(candle(number) for number in numbers)))
    expected = sorted({T0 + number * MINUTE for numbers in batches for number in numbers})
    assert [t for (t,) in rows(path, "SELECT open_time FROM candle ORDER BY 1")] == expected
    seqs = [seq for (seq,) in rows(path, "SELECT seq FROM candle")]
    assert len(set(seqs)) == len(seqs)


def test_seq_is_not_given_twice_after_deletion_and_restart(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.write(batch_of(*(MarkPrice(PAIR, T0 + n * 1_000, 1.0, 1.0) for n in range(100))))
        highest = opened.next_seq
        assert sweep_out(opened, expired(opened, {"mark_price": 0})) == 99
    with Journal.open(path) as opened:
        assert opened.next_seq == highest


def test_a_failed_write_stores_nothing_and_can_be_repeated(journal: Journal, path: Path) -> None:
    good = batch_of(candle(0), MarkPrice(PAIR, T0, 1.0, 1.0))
    bad = batch_of(candle(0), CatalogEntry("X/Y:Z", "XY", ("1m",), T0, None, None, T0))
    bad.catalog.append(bad.catalog[0].__class__("X/Y:Z", None, ("1m",), T0, None, None, T0))  # type: ignore[arg-type]
    with pytest.raises(JournalWriteError) as caught:
        journal.write(bad)
    assert not caught.value.damaged
    assert rows(path, "SELECT count(*) FROM candle") == [(0,)]
    assert rows(path, "SELECT count(*) FROM pair") == [(0,)]
    assert journal.write(good) == 2


def test_retention_counts_back_from_the_newest_row(journal: Journal, path: Path) -> None:
    journal.write(batch_of(*(candle(n) for n in range(10))))
    journal.write(batch_of(*(candle(n, pair="OLD/USDT:USDT") for n in range(3))))
    sweeps = expired(journal, {"candle": 4 * MINUTE, "mark_price": MINUTE})
    assert sweep_out(journal, sweeps) == 5 + 3
    assert [t for (t,) in rows(path, "SELECT open_time FROM candle ORDER BY 1")] == [
        T0 + n * MINUTE for n in range(5, 10)
    ]


def test_over_the_disk_budget_mark_prices_give_way_first(journal: Journal, path: Path) -> None:
    journal.write(batch_of(*(candle(n) for n in range(2_000))))
    journal.write(batch_of(*(MarkPrice(PAIR, T0 + n * 3_000, 1.0, 1.0) for n in range(20_000))))
    used = journal.counts()["bytes"]

    def shrink_to(max_bytes: int) -> set[str]:
        tables = set()
        while sweep := over_budget(journal, max_bytes):
            assert sweep_out(journal, [sweep]) > 0
            tables.add(sweep.table)
        return tables

    assert shrink_to(int(used * 0.8)) == {"mark_price"}
    assert rows(path, "SELECT count(*) FROM candle") == [(2_000,)]
    assert rows(path, "SELECT max(time) FROM mark_price") == [(T0 + 19_999 * 3_000,)]
    assert journal.counts()["bytes"] <= used * 0.8
    assert shrink_to(1) == {"mark_price", "candle"}
    assert rows(path, "SELECT count(*) FROM candle")[0][0] >= 60


def test_rejected_frames_are_bounded(journal: Journal, path: Path) -> None:
    for start in range(0, 2_500, 500):
        journal.write(
            batch_of(*(RejectedFrame(start + n, "why", b"x" * 9_000) for n in range(500)))
        )
    assert rows(path, "SELECT count(*), max(received), max(length(frame)) FROM dead_letter") == [
        (REJECTED_FRAMES_KEPT, 2_499, 4_096)
    ]


def test_documents_are_kept(path: Path) -> None:
    with Journal.open(path) as opened:
        assert opened.load_document("a") is None
        opened.save_document("a", b"one", 1)
        opened.save_document("a", b"two" * 1_000, 2)
    with Journal.open(path) as opened:
        assert opened.load_document("a") == (b"two" * 1_000, 2)


def test_newest_candles(journal: Journal) -> None:
    journal.write(batch_of(candle(0), candle(5), candle(0, timeframe="3m")))
    assert journal.newest_candles() == {(PAIR, "1m"): T0 + 5 * MINUTE, (PAIR, "3m"): T0}


def test_a_second_collector_is_refused(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalLockedError, match=f"process {os.getpid()}"):
        Journal.open(path)
    found = inspect(KIND, path)
    assert found is not None
    assert found.holder == str(os.getpid())
    journal.close()
    Journal.open(path).close()
    found = inspect(KIND, path)
    assert found is not None
    assert found.holder == ""


def test_a_lock_dies_with_its_process(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from marketfeed.journal.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    Journal.open(path).close()


def test_a_foreign_database_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE trades(id INTEGER)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(JournalForeignError, match="no journal of marketfeed"):
        Journal.open(path)
    assert path.read_bytes() == before


def test_a_newer_journal_is_refused(path: Path) -> None:
    Journal.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE meta")
        db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    for open_it in (Journal.open, partial(inspect, KIND)):
        with pytest.raises(JournalNewerError, match="newer marketfeed"):
            open_it(path)


def test_a_damaged_journal_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal.open(path) as opened:
        opened.write(batch_of(*(candle(n) for n in range(3_000))))
    content = bytearray(path.read_bytes())
    content[8_192:40_960] = os.urandom(40_960 - 8_192)
    path.write_bytes(content)
    with Journal.open(path) as opened:
        assert opened.set_aside is not None
        assert opened.set_aside.read_bytes() == content
        assert opened.write(batch_of(candle())) == 1
    assert "set aside" in caplog.text


KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from marketfeed.journal.journal import KIND
from marketfeed.storage.database import Database
from tests.sweeps import sweep_out
from tests.sweeps import sweep_out

left = int(sys.argv[2])

def hook(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
Database.open(KIND, Path(sys.argv[1]), distrusted=True)
"""


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_a_kill_while_it_is_set_aside_brings_no_older_state_back(path: Path, renames: int) -> None:
    with Journal.open(path) as opened:
        opened.write(batch_of(*(candle(n) for n in range(5))))
    with Journal.open(path) as opened:
        opened.write(batch_of(*(candle(n) for n in range(5, 9))))
        # As a kill leaves it: the newest rows are in the -wal.
        left = {
            Path(f"{path}{suffix}"): Path(f"{path}{suffix}").read_bytes()
            for suffix in ("", "-wal", "-shm")
        }
    for file, content in left.items():
        file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_A_RENAME, str(path), str(renames)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    with Journal.open(path) as opened:
        # Before the first rename nothing has happened; after it, the file is gone as a whole.
        assert opened.row_counts()[schema.TABLE_CANDLE] == (9 if renames == 1 else 0)
        assert (opened.set_aside is not None) == (renames > 1)
    kept = {file.name.rpartition("Z")[2] for file in path.parent.glob("*.corrupt-*")}
    assert kept == (set() if renames == 1 else {"", "-wal", "-shm"})


@pytest.mark.parametrize("content", [b"not a database at all " * 100, os.urandom(5_000)])
def test_a_file_that_is_no_database_is_set_aside(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with Journal.open(path) as opened:
        assert opened.set_aside is not None
        assert opened.set_aside.read_bytes() == content


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    with Journal.open(path) as opened:
        assert opened.set_aside is None
        assert opened.write(batch_of(candle())) == 1


def test_a_torn_wal_keeps_what_was_committed(path: Path, tmp_path: Path) -> None:
    opened = Journal.open(path)
    for number in range(50):
        opened.write(batch_of(candle(number)))
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    wal = Path(f"{path}-wal").read_bytes()
    opened.close()
    Path(f"{copy}-wal").write_bytes(wal[: len(wal) - 1_000] + os.urandom(500))
    with Journal.open(copy) as recovered:
        assert recovered.set_aside is None
        kept = [t for (t,) in rows(copy, "SELECT open_time FROM candle ORDER BY 1")]
        assert kept == [T0 + n * MINUTE for n in range(len(kept))]
        assert len(kept) >= 48


def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="journal"):
        Journal.open(tmp_path / "file" / "journal.db")
    (tmp_path / "directory").mkdir()
    with pytest.raises(JournalError, match="journal"):
        Journal.open(tmp_path / "directory")


def test_a_commit_is_full_sync_in_wal_mode(journal: Journal) -> None:
    db = journal.db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
