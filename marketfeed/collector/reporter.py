"""What a running collector tells of itself: the status report, its health, and what a page shows of pairs."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Final

from marketfeed import __version__, schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.pair_states import PairTile, make_tiles
from marketfeed.collector.parts import CollectorParts
from marketfeed.collector.status_report import (
    ConnectionReport,
    HealthState,
    JournalReport,
    StatusReport,
    TimeframeReport,
)
from marketfeed.collector.upkeep import Upkeep
from marketfeed.counters import CollectorCounters, cpu_s, rss_bytes
from marketfeed.gaps.deadlines import Overdue
from marketfeed.grid import TILE_CANDLES
from marketfeed.history.backfill import PROGRESS_S
from marketfeed.influxdb.shipper import ShipReport
from marketfeed.journal.journal import KIND
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.pairs.selection import NONE_COLLECTED
from marketfeed.storage.damage import aside_reason
from marketfeed.storage.versions import about_version

NAMED_SERIES: Final = 20
NAMED_IN_HEALTH: Final = 3
HOLE_SHOWN_S: Final = 60.0
"""Exchange seconds that a candle may be missing before `/health` tells of it."""
SHIPPING_TROUBLE_S: Final = 30.0
"""A server that restarts is no trouble yet; one that is away for longer is."""


class Reporter:
    """Makes the reports of one collector; `parts` is None until it has started to collect."""

    def __init__(
        self,
        timeframes: Sequence[str],
        clock: ExchangeClock,
        counters: CollectorCounters,
        writer: JournalWriter,
        turns: Turns,
        upkeep: Upkeep,
        shipping_trouble_s: float = SHIPPING_TROUBLE_S,
        filling_is: int = 200,
    ) -> None:
        self.stage = "starting"
        """`starting`, `running` or `stopping`."""
        self.parts: CollectorParts | None = None
        self.source: InstrumentSource | None = None
        self._timeframes = timeframes
        self._clock = clock
        self._counters = counters
        self._writer = writer
        self._turns = turns
        self._upkeep = upkeep
        self._shipping_trouble_s = shipping_trouble_s
        self._filling_is_healthy = filling_is == HTTPStatus.OK
        self._started_s = time.monotonic()
        self._rate_frames = 0
        self._rate_s = self._started_s
        self._frames_per_s = 0.0

    def report(self) -> StatusReport:
        """What the collector knows of itself now."""
        counters, parts = self._counters, self.parts
        overdue = self._overdue()
        reasons = self._reasons()
        now_ms = self._clock.now_ms()
        holes = None if parts is None else parts.holes
        state = self._state(reasons)
        return StatusReport(
            version=__version__,
            state=state,
            healthy=state == "well" or (state == "filling" and self._filling_is_healthy),
            reasons=reasons,
            ready_pairs=self._ready_pairs(now_ms),
            uptime_s=time.monotonic() - self._started_s,
            exchange_time_ms=now_ms,
            clock_offset_ms=self._clock.offset_ms(),
            speed=self._clock.speed,
            pairs=self._pairs(),
            refused_pairs={} if parts is None else dict(parts.roster.refused),
            streams=0 if parts is None else parts.streams,
            frames=counters.frames,
            frames_per_s=self._rate(),
            answers=counters.answers,
            resubscribed=counters.resubscribed,
            rollovers=dict(counters.rollovers),
            records=dict(counters.records),
            rejects=dict(counters.rejects),
            overdue=dict(Counter(item.series.channel for item in overdue)),
            overdue_series=[_late(item) for item in overdue[:NAMED_SERIES]],
            missing_candles=0 if holes is None else holes.count(now_ms).total(),
            healing=None if parts is None else parts.healer.report(),
            settled=None if parts is None else parts.settled_rates.report(),
            mark_price_age_s=self._oldest_mark_age_s(),
            timeframes=self._timeframe_reports(),
            connections=self._connections(),
            journal=self._journal(),
            shipping=self._shipping(),
            rest=self._turns.report(),
            history=None if parts is None else parts.history.report(),
            rss_bytes=rss_bytes(),
            cpu_s=cpu_s(),
            tasks=len(asyncio.all_tasks()),
            warnings=[] if parts is None else parts.pair_lifecycle.absent.warnings(),
            oldest_hole_s=0.0 if holes is None else holes.oldest_s(now_ms),
        )

    def pairs(self) -> tuple[str, ...]:
        """What is collected, in the order of the tiles."""
        parts = self.parts
        return () if parts is None else tuple(one.pair for one in parts.roster.instruments)

    def tiles(self) -> list[PairTile]:
        """How each of `pairs()` stands."""
        parts = self.parts
        if parts is None:
            return []
        return make_tiles(
            self.pairs(),
            self._clock.now_ms(),
            self._clock.speed,
            parts.mark_event_ms(),
            self._overdue(),
            parts.holes.open_longer_than(HOLE_SHOWN_S, self._clock.now_ms()),
        )

    def headline(self) -> str:
        """How it fares, in a line for `systemctl status`."""
        reasons = self._reasons()
        state: str = self._state(reasons)
        if reasons:
            state += f": {'; '.join(reasons[:2])}"
        more = f" (and {len(reasons) - 2} more, see /health)" if len(reasons) > 2 else ""
        return f"{self._pairs()} pairs, {state}{more}"

    def mark_price_ages_s(self) -> dict[str, float]:
        """The age of each pair's newest stored mark price (exchange s), of those that have one."""
        now_ms = self._clock.now_ms()
        marks = {} if self.parts is None else self.parts.mark_event_ms()
        return {pair: (now_ms - at_ms) / 1000 for pair, at_ms in marks.items()}

    def _reasons(self) -> list[str]:
        reasons = [] if self.stage == "running" else [f"the collector is {self.stage}"]
        if self.source is not None and self.source.problem:
            reasons.append(self.source.problem)
        if self._writer.beside:
            reasons.append(aside_reason("journal", self._writer.beside))
        parts = self.parts
        if parts is None:
            return reasons
        if failing := parts.intake.trouble:
            reasons.append(f"the journal cannot be written for {failing.for_s:.0f} s")
        shipping = self._shipping()
        if shipping is not None and shipping.trouble_for_s > self._shipping_trouble_s:
            reasons.append(
                f"shipping to InfluxDB is {shipping.state} for {shipping.trouble_for_s:.0f} s: "
                f"{shipping.trouble}"
            )
        if not parts.streams:
            reasons.append(NONE_COLLECTED)
        now_s = time.monotonic()
        for connection in parts.feed.current_connections():
            if not connection.streams:
                continue  # its streams have ended: it waits for others
            heard_s = max(connection.last_frame_s or 0.0, connection.since_s)
            if connection.state != "open":
                reasons.append(f"{connection.name} is {connection.state}: {connection.last_error}")
            elif now_s - heard_s > parts.silent_after_s:
                reasons.append(f"{connection.name} is silent for {now_s - heard_s:.0f} s")
        if ahead_s := self._clock.frames_ahead_s():
            reasons.append(f"frames are stamped {ahead_s:+.0f} s from the exchange's clock")
        if self._upkeep.clock_trouble:
            reasons.append(f"the exchange's clock cannot be read: {self._upkeep.clock_trouble.why}")
        rest = self._turns.report()
        if rest.stopped_s:
            reasons.append(f"REST is stopped for {rest.stopped_s:.0f} s more: {rest.stopped_why}")
        overdue = self._overdue()
        if overdue:
            reasons.append(f"{len(overdue)} series are silent: {_named(map(_late, overdue))}")
        old = parts.holes.open_longer_than(HOLE_SHOWN_S, self._clock.now_ms())
        if old:
            series = map(" ".join, old)
            trouble = f"; REST: {parts.healer.trouble.why}" if parts.healer.trouble else ""
            reasons.append(
                f"{old.total()} closed candles are missing for more than {HOLE_SHOWN_S:.0f} s: "
                f"{_named(series)}{trouble}"
            )
        if parts.history.backfill.is_stuck:
            history = parts.history.backfill.report()
            trouble = history.trouble or parts.healer.trouble.why
            reasons.append(
                f"filling makes no progress for {PROGRESS_S / 60:.0f} min: {history.candles_left:,} candles "
                f"are left of {history.pairs - history.pairs_done} pairs{f'; {trouble}' if trouble else ''}"
            )
        state = parts.history.report()
        if unmended := state.audit.unmended:
            reasons.append(
                f"{len(unmended)} stored candles differ from the exchange's: {_named(unmended)}"
            )
        return reasons

    def _state(self, reasons: Sequence[str]) -> HealthState:
        if reasons:
            return "not well"
        return "filling" if self._is_filling() else "well"

    def _is_filling(self) -> bool:
        """Whether something is not filled for the first time, or not even known: new, or looked through.

        Of what is collected: nobody fills the history of a pair that has ended.
        """
        parts = self.parts
        if parts is None:
            return True
        unpromised = bool(parts.promises.unpromised())
        pairs = {one.pair for one in parts.roster.instruments}
        return unpromised or parts.holes.is_filling(pairs)

    def _ready_pairs(self, now_ms: int) -> int:
        """How many pairs have the newest candles of all timeframes, as many as a feeder asks for at most."""
        parts = self.parts
        if parts is None:
            return 0
        return sum(
            all(
                parts.holes.ready((one.pair, timeframe), TILE_CANDLES, now_ms)
                for timeframe in self._timeframes
            )
            for one in parts.roster.instruments
        )

    def _pairs(self) -> int:
        return 0 if self.parts is None else len(self.parts.roster)

    def _overdue(self) -> list[Overdue]:
        return [] if self.parts is None else self.parts.supervisor.overdue

    def _journal(self) -> JournalReport:
        counters, writer = self._counters, self._writer
        return JournalReport(
            path=str(writer.path),
            schema=about_version(KIND, writer.version),
            generation=writer.generation,
            bytes_used=writer.bytes_used,
            next_seq=writer.next_seq,
            pending=0 if self.parts is None else self.parts.intake.pending,
            commits=counters.commits,
            commit_failures=counters.commit_failures,
            records_given_up=dict(counters.records_given_up),
            rejected_frames=writer.rejected_frames,
            dead_letters=writer.rejected_frames,
            refused_lines=writer.refused_lines,
            set_aside=None if writer.set_aside is None else str(writer.set_aside),
        )

    def _shipping(self) -> ShipReport | None:
        parts = self.parts
        return None if parts is None or parts.shipper is None else parts.shipper.report()

    def _rate(self) -> float:
        now_s = time.monotonic()
        if now_s - self._rate_s >= 1.0:
            frames = self._counters.frames
            self._frames_per_s = (frames - self._rate_frames) / (now_s - self._rate_s)
            self._rate_frames, self._rate_s = frames, now_s
        return self._frames_per_s

    def _oldest_mark_age_s(self) -> float | None:
        ages_s = self.mark_price_ages_s()
        if not ages_s or len(ages_s) < self._pairs():
            return None
        return max(0.0, *ages_s.values())

    def _timeframe_reports(self) -> list[TimeframeReport]:
        opens_ms: defaultdict[str, list[int]] = defaultdict(list)
        candles: Mapping[str, int] = {}
        if self.parts is not None:
            candles = self.parts.intake.freshness.candles
            for (_, name), open_ms in self.parts.newest_open_ms().items():
                opens_ms[name].append(open_ms)
        return [
            self._timeframe(name, opens_ms[name], candles.get(name, 0)) for name in self._timeframes
        ]

    def _timeframe(self, name: str, opens_ms: list[int], candles: int) -> TimeframeReport:
        if not opens_ms:
            return TimeframeReport(name, None, 0, self._pairs(), candles)
        newest_ms = max(opens_ms)
        oldest_close_ms = min(opens_ms) + schema.TIMEFRAMES_MS[name]
        return TimeframeReport(
            name,
            newest_ms,
            opens_ms.count(newest_ms),
            self._pairs(),
            candles,
            (self._clock.now_ms() - oldest_close_ms) / 1000,
        )

    def _connections(self) -> list[ConnectionReport]:
        if self.parts is None:
            return []
        now_s = time.monotonic()
        return [
            ConnectionReport(
                name=c.name,
                state=c.state,
                streams=len(c.streams),
                opened=c.opened,
                frames=c.frames,
                last_frame_age_s=None if c.last_frame_s is None else now_s - c.last_frame_s,
                last_error=c.last_error,
            )
            for c in self.parts.feed.connections()
        ]


def _late(item: Overdue) -> str:
    return f"{item.series.pair} {item.series.channel} overdue by {item.late_s:.0f} s"


def _named(texts: Iterable[str]) -> str:
    first = list(islice(texts, NAMED_IN_HEALTH + 1))
    return ", ".join([*first[:NAMED_IN_HEALTH], *("…" for _ in first[NAMED_IN_HEALTH:])])
