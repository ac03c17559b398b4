"""What tests of voting share: feeders, rules, and the forward of a decision."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from marketfeed.aggregator.ballots import Decision, Rules
from marketfeed.aggregator.ledger_tables import Forward, State
from marketfeed.aggregator.signals import Electorate

LONG = ("73", "74", "75", "79", "108")
SHORT = ("120", "121", "122", "123", "124")
PAIR = "BTC/USDT:USDT"
T0 = 1_795_000_000_000
WINDOW = 60_000

RULES = Rules(
    window_ms=WINDOW,
    min_agreements=3,
    min_confidence=0.7,
    on_conflict="neither",
    cooldown_ms=0,
    expire_ms=30_000,
    default_leverage=1.0,
    max_leverage=5.0,
    ordertypes=("market", "limit"),
    electorate=Electorate.of(LONG, SHORT, (("75", ("75a", "75b", "75c")),)),
)


def mean_of(confidences: Iterable[float]) -> Fraction:
    """The mean of the numbers as they are written, exactly."""
    found = [Fraction(repr(confidence)) for confidence in confidences]
    return sum(found, Fraction(0)) / len(found)


def hundredths(number: Fraction) -> str:
    """It with two decimals, half up."""
    whole = math.floor(100 * number + Fraction(1, 2))
    return f"{whole // 100}.{whole % 100:02d}"


def forward_of(decision: Decision, state: State = "queued", **more: Any) -> Forward:
    """The forward of a decision, as a ledger has it."""
    fields: dict[str, Any] = {
        "window": decision.window,
        "bot": decision.side,
        "pair": decision.pair,
        "side": decision.side,
        "primary": decision.primary,
        "tag": decision.tag,
        "leverage": decision.leverage,
        "ordertype": decision.ordertype,
        "price": decision.price,
        "decided_ms": decision.decided_ms,
        "expires_ms": decision.expires_ms,
        "state": state,
        "changed_ms": decision.decided_ms,
        "attempts": 0,
        "sent_ms": None,
        "answered_ms": None,
        "status": None,
        "answer": "",
        "trade_id": None,
        "votes": decision.votes,
        "of": decision.electorate_size,
        "confidence": decision.confidence,
    }
    known = (fields | more).items()
    return Forward(**{name: value for name, value in known if name in Forward.__struct_fields__})
