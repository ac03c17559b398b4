"""A stop (SIGTERM) at any moment ends soon, with exit 0, and loses nothing; two never write one journal."""

import contextlib
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from proc_commands import (
    Collecting,
    Exchange,
    Process,
    exchange,
    post,
    run_command,
    unlike,
    write_config,
)
from scoreboard import Row, Scoreboard

from marketfeed.journal.journal import Journal
from tests.waiting import wait_until

STOP_WITHIN_S = 15.0
"""On a busy machine, too. A request may hang for 20 s (`rest.TIMEOUT_S`): a stop waits for none."""


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange")) as running:
        yield running


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A port that takes connections and says nothing; yields host:port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_stop_while_the_exchange_is_down(tmp_path: Path) -> None:
    config = write_config(tmp_path, "ws://127.0.0.1:1", "http://127.0.0.1:1")
    with Collecting(run_command(config), tmp_path / "run.log") as collector:
        collector.line("exchange not ready")
        assert collector.stop(STOP_WITHIN_S) == 0, collector.log
    assert "Traceback" not in collector.log


@pytest.mark.parametrize("hanging", ["everything", "the socket"])
def test_a_stop_while_the_exchange_hangs(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard, hanging: str
) -> None:
    with silent_server() as address:
        rest_url = f"http://{address}" if hanging == "everything" else venue.rest_url
        config = write_config(tmp_path, f"ws://{address}", rest_url)
        with Collecting(run_command(config), tmp_path / "run.log") as collector:
            if hanging == "everything":
                wait_until(lambda: collector.health().status == 503)
            else:
                wait_until(lambda: "connecting" in str(collector.health().json["reasons"]))
            assert collector.stop(STOP_WITHIN_S) == 0, collector.log
    assert "Traceback" not in collector.log
    scoreboard.add(Row(fault=f"SIGTERM while {hanging} hangs at the start", lost="nothing; exit 0"))


@pytest.mark.parametrize("step", range(6))
def test_a_stop_at_any_moment_of_the_start(tmp_path: Path, venue: Exchange, step: int) -> None:
    config = write_config(tmp_path, venue.ws_url, venue.rest_url)
    signs = ["status listening", "collecting pairs=", "connection open"]
    with Process(run_command(config), tmp_path / "run.log") as process:
        if step < len(signs):
            process.line(signs[step])
            process.process.send_signal(signal.SIGTERM)
            # Once more does not matter.
            process.process.send_signal(signal.SIGTERM)
        else:
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: False, timeout_s=0.15 * (step - len(signs)))
            process.process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_WITHIN_S)
        # Before it can take signals it has touched nothing.
        assert code == 0 or (code == -signal.SIGTERM and process.log == ""), process.log
    assert "Traceback" not in process.log
    path = tmp_path / "journal.db"
    if code == -signal.SIGTERM:
        assert not path.exists()
    elif path.exists():
        assert not Path(f"{path}-wal").exists()
        with Journal.open(path) as journal:
            assert journal.set_aside is None


def test_a_stop_loses_nothing_that_was_received(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    path = tmp_path / "journal.db"
    config = write_config(tmp_path, venue.ws_url, venue.rest_url)
    with Collecting(run_command(config), tmp_path / "run.log") as collector:
        wait_until(collector.is_delivering)
        first = venue.published_number()
        wait_until(lambda: venue.published_number() >= first + 12)
        post(venue.rest_url + "/simulator/pause")
        try:
            # Received, as its counters say, and not committed yet, the latest of it.
            seen = [collector.status() for _ in range(5)]
            while seen[0]["frames"] != seen[-1]["frames"]:
                seen = [*seen[1:], collector.status()]
            report = seen[-1]
            collector.process.send_signal(signal.SIGTERM)
            published = venue.published(first)
            assert collector.wait(STOP_WITHIN_S) == 0, collector.log
        finally:
            post(venue.rest_url + "/simulator/resume")
    assert unlike(path, published) == []
    with closing(sqlite3.connect(path)) as db:
        (marks,) = db.execute("SELECT count(*) FROM mark_price").fetchone()
    # What the socket still held comes on top, frame by frame: a busy machine reads on after the last look.
    stopped = collector.logged(r"stopped frames=([0-9]+) ")
    assert stopped is not None
    assert 0 <= marks - report["records"]["mark_price"] <= int(stopped[1]) - report["frames"]
    scoreboard.add(Row(fault="SIGTERM while running", lost="nothing that was received"))


# --- two on one journal ---------------------------------------------------------------------------


def direct(path: Path) -> Path:
    return path


def by_link(path: Path) -> Path:
    (link := path.with_name("link.db")).symlink_to(path)
    return link


def by_linked_directory(path: Path) -> Path:
    (link := path.parent / "linked").symlink_to(path.parent, target_is_directory=True)
    return link / path.name


@pytest.mark.parametrize("other_name", [direct, by_link, by_linked_directory])
def test_the_second_on_a_journal_is_refused(
    tmp_path: Path, venue: Exchange, other_name: Callable[[Path], Path]
) -> None:
    (second := tmp_path / "second").mkdir()
    path = tmp_path / "journal.db"
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, path)
    with Collecting(run_command(config), tmp_path / "first.log") as one:
        wait_until(one.is_delivering)
        other = write_config(second, venue.ws_url, venue.rest_url, other_name(path))
        with Process(run_command(other), tmp_path / "second.log") as two:
            assert two.wait() == 1
        assert f"another process is writing it (process {one.process.pid})" in two.log
        assert "Traceback" not in two.log
        assert one.health().status == 200
        assert one.stop(STOP_WITHIN_S) == 0


def test_of_two_at_once_one_wins(tmp_path: Path, venue: Exchange, scoreboard: Scoreboard) -> None:
    path = tmp_path / "journal.db"
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, path)
    with (
        Collecting(run_command(config), tmp_path / "one.log") as one,
        Collecting(run_command(config), tmp_path / "two.log") as two,
    ):
        both = (one, two)
        wait_until(lambda: any(c.process.poll() is not None for c in both))
        (loser,) = [c for c in both if c.process.poll() is not None]
        (winner,) = [c for c in both if c is not loser]
        assert loser.process.returncode == 1
        assert "another process is writing it" in loser.log
        wait_until(winner.is_delivering)
        assert winner.stop(STOP_WITHIN_S) == 0
    scoreboard.add(Row(fault="two collectors on one journal", lost="nothing: the second exits 1"))


def test_a_lock_that_was_removed_does_not_let_two_write_one_file(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard
) -> None:
    path = tmp_path / "journal.db"
    config = write_config(tmp_path, venue.ws_url, venue.rest_url, path)
    with Collecting(run_command(config), tmp_path / "one.log") as one:
        wait_until(one.is_delivering)
        # Held meanwhile: it would see it first now and then, and take the new file itself.
        one.process.send_signal(signal.SIGSTOP)
        for suffix in ("", "-wal", "-shm", ".lock"):
            Path(f"{path}{suffix}").unlink()
        with Collecting(run_command(config), tmp_path / "two.log") as two:
            wait_until(two.is_delivering)
            one.process.send_signal(signal.SIGCONT)
            # The first one sees that its file is not there any more, and that the new one is taken.
            # On a busy machine its series may be silent before.
            wait_until(lambda: "the journal cannot be written" in str(one.health().json["reasons"]))
            assert one.health().status == 503
            assert two.health().status == 200
            assert two.stop(STOP_WITHIN_S) == 0
        with closing(sqlite3.connect(path)) as db:
            seqs = [
                row[0]
                for row in db.execute("SELECT seq FROM candle UNION ALL SELECT seq FROM mark_price")
            ]
        assert len(set(seqs)) == len(seqs) > 0
        # Now it is free, and the first one goes on with it.
        wait_until(lambda: one.health().status == 200)
        assert one.stop(STOP_WITHIN_S) == 0
    with closing(sqlite3.connect(path)) as db:
        seqs = [
            row[0]
            for row in db.execute("SELECT seq FROM candle UNION ALL SELECT seq FROM mark_price")
        ]
    assert len(set(seqs)) == len(seqs)
    scoreboard.add(
        Row(
            fault="journal and lock removed, a second collector started",
            lost="nothing: one writes, one waits",
        )
    )
