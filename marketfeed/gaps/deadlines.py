"""Silence is an event: every stream has a deadline, and one that misses it is found here.

Pure: the caller passes the time. `now_s` is monotonic exchange seconds, `now_ms` exchange time; so a wall
clock that jumps finds nothing late, and against a simulator at speed deadlines shrink with its seconds.
What candles are missing is another question: `holes.py` answers it.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from marketfeed import schema

PURE = True

MARK_PRICE_DUE_S: Final = 10.0
"""A mark price is due this long after the last one: the stream's cadence is 1 or 3 s."""
CANDLE_SILENT_MS: Final = 15_000
"""A series that has brought nothing this long after a candle's close is silent."""
MARK_PRICE: Final = schema.MARK_PRICE
NEVER_MS: Final = 1 << 62


class Series(msgspec.Struct, frozen=True, gc=False, order=True):
    """One thing that must keep coming: a pair's mark price, or its candles of one timeframe.

    `channel` is `mark_price` or the timeframe.
    """

    pair: str
    channel: str


class Overdue(msgspec.Struct, frozen=True, gc=False):
    """A stream past its deadline by `late_s` exchange seconds.

    For candles `open_time_ms` is the first one of which nothing has come, else None.
    """

    series: Series
    late_s: float
    open_time_ms: int | None


class _Candles(msgspec.Struct, eq=False):
    """One candle stream: up to `seen_ms` it has come by what it last brought, closed candle or not.

    From `until_ms` on nothing is expected of it any more.
    """

    length_ms: int
    seen_ms: int
    until_ms: int = NEVER_MS


class Liveness:
    """Keeps the deadlines of all streams of one collector.

    A deadline runs from `watch` on, so that a stream that is silent from its first second is found like
    one that falls silent later.
    """

    def __init__(self) -> None:
        self._mark_due_s: dict[str, float] = {}
        self._ended_ms: dict[str, int] = {}
        self._candles: dict[Series, _Candles] = {}

    @property
    def series(self) -> int:
        """How many streams are watched."""
        return len(self._mark_due_s) + len(self._candles)

    def watch(self, series: Iterable[Series], now_s: float, now_ms: int) -> None:
        """Start the deadlines of streams that are subscribed from now on; known ones keep theirs."""
        for item in series:
            if item.channel == MARK_PRICE:
                self._mark_due_s.setdefault(item.pair, now_s + MARK_PRICE_DUE_S)
            elif item not in self._candles:
                length_ms = schema.TIMEFRAMES_MS[item.channel]
                seen_ms = schema.floor_to(now_ms, length_ms) - length_ms
                self._candles[item] = _Candles(length_ms, seen_ms)

    def expect_until(self, pair: str, ended_ms: int | None) -> None:
        """Expect nothing of a pair from its end on, nor a candle that its end cuts; None takes it back."""
        if ended_ms is None:
            self._ended_ms.pop(pair, None)
        else:
            self._ended_ms[pair] = ended_ms
        for series, state in self._candles.items():
            if series.pair == pair:
                end_ms = NEVER_MS if ended_ms is None else ended_ms
                state.until_ms = schema.floor_to(end_ms, state.length_ms)

    def unwatch(self, series: Iterable[Series]) -> None:
        """Expect no more of streams that have ended or are not subscribed any more."""
        for item in series:
            if item.channel == MARK_PRICE:
                self._mark_due_s.pop(item.pair, None)
                self._ended_ms.pop(item.pair, None)
            else:
                self._candles.pop(item, None)

    def mark_prices(self, pairs: Iterable[str], now_s: float) -> None:
        """Note that these pairs' mark prices have come."""
        due_s = now_s + MARK_PRICE_DUE_S
        for pair in pairs:
            if pair in self._mark_due_s:
                self._mark_due_s[pair] = due_s

    def closed(self, pair: str, timeframe: str, open_ms: int) -> None:
        """Note a closed candle that came by its stream."""
        state = self._candles.get(Series(pair, timeframe))
        if state is not None:
            state.seen_ms = max(state.seen_ms, open_ms)

    def formed(self, pair: str, timeframe: str, open_ms: int) -> None:
        """Note a candle that is forming: its stream lives, and has come to it."""
        state = self._candles.get(Series(pair, timeframe))
        if state is not None:
            state.seen_ms = max(state.seen_ms, open_ms - state.length_ms)

    def fetched(self, pair: str, timeframe: str, open_ms: int, trades: int) -> None:
        """Note a closed candle that came otherwise: no news of the stream, unless nobody traded then."""
        state = self._candles.get(Series(pair, timeframe))
        if state is not None and not trades and open_ms == state.seen_ms + state.length_ms:
            state.seen_ms = open_ms

    def reanchor(self, now_ms: int) -> None:
        """Take in that the clock was ahead until now: nothing has come of what is to come."""
        for state in self._candles.values():
            forming_ms = schema.floor_to(now_ms, state.length_ms)
            # A close may come a little before this clock has reached it.
            if state.seen_ms > forming_ms:
                state.seen_ms = forming_ms - state.length_ms

    def overdue(self, now_s: float, now_ms: int, due_ms: int) -> list[Overdue]:
        """All streams that are silent past their deadline, the longest first.

        `due_ms` is how long after its close a candle is missing, exchange time: it is no silence before.
        """
        silent_ms = max(CANDLE_SILENT_MS, due_ms)
        found = [
            Overdue(Series(pair, MARK_PRICE), now_s - due_s, None)
            for pair, due_s in self._mark_due_s.items()
            if now_s > due_s and now_ms < self._ended_ms.get(pair, NEVER_MS)
        ]
        for series, state in self._candles.items():
            first_ms = state.seen_ms + state.length_ms
            late_ms = now_ms - (first_ms + state.length_ms + silent_ms)
            if late_ms > 0 and first_ms < state.until_ms:
                found.append(Overdue(series, late_ms / 1000, first_ms))
        found.sort(key=lambda item: (-item.late_s, item.series))
        return found
