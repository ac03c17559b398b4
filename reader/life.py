"""Which contracts a pair has been the name of: its lives, and which of them a question is about.

A symbol can come back as another coin. Of each timeframe's grid a life owns the candles that open in
[floor(listed), floor(ended)): its first one opens before the listing, and one that its end cuts is nobody's.
Lives never overlap, and no answer is of two of them. Times are ms of exchange time.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from marketfeed import schema

PURE = True

OPEN_MS: Final = 2**62
"""The end of what has none."""
SOON_MS: Final = 4 * schema.MINUTE_MS
"""No symbol comes back so soon after its end. What a collector that is well tells is not so old, either."""


class LifeRow(NamedTuple):
    """One contract. `listed_ms` is 0 where that is not known, `ended_ms` None while it lives."""

    listed_ms: int
    ended_ms: int | None
    symbol: str

    @property
    def end_ms(self) -> int:
        """When it is over; far away while it lives."""
        return OPEN_MS if self.ended_ms is None else self.ended_ms

    def first_ms(self, length_ms: int) -> int:
        """When its first candle opens."""
        return schema.floor_to(self.listed_ms, length_ms)


class Statement(NamedTuple):
    """What one collector has told of a pair's lives, oldest first, at `told_ms` or up to an hour later."""

    told_ms: int
    lives: tuple[LifeRow, ...]


class Part(NamedTuple):
    """What of a pair's series an answer is of: one life's.

    `life` is None where nothing is told, or not of this part; it lasts from `start_ms` until `end_ms`. The
    next one begins at `next_ms`.
    """

    life: LifeRow | None
    start_ms: int
    end_ms: int
    next_ms: int

    @property
    def is_current(self) -> bool:
        """Whether no other life follows."""
        return self.next_ms == OPEN_MS

    def owned(self, length_ms: int) -> tuple[int, int]:
        """The open times of its candles: [first, end)."""
        return _floor(self.start_ms, length_ms), _floor(self.end_ms, length_ms)

    def events(self) -> tuple[int, int]:
        """Between which times [first, end) something may have happened to its contract, by the minute."""
        return _floor(self.start_ms, schema.MINUTE_MS), _floor(self.next_ms, schema.MINUTE_MS)


ALL: Final = Part(None, 0, OPEN_MS, OPEN_MS)
"""Of a pair whose lives nobody tells."""


# --- the union of what collectors tell ------------------------------------------------------------


class _Told(NamedTuple):
    """A life; when it was last told; and whether some collector knows of another one before it."""

    life: LifeRow
    told_ms: int
    follows: bool


def joined(statements: Iterable[Statement]) -> tuple[LifeRow, ...]:
    """The lives of a pair by what all collectors tell, oldest first.

    Those of one day of listing are one life, and what was told of it later counts. Of what was told in the
    same hour the later end counts: one collector may not know of an end yet, and another may not know
    that it is withdrawn, and a life that has not ended hides nothing.
    """
    ordered = sorted(statements, key=_rank)
    told: dict[int, _Told] = {}
    for statement in ordered:
        for number, life in enumerate(statement.lives):
            day_ms = schema.floor_to(life.listed_ms, schema.DAY_MS)
            follows = number > 0 or (day_ms in told and told[day_ms].follows)
            told[day_ms] = _Told(
                _later(told.get(day_ms), life, statement.told_ms), statement.told_ms, follows
            )
    return _apart(_with_beginning(told))


def _rank(statement: Statement) -> tuple[int, list[tuple[int, int]]]:
    return statement.told_ms, [(life.listed_ms, life.end_ms) for life in statement.lives]


def _later(known: _Told | None, life: LifeRow, told_ms: int) -> LifeRow:
    if known is None or known.told_ms < told_ms or life.end_ms >= known.life.end_ms:
        return life
    return known.life


def _with_beginning(told: Mapping[int, _Told]) -> list[_Told]:
    """All of them by their beginning. One without is that which began last before its end, if any is told."""
    known = sorted((one for one in told.values() if one.life.listed_ms), key=lambda one: one.life)
    for one in told.values():
        if one.life.listed_ms:
            continue
        until_ms = min(one.life.end_ms, one.told_ms + schema.HOUR_MS)
        before = [n for n, other in enumerate(known) if other.life.listed_ms < until_ms]
        if before:
            known[before[-1]] = _as_one(known[before[-1]], one)
        else:
            known.insert(0, one)
    return known


def _apart(known: Sequence[_Told]) -> tuple[LifeRow, ...]:
    """Make of lives that overlap one, or let the older end where the newer begins.

    A collector that knows of nothing before goes by the exchange's date alone, which may be wrong: a
    contract that another one has seen living then went on living.
    """
    apart: list[_Told] = []
    for one in known:
        if apart and one.life.listed_ms < apart[-1].life.end_ms:
            last = apart[-1]
            if not one.follows and last.told_ms + schema.HOUR_MS > one.life.listed_ms:
                apart[-1] = _as_one(last, one)
                continue
            apart[-1] = last._replace(life=last.life._replace(ended_ms=one.life.listed_ms))
        apart.append(one)
    return tuple(one.life for one in apart)


def _as_one(first: _Told, other: _Told) -> _Told:
    """Two statements of one life: its beginning by the first, its end by the later one."""
    newest = max(first, other, key=lambda one: (one.told_ms, one.life.end_ms))
    life = first.life._replace(ended_ms=newest.life.ended_ms)
    return _Told(life, newest.told_ms, first.follows)


# --- what is not told yet -------------------------------------------------------------------------


def may_be_another(lives: Sequence[LifeRow], lives_to_ms: int, newest_ms: int) -> bool:
    """Whether rows up to `newest_ms` may be of a contract after `lives`, which tell up to `lives_to_ms`."""
    return bool(lives) and lives[-1].end_ms > newest_ms > lives_to_ms + SOON_MS


def with_listing(
    lives: tuple[LifeRow, ...], listed_ms: int, lives_to_ms: int
) -> tuple[LifeRow, ...]:
    """The lives with one that was listed on a later day, and of which the catalog alone tells.

    An older collector tells of no lives, but notes when the contract was listed that it collects. The date
    may be wrong: where the last life has been told to go on well behind it, it does.
    """
    if not lives:
        return lives
    last = lives[-1]
    days = [schema.floor_to(at, schema.DAY_MS) for at in (last.listed_ms, listed_ms)]
    if days[1] <= days[0] or (last.ended_ms is not None and listed_ms < last.ended_ms):
        return lives
    if last.ended_ms is None:
        if lives_to_ms > listed_ms + SOON_MS:
            return lives
        last = last._replace(ended_ms=listed_ms)
    return (*lives[:-1], last, LifeRow(listed_ms, None, ""))


# --- which one a question is about ----------------------------------------------------------------


def current(lives: Sequence[LifeRow]) -> Part:
    """The part of the series that belongs to the current life: the last one."""
    return _part(lives, len(lives) - 1) if lives else ALL


def before(lives: Sequence[LifeRow], until_ms: int | None, length_ms: int) -> Part:
    """The newest part of the series with a candle of a timeframe that may open before `until_ms`.

    Before the first life that is told may lie one of which nobody tells.
    """
    if until_ms is None or not lives:
        return current(lives)
    for number in reversed(range(len(lives))):
        if lives[number].first_ms(length_ms) < until_ms:
            return _part(lives, number)
    return Part(None, 0, lives[0].listed_ms, lives[0].listed_ms)


def _part(lives: Sequence[LifeRow], number: int) -> Part:
    life = lives[number]
    next_ms = lives[number + 1].listed_ms if number + 1 < len(lives) else OPEN_MS
    return Part(life, life.listed_ms, life.end_ms, next_ms)


def asked_across(lives: Sequence[LifeRow], part: Part, oldest_ms: int | None) -> list[LifeRow]:
    """The lives that a question is about, oldest first; the answer is of the last one.

    `oldest_ms` is the oldest row that was asked for and is stored, if it is another life's. Of what belongs
    to none that is told a life without beginning and symbol is made.
    """
    mine = [] if part.life is None else [part.life]
    if oldest_ms is None:
        return mine
    # What follows an end, up to the next listing, is named after the life that ended.
    older = [
        one
        for one, following in pairwise(lives)
        if one.listed_ms < part.start_ms and following.listed_ms > oldest_ms
    ]
    if not older or oldest_ms < older[0].first_ms(schema.DAY_MS):
        end_ms = older[0].listed_ms if older else part.start_ms
        older.insert(0, LifeRow(0, end_ms, ""))
    return older + mine


def _floor(time_ms: int, length_ms: int) -> int:
    return time_ms if time_ms == OPEN_MS else schema.floor_to(time_ms, length_ms)
