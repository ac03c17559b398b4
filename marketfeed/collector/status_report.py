"""What `/status` of a collector shows, record by record."""

from typing import Literal, TypeAlias

import msgspec

from marketfeed.binance.rest_queue import RestReport
from marketfeed.collector.checking import CheckReport
from marketfeed.gaps.healer import HealReport
from marketfeed.history.aside_report import AsideReport
from marketfeed.history.background import HistoryState
from marketfeed.history.funding import SettledRatesReport
from marketfeed.influxdb.reconcile import CompareReport
from marketfeed.influxdb.ship_report import ShipReport

HealthState: TypeAlias = Literal["filling", "well", "not well"]
"""`filling`: nothing is wrong, and some of what is promised has never been there yet."""


class ConnectionReport(msgspec.Struct, frozen=True):
    """One WebSocket connection. `last_frame_age_s` is None before its first frame (wall seconds)."""

    name: str
    state: str
    streams: int
    opened: int
    frames: int
    last_frame_age_s: float | None
    last_error: str


class TimeframeReport(msgspec.Struct, frozen=True):
    """How far a timeframe has come: its newest closed candle's open time (ms), and who has it."""

    timeframe: str
    newest_open_time_ms: int | None
    pairs_with_newest: int
    pairs: int
    candles: int
    oldest_close_age_s: float | None = None
    """Age of the close of the oldest of all pairs' newest candles (exchange s); None before any."""


class JournalReport(msgspec.Struct, frozen=True):
    """State of the journal. `set_aside` names a damaged predecessor found at the start.

    `schema` says which schema version it has, and what that means for others. `generation` is 1, and rises
    with every damaged file that is replaced while it runs.
    """

    path: str
    schema: str
    generation: int
    bytes_used: int
    next_seq: int
    pending: int
    commits: int
    commit_failures: int
    records_given_up: dict[str, int]
    rejected_frames: int
    """Kept of those that could not be used: what `marketfeed rejected-frames` shows."""
    dead_letters: int
    """The old name of `rejected_frames`, kept for one release."""
    refused_lines: int
    set_aside: str | None
    wal_bytes: int = 0
    """What its `-wal` has."""
    wal_held_by: list[str] = []
    """Who keeps it from being folded back, while it is above its bound, and as far as that can be seen."""
    retention_waits: str = ""
    """Why nothing is deleted now, neither by age nor by `journal.max_bytes`."""
    check: CheckReport | None = None
    """Of the check that runs behind; None before it has begun to collect."""
    aside: list[AsideReport] = []
    """The damaged ones that lie beside it, and what has been taken over of each."""


class StatusReport(msgspec.Struct, frozen=True):
    """All that `marketfeed status` shows. Times in ms are exchange time."""

    version: str
    state: HealthState
    healthy: bool
    """Whether `/health` answers 200."""
    reasons: list[str]
    """Why the state is `not well`; each names its end."""
    ready_pairs: int
    """Pairs that have the newest 499 candles of all timeframes, as far as the exchange has them."""
    uptime_s: float
    exchange_time_ms: int
    clock_offset_ms: float
    speed: float
    pairs: int
    refused_pairs: dict[str, str]
    streams: int
    frames: int
    frames_per_s: float
    answers: int
    """To SUBSCRIBE and the like."""
    resubscribed: int
    """How often a silent stream was asked for again."""
    rollovers: dict[str, int]
    """Connections that were rolled over, by how that ended."""
    records: dict[str, int]
    rejects: dict[str, int]
    overdue: dict[str, int]
    """How many series are silent past their deadline, by channel (`mark_price` or timeframe)."""
    overdue_series: list[str]
    """The longest silent of them, as text."""
    missing_candles: int
    """Candles that are due and not there, by this run or an earlier; those of a first filling apart."""
    healing: HealReport | None
    """None before it has started to collect."""
    settled: SettledRatesReport | None
    mark_price_age_s: float | None
    """Age of the oldest of all pairs' newest mark prices; None until every pair has one."""
    timeframes: list[TimeframeReport]
    connections: list[ConnectionReport]
    journal: JournalReport
    shipping: ShipReport | None
    """None without InfluxDB: the journal is the store."""
    rest: RestReport
    history: HistoryState | None
    """None until the collector has begun to collect."""
    rss_bytes: int
    cpu_s: float
    tasks: int = 0
    """Of the event loop."""
    warnings: list[str] = []
    """What asks for something to be done, and is no reason not to be well."""
    oldest_hole_s: float = 0.0
    """For how long (exchange s) the oldest missing candle is due that healing is to bring.

    Of pairs that trade, as far as is known.
    """
    missing_of_ended: int = 0
    """What pairs lack that exchangeInfo calls halted or ended, of first fillings, too: no reason."""
    absent_candles: int = 0
    """Promised candles that the exchange has answered without twice: no reason."""
    perhaps_halted: str = ""
    """The pair that alone brings nothing: no reason until exchangeInfo has answered that it trades."""
    overdue_of_halted: dict[str, int] = {}
    """How many of `overdue` are series of it, and of those that have halted, by channel."""
    halted: dict[str, str] = {}
    """What is collected and does not trade, by two answers of exchangeInfo: pair -> status. No reason."""

    comparing: CompareReport | None = None
    """How the bucket is compared with the journal; None without InfluxDB."""

    def health(self) -> dict[str, object]:
        """What `/health` says to everybody."""
        return {"state": self.state, "healthy": self.healthy, "ready_pairs": self.ready_pairs}
