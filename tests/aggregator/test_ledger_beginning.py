"""Whether a ledger is the one that sent the last order from here: fresh, moved, restored, of before."""

import contextlib
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from decided import decide

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_beginning import CLOCK_SET, OTHER
from marketfeed.aggregator.ledger_schema import FRESH
from marketfeed.aggregator.sent_mark import Mark, SentMark
from marketfeed.clock import ClockBase
from marketfeed.storage.backup import back_up
from marketfeed.storage.in_place import InPlace

NAMES = ("", "-wal", ".lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def settle(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.release()


def held(path: Path) -> str:
    with Ledger.open(path) as ledger:
        return ledger.held


def send(path: Path, number: int = 1) -> None:
    """Have the ledger note that an order is sent."""
    with Ledger.open(path) as ledger:
        ledger.record([], [decide(number, f"A{number}/USDT:USDT")], 1_000)
        ledger.step(number, "long", "sending", 2_000)


def copy_of(path: Path, name: str) -> Path:
    back_up(Ledger.kind, path, path.with_name(name), lambda _stage, _fraction: None)
    return path.with_name(name)


def test_a_fresh_one_is_held_until_it_is_released_over_restarts(path: Path) -> None:
    assert held(path) == FRESH
    assert held(path) == FRESH
    settle(path)
    assert held(path) == ""
    with Ledger.open(path) as ledger:
        ledger.hold("trades")
        assert ledger.held == "trades"
    assert held(path) == "trades"


def test_one_that_was_made_and_never_opened_again_is_held(path: Path) -> None:
    """A kill right after it was made: its mark was not left."""
    settle(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE beginning SET held = ?", (FRESH,))
        db.commit()
    SentMark(path).path.unlink()
    assert held(path) == FRESH


def test_a_restart_is_no_doubt_whatever_was_sent(path: Path) -> None:
    settle(path)
    for number in (1, 2, 3):
        send(path, number)
        assert held(path) == ""


def copy_back(path: Path, copy: Path) -> None:
    shutil.copy(copy, path)


def install(path: Path, copy: Path) -> None:
    path.unlink()
    shutil.copy(copy, path)


def move_all_away_first(path: Path, copy: Path) -> None:
    for file in path.parent.glob("ledger.db*"):
        file.rename(path.parent / f"old-{file.name}")
    shutil.copy(copy, path)


def as_documented(path: Path, copy: Path) -> None:
    """With the very command of docs/operating.md, in the ledger's directory."""
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    (command,) = re.findall(r"^# (find .* ledger\.db .*)$", text, re.MULTILINE)
    (old := path.with_name("old")).mkdir(exist_ok=True)
    command = command.replace("/root/old", shlex.quote(str(old)))
    subprocess.run(["bash", "-c", command], cwd=path.parent, check=True)
    assert not path.exists()
    assert SentMark(path).path.exists()
    shutil.copy(copy, path)


RESTORES = [copy_back, install, move_all_away_first, as_documented]


@pytest.mark.parametrize("restore", RESTORES)
def test_an_older_copy_is_held(path: Path, restore: Callable[[Path, Path], None]) -> None:
    settle(path)
    send(path)
    copy_of(path, "copy.db")
    assert held(path) == ""
    send(path, 2)
    restore(path, path.with_name("copy.db"))
    assert held(path) == OTHER
    # A restart does not settle it.
    assert held(path) == OTHER
    settle(path)
    assert held(path) == ""


def test_a_copy_that_comes_with_its_mark_is_held(path: Path) -> None:
    """As from a copy of the whole directory, attributes and all."""
    settle(path)
    send(path)
    (kept := path.with_name("kept")).mkdir()
    for file in path.parent.glob("ledger.db*"):
        shutil.copy2(file, kept)
    assert held(path) == ""
    send(path, 2)
    for file in path.parent.glob("ledger.db*"):
        file.unlink()
    for file in kept.iterdir():
        shutil.copy2(file, path.parent)
    assert held(path) == OTHER


def test_a_move_within_a_disk_is_no_doubt(path: Path) -> None:
    settle(path)
    send(path)
    (place := path.with_name("elsewhere")).mkdir()
    for file in path.parent.glob("ledger.db*"):
        file.rename(place / file.name)
    assert held(place / path.name) == ""


def test_a_copy_that_lacks_nothing_is_no_doubt_in_its_place(path: Path) -> None:
    settle(path)
    send(path)
    copy_of(path, "copy.db")
    install(path, path.with_name("copy.db"))
    assert held(path) == ""


def test_another_ledger_is_held_however_far_it_has_come(path: Path) -> None:
    settle(path)
    other = path.with_name("other.db")
    settle(other)
    for number in range(1, 9):
        send(other, number)
    other.rename(path)
    assert held(path) == OTHER


def as_before(path: Path) -> None:
    """As a version leaves it that knows of no beginning."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE beginning")
        db.commit()


def test_an_upgrade_is_no_doubt(path: Path) -> None:
    settle(path)
    as_before(path)
    SentMark(path).path.unlink()
    assert held(path) == ""
    assert held(path) == ""
    send(path)
    assert held(path) == ""


@pytest.mark.parametrize("restore", [install, as_documented])
def test_a_copy_of_before_the_upgrade_is_held(
    path: Path, restore: Callable[[Path, Path], None]
) -> None:
    settle(path)
    send(path)
    as_before(path)
    SentMark(path).path.unlink()
    copy = copy_of(path, "copy.db")
    # The upgrade.
    assert held(path) == ""
    send(path, 2)
    restore(path, copy)
    assert held(path) == OTHER


@pytest.mark.parametrize("restore", RESTORES)
def test_the_same_copy_put_back_again_is_held_again(
    path: Path, restore: Callable[[Path, Path], None]
) -> None:
    settle(path)
    send(path)
    copy = copy_of(path, "copy.db")
    for number in range(2, 5):
        send(path, number)
    for number in (7, 8):
        restore(path, copy)
        assert held(path) == OTHER
        settle(path)
        assert held(path) == ""
        send(path, number)
        assert held(path) == ""
        for old in path.parent.glob("old-*"):
            old.unlink()


def test_what_an_older_copy_took_the_place_of_is_held_when_it_comes_back(path: Path) -> None:
    """It has come further than the copy, and lacks what that one sent."""
    settle(path)
    send(path)
    copy = copy_of(path, "copy.db")
    for number in range(2, 9):
        send(path, number)
    original = copy_of(path, "original.db")
    install(path, copy)
    assert held(path) == OTHER
    settle(path)
    send(path, 50)
    install(path, original)
    assert held(path) == OTHER


def test_a_held_copy_that_is_put_back_is_told_apart_from_itself(path: Path) -> None:
    assert held(path) == FRESH
    copy = copy_of(path, "copy.db")
    settle(path)
    send(path)
    install(path, copy)
    assert held(path) == FRESH
    settle(path)
    send(path, 9)
    install(path, copy)
    assert held(path) == FRESH


# --- a clock that is set between two starts -----------------------------------------------------------------

CLOCK = ClockBase("a boot", 1_795_000_000_000)


def held_by(path: Path, clock: ClockBase | None) -> str:
    with Ledger.open(path, clock) as ledger:
        return ledger.held


@pytest.mark.parametrize("by_ms", [-3_600_000, -2_001, 2_001, 3_600_000])
def test_a_clock_that_was_set_holds_until_it_is_released(path: Path, by_ms: int) -> None:
    settle(path)
    assert held_by(path, CLOCK) == ""
    assert held_by(path, CLOCK) == ""
    moved = CLOCK._replace(booted_ms=CLOCK.booted_ms + by_ms)
    assert held_by(path, moved) == CLOCK_SET
    # By now the clock is known, and it is held all the same: nobody has waited yet.
    assert held_by(path, moved) == CLOCK_SET
    with Ledger.open(path, moved) as ledger:
        ledger.release()
    assert held_by(path, moved) == ""
    # And set back to what it was.
    assert held_by(path, CLOCK) == CLOCK_SET
    assert held_by(path, CLOCK._replace(booted_ms=CLOCK.booted_ms - by_ms)) == CLOCK_SET


def test_what_is_no_setting_of_the_clock_holds_nothing(path: Path) -> None:
    settle(path)
    for clock in (
        CLOCK,
        CLOCK._replace(booted_ms=CLOCK.booted_ms + 2_000),
        None,
        ClockBase("another boot", CLOCK.booted_ms + 3_600_000),
        ClockBase("", CLOCK.booted_ms),
        ClockBase("", CLOCK.booted_ms + 3_600_000),
    ):
        assert held_by(path, clock) == "", clock


def test_a_clock_that_was_set_under_a_doubtful_ledger_is_named_too(path: Path) -> None:
    settle(path)
    assert held_by(path, CLOCK) == ""
    SentMark(path).path.unlink()
    moved = CLOCK._replace(booted_ms=CLOCK.booted_ms + 60_000)
    assert held_by(path, moved) == f"{OTHER}, and {CLOCK_SET}"
    assert held_by(path, CLOCK) == f"{OTHER}, and {CLOCK_SET}"


def test_a_clock_that_cannot_be_noted_is_found_again(path: Path) -> None:
    """A full disk: the doubt and the clock are one commit."""
    settle(path)
    assert held_by(path, CLOCK) == ""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON clock BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        db.commit()
    moved = CLOCK._replace(booted_ms=CLOCK.booted_ms + 60_000)
    assert held_by(path, moved) == CLOCK_SET
    assert held_by(path, CLOCK) == ""
    assert held_by(path, moved) == CLOCK_SET


def test_a_version_of_before_may_go_on_in_between(path: Path) -> None:
    settle(path)
    send(path)
    as_before(path)
    assert held(path) == ""


def test_what_is_not_noted_is_doubtful_at_the_next_start(path: Path) -> None:
    """The name is saved, and a kill comes before the mark."""
    settle(path)
    as_before(path)
    mark = SentMark(path)
    mark.path.unlink()
    assert held(path) == ""
    mark.path.unlink()
    assert held(path) == OTHER


@pytest.mark.parametrize("content", [b"", b"garbage", b"0123456789abcdef 12\n", b"x" * 99])
def test_a_mark_that_cannot_be_read_is_none(path: Path, content: bytes) -> None:
    settle(path)
    mark = SentMark(path)
    mark.path.write_bytes(content)
    assert mark.read() is None
    assert held(path) == OTHER
    assert mark.read() is not None


def test_a_mark_that_cannot_be_left_vouches_for_nothing(path: Path) -> None:
    mark = SentMark(path)
    mark.write(Mark("0123456789abcdef", 7))
    assert mark.read() == Mark("0123456789abcdef", 7)
    mark.path.unlink()
    mark.path.mkdir()
    mark.write(Mark("0123456789abcdef", 8))
    assert mark.read() is None


# --- in its place -----------------------------------------------------------------------------------------


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    file.unlink()
    file.write_bytes(b"another")


def put_a_copy(file: Path) -> None:
    shutil.copy(file, f"{file}.copy")
    Path(f"{file}.copy").replace(file)


@pytest.mark.parametrize("suffix", NAMES)
@pytest.mark.parametrize("harm", [remove, replace, put_a_copy])
def test_what_is_taken_away_is_seen(path: Path, suffix: str, harm: Callable[[Path], None]) -> None:
    with Ledger.open(path) as ledger:
        ledger.beat()
        assert ledger.in_place.gone() == ""
        harm(Path(f"{path}{suffix}"))
        assert f"{path}{suffix}" in ledger.in_place.gone()


def test_work_and_readers_move_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for number in range(1, 50):
            ledger.record([], [decide(number, f"A{number}/USDT:USDT")], 1_000)
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("SELECT count(*) FROM decision").fetchone()
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert ledger.in_place.gone() == ""
        copy_of(path, "copy.db")
        assert ledger.in_place.gone() == ""


def test_a_name_that_cannot_be_looked_at_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with (tmp_path / "lock").open("wb") as lock:
        assert InPlace(path, None, lock.fileno()).gone() == ""
