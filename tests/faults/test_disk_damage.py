"""A journal whose file is damaged, before the start or while the collector runs: set aside and logged."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from proc_commands import (
    Collecting,
    Exchange,
    exchange,
    run_command,
    unlike,
    write_config,
)
from scoreboard import Row, Scoreboard

from marketfeed.errors import JournalWriteError
from marketfeed.journal.journal import Journal
from reader import MarketReader, StoreUnavailableError
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange")) as running:
        yield running


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, venue: Exchange) -> bytes:
    """The journal of a collector that has collected a little, and has been stopped."""
    directory = tmp_path_factory.mktemp("left")
    config = write_config(directory, venue.ws_url, venue.rest_url)
    with Collecting(run_command(config), directory / "run.log") as collector:
        wait_until(lambda: sum(t["candles"] for t in collector.status()["timeframes"]) >= 6)
        assert collector.stop() == 0
    return (directory / "journal.db").read_bytes()


@pytest.fixture
def used(tmp_path: Path, venue: Exchange, left: bytes) -> Path:
    """The settings of a collector that finds such a journal."""
    (tmp_path / "journal.db").write_bytes(left)
    return write_config(tmp_path, venue.ws_url, venue.rest_url)


def overwrite(path: Path, start: int, end: int | None = None) -> None:
    """Put random bytes in place of some, as a failing disk might."""
    end = path.stat().st_size if end is None else end
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(end - start))


def is_all_but_clean(collector: Collecting) -> bool:
    """Whether all is well but for what was set aside."""
    reasons = collector.health().json["reasons"]
    return (
        collector.status()["mark_price_age_s"] is not None
        and len(reasons) == 1
        and "a damaged journal was set aside" in reasons[0]
    )


def take_away(directory: Path) -> list[Path]:
    """Put what was set aside elsewhere, as an operator who has looked at it; returns the files."""
    looked_at = directory / "looked at"
    looked_at.mkdir()
    for file in directory.glob("journal.db.corrupt-*"):
        file.rename(looked_at / file.name)
    return sorted(looked_at.glob("journal.db.corrupt-????????T??????.??????Z"))


@pytest.mark.parametrize("start", [0, 4_096], ids=["all", "all but the first page"])
def test_a_file_damaged_before_the_start(
    used: Path, tmp_path: Path, scoreboard: Scoreboard, start: int
) -> None:
    path = tmp_path / "journal.db"
    overwrite(path, start)
    content = path.read_bytes()
    with Collecting(run_command(used), tmp_path / "run.log") as collector:
        wait_until(lambda: is_all_but_clean(collector))
        kept = Path(collector.status()["journal"]["set_aside"])
        assert collector.stop() == 0
    assert "journal damaged, set aside, starting a fresh one" in collector.log
    assert kept.parent == tmp_path
    assert kept.name.startswith("journal.db.corrupt-")
    assert kept.read_bytes() == content
    # Whichever run has set it aside: it is a reason for as long as it lies there.
    with Collecting(run_command(used), tmp_path / "again.log") as collector:
        wait_until(lambda: is_all_but_clean(collector))
        assert collector.status()["journal"]["set_aside"] is None
        (reason,) = collector.health().json["reasons"]
        assert str(kept) in reason
        kept.unlink()
        wait_until(collector.is_delivering)
        assert collector.health().status == 200
        assert collector.stop() == 0
    with Journal.open(path) as journal:
        assert journal.row_counts()["mark_price"] > 0
        assert len(journal.catalog()) == 6
    scoreboard.add(
        Row(
            fault="a journal overwritten before the start",
            lost="the file: set aside, logged; a fresh one",
        )
    )


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def cut_off(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "set_aside"),
    [(lambda path: overwrite(path, 0), True), (cut_off, True), (remove, False)],
    ids=["overwritten", "cut off", "removed"],
)
def test_a_file_damaged_while_running(
    used: Path,
    tmp_path: Path,
    venue: Exchange,
    scoreboard: Scoreboard,
    request: pytest.FixtureRequest,
    damage: Callable[[Path], None],
    *,
    set_aside: bool,
) -> None:
    path = tmp_path / "journal.db"
    with Collecting(run_command(used), tmp_path / "run.log") as collector:
        wait_until(collector.is_delivering)
        damage(path)
        with (
            pytest.raises(StoreUnavailableError),
            MarketReader.connect(f"sqlite:///{path}") as reader,
        ):
            reader.pairs()
        started_s = time.monotonic()
        collector.line("journal cannot be read any more, starting anew")
        noticed_s = time.monotonic() - started_s
        first = venue.published_number()
        venue.wait_for_candles(12)
        last = first + 6
        if set_aside:
            wait_until(lambda: is_all_but_clean(collector))
        kept = take_away(tmp_path)
        wait_until(lambda: collector.health().status == 200)
        # The feed was not disturbed.
        report = collector.status()
        assert [c["opened"] for c in report["connections"]] == [1]
        assert (report["journal"]["set_aside"] is not None) == set_aside
        with MarketReader.connect(f"sqlite:///{path}") as reader:
            # The fresh file has its first commit before its catalog.
            wait_until(lambda: len(reader.pairs()) == 6)
        assert collector.stop() == 0, collector.log
    published = [item for item in venue.published(first) if item.number <= last]
    assert unlike(path, published) == []
    assert len(kept) == set_aside
    assert list(tmp_path.glob("journal.db.corrupt-*")) == []
    scoreboard.add(
        Row(
            fault=f"the journal {request.node.callspec.id} while running (wall seconds)",
            lost="the file, logged" + (", set aside" if set_aside else "") + "; a fresh one",
            noticed_after_s=noticed_s,
            whole_after_s=noticed_s,
        )
    )


def test_damage_is_seen_past_the_writers_memory(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal.open(path).close()
    with Journal.open(path) as journal:
        journal.require_whole()
        journal.save_document("a", b"x", 1)
        journal.require_whole()
        overwrite(path, 0)
        # What it has in memory hides the damage from the writer, not from a look.
        journal.save_document("b", b"x", 1)
        with pytest.raises(JournalWriteError, match=r"not a database|malformed") as caught:
            journal.require_whole()
        assert caught.value.damaged
        remove(path)
        with pytest.raises(JournalWriteError, match="the file is gone"):
            journal.require_whole()
        path.touch()
        with pytest.raises(JournalWriteError, match="another file stands in its place"):
            journal.require_whole()


def test_a_distrusted_file_is_set_aside_unseen(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        journal.save_document("a", b"x", 1)
    with Journal.open(path, distrusted=True) as journal:
        assert journal.set_aside is not None
        assert journal.load_document("a") is None
    with Journal.open(journal.set_aside) as old:
        assert old.load_document("a") == (b"x", 1)


@pytest.mark.long(15)
def test_a_torn_tail_after_a_kill(used: Path, tmp_path: Path, scoreboard: Scoreboard) -> None:
    path, wal = tmp_path / "journal.db", tmp_path / "journal.db-wal"
    with Collecting(run_command(used), tmp_path / "killed.log") as collector:
        wait_until(lambda: collector.status()["journal"]["commits"] >= 10)
        collector.process.kill()
        collector.wait()
    # As after a crash that lost the end of the last write: half a page is missing, then noise.
    os.truncate(wal, wal.stat().st_size - 6_000)
    with wal.open("ab") as file:
        file.write(os.urandom(3_000))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        kept = set(db.execute("SELECT pair_id, timeframe_ms, open_time, close, seq FROM candle"))
        (next_seq,) = db.execute("SELECT next FROM sequence").fetchone()
    assert len(kept) >= 6
    with Collecting(run_command(used), tmp_path / "run.log") as collector:
        wait_until(collector.is_delivering)
        report = collector.status()
        assert report["journal"]["set_aside"] is None
        assert collector.stop() == 0
    with closing(sqlite3.connect(path)) as db:
        found = set(db.execute("SELECT pair_id, timeframe_ms, open_time, close, seq FROM candle"))
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert kept <= found
    assert all(row[-1] >= next_seq for row in found - kept)
    scoreboard.add(Row(fault="a torn WAL after a kill", lost="nothing of what was whole"))
