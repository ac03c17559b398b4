"""The votes of one pair and side, and what they come to. Pure.

The latest vote of a feeder counts, once. Times are ms since the epoch.
"""

from marketfeed.aggregator.ballots import FORWARD, SKIP, Decision, Rules, Vote
from marketfeed.aggregator.mean import Mean
from marketfeed.aggregator.signals import Side

PURE = True


class Window:
    """One window: it opens with its first vote, whose number is its own, and closes at `closes_ms`.

    `received_ms` is when the first vote came, by the clock of that time; `opened_ms` by the clock of this
    start, when what came ahead of it counts as its start.
    """

    __slots__ = (
        "account",
        "closes_ms",
        "number",
        "opened_ms",
        "pair",
        "received_ms",
        "side",
        "votes",
    )

    def __init__(self, vote: Vote, opened_ms: int, rules: Rules) -> None:
        self.number = vote.number
        self.account = vote.account
        self.pair = vote.signal.pair
        self.side: Side = vote.signal.side
        self.received_ms = vote.received_ms
        self.opened_ms = opened_ms
        self.closes_ms = opened_ms + rules.window_ms
        self.votes: dict[str, Vote] = {}

    def take(self, vote: Vote) -> None:
        """Count a vote instead of an earlier one of its feeder."""
        self.votes[vote.signal.feeder] = vote

    def confidence(self) -> Mean:
        """The mean of the votes' confidences."""
        return Mean.of(vote.signal.confidence for vote in self.votes.values())

    def failures(self, rules: Rules, of: int, now_ms: int) -> list[str]:
        """What keeps these votes, of `of` that there may be, from passing as they stand."""
        late_ms = now_ms - self.closes_ms
        found = []
        if late_ms >= rules.expire_ms:
            found.append(
                f"expired: the window closed {late_ms / 1000:.1f} s ago, while nobody was here"
            )
        if len(self.votes) < rules.min_agreements:
            found.append(f"{len(self.votes)} of {of} votes, {rules.min_agreements} needed")
        least = rules.min_confidence
        if (confidence := self.confidence()).is_below(least):
            found.append(f"confidence {confidence.text_below(least)}, {least:g} needed")
        return found

    def decision(
        self, rules: Rules, of: int, now_ms: int, against: list[str], *, passed: bool
    ) -> Decision:
        """What it comes to now: forwarded, unless something is `against` it."""
        primary = self._primary()
        signal = primary.signal
        votes, confidence = len(self.votes), self.confidence()
        reasons = list(against) or [f"{votes} of {of} votes, confidence {confidence.text(4)}"]
        leverage = rules.default_leverage if signal.leverage is None else signal.leverage
        if leverage is not None and leverage > rules.max_leverage:
            reasons.append(
                f"leverage {leverage:g} of {signal.posted_as} capped to {rules.max_leverage:g}"
            )
            leverage = rules.max_leverage
        ordertype = signal.ordertype or rules.ordertypes[0]
        if ordertype not in rules.ordertypes:
            reasons.append(f"order type {ordertype} of {signal.posted_as} is not allowed")
            ordertype = rules.ordertypes[0]
        return Decision(
            window=self.number,
            pair=self.pair,
            side=self.side,
            opened_ms=self.received_ms,
            decided_ms=now_ms,
            expires_ms=min(now_ms, self.closes_ms) + rules.expire_ms,
            outcome=SKIP if against else FORWARD,
            passed=passed,
            reasons=tuple(reasons),
            votes=votes,
            electorate_size=of,
            confidence=confidence.nearest(),
            primary=signal.posted_as,
            feeders=tuple(sorted(self.votes)),
            tag=f"{self.side} ensemble {votes}/{of} conf={confidence.text()} from={signal.posted_as}",
            leverage=leverage,
            ordertype=ordertype,
            price=signal.price if ordertype == "limit" else None,
        )

    def _primary(self) -> Vote:
        """The vote with the highest confidence; of equal ones the earliest."""
        return min(self.votes.values(), key=lambda vote: (-vote.signal.confidence, vote.number))
