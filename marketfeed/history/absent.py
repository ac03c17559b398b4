"""What the exchange has said it does not have, and how long that is believed."""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.grid import Stretch, cut, joined, overlap
from marketfeed.history.plan import Series

PURE = True

BELIEVED_FOR_MS: Final = 7 * schema.DAY_MS
"""For how long the exchange's word that it has no candles for a stretch is taken: it may have erred."""


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
