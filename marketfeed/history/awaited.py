"""Settlements that have passed and are awaited, and what an answer of REST completes of a pair."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, subtract
from marketfeed.records import FundingSettled

PURE = True

PAUSES_S: Final = (3.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 180.0, 180.0)
"""Exchange seconds until rates that were not published yet are asked for again; ten minutes in all."""
LATE_PAUSE_S: Final = 3_600.0
LATE_ROUNDS: Final = 24
"""What was not published within these ten minutes is given up, and still asked for every hour of a day."""
EARLIER_MS: Final = schema.SETTLED_LATE_MS + schema.MINUTE_MS
"""So much before what is complete requests begin. It may end with a settlement that came: a special one of
the ten minutes before may be published later. So, too, each answer goes on where any earlier one ended.
"""
APART_EVERY_S: Final = schema.SETTLED_LATE_MS / 1000
"""Exchange seconds between two questions for a pair by its symbol: when they miss a rate, it is there."""


class FetchedRates(NamedTuple):
    """Whose rates of which times were fetched, by pair; and whose rows were odd, as far as is known.

    `special` are those of special settlements: beside one, a regular one may be published later.
    """

    rates: set[tuple[str, int]]
    special: set[tuple[str, int]]
    odd: list[tuple[str | None, int | None]]

    def take(self, rows: Iterable[FundingSettled]) -> None:
        """Take in rows that are stored."""
        for row in rows:
            kept = self.rates if row.kind == schema.REGULAR else self.special
            kept.add((row.pair, row.time_ms))

    def add(self, more: "FetchedRates") -> None:
        """Take in another answer."""
        self.rates.update(more.rates)
        self.special.update(more.special)
        self.odd.extend(more.odd)

    def has(self, key: tuple[str, int], waited: bool) -> bool:
        """Whether an awaited settlement came; a special one in its place counts once it was waited for."""
        return key in self.rates or (waited and key in self.special)

    def clear(self, pair: str, where: TimeRange) -> list[TimeRange]:
        """What of a range is complete: no rate of the pair lies there that could not be read."""
        unclear = [
            where if time_ms is None else TimeRange(time_ms, time_ms + schema.MINUTE_MS)
            for whose, time_ms in self.odd
            if whose in (None, pair)
        ]
        return subtract(where, unclear)


class Awaited(msgspec.Struct, eq=False):
    """A settlement that has passed, not published yet: when it is asked for next, after how many rounds.

    `certain`: it was announced until it came. The exchange may have taken another one back unheard.
    """

    due_s: float
    certain: bool = True
    rounds: int = 0

    @property
    def waited(self) -> bool:
        """Whether ten minutes of answers did not have it."""
        return self.rounds >= len(PAUSES_S)

    @property
    def given_up(self) -> bool:
        """Whether it counts as given up: it is only asked for now and then."""
        return self.rounds > len(PAUSES_S)

    @property
    def is_over(self) -> bool:
        """Whether it is asked for no more: it has been for a day, or for ten minutes and was hearsay."""
        rounds = len(PAUSES_S)
        return self.rounds > (rounds + LATE_ROUNDS if self.certain else rounds)

    def ask_again(self, now_s: float) -> None:
        """Note that an answer lacked it."""
        is_late = self.rounds >= len(PAUSES_S)
        self.due_s = now_s + (LATE_PAUSE_S if is_late else PAUSES_S[self.rounds])
        self.rounds += 1


class Apart:
    """Pairs that an answer for all contracts may leave out: when each is asked for by its symbol.

    At once, then every `APART_EVERY_S` until it leaves.
    """

    def __init__(self) -> None:
        self._due_s: dict[str, float] = {}

    def __contains__(self, pair: str) -> bool:
        return pair in self._due_s

    def join(self, pairs: Iterable[str], now_s: float) -> None:
        """Have these asked for; those that are already, at their times."""
        for pair in pairs:
            self._due_s.setdefault(pair, now_s)

    def next(self, now_s: float) -> str | None:
        """The pair that has been due for longest, if any is."""
        pair = min(self._due_s, key=self._due_s.__getitem__, default=None)
        return None if pair is None or self._due_s[pair] > now_s else pair

    def ask_again(self, pair: str, now_s: float) -> None:
        """Note that it is asked for now."""
        self._due_s[pair] = now_s + APART_EVERY_S

    def leave(self, pair: str) -> None:
        """Note that answers for all have it, or that nobody wants it."""
        self._due_s.pop(pair, None)


def is_certain(next_ms: int, heard_ms: int | None) -> bool:
    """Whether a settlement was announced until it came, if the pair was heard last at `heard_ms`.

    None: nobody has listened for that.
    """
    return heard_ms is None or heard_ms >= next_ms - schema.SETTLED_LATE_MS


def completed(
    from_ms: int,
    answered: TimeRange,
    published_ms: int,
    came_ms: Iterable[int],
    awaited_ms: Iterable[int],
) -> TimeRange | None:
    """What an answer completes of a pair that is complete up to `from_ms`; None: nothing.

    All of before `published_ms` is published, and what settled at a time that was awaited and came. What is
    awaited still, be it given up, is not stored.
    """
    end_ms = max((published_ms, *(at + schema.MINUTE_MS for at in came_ms)))
    end_ms = min((end_ms, answered.end_ms, *awaited_ms))
    if not answered.start_ms <= from_ms < end_ms:
        return None
    return TimeRange(from_ms, end_ms)
