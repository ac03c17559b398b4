"""The tables of a ledger, and how a file is taken from one schema version to the other."""

import hashlib
import logging
import sqlite3
from types import MappingProxyType
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.aggregator.ledger_tables import DECISION_ROW
from marketfeed.storage import acknowledged
from marketfeed.storage.damage import is_damage, is_failed_read
from marketfeed.storage.database import Kind, transaction

log = logging.getLogger(__name__)

_CREATE_DECISION: Final = """
CREATE TABLE decision(
    window INTEGER PRIMARY KEY,
    pair TEXT NOT NULL, side TEXT NOT NULL,
    opened INTEGER NOT NULL, decided INTEGER NOT NULL, expires INTEGER NOT NULL,
    outcome TEXT NOT NULL, passed INTEGER NOT NULL, reasons TEXT NOT NULL,
    votes INTEGER NOT NULL, of INTEGER NOT NULL, confidence REAL NOT NULL,
    "primary" TEXT NOT NULL, feeders TEXT NOT NULL, tag TEXT NOT NULL,
    leverage REAL{leverage}, ordertype TEXT NOT NULL, price REAL, seq INTEGER NOT NULL
);
CREATE INDEX decision_decided ON decision(decided);
CREATE UNIQUE INDEX decision_seq ON decision(seq)"""
_CREATE_FORWARD: Final = """
CREATE TABLE forward(
    window INTEGER NOT NULL, bot TEXT NOT NULL,
    state TEXT NOT NULL, changed INTEGER NOT NULL,
    attempts INTEGER NOT NULL, sent INTEGER, answered INTEGER,
    status INTEGER, answer TEXT NOT NULL, trade_id INTEGER, seq INTEGER NOT NULL,
    PRIMARY KEY (window, bot)
) WITHOUT ROWID;
CREATE INDEX forward_state ON forward(state);
CREATE UNIQUE INDEX forward_seq ON forward(seq)"""
_CREATE_FORWARD_1: Final = """
CREATE TABLE forward(
    window INTEGER PRIMARY KEY,
    side TEXT NOT NULL, state TEXT NOT NULL, changed INTEGER NOT NULL,
    attempts INTEGER NOT NULL, sent INTEGER, answered INTEGER,
    status INTEGER, answer TEXT NOT NULL, seq INTEGER NOT NULL
);
CREATE INDEX forward_state ON forward(state);
CREATE UNIQUE INDEX forward_seq ON forward(seq)"""
_CREATE_OPENED: Final = "CREATE INDEX IF NOT EXISTS decision_opened ON decision(opened)"
"""What a start reads passed decisions by. Files of version 2 from before it get it when they are opened."""
_CREATE_VIEWS: Final = """
CREATE VIEW vote AS
    SELECT * FROM signal WHERE outcome = 'voted';
CREATE VIEW forwarded AS
    SELECT forward.*, decision.pair, {side}decision."primary", decision.decided, decision.expires,
           decision.tag, decision.leverage, decision.ordertype, decision.price
    FROM forward JOIN decision ON decision.window = forward.window"""
_VIEWS: Final = _CREATE_VIEWS.format(side="decision.side, ")
_META: Final = """
CREATE TABLE meta(
    version INTEGER NOT NULL, readers_from INTEGER NOT NULL, writers_from INTEGER NOT NULL
);
INSERT INTO meta (version, readers_from, writers_from) VALUES (2, 2, 2)"""
FRESH: Final = "a fresh ledger"
"""Why nothing may be forwarded by a ledger that has just been made: see `beginning.held`."""
_CREATE_BEGINNING: Final = """
CREATE TABLE beginning(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    held TEXT NOT NULL
)"""
_BEGUN: Final = f"""{_CREATE_BEGINNING};
INSERT INTO beginning (id, name, held) VALUES (1, lower(hex(randomblob(8))), '{FRESH}')"""
"""In the transaction that makes the file: however soon a kill comes, it is known to be fresh."""
_CREATE_CLOCK: Final = """
CREATE TABLE IF NOT EXISTS clock(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot TEXT NOT NULL,
    booted INTEGER NOT NULL
)"""
"""By which clock the times of the last start are: of which run of the host, and when that began by it."""
_CREATE_REFUSED_POST: Final = """
CREATE TABLE IF NOT EXISTS refused_post(
    key BLOB PRIMARY KEY,
    sender TEXT NOT NULL, change INTEGER NOT NULL,
    account TEXT NOT NULL, identity TEXT NOT NULL, address TEXT NOT NULL,
    feeder TEXT NOT NULL, request TEXT NOT NULL,
    status INTEGER NOT NULL, reason TEXT NOT NULL, sentence TEXT NOT NULL,
    digest BLOB NOT NULL, body_bytes INTEGER,
    first INTEGER NOT NULL, last INTEGER NOT NULL, times INTEGER NOT NULL
) WITHOUT ROWID"""
"""Counted posts that were no signal: see `ledger_refused`. Not shipped, so without numbers."""
_GROWN: Final = (
    _CREATE_BEGINNING.replace("TABLE", "TABLE IF NOT EXISTS"),
    _CREATE_CLOCK,
    _CREATE_REFUSED_POST,
    "INSERT OR IGNORE INTO beginning (id, name, held) VALUES (1, '', '')",
)
"""For a file of before: it has no name yet, and whether it is the right one the mark beside it says."""

_COPIES: Final = (
    """
CREATE TABLE IF NOT EXISTS meta_forward(
    window INTEGER NOT NULL, bot TEXT NOT NULL,
    state TEXT NOT NULL, changed INTEGER NOT NULL,
    attempts INTEGER NOT NULL, sent INTEGER, answered INTEGER,
    status INTEGER, answer TEXT NOT NULL, trade_id INTEGER, seq INTEGER NOT NULL,
    PRIMARY KEY (window, bot)
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS meta_forward_state ON meta_forward(state)",
    "CREATE UNIQUE INDEX IF NOT EXISTS meta_forward_seq ON meta_forward(seq)",
    """
CREATE TABLE IF NOT EXISTS meta_start(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    held TEXT NOT NULL
)""",
    "INSERT OR IGNORE INTO meta_start (id, held) VALUES (1, '')",
)
"""What the meta bot gets, apart from `forward`, and why nothing may be sent to it yet.

An older marketfeed that goes on with the file takes each forward for one of its side. No view: its way back
to version 1 makes `decision` anew, and SQLite refuses that while an unknown view reads it.
"""

COPIED: Final = """(
    SELECT copy.*, decision.pair, decision.side, decision."primary", decision.decided, decision.tag
    FROM meta_forward AS copy JOIN decision ON decision.window = copy.window)"""
"""What the meta bot got, as the view `forwarded` shows the others: to be read from."""

_CREATE: Final = f"""
{_META};
{_BEGUN};
{_CREATE_CLOCK};
{_CREATE_REFUSED_POST};
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL,
    commits INTEGER NOT NULL DEFAULT 0
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
    outcome TEXT NOT NULL, window INTEGER NOT NULL, answer TEXT NOT NULL, seq INTEGER NOT NULL,
    strength_text TEXT, unknown_fields TEXT
);
CREATE UNIQUE INDEX signal_key ON signal(account, key) WHERE key IS NOT NULL;
CREATE INDEX signal_window ON signal(window);
CREATE INDEX signal_received ON signal(received);
CREATE UNIQUE INDEX signal_seq ON signal(seq);
{_CREATE_DECISION.format(leverage="")};
{_CREATE_OPENED};
{_CREATE_FORWARD};
{_VIEWS};
{";".join(_COPIES)};
{acknowledged.CREATE_SHIPPED.strip().removesuffix(";")};
"""

MEASUREMENTS: Final = (schema.SIGNAL, schema.ENSEMBLE)
"""Whose rows a ledger numbers."""
_OPENED: Final = "'trade ' || CAST(substr(answer, 7) AS INTEGER)"
"""How an answer of version 1 begins that names a trade."""


def has_copies(db: sqlite3.Connection) -> bool:
    """Whether a ledger has a place for copies: not if it is of before, or could not be grown."""
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta_forward'").fetchone()
    return found is not None


def _made_anew(table: str, create: str, columns: str, values: str) -> list[str]:
    """The statements that make a table anew, with its indexes, and take its rows over."""
    return [
        f"ALTER TABLE {table} RENAME TO {table}_before",
        *(f"DROP INDEX {name}" for name in _INDEXES[table]),
        *create.split(";"),
        f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table}_before",
        f"DROP TABLE {table}_before",
    ]


_INDEXES: Final = MappingProxyType(
    {
        "decision": ("decision_decided", "decision_seq"),
        "forward": ("forward_state", "forward_seq"),
    }
)


def _to_2(db: sqlite3.Connection) -> None:
    """A forward is one bot's; what a trade is called has a column; a decision may leave leverage to a bot."""
    for statement in (
        *_META.split(";"),
        *_GROWN,
        "ALTER TABLE sequence ADD COLUMN commits INTEGER NOT NULL DEFAULT 0",
        "DROP VIEW forwarded",
        "DROP VIEW vote",
        "ALTER TABLE signal ADD COLUMN strength_text TEXT",
        "ALTER TABLE signal ADD COLUMN unknown_fields TEXT",
        *_made_anew("decision", _CREATE_DECISION.format(leverage=""), DECISION_ROW, DECISION_ROW),
        _CREATE_OPENED,
        *_made_anew(
            "forward",
            _CREATE_FORWARD,
            f"window, bot, {_FORWARD_BOTH}, trade_id",
            f"""window, side, {_FORWARD_BOTH},
                CASE WHEN state IN ('accepted', 'found')
                     AND (answer = {_OPENED} OR answer LIKE {_OPENED} || ' in the bot, opened %')
                THEN CAST(substr(answer, 7) AS INTEGER) END""",
        ),
        *_VIEWS.split(";"),
        *_COPIES,
    ):
        db.execute(statement)
    acknowledged.name_measurements(db, MEASUREMENTS)


def _grow(db: sqlite3.Connection) -> None:
    """Add what version 2 has gained since its first day: older writers and readers do not mind it."""
    try:
        with transaction(db):
            for statement in (_CREATE_OPENED, *_GROWN, *_COPIES):
                db.execute(statement)
    except sqlite3.OperationalError as error:
        if is_damage(error) or is_failed_read(error):
            raise
        # A full disk, most often. Without a commit nothing is forwarded, and a start must not fail for it.
        log.warning("ledger not grown, going on with it as it is error=%r", str(error))


def columns_beside(db: sqlite3.Connection) -> str:
    """The columns of what a signal has beside its vote, of any version: those of version 1 have none."""
    found = db.execute("SELECT 1 FROM pragma_table_info('signal') WHERE name = 'unknown_fields'")
    return "strength_text, unknown_fields" if found.fetchone() else "NULL, NULL"


def _back_to_1(db: sqlite3.Connection) -> None:
    """Forwards to a bot that version 1 does not know are left out; a leverage that was left to a bot is 1.

    Of every body its SHA-256 is left: the first release compares no other with that of a repeated signal.
    """
    acknowledged.name_no_measurements(db, MEASUREMENTS)
    db.create_function("body_1", 1, body_1, deterministic=True)
    decisions = DECISION_ROW.replace(" leverage,", " coalesce(leverage, 1.0),")
    for statement in (
        "DROP TABLE meta",
        "DROP TABLE IF EXISTS beginning",
        "DROP TABLE IF EXISTS clock",
        "DROP TABLE IF EXISTS meta_forward",
        "DROP TABLE IF EXISTS meta_start",
        "DROP TABLE IF EXISTS refused_post",
        "ALTER TABLE sequence DROP COLUMN commits",
        "DROP VIEW forwarded",
        "DROP VIEW vote",
        "ALTER TABLE signal DROP COLUMN strength_text",
        "ALTER TABLE signal DROP COLUMN unknown_fields",
        "UPDATE signal SET body = body_1(body)",
        *_made_anew(
            "decision", _CREATE_DECISION.format(leverage=" NOT NULL"), DECISION_ROW, decisions
        ),
        "DELETE FROM forward WHERE bot NOT IN ('long', 'short')",
        *_made_anew(
            "forward",
            _CREATE_FORWARD_1,
            f"window, side, {_FORWARD_BOTH}",
            f"window, bot, {_FORWARD_BOTH}",
        ),
        *_CREATE_VIEWS.format(side="").split(";"),
    ):
        db.execute(statement)


def body_1(body: bytes) -> bytes:
    """The SHA-256 of a body, or what is one already: of an older row, or of a long body."""
    digest = hashlib.sha256(body).digest()
    if len(body) != len(digest):
        return digest
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    return digest


_FORWARD_BOTH: Final = "state, changed, attempts, sent, answered, status, answer, seq"

KIND: Final = Kind(
    name="ledger",
    setting="aggregator.ledger.path",
    application_id=0x4D4B4C47,
    version=2,
    kept=2,
    create=_CREATE,
    migrations=MappingProxyType({1: _to_2}),
    ways_back=MappingProxyType({2: _back_to_1}),
    measurements=MEASUREMENTS,
    grow=_grow,
)
