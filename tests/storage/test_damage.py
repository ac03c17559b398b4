"""What counts as damage, what may be a failed read, and what lies set aside beside a file."""

import sqlite3
from pathlib import Path
from typing import Final

import pytest

from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.journal.journal import Journal
from marketfeed.storage.damage import (
    aside_advice,
    aside_reason,
    check_whole,
    damage,
    is_damage,
    meaning_of,
    put_aside,
    require_readable,
    set_aside_beside,
)
from marketfeed.storage.meaning import Meaning, meaning_of_verdict


def error_of(code: int, text: str = "") -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    if code:
        error.sqlite_errorcode = code
    return error


REFUSED: Final = (
    "ERROR",
    "PERM",
    "ABORT",
    "BUSY",
    "BUSY_RECOVERY",
    "BUSY_SNAPSHOT",
    "BUSY_TIMEOUT",
    "LOCKED",
    "LOCKED_SHAREDCACHE",
    "NOMEM",
    "READONLY",
    "READONLY_RECOVERY",
    "READONLY_CANTLOCK",
    "READONLY_DBMOVED",
    "READONLY_DIRECTORY",
    "INTERRUPT",
    "IOERR",
    "IOERR_WRITE",
    "IOERR_FSYNC",
    "IOERR_DIR_FSYNC",
    "IOERR_TRUNCATE",
    "IOERR_FSTAT",
    "IOERR_LOCK",
    "IOERR_RDLOCK",
    "IOERR_NOMEM",
    "IOERR_SHMMAP",
    "IOERR_SHMOPEN",
    "IOERR_SHMLOCK",
    "IOERR_MMAP",
    "FULL",
    "CANTOPEN",
    "CANTOPEN_ISDIR",
    "CANTOPEN_FULLPATH",
    "PROTOCOL",
    "SCHEMA",
    "TOOBIG",
    "CONSTRAINT_UNIQUE",
    "MISUSE",
    "AUTH",
    "RANGE",
)
"""Busy, full, not permitted, no memory, …: nothing is said of the file's bytes."""


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        # What no failed read looks like.
        ("SQLITE_NOTADB", Meaning.DAMAGE),
        ("SQLITE_IOERR_SHORT_READ", Meaning.DAMAGE),
        ("SQLITE_CORRUPT_INDEX", Meaning.DAMAGE),
        ("SQLITE_CORRUPT_SEQUENCE", Meaning.DAMAGE),
        ("SQLITE_CORRUPT_VTAB", Meaning.DAMAGE),
        # What EIO ends as, too.
        ("SQLITE_CORRUPT", Meaning.UNCLEAR),
        ("SQLITE_IOERR_READ", Meaning.FAILED_READ),
        ("SQLITE_IOERR_CORRUPTFS", Meaning.FAILED_READ),
        ("SQLITE_IOERR_DATA", Meaning.FAILED_READ),
        # The file stays.
        *((f"SQLITE_{name}", Meaning.REFUSED) for name in REFUSED),
    ],
)
def test_what_a_code_says(name: str, meaning: Meaning) -> None:
    error = error_of(getattr(sqlite3, name))
    assert meaning_of(error) is meaning
    ours = JournalWriteError("journal: …", is_damage(error))
    ours.__cause__ = error
    assert meaning_of(ours) is meaning
    assert meaning.is_of_reading == (meaning is not Meaning.REFUSED)
    assert is_damage(error) == (meaning in (Meaning.DAMAGE, Meaning.UNCLEAR))


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (error_of(0, "Could not decode to UTF-8 column 'pair'"), Meaning.DAMAGE),
        (error_of(0, "Cannot operate on a closed database."), Meaning.REFUSED),
        (damage("no row in table sequence"), Meaning.DAMAGE),
        (JournalWriteError("the file is gone", damaged=True), Meaning.DAMAGE),
        (JournalError("not open"), Meaning.REFUSED),
        (None, Meaning.REFUSED),
    ],
)
def test_what_an_error_without_a_code_says(error: BaseException | None, meaning: Meaning) -> None:
    assert meaning_of(error) is meaning


@pytest.mark.parametrize(
    ("verdict", "meaning"),
    [
        ("ok", None),
        # As SQLite 3.40 words them: of a page that a disk does not give (EIO by a preloaded library),
        ("*** in database main ***\nPage 91: unable to get the page. error code=8458", Meaning.FAILED_READ),
        ("*** in database main ***\nOn tree page 213 cell 0: failed to get page 212", Meaning.UNCLEAR),
        ("*** in database main ***\nPage 91: unable to get the page. error code=7", Meaning.REFUSED),
        ("*** in database main ***\nPage 91: unable to get the page. error code=522", Meaning.DAMAGE),
        # … and of pages that are none.
        ("*** in database main ***\nTree 3 page 9: btreeInitPage() returns error code 11", Meaning.DAMAGE),
        ("*** in database main ***\nTree 2 page 2 cell 0: Rowid 5 out of order", Meaning.DAMAGE),
        ("wrong # of entries in index candle_seq", Meaning.DAMAGE),
        ("NULL value in candle.open", Meaning.DAMAGE),
    ],
)  # fmt: skip
def test_what_a_check_says(verdict: str, meaning: Meaning | None) -> None:
    assert meaning_of_verdict(verdict) is meaning


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
        assert check_whole("journal", path) is None


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


def test_advice_on_what_was_taken_over_says_that_it_may_be_deleted() -> None:
    assert "what only it held is missing" in aside_advice(["/a", "/b"], {"/a"})
    assert "all that can be read was taken over" in aside_advice(["/a", "/b"], {"/a", "/b"})
