"""What a bucket lacks of what it has acknowledged: found by numbers first, then row by row.

Pure. A tile is what a pair has of a measurement in a UTC day, or in an hour of the last two. Its numbers are
how many rows there are, and the sum of one field. Where they differ twice, the rows of both sides are read:
what the bucket lacks is sent again. What the bucket has beyond the journal is another collector's, and other
values are sent once and then left: two collectors must not correct each other for ever.

Times of rows are exchange ms, those of looks monotonic seconds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from marketfeed.schema import DAY_MS, HOUR_MS

PURE = True

MOST_MENDED: Final = 1_000
"""More lacking rows of a look than these are sent as ranges of their measurement."""
AGAIN_AFTER_S: Final = 600.0
"""Where another collector adds to a tile all the time, its rows are read again so often at most."""
TRY_AT_MOST_S: Final = 86_400.0
"""Until a tile that lacks after it was sent is sent again: doubled with each time, so long at most."""
_SENT_KEPT: Final = 200_000
_REMEMBERED: Final = 200_000
_UNESCAPED_BLANK: Final = re.compile(r"(?<!\\) ")
_TRADES: Final = re.compile(r"[ ,]trades=(\d+)i[ ,]")


class Numbers(NamedTuple):
    """Of a tile's rows: how many, and the sum of their field (added in the order of time)."""

    rows: int
    total: float


NONE: Final = Numbers(0, 0)


class Tile(NamedTuple):
    """What `pair` has of a measurement from `start_ms` on; it ends before `end_ms`, which may grow."""

    measurement: str
    pair: str
    start_ms: int
    end_ms: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is known by, however far it reaches."""
        return self.measurement, self.pair, self.start_ms


class Differing(NamedTuple):
    """A tile whose numbers are not the same on both sides."""

    tile: Tile
    ours: Numbers
    theirs: Numbers

    @property
    def lacking(self) -> int:
        """So many rows at least the bucket lacks, if it holds no others."""
        return max(0, self.ours.rows - self.theirs.rows)


class Judged(NamedTuple):
    """Our lines by what they are to the bucket's: not there, fewer trades there, other values there."""

    lacking: list[str]
    fewer: list[str]
    other: list[str]


class CompareReport(msgspec.Struct, frozen=True):
    """How the comparison of a bucket with the journal goes.

    `state` is `comparing`, `waiting` (for shipping or the server) or `off` (no right to read, no mapping, or
    `influxdb.compare`); `why` says so in words, or what is not compared. `tiles` have been compared and
    `wrong` of them lacked rows or held others; `mended` rows were sent again one by one, `lacking` rows were
    found to be missing in all, and `ranges` and `everything` say how often a range or the whole journal was
    sent again for it. `foreign` are other values that were left, `left` tiles that differ for good. `asked_s`
    is how long the server was asked for in all, ages are wall seconds (before the first look, since the
    start).
    """

    target: str
    state: str
    why: str
    tiles: int
    wrong: int
    lacking: int
    mended: int
    ranges: int
    everything: int
    foreign: int
    left: int
    looks: int
    rounds: int
    round_part: float
    asked_s: float
    last_look_ago_s: float
    last_round_ago_s: float | None

    @property
    def mismatch_rate(self) -> float:
        """The share of compared tiles that were wrong."""
        return self.wrong / self.tiles if self.tiles else 0.0


class _Left(NamedTuple):
    ours: Numbers
    theirs: Numbers
    read_s: float


class _Tried(NamedTuple):
    times: int
    sent_s: float


class Memory:
    """What is known of tiles that differ for good or after they were sent, and other values sent once.

    A tile that lacks still is sent again `try_again_s` later, then after twice as long each time.
    """

    def __init__(self, try_again_s: float = 60.0) -> None:
        self._try_again_s = try_again_s
        self._left: dict[tuple[str, str, int], _Left] = {}
        self._tried: dict[tuple[str, str, int], _Tried] = {}
        self._sent: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._left)

    def differs(self, found: Differing, now_s: float) -> bool:
        """Whether a tile is to be looked into: it differs, and not as it is known to."""
        if found.ours == found.theirs:
            self._left.pop(found.tile.key, None)
            self._tried.pop(found.tile.key, None)
            return False
        if (tried := self._tried.get(found.tile.key)) is not None:
            # What is read there may not be what is written: a name that is mapped to another bucket.
            wait_s = min(self._try_again_s * float(1 << min(tried.times - 1, 20)), TRY_AT_MOST_S)
            return now_s - tried.sent_s >= wait_s
        left = self._left.get(found.tile.key)
        if left is None:
            return True
        if (left.ours, left.theirs) == (found.ours, found.theirs):
            return False
        # While rows come in, ours and another collector's, the numbers change with each look. A surplus that
        # shrinks is a loss; one that a growing surplus hides is found by the next reading.
        surplus = found.theirs.rows - found.ours.rows
        grown = surplus - (left.theirs.rows - left.ours.rows)
        is_filling = grown > 0 or (grown == 0 and found.ours.rows > left.ours.rows)
        return not is_filling or now_s - left.read_s >= AGAIN_AFTER_S

    def leave(self, found: Differing, now_s: float) -> None:
        """Its rows were read, and there was nothing to send."""
        self._left.pop(found.tile.key, None)
        self._tried.pop(found.tile.key, None)
        self._left[found.tile.key] = _Left(found.ours, found.theirs, now_s)
        if len(self._left) > _REMEMBERED:
            self._left.pop(next(iter(self._left)))

    def sent(self, found: Differing, now_s: float) -> None:
        """Rows of it are sent again: it is equal soon, or waits longer from time to time."""
        tried = self._tried.get(found.tile.key, _Tried(0, now_s))
        self._tried[found.tile.key] = _Tried(tried.times + 1, now_s)
        self._left.pop(found.tile.key, None)

    def unsent(self, lines: Iterable[str]) -> list[str]:
        """Those of lines with other values that have not been sent: each is, once.

        A line stands for its row's number: a row gets a new one when a value changes.
        """
        found = []
        for line in lines:
            if (known := hash(line)) not in self._sent:
                self._sent[known] = None
                found.append(line)
        while len(self._sent) > _SENT_KEPT:
            self._sent.pop(next(iter(self._sent)))
        return found


def paired(
    measurement: str,
    ends_ms: Mapping[int, int],
    ours: Mapping[tuple[str, int], Numbers],
    theirs: Mapping[tuple[str, int], Numbers],
) -> list[Differing]:
    """Our tiles, by pair and start, each with both sides' numbers; `ends_ms` are their ends by start."""
    return [
        Differing(
            Tile(measurement, pair, start_ms, ends_ms[start_ms]),
            numbers,
            theirs.get((pair, start_ms), NONE),
        )
        for (pair, start_ms), numbers in ours.items()
        if numbers.rows
    ]


def judge(ours: Iterable[str], theirs: Iterable[str]) -> Judged:
    """Compare lines of the same rows' ranges. More in the bucket is no mismatch."""
    there = {_place(line): line for line in theirs}
    found = Judged([], [], [])
    for line in ours:
        other = there.get(_place(line))
        if other is None:
            found.lacking.append(line)
        elif other != line:
            trades, held = _trades(line), _trades(other)
            if trades is not None and held is not None and trades != held:
                if held < trades:
                    found.fewer.append(line)
            else:
                found.other.append(line)
    return found


def _place(line: str) -> tuple[str, str]:
    """A line's measurement and tags, and its time."""
    blank = _UNESCAPED_BLANK.search(line)
    return line[: blank.start()] if blank else line, line.rpartition(" ")[2]


def _trades(line: str) -> int | None:
    found = _TRADES.search(line)
    return None if found is None else int(found[1])


def recent_start_ms(now_ms: int) -> int:
    """From where on tiles are hours: at least the last two."""
    return (now_ms - 2 * HOUR_MS) // HOUR_MS * HOUR_MS


def days(
    start_ms: int, end_ms: int, rows_a_day: float, most_rows: int
) -> Iterator[tuple[int, int]]:
    """Cut a range into whole days, the newest first, of about `most_rows` rows each."""
    length_ms = max(1, int(most_rows / max(rows_a_day, 1.0))) * DAY_MS
    while start_ms < end_ms:
        first_ms = max(start_ms, (end_ms - 1) // DAY_MS * DAY_MS + DAY_MS - length_ms)
        yield first_ms, end_ms
        end_ms = first_ms
