"""Watches the feed: finds silent series, asks for them again, and records what did not come.

A connection that is silent as a whole is replaced by the feed itself (`FeedOptions.idle_timeout_s`); here
single series are watched, the quietest among living ones too. What is found shows in `/health`, in the
status report, in metrics, and as gaps in the journal; `healer.py` closes them.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from marketfeed.binance.backoff import ConnectionStatus
from marketfeed.binance.generations import Generations
from marketfeed.binance.symbols import Instrument, stream_name
from marketfeed.clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.deadlines import (
    CANDLE_DUE_MS,
    MARK_PRICE,
    Liveness,
    Missing,
    Overdue,
    Series,
)
from marketfeed.grid import TILE_CANDLES, TimeRange, candles_in, overlap
from marketfeed.ingest.intake import Intake
from marketfeed.records import CANDLE_GAP, Candle, Gap, GapState
from marketfeed.schema import TIMEFRAMES_MS

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
"""Exchange seconds between two looks; never closer than `WALL_AT_LEAST_S` wall seconds."""
RESUBSCRIBE_EVERY_S: Final = 60.0
"""Exchange seconds before a series that stayed silent is asked for again."""
HOLE_SHOWN_S: Final = 60.0
"""Exchange seconds that a hole may be open before `/health` tells of it."""
DUE_AT_LEAST_S: Final = 0.25
"""Wall seconds that a closing frame may need at least: against a fast simulator 4 s are over in a moment."""
CLOCK_BACK_MS: Final = 1_000
"""Exchange ms by which the clock must have gone back between two looks to have been ahead before."""


def candle_due_ms(speed: float) -> int:
    """Exchange ms from a candle's close until it is missing, at so many exchange seconds a wall second."""
    return max(CANDLE_DUE_MS, int(DUE_AT_LEAST_S * 1000 * speed))


class _OpenGap(msgspec.Struct, eq=False):
    """A gap that is neither healed nor given up. `since_s` is when it was found (exchange s)."""

    end_ms: int
    since_s: float
    state: GapState = "found"


class Supervisor:
    """Keeps the liveness of one collector; `run` looks around until it is cancelled."""

    def __init__(
        self,
        intake: Intake,
        clock: ExchangeClock,
        counters: CollectorCounters,
        instruments: Sequence[Instrument],
        timeframes: Sequence[str],
        mark_price_every_ms: int,
    ) -> None:
        self.overdue: list[Overdue] = []
        """What was silent past its deadline at the last look, the longest first."""
        self.looks = 0
        """How often it has looked around: a watchdog's proof that it turns."""
        self.on_missing: Callable[[Missing], None] = lambda _: None
        """Called with every gap that is found, and at its end."""
        self.on_reconnected: Callable[[Sequence[Series]], None] = lambda _: None
        """Called with the series of a connection that was lost and is open again."""
        self._liveness = Liveness()
        self._intake = intake
        self._clock = clock
        self._counters = counters
        self._channels = (*timeframes, MARK_PRICE)
        self._keep_ms = 0
        self._mark_price_every_ms = mark_price_every_ms
        self._instruments = tuple(instruments)
        self._streams = self._streams_of(instruments)
        self._asked_again_s: dict[Series, float] = {}
        # Since when (ms), and why.
        self._lost_connections: dict[str, tuple[int, str]] = {}
        self._stopping = False
        self._looked_ms = clock.now_ms()
        # A hole is stored with the candle behind it: after a crash nobody would find it any more.
        intake.before_commit = self.take_in
        self._open: dict[tuple[Series, int], _OpenGap] = {}

    @property
    def missing_candles(self) -> int:
        """How many candles were due and have not come since."""
        return self._liveness.missing_candles

    @property
    def open_gaps(self) -> Counter[str]:
        """How many gaps of candles are open, by state."""
        return Counter[str](gap.state for gap in self._open.values())

    @property
    def oldest_hole_s(self) -> float:
        """For how long (exchange s) the oldest open gap of candles has been known; 0 without any."""
        since_s = min((gap.since_s for gap in self._open.values()), default=math.inf)
        return max(0.0, self._clock.elapsed_s() - since_s)

    def old_holes(self) -> Counter[Series]:
        """How many candles of which series have been missing for longer than `HOLE_SHOWN_S`."""
        before_s = self._clock.elapsed_s() - HOLE_SHOWN_S
        old: Counter[Series] = Counter()
        for (series, start_ms), gap in self._open.items():
            if gap.since_s < before_s:
                old[series] += self._candles(series, self._liveness.left(series, start_ms))
        return old

    def unfilled(self) -> Counter[Series]:
        """How many of the newest candles from before its subscription each series lacks.

        Of so many as a feeder asks for; what was given up does not count.
        """
        lacking = Counter(dict(self._liveness.not_due()))
        for (series, start_ms), gap in self._open.items():
            began_ms = self._liveness.began_ms(series)
            from_ms = began_ms - TILE_CANDLES * TIMEFRAMES_MS[series.channel]
            if start_ms < began_ms and gap.end_ms > from_ms:
                left = self._liveness.left(series, start_ms)
                lacking[series] += self._candles(
                    series, overlap(left, TimeRange(from_ms, began_ms))
                )
        return +lacking

    def start(self, stored_open_ms: Mapping[tuple[str, str], int], keep_ms: int) -> None:
        """Start all deadlines now; `stored_open_ms` is the newest stored candle of each series.

        What is absent since then is missing, if it is not older than `keep_ms`.
        """
        self._keep_ms = keep_ms
        self._watch(self._instruments, stored_open_ms)
        self._note_missing("absent since the collector ran last")

    # --- gaps, for who closes them ----------------------------------------------------------------

    def take_in(self) -> None:
        """Take in what the intake has seen: candles that have come are no longer missing."""
        now_s, now_ms = self._clock.elapsed_s(), self._clock.now_ms()
        seen = self._intake.take_seen()
        if now_ms < self._looked_ms - CLOCK_BACK_MS:
            self._liveness.reanchor(now_ms)
        self._looked_ms = now_ms
        self._liveness.mark_prices(seen.marks, now_s)
        for pair, timeframe, open_ms in seen.closed:
            self._liveness.closed(pair, timeframe, open_ms)
        for (pair, timeframe), open_ms in seen.forming.items():
            self._liveness.formed(pair, timeframe, open_ms)
        for candle in seen.fetched:
            if self._liveness.fetched(
                candle.pair, candle.timeframe, candle.open_time_ms, candle.trades
            ):
                self._counters.healed_lag.add(max(0, now_ms - candle.close_time_ms))
        self._note_missing("did not come")

    def left(self, series: Series, start_ms: int) -> list[TimeRange]:
        """What of the gap that begins at `start_ms` has not come yet, oldest first."""
        return self._liveness.left(series, start_ms)

    def forgotten(self) -> int:
        """How many holes of the journal were too many to be remembered since this was asked last."""
        return self._liveness.take_forgotten()

    def resume(self, series: Series, gap: TimeRange, left: list[TimeRange]) -> None:
        """Take up a gap that the journal knows to be open; `left` is what of it is not stored."""
        if (series, gap.start_ms) in self._open:
            return
        if not left:
            self._note_gap(series, gap, "healed", "was stored meanwhile")
        elif self._liveness.resume(series, gap, left):
            self._open[series, gap.start_ms] = _OpenGap(gap.end_ms, self._clock.elapsed_s())
            self.on_missing(Missing(series, *gap, healed=False))
        elif series not in self._streams:
            self._note_gap(series, gap, "unresolvable", "the pair is not collected any more")

    def healing(self, series: Series, start_ms: int) -> None:
        """Note that a gap is being asked for."""
        gap = self._open.get((series, start_ms))
        if gap is not None and gap.state == "found":
            gap.state = "healing"
            self._note_gap(series, TimeRange(start_ms, gap.end_ms), "healing", "asked for by REST")

    def stored(self, candles: Iterable[Candle]) -> None:
        """Note closed candles that were stored by another way than the intake's: no longer missing."""
        for candle in candles:
            self._liveness.fetched(
                candle.pair, candle.timeframe, candle.open_time_ms, candle.trades
            )
        self._note_missing("did not come")

    def give_up(self, series: Series, start_ms: int, reason: str) -> None:
        """Note that what is left of a gap cannot be fetched; should it come after all, that is reported."""
        left = self._liveness.split(series, start_ms)
        self._open.pop((series, start_ms), None)
        # That the rest of the range has come.
        self._note_missing("did not come")
        for part in left:
            self._note_gap(series, part, "unresolvable", reason)
            log.warning(
                "candles cannot be fetched pair=%s timeframe=%s count=%d first_ms=%d reason=%r",
                series.pair,
                series.channel,
                self._candles(series, [part]),
                part.start_ms,
                reason,
            )

    # --- running ----------------------------------------------------------------------------------

    def join(
        self, instruments: Sequence[Instrument], stored_open_ms: Mapping[tuple[str, str], int]
    ) -> None:
        """Watch instruments from now on; `stored_open_ms` as in `start`."""
        self._watch(instruments, stored_open_ms)
        self._note_missing("before the pair was collected")

    def expect_until(self, pair: str, ended_ms: int | None) -> None:
        """Expect nothing of a pair from its announced end on; None takes that back."""
        self._liveness.expect_until(pair, ended_ms)

    def leave(self, pairs: Collection[str]) -> None:
        """Watch these pairs no more."""
        # What has come of them until now still counts.
        self.take_in()
        gone = [series for series in self._streams if series.pair in pairs]
        self._liveness.unwatch(gone, self._clock.now_ms())
        self._note_missing("did not come before the pair's end")
        for series in gone:
            del self._streams[series]
            self._asked_again_s.pop(series, None)
        self.overdue = [item for item in self.overdue if item.series.pair not in pairs]

    async def run(self, feed: Generations) -> None:
        """Look around every exchange second."""
        # Beside the looks: a command waits for its turn, or for a connection that does not take it.
        asking: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._clock.wall_s(LOOK_EVERY_S))
                self._look()
                self.looks += 1
                if asking is not None and not asking.done():
                    continue
                silent = self._to_ask_again(feed)
                if silent:
                    self._counters.resubscribed += len(silent)
                    asking = group.create_task(feed.resubscribe(silent), name="resubscribe")

    def on_journal_replaced(self) -> None:
        """Take note that nothing is stored any more."""
        self._liveness.watch_anew(self._clock.now_ms())

    def stopping(self) -> None:
        """Say that connections close on purpose from now on."""
        self._stopping = True

    def on_connection(self, status: ConnectionStatus, counts: bool) -> None:
        """Take note of a connection's change of state: a lost connection is a gap until it is open again.

        One that does not count (`counts`) is beside others that carry the same streams: no gap.
        """
        self._counters.connection_events[status.state] += 1
        if self._stopping or not counts:
            return
        now_ms = self._clock.now_ms()
        kind = f"connection_{status.name}"
        if status.state == "closed" and status.name not in self._lost_connections:
            self._lost_connections[status.name] = now_ms, status.last_error
            self._intake.add(Gap(kind, None, now_ms, None, "found", status.last_error))
        elif status.state == "open" and status.name in self._lost_connections:
            since_ms, reason = self._lost_connections.pop(status.name)
            self._intake.add(Gap(kind, None, since_ms, now_ms, "healed", reason))
            carried = frozenset(status.streams)
            self.on_reconnected([s for s, stream in self._streams.items() if stream in carried])

    def on_replaced(self) -> None:
        """Take note that other connections carry all streams now: what was lost with old ones is back."""
        now_ms = self._clock.now_ms()
        for name, (since_ms, reason) in self._lost_connections.items():
            self._intake.add(Gap(f"connection_{name}", None, since_ms, now_ms, "healed", reason))
        if self._lost_connections:
            self.on_reconnected(list(self._streams))
        self._lost_connections.clear()

    def _streams_of(self, instruments: Iterable[Instrument]) -> dict[Series, str]:
        return {
            Series(i.pair, channel): stream_name(i, channel, self._mark_price_every_ms)
            for i in instruments
            for channel in self._channels
        }

    def _watch(
        self, instruments: Sequence[Instrument], stored_open_ms: Mapping[tuple[str, str], int]
    ) -> None:
        streams = self._streams_of(instruments)
        self._streams.update(streams)
        now_ms = self._clock.now_ms()
        self._liveness.watch(
            streams,
            self._clock.elapsed_s(),
            now_ms,
            stored_open_ms,
            now_ms - self._keep_ms,
            {instrument.pair: instrument.listed_ms for instrument in instruments},
        )
        for instrument in instruments:
            self.expect_until(instrument.pair, instrument.ended_ms)

    def _look(self) -> None:
        self.take_in()
        before = {item.series for item in self.overdue}
        clock = self._clock
        self.overdue = self._liveness.overdue(
            clock.elapsed_s(), clock.now_ms(), candle_due_ms(clock.speed)
        )
        self._note_missing("did not come")
        self._log_changes(before)

    def _note_missing(self, reason: str) -> None:
        now_s = self._clock.elapsed_s()
        for item in self._liveness.take_news():
            key = item.series, item.start_ms
            where = TimeRange(item.start_ms, item.end_ms)
            if item.healed:
                known = self._open.pop(key, None)
                fetched = known is None or known.state == "healing"
                self._note_gap(item.series, where, "healed", "fetched" if fetched else "came late")
            else:
                self._note_gap(item.series, where, "found", reason)
                if item.kept:
                    self._open[key] = _OpenGap(item.end_ms, now_s)
            if item.kept:
                self.on_missing(item)

    def _note_gap(self, series: Series, where: TimeRange, state: GapState, reason: str) -> None:
        self._counters.gaps[state] += 1
        self._intake.add(Gap(CANDLE_GAP + series.channel, series.pair, *where, state, reason))

    @staticmethod
    def _candles(series: Series, parts: Iterable[TimeRange]) -> int:
        length_ms = TIMEFRAMES_MS[series.channel]
        return sum(candles_in(part, length_ms) for part in parts)

    def _log_changes(self, before: set[Series]) -> None:
        silent = {item.series for item in self.overdue}
        for word, level, changed in (
            ("silent", logging.WARNING, silent - before),
            ("back", logging.INFO, before - silent),
        ):
            if changed:
                first = min(changed)
                log.log(
                    level,
                    "series %s count=%d first=%s channel=%s now_silent=%d",
                    word,
                    len(changed),
                    first.pair,
                    first.channel,
                    len(silent),
                )

    def _to_ask_again(self, feed: Generations) -> list[str]:
        """Streams of silent series whose connection lives: it may be that only they have died."""
        now_s = self._clock.elapsed_s()
        due = {
            self._streams[item.series]: item.series
            for item in self.overdue
            if now_s - self._asked_again_s.get(item.series, -RESUBSCRIBE_EVERY_S)
            >= RESUBSCRIBE_EVERY_S
        }
        living = {
            stream
            for connection in feed.current_connections()
            if connection.state == "open" and connection.last_frame_s is not None
            for stream in connection.streams
        }
        asked = [stream for stream in due if stream in living]
        self._asked_again_s.update((due[stream], now_s) for stream in asked)
        return asked
