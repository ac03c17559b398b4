"""What counts as damage, what may be a failed read, and what lies set aside beside a file."""

import sqlite3
from pathlib import Path

import pytest

from marketfeed.errors import JournalError
from marketfeed.journal.journal import Journal
from marketfeed.storage.damage import (
    aside_reason,
    damage,
    find_damage,
    is_certain,
    is_damage,
    is_failed_read,
    put_aside,
    require_readable,
    set_aside_beside,
)


def error_of(code: int, text: str = "") -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    if code:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "damaged", "certain", "failed"),
    [
        (error_of(sqlite3.SQLITE_CORRUPT), True, False, False),
        (error_of(sqlite3.SQLITE_NOTADB), True, False, False),
        # An index that lacks a row: pages were read, and contradict each other.
        (error_of(sqlite3.SQLITE_CORRUPT_INDEX), True, True, False),
        (error_of(sqlite3.SQLITE_IOERR_SHORT_READ), True, False, True),
        (error_of(0, "Could not decode to UTF-8 column 'pair'"), True, True, False),
        (damage("no row in table sequence"), True, True, False),
        (error_of(sqlite3.SQLITE_IOERR), False, False, True),
        (error_of(sqlite3.SQLITE_IOERR_READ), False, False, True),
        (error_of(8458), False, False, True),
        (error_of(sqlite3.SQLITE_CANTOPEN), False, False, False),
        (error_of(sqlite3.SQLITE_NOMEM), False, False, False),
        (error_of(sqlite3.SQLITE_PROTOCOL), False, False, False),
        (error_of(sqlite3.SQLITE_FULL), False, False, False),
    ],
    ids=lambda value: str(getattr(value, "sqlite_errorcode", "")),
)
def test_what_an_error_says(
    error: sqlite3.DatabaseError, damaged: bool, certain: bool, failed: bool
) -> None:
    assert (is_damage(error), is_certain(error), is_failed_read(error)) == (
        damaged,
        certain,
        failed,
    )


def test_what_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    """A directory: it can be opened, and every read of it fails."""
    require_readable("journal", tmp_path / "absent.db")
    with pytest.raises(JournalError, match=r"cannot be read from its disk .*left as it is"):
        require_readable("journal", tmp_path)


def test_sqlites_locks_outlast_a_reading(tmp_path: Path) -> None:
    """They are POSIX locks: closing any descriptor of the file would end them for the whole process."""
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        journal.save_document("a", b"x", 1)
        before = locks_of(path)
        assert before
        require_readable("journal", path)
        assert locks_of(path) == before
        assert find_damage(path) == ""


def locks_of(path: Path) -> list[str]:
    number = f":{path.stat().st_ino} "
    return [
        line.partition(" ")[2]
        for line in Path("/proc/locks").read_text().splitlines()
        if number in line
    ]


def test_what_lies_beside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    assert set_aside_beside(path) == ()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").touch()
    (tmp_path / "ledger.db.corrupt-x").touch()
    kept = put_aside(path)
    assert set_aside_beside(path) == (str(kept),)
    kept.unlink()
    # Its -wal is as good as it: it holds rows.
    assert set_aside_beside(path) == (str(kept),)
    for suffix in ("-wal", "-shm"):
        Path(f"{kept}{suffix}").unlink()
    assert set_aside_beside(path) == ()


def test_a_reason_says_where_and_what_to_do() -> None:
    one = aside_reason("journal", ["/data/journal.db.corrupt-1"])
    assert one.startswith("a damaged journal was set aside: /data/journal.db.corrupt-1: ")
    assert "remove it" in one
    many = aside_reason("ledger", [f"/{n}" for n in range(5)])
    assert many.startswith("5 damaged ledgers were set aside: /0, /1, /2 and 2 more: ")
