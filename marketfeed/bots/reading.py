"""What was read of a bot's list of closed trades, and what follows from it for the books. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from marketfeed.bots.closed_trade import ClosedTrade, RefusedTradeError, closed_trade, name_of
from marketfeed.schema import DAY_MS

PURE = True

BACK_MS: Final = DAY_MS
"""So far before the newest known close is read every time: a trade may close late, or be reloaded."""

Key = tuple[int, int]


class Reading(msgspec.Struct):
    """Pages of closed trades, the newest first, as far as they were read.

    `refused` are trades that cannot be recorded, by name, with the reason; `total` is how many closed trades
    the bot says that it has, by the first and by the last page (None: it does not say). `waiting` are not
    in the books yet.
    """

    trades: dict[Key, ClosedTrade] = {}
    refused: dict[str, str] = {}
    first_total: int | None = None
    total: int | None = None
    oldest_ms: int | None = None
    whole: bool = False
    waiting: list[ClosedTrade] = []

    def take(self, rows: Iterable[object], total: int | None, now_ms: int) -> list[ClosedTrade]:
        """Take in a page; returns its trades. `now_ms` is the time by this host."""
        page = []
        for row in rows:
            try:
                trade = closed_trade(row, now_ms)
            except RefusedTradeError as error:
                self.refused[name_of(row)] = str(error)
                continue
            self.trades[trade.key] = trade
            page.append(trade)
            oldest_ms = self.oldest_ms
            self.oldest_ms = (
                trade.closed_ms if oldest_ms is None else min(oldest_ms, trade.closed_ms)
            )
        if self.first_total is None:
            self.first_total = total
        self.total = total
        return page

    @property
    def read(self) -> int:
        """How many trades were met, those included that were refused."""
        return len(self.trades) + len(self.refused)

    @property
    def is_consistent(self) -> bool:
        """Whether it is all that the bot has: as many as it says, and said the same at both ends."""
        return self.whole and self.total is not None and self.read == self.total == self.first_total

    def lacks(self) -> int:
        """How many closed trades fewer than the bot says were read; 0 of a part, or if it does not say."""
        return max(0, (self.total or 0) - self.read) if self.whole else 0

    def is_enough(self, newest_ms: int | None) -> bool:
        """Whether it goes back to `BACK_MS` before the newest close that was known."""
        if newest_ms is None or self.oldest_ms is None:
            return False
        return self.oldest_ms < newest_ms - BACK_MS


def absent(reading: Reading, known: Mapping[Key, int]) -> list[Key]:
    """Which known trades the bot did not name where it should have. One that was refused is no absent one."""
    refused = reading.refused
    oldest_ms = reading.oldest_ms
    return [
        key
        for key, closed_ms in known.items()
        if key not in reading.trades
        and f"trade {key[1]}" not in refused
        # Of what closed at the very end of a part, the rest may stand on the next page.
        and (reading.whole or (oldest_ms is not None and closed_ms > oldest_ms))
    ]


def must_read_all(reading: Reading, known: Mapping[Key, int], refused: int) -> bool:
    """Whether a part does not agree with what is known: a trade closed late, or one is gone.

    `refused`: how many trades the last reading of all could not take.
    """
    if reading.whole:
        return False
    if absent(reading, known):
        return True
    if reading.total is None:
        return False
    return len({*known, *reading.trades}) + max(refused, len(reading.refused)) != reading.total


def is_another_database(reading: Reading, known: Mapping[Key, int]) -> bool:
    """Whether nothing of what was known is in the bot any more: it has begun a new database.

    To strike all of that would lose what nobody else has. (A bot whose every trade was deleted looks alike.)
    """
    return bool(known) and reading.is_consistent and len(absent(reading, known)) == len(known)
