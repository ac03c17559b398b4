"""A journal or ledger as a later version leaves one: a real file, grown by what this one does not know."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

VERSION: Final = 4
LETS_IN: Final = (VERSION, 3, 2)
"""A row of `meta` with which this version may read and write a journal."""

SILENT: Final = (
    "DROP TABLE meta",
    "DELETE FROM meta",
    "INSERT INTO meta SELECT * FROM meta",
    "UPDATE meta SET readers_from = NULL, writers_from = NULL",
    "UPDATE meta SET readers_from = 'two', writers_from = 'two'",
    "UPDATE meta SET readers_from = 1.5, writers_from = 1.5",
    "UPDATE meta SET readers_from = 0, writers_from = 0",
    "UPDATE meta SET readers_from = -1, writers_from = -1",
    "ALTER TABLE meta RENAME COLUMN readers_from TO readers",
)
"""After each of these `meta` names no version: the file asks for its own."""


def grow(db: sqlite3.Connection, meta: tuple[int, int, int] = LETS_IN) -> None:
    """Take a file to VERSION, `meta` being (version, readers_from, writers_from). In a transaction."""
    tables = tables_of(db)
    # Untyped, and with a column of a still later version.
    db.execute("DROP TABLE IF EXISTS meta")
    db.execute("CREATE TABLE meta(version, readers_from, writers_from, since TEXT DEFAULT 'x')")
    db.execute("INSERT INTO meta (version, readers_from, writers_from) VALUES (?, ?, ?)", meta)
    for table in tables:
        db.execute(f"ALTER TABLE {table} ADD COLUMN added TEXT")
        db.execute(f"ALTER TABLE {table} ADD COLUMN counted INTEGER NOT NULL DEFAULT 7")
        db.execute(f"UPDATE {table} SET added = 'newer', counted = 8")  # noqa: S608
    db.execute(
        "CREATE TABLE open_interest(pair_id INTEGER, time INTEGER, amount REAL, seq INTEGER)"
    )
    db.execute("INSERT INTO open_interest VALUES (1, 2, 3.5, 4)")
    db.execute(f"PRAGMA user_version = {meta[0]}")


def upgrade(path: Path, meta: tuple[int, int, int] = LETS_IN, then: str = "") -> Path:
    """`grow` the file at `path` in one transaction, and run one more statement."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=180.0)) as db:
        db.execute("BEGIN EXCLUSIVE")
        grow(db, meta)
        db.execute(then)
        db.execute("COMMIT")
    return path


def spoil_meta(path: Path) -> None:
    """Overwrite the page on which `meta` lies."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meta'").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


def added(path: Path) -> dict[str, tuple[int, int]]:
    """Table -> how many rows have what the newer version has written in them, and how many have none of it.

    Also holds that the file is as it was left: version, `meta`, and the table that this version lacks.
    """
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("SELECT version, since FROM meta").fetchall() == [(VERSION, "x")]
        assert db.execute("SELECT * FROM open_interest").fetchall() == [(1, 2, 3.5, 4)]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {
            table: db.execute(
                "SELECT count(*) FILTER (WHERE added = 'newer' AND counted = 8),"  # noqa: S608
                f" count(*) FILTER (WHERE added IS NULL AND counted = 7) FROM {table}"
            ).fetchone()
            for table in tables_of(db)
        }


def tables_of(db: sqlite3.Connection) -> list[str]:
    """The tables that this version has, too."""
    return [
        name
        for (name,) in db.execute(
            """SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
               AND name NOT IN ('meta', 'open_interest') ORDER BY name"""
        )
    ]
