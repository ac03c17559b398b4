"""What is due and not there: promised, minus stored, minus what was received and is not committed yet.

A candle is due by the clock alone: subscriptions, connections and halts are no events. Who is to bring it
follows from where it is, and is stored nowhere: the feed until its deadline, healing for the newest of a
series, history for the rest. Times are ms of exchange time.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from operator import attrgetter
from typing import Final

from marketfeed import schema
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in, missing
from marketfeed.journal.batch import Due
from marketfeed.journal.coverage import BELIEVED_FOR_MS, Covered, Hole, Key

PURE = True

CANDLE_DUE_MS: Final = 4_000
"""A closed candle is due this long after its close: quiet pairs close by a timer of 2 s. One that has not
come by then is missing."""
MARK_1H_DUE_MS: Final = 20_000
MARK_1H_LATE_MS: Final = 600_000
"""A mark candle is asked for this long after its hour; it is late, and missing, when it is not there then."""
_END: Final = attrgetter("end_ms")
_NOTHING: Final[Collection[int]] = ()


class Holes:
    """The holes of all series that are promised, as they are now.

    `coverage` gives what is known of them, `received` the open times of a series' candles that have come
    and are not committed, `due_after_ms` how long after its close a candle is due.
    """

    def __init__(
        self,
        coverage: Callable[[], Mapping[Key, Covered]],
        received: Callable[[], Mapping[Key, Collection[int]]],
        due_after_ms: Callable[[], int] = lambda: CANDLE_DUE_MS,
    ) -> None:
        self.ended_ms: dict[str, int] = {}
        """When pairs end, or have ended: nothing that opens later or is cut by that is due."""
        self._coverage = coverage
        self._received = received
        self._due_after_ms = due_after_ms

    def series(self) -> Mapping[Key, Covered]:
        """What is known of each series."""
        return self._coverage()

    def due_ms(self, key: Key, now_ms: int) -> int:
        """Up to where a series' candles are due."""
        length_ms = schema.SERIES_MS[key[1]]
        until_ms = now_ms - self._due_after_ms() - 1
        ended_ms = self.ended_ms.get(key[0])
        if ended_ms is not None:
            until_ms = min(until_ms, ended_ms)
        return schema.floor_to(until_ms, length_ms)

    def lacking(
        self, key: Key, now_ms: int, since_ms: int = 0, *, stored: bool = False
    ) -> list[Hole]:
        """What is due of a series and not there, oldest first; what the exchange does not have, too.

        Holes that end by `since_ms` are left out. With `stored` what was received and is not committed is
        not there either: as readers have it.
        """
        covered = self._coverage().get(key)
        if covered is None:
            return []
        due_ms = self.due_ms(key, now_ms)
        if not covered.holes and covered.end_ms >= due_ms:
            return []
        length_ms = schema.SERIES_MS[key[1]]
        first = bisect_right(covered.holes, since_ms, key=_END) if since_ms else 0
        after = bisect_right(covered.holes, due_ms, first, key=_END)
        found = list(covered.holes[first:after])
        if after < len(covered.holes) and covered.holes[after].start_ms < due_ms:
            # The clock has been set back since.
            found.append(covered.holes[after]._replace(end_ms=due_ms))
        if max(covered.end_ms, since_ms) < due_ms:
            found.append(Hole(covered.end_ms, due_ms))
        here = _NOTHING if stored else self._received().get(key, _NOTHING)
        if not here or not found:
            return found
        opens = sorted(here)
        return [
            hole._replace(start_ms=part.start_ms, end_ms=part.end_ms)
            for hole in found
            for part in missing(
                [at for at in opens if at >= hole.start_ms], hole.time_range, length_ms
            )
            if part.end_ms > since_ms
        ]

    def overdue(self, now_ms: int) -> Iterator[tuple[Key, Due]]:
        """The series that lack candles behind the end of what is known."""
        for key in self._coverage():
            due = self.overdue_of(key, now_ms)
            if due is not None:
                yield key, due

    def overdue_of(self, key: Key, now_ms: int) -> Due | None:
        """What a series lacks behind the end of what is known of it; None when that is nothing."""
        covered = self._coverage().get(key)
        until_ms = self.due_ms(key, now_ms)
        if covered is None or covered.end_ms >= until_ms:
            return None
        behind = TimeRange(covered.end_ms, until_ms)
        opens = sorted(self._received().get(key, _NOTHING))
        lacking = tuple(missing(opens, behind, schema.SERIES_MS[key[1]]))
        return Due(until_ms, lacking) if lacking else None

    def newest(self, key: Key, now_ms: int) -> TimeRange:
        """Where the newest candles of a series are that are due: as many as a feeder asks for at most."""
        due_ms = self.due_ms(key, now_ms)
        length_ms = schema.SERIES_MS[key[1]]
        return TimeRange(due_ms - TILE_CANDLES * length_ms, due_ms)

    def for_healing(self, key: Key, now_ms: int) -> list[Hole]:
        """What healing is to fetch of a series: holes, or parts of them, among the newest candles."""
        return self._to_fetch(key, now_ms, self.newest(key, now_ms))

    def for_history(
        self, key: Key, now_ms: int, *, newest_too: bool = False
    ) -> tuple[TimeRange, ...]:
        """What history is to fetch of a series: all that is older, or with `newest_too` all."""
        newest = self.newest(key, now_ms)
        where = TimeRange(0, newest.end_ms if newest_too else newest.start_ms)
        return tuple(hole.time_range for hole in self._to_fetch(key, now_ms, where))

    def complete_until(self, key: Key, now_ms: int) -> int:
        """Up to where nothing is missing of a series but what the exchange does not have.

        Where rows are still to be looked through, nobody knows.
        """
        covered = self._coverage().get(key)
        if covered is None:
            return 0
        if not covered.is_looked_through:
            return covered.from_ms
        first = next((hole for hole in self.lacking(key, now_ms) if not hole.is_absent), None)
        return self.due_ms(key, now_ms) if first is None else first.start_ms

    def ready(self, key: Key, candles: int, now_ms: int) -> bool:
        """Whether the newest `candles` of a series that are due are stored, or all that is promised.

        What the exchange does not have is not waited for.
        """
        covered = self._coverage().get(key)
        if covered is None:
            return False
        from_ms = self.due_ms(key, now_ms) - candles * schema.SERIES_MS[key[1]]
        if covered.looked_ms > max(covered.from_ms, from_ms):
            return False
        lacking = self.lacking(key, now_ms, from_ms, stored=True)
        return all(hole.is_absent for hole in lacking)

    def is_filling(self, pairs: Container[str]) -> bool:
        """Whether anything of a first filling of `pairs` is not stored, or rows are to be looked through."""
        return any(
            not covered.is_looked_through
            or any(hole.is_first and not hole.is_absent for hole in covered.holes)
            for (pair, _), covered in self._coverage().items()
            if pair in pairs
        )

    def count(self, now_ms: int, *, first: bool = False) -> Counter[Key]:
        """How many candles each series lacks: of a `first` filling, or else.

        What the exchange does not have does not count.
        """
        found = Counter[Key]()
        for key, hole in self._open(now_ms):
            if hole.is_first == first:
                found[key] += candles_in(hole.time_range, schema.SERIES_MS[key[1]])
        return found

    def absent(self) -> Counter[Key]:
        """How many candles of each series the exchange does not have: it has answered without them twice."""
        found = Counter[Key]()
        for key, covered in self._coverage().items():
            for hole in covered.holes:
                if hole.is_absent:
                    found[key] += candles_in(hole.time_range, schema.SERIES_MS[key[1]])
        return found

    def open_longer_than(
        self, for_s: float, now_ms: int, pairs: Container[str] | None = None
    ) -> Counter[Key]:
        """How many candles of which series, due for longer than `for_s`, are healing's and not stored.

        Those of a first filling are none of these. With `pairs` those of others are left out.
        """
        found = Counter[Key]()
        due_ms = now_ms - self._due_after_ms() - int(for_s * 1000)
        for key in self._coverage():
            if pairs is not None and key[0] not in pairs:
                continue
            length_ms = schema.SERIES_MS[key[1]]
            since_ms = self.newest(key, now_ms).start_ms
            old_ms = schema.ceil_to(due_ms - length_ms, length_ms)
            for hole in self.lacking(key, now_ms, since_ms, stored=True):
                if not hole.is_first and not hole.is_absent:
                    old = TimeRange(max(hole.start_ms, since_ms), min(hole.end_ms, old_ms))
                    count = candles_in(old, length_ms)
                    if count:
                        found[key] += count
        return found

    def oldest_s(self, now_ms: int, pairs: Container[str] | None = None) -> float:
        """For how long the oldest missing candle is due that healing is to bring; 0 of none.

        Those of a first filling are none of these. With `pairs` those of others are left out.
        """
        due_ms: list[int] = []
        for key, hole in self._open(now_ms):
            if pairs is not None and key[0] not in pairs:
                continue
            newest = self.newest(key, now_ms)
            if not hole.is_first and hole.end_ms > newest.start_ms:
                close_ms = max(hole.start_ms, newest.start_ms) + schema.SERIES_MS[key[1]]
                due_ms.append(close_ms + self._due_after_ms())
        return max(0.0, (now_ms - min(due_ms)) / 1000) if due_ms else 0.0

    def open_gaps(self, now_ms: int) -> Counter[Key]:
        """How many gaps each series has, those of a first filling apart."""
        return Counter(key for key, hole in self._open(now_ms) if not hole.is_first)

    # --- inside -----------------------------------------------------------------------------------

    def _open(self, now_ms: int) -> Iterator[tuple[Key, Hole]]:
        for key in self._coverage():
            for hole in self.lacking(key, now_ms):
                if not hole.is_absent:
                    yield key, hole

    def _to_fetch(self, key: Key, now_ms: int, where: TimeRange) -> list[Hole]:
        return [
            _cut(hole, where)
            for hole in self.lacking(key, now_ms, where.start_ms)
            if hole.start_ms < where.end_ms
            and hole.end_ms > where.start_ms
            # What it did not have is asked for again now and then.
            and (hole.empty_2_ms is None or hole.empty_2_ms < now_ms - BELIEVED_FOR_MS)
        ]


def _cut(hole: Hole, where: TimeRange) -> Hole:
    """What of a hole lies within `where`. Nearly all do: that costs nothing."""
    if hole.start_ms >= where.start_ms and hole.end_ms <= where.end_ms:
        return hole
    return hole._replace(
        start_ms=max(hole.start_ms, where.start_ms), end_ms=min(hole.end_ms, where.end_ms)
    )
