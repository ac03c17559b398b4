"""The ledger: one SQLite file of what was received, decided and forwarded. Durable when a call returns.

`sending` is on the disk before the POST, so that after a crash whatever stands there is `unknown`, and no
decision is ever sent twice.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from marketfeed.aggregator.ballots import FORWARD, SKIP, Decision, Vote
from marketfeed.aggregator.ledger_forwards import ForwardsFile
from marketfeed.aggregator.ledger_refused import RefusedFile
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.ledger_tables import (
    DECISION_COLUMNS,
    DECISION_ROW,
    OPEN_STATES,
    SIGNAL_COLUMNS,
    SIGNAL_ROW,
    Answered,
    AtStart,
    Forward,
    Receipt,
    Recorded,
    decision_of,
    decision_row,
    signal_of,
    signal_row,
)
from marketfeed.aggregator.repeats import Earlier
from marketfeed.aggregator.standing import Standing
from marketfeed.clock import ClockBase
from marketfeed.schema import DAY_MS
from marketfeed.storage.database import has_been_open, translate_sqlite_errors

DELETED_AT_ONCE: Final = 5_000
"""Rows that one transaction of retention deletes at most, so that signals pass in between."""

ROOM_BYTES: Final = 65_536
"""What `prove_room` writes: a commit of a few votes is half of it."""

_READ_FIRST: Final = ("SELECT next FROM sequence", "SELECT max(number) FROM signal")


class Ledger(ForwardsFile, RefusedFile):
    """The one writer of a ledger file."""

    kind = KIND

    loss = ""
    """What became of a predecessor that should stand here; empty when nothing is known to be lost."""

    @classmethod
    def open(cls, path: Path, clock: ClockBase | None = None, **how: Any) -> Self:
        """Open or create the ledger at `path`, as `NumberedFile.open` says, and note what is lost.

        `clock` is what the times of this run are counted from, as `begin` says.
        """
        vanished = has_been_open(path) and not path.exists()
        ledger = super().open(path, **how)
        if ledger.set_aside is not None:
            ledger.loss = f"the ledger was damaged and set aside as {ledger.set_aside}"
        elif vanished:
            ledger.loss = f"the ledger {path} was gone, a fresh one was begun"
        try:
            with translate_sqlite_errors(cls.kind, path):
                ledger.begin(clock)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def next_number(self) -> int:
        """The number of the next vote: greater than any that was ever stored."""
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'signal'").fetchone()
        return 1 if row is None else int(row[0]) + 1

    def beat(self) -> None:
        """Commit something: proof that the file takes what is written."""
        with self._transaction():
            # A number that changes: SQLite writes no page for a value that stands there already.
            self.db.execute("UPDATE heartbeat SET beats = beats + 1")

    def require_whole(self) -> None:
        """Look whether the file is still there, the same and readable: what is written notices none of it.

        Raises JournalWriteError (`damaged`), as `Database.require_whole` says.
        """
        self._database.require_whole(_READ_FIRST)

    def prove_room(self) -> None:
        """Commit more than a vote takes, and take it away: proof that votes are taken again.

        A heartbeat is one page, for which a full disk may have room when it has none for a vote.
        """
        with self._transaction():
            self.db.execute("DROP TABLE IF EXISTS room")
            self.db.execute(f"CREATE TABLE room AS SELECT zeroblob({ROOM_BYTES}) AS filler")
        with self._transaction():
            self.db.execute("DROP TABLE room")

    # --- signals and decisions ------------------------------------------------------------------------

    def answered(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Answered]:
        """What is stored under Idempotency-Keys (account, key), of those that are known."""
        found = {}
        for account, key in keys:
            row = self.db.execute(
                "SELECT body, answer FROM signal WHERE account = ? AND key = ?", (account, key)
            ).fetchone()
            if row is not None:
                found[account, key] = Answered(*row)
        return found

    def record(
        self,
        receipts: Sequence[Receipt],
        decisions: Sequence[Decision],
        now_ms: int,
        cooldown_ms: int = 0,
        queued: Collection[int] = (),
        *,
        copies: bool = False,
    ) -> Recorded:
        """Store votes, decisions and the forwards that follow from them, in one transaction.

        A forward takes the place of one of its pair and side that has not been sent: that one is expired. Of
        the windows `queued`, whoever decided believed so; one that has been sent since, or another order of
        the pair that is at work, ends the new decision as a skip instead. So no two are ever under way.
        With `copies` the meta bot gets each of these forwards as well, whatever becomes of it.
        """
        numbers = itertools.count(self._next_seq)
        with self._transaction():
            self.db.executemany(
                f"INSERT INTO signal ({SIGNAL_ROW}) VALUES ({','.join('?' * 24)})",
                [signal_row(receipt, next(numbers)) for receipt in receipts],
            )
            stored: list[Decision] = []
            changed: list[Forward] = []
            standing = Standing(cooldown_ms)
            if any(decision.outcome == FORWARD for decision in decisions):
                known = [*self.forwards(), *self._forwards_of(queued)]
                standing = Standing.of(known, cooldown_ms, now_ms)
            for decision in decisions:
                as_stored, forwards = self._decide(
                    decision, standing, now_ms, numbers, copies=copies
                )
                stored.append(as_stored)
                changed += forwards
            self._save_seq(seq := next(numbers))
        self._next_seq = seq
        return Recorded(stored, changed)

    def _decide(
        self,
        decision: Decision,
        standing: Standing,
        now_ms: int,
        numbers: Iterator[int],
        *,
        copies: bool,
    ) -> tuple[Decision, list[Forward]]:
        """Store a decision within the transaction, as the orders stand in it."""
        pair, side, window = decision.pair, decision.side, decision.window
        if decision.outcome == FORWARD:
            words = standing.against(pair, side, decision.decided_ms)
            if words is not None:
                decision = msgspec.structs.replace(decision, outcome=SKIP, reasons=(words,))
        self.db.execute(
            f"INSERT INTO decision ({DECISION_ROW}) VALUES ({','.join('?' * 19)})",
            decision_row(decision, next(numbers)),
        )
        if decision.outcome != FORWARD:
            return decision, []
        words = f"replaced by window {window}"
        changed = [
            self._enter(older, side, "expired", now_ms, next(numbers), words)
            for older in standing.queued(pair, side)
        ]
        changed.append(self._queue(window, side, now_ms, numbers))
        if copies:
            self._copy(window, now_ms, numbers)
        for forward in changed:
            standing.heard(forward, now_ms)
        return decision, changed

    def at_start(self, passed_ms: int, counted_ms: int, cooled_ms: int) -> AtStart:
        """What the decisions of a start rest on, all of one moment.

        Of the decisions those whose windows opened from `passed_ms` on, of the counted signals those that
        came from `counted_ms` on, and of the forwards that are over those that changed from `cooled_ms` on.
        """
        return AtStart(
            self.undecided(),
            self.passed_since(passed_ms),
            self.counted_since(counted_ms),
            self.standing_since(cooled_ms),
            self.next_number(),
        )

    def undecided(self) -> list[Vote]:
        """The votes of windows that have not been decided, in their order."""
        rows = self.db.execute(
            f"""SELECT number, received, digest, account, {SIGNAL_COLUMNS} FROM vote
                WHERE window NOT IN (SELECT window FROM decision) ORDER BY number"""
        )
        return [Vote(row[0], row[1], signal_of(row[4:]), row[2], row[3]) for row in rows]

    def passed_since(self, since_ms: int) -> list[Decision]:
        """The decisions that passed and whose windows opened since then, in the order of the windows."""
        rows = self.db.execute(
            f"SELECT {DECISION_COLUMNS} FROM decision WHERE opened >= ? AND passed ORDER BY window",
            (since_ms,),
        )
        return [decision_of(row) for row in rows]

    def counted_since(self, since_ms: int) -> list[Earlier]:
        """The signals that came since then and were counted, in their order."""
        rows = self.db.execute(
            """SELECT vote.account, vote.digest, vote.received, vote.window,
                      coalesce(first.received, vote.received)
               FROM vote LEFT JOIN signal AS first ON first.number = vote.window
               WHERE vote.received >= ? ORDER BY vote.number""",
            (since_ms,),
        )
        return [Earlier(*row) for row in rows]

    # --- retention ---------------------------------------------------------------------------------

    def delete_old(self, keep_ms: int, below_seq: int | None = None) -> int:
        """Delete some of what is older than `keep_ms`, counted back from the newest vote.

        Never from the wall clock, and a day on which nothing was received does not count: what came while
        the clock was ahead, however far, must not delete the days before it. Rows from `below_seq` on have
        not been shipped yet and stay, as do votes that wait for a decision and forwards in an open state.
        Returns how many rows went; call again until it is 0.
        """
        oldest_ms = self._oldest_kept(keep_ms)
        if oldest_ms is None:
            return 0
        below = self._next_seq if below_seq is None else below_seq
        old = (oldest_ms, below)
        open_states = ",".join(repr(state) for state in OPEN_STATES)
        no_copy = self._no_copy_of_it
        with self._transaction():
            gone = self.db.execute(
                f"""DELETE FROM forward WHERE window IN (
                        SELECT window FROM decision WHERE decided < ? LIMIT {DELETED_AT_ONCE})
                    AND seq < ? AND state NOT IN ({open_states})""",
                old,
            ).rowcount
            gone += self._delete_copies(*old, DELETED_AT_ONCE)
            gone += self.db.execute(
                f"""DELETE FROM signal WHERE number IN (
                        SELECT number FROM signal WHERE received < ? AND seq < ?
                        AND window IN (SELECT window FROM decision) LIMIT {DELETED_AT_ONCE})""",
                old,
            ).rowcount
            gone += self.db.execute(
                f"""DELETE FROM decision WHERE window IN (
                        SELECT window FROM decision WHERE decided < ? AND seq < ?
                        AND window NOT IN (SELECT window FROM forward) {no_copy}
                        AND window NOT IN (SELECT window FROM signal) LIMIT {DELETED_AT_ONCE})""",
                old,
            ).rowcount
        return gone

    def _oldest_kept(self, keep_ms: int) -> int | None:
        """The time from which on everything is kept; None: nothing is old."""
        (newest_ms,) = self.db.execute("SELECT max(received) FROM signal").fetchone()
        day_ms = newest_ms
        # The days on which anything was received, from the newest on: one seek each.
        for _ in range(keep_ms // DAY_MS + 1):
            if day_ms is None:
                return None
            start_ms = day_ms - day_ms % DAY_MS
            (day_ms,) = self.db.execute(
                "SELECT max(received) FROM signal WHERE received < ?", (start_ms,)
            ).fetchone()
        return None if day_ms is None else min(newest_ms - keep_ms, start_ms)
