"""Killed anywhere in a migration: the file is wholly of the old version or of the new one, with every row."""

import collections
import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.errors import JournalError
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.backup import back_up
from marketfeed.storage.database import convert
from marketfeed.storage.reading import inspect
from reader import MarketReader
from tests.coverage_check import check_coverage
from tests.older_versions import (
    CANDLES,
    DROPPED,
    ETH,
    M1,
    PAIR,
    T0,
    content,
    journal,
    journal_3,
    ledger,
    shape,
)
from tests.older_versions import version as version_of
from tests.storage.migration_kills import OPENED, Killer, points
from tests.sweeps import delete

POINTS = int(os.environ.get("KILLS", "10"))
"""Of each migration; `make proofs` takes more than 100."""
NOW = T0 + (CANDLES // 2) * M1 + 30_000


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as running:
        yield running


def tell(ended: collections.Counter[int]) -> None:
    sys.stdout.write(f"of which version the file was then: {sorted(ended.items())}\n")


def answers(reader: MarketReader) -> tuple[object, ...]:
    """What a bot asks of the store."""
    frame = reader.get_ohlcv(PAIR, "1m", limit=50, max_age_s=None)
    return (
        tuple(frame["close"]),
        float(reader.get_mark_price(PAIR, max_age_s=None)),
        float(reader.get_funding_rate(PAIR, max_age_s=None)),
        tuple(tuple(info) for info in reader.pairs()),
    )


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_a_journal_under_a_reader(tmp_path: Path, killer: Killer, before: int, after: int) -> None:
    path = journal(tmp_path / "journal.db", 2)
    convert(KIND, path, before)
    held, shapes = content(path), {before: shape(path)}
    copy = shutil.copy(path, tmp_path / "copy.db")
    convert(KIND, Path(copy), after)
    shapes[after] = shape(Path(copy))
    ended: collections.Counter[int] = collections.Counter()
    with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as reader:
        answered = answers(reader)
        assert {pair for pair, *_ in answered[3]} >= {PAIR, ETH, DROPPED}
        for point in points(POINTS):
            assert killer.migrate("journal", after, point, path) == -signal.SIGKILL
            assert answers(reader) == answered
            found = inspect(KIND, path, writing=True)
            assert found is not None
            assert version_of(path) == found.version
            assert shape(path) == shapes[found.version]
            assert content(path) == held
            with Journal.open(path) as opened:
                assert (opened.version, opened.set_aside) == (found.version, None)
                assert opened.next_seq == held["sequence"][0][1]
            assert answers(reader) == answered
            ended[found.version] += 1
            # The whole way, and the way back, beside the same reader.
            convert(KIND, path, after)
            assert content(path) == held
            assert answers(reader) == answered
            convert(KIND, path, before)
    tell(ended)
    assert set(ended) <= {before, after}
    assert ended[before] >= POINTS * 4 // 5


def test_a_journal_from_version_1(tmp_path: Path, killer: Killer) -> None:
    first = journal(tmp_path / "first.db", 1)
    held = content(first)
    ended: collections.Counter[int] = collections.Counter()
    for number, point in enumerate(points(POINTS)):
        path = tmp_path / str(number) / "journal.db"
        path.parent.mkdir()
        shutil.copy(first, path)
        assert killer.migrate("journal", 3, point, path) == -signal.SIGKILL
        at = version_of(path)
        assert at in {1, 3}
        assert content(path) == held
        # By the collector's start it is of version 2 then, by the command of 3.
        with Journal.open(path) as opened:
            assert (opened.version, opened.set_aside) == (max(at, 2), None)
        assert content(path) == held
        convert(KIND, path, 3)
        assert content(path) == held
        with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as reader:
            assert len(reader.get_ohlcv(PAIR, "1m", limit=50, max_age_s=None)) == 50
        ended[at] += 1
    tell(ended)
    assert ended[1] >= POINTS * 4 // 5


def test_a_journal_that_gains_what_its_version_has_by_now(tmp_path: Path, killer: Killer) -> None:
    """Opened by a writer that knows `taker_buy_quote_volume`, under a reader, and taken back by hand."""
    first = journal_3(tmp_path / "first.db")
    held, before = content(first), shape(first)
    copy = Path(shutil.copy(first, tmp_path / "copy.db"))
    Journal.open(copy).close()
    after = shape(copy)
    assert after != before
    ended: collections.Counter[int] = collections.Counter()
    for number, point in enumerate(points(POINTS)):
        path = tmp_path / str(number) / "journal.db"
        path.parent.mkdir()
        shutil.copy(first, path)
        with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as reader:
            answered = answers(reader)
            assert killer.migrate("journal", OPENED, point, path) == -signal.SIGKILL
            assert answers(reader) == answered
            assert version_of(path) == 3
            has_grown = shape(path) == after
            assert has_grown or shape(path) == before
            assert content(path) == held
            # Killed on the way to version 2, and taken there.
            assert killer.migrate("journal", OPENED, "none", path) == 0
            assert killer.migrate("journal", 2, point, path) == -signal.SIGKILL
            assert answers(reader) == answered
            convert(KIND, path, 2)
            assert content(path) == held
            convert(KIND, path, 3)
            assert (shape(path), content(path)) == (after, held)
            assert answers(reader) == answered
        ended[has_grown] += 1
    tell(ended)
    # Little is read before it grows: no check runs at the opening.
    assert ended[False] >= POINTS // 3


def test_what_is_promised_is_whole_or_gone(tmp_path: Path, killer: Killer) -> None:
    """Killed on the way to version 2, which has no coverage, and on the way to 3, where it begins anew."""
    path = journal(tmp_path / "journal.db", 2)
    convert(KIND, path, 3)
    promises = [Promise(pair, "1m", NOW, 90 * M1) for pair in (PAIR, ETH)]
    ended: collections.Counter[int] = collections.Counter()
    for point in points(POINTS):
        with Journal.open(path) as opened:
            opened.promise(promises)
            opened.look_through([(PAIR, "1m")], 50)
            delete(opened, "candle", 1, T0 + CANDLES // 4 * M1)
            before = dict(opened.coverage)
        assert check_coverage(path).mistakes == []
        assert killer.migrate("journal", 2, point, path) == -signal.SIGKILL
        at = version_of(path)
        if at == 3:
            checked = check_coverage(path)
            assert (checked.trusted, checked.series, checked.mistakes) == (True, 2, [])
            with Journal.open(path) as opened:
                assert dict(opened.coverage) == before
            convert(KIND, path, 2)
        assert killer.migrate("journal", 3, point, path) == -signal.SIGKILL
        convert(KIND, path, 3)
        assert check_coverage(path) == (True, 0, 0, 0, 0, [])
        ended[at] += 1
    tell(ended)
    assert ended[3] >= POINTS * 4 // 5


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_ledger_under_a_reader(tmp_path: Path, killer: Killer, before: int, after: int) -> None:
    path = ledger(tmp_path / "ledger.db")
    convert(LEDGER, path, before)
    held, shapes = content(path), {before: shape(path)}
    copy = shutil.copy(path, tmp_path / "copy.db")
    convert(LEDGER, Path(copy), after)
    shapes[after] = shape(Path(copy))
    ended: collections.Counter[int] = collections.Counter()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        text = "SELECT window, pair, tag, state, price FROM forwarded ORDER BY window"
        answered = reader.execute(text).fetchall()
        for point in points(POINTS):
            assert killer.migrate("ledger", after, point, path) == -signal.SIGKILL
            assert reader.execute(text).fetchall() == answered
            at = version_of(path)
            assert shape(path) == shapes[at]
            assert content(path) == held
            ended[at] += 1
            convert(LEDGER, path, after)
            assert content(path) == held
            assert reader.execute(text).fetchall() == answered
            convert(LEDGER, path, before)
    tell(ended)
    assert set(ended) <= {before, after}
    assert ended[before] >= POINTS * 4 // 5
    with Ledger.open(path) as opened:
        assert (opened.version, opened.set_aside, opened.loss) == (2, None, "")


def test_a_reader_that_asks_all_the_time(tmp_path: Path, killer: Killer) -> None:
    """Whatever comes in between two of its statements: another version, the first -wal, the last one gone."""
    path = journal(tmp_path / "journal.db", 2)
    asked = 0
    over = threading.Event()

    def migrate() -> None:
        try:
            for turn in range(POINTS):
                for version in (3, 2):
                    assert killer.migrate("journal", version, "none", path) == 0
                    point = f"{(turn + 0.5) / POINTS:.4f}"
                    assert killer.migrate("journal", 5 - version, point, path) == -signal.SIGKILL
        finally:
            over.set()

    with (
        MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as reader,
        ThreadPoolExecutor(1) as thread,
    ):
        answered = answers(reader)
        migrating = thread.submit(migrate)
        while not over.is_set():
            assert answers(reader) == answered
            asked += 1
        migrating.result()
        assert answers(reader) == answered
    assert asked > POINTS


def test_a_restored_backup_that_was_never_opened(tmp_path: Path, killer: Killer) -> None:
    """It is not in WAL mode: a reader could take half a migration for a file that nobody writes."""
    original = journal(tmp_path / "original.db", 2)
    held = content(original)
    path = tmp_path / "journal.db"
    back_up(KIND, original, path, lambda *_: None)
    with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as reader:
        answered = answers(reader)
        for point in ("0.5000", "0.9500"):
            assert killer.migrate("journal", 3, point, path) == -signal.SIGKILL
            assert answers(reader) == answered
            found = inspect(KIND, path)
            assert found is not None
            assert found.version == 2
            with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: NOW) as other:
                assert answers(other) == answered
        assert content(path) == held
        assert killer.migrate("journal", 3, "none", path) == 0
        assert answers(reader) == answered
    assert (version_of(path), content(path)) == (3, held)


def test_a_lock_is_respected_and_is_free_after_a_kill(tmp_path: Path, killer: Killer) -> None:
    path = journal(tmp_path / "journal.db", 2)
    with Journal.open(path):
        # 1: refused, with nothing changed.
        assert killer.migrate("journal", 3, "none", path) == 1
    assert version_of(path) == 2
    assert killer.migrate("journal", 3, "0.5000", path) == -signal.SIGKILL
    with contextlib.suppress(JournalError):
        Journal.open(path).close()
    assert killer.migrate("journal", 3, "none", path) == 0
    assert version_of(path) == 3
