"""Which pairs the bots have on their whitelists, and what is made of a pair that is outside. Pure.

Freqtrade's forceenter takes such a pair all the same. A list is as old as its bot's last answer; of a bot
that has not told one nothing is known, and no pair is outside: with the rule "skip" its orders wait for it.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final, Literal

from marketfeed.aggregator.ballots import FORWARD, Decision
from marketfeed.aggregator.ledger_tables import BotName

PURE = True

KEPT: Final = 50
"""So many pairs that were outside are remembered by their names: pairs are whatever feeders name."""
KEPT_MS: Final = 86_400_000
"""And for so long."""


class Whitelists:
    """The whitelists of the bots. With `rule` "skip" nothing is forwarded of a pair outside."""

    def __init__(self, rule: Literal["send", "skip"] = "send") -> None:
        self.outside: Counter[BotName] = Counter()
        """By side: decisions of pairs that were outside, since the start."""
        self.rule: Final = rule
        self._lists: dict[BotName, Collection[str]] = {}
        self._met: dict[BotName, dict[str, int]] = {}
        self._in_doubt: set[BotName] = set()

    def take(self, side: BotName, pairs: Collection[str] | None) -> None:
        """The bot of `side` has answered; None: with no list."""
        self._in_doubt.discard(side)
        if pairs is None:
            self._lists.pop(side, None)
            return
        self._lists[side] = pairs
        met = self._met.get(side, {})
        self._met[side] = {pair: at_ms for pair, at_ms in met.items() if pair not in pairs}

    def size(self, side: BotName) -> int | None:
        """How many pairs are on it; None: not known."""
        pairs = self._lists.get(side)
        return None if pairs is None else len(pairs)

    def in_doubt(self, side: BotName) -> bool:
        """Whether a pair outside was decided since its bot was asked: the list may have changed."""
        return side in self._in_doubt

    def met(self, side: BotName, now_ms: int) -> list[str]:
        """The pairs outside that were decided within a day, the newest first."""
        found = [
            pair for pair, at_ms in self._met.get(side, {}).items() if now_ms - at_ms < KEPT_MS
        ]
        return found[::-1]

    def waits(self, side: BotName) -> str:
        """Why no order may be sent to the bot of `side` yet; empty: nothing here speaks against it."""
        if self.rule == "skip" and side not in self._lists:
            return "its whitelist is not known, and with outside_whitelist: skip nothing is sent before"
        return ""

    # --- decisions ------------------------------------------------------------------------------------

    def against(self, pair: str, side: BotName) -> str | None:
        """Why nothing is forwarded of this pair; None: nothing speaks against it."""
        if self.rule == "skip" and self._is_outside(pair, side):
            return f"{pair} is not on the whitelist of the bot of {side}"
        return None

    def remark(self, pair: str, side: BotName) -> tuple[str, ...]:
        """What a decision that is forwarded says of it."""
        if self._is_outside(pair, side):
            return (f"sent though {pair} is not on the whitelist of the bot of {side}",)
        return ()

    def decided(self, decision: Decision) -> None:
        """Count a decision that has been stored, if it was about to be forwarded."""
        pair, side = decision.pair, decision.side
        if not self._is_outside(pair, side):
            return
        if decision.outcome == FORWARD or self.against(pair, side) in decision.reasons:
            self.outside[side] += 1
            self._in_doubt.add(side)
            met = self._met.setdefault(side, {})
            met.pop(pair, None)
            met[pair] = decision.decided_ms
            while len(met) > KEPT:
                del met[next(iter(met))]

    def _is_outside(self, pair: str, side: BotName) -> bool:
        pairs = self._lists.get(side)
        return pairs is not None and pair not in pairs
