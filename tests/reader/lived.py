"""What collectors tell of lives, put where readers find it: into a journal and a bucket."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from marketfeed import schema

Told = Mapping[str, Sequence[tuple[int, int | None]]]
"""Pair -> its lives, oldest first: when they were listed and when they ended (ms)."""

_TABLE = """
CREATE TABLE IF NOT EXISTS life(
    pair_id INTEGER NOT NULL, symbol TEXT NOT NULL, listed INTEGER NOT NULL, ended INTEGER,
    evidence TEXT NOT NULL,
    PRIMARY KEY (pair_id, listed)
) WITHOUT ROWID"""


def symbol(pair: str) -> str:
    return pair.partition(":")[0].replace("/", "")


def tell(path: Path, told: Told) -> None:
    """Keep lives in a journal, in place of what it told of these pairs."""
    with sqlite3.connect(path) as db:
        db.execute(_TABLE)
        for pair, lives in told.items():
            db.execute("INSERT OR IGNORE INTO pair (pair) VALUES (?)", (pair,))
            (pair_id,) = db.execute("SELECT id FROM pair WHERE pair = ?", (pair,)).fetchone()
            db.execute("DELETE FROM life WHERE pair_id = ?", (pair_id,))
            db.executemany(
                "INSERT INTO life VALUES (?, ?, ?, ?, 'onboardDate')",
                [(pair_id, symbol(pair), *life) for life in lives],
            )
    db.close()


def lives_line(
    pair: str, lives: Sequence[tuple[int, int | None]], told_ms: int, collector: str = "host_1"
) -> str:
    """A point of `feed_coverage` as line protocol; pairs and collectors of tests need no escaping."""
    text = json.dumps([[*life, symbol(pair)] for life in lives]).replace('"', r"\"")
    hour_ms = schema.floor_to(told_ms, schema.HOUR_MS)
    tags = f"collector={collector},pair={pair}"
    return f'{schema.FEED_COVERAGE},{tags} {schema.LIVES}="{text}" {hour_ms}'
