"""Forwards of which nobody knows whether they were received: when each is looked for, lost, forgotten.

One that is lost is forgotten by an answer of the bot alone: while it cannot be asked, the alarm stays. No
clock and no bot in here: `now_s` is monotonic seconds, `now_ms` the time of the ledger.
"""

import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from marketfeed.aggregator.freqtrade_bot import CLOCK_TOLERANCE_MS, Trade
from marketfeed.aggregator.ledger_tables import Forward
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
    `keep_s` later. `holds`: the bot may still be at it.
    """

    forward: Forward
    since_ms: int
    sent_s: float
    look_at_s: float
    keep_s: float
    holds: bool
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
    """All such forwards of one bot."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._items: dict[int, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        return iter(tuple(self._items.values()))

    @property
    def open(self) -> int:
        """How many are not lost yet."""
        return sum(1 for item in self._items.values() if not item.lost)

    @property
    def holding(self) -> bool:
        """Whether the bot may still be at one: it gets no other order then."""
        return any(item.holds and not item.lost for item in self._items.values())

    @property
    def lost(self) -> dict[int, str]:
        """Windows whose orders may or may not have been executed, and what is known of each."""
        return {window: item.lost for window, item in self._items.items() if item.lost}

    def take(self, forward: Forward, now_ms: int, now_s: float, *, holds: bool = True) -> None:
        """Take in a forward that is `unknown` or `lost`; it is looked for at once."""
        sent_ms = forward.changed_ms if forward.sent_ms is None else forward.sent_ms
        ahead = sent_ahead(forward, now_ms)
        since_ms = now_ms - LOOK_BACK_MS if ahead else sent_ms - CLOCK_TOLERANCE_MS
        # Its ages: restarts must not put the alarm off, nor its end.
        age_s = max(now_ms - sent_ms, 0) / 1000
        sent_s = now_s - min(age_s, self._pace.lost_after_s)
        item = Item(forward, since_ms, sent_s, now_s, self._pace.forget_s, holds)
        if forward.state == "lost":
            item.lose(forward.answer)
            item.keep_s -= max(now_ms - forward.changed_ms, 0) / 1000
        self._items[forward.window] = item

    def due(self, now_s: float) -> list[Item]:
        """Those that have to be looked for now."""
        return [item for item in self._items.values() if item.look_at_s <= now_s]

    def is_out_of_time(self, item: Item, now_s: float) -> bool:
        """Whether it is to be lost now."""
        return not item.lost and now_s - item.sent_s >= self._pace.lost_after_s

    def put_off(self, item: Item, now_s: float, *, answered: bool) -> None:
        """It was not found: look again later, or forget it if the bot has `answered`, as before."""
        item.look_at_s = now_s + (self._pace.look_lost_s if item.lost else self._pace.look_s)
        if not answered:
            return
        if item.answered_s is None:
            item.answered_s = now_s
        if item.lost and now_s - item.answered_s >= item.keep_s:
            self.resolve(item)

    def resolve(self, item: Item) -> None:
        """It has been found, or forgotten."""
        self._items.pop(item.forward.window, None)
