"""What of each series a bucket has without a hole: what its collector holds, and the bucket has acknowledged.

Pure. The journal tells what is stored (`journal/coverage.py`). Of that the bucket lacks what it has not
acknowledged and what it has refused. Candles that have not been acknowledged are looked up by the numbers of
their rows, each once; where those of one look have been acknowledged, they are forgotten together. So there
may be fewer candles in a bucket's interval than the bucket has, never more.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, joined, missing
from marketfeed.journal.coverage import Covered, Key
from marketfeed.storage.ranges import Ranges

PURE = True

MOST_LOOKS: Final = 256
"""Looks with candles that are kept apart; beyond that neighbours are made one, to be forgotten together."""
CANDLES: Final = 5_000
"""A look holds no more candles than that; those that follow on each other are made one up to so many."""
_END: Final = attrgetter("end_ms")


class Look(NamedTuple):
    """The candles of the rows that are numbered `first` to `last`: their open times, by series."""

    first: int
    last: int
    opens_ms: Mapping[Key, Sequence[int]]


class Refused(msgspec.Struct, frozen=True):
    """The candles that a bucket has refused: open times, and of what is told no more the newest, by series.

    Settlements of a pair are such a series, too.

    A series is named by the measurement and tags of its lines. With `is_unknown` some are known to be
    refused, and it is not known which.
    """

    opens_ms: Mapping[str, Sequence[int]] = {}
    gone_ms: Mapping[str, int] = {}
    is_unknown: bool = False


NONE_REFUSED: Final = Refused()


class _Block(msgspec.Struct):
    """Candles, by series, of which some have not been acknowledged: their numbers are `first` to `last`."""

    first: int
    last: int
    candles: int
    ranges: dict[Key, list[TimeRange]]


class Unacknowledged:
    """The candles of a file that a bucket has not acknowledged, as far as its rows have been looked at."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        # Numbers that have been looked at, or were acknowledged before they were.
        self._known = Ranges()
        self._end = 1

    @property
    def is_whole(self) -> bool:
        """Whether all rows have been looked at that were not acknowledged, as of the last `left`."""
        return next(self._known.gaps(self._end), None) is None

    def left(self, acknowledged: Ranges, next_seq: int) -> list[tuple[int, int]]:
        """Take in what has been acknowledged; returns the numbers still to be looked at, highest first."""
        for first, last in acknowledged:
            self._known.add(first, last)
        self._blocks = [
            block for block in self._blocks if not acknowledged.covers(block.first, block.last)
        ]
        self._end = next_seq
        return list(self._known.gaps(next_seq))

    def add(self, looks: Iterable[Look]) -> None:
        """Take in rows of numbers that were `left`."""
        for look in looks:
            self._known.add(look.first, look.last)
            if look.opens_ms:
                ranges = {key: _ranges(key, opens) for key, opens in look.opens_ms.items()}
                count = sum(map(len, look.opens_ms.values()))
                self._insert(_Block(look.first, look.last, count, ranges))
        while len(self._blocks) > MOST_LOOKS:
            sizes = [
                one.candles + two.candles
                for one, two in zip(self._blocks, self._blocks[1:], strict=False)
            ]
            self._join(sizes.index(min(sizes)))

    def ranges(self) -> dict[Key, list[TimeRange]]:
        """Where candles have not been acknowledged, by series; in no order, and they may overlap."""
        found: dict[Key, list[TimeRange]] = {}
        for block in self._blocks:
            for key, ranges in block.ranges.items():
                found.setdefault(key, []).extend(ranges)
        return found

    def _insert(self, block: _Block) -> None:
        after = next(
            (at for at, one in enumerate(self._blocks) if one.first > block.first),
            len(self._blocks),
        )
        self._blocks.insert(after, block)
        before = self._blocks[after - 1] if after else None
        # Nothing between them has been acknowledged: it will be soon after each other.
        if (
            before is not None
            and before.last + 1 == block.first
            and before.candles + block.candles <= CANDLES
        ):
            self._join(after - 1)

    def _join(self, at: int) -> None:
        one, two = self._blocks[at : at + 2]
        for key, ranges in two.ranges.items():
            length_ms = schema.SERIES_MS[key[1]]
            one.ranges[key] = joined([*one.ranges.get(key, ()), *ranges], length_ms, 0)
        one.last = two.last
        one.candles += two.candles
        del self._blocks[at + 1]


def interval(known: Covered, lacking: Sequence[TimeRange]) -> TimeRange | None:
    """The newest part of a series without a hole, when a bucket lacks `lacking` of what is stored.

    A hole that the exchange answered without twice is none; the part may end with one, but is not made of
    them alone while something is missing below. An empty part stands where the promise begins. None where
    nobody knows: its rows have still to be looked through.
    """
    until_ms = known.end_ms
    from_ms = floor_ms = max(known.from_ms, known.looked_ms)
    blocks: Iterable[TimeRange] = (
        hole.time_range for hole in reversed(known.holes) if not hole.is_absent
    )
    if lacking:
        rows = sorted(lacking, key=_END, reverse=True)
        blocks = heapq.merge(blocks, rows, key=_END, reverse=True)
    # From the newest down: what reaches the end cuts it, the first that does not is below it.
    for start_ms, end_ms in blocks:
        if end_ms <= floor_ms:
            break
        part = TimeRange(end_ms, until_ms)
        if end_ms < until_ms and known.absent_ms(part) < until_ms - end_ms:
            from_ms = end_ms
            break
        until_ms = min(until_ms, start_ms)
    if from_ms < until_ms:
        return TimeRange(from_ms, until_ms)
    return TimeRange(known.from_ms, known.from_ms) if known.is_looked_through else None


def intervals(
    stored: Mapping[Key, Covered],
    kept: Mapping[Key, Covered],
    unacknowledged: Unacknowledged,
    refused: Refused,
    line_keys: Mapping[Key, str],
    held: Callable[[str], Sequence[TimeRange]] = lambda _: (),
) -> dict[Key, TimeRange]:
    """The interval of each series that is promised, and about which something is known.

    `stored` is coverage as of before the rows were looked at, `kept` as of afterwards: what was deleted
    meanwhile has not been found among the rows, and was perhaps never shipped. `line_keys` name the series
    in `refused`. `held` says where rows of a measurement have been passed over.
    """
    lacking = unacknowledged.ranges()
    is_known = unacknowledged.is_whole and not refused.is_unknown
    found: dict[Key, TimeRange] = {}
    for key, known in stored.items():
        now = kept.get(key)
        if now is None:
            continue
        name = line_keys[key]
        mine = [*lacking.get(key, ()), *held(name.partition(",")[0])]
        if name in refused.opens_ms or name in refused.gone_ms:
            length_ms = schema.SERIES_MS[key[1]]
            mine = mine + [TimeRange(at, at + length_ms) for at in refused.opens_ms.get(name, ())]
            if name in refused.gone_ms:
                mine.append(TimeRange(0, refused.gone_ms[name] + length_ms))
        if now.from_ms > known.from_ms:
            mine = [*mine, TimeRange(0, now.from_ms)]
        part = interval(known, mine) if is_known else TimeRange(now.from_ms, now.from_ms)
        if part is not None:
            found[key] = part
    return found


def settled_parts(
    settled_to_ms: Mapping[str, int],
    refused: Refused,
    line_keys: Mapping[str, str],
    told: Iterable[str],
    since_ms: int = 0,
    held: Sequence[TimeRange] = (),
) -> dict[Key, TimeRange]:
    """Up to when a bucket has each pair's settlements, as an empty part that stands there.

    `settled_to_ms` is that of what is stored and acknowledged. It ends at the first that was refused; which
    one that is of those that are told no more, is not known. `line_keys` name the pairs in `refused`. Of one
    that was `told`, and is not known any more, 0 is said: the point of the hour has the field.
    So it does where settlements are `held`. What was refused of before `since_ms` does not matter: readers
    look no further back, and a bucket with an expiry refuses all that is older than that.
    """
    found: dict[Key, TimeRange] = {}
    for pair, name in line_keys.items():
        to_ms = settled_to_ms.get(pair, 0)
        if refused.is_unknown or refused.gone_ms.get(name, -1) >= since_ms:
            to_ms = 0
        to_ms = min([to_ms, *(at for at in refused.opens_ms.get(name, ()) if at >= since_ms)])
        to_ms = min(
            [to_ms, *(one.start_ms for one in held if one.end_ms > since_ms and one.start_ms)]
        )
        if to_ms or pair in told:
            found[pair, schema.SETTLED_TO] = TimeRange(to_ms, to_ms)
    return found


class Points:
    """Which pairs' points are to be written: all `every_s` (monotonic), one that says less at once."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._written: dict[str, dict[str, TimeRange]] = {}
        self._written_s: float | None = None
        self._all = False

    def due(self, found: Mapping[Key, TimeRange], now_s: float) -> dict[str, dict[str, TimeRange]]:
        """The pairs to write now, each with all its intervals by timeframe."""
        pairs: dict[str, dict[str, TimeRange]] = {}
        for (pair, timeframe), part in found.items():
            pairs.setdefault(pair, {})[timeframe] = part
        self._all = self._written_s is None or now_s - self._written_s >= self._every_s
        if self._all:
            return pairs
        return {pair: parts for pair, parts in pairs.items() if self._says_more(pair, parts)}

    def written(self, pairs: Mapping[str, dict[str, TimeRange]], now_s: float) -> None:
        """Note that what was due has been written."""
        self._written |= pairs
        if self._all:
            self._written_s = now_s

    def _says_more(self, pair: str, parts: Mapping[str, TimeRange]) -> bool:
        """Whether there is more to say than that candles have come since."""
        written = self._written.get(pair, {})
        for timeframe, (start_ms, end_ms) in parts.items():
            before = written.get(timeframe)
            if before is None or start_ms != before.start_ms or end_ms < before.end_ms:
                return True
            if before.start_ms == before.end_ms < end_ms:
                # There was nothing of it.
                return True
        return False


def _ranges(key: Key, opens_ms: Sequence[int]) -> list[TimeRange]:
    """Where candles are that open at these times, in any order."""
    length_ms = schema.SERIES_MS[key[1]]
    opens = sorted(opens_ms)
    whole = TimeRange(opens[0], opens[-1] + length_ms)
    starts = [whole.start_ms]
    ends = []
    for hole in missing(opens, whole, length_ms):
        ends.append(hole.start_ms)
        starts.append(hole.end_ms)
    return [TimeRange(*part) for part in zip(starts, [*ends, whole.end_ms], strict=True)]
