"""The refused posts that a ledger keeps: the newest of each sender, and of all: no flood fills a disk."""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from marketfeed.aggregator.ledger_beginning import BegunFile
from marketfeed.aggregator.refused_posts import ALIKE_OF_SENDER, RANKS, RefusedPost

KEPT: Final = 1_000
"""Rows that are kept; each has a kilobyte at the most."""

_COLUMNS: Final = (
    "account, identity, address, feeder, request, status, reason, sentence, digest, body_bytes, "
    "first, last, times"
)
_RANK: Final = (
    "CASE identity " + " ".join(f"WHEN '{it}' THEN {at}" for at, it in enumerate(RANKS)) + " END"
)


class Refused(msgspec.Struct, frozen=True):
    """A row of refused posts; `change` rises with every change of any row."""

    post: RefusedPost
    change: int


class RefusedFile(BegunFile):
    """The part of a ledger that keeps refused posts."""

    def note_refused(self, posts: Iterable[RefusedPost]) -> None:
        """Store refused posts, durably: those that are alike in one row. Nothing rests on them.

        A file that could not be grown (`ledger_schema`) keeps none.
        """
        if not self._has("refused_post"):
            return
        with self._transaction():
            (change,) = self.db.execute(
                "SELECT coalesce(max(change), 0) + 1 FROM refused_post"
            ).fetchone()
            for post in posts:
                self.db.execute(
                    f"""INSERT INTO refused_post (key, sender, change, {_COLUMNS})
                        VALUES ({",".join("?" * 16)})
                        ON CONFLICT (key) DO UPDATE SET
                            change = excluded.change, digest = excluded.digest,
                            body_bytes = excluded.body_bytes, first = min(first, excluded.first),
                            last = max(last, excluded.last), times = times + excluded.times""",
                    (post.key(), post.sender(), change, *msgspec.structs.astuple(post)),
                )
                change += 1
            crowded = self.db.execute(
                f"SELECT sender FROM refused_post GROUP BY sender HAVING count(*) > {ALIKE_OF_SENDER}"
            ).fetchall()
            for (sender,) in crowded:
                self._drop_but(ALIKE_OF_SENDER, "WHERE sender = ?", "change DESC", sender)
            self._drop_but(KEPT, "", f"{_RANK}, change DESC")

    def _drop_but(self, count: int, which: str, order: str, *values: str) -> None:
        self.db.execute(
            f"""DELETE FROM refused_post WHERE key IN (
                SELECT key FROM refused_post {which} ORDER BY {order} LIMIT -1 OFFSET {count})""",
            values,
        )


def refused_in(db: sqlite3.Connection, limit: int, after: int = 0) -> list[Refused]:
    """The newest refused posts of a ledger that is being read, newest first, of those changed `after`."""
    there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refused_post'").fetchone()
    if there is None:
        # Of a version before, or one that could not be grown.
        return []
    rows = db.execute(
        f"SELECT {_COLUMNS}, change FROM refused_post WHERE change > ? ORDER BY change DESC LIMIT ?",
        (after, limit),
    )
    return [_refused(row) for row in rows]


def _refused(row: tuple[Any, ...]) -> Refused:
    return Refused(RefusedPost(*row[:-1]), row[-1])
