"""Copies and pickles of a reader, frames in files, calls from signal handlers, and numpy's numbers."""

import copy
import json
import os
import pickle
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from stored import M3, OTHER, PAIR, START_MS, candle, entry, store, url

from reader import MarketReader
from reader.connecting import Connecting
from reader.errors import ArgumentError, ReaderError
from reader.stores.journal_connections import _GATE


@pytest.fixture
def reader(path):
    store(path, entry(), entry(OTHER), [candle(START_MS + n * M3) for n in (0, 1, 4)])
    with MarketReader.connect(url(path)) as made:
        yield made


def opens(reader: MarketReader) -> int:
    return len(reader.get_ohlcv(PAIR, "3m", max_age_s=None))


def test_attrs_of_a_frame_with_a_gap_are_json(reader):
    frame = reader.get_ohlcv(PAIR, "3m", max_age_s=None)
    assert frame.attrs["missing"] == [START_MS + 2 * M3, START_MS + 3 * M3]
    assert json.loads(json.dumps(frame.attrs, allow_nan=False)) == frame.attrs
    empty = reader.get_ohlcv(OTHER, "3m", max_age_s=None)
    assert empty.attrs["age_s"] is None
    json.dumps(empty.attrs, allow_nan=False)


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_a_frame_with_a_gap_is_saved_to_a_file(reader, tmp_path, kind):
    pytest.importorskip("pyarrow")
    frame = reader.get_ohlcv(PAIR, "3m", max_age_s=None)
    getattr(frame, f"to_{kind}")(tmp_path / "frame")
    assert len(getattr(__import__("pandas"), f"read_{kind}")(tmp_path / "frame")) == 3


def test_a_copy_and_a_pickle_connect_anew(reader, tmp_path, monkeypatch):
    saved = pickle.dumps(reader)
    monkeypatch.chdir(tmp_path.parent)
    for again in (pickle.loads(saved), copy.deepcopy(reader), copy.copy(reader)):  # noqa: S301
        with again:
            assert again._store is not reader._store
            assert opens(again) == 3
    assert opens(reader) == 3, "the first one stays open"


def test_a_relative_address_is_pickled_as_the_place_it_was(path, tmp_path, monkeypatch):
    store(path, entry(), [candle(START_MS)])
    monkeypatch.chdir(path.parent)
    saved = pickle.dumps(MarketReader.connect(f"sqlite:///{path.name}"))
    monkeypatch.chdir("/")
    with pickle.loads(saved) as again:  # noqa: S301
        assert opens(again) == 1


def test_a_token_that_was_an_argument_is_not_pickled(monkeypatch):
    for name in ("MARKETFEED_TOKEN", "MARKETFEED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    made = Connecting.checked("http://influxdb.example:8086", "invented-secret", None, None, None)
    saved = pickle.dumps(made)
    assert b"invented-secret" not in saved
    assert "invented-secret" not in repr(made)
    again = pickle.loads(saved)  # noqa: S301
    with pytest.raises(ArgumentError, match="set MARKETFEED_TOKEN or MARKETFEED_TOKEN_FILE"):
        again.open()
    assert pickle.loads(pickle.dumps(again)) == again, "nor is that forgotten"  # noqa: S301


@pytest.mark.parametrize("forks", [False, True])
def test_a_signal_handler_asks_in_the_middle_of_a_query(reader, forks):
    """What it interrupted goes on, with the answer that it would have had."""
    seen = []

    def handle(*_):
        seen.append(opens(reader))
        if forks and len(seen) == 1:
            pid = os.fork()
            if pid == 0:
                os._exit(0 if opens(reader) == 3 else 1)
            seen.append(os.waitpid(pid, 0)[1])

    def question(db: sqlite3.Connection) -> int:
        rows = db.execute("SELECT open_time FROM candle")
        first = rows.fetchone()
        os.kill(os.getpid(), signal.SIGUSR1)
        return len([first, *rows])

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert reader._store._file.ask(question) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(seen[:1]) == {3}
    assert not forks or seen[1] == 0


def test_queries_pass_side_by_side_and_a_fork_waits_for_them(reader):
    """Two threads are inside at once; a fork comes when both have left."""
    both, forked = threading.Barrier(2, timeout=30), []

    def question(_db: sqlite3.Connection) -> bool:
        both.wait()
        return bool(forked)

    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(reader._store._file.ask, question) for _ in range(2)]
        _GATE.shut()
        try:
            forked.append(True)
            assert not _GATE._inside
        finally:
            _GATE.open()
        # A query that came after the fork has had its partner there, too: neither was alone.
        assert len({answer.result(30) for answer in answers}) == 1


def test_a_closed_reader_refuses_in_every_thread(reader):
    opens(reader)
    reader.close()
    with ThreadPoolExecutor(1) as threads, pytest.raises(ReaderError, match="closed"):
        threads.submit(opens, reader).result(30)


def test_numbers_of_numpy_are_numbers(reader):
    frame = reader.get_ohlcv(
        PAIR, "3m", np.int64(2), since=np.int64(START_MS), until=np.uint64(START_MS + 2 * M3),
        strict=np.bool_(True), include_forming=np.bool_(False), max_age_s=np.float32(30),
    )  # fmt: skip
    assert len(frame) == 2
    assert reader.wait_closed("3m", np.int64(START_MS), np.float32(0)) == (OTHER,)
    assert reader.ready(PAIR, "3m", np.int32(1)) in (True, False)
    assert not reader.wait_change(reader.version(), np.int64(0))
    with pytest.raises(ArgumentError):
        reader.get_ohlcv(PAIR, "3m", max_age_s=np.float64("nan"))
