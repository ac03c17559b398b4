"""A decision as a ledger records it, for tests that need orders and no votes."""

from marketfeed.aggregator.ballots import Decision
from marketfeed.aggregator.signals import Side


def decide(
    window: int,
    pair: str = "BTC/USDT:USDT",
    side: Side = "long",
    at_ms: int = 1_000,
    tag: str = "",
) -> Decision:
    """One that is forwarded; `tag` as of a vote of 3 feeders of 5, unless given."""
    return Decision(
        window=window,
        pair=pair,
        side=side,
        opened_ms=at_ms,
        decided_ms=at_ms,
        expires_ms=at_ms + 30_000,
        outcome="forward",
        passed=True,
        reasons=("3 of 5 votes",),
        votes=3,
        electorate_size=5,
        confidence=0.8,
        primary="79",
        feeders=("73", "74", "79"),
        tag=tag or f"{side} ensemble 3/5 conf=0.80 from=79",
        leverage=1.0,
        ordertype="market",
        price=None,
    )
