"""Which time a reader goes by: readers whose wall clock is wrong, beside a living and a dead collector."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stored import M1, PAIR, candle, entry, url

from marketfeed import clock as collectors
from marketfeed.journal.batch import Batch, Stamp
from marketfeed.journal.journal import Journal
from reader import MarketReader, host
from reader.clock import ReaderClock, StoreClock
from reader.errors import StaleDataError

sys.path.append(str(Path(__file__).parents[1] / "faults"))

AGES_S = {"living": 0, "dead": 20 * 60}
ASKS = f"""
import logging, sys
from reader import MarketReader
from reader.errors import StaleDataError
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with MarketReader.connect(sys.argv[1]) as reader:
    try:
        print("age", reader.get_ohlcv({PAIR!r}, "1m").attrs["age_s"])
    except StaleDataError:
        print("stale")
"""


def written(path: Path, *, closed_s_ago: float, boot: str | None = None) -> None:
    """A collector's journal whose newest candle closed, and whose last commit was, so long ago."""
    now_ms = time.time_ns() // 1_000_000 - int(closed_s_ago * 1000)
    open_ms = now_ms // M1 * M1 - M1
    batch = Batch()
    batch.extend(
        [entry(timeframes=("1m",)), *(candle(open_ms - n * M1, PAIR, "1m") for n in range(3))]
    )
    boot_ms = int(collectors.boottime_s() * 1000) - int(closed_s_ago * 1000)
    batch.stamp = Stamp(now_ms, collectors.boot_place() if boot is None else boot, boot_ms)
    with Journal.open(path) as journal:
        journal.write(batch)


def asked(path: Path, offset_s: int) -> str:
    """What a process says whose wall clock is so far from this one's."""
    import proc_tools  # noqa: PLC0415 - of the faults' tests

    try:
        library = proc_tools.faketime().path
    except proc_tools.ToolError as error:
        pytest.skip(str(error))
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME": f"{offset_s:+d}",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASKS, url(path)],
        capture_output=True, text=True, check=True, timeout=120, env=environment,
    )  # fmt: skip
    return done.stdout


def test_reader_and_collector_name_the_boot_alike() -> None:
    assert host.boot_place() == collectors.boot_place() != ""
    before = host.boot_ms()
    assert before <= collectors.boottime_s() * 1000 <= host.boot_ms() + 1


@pytest.mark.long(15)
@pytest.mark.parametrize("offset_s", [-3600, -600, -30, 600])
def test_a_wrong_wall_clock_changes_no_age(path: Path, offset_s: int) -> None:
    written(path, closed_s_ago=AGES_S["living"])
    said = asked(path, offset_s)
    assert "age" in said, said
    assert "stale" not in said
    dead = path.with_name("dead.db")
    written(dead, closed_s_ago=AGES_S["dead"])
    assert "stale" in asked(dead, offset_s)


@pytest.mark.long(5)
@pytest.mark.parametrize("offset_s", [-3600])
def test_of_another_boot_data_from_the_future_is_a_warning(path: Path, offset_s: int) -> None:
    written(path, closed_s_ago=AGES_S["dead"], boot="another")
    assert "this host's clock is behind" in asked(path, offset_s)


def test_a_journal_without_a_stamp_is_read_by_the_wall(path: Path) -> None:
    written(path, closed_s_ago=0)
    with Journal.open(path) as journal:
        journal.db.execute("UPDATE sequence SET clock_ms = NULL")
    with MarketReader.connect(url(path)) as reader:
        assert reader._store.clock() is None
        assert reader.get_ohlcv(PAIR, "1m").attrs["age_s"] is not None


def test_a_callers_clock_stays_as_it_is(path: Path) -> None:
    written(path, closed_s_ago=0)
    far_ms = time.time_ns() // 1_000_000 + 10 * 3_600_000
    with (
        MarketReader.connect(url(path), now_ms=lambda: far_ms) as reader,
        pytest.raises(StaleDataError),
    ):
        reader.get_ohlcv(PAIR, "1m")


def server(offset_ms: int) -> ReaderClock:
    """The clock of a reader whose server's clock is so far from this host's."""
    wall_ms = host.wall_ms()
    told = StoreClock(wall_ms + offset_ms - host.boot_ms(), wall_ms + offset_ms, 5_000)
    return ReaderClock(lambda: told)


def off_ms(clock: ReaderClock) -> int:
    return clock.now_ms() - host.wall_ms()


@pytest.mark.parametrize("offset_ms", [-3_600_000, -30_000, 600_000])
def test_a_servers_clock_counts_where_it_differs(offset_ms: int) -> None:
    assert abs(off_ms(server(offset_ms)) - offset_ms) < 20_000


def test_a_servers_clock_that_is_near_is_not_finer() -> None:
    clock = server(-4_000)
    assert abs(off_ms(clock)) < 2_000


def test_a_servers_clock_that_is_behind_its_data_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = server(-600_000)
    clock.now_ms()
    clock.saw([None, host.wall_ms()])
    with caplog.at_level(logging.WARNING):
        assert abs(off_ms(clock)) < 20_000
    assert "behind its data" in caplog.text
