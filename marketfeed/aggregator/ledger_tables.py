"""A ledger's rows as records.

A forward goes through these states, and no other way (`STEPS`):

    queued ──► sending ──► accepted | refused      the bot's answer, which is final
       ▲          │ └────► unknown ──► found | lost   resolved by looking into the bot; lost alarms
       └──────────┘ nothing was sent (connect refused), or by the bot's own word nothing was opened, and
                    it may be later: `answer` and `status` are that word
    queued | sending ──► expired    nothing was sent, and it is too late (sending: when it stood there)

Times are ms since the epoch. Every row that is shipped carries a `seq`, as in the journal.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import msgspec

from marketfeed.aggregator.ballots import Decision, Outcome, Vote
from marketfeed.aggregator.repeats import Earlier
from marketfeed.aggregator.signals import Side, Signal

PURE = True

BotName = Literal["long", "short", "meta"]
"""Which bot: that of a side, or one that gets both."""
META: Final = "meta"
"""The bot that gets a copy of each forward of both sides."""
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


class Receipt(msgspec.Struct, frozen=True):
    """A vote as it is stored: who posted it from where, the body that is kept, and the answer it got."""

    vote: Vote
    account: str
    address: str
    key: str | None
    kept_body: bytes
    outcome: Outcome
    window: int
    answer: str


class Answered(msgspec.Struct, frozen=True):
    """What was stored under an Idempotency-Key: of the first body what is kept, and its answer."""

    kept_body: bytes
    answer: str


class AtStart(NamedTuple):
    """What the decisions of a start rest on.

    Votes of windows that have not been decided; decisions that passed; what was counted; forwards that may
    hold a pair or have it cool down; and the number of the next vote. Each in its order.
    """

    undecided: list[Vote]
    passed: list[Decision]
    counted: list[Earlier]
    forwards: list["Forward"]
    next_number: int


class Recorded(NamedTuple):
    """What was stored of a turn's decisions, and the forwards that are new or were replaced."""

    decisions: list[Decision]
    forwards: list["Forward"]


class Forward(msgspec.Struct, frozen=True):
    """A decision on its way to a bot, in one of the states above. `trade_id` is the trade that it opened.

    Decided by so many `votes` of `of`, with this average `confidence`.
    """

    window: int
    bot: BotName
    pair: str
    side: Side
    primary: str
    tag: str
    leverage: float | None
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
    trade_id: int | None
    votes: int
    of: int
    confidence: float


_FOUND: Final = re.compile(r"trade [0-9]+ in the bot, (?:opened|enlarged) at ([0-9]+)")


def found_words(trade_id: int, opened_ms: int, *, added: bool) -> str:
    """What is noted of an order that was found: its trade and when that opened, or was `added` to.

    The ledger has no other place for the time: `opened_ms_of` reads it from here.
    """
    return f"trade {trade_id} in the bot, {'enlarged' if added else 'opened'} at {opened_ms}"


def opened_ms_of(forward: Forward) -> int | None:
    """When the trade of an order that was found opened, by the clock of this host; None: not known."""
    found = _FOUND.match(forward.answer) if forward.state == "found" else None
    return None if found is None else int(found[1])


SIGNAL_COLUMNS: Final = (
    "pair, side, feeder, called, confidence, leverage, ordertype, price, strength, tag, defaulted, "
    "strength_text, unknown_fields"
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
_FORWARDS: Final = """
SELECT decision.window, bot, pair, side, "primary", tag, leverage, ordertype, price, decided, expires,
       state, changed, attempts, sent, answered, status, answer, trade_id, votes, of, confidence
FROM {table} AS forward JOIN decision ON decision.window = forward.window"""


def table_of(bot: BotName | None) -> str:
    """The table in which forwards to this bot stand; None: to the bots of the sides."""
    return "meta_forward" if bot == META else "forward"


def forwards_in(table: str) -> str:
    """The statement that selects the forwards of a table, called `forward` in it, as `Forward` takes them."""
    return _FORWARDS.format(table=table)


def signal_row(receipt: Receipt, seq: int) -> tuple[Any, ...]:
    """The row of a signal: the columns of SIGNAL_ROW."""
    vote, signal = receipt.vote, receipt.vote.signal
    return (
        vote.number,
        vote.received_ms,
        receipt.account,
        receipt.address,
        receipt.key,
        receipt.kept_body,
        vote.digest,
        signal.pair,
        signal.side,
        signal.feeder,
        signal.posted_as,
        signal.confidence,
        signal.leverage,
        signal.ordertype,
        signal.price,
        signal.strength,
        signal.tag,
        ",".join(signal.defaulted),
        signal.strength_text,
        signal.unknown_fields,
        receipt.outcome,
        receipt.window,
        receipt.answer,
        seq,
    )


def signal_of(row: tuple[Any, ...]) -> Signal:
    """The signal of a row of SIGNAL_COLUMNS."""
    # As stored: names by comma.
    defaulted = tuple(row[10].split(",")) if row[10] else ()
    return msgspec.structs.replace(Signal(*row), defaulted=defaulted)


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
        decision.electorate_size,
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
