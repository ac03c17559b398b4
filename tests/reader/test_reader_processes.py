"""One reader in many threads, across forks, and waiting for the collector."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import M1, M3, OTHER, PAIR, START_MS, Child, Writer, candle, entry, store, url, write

from marketfeed.journal.journal import Journal
from reader import MarketReader, StaleDataError, UnknownTimeframeError
from reader.errors import ArgumentError


def connect(path: Path) -> MarketReader:
    return MarketReader.connect(url(path), now_ms=lambda: START_MS)


def in_threads(*works: Callable[[], None]) -> None:
    """Run `works` at once, each in a thread; raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- threads ----------------------------------------------------------------------------------------


def test_one_reader_in_many_threads_beside_a_writer(path: Path) -> None:
    with Journal.open(path) as journal:
        write(journal, [entry(), entry(OTHER)], [candle(START_MS, pair) for pair in (PAIR, OTHER)])
        done = threading.Event()

        def writing() -> None:
            try:
                for number in range(1, 60):
                    write(journal, [candle(START_MS + number * M3, pair) for pair in (PAIR, OTHER)])
            finally:
                done.set()

        with connect(path) as reader:

            def reading() -> None:
                seen = 0
                while not done.is_set():
                    frames = reader.get_ohlcv_many([PAIR, OTHER], "3m")
                    assert len(frames[PAIR]) == len(frames[OTHER]) >= seen
                    assert frames[PAIR].attrs["missing"] == []
                    seen = len(frames[PAIR])
                    assert reader.newest("3m")[PAIR] >= START_MS + (seen - 1) * M3

            in_threads(writing, *[reading] * 4)
            assert len(reader.get_ohlcv(PAIR, "3m")) == 60


def test_threads_of_two_readers_of_two_journals(tmp_path: Path) -> None:
    paths = [store(tmp_path / f"{n}.db", entry(), [candle(START_MS)] * n) for n in (1, 2)]
    with connect(paths[0]) as one, connect(paths[1]) as two:

        def reading() -> None:
            for reader in (one, two) * 50:
                assert len(reader.get_ohlcv(PAIR, "3m")) == 1

        in_threads(*[reading] * 3)


# --- forks ------------------------------------------------------------------------------------------


def test_a_reader_goes_on_in_parent_and_child(path: Path) -> None:
    with Writer(path) as writer:
        writer("open")
        writer("write", entry(), candle(START_MS))
        with connect(path) as reader:

            def counted() -> int:
                return len(reader.get_ohlcv(PAIR, "3m"))

            assert counted() == 1
            with Child(count=counted) as child:
                for number in range(1, 6):
                    assert (child("count"), counted()) == (number, number)
                    writer("write", candle(START_MS + number * M3))
            assert counted() == 6


def test_a_child_holds_locks_of_its_own(path: Path) -> None:
    """SQLite in a child believes in the locks of its parent unless the connection was closed first.

    The sign: a collector that stops must leave the -wal to a reader that is connected.
    """
    with Writer(path) as writer:
        writer("open")
        writer("write", entry(), candle(START_MS))
        with connect(path) as reader:
            assert len(reader.pairs()) == 1
            with Child(pairs=reader.pairs) as child:
                reader.close()
                assert len(child("pairs")) == 1
                writer("write", candle(START_MS + M3))
                writer("stop")
                assert Path(f"{path}-wal").exists()
                assert len(child("pairs")) == 1


def test_forks_while_threads_read(path: Path) -> None:
    """A child born while a thread is inside SQLite must not find its mutexes locked for ever."""
    store(path, entry(), [candle(START_MS + n * M3) for n in range(500)])
    done = threading.Event()
    with connect(path) as reader:

        def reading() -> None:
            while not done.is_set():
                assert len(reader.get_ohlcv(PAIR, "3m")) == 500

        def forking() -> None:
            try:
                for _ in range(20):
                    with Child(count=lambda: len(reader.get_ohlcv(PAIR, "3m"))) as child:
                        assert child("count") == 500
            finally:
                done.set()

        in_threads(forking, reading, reading)


# --- waiting ----------------------------------------------------------------------------------------


def test_wait_closed_returns_when_the_last_pair_is_there(path: Path) -> None:
    with Writer(path) as writer:
        writer("open")
        writer("write", [entry(), entry(OTHER)], candle(START_MS))
        with connect(path) as reader:
            assert reader.wait_closed("3m", START_MS, 0) == (OTHER,)
            answers: list[tuple[str, ...]] = []
            thread = threading.Thread(
                target=lambda: answers.append(reader.wait_closed("3m", START_MS, 30))
            )
            thread.start()
            writer("write", candle(START_MS + M3, OTHER))
            writer("write", candle(START_MS, OTHER, "1m"))
            assert not answers
            writer("write", candle(START_MS, OTHER))
            thread.join()
            assert answers == [()]


def test_wait_closed_names_the_missing_ones_in_the_end(path: Path) -> None:
    third = "SOL/USDT:USDT"
    store(path, [entry(pair) for pair in (third, PAIR, OTHER)], candle(START_MS, OTHER))
    with connect(path) as reader:
        started_s = time.monotonic()
        assert reader.wait_closed("3m", START_MS, 0.05) == (PAIR, third)
        assert time.monotonic() - started_s >= 0.05
        assert reader.wait_closed("3m", START_MS + M3, 0) == (PAIR, OTHER, third)


def test_wait_closed_waits_for_live_pairs_only(path: Path) -> None:
    store(
        path,
        entry("ENDED/USDT:USDT", ended_ms=START_MS),
        entry("ENDS/USDT:USDT", ended_ms=START_MS + M3 - 1),
        entry("ENDSLATER/USDT:USDT", ended_ms=START_MS + M3),
        entry("NEW/USDT:USDT", listed_ms=START_MS + M3),
        entry("NEWER/USDT:USDT", listed_ms=START_MS + M3 - 1),
        entry("HOURLY/USDT:USDT", ("1h",)),
        entry(),
        candle(START_MS),
    )
    with connect(path) as reader:
        assert reader.wait_closed("3m", START_MS, 0) == ("ENDSLATER/USDT:USDT", "NEWER/USDT:USDT")
        with pytest.raises(UnknownTimeframeError):
            reader.wait_closed("7m", START_MS, 0)
        with pytest.raises(ArgumentError):
            reader.wait_closed("1h", START_MS + M3, 0)


def test_wait_closed_without_any_pair_does_not_say_that_all_are_there(path: Path) -> None:
    store(path, entry(ended_ms=START_MS))
    with connect(path) as reader, pytest.raises(StaleDataError, match="every pair has ended"):
        reader.wait_closed("3m", START_MS, 0)


def test_wait_closed_of_a_resampled_timeframe_waits_for_the_last_part(path: Path) -> None:
    minutes = [candle(START_MS + n * M1, OTHER, "1m") for n in range(2)]
    store(path, entry(), entry(OTHER, ("1m",)), candle(START_MS), minutes)
    with connect(path) as reader:
        assert reader.wait_closed("3m", START_MS, 0) == (OTHER,)
        store(path, candle(START_MS + 2 * M1, OTHER, "1m"))
        assert reader.wait_closed("3m", START_MS, 0) == ()


def test_newest(path: Path) -> None:
    store(
        path,
        [entry(), entry(OTHER, ("1m",)), entry("NONE/USDT:USDT"), entry("DAY/USDT:USDT", ("1d",))],
        [candle(START_MS + n * M3) for n in range(4)],
        [candle(START_MS + n * M1, OTHER, "1m") for n in range(8)],
    )
    with connect(path) as reader:
        assert reader.newest("3m") == {PAIR: START_MS + 3 * M3, OTHER: START_MS + M3}
        assert reader.newest("1m") == {OTHER: START_MS + 7 * M1}
        with pytest.raises(UnknownTimeframeError):
            reader.newest("7m")
    store(path.with_name("bare.db"))
    with connect(path.with_name("bare.db")) as reader:
        assert reader.newest("3m") == {}


def test_wait_change(path: Path) -> None:
    with Writer(path) as writer:
        writer("open")
        writer("write", entry())
        with connect(path) as reader:
            version = reader.version()
            assert reader.wait_change(version, 0) is False
            writer("write", candle(START_MS))
            assert reader.wait_change(version, 30) is True
            assert reader.wait_change(reader.version(), 0) is False
