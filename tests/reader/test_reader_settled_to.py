"""What the journal notes of settlements that REST has answered, and what a feeder gets by it."""

import json
import sqlite3
import zlib
from contextlib import closing

from stored import M1, OTHER, PAIR
from test_reader_settlements import answer, hour, live, running, settled, since

from marketfeed import schema
from reader.feeder import NotStoredError

__all__ = ["answer"]


def covered(path, ranges: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        body = ranges if isinstance(ranges, bytes) else zlib.compress(json.dumps(ranges).encode())
        db.execute(
            "INSERT OR REPLACE INTO document (name, saved, body) VALUES (?, ?, ?)",
            (schema.SETTLED_DOCUMENT, hour(0), body),
        )


def test_what_rest_has_answered_is_not_due(answer, path) -> None:
    stored = [settled(-8, 0), running((-8, 0, 0), (0, 1, 1), (1, 6, 6), (6, 7, 8))]
    assert isinstance(answer(2, live(), *stored), NotStoredError)
    covered(path, {PAIR: [[hour(-20), hour(-9)], [hour(-8), hour(1) + M1]], OTHER: []})
    assert answer(2, live()) == [-8, 0]
    assert answer(2, since(-8)) == [-8, 0]
    # Up to one that did not come, and no further.
    covered(path, {PAIR: [[hour(-8), hour(1)]]})
    assert isinstance(answer(2, live()), NotStoredError)
    covered(path, {PAIR: [[hour(-8), hour(1) + M1]]})
    # What it was not asked for.
    assert isinstance(answer(6.5, live()), NotStoredError)
    # A document that nobody can read says nothing.
    for spoilt in (b"spoilt", {"a": 1}):
        covered(path, spoilt)
        assert isinstance(answer(2, live()), NotStoredError)
