"""Silence is an event: every series has a deadline, and whoever misses it is found here.

Pure: the caller passes the time. `now_s` is monotonic exchange seconds, `now_ms` exchange time; so a wall
clock that jumps finds nothing late, and against a simulator at speed deadlines shrink with its seconds.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from marketfeed import schema

MARK_PRICE_DUE_S: Final = 10.0
"""A mark price is due this long after the last one: the stream's cadence is 1 or 3 s."""
CANDLE_DUE_MS: Final = 15_000
"""A closed candle is due this long after its close. Quiet pairs close by the 2 s timer, too."""
MARK_PRICE: Final = schema.MARK_PRICE
SINGLY: Final = 100
"""Up to so many candles in a row are reported one by one, so that each can come late; more as one range."""
NEVER_MS: Final = 1 << 62
HOLES_KEPT: Final = 10_000
"""Holes remembered of one series; the journal has recorded them all."""


class Series(msgspec.Struct, frozen=True, gc=False, order=True):
    """One thing that must keep coming: a pair's mark price, or its candles of one timeframe.

    `channel` is `mark_price` or the timeframe.
    """

    pair: str
    channel: str


class Overdue(msgspec.Struct, frozen=True, gc=False):
    """A series past its deadline by `late_s` exchange seconds.

    For candles `open_time_ms` is the oldest one that is due and has not come, else None.
    """

    series: Series
    late_s: float
    open_time_ms: int | None


class Missing(msgspec.Struct, frozen=True, gc=False):
    """A candle that is due and has not come, or has come after all (`healed`); or a range of them.

    From the first one's open time to the end of the last one (ms).
    """

    series: Series
    start_ms: int
    end_ms: int
    healed: bool


class _Candles:
    """The state of one candle series.

    `awaited_ms` is the first open time that is neither seen nor reported; up to `seen_ms` the stream has
    come by what it last brought, closed candle or not. From `until_ms` on nothing is expected any more.
    """

    __slots__ = ("awaited_ms", "holes", "in_ranges", "length_ms", "seen_ms", "until_ms")

    def __init__(self, awaited_ms: int, length_ms: int) -> None:
        self.awaited_ms = awaited_ms
        self.length_ms = length_ms
        self.seen_ms = awaited_ms - length_ms
        self.holes: dict[int, None] = {}
        self.in_ranges = 0
        self.until_ms = NEVER_MS


class Liveness:
    """Keeps the deadlines of all series of one collector, and the candles that did not come.

    A deadline runs from `watch` on, so that a stream that is silent from its first second is found like
    one that falls silent later.
    """

    def __init__(self) -> None:
        self._mark_due_s: dict[str, float] = {}
        self._ended_ms: dict[str, int] = {}
        self._candles: dict[Series, _Candles] = {}
        self._news: list[Missing] = []

    @property
    def series(self) -> int:
        """How many series are watched."""
        return len(self._mark_due_s) + len(self._candles)

    @property
    def missing_candles(self) -> int:
        """How many candles were due and have not come since."""
        return sum(len(state.holes) + state.in_ranges for state in self._candles.values())

    def watch(
        self,
        series: Iterable[Series],
        now_s: float,
        now_ms: int,
        stored_open_ms: Mapping[tuple[str, str], int],
    ) -> None:
        """Start the deadlines of series that are subscribed from now on; known ones keep theirs.

        The candle that is forming now is the first one that can come: its closing frame holds all of
        it. What lies between the newest stored one (`stored_open_ms`, by pair and timeframe) and that
        is missing from the start.
        """
        for item in series:
            if item.channel == MARK_PRICE:
                self._mark_due_s.setdefault(item.pair, now_s + MARK_PRICE_DUE_S)
            elif item not in self._candles:
                length_ms = schema.TIMEFRAMES_MS[item.channel]
                forming_ms = schema.floor_to(now_ms, length_ms)
                self._candles[item] = state = _Candles(forming_ms, length_ms)
                newest_ms = stored_open_ms.get((item.pair, item.channel))
                if newest_ms is not None and newest_ms >= forming_ms:
                    state.awaited_ms = newest_ms + length_ms
                    state.seen_ms = newest_ms
                elif newest_ms is not None:
                    self._lost(item, state, newest_ms + length_ms, forming_ms)

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
        """Forget series that have ended or are not subscribed any more."""
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
        """Note a closed candle. Whatever was awaited before it is missing from now on."""
        series = Series(pair, timeframe)
        state = self._candles.get(series)
        if state is None:
            return
        state.seen_ms = max(state.seen_ms, open_ms)
        if open_ms >= state.awaited_ms:
            self._lost(series, state, state.awaited_ms, open_ms)
            state.awaited_ms = open_ms + state.length_ms
        elif open_ms in state.holes:
            del state.holes[open_ms]
            self._news.append(Missing(series, open_ms, open_ms + state.length_ms, healed=True))

    def formed(self, pair: str, timeframe: str, open_ms: int) -> None:
        """Note a candle that is forming: its stream lives, and has come to it.

        What was awaited before is missing once its deadline has passed, but no silence.
        """
        state = self._candles.get(Series(pair, timeframe))
        if state is not None:
            state.seen_ms = max(state.seen_ms, open_ms - state.length_ms)

    def reanchor(self, now_ms: int) -> None:
        """Take in that the clock was ahead until now: what was awaited of the future no longer is.

        A candle of the future that was told missing is told to have come: it is awaited in its turn.
        """
        for series, state in self._candles.items():
            length_ms = state.length_ms
            forming_ms = schema.floor_to(now_ms, length_ms)
            # A close may come a little before this clock has reached it.
            if state.awaited_ms <= forming_ms + length_ms:
                continue
            state.awaited_ms = forming_ms
            state.seen_ms = min(state.seen_ms, forming_ms - length_ms)
            for open_ms in [at for at in state.holes if at >= forming_ms]:
                del state.holes[open_ms]
                self._news.append(Missing(series, open_ms, open_ms + length_ms, healed=True))

    def overdue(self, now_s: float, now_ms: int) -> list[Overdue]:
        """All series that are silent past their deadline, the longest first; notes what is missing."""
        found = [
            Overdue(Series(pair, MARK_PRICE), now_s - due_s, None)
            for pair, due_s in self._mark_due_s.items()
            if now_s > due_s and now_ms < self._ended_ms.get(pair, NEVER_MS)
        ]
        for series, state in self._candles.items():
            length_ms = state.length_ms
            # The candles whose deadline has passed end here.
            end_ms = min(schema.floor_to(now_ms - CANDLE_DUE_MS - 1, length_ms), state.until_ms)
            if state.awaited_ms < end_ms:
                self._lost(series, state, state.awaited_ms, end_ms)
                state.awaited_ms = end_ms
            first_ms = state.seen_ms + length_ms
            if first_ms < end_ms:
                due_ms = first_ms + length_ms + CANDLE_DUE_MS
                found.append(Overdue(series, (now_ms - due_ms) / 1000, first_ms))
        found.sort(key=lambda item: (-item.late_s, item.series))
        return found

    def take_news(self) -> list[Missing]:
        """What has become missing, or has come after all, since this was asked last."""
        news, self._news = self._news, []
        return news

    def _lost(self, series: Series, state: _Candles, start_ms: int, end_ms: int) -> None:
        length_ms = state.length_ms
        opens = range(start_ms, end_ms, length_ms)
        if len(opens) > SINGLY:
            self._news.append(Missing(series, start_ms, end_ms, healed=False))
            state.in_ranges += len(opens)
            return
        for open_ms in opens:
            self._news.append(Missing(series, open_ms, open_ms + length_ms, healed=False))
            state.holes[open_ms] = None
        while len(state.holes) > HOLES_KEPT:
            del state.holes[next(iter(state.holes))]
            state.in_ranges += 1
