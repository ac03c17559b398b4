"""The disk is full, read-only, or returns nonsense; what the collector does then, and that it heals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from proc_commands import (
    TIMEOUT_S,
    Collecting,
    Exchange,
    exchange,
    run_command,
    run_marketfeed,
    unlike,
    write_config,
)
from proc_disk import SmallDisk, on_small_disk
from scoreboard import Row, Scoreboard

from marketfeed.ingest.intake import MAX_PENDING_RECORDS
from tests.waiting import wait_until

DISK_BYTES = 16 << 20
FLOOD = Path(__file__).with_name("disk_flood.py")
FLOOD_MARKS = MAX_PENDING_RECORDS + 80_000
FLOOD_DISK_BYTES = 400 << 20


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange")) as running:
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (directory := tmp_path / "disk").mkdir()
    return directory


class _Held:
    """A directory that is reached by a descriptor: also when the process whose mount it was has ended."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._fd)

    def copy(self, name: str, target: Path) -> Path:
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=self._fd), "rb") as file:
            target.write_bytes(file.read())
        return target

    def close(self) -> None:
        os.close(self._fd)


# --- full -----------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_and_heals(
    tmp_path: Path, disk: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, disk / "journal.db")
    command = [*on_small_disk(disk, DISK_BYTES), *run_command(config)]
    with Collecting(command, tmp_path / "run.log") as collector:
        wait_until(collector.is_delivering)
        small = SmallDisk(collector.process.pid, disk)
        first = venue.published_number()
        venue.wait_for_candles(6)
        small.fill()
        noticed_s = wait_until(lambda: collector.health().status == 503)
        assert "the journal cannot be written for" in str(collector.health().json["reasons"])
        before = collector.status()
        venue.wait_for_candles(18)
        full = collector.status()
        # It reads on, keeps everything, and is in no other trouble.
        assert full["frames"] > before["frames"] + 100
        assert full["journal"]["pending"] > before["journal"]["pending"]
        assert full["journal"]["commit_failures"] > before["journal"]["commit_failures"]
        assert full["overdue"] == {}
        assert [c["opened"] for c in full["connections"]] == [1]
        small.make_room()
        whole_s = wait_until(lambda: collector.health().status == 200)
        last = venue.published_number()
        venue.wait_for_candles(6)
        assert collector.status()["journal"]["records_given_up"] == {}
        with closing(_Held(small.path)) as held:
            assert collector.stop() == 0, collector.log
            path = held.copy("journal.db", tmp_path / "copy.db")
        published = [item for item in venue.published(first) if item.number <= last]
        assert len(published) > 18
        assert unlike(path, published) == []
    assert collector.log.count("journal cannot be written") == 1
    assert collector.log.count("journal writes again") == 1
    scoreboard.add(
        Row(
            fault="a full disk under the journal (wall seconds)",
            lost="nothing",
            noticed_after_s=noticed_s,
            whole_after_s=whole_s,
        )
    )


@pytest.mark.long(20)
def test_memory_is_bounded_while_the_disk_is_full(disk: Path, scoreboard: Scoreboard) -> None:
    done = subprocess.run(
        [*on_small_disk(disk, FLOOD_DISK_BYTES), sys.executable, FLOOD, disk, str(FLOOD_MARKS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)
    report = json.loads(done.stdout)
    # Mark prices gave way, the oldest of them; what went was counted, to the last one.
    assert set(report["given_up"]) == {"mark_price"}
    assert report["given_up"]["mark_price"] >= FLOOD_MARKS - MAX_PENDING_RECORDS
    assert report["marks_stored"] + report["given_up"]["mark_price"] == FLOOD_MARKS
    assert report["oldest_mark_stored"] > report["first_mark"]
    assert report["candles_stored"] == report["candles"] > 1_000
    # 300 MB at 500,000 records; twice that is a leak.
    assert report["rss_most"] - report["rss_before"] < 600 << 20
    scoreboard.add(
        Row(
            fault=f"a full disk and {FLOOD_MARKS:,} records meanwhile (wall seconds)",
            lost=f"{report['given_up']['mark_price']:,} mark prices, counted; no candle",
            whole_after_s=report["whole_after_s"],
        )
    )


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, disk: Path, venue: Exchange) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, disk / "journal.db")
    fill = f'cat /dev/zero > "{disk}/ballast" 2>/dev/null; exec "$@"'
    prefix = [*on_small_disk(disk, 1 << 20), "sh", "-c", fill, "sh"]
    done = run_marketfeed("run", "--config", config, prefix=prefix)
    assert done.returncode == 1
    assert f"marketfeed: journal {disk}/journal.db" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("room", [True, False], ids=["room in time", "no room"])
def test_a_stop_while_the_disk_is_full(
    tmp_path: Path, disk: Path, venue: Exchange, scoreboard: Scoreboard, *, room: bool
) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, disk / "journal.db")
    command = [*on_small_disk(disk, DISK_BYTES), *run_command(config)]
    with Collecting(command, tmp_path / "run.log") as collector:
        wait_until(collector.is_delivering)
        # Held open, so that it outlives the collector.
        small = SmallDisk(collector.process.pid, disk)
        with closing(_Held(small.path)) as held:
            small.fill()
            wait_until(lambda: collector.health().status == 503)
            first = venue.published_number()
            venue.wait_for_candles(12)
            last = first + 6
            collector.process.send_signal(signal.SIGTERM)
            collector.line("stopping")
            if room:
                held.unlink("ballast")
            assert collector.wait() == 0, collector.log
            if room:
                path = held.copy("journal.db", tmp_path / "copy.db")
                published = [item for item in venue.published(first) if item.number <= last]
                assert unlike(path, published) == []
                assert "unsaved" not in collector.log
            else:
                assert "stopping with records unsaved records=" in collector.log
    scoreboard.add(
        Row(
            fault=f"SIGTERM while the disk is full, {'then room' if room else 'no room'}",
            lost="nothing" if room else "what the disk did not take: counted in the log",
        )
    )


# --- not ours to write ---------------------------------------------------------------------------


def test_a_read_only_directory_at_the_start(
    tmp_path: Path, disk: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, disk / "journal.db")
    prefix = on_small_disk(disk, DISK_BYTES, ",ro")
    done = run_marketfeed("run", "--config", config, prefix=prefix)
    assert done.returncode == 1
    expected = f"marketfeed: journal {disk}/journal.db: Read-only file system\n"
    assert done.stderr.endswith(expected)
    assert "Traceback" not in done.stderr
    checked = run_marketfeed("check", "--config", config, "--json", prefix=prefix)
    assert checked.returncode == 1
    findings = json.loads(checked.stdout)["findings"]
    assert [f["verdict"] for f in findings if f["subject"] == "journal"] == ["bad"]
    scoreboard.add(
        Row(fault="a read-only directory at the start", lost="nothing: exit 1, with the reason")
    )
