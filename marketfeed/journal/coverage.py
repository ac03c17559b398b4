"""What is promised of a candle series, and what of that is not stored: one fact, kept with the rows.

Of every state that is committed this holds: what lies in [max(from, looked), end) is stored or in
exactly one hole. The functions take one event each, and return what is known after it. Times are ms of
exchange time, on the timeframe's grid; ranges are half open.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.grid import TILE_CANDLES, TimeRange, missing, overlap, subtract
from marketfeed.records import Gap, GapState

PURE = True

HISTORY_GAP: Final = schema.HISTORY_GAP
LATE_FOR_MS: Final = 10 * schema.MINUTE_MS
"""So long after its close the exchange may have a candle that it did not have when it was asked before."""
AGAIN_AFTER_MS: Final = schema.MINUTE_MS
"""An answer without a candle counts as the second one when the first was so long before."""
BELIEVED_FOR_MS: Final = 7 * schema.DAY_MS
"""After two such answers the exchange is asked again so much later: both may have been a mistake."""
DID_NOT_COME: Final = "did not come"
NOT_FILLED: Final = "not filled yet"
STORED: Final = "stored"
NOT_DUE: Final = "not due: the clock was ahead"
NO_CANDLE: Final = "the exchange answered twice without"
NOT_KEPT: Final = "not promised any more"

Key = tuple[str, str]
"""A series of candles: its pair and timeframe, or `mark_1h` (`schema.SERIES_MS`)."""


class Hole(NamedTuple):
    """Candles that are due and not stored.

    `is_first` ones are of a first filling: nothing was there before. `empty_1_ms` and `empty_2_ms` are
    when the exchange answered without them, the second of them at the last time.
    """

    start_ms: int
    end_ms: int
    is_first: bool = False
    empty_1_ms: int | None = None
    empty_2_ms: int | None = None

    @property
    def is_absent(self) -> bool:
        """Whether the exchange has answered without it twice: it has no such candles."""
        return self.empty_2_ms is not None

    @property
    def time_range(self) -> TimeRange:
        """Where it is."""
        return TimeRange(self.start_ms, self.end_ms)

    def kind(self, timeframe: str) -> str:
        """The kind of its gap."""
        return HISTORY_GAP + timeframe if self.is_first else schema.gap_kind(timeframe)


class Covered(msgspec.Struct, frozen=True, gc=False):
    """One series: promised from `from_ms` on, known up to `end_ms`, with `holes`, oldest first.

    Below `looked_ms` the rows have still to be looked through: there may be holes of which none tells.
    `promised_ms` is the setting by which the promise was made: how far back history is to reach.
    """

    from_ms: int
    looked_ms: int
    end_ms: int
    promised_ms: int
    holes: tuple[Hole, ...] = ()

    @property
    def is_looked_through(self) -> bool:
        """Whether its holes are all there are."""
        return self.looked_ms <= self.from_ms

    def absent_ms(self, time_range: TimeRange) -> int:
        """How much of a range is in holes that the exchange does not have either."""
        parts = (hole.time_range for hole in self.holes if hole.is_absent)
        return sum(end_ms - start_ms for start_ms, end_ms in overlap(parts, time_range))


class Promise(NamedTuple):
    """What is to be kept of a series: `keep_ms` back from `now_ms`, nothing from before `listed_ms`.

    `keep_ms` is the setting; `reach_ms` reaches further back where it is more (of a new listing).
    A candle is due `due_after_ms` after its close; none that `ended_ms` cuts, where the pair ends.
    """

    pair: str
    timeframe: str
    now_ms: int
    keep_ms: int
    listed_ms: int = 0
    reach_ms: int = 0
    due_after_ms: int = 0
    ended_ms: int | None = None


def promised(
    known: Covered | None,
    promise: Promise,
    newest_ms: int | None,
    lacking: Callable[[TimeRange], Sequence[TimeRange]],
) -> Covered:
    """Take in a promise; `newest_ms` is the newest candle stored, None without any.

    `lacking` gives what the rows lack of a range, oldest first.

    A promise made by the same setting stands as it is: it does not move with the time. One of less drops
    only what is missing at its beginning. One that was made while the clock was ahead is made anew, and
    what was missing of the time to come is no more. A later listing ends what was promised of before it.
    """
    length_ms = schema.SERIES_MS[promise.timeframe]
    until_ms = promise.now_ms
    if promise.ended_ms is not None:
        until_ms = min(until_ms, promise.ended_ms)
    forming_ms = schema.floor_to(until_ms, length_ms)
    listed_ms = schema.floor_to(promise.listed_ms, length_ms)
    reach_ms = max(promise.keep_ms, promise.reach_ms)
    wanted_ms = max(schema.ceil_to(promise.now_ms - reach_ms, length_ms), listed_ms)
    from_ms = min(wanted_ms, forming_ms)
    if known is None:
        end_ms = from_ms if newest_ms is None else max(from_ms, newest_ms + length_ms)
        fresh = Covered(from_ms, end_ms, end_ms, promise.keep_ms)
        return expected(fresh, forming_ms, is_first=end_ms == from_ms)
    # What was before is of another contract of that name, and is promised to nobody.
    known = stored_before(known, min(listed_ms, forming_ms))
    was_ahead = known.from_ms > forming_ms
    if was_ahead or (promise.keep_ms > known.promised_ms and from_ms < known.from_ms):
        older: tuple[Hole, ...] = ()
        looked_ms = known.looked_ms
        if known.is_looked_through:
            below = lacking(TimeRange(from_ms, known.from_ms))
            older, looked_ms = tuple(Hole(*part, is_first=True) for part in below), from_ms
        known = Covered(from_ms, looked_ms, known.end_ms, promise.keep_ms, older + known.holes)
    elif promise.keep_ms < known.promised_ms:
        known = _shortened(known, from_ms, promise.keep_ms)
    known = set_back(msgspec.structs.replace(known, promised_ms=promise.keep_ms), forming_ms)
    due_ms = min(until_ms, promise.now_ms - promise.due_after_ms)
    return expected(known, schema.floor_to(due_ms, length_ms))


def added_again(promise: Promise, newest_ms: int | None) -> Covered:
    """The promise of a series that was not collected for a while: from its newest row on.

    What lies before that is kept as it is, and promised to nobody.
    """
    length_ms = schema.SERIES_MS[promise.timeframe]
    known = promised(None, promise, None, lambda _: ())
    return known if newest_ms is None else stored_before(known, newest_ms + length_ms)


def stored_before(known: Covered, before_ms: int) -> Covered:
    """Promise nothing of before `before_ms`, which lies on the grid: deleted, or not kept any more."""
    if before_ms <= known.from_ms:
        return known
    kept = [
        hole._replace(start_ms=max(hole.start_ms, before_ms))
        for hole in known.holes
        if hole.end_ms > before_ms
    ]
    return Covered(
        before_ms,
        max(known.looked_ms, before_ms),
        max(known.end_ms, before_ms),
        known.promised_ms,
        tuple(kept),
    )


def expected(known: Covered, until_ms: int, *, is_first: bool = False) -> Covered:
    """Take in that every candle that opens before `until_ms` is due: what is not stored is a hole."""
    if until_ms <= known.end_ms:
        return known
    holes = known.holes
    last = holes[-1] if holes else None
    if (
        last is not None
        and last.end_ms == known.end_ms
        and last.is_first == is_first
        and last.empty_1_ms is None
    ):
        grown = (*holes[:-1], last._replace(end_ms=until_ms))
    else:
        grown = (*holes, Hole(known.end_ms, until_ms, is_first))
    return msgspec.structs.replace(known, end_ms=until_ms, holes=grown)


def set_back(known: Covered, forming_ms: int) -> Covered:
    """Take in that `forming_ms` is the candle that forms now: nothing is missing of what is to come.

    Holes there would be cut with every candle that is stored: two rows of gaps each time.
    """
    end_ms, holes = known.end_ms, list(known.holes)
    # Of what is still to be looked through a hole may be stored by now: its end would be lost.
    until_ms = forming_ms if known.is_looked_through else max(forming_ms, known.looked_ms)
    while holes and holes[-1].end_ms == end_ms > until_ms:
        last = holes.pop()
        end_ms = max(until_ms, last.start_ms)
        if last.start_ms < end_ms:
            holes.append(last._replace(end_ms=end_ms))
    if end_ms == known.end_ms:
        return known
    return msgspec.structs.replace(known, end_ms=end_ms, holes=tuple(holes))


def followed(known: Covered, length_ms: int) -> Covered:
    """Take in that the next candle is stored, as nearly always: `stored` at a tenth of the cost."""
    return msgspec.structs.replace(known, end_ms=known.end_ms + length_ms)


def stored(known: Covered, opens: Sequence[int], length_ms: int) -> Covered:
    """Take in that candles are stored that open at `opens` (ascending)."""
    start_ms = known.end_ms
    fresh = [open_ms for open_ms in opens if open_ms >= start_ms]
    holes = known.holes
    if len(fresh) < len(opens) and holes:
        holes = _filled(holes, opens, length_ms)
    if fresh:
        end_ms = fresh[-1] + length_ms
        lacking = missing(fresh, TimeRange(start_ms, end_ms), length_ms)
        holes += tuple(Hole(*part) for part in lacking)
        return msgspec.structs.replace(known, end_ms=end_ms, holes=holes)
    return known if holes is known.holes else msgspec.structs.replace(known, holes=holes)


def answered_without(known: Covered, time_range: TimeRange, now_ms: int) -> Covered:
    """Take in that the exchange answered without what is missing of a range.

    The second such answer counts a minute after the first, and once the candle has been closed for ten.
    """
    holes: list[Hole] = []
    for hole in known.holes:
        if hole.end_ms <= time_range.start_ms or hole.start_ms >= time_range.end_ms:
            holes.append(hole)
            continue
        asked = TimeRange(
            max(hole.start_ms, time_range.start_ms), min(hole.end_ms, time_range.end_ms)
        )
        parts = [
            *(
                hole._replace(start_ms=p[0], end_ms=p[1])
                for p in subtract(hole.time_range, [asked])
            ),
            _answered(hole._replace(start_ms=asked.start_ms, end_ms=asked.end_ms), now_ms),
        ]
        holes += sorted(parts)
    return msgspec.structs.replace(known, holes=tuple(holes))


def looked(known: Covered, down_to_ms: int, lacking: Iterable[TimeRange]) -> Covered:
    """Take in that the rows of [down_to_ms, looked) lack `lacking` (oldest first), and nothing else.

    What was known of holes there before (their kind, the exchange's answers) is kept of what is missing.
    """
    down_to_ms = max(down_to_ms, known.from_ms)
    if down_to_ms >= known.looked_ms:
        return known
    within = TimeRange(down_to_ms, known.looked_ms)
    found: list[Hole] = []
    for part in lacking:
        # Known before, piece by piece, and what is new between the pieces.
        pieces = [
            hole._replace(start_ms=cut.start_ms, end_ms=cut.end_ms)
            for hole in known.holes
            for cut in overlap([hole.time_range], part)
        ]
        rest = subtract(part, [piece.time_range for piece in pieces])
        found += sorted([*pieces, *(Hole(*cut, is_first=True) for cut in rest)])
    outside = [
        hole._replace(start_ms=cut.start_ms, end_ms=cut.end_ms)
        for hole in known.holes
        for cut in subtract(hole.time_range, [within])
    ]
    return msgspec.structs.replace(
        known, looked_ms=down_to_ms, holes=tuple(sorted([*outside, *found]))
    )


def distrusted(known: Covered) -> Covered:
    """What is known when somebody else may have changed the rows: all of it is to be looked through."""
    return msgspec.structs.replace(known, looked_ms=max(known.end_ms, known.from_ms))


def newest(known: Covered, length_ms: int, candles: int = TILE_CANDLES) -> TimeRange:
    """Where the newest candles are, as many as a feeder asks for at most."""
    return TimeRange(max(known.from_ms, known.end_ms - candles * length_ms), known.end_ms)


def changed_gaps(
    key: Key, old: Covered | None, new: Covered | None, before: Iterable[Hole] = ()
) -> list[tuple[Gap, Hole | None]]:
    """The rows of gaps that change from `old` to `new`, each with its hole if that is open.

    `before` are holes of which rows tell that belong to no known series. A gap's start is its name: one
    that shrinks from behind changes its end; one that shrinks from the front is healed up to where the
    rest begins, and that is a new gap.
    """
    pair, timeframe = key
    known = (*before, *(() if old is None else old.holes))
    holes = () if new is None else new.holes
    if known == holes:
        return []
    names = {(hole.start_ms, hole.is_first) for hole in holes}
    unchanged = set(known)
    rows: list[tuple[Gap, Hole | None]] = []
    for hole in known:
        if (hole.start_ms, hole.is_first) in names:
            continue
        rest = next(
            (one.start_ms for one in holes if hole.start_ms < one.start_ms < hole.end_ms), None
        )
        end_ms = hole.end_ms if rest is None else rest
        kept = new is not None and hole.start_ms >= new.from_ms
        state: GapState = "healed" if kept else "unresolvable"
        reason = STORED if kept else NOT_KEPT
        if kept and new is not None and hole.start_ms >= new.end_ms:
            reason = NOT_DUE
        rows.append((Gap(hole.kind(timeframe), pair, hole.start_ms, end_ms, state, reason), None))
    for hole in holes:
        if hole in unchanged:
            continue
        if hole.is_absent:
            gap = Gap(hole.kind(timeframe), pair, *hole[:2], "unresolvable", NO_CANDLE)
        else:
            reason = NOT_FILLED if hole.is_first else DID_NOT_COME
            gap = Gap(hole.kind(timeframe), pair, *hole[:2], "found", reason)
        rows.append((gap, hole))
    return rows


def mistakes(known: Covered, opens: Sequence[int], length_ms: int) -> list[str]:
    """What contradicts `known`, when candles at `opens` (ascending) are stored; empty when nothing does."""
    found: list[str] = []
    before_ms = known.from_ms
    for hole in known.holes:
        if not before_ms <= hole.start_ms < hole.end_ms <= known.end_ms:
            found.append(f"a hole that is empty, outside, or overlaps another: {hole}")
        before_ms = hole.end_ms
    within = TimeRange(max(known.from_ms, known.looked_ms), max(known.end_ms, known.looked_ms))
    lacking = missing(opens[bisect_left(opens, within.start_ms) :], within, length_ms)
    holes = list(overlap([hole.time_range for hole in known.holes], within))
    for part in lacking:
        found += [f"not stored, and in no hole: {cut}" for cut in subtract(part, holes)]
    for part in holes:
        found += [f"stored, and in a hole: {cut}" for cut in subtract(part, lacking)]
    return found


def _answered(hole: Hole, now_ms: int) -> Hole:
    if hole.empty_1_ms is None:
        return hole._replace(empty_1_ms=now_ms)
    if now_ms - hole.empty_1_ms < AGAIN_AFTER_MS or hole.end_ms > now_ms - LATE_FOR_MS:
        return hole
    return hole._replace(empty_2_ms=now_ms)


def _filled(holes: tuple[Hole, ...], opens: Sequence[int], length_ms: int) -> tuple[Hole, ...]:
    first_ms, last_ms = opens[0], opens[-1]
    left: list[Hole] = []
    for hole in holes:
        if hole.start_ms > last_ms or hole.end_ms <= first_ms:
            left.append(hole)
            continue
        inside = opens[bisect_left(opens, hole.start_ms) : bisect_left(opens, hole.end_ms)]
        if not inside:
            left.append(hole)
            continue
        parts = missing(inside, hole.time_range, length_ms)
        left += (hole._replace(start_ms=part.start_ms, end_ms=part.end_ms) for part in parts)
    return holes if len(left) == len(holes) and tuple(left) == holes else tuple(left)


def _shortened(known: Covered, from_ms: int, keep_ms: int) -> Covered:
    """Less is asked for: what is missing at the beginning is promised no more, what is stored stays."""
    shorter = msgspec.structs.replace(known, promised_ms=keep_ms)
    bottom = known.holes[0] if known.holes else None
    if not known.is_looked_through or bottom is None or bottom.start_ms > known.from_ms:
        return shorter
    return stored_before(shorter, min(bottom.end_ms, max(from_ms, known.from_ms)))
