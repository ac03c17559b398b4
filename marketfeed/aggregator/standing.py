"""What orders came to, as far as later ones depend on it: which pairs are held, and which cool down. Pure.

It hears of a forward when a step of it has been committed. At a start it hears of those in the ledger
instead, which comes to the same.

- queued: nothing has left. A newer decision of the pair and side takes its place (`Ledger.record`).
- sending, unknown: an order may be at work. The pair is held on both sides, however long.
- accepted, found, unknown, lost: the pair and side cools down, from when the order was sent. Of a found
  order it does so from when the trade opened.
- refused, expired: surely nothing was opened.

Times are ms since the epoch; those ahead of the clock count as now.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from marketfeed.aggregator.ballots import Key
from marketfeed.aggregator.ledger_tables import BotName, Forward, State, opened_ms_of
from marketfeed.aggregator.signals import Side

PURE = True

AT_WORK: Final[tuple[State, ...]] = ("sending", "unknown")
"""Nobody knows yet whether the order opens anything."""
COOLING: Final[tuple[State, ...]] = ("accepted", "found", "lost")
"""The order opened something, or may have."""
_ENDED: Final[tuple[State, ...]] = ("refused", "expired")
_ENDED_KEPT_MS: Final = 60_000
"""So long it is remembered that an order has ended: what is heard late must not hold its pair again."""
_ORDER: Final[tuple[tuple[State, ...], ...]] = (
    ("sending",),
    ("queued",),
    ("unknown",),
    ("accepted", "refused", "expired", "lost"),
    ("found",),
)
"""In which order the states of one attempt follow each other."""
_STAGE: Final = {state: stage for stage, states in enumerate(_ORDER) for state in states}


class _Order(NamedTuple):
    side: Side
    state: State
    stage: tuple[int, int]
    from_ms: int


class Standing:
    """How the orders of every pair stand. Not thread-safe."""

    def __init__(self, cooldown_ms: int) -> None:
        self._cooldown_ms = cooldown_ms
        self._orders: dict[str, dict[tuple[int, BotName], _Order]] = {}
        self._trades: dict[Key, int] = {}
        self._held_until_ms = 0
        self._held_why = ""

    @classmethod
    def of(cls, forwards: Iterable[Forward], cooldown_ms: int, now_ms: int) -> Self:
        """The standing that these forwards make."""
        standing = cls(cooldown_ms)
        for forward in forwards:
            standing.heard(forward, now_ms)
        return standing

    # --- what is heard ------------------------------------------------------------------------------

    def heard(self, forward: Forward, now_ms: int) -> None:
        """Take in how a forward stands in the ledger. What is older than what is known changes nothing."""
        name = (forward.window, forward.bot)
        orders = self._orders.get(forward.pair, {})
        stage = (forward.attempts, _STAGE[forward.state])
        known = orders.get(name)
        if known is not None and stage < known.stage:
            return
        from_ms = now_ms if forward.state in _ENDED else min(_from_ms(forward), now_ms)
        orders[name] = _Order(forward.side, forward.state, stage, from_ms)
        self._orders[forward.pair] = orders

    def merge_trade(self, pair: str, side: Side, opened_ms: int, now_ms: int) -> None:
        """Take in a trade that a bot has, whatever opened it: its pair and side cools down from then."""
        opened_ms = min(opened_ms, now_ms)
        self._trades[pair, side] = max(opened_ms, self._trades.get((pair, side), opened_ms))

    def hold(self, until_ms: int, why: str) -> None:
        """Forward nothing until then: what was sent before is not known."""
        self._held_until_ms, self._held_why = until_ms, why

    def forget(self, now_ms: int) -> None:
        """Forget what no decision depends on any more: pairs are whatever feeders name."""
        cooled_ms, ended_ms = now_ms - self._cooldown_ms, now_ms - _ENDED_KEPT_MS
        for pair, orders in list(self._orders.items()):
            for name in [
                name
                for name, order in orders.items()
                if (order.state in COOLING and order.from_ms <= cooled_ms)
                or (order.state in _ENDED and order.from_ms <= ended_ms)
            ]:
                del orders[name]
            if not orders:
                del self._orders[pair]
        for key in [key for key, opened_ms in self._trades.items() if opened_ms <= cooled_ms]:
            del self._trades[key]

    # --- what follows from it -------------------------------------------------------------------------

    def against(self, pair: str, side: Side, now_ms: int) -> str | None:
        """Why nothing may be forwarded for this pair and side now; None: nothing speaks against it."""
        orders = self._orders.get(pair, {})
        for (window, _), order in sorted(orders.items()):
            if order.state == "sending":
                return f"the order of window {window} ({order.side}) is being sent"
            if order.state == "unknown":
                return f"what became of the order of window {window} ({order.side}) is not known"
        if (words := self.cools(pair, side, now_ms)) is not None:
            return words
        if (left_ms := self._held_until_ms - now_ms) > 0:
            return f"{self._held_why}: nothing is forwarded for another {left_ms / 1000:.1f} s"
        return None

    def cools(self, pair: str, side: Side, now_ms: int) -> str | None:
        """How long this pair and side cools down, in words; None: it does not."""
        left_ms = self._cools_until_ms(pair, side) - now_ms
        return f"cool-down for another {left_ms / 1000:.1f} s" if left_ms > 0 else None

    def held(self, pair: str, but_window: int | None = None) -> bool:
        """Whether an order of this pair is at work, on either side, other than that of `but_window`."""
        return any(
            order.state in AT_WORK and window != but_window
            for (window, _), order in self._orders.get(pair, {}).items()
        )

    def queued(self, pair: str, side: Side) -> list[int]:
        """The windows of this pair and side whose orders have not been sent, as far as heard."""
        orders = self._orders.get(pair, {})
        return [
            window for (window, _), o in orders.items() if o.side == side and o.state == "queued"
        ]

    def _cools_until_ms(self, pair: str, side: Side) -> int:
        """Until when this pair and side cools down; 0: nothing of it does."""
        found = [
            order.from_ms
            for order in self._orders.get(pair, {}).values()
            if order.side == side and (order.state in COOLING or order.state == "unknown")
        ]
        if (opened_ms := self._trades.get((pair, side))) is not None:
            found.append(opened_ms)
        return max(found) + self._cooldown_ms if found else 0


def _from_ms(forward: Forward) -> int:
    """When its cool-down starts, if it is in a state that starts one."""
    opened_ms = opened_ms_of(forward) if forward.state == "found" else None
    if opened_ms is not None:
        return opened_ms
    return forward.changed_ms if forward.sent_ms is None else forward.sent_ms
