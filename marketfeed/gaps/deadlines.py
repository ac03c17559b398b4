"""Silence is an event: every series has a deadline, and whoever misses it is found here.

Pure: the caller passes the time. `now_s` is monotonic exchange seconds, `now_ms` exchange time; so a wall
clock that jumps finds nothing late, and against a simulator at speed deadlines shrink with its seconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, candles_in, missing, without

PURE = True

MARK_PRICE_DUE_S: Final = 10.0
"""A mark price is due this long after the last one: the stream's cadence is 1 or 3 s."""
CANDLE_DUE_MS: Final = 4_000
"""A closed candle is due this long after its close: quiet pairs close by a timer of 2 s. One that has not
come by then is missing."""
CANDLE_SILENT_MS: Final = 15_000
"""A series that has brought nothing this long after a candle's close is silent."""
WATCHED_BEFORE_MS: Final = schema.MINUTE_MS
"""Of a series without a stored candle, what closed within this before its subscription is awaited, too:
history leaves that."""
MARK_PRICE: Final = schema.MARK_PRICE
NEVER_MS: Final = 1 << 62
SINGLY: Final = 10
"""Up to so many candles in a row are reported one by one, more as one range."""
HOLES_KEPT: Final = 2_000
"""Holes remembered of one series; the journal has recorded them all, and `resume` takes them up."""
_NO_TIMES: Final[Mapping[str, int]] = {}


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

    From the first one's open time to the end of the last one (ms). `kept` is False for one too many to
    be remembered: what comes of it will not be reported.
    """

    series: Series
    start_ms: int
    end_ms: int
    healed: bool
    kept: bool = True


class _Range(msgspec.Struct, eq=False):
    """A range of missing candles: its end, and what of it has not come yet."""

    end_ms: int
    left: list[TimeRange]


class _Candles:
    """The state of one candle series.

    `awaited_ms` is the first open time that is neither seen nor reported; up to `seen_ms` the stream has
    come by what it last brought, closed candle or not. `fetched` are candles from `awaited_ms` on that
    came otherwise, and `forgotten` is how many holes were too many to be remembered. From `until_ms`
    on nothing is expected any more. What opened before `began_ms` did so before the subscription; nothing
    is awaited from before `listed_ms`, where the first candle of the listing opens.
    """

    __slots__ = (
        "awaited_ms",
        "began_ms",
        "ended",
        "fetched",
        "forgotten",
        "holes",
        "length_ms",
        "listed_ms",
        "ranges",
        "seen_ms",
        "until_ms",
    )

    def __init__(self, now_ms: int, length_ms: int, listed_ms: int) -> None:
        self.length_ms = length_ms
        self.listed_ms = schema.floor_to(listed_ms, length_ms)
        self.begin(now_ms)
        self.seen_ms = self.began_ms - length_ms
        self.holes: dict[int, None] = {}
        self.ranges: dict[int, _Range] = {}
        self.fetched: set[int] = set()
        self.forgotten = 0
        self.ended = False
        self.until_ms = NEVER_MS

    def begin(self, now_ms: int) -> None:
        """Await what history leaves, and all that follows."""
        self.began_ms = schema.floor_to(now_ms, self.length_ms)
        left_ms = schema.floor_to(now_ms - WATCHED_BEFORE_MS, self.length_ms)
        self.awaited_ms = min(max(left_ms, self.listed_ms), self.began_ms)


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
        return len(self._mark_due_s) + sum(not state.ended for state in self._candles.values())

    @property
    def missing_candles(self) -> int:
        """How many candles were due and have not come since."""
        return sum(
            len(state.holes)
            + sum(
                candles_in(part, state.length_ms)
                for gap in state.ranges.values()
                for part in gap.left
            )
            + state.forgotten
            for state in self._candles.values()
        )

    def take_forgotten(self) -> int:
        """How many holes were too many to be remembered since this was asked last; they are forgotten."""
        forgotten = sum(state.forgotten for state in self._candles.values())
        for state in self._candles.values():
            state.forgotten = 0
        return forgotten

    def watch(
        self,
        series: Iterable[Series],
        now_s: float,
        now_ms: int,
        stored_open_ms: Mapping[tuple[str, str], int],
        since_ms: int = 0,
        listed_ms: Mapping[str, int] = _NO_TIMES,
    ) -> None:
        """Start the deadlines of series that are subscribed from now on; known ones keep theirs.

        What lies between the newest stored candle (`stored_open_ms`, by pair and timeframe) and the one
        that is forming now is missing from the start, back to `since_ms`. Where nothing is stored, what
        closed less than `WATCHED_BEFORE_MS` ago is awaited; nothing from before `listed_ms` (by pair).
        """
        for item in series:
            if item.channel == MARK_PRICE:
                self._mark_due_s.setdefault(item.pair, now_s + MARK_PRICE_DUE_S)
            elif item not in self._candles or self._candles[item].ended:
                length_ms = schema.TIMEFRAMES_MS[item.channel]
                forming_ms = schema.floor_to(now_ms, length_ms)
                before = self._candles.get(item)
                state = _Candles(now_ms, length_ms, listed_ms.get(item.pair, 0))
                self._candles[item] = state
                if before is not None:
                    # It is back: what was missing then still is.
                    state.holes, state.ranges = before.holes, before.ranges
                    state.awaited_ms = min(max(state.awaited_ms, before.awaited_ms), forming_ms)
                newest_ms = stored_open_ms.get((item.pair, item.channel))
                if newest_ms is not None and newest_ms >= forming_ms:
                    state.awaited_ms = newest_ms + length_ms
                    state.seen_ms = newest_ms
                elif newest_ms is not None:
                    kept_ms = schema.ceil_to(since_ms, length_ms)
                    first_ms = max(newest_ms + length_ms, min(kept_ms, state.awaited_ms))
                    self._lost(item, state, first_ms, forming_ms)
                    state.awaited_ms = forming_ms

    def watch_anew(self, now_ms: int) -> None:
        """Take in that nothing is stored any more: await what history will leave, as at a first start."""
        for state in self._candles.values():
            if not state.ended:
                state.begin(now_ms)

    def began_ms(self, series: Series) -> int:
        """Where the candle opens that was forming when the series was subscribed; 0 of none."""
        state = self._candles.get(series)
        return 0 if state is None else state.began_ms

    def not_due(self) -> Iterator[tuple[Series, int]]:
        """Of each series, how many candles from before its subscription are awaited and not missing yet."""
        for series, state in self._candles.items():
            end_ms = min(state.began_ms, state.until_ms)
            if not state.ended and state.awaited_ms < end_ms:
                fetched = sum(state.awaited_ms <= at_ms < end_ms for at_ms in state.fetched)
                yield series, (end_ms - state.awaited_ms) // state.length_ms - fetched

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

    def unwatch(self, series: Iterable[Series], now_ms: int) -> None:
        """Expect no more of series that have ended or are not subscribed any more; holes stay holes.

        What was awaited until now, or until their end, and has not come is missing.
        """
        for item in series:
            if item.channel == MARK_PRICE:
                self._mark_due_s.pop(item.pair, None)
                self._ended_ms.pop(item.pair, None)
            elif item in self._candles:
                state = self._candles[item]
                end_ms = min(schema.floor_to(now_ms, state.length_ms), state.until_ms)
                if state.awaited_ms < end_ms:
                    self._lost(item, state, state.awaited_ms, end_ms)
                    state.awaited_ms = end_ms
                state.ended = True
                if not state.holes and not state.ranges:
                    del self._candles[item]

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
        if open_ms < state.awaited_ms:
            self._came(series, state, open_ms)
        elif not state.ended:
            self._lost(series, state, state.awaited_ms, open_ms)
            state.awaited_ms = open_ms + state.length_ms

    def fetched(self, pair: str, timeframe: str, open_ms: int, trades: int) -> bool:
        """Note a closed candle that came otherwise than by its stream; whether it was missing.

        That says nothing of the stream, unless there were no trades to tell of.
        """
        series = Series(pair, timeframe)
        state = self._candles.get(series)
        if state is None:
            return False
        if not trades and open_ms == state.seen_ms + state.length_ms:
            state.seen_ms = open_ms
        if open_ms < state.awaited_ms:
            return self._came(series, state, open_ms)
        state.fetched.add(open_ms)
        return False

    def left(self, series: Series, start_ms: int) -> list[TimeRange]:
        """What of the gap that begins at `start_ms` has not come yet, oldest first; nothing of none."""
        state = self._candles.get(series)
        if state is None:
            return []
        if start_ms in state.holes:
            return [TimeRange(start_ms, start_ms + state.length_ms)]
        gap = state.ranges.get(start_ms)
        return [] if gap is None else list(gap.left)

    def split(self, series: Series, start_ms: int) -> list[TimeRange]:
        """Make gaps of their own of what is left of the gap that begins at `start_ms`; returns them.

        They stay missing, and one that comes after all is reported. A first part that has come is reported
        as the whole gap's healing.
        """
        left = self.left(series, start_ms)
        state = self._candles.get(series)
        if left and state is not None and start_ms in state.ranges:
            end_ms = state.ranges.pop(start_ms).end_ms
            if left[0].start_ms != start_ms:
                self._news.append(Missing(series, start_ms, end_ms, healed=True))
            state.ranges.update((part.start_ms, _Range(part.end_ms, [part])) for part in left)
        return left

    def resume(self, series: Series, gap: TimeRange, left: list[TimeRange]) -> bool:
        """Take up a gap that an earlier run has found; whether the series is watched and it is news."""
        state = self._candles.get(series)
        if state is None or gap.start_ms in state.holes or gap.start_ms in state.ranges:
            return False
        if candles_in(gap, state.length_ms) > 1:
            state.ranges[gap.start_ms] = _Range(gap.end_ms, left)
        else:
            state.holes[gap.start_ms] = None
        return True

    def formed(self, pair: str, timeframe: str, open_ms: int) -> None:
        """Note a candle that is forming: its stream lives, and has come to it.

        What was awaited before is missing once its deadline has passed, but no silence.
        """
        state = self._candles.get(Series(pair, timeframe))
        if state is not None:
            state.seen_ms = max(state.seen_ms, open_ms - state.length_ms)

    def reanchor(self, now_ms: int) -> None:
        """Take in that the clock was ahead until now: what was awaited of the future no longer is.

        A candle of the future that was reported missing is reported as come: it is awaited in its turn.
        """
        for series, state in self._candles.items():
            length_ms = state.length_ms
            forming_ms = schema.floor_to(now_ms, length_ms)
            # A close may come a little before this clock has reached it.
            if state.awaited_ms <= forming_ms + length_ms:
                continue
            state.awaited_ms = forming_ms
            state.seen_ms = min(state.seen_ms, forming_ms - length_ms)
            state.fetched.clear()
            for open_ms in [at for at in state.holes if at >= forming_ms]:
                del state.holes[open_ms]
                self._news.append(Missing(series, open_ms, open_ms + length_ms, healed=True))
            for start_ms, gap in list(state.ranges.items()):
                self._take_out(series, state, start_ms, TimeRange(forming_ms, gap.end_ms))
            if state.began_ms > forming_ms:
                # So it was when watching began: what history leaves is another candle.
                known = state.holes or state.ranges
                state.begin(now_ms)
                state.awaited_ms = forming_ms if known else state.awaited_ms

    def overdue(self, now_s: float, now_ms: int, due_ms: int = CANDLE_DUE_MS) -> list[Overdue]:
        """All series that are silent past their deadline, the longest first; notes what is missing.

        `due_ms` is how long after its close a candle is missing, exchange time.
        """
        silent_ms = max(CANDLE_SILENT_MS, due_ms)
        found = [
            Overdue(Series(pair, MARK_PRICE), now_s - due_s, None)
            for pair, due_s in self._mark_due_s.items()
            if now_s > due_s and now_ms < self._ended_ms.get(pair, NEVER_MS)
        ]
        for series, state in self._candles.items():
            if state.ended:
                continue
            length_ms = state.length_ms
            # The candles whose deadline has passed end here.
            end_ms = min(schema.floor_to(now_ms - due_ms - 1, length_ms), state.until_ms)
            if state.awaited_ms < end_ms:
                self._lost(series, state, state.awaited_ms, end_ms)
                state.awaited_ms = end_ms
            first_ms = state.seen_ms + length_ms
            late_ms = now_ms - (first_ms + length_ms + silent_ms)
            if late_ms > 0 and first_ms < state.until_ms:
                found.append(Overdue(series, late_ms / 1000, first_ms))
        found.sort(key=lambda item: (-item.late_s, item.series))
        return found

    def take_news(self) -> list[Missing]:
        """What has become missing, or has come after all, since this was asked last."""
        news, self._news = self._news, []
        return news

    def _lost(self, series: Series, state: _Candles, start_ms: int, end_ms: int) -> None:
        length_ms = state.length_ms
        lost = TimeRange(start_ms, end_ms)
        for part in missing(sorted(state.fetched), lost, length_ms):
            if candles_in(part, length_ms) > SINGLY:
                self._news.append(Missing(series, *part, healed=False))
                state.ranges[part.start_ms] = _Range(part.end_ms, [part])
                continue
            for open_ms in range(*part, length_ms):
                kept = len(state.holes) < HOLES_KEPT
                self._news.append(
                    Missing(series, open_ms, open_ms + length_ms, healed=False, kept=kept)
                )
                if kept:
                    state.holes[open_ms] = None
                else:
                    state.forgotten += 1
        if state.fetched:
            state.fetched = {open_ms for open_ms in state.fetched if open_ms >= end_ms}

    def _came(self, series: Series, state: _Candles, open_ms: int) -> bool:
        """A candle before the awaited one has come: that may be the end of gaps."""
        end_ms = open_ms + state.length_ms
        was_missing = open_ms in state.holes
        if was_missing:
            del state.holes[open_ms]
            self._news.append(Missing(series, open_ms, end_ms, healed=True))
        for start_ms, gap in list(state.ranges.items()):
            if start_ms <= open_ms < gap.end_ms:
                was_missing |= self._take_out(series, state, start_ms, TimeRange(open_ms, end_ms))
        if state.ended and not state.holes and not state.ranges:
            del self._candles[series]
        return was_missing

    def _take_out(self, series: Series, state: _Candles, start_ms: int, part: TimeRange) -> bool:
        """Take a part out of a range; the range's end is news. Whether anything of it was left."""
        gap = state.ranges[start_ms]
        left = list(without(gap.left, [part]))
        changed = left != gap.left
        gap.left = left
        if not left:
            del state.ranges[start_ms]
            self._news.append(Missing(series, start_ms, gap.end_ms, healed=True))
        return changed
