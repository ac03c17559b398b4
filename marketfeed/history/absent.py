"""What the exchange has answered that it does not have, and how long that is believed."""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, joined, overlap, subtract
from marketfeed.history.plan import CandleSeries

PURE = True

BELIEVED_FOR_MS: Final = 7 * schema.DAY_MS
"""For how long the exchange's word that it has no candles for a range is taken: it may have erred."""


class Absent:
    """Ranges for which the exchange has no candles (before a pair's first trade), by series.

    Each is believed for a week and then asked for anew.
    """

    def __init__(self, known: bytes | None = None) -> None:
        self._known: dict[str, list[tuple[int, int, int]]] = {}
        if known is not None:
            # What is no such document is asked for anew.
            with contextlib.suppress(msgspec.DecodeError):
                self._known = msgspec.json.decode(known, type=dict[str, list[tuple[int, int, int]]])

    def note(self, series: CandleSeries, time_ranges: Iterable[TimeRange], now_ms: int) -> None:
        """Take down what the exchange has just answered that it does not have."""
        rows = self._known.setdefault(series.key, [])
        rows += [(*time_range, now_ms) for time_range in time_ranges]

    def of(self, key: str, now_ms: int) -> list[TimeRange]:
        """What is believed to be absent of a series."""
        return [
            TimeRange(start_ms, end_ms)
            for start_ms, end_ms, noted_ms in self._known.get(key, ())
            if noted_ms > now_ms - BELIEVED_FOR_MS
        ]

    def document(self, now_ms: int) -> bytes:
        """For the journal: what is believed, neighbours made one."""
        kept: dict[str, list[tuple[int, int, int]]] = {}
        for key, rows in self._known.items():
            # One time for a whole range: the oldest of its parts, so that none is believed too long.
            length_ms = schema.TIMEFRAMES_MS[key.rpartition(" ")[2]]
            for time_range in joined(self.of(key, now_ms), length_ms, within=0):
                noted = [n for s, e, n in rows if s < time_range.end_ms and e > time_range.start_ms]
                believed = [n for n in noted if n > now_ms - BELIEVED_FOR_MS]
                kept.setdefault(key, []).append((*time_range, min(believed)))
        self._known = kept
        return msgspec.json.encode(kept)


class _Suspected(NamedTuple):
    time_range: TimeRange
    since_s: float


class SuspectedAbsent:
    """What an answer of the exchange lacked, by series: one such answer may be a mistake."""

    def __init__(self) -> None:
        self._known: dict[str, list[_Suspected]] = {}

    def __bool__(self) -> bool:
        return any(self._known.values())

    def keep(self, keys: Collection[str]) -> None:
        """Forget all series but these."""
        self._known = {key: suspected for key, suspected in self._known.items() if key in keys}

    def take(
        self, key: str, asked: TimeRange, lacking: Sequence[TimeRange], now_s: float, after_s: float
    ) -> list[TimeRange]:
        """Take in what an answer for `asked` lacks; returns what of it was answered `after_s` ago or earlier.

        `now_s` are monotonic seconds.
        """
        known = self._known.get(key, [])
        before = [suspicion.time_range for suspicion in known]
        again = [
            _Suspected(part, suspicion.since_s)
            for suspicion in known
            for hole in lacking
            for part in overlap([suspicion.time_range], hole)
        ]
        self._known[key] = [
            *(
                _Suspected(rest, d.since_s)
                for d in known
                for rest in subtract(d.time_range, [asked])
            ),
            *(_Suspected(part, now_s) for hole in lacking for part in subtract(hole, before)),
            *(suspicion for suspicion in again if suspicion.since_s + after_s > now_s),
        ]
        return [suspicion.time_range for suspicion in again if suspicion.since_s + after_s <= now_s]
