"""Every reason for which a collector is not well: its words, and when it is over.

`Kind` is the list of them; docs/operating.md says of each what it means and what to do, and a test
holds the two together. `Judge` looks at a collector's parts and says which of them hold now.
"""

import time
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import islice
from typing import Final, NamedTuple

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector.aside_advice import advice
from marketfeed.collector.parts import CollectorParts
from marketfeed.collector.upkeep import Upkeep
from marketfeed.counters import Lately
from marketfeed.gaps.deadlines import Overdue
from marketfeed.history.backfill import PROGRESS_S
from marketfeed.influxdb.ship_report import ShipReport
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.pairs.selection import NONE_COLLECTED

NAMED_IN_HEALTH: Final = 3
HOLE_SHOWN_S: Final = 60.0
"""Exchange seconds that a candle may be missing before `/health` tells of it."""
SETTLED_TROUBLE_S: Final = 60.0
"""Exchange seconds for which settled rates may not be had: REST may be busy for some."""
STOP_SHOWN_S: Final = 60.0
"""Exchange seconds that REST may be stopped for: a 429 costs a minute, and healing has that time."""
SHIPPING_TROUBLE_S: Final = 30.0
"""A server that restarts is no trouble yet; one that is away for longer is."""
LATELY_S: Final = 600.0
"""Exchange seconds for which an event that is over at once is told of."""

_PROGRESS_MIN: Final = round(PROGRESS_S / 60)
_LATELY: Final = f"{LATELY_S / 60:.0f} min after the last"


class Kind(Enum):
    """The reasons, each with its words and its end.

    Of what stands in braces capitals are a word or a number, `more` is what a sentence goes on with.
    """

    STARTING = ("the collector is starting", "it collects")
    STOPPING = ("the collector is stopping", "it has stopped")
    NO_LIST = ("the exchange does not tell what it trades: {more}", "exchangeInfo is answered")
    COPY_USED = (
        "exchangeInfo cannot be fetched, its last known copy is used: {more}",
        "an answer is believed",
    )
    NO_PAIRS = (NONE_COLLECTED, "one of them is")
    SET_ASIDE = ("a damaged journal was set aside: {more}", "the file is removed")
    SETS_ASIDE = ("{N} damaged journals were set aside: {more}", "the files are removed")
    READ_FAILED = ("the journal could not be read, the last time {N} s ago: {more}", _LATELY)
    UNREADABLE = (
        "{N} ranges of the journal cannot be read: {more}",
        "they can be, or the journal is replaced",
    )
    UNWRITTEN = ("the journal cannot be written for {N} s", "a commit succeeds")
    WAL = ("the journal's -wal has {N} MB and grows: {more}", "it is folded back")
    SHIPPING = ("shipping to InfluxDB is {STATE} for {N} s: {more}", "InfluxDB acknowledges again")
    LINES_REFUSED = ("InfluxDB refused lines, the last of them {N} s ago: {more}", _LATELY)
    HELD = (
        "InfluxDB refuses rows of {N} shards, they wait: {more}",
        "it takes a line of each",
    )
    CONNECTION = ("{NAME} is {STATE}: {more}", "it is open")
    CONNECTION_SILENT = ("{NAME} is silent for {N} s", "frames come again")
    APART = (
        "frames are stamped {N} s from the exchange's clock",
        "an answer of `time` agrees with them",
    )
    NO_TIME = ("the exchange's clock cannot be read: {more}", "it is read")
    FRAMES_REFUSED = (
        "frames were refused for their stamps, the last of them {N} s ago: {more}",
        _LATELY,
    )
    REST_STOPPED = ("REST is stopped for {N} s more: {more}", "that time is over")
    SILENT = ("{N} series are silent: {more}", "they bring data, or their pair ends")
    HOLES = (
        f"{{N}} closed candles are missing for more than {HOLE_SHOWN_S:.0f} s: {{more}}",
        "they are stored, or the exchange has answered without them twice",
    )
    STUCK = (
        f"filling makes no progress for {_PROGRESS_MIN} min: {{N}} candles are left of {{M}} pairs{{more}}",
        "a candle of them comes",
    )
    MARKS = (
        "{N} hourly mark candles are missing for more than 10 min: {more}",
        "they are stored, or the exchange has answered without them twice",
    )
    SETTLED = ("settled funding rates are not fetched for {N} s: {more}", "they are fetched")
    DIFFERENT = (
        "{N} stored candles differ from the exchange's: {more}",
        "the audit finds them alike",
    )

    def __init__(self, words: str, ends: str) -> None:
        self.words = words
        self.ends = ends

    @property
    def shown(self) -> str:
        """Its words as a table shows them."""
        return self.words.replace("{more}", "…").replace("{", "").replace("}", "")

    def reason(self, **values: object) -> "Reason":
        """What it says now."""
        return Reason(self, self.words.format(**values))


class Reason(NamedTuple):
    """A reason that holds now; as a text it names its end."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.text} (until {self.kind.ends})"


class Judge:
    """Says what is wrong with a collector. `shipping_trouble_s` are wall seconds."""

    def __init__(
        self,
        clock: ExchangeClock,
        writer: JournalWriter,
        turns: Turns,
        upkeep: Upkeep,
        shipping_trouble_s: float = SHIPPING_TROUBLE_S,
    ) -> None:
        self._clock = clock
        self._writer = writer
        self._turns = turns
        self._upkeep = upkeep
        self._shipping_trouble_s = shipping_trouble_s

    def reasons(
        self, stage: str, source: InstrumentSource | None, parts: CollectorParts | None
    ) -> list[Reason]:
        """What is wrong now; `source` and `parts` are None until there are any."""
        found = [*_of_stage(stage), *_of_listing(source), *self._of_files(parts)]
        if parts is None:
            return found
        return [
            *found,
            *self._of_stores(parts),
            *_of_connections(parts),
            *self._of_exchange(parts),
            *self._of_series(parts),
            *self._of_the_past(parts),
        ]

    def _of_files(self, parts: CollectorParts | None) -> Iterator[Reason]:
        beside = self._writer.beside
        if beside:
            known = [] if parts is None else parts.history.aside.report()
            more = advice(beside, known)
            if len(beside) == 1:
                yield Kind.SET_ASIDE.reason(more=more)
            else:
                yield Kind.SETS_ASIDE.reason(N=len(beside), more=more)
        if unreadable := self._upkeep.check.unreadable:
            yield Kind.UNREADABLE.reason(N=len(unreadable), more=named(map(str, unreadable)))
        failed = self._writer.failed_reads
        # In wall time: it is the disk's.
        if failed.ago_s < LATELY_S:
            yield Kind.READ_FAILED.reason(N=f"{failed.ago_s:.0f}", more=failed.why)
        wal = self._upkeep.wal
        if wal.is_above:
            yield Kind.WAL.reason(N=f"{wal.bytes / 1e6:,.0f}", more=wal.why())

    def _of_stores(self, parts: CollectorParts) -> Iterator[Reason]:
        if failing := parts.intake.trouble:
            yield Kind.UNWRITTEN.reason(N=f"{failing.for_s:.0f}")
        if parts.shipper is None:
            return
        shipping: ShipReport = parts.shipper.report()
        if shipping.trouble_for_s > self._shipping_trouble_s:
            yield Kind.SHIPPING.reason(
                STATE=shipping.state, N=f"{shipping.trouble_for_s:.0f}", more=shipping.trouble
            )
        yield from self._lately(Kind.LINES_REFUSED, parts.shipper.refusals)
        if shipping.held:
            yield Kind.HELD.reason(N=shipping.held_shards, more=named(shipping.held))

    def _of_exchange(self, parts: CollectorParts) -> Iterator[Reason]:
        if ahead_s := self._clock.frames_ahead_s():
            yield Kind.APART.reason(N=f"{ahead_s:+.0f}")
        if self._upkeep.clock_trouble:
            yield Kind.NO_TIME.reason(more=self._upkeep.clock_trouble.why)
        yield from self._lately(Kind.FRAMES_REFUSED, parts.intake.refused_stamps)
        rest = self._turns.report()
        if rest.stopped_s and rest.stopped_in_all_s > STOP_SHOWN_S:
            yield Kind.REST_STOPPED.reason(N=f"{rest.stopped_s:.0f}", more=rest.stopped_why)

    def _of_series(self, parts: CollectorParts) -> Iterator[Reason]:
        counts = parts.accountable()
        overdue = [item for item in parts.supervisor.overdue if item.series.pair in counts]
        if overdue:
            yield Kind.SILENT.reason(N=len(overdue), more=named(map(late, overdue)))
        old = parts.holes.open_longer_than(HOLE_SHOWN_S, self._clock.now_ms(), counts)
        if old:
            trouble = f"; REST: {parts.healer.trouble.why}" if parts.healer.trouble else ""
            series = named(" ".join(key) for key in old)
            yield Kind.HOLES.reason(N=old.total(), more=f"{series}{trouble}")

    def _of_the_past(self, parts: CollectorParts) -> Iterator[Reason]:
        for backfill in (parts.history.backfill, parts.history.marks.backfill):
            if backfill.is_stuck(parts.accountable()):
                history = backfill.report()
                trouble = history.trouble or parts.healer.trouble.why
                yield Kind.STUCK.reason(
                    N=f"{history.candles_left:,}",
                    M=history.pairs - history.pairs_done,
                    more=f"; {trouble}" if trouble else "",
                )
        if late_marks := parts.history.marks.late(parts.accountable()):
            why = parts.history.marks.trouble
            more = named(" ".join(key) for key in late_marks) + (f"; {why}" if why else "")
            yield Kind.MARKS.reason(N=late_marks.total(), more=more)
        settled = parts.settled_rates.trouble
        failing_s = settled.for_s * self._clock.speed
        if failing_s > SETTLED_TROUBLE_S:
            yield Kind.SETTLED.reason(N=f"{failing_s:.0f}", more=settled.why)
        if unmended := parts.history.report().audit.unmended:
            yield Kind.DIFFERENT.reason(N=len(unmended), more=named(unmended))

    def _lately(self, kind: Kind, event: Lately) -> Iterator[Reason]:
        ago_s = event.ago_s * self._clock.speed
        if ago_s < LATELY_S:
            yield kind.reason(N=f"{ago_s:.0f}", more=event.why)


def late(item: Overdue) -> str:
    """A silent series as text."""
    return f"{item.series.pair} {item.series.channel} overdue by {item.late_s:.0f} s"


def named(texts: Iterable[str]) -> str:
    """The first of them."""
    first = list(islice(texts, NAMED_IN_HEALTH + 1))
    return ", ".join([*first[:NAMED_IN_HEALTH], *("…" for _ in first[NAMED_IN_HEALTH:])])


def _of_stage(stage: str) -> Iterator[Reason]:
    if stage == "starting":
        yield Kind.STARTING.reason()
    elif stage == "stopping":
        yield Kind.STOPPING.reason()


def _of_listing(source: InstrumentSource | None) -> Iterator[Reason]:
    if source is not None and source.problem:
        kind = Kind.COPY_USED if source.uses_copy else Kind.NO_LIST
        yield kind.reason(more=source.problem)


def _of_connections(parts: CollectorParts) -> Iterator[Reason]:
    if not parts.streams:
        yield Kind.NO_PAIRS.reason()
    now_s = time.monotonic()
    for connection in parts.feed.current_connections():
        if not connection.streams:
            continue  # its streams have ended: it waits for others
        heard_s = max(connection.last_frame_s or 0.0, connection.since_s)
        if connection.state != "open":
            yield Kind.CONNECTION.reason(
                NAME=connection.name, STATE=connection.state, more=connection.last_error
            )
        elif now_s - heard_s > parts.silent_after_s:
            yield Kind.CONNECTION_SILENT.reason(NAME=connection.name, N=f"{now_s - heard_s:.0f}")
