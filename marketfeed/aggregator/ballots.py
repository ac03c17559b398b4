"""What is voted on and by which rules: votes, decisions, what became of a vote. Pure.

Times are ms since the epoch, by a clock that the monotonic one drives.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from marketfeed.aggregator.signals import SIDES, Electorate, Side, Signal

PURE = True

Outcome = Literal["voted", "duplicate"]
FORWARD: Final = "forward"
SKIP: Final = "skip"

OTHER: Final[Mapping[Side, Side]] = {"long": "short", "short": "long"}


class Rules(msgspec.Struct, frozen=True):
    """How is decided. Confidences are from 0 to 1; the order types, the preferred one first.

    `default_leverage` None leaves leverage to the bot. With `on_conflict: neither`, a full house waits for
    `early_grace_ms` from its window's first vote; None: until the window's end.
    """

    window_ms: int
    min_agreements: int
    min_confidence: float
    on_conflict: Literal["both", "neither"]
    cooldown_ms: int
    expire_ms: int
    default_leverage: float | None
    max_leverage: float
    ordertypes: tuple[str, ...]
    electorate: Electorate
    bots: tuple[Side, ...] = SIDES
    """The sides that have a bot."""
    early_grace_ms: int | None = 0
    copies: bool = False
    """Whether the meta bot gets each forward as well."""


class Vote(msgspec.Struct, frozen=True):
    """A signal as it was received: its number, rising with every one, and when (ms)."""

    number: int
    received_ms: int
    signal: Signal
    digest: bytes
    """What distinguishes the signal from another of the same feeder: the same digest is the same signal."""
    account: str = ""
    """Who posted it."""


class Decision(msgspec.Struct, frozen=True):
    """What a window came to. `window` is the number of its first vote.

    `confidence` is the mean, as the nearest double; in `tag` and `reasons` it is rounded once, half up.
    `primary` is the feeder with the highest confidence, as it called itself. Forwarded until
    `expires_ms`, with `tag`, `leverage`, `ordertype` and, of a limit order, `price`.
    """

    window: int
    pair: str
    side: Side
    opened_ms: int
    decided_ms: int
    expires_ms: int
    outcome: Literal["forward", "skip"]
    passed: bool
    """Whether quorum and confidence were there, forwarded or not: what a conflict is measured by."""
    reasons: tuple[str, ...]
    votes: int
    electorate_size: int
    confidence: float
    primary: str
    feeders: tuple[str, ...]
    tag: str
    leverage: float | None
    ordertype: str
    price: float | None


class Counted(msgspec.Struct, frozen=True):
    """What became of a vote: counted in `window` or a duplicate of one there; votes so far, of how many."""

    outcome: Outcome
    window: int
    votes: int
    electorate_size: int
    closes_ms: int


Key = tuple[str, Side]
"""A pair and a side."""
