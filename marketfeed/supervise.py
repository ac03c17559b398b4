"""Watches the feed: finds silent series, asks for them again, and records what did not come.

A connection that is silent as a whole is replaced by the feed itself (`FeedOptions.idle_timeout_s`); here
single series are watched, the quietest among living ones too. What is found shows in `/health`, in the
status report, in metrics, and as gaps in the journal.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.binance.connect import ConnectionStatus
from marketfeed.binance.feed import Feed
from marketfeed.binance.liveness import (
    MARK_PRICE,
    MARK_PRICE_DUE_S,
    Liveness,
    Overdue,
    Series,
)
from marketfeed.binance.symbols import Instrument, stream_name
from marketfeed.clock import ExchangeClock
from marketfeed.intake import Intake
from marketfeed.metrics import Counters
from marketfeed.records import Gap

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""Exchange seconds between two looks; never closer than `_LOOK_AT_LEAST_S` wall seconds."""
_LOOK_AT_LEAST_S: Final = 0.05
RESUBSCRIBE_EVERY_S: Final = 60.0
"""Exchange seconds before a series that stayed silent is asked for again."""
LOSS_SHOWN_S: Final = 60.0
"""Exchange seconds for which `/health` tells of a candle that did not come; the gap itself stays."""
CLOCK_TOLERANCE_S: Final = 30.0
"""Exchange seconds by which stamps of fresh frames may differ from the clock; a wall second at least."""


class Supervisor:
    """Keeps the liveness of one collector; `run` looks around until it is cancelled."""

    def __init__(
        self,
        intake: Intake,
        clock: ExchangeClock,
        counters: Counters,
        instruments: Sequence[Instrument],
        timeframes: Sequence[str],
        mark_price_every_ms: int,
    ) -> None:
        self.overdue: list[Overdue] = []
        """What was silent past its deadline at the last look, the longest first."""
        self.looks = 0
        """How often it has looked around: a watchdog's proof that it turns."""
        self.stamps_off_s = 0.0
        """How far fresh frames are stamped ahead of the clock (exchange s); 0 within the tolerance."""
        self._liveness = Liveness()
        self._intake = intake
        self._clock = clock
        self._counters = counters
        self._streams = {
            Series(instrument.pair, channel): stream_name(instrument, channel, mark_price_every_ms)
            for instrument in instruments
            for channel in (*timeframes, MARK_PRICE)
        }
        self._asked_again_s: dict[Series, float] = {}
        # Since when (ms), and why.
        self._lost_connections: dict[str, tuple[int, str]] = {}
        self._stopping = False
        self._stamped_s = -math.inf
        self._looked_s, self._looked_ms = clock.elapsed_s(), clock.now_ms()
        # A hole is stored with the candle behind it: after a crash nobody would find it any more.
        intake.before_commit = self._take_in
        self._lately: dict[tuple[Series, int], tuple[float, int]] = {}

    @property
    def missing_candles(self) -> int:
        """How many candles were due and have not come since."""
        return self._liveness.missing_candles

    def lost_lately(self) -> Counter[Series]:
        """How many candles of which series went missing in the last `LOSS_SHOWN_S` and have not come."""
        since_s = self._clock.elapsed_s() - LOSS_SHOWN_S
        self._lately = {key: found for key, found in self._lately.items() if found[0] >= since_s}
        lost: Counter[Series] = Counter()
        for (series, _), (_, candles) in self._lately.items():
            lost[series] += candles
        return lost

    def contradicts(self, server_time_ms: int) -> bool:
        """Whether fresh frames agree with the clock as it is, and a time that the server tells does not."""
        off_s = abs(server_time_ms - self._clock.now_ms()) / 1000
        fresh = self._clock.elapsed_s() - self._stamped_s <= MARK_PRICE_DUE_S
        return fresh and not self.stamps_off_s and off_s > self._tolerance_s()

    def start(self, stored_open_ms: Mapping[tuple[str, str], int]) -> None:
        """Start all deadlines now; `stored_open_ms` is the newest stored candle of each series."""
        self._liveness.watch(
            self._streams, self._clock.elapsed_s(), self._clock.now_ms(), stored_open_ms
        )
        self._note_missing("absent since the collector ran last")
        # That much was to be expected of a collector that did not run.
        self._lately.clear()

    async def run(self, feed: Feed) -> None:
        """Look around every exchange second."""
        # Beside the looks: a command waits for its turn, or for a connection that does not take it.
        asking: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(max(LOOK_EVERY_S / self._clock.speed, _LOOK_AT_LEAST_S))
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

    def on_connection(self, status: ConnectionStatus) -> None:
        """Take note of a connection's change of state: a lost connection is a gap until it is open again."""
        self._counters.connection_events[status.state] += 1
        if self._stopping:
            return
        now_ms = self._clock.now_ms()
        kind = f"connection_{status.name}"
        if status.state == "closed" and status.name not in self._lost_connections:
            self._lost_connections[status.name] = now_ms, status.last_error
            self._intake.add(Gap(kind, None, now_ms, None, False, status.last_error))
        elif status.state == "open" and status.name in self._lost_connections:
            since_ms, reason = self._lost_connections.pop(status.name)
            self._intake.add(Gap(kind, None, since_ms, now_ms, True, reason))

    def _look(self) -> None:
        self._take_in()
        before = {item.series for item in self.overdue}
        self.overdue = self._liveness.overdue(self._clock.elapsed_s(), self._clock.now_ms())
        self._note_missing("did not come")
        self._log_changes(before)

    def _take_in(self) -> None:
        now_s, now_ms = self._clock.elapsed_s(), self._clock.now_ms()
        seen = self._intake.take_seen()
        self._check_clock(now_s, now_ms, seen.newest_event_ms)
        self._liveness.mark_prices(seen.marks, now_s)
        for pair, timeframe, open_ms in seen.closed:
            self._liveness.closed(pair, timeframe, open_ms)
        for (pair, timeframe), open_ms in seen.forming.items():
            self._liveness.formed(pair, timeframe, open_ms)
        self._note_missing("did not come")

    def _check_clock(self, now_s: float, now_ms: int, newest_event_ms: int) -> None:
        moved_s = (now_ms - self._looked_ms) / 1000 - (now_s - self._looked_s)
        self._looked_s, self._looked_ms = now_s, now_ms
        if moved_s < -1.0:
            self._liveness.reanchor(now_ms)
        if newest_event_ms > 0:
            self._stamped_s = now_s
            off_s = (newest_event_ms - now_ms) / 1000
            self.stamps_off_s = off_s if abs(off_s) > self._tolerance_s() else 0.0

    def _tolerance_s(self) -> float:
        return max(CLOCK_TOLERANCE_S, self._clock.speed)

    def _note_missing(self, reason: str) -> None:
        now_s = self._clock.elapsed_s()
        for item in self._liveness.take_news():
            key = item.series, item.start_ms
            if item.healed:
                self._lately.pop(key, None)
            else:
                length_ms = schema.TIMEFRAMES_MS[item.series.channel]
                self._lately[key] = now_s, (item.end_ms - item.start_ms) // length_ms
            self._counters.gaps["healed" if item.healed else "found"] += 1
            self._intake.add(
                Gap(
                    f"candle_{item.series.channel}",
                    item.series.pair,
                    item.start_ms,
                    item.end_ms,
                    item.healed,
                    "came late" if item.healed else reason,
                )
            )

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

    def _to_ask_again(self, feed: Feed) -> list[str]:
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
            for connection in feed.connections()
            if connection.state == "open" and connection.last_frame_s is not None
            for stream in connection.streams
        }
        asked = [stream for stream in due if stream in living]
        self._asked_again_s.update((due[stream], now_s) for stream in asked)
        return asked
