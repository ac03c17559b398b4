"""A journal of a newer version: read where its `meta` lets this reader in, by one that is open, too."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stored import M1, M3, OTHER, PAIR, START_MS, Child, Writer, candle, entry, store, url

from marketfeed.records import FundingRate, FundingSettled, MarkPrice
from reader import MarketReader, StoreUnavailableError
from tests.newer_version import SILENT, VERSION, grow, spoil_meta, upgrade

RECORDS = (
    entry(),
    entry(OTHER),
    [candle(START_MS + n * M3, pair) for n in range(-20, 0) for pair in (PAIR, OTHER)],
    candle(START_MS, closed=False),
    [MarkPrice(PAIR, START_MS - M1 + n * 1_000, 100.0 + n, 99.0) for n in range(60)],
    [FundingRate(pair, START_MS - M1, 0.0001, START_MS + M3) for pair in (PAIR, OTHER)],
    FundingSettled(PAIR, START_MS - M3, 0.0002, 100.0),
)


def connect(path: Path) -> MarketReader:
    return MarketReader.connect(url(path), now_ms=lambda: START_MS)


def everything(reader: MarketReader) -> list[Any]:
    """What each public question answers."""
    frame = reader.get_ohlcv(PAIR, "3m", include_forming=True)
    return [
        frame.to_csv(),
        dict(frame.attrs),
        reader.get_ohlcv(PAIR, "15m").to_csv(),
        {pair: one.to_csv() for pair, one in reader.get_ohlcv_many([PAIR, OTHER], "3m").items()},
        reader.newest("3m"),
        reader.wait_closed("3m", START_MS - M3, timeout_s=0.0),
        reader.get_mark_price(PAIR),
        reader.get_mark_candles(
            PAIR, "1m", since=pd.Timestamp(START_MS - M1, unit="ms", tz="UTC")
        ).to_csv(),
        reader.get_funding_rate(PAIR),
        reader.get_all_pairs_funding_rates(),
        reader.funding_frame().to_csv(),
        reader.get_funding_history(
            PAIR, since=pd.Timestamp(START_MS - M3, unit="ms", tz="UTC")
        ).to_csv(),
        reader.pairs(),
    ]


@pytest.mark.parametrize("meta", [(VERSION, 2, 2), (VERSION, 1, 2), (VERSION, 2, 5)])
def test_every_question_is_answered_as_before(path: Path, meta: tuple[int, int, int]) -> None:
    store(path, *RECORDS)
    with connect(path) as reader:
        before = everything(reader)
    upgrade(path, meta)
    with connect(path) as reader:
        assert everything(reader) == before
        assert reader.version() == reader.version()


def test_one_that_asks_for_newer_readers_is_refused(path: Path) -> None:
    store(path, *RECORDS)
    with connect(path) as reader:
        upgrade(path, (VERSION, 5, 5))
        for ask in (lambda: connect(path), reader.pairs, lambda: reader.get_ohlcv(PAIR, "3m")):
            with pytest.raises(StoreUnavailableError) as caught:
                ask()
            assert str(caught.value) == (
                f"journal {path} has schema version 4: reading it takes version 5, this reader is "
                "version 3: it was written by a newer marketfeed; install that version here too"
            )


@pytest.mark.parametrize("silent", SILENT)
def test_a_meta_that_says_nothing_asks_for_the_files_own_version(path: Path, silent: str) -> None:
    upgrade(store(path, *RECORDS), then=silent)
    with pytest.raises(StoreUnavailableError, match="reading it takes version 4, this reader is"):
        connect(path)


def test_a_meta_that_cannot_be_read_is_damage_not_a_version(path: Path) -> None:
    spoil_meta(upgrade(store(path, *RECORDS)))
    with pytest.raises(StoreUnavailableError, match="is damaged"):
        connect(path)


@pytest.fixture
def upgrader(path: Path) -> Iterator[Child]:
    """Another process, which upgrades the journal at `path` step by step."""
    opened: list[sqlite3.Connection] = []

    def begin(meta: tuple[int, int, int]) -> None:
        opened.append(sqlite3.connect(path, isolation_level=None, timeout=180.0))
        opened[-1].execute("BEGIN EXCLUSIVE")
        grow(opened[-1], meta)

    def commit() -> None:
        opened[-1].execute("COMMIT")

    with Child(begin=begin, commit=commit, close=lambda: opened.pop().close()) as child:
        yield child


def test_one_that_is_open_while_a_stopped_journal_is_upgraded(path: Path, upgrader: Child) -> None:
    with Writer(path) as writer:
        store(path, *RECORDS)
        with connect(path) as reader:
            before = everything(reader)
            upgrader("begin", (VERSION, 2, 2))
            assert everything(reader) == before
            upgrader("commit")
            assert everything(reader) == before
            upgrader("close")
            assert everything(reader) == before
            # The collector of this version goes on with it, and the reader sees what it writes.
            version = reader.version()
            writer("open")
            assert everything(reader) == before
            writer("write", candle(START_MS))
            assert reader.version() != version
            assert len(reader.get_ohlcv(PAIR, "3m")) == 21
            writer("stop")
            assert len(reader.get_ohlcv(PAIR, "3m")) == 21


def test_one_that_is_open_while_a_journal_is_upgraded_beneath_its_writer(
    path: Path, upgrader: Child
) -> None:
    with Writer(path) as writer:
        writer("open")
        writer("write", *RECORDS)
        with connect(path) as reader:
            assert len(reader.get_ohlcv(PAIR, "3m")) == 20
            upgrader("begin", (VERSION, 2, 2))
            assert len(reader.get_ohlcv(PAIR, "3m")) == 20
            upgrader("commit")
            assert len(reader.get_ohlcv(PAIR, "3m")) == 20
            # The statements that it has prepared already name their columns, too.
            writer("write", candle(START_MS), MarkPrice(PAIR, START_MS, 200.0, 201.0))
            assert len(reader.get_ohlcv(PAIR, "3m")) == 21
            assert reader.get_mark_price(PAIR) == 200.0
            upgrader("close")


def test_one_that_is_open_is_refused_when_it_may_read_no_more(path: Path, upgrader: Child) -> None:
    store(path, *RECORDS)
    with connect(path) as reader:
        upgrader("begin", (VERSION, 5, 5))
        assert len(reader.get_ohlcv(PAIR, "3m")) == 20
        upgrader("commit")
        with pytest.raises(StoreUnavailableError, match="reading it takes version 5"):
            reader.get_ohlcv(PAIR, "3m")
        upgrader("close")
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE meta SET readers_from = 2")
        assert len(reader.get_ohlcv(PAIR, "3m")) == 20


def test_half_an_upgrade_read_from_an_immutable_file_is_no_refusal(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(path, *RECORDS)
    half, whole = tmp_path / "half.db", tmp_path / "whole.db"
    for copy in (half, whole):
        shutil.copy(path, copy)
    with contextlib.closing(sqlite3.connect(half)) as db:
        db.execute(f"PRAGMA user_version = {VERSION}")
    upgrade(whole)
    with connect(path) as reader:
        assert reader._store._file._idle[-1].opened.wal is None
        # As while the pages of an upgrade are copied into the file: the version is there, `meta` is not.
        path.write_bytes(half.read_bytes())
        pauses: list[float] = []

        def go_on(seconds: float) -> None:
            pauses.append(seconds)
            path.write_bytes(whole.read_bytes())

        monkeypatch.setattr("reader.stores.sqlite.time.sleep", go_on)
        assert len(reader.pairs()) == 2
        assert len(pauses) == 1
