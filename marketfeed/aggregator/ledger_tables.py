"""The tables of a ledger, and its rows as records: all that whoever reads one beside its writer needs.

A forward goes through these states, and no other way (`STEPS`):

    queued ──► sending ──► accepted | refused      the bot's answer, which is final
       ▲          │ └────► unknown ──► found | lost   settled by looking into the bot; lost alarms
       └──────────┘ nothing was sent (connect refused)
    queued | sending ──► expired    nothing was sent, and it is too late (sending: when it stood there)

Times are ms since the epoch. Every row that is shipped carries a `seq`, as in the journal.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from marketfeed.aggregator.signals import Side, Signal
from marketfeed.aggregator.votes import Decision, Outcome, Vote
from marketfeed.storage import acknowledged
from marketfeed.storage.database import Kind

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

_CREATE: Final = f"""
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL
);
INSERT INTO sequence (id, next) VALUES (1, 1);
CREATE TABLE heartbeat(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
);
INSERT INTO heartbeat (id, beats) VALUES (1, 0);
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
"""  # noqa: S608 - a constant of `acknowledged`

KIND: Final = Kind(
    name="ledger",
    setting="aggregator.ledger.path",
    application_id=0x4D4B4C47,
    version=1,
    create=_CREATE,
    migrations=MappingProxyType({}),
)


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


SIGNAL_COLUMNS: Final = (
    "pair, side, feeder, called, confidence, leverage, ordertype, price, strength, tag, defaulted"
)
DECISION_COLUMNS: Final = (
    "window, pair, side, opened, decided, expires, outcome, passed, reasons, votes, of, confidence, "
    '"primary", feeders, tag, leverage, ordertype, price'
)
SIGNAL_ROW: Final = (
    "number, received, account, address, key, body, digest, "
    f"{SIGNAL_COLUMNS}, outcome, window, answer, seq"
)
DECISION_ROW: Final = f"{DECISION_COLUMNS}, seq"
FORWARD_COLUMNS: Final = (
    'window, pair, side, "primary", tag, leverage, ordertype, price, decided, expires, state, changed, '
    "attempts, sent, answered, status, answer"
)


def signal_row(receipt: Receipt, seq: int) -> tuple[Any, ...]:
    """The row of a signal: the columns of SIGNAL_ROW."""
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


def signal_of(row: tuple[Any, ...]) -> Signal:
    """The signal of a row of SIGNAL_COLUMNS."""
    defaulted = tuple(row[-1].split(",")) if row[-1] else ()
    return Signal(*(*row[:-1], defaulted))


def decision_row(decision: Decision, seq: int) -> tuple[Any, ...]:
    """The row of a decision: the columns of DECISION_ROW."""
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


def decision_of(row: tuple[Any, ...]) -> Decision:
    """The decision of a row of DECISION_COLUMNS."""
    # As stored: reasons by line, feeders by comma.
    return msgspec.structs.replace(
        Decision(*row),
        passed=bool(row[7]),
        reasons=tuple(str(row[8]).split("\n")),
        feeders=tuple(str(row[13]).split(",")),
    )
