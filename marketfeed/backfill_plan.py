"""What to ask for, and in which order, to fill holes: the newest of every series first.

Times are ms of exchange time; stretches are half open and on their timeframe's grid.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.binance.symbols import Instrument
from marketfeed.grid import TILE_CANDLES, Stretch, candles_in, cut, joined

BELIEVED_FOR_MS: Final = 7 * schema.DAY_MS
"""For how long the exchange's word that it has no candles for a stretch is taken: it may have erred."""


class Series(NamedTuple):
    """One pair and timeframe of the exchange."""

    instrument: Instrument
    timeframe: str

    @property
    def key(self) -> str:
        """Its name in documents and logs, for example `BTC/USDT:USDT 3m`."""
        return f"{self.instrument.pair} {self.timeframe}"

    @property
    def length_ms(self) -> int:
        """The length of its candles."""
        return schema.TIMEFRAMES_MS[self.timeframe]


class Holes(NamedTuple):
    """What a series lacks of its range, oldest first."""

    series: Series
    within: Stretch
    stretches: tuple[Stretch, ...]

    @property
    def candles(self) -> int:
        """How many candles are missing."""
        return sum(candles_in(stretch, self.series.length_ms) for stretch in self.stretches)


class Tile(NamedTuple):
    """One request for a series: at most 499 candles, the first and the last of which are missing."""

    wave: int
    series: Series
    stretch: Stretch
    candles: int


def range_of(series: Series, since_ms: int, until_ms: int) -> Stretch:
    """The series' stretch of [since, until): on its grid, from its listing's first candle to its end.

    That candle opens before the listing, unless this is on the grid.
    """
    length_ms = series.length_ms
    listed_ms = schema.floor_to(series.instrument.listed_ms, length_ms)
    last_ms = until_ms
    if series.instrument.ended_ms is not None:
        last_ms = min(last_ms, series.instrument.ended_ms)
    start_ms = max(-(-since_ms // length_ms) * length_ms, listed_ms)
    return Stretch(start_ms, max(start_ms, schema.floor_to(last_ms, length_ms)))


def covering(
    holes: Sequence[Stretch], length_ms: int, most: int = TILE_CANDLES
) -> list[tuple[Stretch, int]]:
    """Cover holes (oldest first) with as few requests as can be, newest first.

    Each is a stretch of at most `most` candles that begins and ends with a missing one, and how many
    of its candles are missing; what lies between holes is asked along.
    """
    left = list(holes)
    found: list[tuple[Stretch, int]] = []
    while left:
        end_ms = left[-1].end_ms
        floor_ms = end_ms - most * length_ms
        start_ms, count = end_ms, 0
        while left and left[-1].end_ms > floor_ms:
            hole = left.pop()
            start_ms = max(hole.start_ms, floor_ms)
            count += (hole.end_ms - start_ms) // length_ms
            if hole.start_ms < floor_ms:
                left.append(Stretch(hole.start_ms, floor_ms))
                break
        found.append((Stretch(start_ms, end_ms), count))
    return found


def in_order(lacking: Iterable[Holes]) -> list[Tile]:
    """All requests: the newest one of every series, then the next of every series, and so on."""
    return sorted(
        (
            Tile(wave, holes.series, stretch, candles)
            for holes in lacking
            for wave, (stretch, candles) in enumerate(
                covering(holes.stretches, holes.series.length_ms)
            )
        ),
        key=lambda tile: tile.wave,
    )


class Absent:
    """Stretches for which the exchange has no candles (before a pair's first trade), by series.

    Each is believed for a week and then asked for anew.
    """

    def __init__(self, known: bytes | None = None) -> None:
        self._known: dict[str, list[tuple[int, int, int]]] = {}
        if known is not None:
            # What is no such document is asked for anew.
            with contextlib.suppress(msgspec.DecodeError):
                self._known = msgspec.json.decode(known, type=dict[str, list[tuple[int, int, int]]])

    def note(self, series: Series, stretches: Iterable[Stretch], now_ms: int) -> None:
        """Take down what the exchange has just said it does not have."""
        rows = self._known.setdefault(series.key, [])
        rows += [(*stretch, now_ms) for stretch in stretches]

    def of(self, key: str, now_ms: int) -> list[Stretch]:
        """What is believed to be absent of a series."""
        return [
            Stretch(start_ms, end_ms)
            for start_ms, end_ms, noted_ms in self._known.get(key, ())
            if noted_ms > now_ms - BELIEVED_FOR_MS
        ]

    def document(self, now_ms: int) -> bytes:
        """For the journal: what is believed, neighbours made one."""
        kept: dict[str, list[tuple[int, int, int]]] = {}
        for key, rows in self._known.items():
            # One time for a whole stretch: the oldest of its parts, so that none is believed too long.
            length_ms = schema.TIMEFRAMES_MS[key.rpartition(" ")[2]]
            for stretch in joined(self.of(key, now_ms), length_ms, within=0):
                noted = [n for s, e, n in rows if s < stretch.end_ms and e > stretch.start_ms]
                believed = [n for n in noted if n > now_ms - BELIEVED_FOR_MS]
                kept.setdefault(key, []).append((*stretch, min(believed)))
        self._known = kept
        return msgspec.json.encode(kept)


class _Doubt(NamedTuple):
    stretch: Stretch
    since_s: float


class Doubts:
    """What the exchange has once said it does not have, by series: one such answer may be a mistake."""

    def __init__(self) -> None:
        self._known: dict[str, list[_Doubt]] = {}

    def __bool__(self) -> bool:
        return any(self._known.values())

    def keep(self, keys: Collection[str]) -> None:
        """Forget all series but these."""
        self._known = {key: doubts for key, doubts in self._known.items() if key in keys}

    def take(
        self, key: str, asked: Stretch, lacking: Sequence[Stretch], now_s: float, after_s: float
    ) -> list[Stretch]:
        """Take in what an answer for `asked` lacks; returns what of it was said `after_s` ago or earlier.

        `now_s` are monotonic seconds.
        """
        known = self._known.get(key, [])
        before = [doubt.stretch for doubt in known]
        again = [
            _Doubt(part, doubt.since_s)
            for doubt in known
            for hole in lacking
            for part in overlap([doubt.stretch], hole)
        ]
        self._known[key] = [
            *(_Doubt(rest, d.since_s) for d in known for rest in cut(d.stretch, [asked])),
            *(_Doubt(part, now_s) for hole in lacking for part in cut(hole, before)),
            *(doubt for doubt in again if doubt.since_s + after_s > now_s),
        ]
        return [doubt.stretch for doubt in again if doubt.since_s + after_s <= now_s]


def without(stretches: Iterable[Stretch], absent: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Holes without those parts of them that the exchange does not have, oldest first."""
    return tuple(part for stretch in stretches for part in cut(stretch, absent))


def missing_days(stretches: Iterable[Stretch]) -> Mapping[int, int]:
    """How many ms of each UTC day (by its start) are missing."""
    days: dict[int, int] = {}
    for start_ms, end_ms in stretches:
        for day_ms in range(schema.floor_to(start_ms, schema.DAY_MS), end_ms, schema.DAY_MS):
            part_ms = min(end_ms, day_ms + schema.DAY_MS) - max(start_ms, day_ms)
            days[day_ms] = days.get(day_ms, 0) + part_ms
    return days


def overlap(stretches: Iterable[Stretch], part: Stretch) -> Iterator[Stretch]:
    """What of `stretches` lies within `part`."""
    for start_ms, end_ms in stretches:
        if start_ms < part.end_ms and end_ms > part.start_ms:
            yield Stretch(max(start_ms, part.start_ms), min(end_ms, part.end_ms))
