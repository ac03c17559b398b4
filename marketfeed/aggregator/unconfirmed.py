"""Forwards of which nobody knows whether they were received: when they are looked for, lost, forgotten.

One that is lost is forgotten by an answer of the bot alone: while it cannot be asked, the alarm stays. No
clock and no bot in here: `now_s` is monotonic seconds, `now_ms` the time of the ledger. When others may be
sent behind one, `release.py` says.
"""

import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from marketfeed.aggregator.freqtrade_bot import CLOCK_TOLERANCE_MS, Trade
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.release import Release
from marketfeed.aggregator.timing import Pace

log = logging.getLogger(__name__)

LOOK_BACK_MS: Final = 86_400_000
"""How old a trade may be of an order that was sent by a clock that was ahead, before a restart."""


def sent_ahead(forward: Forward, now_ms: int) -> bool:
    """Whether it was sent by a clock that was ahead: then nobody knows when."""
    return forward.sent_ms is not None and forward.sent_ms > now_ms


def alarm(forward: Forward, text: str) -> None:
    """Log the alarm that a forward is lost."""
    log.critical(
        "ALARM forward lost: it may or may not have been executed, look into the bot "
        "window=%d pair=%s side=%s tag=%r sent_ms=%s words=%r",
        forward.window,
        forward.pair,
        forward.side,
        forward.tag,
        forward.sent_ms,
        text,
    )


def lost_words(forward: Forward, words: str) -> str:
    """The reason in `/health` for a forward that is lost."""
    return f"{forward.pair} {forward.tag!r}: {words}"


class Item(msgspec.Struct, eq=False):
    """One such forward. `lost` is what is known of it once it is lost, and empty before.

    A trade that opened before `since_ms` is not its trade. Once a look has been answered, it is forgotten
    `keep_s` later.
    """

    forward: Forward
    since_ms: int
    sent_s: float
    keep_s: float
    answered_s: float | None = None
    lost: str = ""

    def lose(self, words: str) -> None:
        """It is lost, and this is known of it."""
        self.lost = lost_words(self.forward, words)

    def may_have_opened(self, trade: Trade) -> bool:
        """Whether a trade of the bot's is of this order's pair, side and tag, and not older than it."""
        forward = self.forward
        return (
            trade.pair == forward.pair
            and trade.side == forward.side
            and trade.tag == forward.tag
            and trade.opened_ms >= self.since_ms
        )


class Unconfirmed:
    """All such forwards of one bot. One is lost when it has been unknown for `unconfirmed_s`."""

    def __init__(self, pace: Pace, unconfirmed_s: float) -> None:
        self._pace = pace
        self._unconfirmed_s = unconfirmed_s
        self._items: dict[int, Item] = {}
        self._release = Release(pace.settle_s)
        self._look_at_s = 0.0

    def __iter__(self) -> Iterator[Item]:
        return iter(tuple(self._items.values()))

    @property
    def open(self) -> int:
        """How many are not lost yet."""
        return sum(1 for item in self._items.values() if not item.lost)

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs of those that are not lost yet."""
        return frozenset(item.forward.pair for item in self._items.values() if not item.lost)

    @property
    def holding(self) -> bool:
        """Whether the bot gets no other order: it may still be at one of these, or ails."""
        return self._release.holds(self.open)

    @property
    def lost(self) -> dict[int, str]:
        """Windows whose orders may or may not have been executed, and what is known of each."""
        return {window: item.lost for window, item in self._items.items() if item.lost}

    # --- what joins and leaves --------------------------------------------------------------------------

    def take(self, forward: Forward, now_ms: int, now_s: float) -> None:
        """Take in a forward that is `unknown` or `lost`; it is looked for at once."""
        sent_ms = forward.changed_ms if forward.sent_ms is None else forward.sent_ms
        ahead = sent_ahead(forward, now_ms)
        since_ms = now_ms - LOOK_BACK_MS if ahead else sent_ms - CLOCK_TOLERANCE_MS
        # Its age: restarts must not put the alarm off.
        age_s = max(now_ms - sent_ms, 0) / 1000
        sent_s = now_s - min(age_s, self._unconfirmed_s)
        item = Item(forward, since_ms, sent_s, self._pace.forget_s)
        self._items[forward.window] = item
        self._look_at_s = now_s
        if forward.state != "lost":
            self._release.unknown()
            return
        # However long ago: the bot may have been frozen all the time, and still be at it.
        item.lose(forward.answer)
        self._release.doubt()

    def found(self, item: Item) -> None:
        """It has been found in the bot."""
        self._items.pop(item.forward.window, None)
        self._release.found(self.open)

    def own_word(self) -> None:
        """The bot gave a word of its own on another order."""
        self._release.own_word()

    def is_out_of_time(self, item: Item, now_s: float) -> bool:
        """Whether it is to be lost now."""
        return not item.lost and now_s - item.sent_s >= self._unconfirmed_s

    # --- looks ------------------------------------------------------------------------------------------

    @property
    def look_at_s(self) -> float | None:
        """When to look next; None: there is nothing to look for."""
        return self._look_at_s if self._items or self._release.in_doubt else None

    def answered(self, now_s: float, last_turn: str | None) -> None:
        """A look was answered, and `last_turn` is when the bot's loop last ended a turn, as in `Release`.

        What is lost and was there to be found for long enough is forgotten.
        """
        self._release.answered(now_s, last_turn, self.open)
        for item in self:
            if item.answered_s is None:
                item.answered_s = now_s
            if item.lost and now_s - item.answered_s >= item.keep_s:
                del self._items[item.forward.window]

    def unanswered(self) -> None:
        """A look was not answered."""
        self._release.unanswered()

    def looked(self, now_s: float, *, others_wait: bool) -> None:
        """A look is over: the next one is soon if something depends on it."""
        soon = self.open or (others_wait and self._release.in_doubt)
        self._look_at_s = now_s + (self._pace.look_s if soon else self._pace.look_lost_s)

    def look_soon(self, now_s: float) -> None:
        """Others have come to wait for what a look says."""
        if self._release.in_doubt:
            self._look_at_s = min(self._look_at_s, now_s + self._pace.look_s)
