"""A journal of an older version is brought up to date in one transaction, or not at all."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import pytest
from proc_commands import run_marketfeed, write_config
from scoreboard import Row, Scoreboard

from marketfeed import schema
from marketfeed.errors import JournalError, JournalNewerError
from marketfeed.journal.journal import Journal
from marketfeed.storage.database import Database, Kind
from marketfeed.storage.reading import inspect

ROWS = 20_000
"""Of 1 kB each: more than SQLite's cache holds, so that a half-done change has reached the file."""
Migration = Callable[[sqlite3.Connection], None]


def kind(version: int, *migrations: Migration) -> Kind:
    """A file of its own kind; `migrations` lead from version 1 up."""
    return Kind(
        name="ledger",
        setting="ledger.path",
        application_id=0x54455354,
        version=version,
        kept=version,
        create="CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT NOT NULL)",
        migrations=MappingProxyType(dict(enumerate(migrations, 1))),
        ways_back=MappingProxyType({}),
        measurements=(),
    )


def add_length(db: sqlite3.Connection) -> None:
    """1 -> 2."""
    db.execute("ALTER TABLE item ADD COLUMN length INTEGER")
    db.execute("UPDATE item SET length = length(text)")


def rename(db: sqlite3.Connection) -> None:
    """2 -> 3."""
    db.execute("ALTER TABLE item RENAME TO entry")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    database = Database.open(kind(1), path)
    with database.transaction() as db:
        db.executemany("INSERT INTO item VALUES (?, ?)", [(n, f"{n:0>1000}") for n in range(ROWS)])
    database.close()
    return path


def columns(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
    assert verdict == "ok"
    return int(found)


def test_all_steps_are_taken_and_rows_kept(path: Path) -> None:
    database = Database.open(kind(3, add_length, rename), path)
    assert database.set_aside is None
    assert database.db.execute("SELECT count(*), sum(length) FROM entry").fetchone() == (
        ROWS,
        ROWS * 1_000,
    )
    database.close()
    assert version(path) == 3
    # Once is enough.
    Database.open(kind(3), path).close()


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("no such thing"), ValueError("a bug"), KeyboardInterrupt()]
)
def test_a_step_that_fails_changes_nothing(path: Path, error: BaseException) -> None:
    def fail(db: sqlite3.Connection) -> None:
        rename(db)
        raise error

    expected = JournalError if isinstance(error, sqlite3.Error) else type(error)
    with pytest.raises(expected):
        Database.open(kind(3, add_length, fail), path)
    # Nor does the step before it stand: all of them are one transaction.
    assert version(path) == 1
    assert columns(path, "item") == ["id", "text"]
    assert columns(path, "entry") == []
    assert not list(path.parent.glob("*.corrupt-*"))
    database = Database.open(kind(3, add_length, rename), path)
    assert database.db.execute("SELECT count(*) FROM entry").fetchone() == (ROWS,)
    database.close()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_disk_migration import add_length, kind
from marketfeed.storage.database import Database

def killed(db):
    db.execute("CREATE TABLE entry AS SELECT id, text || text AS text FROM item")
    db.execute("DROP TABLE item")
    db.execute("PRAGMA cache_size = 10")
    db.execute("CREATE TABLE more AS SELECT * FROM entry")
    os.kill(os.getpid(), signal.SIGKILL)

Database.open(kind(3, add_length, killed), Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_leaves_the_old_version_whole(
    path: Path, scoreboard: Scoreboard
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, Path(__file__).parent],
        check=False,
        capture_output=True,
        timeout=180,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Some of the change had been written when the kill came.
    assert Path(f"{path}-wal").stat().st_size > ROWS * 1_000
    old = Database.open(kind(2, add_length), path)
    assert old.set_aside is None
    assert old.db.execute("SELECT count(*), sum(length(text)) FROM item").fetchone() == (
        ROWS,
        ROWS * 1_000,
    )
    old.close()
    assert version(path) == 2
    Database.open(kind(3, add_length, rename), path).close()
    assert columns(path, "entry") == ["id", "text", "length"]
    scoreboard.add(
        Row(fault="kill -9 in the middle of a migration", lost="nothing: the old version is whole")
    )


def test_a_newer_file_is_refused_and_not_touched(path: Path) -> None:
    Database.open(kind(2, add_length), path).close()
    before = path.read_bytes()
    for open_it in (Database.open, inspect):
        with pytest.raises(JournalNewerError, match="newer marketfeed"):
            open_it(kind(1), path)
    assert path.read_bytes() == before


def test_run_and_check_refuse_a_newer_journal(tmp_path: Path, scoreboard: Scoreboard) -> None:
    path = tmp_path / "journal.db"
    Journal.open(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE meta")
        db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    config = write_config(tmp_path, "ws://127.0.0.1:1", "http://127.0.0.1:1")
    for command in ("run", "check"):
        done = run_marketfeed(command, "--config", config)
        assert done.returncode == 1
        assert f"newer marketfeed (schema version {schema.SCHEMA_VERSION + 1}" in (
            done.stdout + done.stderr
        ).replace("\n", " ")
        assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.corrupt-*"))
    scoreboard.add(Row(fault="a journal of a newer version", lost="nothing: refused, exit 1"))
