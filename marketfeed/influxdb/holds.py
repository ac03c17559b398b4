"""What is not sent to a bucket for now: rows that it would refuse, and what is to be sent once it would not.

Pure. Types are kept per shard: where an older writer has left a field of another type, all points of that
measurement are refused in that shard, and taken in the next. Such rows are passed over: they count as shipped
for the cursor and are held here, so that one line a minute is refused and not every one. So are rows that are
older than what the bucket keeps. When a shard's line is taken, or the bucket keeps more, they are sent again.

Times of rows are exchange ms, those of probes monotonic seconds.
"""

import datetime
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from marketfeed.grid import TimeRange
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS

PURE = True

DOCUMENT: Final = "influxdb_held"
"""The journal's document with the books of all targets."""
ALL: Final = "*"
"""In the place of a measurement: each of them."""
_MONDAY_MS: Final = 3 * DAY_MS
"""InfluxDB counts weeks from Mondays; 1970 began on a Thursday."""
_MARGIN_MS: Final = MINUTE_MS
"""Between a server's clock and the exchange's."""


_Key: TypeAlias = tuple[str, int, int, str]


class Hold(msgspec.Struct, frozen=True):
    """Rows of a measurement in one shard that are refused: `line` is one, `answer` the server's words.

    `field` is the one whose type does not fit: rows without it are taken. Empty: all are refused.
    """

    measurement: str
    start_ms: int
    end_ms: int
    line: str
    answer: str
    field: str = ""

    @property
    def key(self) -> _Key:
        """What it is known by. Shards of other lengths may begin at one time: the expiry was changed."""
        return self.measurement, self.start_ms, self.end_ms, self.field

    def __str__(self) -> str:
        first, last = (
            datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).date()
            for at_ms in (self.start_ms, self.end_ms - 1)
        )
        return f"{self.measurement} of {first} to {last}: {self.answer}"


class Again(msgspec.Struct, frozen=True):
    """A range of a measurement's rows, or of all, that is to be sent again."""

    measurement: str
    start_ms: int
    end_ms: int


class _Saved(msgspec.Struct):
    keeps_ms: int | None = None
    holds: list[Hold] = []
    again: list[Again] = []


class Book:
    """The book of one target. `is_changed` until it has been `saved`.

    What it says is read in another thread than it is changed in: sets are replaced, never changed.
    """

    def __init__(self, saved: _Saved | None = None) -> None:
        saved = _Saved() if saved is None else saved
        self.is_changed = False
        self.keeps_ms: int | None = saved.keeps_ms
        """For how long the bucket keeps points (ms): 0 for ever, None: not known."""
        self._holds: Mapping[_Key, Hold] = {hold.key: hold for hold in saved.holds}
        # Of which holds, and what they say: looked at for every line.
        self._spans: tuple[Mapping[_Key, Hold], Mapping[str, list[_Spans]]] = ({}, {})
        self._again: list[Again] = saved.again
        self._probed_s: dict[str, float] = {}

    @property
    def holds(self) -> list[Hold]:
        """What is refused, the newest first."""
        return sorted(self._holds.values(), key=lambda hold: (-hold.start_ms, hold.measurement))

    @property
    def again(self) -> Again | None:
        """What is to be sent again next, the newest first."""
        return max(self._again, key=lambda one: one.end_ms, default=None)

    def clear(self) -> None:
        """Everything is shipped again: nothing is held."""
        self._holds, self._again = {}, []
        self.is_changed = True

    def floor_ms(self, now_ms: int) -> int:
        """Rows of before are older than what the bucket keeps."""
        return now_ms - self.keeps_ms + _MARGIN_MS if self.keeps_ms else 0

    def sent(self, lines: Sequence[str], now_ms: int) -> list[str]:
        """Those of `lines` that are not passed over."""
        floor_ms, holds = self.floor_ms(now_ms), self._holds
        if not floor_ms and not holds:
            return list(lines)
        if self._spans[0] is not holds:
            self._spans = holds, _spans_of(holds.values())
        spans = self._spans[1]
        found = []
        for line in lines:
            at_ms = time_of(line)
            held = spans.get(measurement_of(line), ()) if spans else ()
            if at_ms >= floor_ms and not any(one.hold(line, at_ms) for one in held):
                found.append(line)
        return found

    def hold(self, lines: Sequence[str], answer: str, field: str = "") -> Hold | None:
        """Hold the shard that `lines`, all of one measurement and shard and with `field`, are of.

        None: it is held already.
        """
        newest = max(lines, key=time_of)
        start_ms, end_ms = shard_of(time_of(newest), self.keeps_ms)
        hold = Hold(measurement_of(newest), start_ms, end_ms, newest, answer, field)
        if hold.key in self._holds:
            return None
        self._holds = {**self._holds, hold.key: hold}
        self.is_changed = True
        return hold

    def due(self, now_s: float, every_s: float) -> list[Hold]:
        """What is to be probed now: of each measurement one shard in `every_s`, in turn."""
        found = []
        for name in sorted({hold.measurement for hold in self._holds.values()}):
            if now_s - self._probed_s.setdefault(name, now_s) < every_s:
                continue
            self._probed_s[name] = now_s
            first = next(hold for hold in self._holds.values() if hold.measurement == name)
            # Last in the row: another shard's turn is next.
            rest = {key: hold for key, hold in self._holds.items() if key != first.key}
            self._holds = {**rest, first.key: first}
            found.append(first)
        return found

    def release(self, hold: Hold) -> None:
        """Its line has been taken: all of the shard is sent again."""
        self.drop(hold)
        self.add(Again(hold.measurement, hold.start_ms, hold.end_ms))

    def drop(self, hold: Hold) -> None:
        """The bucket keeps nothing of its shard any more."""
        self._holds = {key: one for key, one in self._holds.items() if key != hold.key}
        # The next shard of the measurement need not wait: of ten years there are hundreds.
        self._probed_s[hold.measurement] = -math.inf
        self.is_changed = True

    def done(self, again: Again) -> None:
        """It has been sent again."""
        self._again = [one for one in self._again if one != again]
        self.is_changed = True

    def keeps(self, keeps_ms: int, now_ms: int) -> None:
        """Take in for how long the bucket keeps points; is it longer than before, older ones are sent."""
        before_ms = self.keeps_ms
        if keeps_ms == before_ms:
            return
        end_ms = self.floor_ms(now_ms)
        self.keeps_ms = keeps_ms
        self.is_changed = True
        start_ms = self.floor_ms(now_ms)
        if before_ms and start_ms < end_ms:
            # An hour more: it was so long ago at most that the bucket was looked at.
            self.add(Again(ALL, start_ms, end_ms + 2 * HOUR_MS))

    def add(self, again: Again) -> None:
        """Have a range sent again: the bucket lacks rows of it."""
        self._again = [*(one for one in self._again if one != again), again]
        self.is_changed = True

    def lacking(self, measurement: str, now_ms: int) -> list[TimeRange]:
        """Where rows of a measurement have been passed over, or have not been sent again yet."""
        spans = [(one.measurement, one.start_ms, one.end_ms) for one in self._holds.values()]
        spans += [(one.measurement, one.start_ms, one.end_ms) for one in self._again]
        found = [TimeRange(*span) for name, *span in spans if name in (measurement, ALL)]
        if floor_ms := self.floor_ms(now_ms):
            # By whole hours: what is said of a series does not change with every look.
            found.append(TimeRange(0, -(-floor_ms // HOUR_MS) * HOUR_MS))
        return found

    def save(self) -> _Saved:
        """What is to be kept of it; it counts as saved."""
        self.is_changed = False
        return _Saved(self.keeps_ms, list(self._holds.values()), list(self._again))


def decode(body: bytes | None, target: str) -> tuple[Book, dict[str, _Saved]]:
    """Read the document; returns the target's book, and those of all targets for `encode`."""
    try:
        of = {} if body is None else msgspec.json.decode(body, type=dict[str, _Saved])
    except msgspec.DecodeError:
        # What it held is refused anew, or comes with `setup --ship-again`.
        of = {}
    return Book(of.get(target)), of


def encode(book: Book, target: str, of: dict[str, _Saved]) -> bytes:
    """Write the document with the target's book."""
    of[target] = book.save()
    return msgspec.json.encode(of)


def shard_of(at_ms: int, keeps_ms: int | None) -> tuple[int, int]:
    """The shard of a time, as InfluxDB lays them out where nobody has set another length."""
    if keeps_ms and keeps_ms < 2 * DAY_MS:
        length_ms, offset_ms = HOUR_MS, 0
    elif keeps_ms and keeps_ms < 180 * DAY_MS:
        length_ms, offset_ms = DAY_MS, 0
    else:
        length_ms, offset_ms = 7 * DAY_MS, _MONDAY_MS
    start_ms = (at_ms + offset_ms) // length_ms * length_ms - offset_ms
    return start_ms, start_ms + length_ms


def grouped(lines: Iterable[str], by: Callable[[str], object]) -> list[list[str]]:
    """`lines` by what `by` says of each, in the order in which each group begins."""
    groups: dict[object, list[str]] = {}
    for line in lines:
        groups.setdefault(by(line), []).append(line)
    return list(groups.values())


class _Spans(NamedTuple):
    """When lines of a measurement are held: ascending, apart; `marks`: those that have one of these."""

    marks: tuple[str, ...]
    starts: list[int]
    ends: list[int]

    def hold(self, line: str, at_ms: int) -> bool:
        """Whether a line of this time is held."""
        at = bisect_right(self.starts, at_ms) - 1
        if at < 0 or at_ms >= self.ends[at]:
            return False
        return not self.marks or any(mark in line for mark in self.marks)


def _spans_of(holds: Iterable[Hold]) -> Mapping[str, list[_Spans]]:
    by_field: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for hold in holds:
        span = hold.start_ms, hold.end_ms
        by_field.setdefault((hold.measurement, hold.field), []).append(span)
    found: dict[str, list[_Spans]] = {}
    for (name, field), spans in by_field.items():
        one = _Spans(_marks(field), [], [])
        for start_ms, end_ms in sorted(spans):
            if one.ends and start_ms <= one.ends[-1]:
                one.ends[-1] = max(one.ends[-1], end_ms)
            else:
                one.starts.append(start_ms)
                one.ends.append(end_ms)
        found.setdefault(name, []).append(one)
    return found


def _marks(field: str) -> tuple[str, ...]:
    return (f" {field}=", f",{field}=") if field else ()


def has_field(line: str, field: str) -> bool:
    """Whether a line of ours has a field; no tag is called as one."""
    return any(mark in line for mark in _marks(field))


def measurement_of(line: str) -> str:
    """The measurement of a line of ours, whose name needs no escapes."""
    return line.partition(",")[0].partition(" ")[0]


def time_of(line: str) -> int:
    """The time at a line's end."""
    return int(line.rpartition(" ")[2])
