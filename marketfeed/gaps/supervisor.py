"""Watches the feed: finds silent series, asks for them again, and has stored what is due and did not come.

A connection that is silent as a whole is replaced by the feed itself (`FeedOptions.idle_timeout_s`); here
single series are watched, the quietest among living ones too. What is found shows in `/health`, in the
status report, in metrics, and as gaps in the journal; `healer.py` closes them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from marketfeed.binance.backoff import ConnectionStatus
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.generations import Generations
from marketfeed.binance.symbols import Instrument, stream_name
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.deadlines import MARK_PRICE, MARK_PRICE_DUE_S, Liveness, Overdue, Series
from marketfeed.gaps.holes import CANDLE_DUE_MS, Holes
from marketfeed.ingest.intake import Intake
from marketfeed.records import Gap

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
"""Exchange seconds between two looks; never closer than `WALL_AT_LEAST_S` wall seconds."""
RESUBSCRIBE_EVERY_S: Final = 60.0
"""Exchange seconds before a series that stayed silent is asked for again."""
DUE_AT_LEAST_S: Final = 0.25
"""Wall seconds that a closing frame may need at least: against a fast simulator 4 s are over in a moment."""
LIVES_AFTER_S: Final = 3.0
"""Exchange seconds after its last mark price in which a pair's candles prove nothing: it may have halted."""
CLOCK_BACK_MS: Final = 1_000
"""Exchange ms by which the clock must have gone back between two looks to have been ahead before."""


def candle_due_ms(speed: float) -> int:
    """Exchange ms from a candle's close until it is missing, at so many exchange seconds a wall second."""
    return max(CANDLE_DUE_MS, int(DUE_AT_LEAST_S * 1000 * speed))


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
        holes: Holes,
    ) -> None:
        self.overdue: list[Overdue] = []
        """What was silent past its deadline at the last look, the longest first."""
        self.quiet_since_s: dict[str, float] = {}
        """The pairs of which nothing comes, no candles either: when mark prices were due (exchange s)."""
        self.heard_ms: dict[str, int] = {}
        """When (exchange ms) the last look was that found frames of a pair, stored or not."""
        self.looks = 0
        """How often it has looked around: a watchdog's proof that it turns."""
        self.on_reconnected: Callable[[Sequence[Series]], None] = lambda _: None
        """Called with the series of a connection that was lost and is open again."""
        self.on_clock_back: Callable[[], None] = lambda: None
        """Called when the clock was ahead until now: what was stored as missing may be to come."""
        self._liveness = Liveness()
        self._intake = intake
        self._clock = clock
        self._counters = counters
        self._channels = (*timeframes, MARK_PRICE)
        self._holes = holes
        self._mark_price_every_ms = mark_price_every_ms
        self._instruments = tuple(instruments)
        self._streams = self._streams_of(instruments)
        self._asked_again_s: dict[Series, float] = {}
        # When candles of a pair came last.
        self._candles_s: dict[str, float] = {}
        # Since when (ms), and why.
        self._lost_connections: dict[str, tuple[int, str]] = {}
        self._stopping = False
        self._looked_ms = clock.now_ms()

    def start(self) -> None:
        """Start all deadlines now."""
        self._watch(self._instruments)

    def take_in(self) -> None:
        """Take in what the intake has seen come."""
        now_s, now_ms = self._clock.elapsed_s(), self._clock.now_ms()
        seen = self._intake.take_seen()
        if now_ms < self._looked_ms - CLOCK_BACK_MS:
            self._liveness.reanchor(now_ms)
            self.on_clock_back()
        self._looked_ms = now_ms
        self._liveness.mark_prices(seen.marks, now_s)
        certain_ms = self._clock.certain_ms()
        self.heard_ms.update(dict.fromkeys(seen.marks, certain_ms))
        for pair, timeframe, open_ms in seen.closed:
            self._candles_s[pair] = now_s
            self.heard_ms[pair] = certain_ms
            self._liveness.closed(pair, timeframe, open_ms)
        for (pair, timeframe), open_ms in seen.forming.items():
            self._candles_s[pair] = now_s
            self.heard_ms[pair] = certain_ms
            self._liveness.formed(pair, timeframe, open_ms)
        for candle in seen.fetched:
            self._liveness.fetched(
                candle.pair, candle.timeframe, candle.open_time_ms, candle.trades
            )

    # --- running ----------------------------------------------------------------------------------

    def join(self, instruments: Sequence[Instrument]) -> None:
        """Watch instruments from now on."""
        self._watch(instruments)

    def expect_until(self, pair: str, ended_ms: int | None) -> None:
        """Expect nothing of a pair from its announced end on; None takes that back."""
        self._liveness.expect_until(pair, ended_ms)
        if ended_ms is None:
            self._holes.ended_ms.pop(pair, None)
        else:
            self._holes.ended_ms[pair] = ended_ms

    def leave(self, ended_ms: Mapping[str, int]) -> None:
        """Watch these pairs no more. What was due until their ends (ms), and has not come, is missing."""
        self.take_in()
        gone = [series for series in self._streams if series.pair in ended_ms]
        self._liveness.unwatch(gone)
        self._holes.ended_ms.update(ended_ms)
        self._intake.forget_due(ended_ms)
        for series in gone:
            del self._streams[series]
            self._asked_again_s.pop(series, None)
        self.overdue = [item for item in self.overdue if item.series.pair not in ended_ms]
        for pair in ended_ms:
            self._candles_s.pop(pair, None)
            self.quiet_since_s.pop(pair, None)

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

    def _watch(self, instruments: Sequence[Instrument]) -> None:
        streams = self._streams_of(instruments)
        self._streams.update(streams)
        self._liveness.watch(streams, self._clock.elapsed_s(), self._clock.now_ms())
        for instrument in instruments:
            self.expect_until(instrument.pair, instrument.ended_ms)

    def _look(self) -> None:
        self.take_in()
        before = {item.series for item in self.overdue}
        clock = self._clock
        now_s, now_ms = clock.elapsed_s(), clock.now_ms()
        self.overdue = self._liveness.overdue(now_s, now_ms, candle_due_ms(clock.speed))
        self.quiet_since_s = self._quiet(now_s)
        for key, due in self._holes.overdue(now_ms):
            # What an earlier run promised, and this one does not collect, is to be released.
            if Series(*key) in self._streams or key[0] in self._holes.ended_ms:
                self._intake.expect(key, due)
        self._log_changes(before)

    def _quiet(self, now_s: float) -> dict[str, float]:
        due_s = {
            item.series.pair: now_s - item.late_s
            for item in self.overdue
            if item.series.channel == MARK_PRICE
        }
        # Both are known as of the looks that took them in.
        look_s = self._clock.wall_s(LOOK_EVERY_S) * self._clock.speed
        proves_s = LIVES_AFTER_S + 2 * look_s - MARK_PRICE_DUE_S
        return {
            pair: at_s
            for pair, at_s in due_s.items()
            if self._candles_s.get(pair, 0.0) <= at_s + proves_s
        }

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
