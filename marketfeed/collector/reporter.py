"""What a running collector tells of itself: the status report, its health, and what a page shows of pairs."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from marketfeed import __version__, schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.pair_states import PairTile, make_tiles
from marketfeed.collector.parts import CollectorParts
from marketfeed.collector.reasons import HOLE_SHOWN_S, SHIPPING_TROUBLE_S, Judge, Reason, late
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
from marketfeed.influxdb.ship_report import ShipReport
from marketfeed.journal.journal import KIND
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.storage.versions import about_version

NAMED_SERIES: Final = 20


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
        self._judge = Judge(clock, writer, turns, upkeep, shipping_trouble_s)
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
        missing = _Missing() if parts is None else _missing(parts, now_ms)
        perhaps_halted = "" if parts is None else parts.perhaps_halted()
        halted = self._halted()
        set_apart = {perhaps_halted} if parts is None else {*parts.set_apart(), perhaps_halted}
        state = self._state(reasons)
        return StatusReport(
            version=__version__,
            state=state,
            healthy=state == "well" or (state == "filling" and self._filling_is_healthy),
            reasons=[str(reason) for reason in reasons],
            ready_pairs=self._ready_pairs(now_ms),
            uptime_s=time.monotonic() - self._started_s,
            exchange_time_ms=now_ms,
            clock_offset_ms=self._clock.offset_ms(),
            speed=self._clock.speed,
            pairs=self._pairs(),
            refused_pairs={} if parts is None else parts.roster.left_out,
            streams=0 if parts is None else parts.streams,
            frames=counters.frames,
            frames_per_s=self._rate(),
            answers=counters.answers,
            resubscribed=counters.resubscribed,
            rollovers=dict(counters.rollovers),
            records=dict(counters.records),
            rejects=dict(counters.rejects),
            overdue=dict(Counter(item.series.channel for item in overdue)),
            overdue_series=[late(item) for item in overdue[:NAMED_SERIES]],
            missing_candles=missing.candles,
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
            warnings=self._warnings(),
            oldest_hole_s=missing.oldest_s,
            missing_of_ended=missing.of_ended,
            absent_candles=missing.absent,
            perhaps_halted=perhaps_halted,
            overdue_of_halted=dict(
                Counter(item.series.channel for item in overdue if item.series.pair in set_apart)
            ),
            halted=halted,
            comparing=None
            if parts is None or parts.reconciler is None
            else parts.reconciler.report(),
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
            self._halted(),
        )

    def headline(self) -> str:
        """How it fares, in a line for `systemctl status`."""
        reasons = self._reasons()
        state: str = self._state(reasons)
        if reasons:
            state += f": {'; '.join(reason.text for reason in reasons[:2])}"
        more = f" (and {len(reasons) - 2} more, see /health)" if len(reasons) > 2 else ""
        return f"{self._pairs()} pairs, {state}{more}"

    def mark_price_ages_s(self) -> dict[str, float]:
        """The age of each pair's newest stored mark price (exchange s), of those that have one."""
        now_ms = self._clock.now_ms()
        marks = {} if self.parts is None else self.parts.mark_event_ms()
        return {pair: (now_ms - at_ms) / 1000 for pair, at_ms in marks.items()}

    def _reasons(self) -> list[Reason]:
        return self._judge.reasons(self.stage, self.source, self.parts)

    def _state(self, reasons: Sequence[Reason]) -> HealthState:
        if reasons:
            return "not well"
        return "filling" if self._is_filling() else "well"

    def _is_filling(self) -> bool:
        """Whether something is not filled for the first time, or not even known: new, or looked through.

        Of what is collected and the exchange knows: of the rest nothing will come.
        """
        parts = self.parts
        if parts is None:
            return True
        unpromised = bool(parts.promises.unpromised())
        collected = {one.pair for one in parts.roster.instruments}
        pairs = collected - parts.pair_lifecycle.absent.pairs
        return unpromised or parts.holes.is_filling(pairs) or parts.history.marks.is_filling(pairs)

    def _warnings(self) -> list[str]:
        absent = [] if self.parts is None else self.parts.pair_lifecycle.absent.warnings()
        return [*absent, *self._upkeep.trimming.warnings()]

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
            wal_bytes=self._upkeep.wal.bytes,
            wal_held_by=self._upkeep.wal.holders,
            retention_waits=self._upkeep.trimming.waits,
            check=None if self.parts is None else self._upkeep.check.report(),
            aside=[] if self.parts is None else self.parts.history.aside.report(),
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
        parts = self.parts
        ages_s = self.mark_price_ages_s()
        if parts is not None:
            awaited = {one.pair for one in parts.roster.instruments} - parts.set_apart()
            if not awaited <= ages_s.keys():
                return None
            ages_s = {pair: ages_s[pair] for pair in awaited}
        if not ages_s:
            return None
        return max(0.0, *ages_s.values())

    def _halted(self) -> dict[str, str]:
        return {} if self.parts is None else dict(self.parts.roster.halted)

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


class _Missing(NamedTuple):
    """Candles that are due and not there, as `StatusReport` has them."""

    candles: int = 0
    of_ended: int = 0
    absent: int = 0
    oldest_s: float = 0.0


def _missing(parts: CollectorParts, now_ms: int) -> _Missing:
    counts, first = parts.holes.count(now_ms), parts.holes.count(now_ms, first=True)
    return _Missing(
        counts.total(),
        sum(
            count
            for (pair, _), count in (counts + first).items()
            if pair not in parts.roster or pair in parts.roster.halted
        ),
        parts.holes.absent().total(),
        parts.holes.oldest_s(now_ms, parts.accountable()),
    )
