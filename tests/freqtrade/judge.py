"""What has to hold between a ledger's decisions, the orders that a proxy saw, and the bots' own trades.

Each rule is a function from records to findings: sentences, none when it holds. Pure, so that a test can
plant each mistake. Times are ms since the epoch by this host's clock, which aggregator, proxy and bots share.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final

import msgspec

PURE = True

FORCEENTER: Final = "Error querying /api/v1/forceenter: "
NO_ROOM: Final = "Maximum number of trades is reached."
NOT_RUNNING: Final = "trader is not running"
REFUSED: Final = (
    NO_ROOM,
    NOT_RUNNING,
    "Force_entry not enabled.",
    "Can't go short on Spot markets.",
    "Symbol does not exist or market is not active.",
    "Wrong pair selected.",
    "position for ",
    "Failed to enter position for ",
)
"""How Freqtrade 2026.9 words (`rpc.py`, `_rpc_force_entry`) that it has opened nothing."""
ENDS: Final = frozenset({"accepted", "refused", "expired", "found", "lost"})
SOON_MS: Final = 50
"""A decision so much younger than an order need not have been known when that one was chosen."""
SLACK_MS: Final = 2_000
"""Nothing is said of a moment so near to the end of a cool-down."""
SLOW_MS: Final = 35_000
"""An order may open its trade so long after it was sent: two trades are so much nearer than their orders."""
OTHER: Final = {"long": "short", "short": "long"}
_COOLING: Final = re.compile(r"cool-?down", re.IGNORECASE)


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """A decision of the ledger; `state` is that of its forward, "" when it was not to be forwarded."""

    window: int
    pair: str
    side: str
    opened_ms: int
    decided_ms: int
    outcome: str = "forward"
    reasons: str = "why"
    votes: int = 5
    of: int = 5
    confidence: float = 0.9
    tag: str = ""
    state: str = ""
    sent_ms: int | None = None
    changed_ms: int | None = None
    answer: str = ""
    trade_id: int | None = None

    @property
    def forwarded(self) -> bool:
        """Whether it was to be sent."""
        return self.outcome == "forward"

    @property
    def rank(self) -> tuple[float, float, int]:
        """The lower, the better: share of votes, confidence, age."""
        return (-self.votes / self.of, -self.confidence, self.opened_ms)

    def __str__(self) -> str:
        return f"window {self.window} ({self.pair} {self.tag!r}, {self.state or self.outcome})"


class Posted(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the proxy in front of a bot saw it.

    `fault` is what the proxy did, "" when it passed it on. `reached`: the bot has got it. `status` and
    `words` are what the sender was answered, 0 when nothing was.
    """

    pair: str
    side: str
    tag: str
    at_ms: int
    done_ms: int
    fault: str = ""
    reached: bool = True
    status: int = 200
    words: str = ""

    @property
    def opened_nothing(self) -> bool:
        """Whether its sender knows from the answer that nothing was opened."""
        own = self.words.startswith(FORCEENTER)
        words = self.words.removeprefix(FORCEENTER)
        if self.status == 502:
            return own and words.startswith(REFUSED)
        # FastAPI's own detail: a gateway answers such a status with a page.
        return self.status in (401, 403, 404, 422) and self.words.startswith("detail: ")

    @property
    def sent_back(self) -> bool:
        """Whether the bot had no room, or traded nothing then: the decision waits for its turn again."""
        return self.opened_nothing and self.words.endswith((NO_ROOM, NOT_RUNNING))


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A trade of a bot's."""

    bot: str
    trade_id: int
    pair: str
    side: str
    tag: str
    opened_ms: int
    closed_ms: int | None = None


Orders = Mapping[int, Sequence[Posted]]
"""The orders of each window, in their order."""


def orders_of(decisions: Iterable[Decided], posts: Iterable[Posted]) -> tuple[Orders, list[str]]:
    """Which decision led to each order: the newest with its pair, side and tag; and findings."""
    known: dict[tuple[str, str, str], list[Decided]] = defaultdict(list)
    for decision in sorted(decisions, key=lambda one: one.decided_ms):
        if decision.forwarded:
            known[decision.pair, decision.side, decision.tag].append(decision)
    orders: dict[int, list[Posted]] = defaultdict(list)
    found = []
    for post in sorted(posts, key=lambda one: one.at_ms):
        # A proxy's clock reads full ms, as the ledger's does.
        made = [
            one for one in known[post.pair, post.side, post.tag] if one.decided_ms <= post.at_ms + 2
        ]
        if made:
            orders[made[-1].window].append(post)
        else:
            found.append(f"an order that no decision led to: {post.pair} {post.tag!r}")
    return orders, found


# --- at most once ---------------------------------------------------------------------------------


def sent_twice(decisions: Iterable[Decided], orders: Orders) -> list[str]:
    """A decision is sent again only after the bot's own word that it has opened nothing."""
    by_window = {one.window: one for one in decisions}
    return [
        f"{by_window[window]} was sent again {(after.at_ms - before.at_ms) / 1000:.1f} s after "
        f"{before.fault or 'an answer'} {before.status} {before.words[:80]!r}"
        for window, posts in orders.items()
        for before, after in pairwise(posts)
        if not before.opened_nothing
    ]


def traded_twice(trades: Iterable[Opened], cooldown_ms: int) -> list[str]:
    """No bot opens two trades of a pair within a cool-down."""
    by_pair: dict[tuple[str, str], list[Opened]] = defaultdict(list)
    for trade in sorted(trades, key=lambda one: one.opened_ms):
        by_pair[trade.bot, trade.pair].append(trade)
    return [
        f"bot {bot}: two trades of {pair} {(after.opened_ms - before.opened_ms) / 1000:.1f} s apart, "
        f"{before.tag!r} and {after.tag!r}"
        for (bot, pair), found in by_pair.items()
        for before, after in pairwise(found)
        if after.opened_ms - before.opened_ms < max(cooldown_ms - SLOW_MS, min(cooldown_ms, 1_000))
    ]


def ends_wrongly(decisions: Iterable[Decided], trades: Iterable[Opened]) -> list[str]:
    """Every forward has an end that is true, and everything that was not sent has a reason."""
    opened: dict[tuple[str, str, str], list[Opened]] = defaultdict(list)
    for trade in trades:
        opened[trade.pair, trade.side, trade.tag].append(trade)
    same: dict[tuple[str, str, str], list[Decided]] = defaultdict(list)
    found = []
    for one in decisions:
        if not one.reasons:
            found.append(f"{one}: decided without a reason")
        if one.forwarded:
            same[one.pair, one.side, one.tag].append(one)
            if one.state not in ENDS:
                found.append(f"{one}: has no end")
            elif one.state in ("expired", "refused", "lost") and not one.answer:
                found.append(f"{one}: ended without a reason")
    for key, ones in same.items():
        count = len(opened[key])
        sure = [one for one in ones if one.state in ("accepted", "found")]
        if count < len(sure):
            found.append(f"{sure[-1]}: {count} trades of it in the bot")
        if count > len(sure):
            states = ", ".join(
                f"window {one.window} {one.state}: {one.answer[:80]}" for one in ones
            )
            found.append(f"{key[0]} {key[2]!r}: {count} trades, and {states}")
    found += [
        f"a trade that no decision led to: {key[0]} {key[2]!r}" for key in opened if key not in same
    ]
    return found


# --- conflicts ------------------------------------------------------------------------------------


def opposite(decisions: Iterable[Decided], orders: Orders, window_ms: int) -> list[str]:
    """Both sides of a pair are not sent when their windows opened less than a window apart."""
    sent: dict[str, list[Decided]] = defaultdict(list)
    for one in decisions:
        if orders.get(one.window):
            sent[one.pair].append(one)
    return [
        f"{one.pair}: both sides were sent, windows {one.window} and {other.window} opened "
        f"{abs(one.opened_ms - other.opened_ms) / 1000:.2f} s apart"
        for ones in sent.values()
        for one, other in combinations(ones, 2)
        if one.side != other.side and abs(one.opened_ms - other.opened_ms) < window_ms
    ]


# --- cool-downs -----------------------------------------------------------------------------------


def _cooling(one: Decided, cooldown_ms: int, opened_ms: int | None) -> tuple[int, int]:
    """From when to when a forward keeps its pair and side from others, by how it ended."""
    from_ms = one.decided_ms if one.sent_ms is None else one.sent_ms
    if one.state in ("expired", "refused"):
        return one.decided_ms, one.changed_ms or one.decided_ms
    if one.state == "found" and opened_ms is not None:
        return one.decided_ms, max(from_ms, opened_ms) + cooldown_ms
    return one.decided_ms, from_ms + cooldown_ms


def wrong_cooldowns(
    decisions: Iterable[Decided], trades: Iterable[Opened], cooldown_ms: int
) -> list[str]:
    """Cool-downs follow from outcomes: none is cut short, and none holds what surely opened nothing."""
    opened = {(one.bot, one.trade_id): one.opened_ms for one in trades}
    by_key: dict[tuple[str, str], list[Decided]] = defaultdict(list)
    found = []
    for one in sorted(decisions, key=lambda one: (one.decided_ms, one.window)):
        before = [
            (other, *_cooling(other, cooldown_ms, opened.get((other.side, other.trade_id or 0))))
            for other in by_key[one.pair, one.side]
        ]
        if one.forwarded:
            by_key[one.pair, one.side].append(one)
            # What is queued yet is replaced by a newer one; what has been sent holds.
            found += [
                f"{one} was forwarded {(until_ms - one.decided_ms) / 1000:.1f} s before the cool-down of "
                f"{other} ended"
                for other, _, until_ms in before
                if other.state in ("accepted", "found", "unknown", "lost")
                and one.decided_ms < until_ms - SLACK_MS
            ]
        elif _COOLING.search(one.reasons) and not any(
            from_ms - SLACK_MS <= one.decided_ms <= until_ms + SLACK_MS
            for _, from_ms, until_ms in before
        ):
            found.append(f"{one} was held by a cool-down that nothing had begun: {one.reasons}")
    return found


# --- best first -----------------------------------------------------------------------------------


def _waiting(one: Decided, posts: Sequence[Posted]) -> list[tuple[int, int]]:
    """From when to when a decision waited for its turn: queued, or sent back."""
    end_ms = one.changed_ms if one.state == "expired" and one.changed_ms else None
    spans = []
    from_ms: int | None = one.decided_ms
    for post in posts:
        if from_ms is not None:
            spans.append((from_ms, post.at_ms))
        from_ms = post.done_ms if post.sent_back else None
    if from_ms is not None and end_ms is not None:
        spans.append((from_ms, end_ms))
    return spans


def worse_first(decisions: Collection[Decided], orders: Orders) -> list[str]:
    """None is sent while a better one, decided `SOON_MS` before, waits for the same bot."""
    waiting: dict[str, list[tuple[Decided, int, int]]] = defaultdict(list)
    for one in decisions:
        if one.forwarded:
            for from_ms, until_ms in _waiting(one, orders.get(one.window, ())):
                waiting[one.side].append((one, from_ms, until_ms))
    found = []
    for one in decisions:
        for post in orders.get(one.window, ()):
            better = [
                other
                for other, from_ms, until_ms in waiting[one.side]
                if other.window != one.window
                and other.decided_ms <= post.at_ms - SOON_MS
                # Between an answer and the next order passes a commit.
                and from_ms <= post.at_ms - SOON_MS
                and until_ms > post.at_ms
                and _is_better(other, one)
            ]
            if better:
                best = min(better, key=lambda other: other.rank)
                found.append(
                    f"{one} with {one.votes}/{one.of} at {one.confidence:.3f} was sent while {len(better)} "
                    f"better ones waited, as {best} with {best.votes}/{best.of} at {best.confidence:.3f}"
                )
    return found


def _is_better(one: Decided, other: Decided) -> bool:
    """By share of votes, confidence, then age: older only if both opened and decided before."""
    if one.rank[:2] != other.rank[:2]:
        return one.rank[:2] < other.rank[:2]
    return one.opened_ms < other.opened_ms and one.decided_ms < other.decided_ms
