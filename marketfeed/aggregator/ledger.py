"""The ledger: one SQLite file of what was received, decided and forwarded. Durable when a call returns.

A forward goes through these states, and no other way (`STEPS`):

    queued ──► sending ──► accepted | refused      the bot's answer, which is final
       ▲          │ └────► unknown ──► found | lost   settled by looking into the bot; lost alarms
       └──────────┘ nothing was sent (connect refused)
    queued | sending ──► expired    nothing was sent, and it is too late (sending: when it stood there)

`sending` is on the disk before the POST, so that after a crash whatever stands there is `unknown`, and no
decision is ever sent twice. Times are ms since the epoch. Every row that is shipped carries a `seq`, as in
the journal.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self

import msgspec

from marketfeed.aggregator.signals import Side, Signal
from marketfeed.aggregator.votes import FORWARD, Decision, Outcome, Vote
from marketfeed.errors import LedgerError
from marketfeed.storage import acknowledged
from marketfeed.storage.database import Database, Kind, errors_told, has_been_open
from marketfeed.storage.ranges import Ranges
from marketfeed.storage.reading import FileFound, inspect

State = Literal["queued", "sending", "unknown", "accepted", "refused", "expired", "found", "lost"]
STEPS: Final[Mapping[State, tuple[State, ...]]] = MappingProxyType(
    {
        "sending": ("queued",),
        "queued": ("sending",),
        "accepted": ("sending",),
        "refused": ("sending",),
        "unknown": ("sending",),
        "expired": ("queued", "sending"),
        "found": ("unknown", "lost"),
        "lost": ("unknown",),
    }
)
"""State -> the states from which it may be entered."""
OPEN_STATES: Final[tuple[State, ...]] = ("queued", "sending", "unknown")

DELETED_AT_ONCE: Final = 5_000
"""Rows that one transaction of retention deletes at most, so that signals pass in between."""

DAY_MS: Final = 86_400_000
ANSWERED_BEFORE_MS: Final = 600_000
"""An order that was answered so long before another was sent has no trade that opened after that."""

ROOM_BYTES: Final = 65_536
"""What `prove_room` writes: a commit of a few votes is half of it."""

_CREATE: Final = f"""
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL
);
INSERT INTO sequence VALUES (1, 1);
CREATE TABLE heartbeat(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
);
INSERT INTO heartbeat VALUES (1, 0);
CREATE TABLE signal(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received INTEGER NOT NULL, account TEXT NOT NULL, address TEXT NOT NULL,
    key TEXT, body BLOB NOT NULL, digest BLOB NOT NULL,
    pair TEXT NOT NULL, side TEXT NOT NULL, feeder TEXT NOT NULL, called TEXT NOT NULL,
    confidence REAL NOT NULL, leverage REAL, ordertype TEXT, price REAL, strength REAL,
    tag TEXT NOT NULL, defaulted TEXT NOT NULL,
    outcome TEXT NOT NULL, window INTEGER NOT NULL, answer TEXT NOT NULL, seq INTEGER NOT NULL
);
CREATE UNIQUE INDEX signal_key ON signal(account, key) WHERE key IS NOT NULL;
CREATE INDEX signal_window ON signal(window);
CREATE INDEX signal_received ON signal(received);
CREATE UNIQUE INDEX signal_seq ON signal(seq);
CREATE TABLE decision(
    window INTEGER PRIMARY KEY,
    pair TEXT NOT NULL, side TEXT NOT NULL,
    opened INTEGER NOT NULL, decided INTEGER NOT NULL, expires INTEGER NOT NULL,
    outcome TEXT NOT NULL, passed INTEGER NOT NULL, reasons TEXT NOT NULL,
    votes INTEGER NOT NULL, of INTEGER NOT NULL, confidence REAL NOT NULL,
    "primary" TEXT NOT NULL, feeders TEXT NOT NULL, tag TEXT NOT NULL,
    leverage REAL NOT NULL, ordertype TEXT NOT NULL, price REAL, seq INTEGER NOT NULL
);
CREATE INDEX decision_decided ON decision(decided);
CREATE UNIQUE INDEX decision_seq ON decision(seq);
CREATE TABLE forward(
    window INTEGER PRIMARY KEY,
    side TEXT NOT NULL, state TEXT NOT NULL, changed INTEGER NOT NULL,
    attempts INTEGER NOT NULL, sent INTEGER, answered INTEGER,
    status INTEGER, answer TEXT NOT NULL, seq INTEGER NOT NULL
);
CREATE INDEX forward_state ON forward(state);
CREATE UNIQUE INDEX forward_seq ON forward(seq);
CREATE VIEW vote AS
    SELECT * FROM signal WHERE outcome = 'voted';
CREATE VIEW forwarded AS
    SELECT forward.*, decision.pair, decision."primary", decision.decided, decision.expires,
           decision.tag, decision.leverage, decision.ordertype, decision.price
    FROM forward JOIN decision ON decision.window = forward.window;
{acknowledged.CREATE_SHIPPED.strip().removesuffix(";")}
"""

KIND: Final = Kind(
    name="ledger",
    setting="aggregator.ledger.path",
    application_id=0x4D4B4C47,
    version=1,
    create=_CREATE,
    migrations=MappingProxyType({}),
)


def inspect_ledger(path: Path) -> FileFound | None:
    """Look at the ledger at `path` without changing anything; None if there is none.

    Raises JournalForeignError, JournalNewerError, or JournalError when it is unreadable or damaged.
    """
    return inspect(KIND, path)


class Receipt(msgspec.Struct, frozen=True):
    """A vote as it is stored: who posted it from where, the body that is kept, and the answer it got."""

    vote: Vote
    account: str
    address: str
    key: str | None
    body: bytes
    outcome: Outcome
    window: int
    answer: str


class Answered(msgspec.Struct, frozen=True):
    """What was stored under an Idempotency-Key: of the first body what is kept, and its answer."""

    body: bytes
    answer: str


class Forward(msgspec.Struct, frozen=True):
    """A decision on its way to the bot of its side, in one of the states above."""

    window: int
    pair: str
    side: Side
    primary: str
    tag: str
    leverage: float
    ordertype: str
    price: float | None
    decided_ms: int
    expires_ms: int
    state: State
    changed_ms: int
    attempts: int
    sent_ms: int | None
    answered_ms: int | None
    status: int | None
    answer: str


class Ledger:
    """The one writer of a ledger file.

    Not safe for concurrent calls: give it to one thread. Whatever writes raises JournalWriteError when
    SQLite cannot; nothing of that call is stored then.
    """

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self.loss = ""
        """What became of a predecessor that should stand here; empty when nothing is known to be lost."""
        if database.set_aside is not None:
            self.loss = f"the ledger was damaged and set aside as {database.set_aside}"
        self._database = database
        self._db = database.db
        self._next_seq = 1
        self._reload()

    @classmethod
    def open(cls, path: Path, *, wait_lock_s: float = 0.0) -> Self:
        """Open or create the ledger at `path` and take its lock, as `Database.open` says.

        Raises JournalWriteError, too, when it cannot be read though the check has found nothing.
        """
        vanished = has_been_open(path) and not path.exists()
        database = Database.open(KIND, path, wait_lock_s=wait_lock_s)
        try:
            with errors_told(KIND, path):
                ledger = cls(database)
            if vanished and not ledger.loss:
                ledger.loss = f"the ledger {path} was gone, a fresh one was begun"
            return ledger
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Checkpoint, close the file and give the lock back. Safe to call twice."""
        self._database.close()

    @property
    def next_seq(self) -> int:
        """The number that the next stored row gets; every stored one is smaller."""
        return self._next_seq

    def next_number(self) -> int:
        """The number of the next vote: greater than any that was ever stored."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'signal'").fetchone()
        return 1 if row is None else int(row[0]) + 1

    def beat(self) -> None:
        """Commit something: proof that the file takes what is written."""
        with self._transaction():
            # A number that changes: SQLite writes no page for a value that stands there already.
            self._db.execute("UPDATE heartbeat SET beats = beats + 1")

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
            self._db.execute("DROP TABLE IF EXISTS room")
            self._db.execute(f"CREATE TABLE room AS SELECT zeroblob({ROOM_BYTES}) AS filler")
        with self._transaction():
            self._db.execute("DROP TABLE room")

    # --- signals and decisions ------------------------------------------------------------------------

    def answered(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Answered]:
        """What is stored under Idempotency-Keys (account, key), of those that are known."""
        found = {}
        for account, key in keys:
            row = self._db.execute(
                "SELECT body, answer FROM signal WHERE account = ? AND key = ?", (account, key)
            ).fetchone()
            if row is not None:
                found[account, key] = Answered(*row)
        return found

    def record(
        self, receipts: Sequence[Receipt], decisions: Sequence[Decision], now_ms: int
    ) -> None:
        """Store votes, decisions and the forwards that follow from them, in one transaction."""
        with self._transaction():
            seq = self._next_seq
            self._db.executemany(
                f"INSERT INTO signal VALUES ({','.join('?' * 22)})",
                [_signal_row(receipt, seq + index) for index, receipt in enumerate(receipts)],
            )
            seq += len(receipts)
            for decision in decisions:
                self._db.execute(
                    f"INSERT INTO decision VALUES ({','.join('?' * 19)})",
                    _decision_row(decision, seq),
                )
                seq += 1
                if decision.outcome == FORWARD:
                    self._db.execute(
                        "INSERT INTO forward VALUES (?, ?, 'queued', ?, 0, NULL, NULL, NULL, '', ?)",
                        (decision.window, decision.side, now_ms, seq),
                    )
                    seq += 1
            self._save_seq(seq)
        self._next_seq = seq

    def undecided(self) -> list[Vote]:
        """The votes of windows that have not been decided, in their order."""
        rows = self._db.execute(
            f"""SELECT number, received, digest, {_SIGNAL_COLUMNS} FROM vote
                WHERE window NOT IN (SELECT window FROM decision) ORDER BY number"""
        )
        return [Vote(row[0], row[1], _signal(row[3:]), row[2]) for row in rows]

    def decided_since(self, since_ms: int) -> list[tuple[Decision, list[tuple[str, bytes]]]]:
        """The decisions since then, oldest first, each with (feeder, digest) of its votes."""
        rows = self._db.execute(
            f"SELECT {_DECISION_COLUMNS} FROM decision WHERE decided >= ? ORDER BY decided, window",
            (since_ms,),
        ).fetchall()
        return [
            (
                _decision(row),
                self._db.execute(
                    "SELECT feeder, digest FROM vote WHERE window = ?", (row[0],)
                ).fetchall(),
            )
            for row in rows
        ]

    # --- forwards ---------------------------------------------------------------------------------

    def forwards(self, states: Sequence[State] = OPEN_STATES) -> list[Forward]:
        """The forwards in `states`, oldest first."""
        marks = ",".join("?" * len(states))
        rows = self._db.execute(
            f"SELECT {_FORWARD_COLUMNS} FROM forwarded WHERE state IN ({marks}) ORDER BY window",
            tuple(states),
        )
        return [Forward(*row) for row in rows]

    def is_another_s(
        self, forward: Forward, trade_id: int, opened_by_ms: int, since_ms: int, *, added: bool
    ) -> bool:
        """Whether a trade of this pair, side and tag is another forward's than this one.

        It is whose answer names it, sent within a day of it and not answered long before this one was sent: a
        bot with a fresh database counts anew. One that nobody names (or an order `added` to a trade, which
        has no name) is that of the newest forward which had been sent when it opened, by `opened_by_ms`. This
        one's trade opened after `since_ms`.
        """
        (found,) = self._db.execute(
            """SELECT EXISTS(SELECT 1 FROM forwarded
                WHERE pair = :pair AND side = :side AND tag = :tag AND window != :window AND (
                    state IN ('accepted', 'found') AND NOT :added AND abs(sent - :by) < :day
                        AND (state = 'found' OR answered >= :since)
                        AND (answer = :name OR answer LIKE :name || ' in the bot, opened %')
                    OR window > :window AND sent <= :by AND (state IN ('sending', 'unknown', 'lost')
                        OR :added AND state IN ('accepted', 'found'))))""",
            {
                "pair": forward.pair,
                "side": forward.side,
                "tag": forward.tag,
                "window": forward.window,
                "name": f"trade {trade_id}",
                "by": opened_by_ms,
                "added": added,
                "day": DAY_MS,
                "since": since_ms - ANSWERED_BEFORE_MS,
            },
        ).fetchone()
        return bool(found)

    def step(
        self,
        window: int,
        state: State,
        now_ms: int,
        answer: str = "",
        status: int | None = None,
    ) -> Forward:
        """Take a forward to `state`, durably; returns it as it stands then.

        Raises LedgerError when it is not in a state from which that may be entered: a second POST is
        prevented here, whatever its caller believes. From `sending`, `queued` and `expired` are for
        callers that know that nothing has left this host.
        """
        allowed = STEPS[state]
        origins = ",".join(repr(origin) for origin in allowed)
        seq = self._next_seq
        values = {"window": window, "state": state, "now": now_ms, "answer": answer}
        with self._transaction():
            changed = self._db.execute(
                f"""UPDATE forward SET state = :state, changed = :now, seq = :seq,
                        answer = :answer, status = :status,
                        attempts = attempts + (:state = 'sending'),
                        sent = CASE WHEN :state = 'sending' THEN :now
                                    WHEN :state NOT IN ('queued', 'expired') THEN sent END,
                        answered = CASE WHEN :state IN ('accepted', 'refused', 'found') THEN :now END
                    WHERE window = :window AND state IN ({origins})""",
                values | {"status": status, "seq": seq},
            ).rowcount
            if changed != 1:
                raise LedgerError(
                    f"forward of window {window}: not {' or '.join(allowed)}, so it cannot be {state}"
                )
            self._save_seq(seq + 1)
        self._next_seq = seq + 1
        row = self._db.execute(
            f"SELECT {_FORWARD_COLUMNS} FROM forwarded WHERE window = ?", (window,)
        ).fetchone()
        return Forward(*row)

    # --- shipping ------------------------------------------------------------------------------------

    def shipped(self, target: str) -> Ranges:
        """What `target` has acknowledged, as ranges of seq."""
        return acknowledged.read_shipped(self._db, target)

    def note_shipped(self, target: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Save ranges that `target` has acknowledged; those within them are replaced."""
        with self._transaction():
            acknowledged.note_shipped(self._db, target, ranges)

    def forget_if_demanded(self, target: str) -> bool:
        """Forget what `target` has acknowledged if it is demanded that all be shipped again; says so."""
        with self._transaction():
            return acknowledged.take_demand(self._db, target)

    def put_aside(self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int) -> int:
        """Keep lines that `target` refused, each with its answer; returns how many older ones are gone."""
        with self._transaction():
            return acknowledged.put_aside(self._db, target, refused, refused_ms)

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
        with self._transaction():
            gone = self._db.execute(
                f"""DELETE FROM forward WHERE window IN (
                        SELECT window FROM decision WHERE decided < ? LIMIT {DELETED_AT_ONCE})
                    AND seq < ? AND state NOT IN ({open_states})""",
                old,
            ).rowcount
            gone += self._db.execute(
                f"""DELETE FROM signal WHERE number IN (
                        SELECT number FROM signal WHERE received < ? AND seq < ?
                        AND window IN (SELECT window FROM decision) LIMIT {DELETED_AT_ONCE})""",
                old,
            ).rowcount
            gone += self._db.execute(
                f"""DELETE FROM decision WHERE window IN (
                        SELECT window FROM decision WHERE decided < ? AND seq < ?
                        AND window NOT IN (SELECT window FROM forward)
                        AND window NOT IN (SELECT window FROM signal) LIMIT {DELETED_AT_ONCE})""",
                old,
            ).rowcount
        return gone

    def _oldest_kept(self, keep_ms: int) -> int | None:
        """The time from which on everything is kept; None: nothing is old."""
        (newest_ms,) = self._db.execute("SELECT max(received) FROM signal").fetchone()
        day_ms = newest_ms
        # The days on which anything was received, from the newest on: one seek each.
        for _ in range(keep_ms // DAY_MS + 1):
            if day_ms is None:
                return None
            start_ms = day_ms - day_ms % DAY_MS
            (day_ms,) = self._db.execute(
                "SELECT max(received) FROM signal WHERE received < ?", (start_ms,)
            ).fetchone()
        return None if day_ms is None else min(newest_ms - keep_ms, start_ms)

    # --- inside -----------------------------------------------------------------------------------

    def _save_seq(self, seq: int) -> None:
        if seq != self._next_seq:
            self._db.execute("UPDATE sequence SET next = ?", (seq,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database.transaction():
                yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._reload()
            raise

    def _reload(self) -> None:
        (self._next_seq,) = self._db.execute("SELECT next FROM sequence").fetchone()


_READ_FIRST: Final = ("SELECT next FROM sequence", "SELECT max(number) FROM signal")
_SIGNAL_COLUMNS: Final = (
    "pair, side, feeder, called, confidence, leverage, ordertype, price, strength, tag, defaulted"
)
_DECISION_COLUMNS: Final = (
    "window, pair, side, opened, decided, expires, outcome, passed, reasons, votes, of, confidence, "
    '"primary", feeders, tag, leverage, ordertype, price'
)
_FORWARD_COLUMNS: Final = (
    'window, pair, side, "primary", tag, leverage, ordertype, price, decided, expires, state, changed, '
    "attempts, sent, answered, status, answer"
)


def _signal_row(receipt: Receipt, seq: int) -> tuple[Any, ...]:
    vote, signal = receipt.vote, receipt.vote.signal
    return (
        vote.number,
        vote.received_ms,
        receipt.account,
        receipt.address,
        receipt.key,
        receipt.body,
        vote.digest,
        signal.pair,
        signal.side,
        signal.feeder,
        signal.called,
        signal.confidence,
        signal.leverage,
        signal.ordertype,
        signal.price,
        signal.strength,
        signal.tag,
        ",".join(signal.defaulted),
        receipt.outcome,
        receipt.window,
        receipt.answer,
        seq,
    )


def _signal(row: tuple[Any, ...]) -> Signal:
    defaulted = str(row[-1])
    signal = Signal(*row[:-1])
    return msgspec.structs.replace(
        signal, defaulted=tuple(defaulted.split(",")) if defaulted else ()
    )


def _decision_row(decision: Decision, seq: int) -> tuple[Any, ...]:
    return (
        decision.window,
        decision.pair,
        decision.side,
        decision.opened_ms,
        decision.decided_ms,
        decision.expires_ms,
        decision.outcome,
        int(decision.passed),
        "\n".join(decision.reasons),
        decision.votes,
        decision.of,
        decision.confidence,
        decision.primary,
        ",".join(decision.feeders),
        decision.tag,
        decision.leverage,
        decision.ordertype,
        decision.price,
        seq,
    )


def _decision(row: tuple[Any, ...]) -> Decision:
    found = Decision(*row)
    # As stored: reasons by line, feeders by comma.
    return msgspec.structs.replace(
        found,
        passed=bool(row[7]),
        reasons=tuple(str(row[8]).split("\n")),
        feeders=tuple(str(row[13]).split(",")),
    )
