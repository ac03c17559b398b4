"""What the aggregator counts, and how Prometheus sees it. Written on the event loop only."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marketfeed import __version__
from marketfeed.aggregator.status_report import AggregatorReport
from marketfeed.counters import Tally
from marketfeed.service.metrics import Exposition, histogram, labelled, plain

SEND_LAG_BUCKETS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 30_000)
"""Upper bounds for the time from a decision to the beginning of its POST."""
MISSING_ALARM: Final = 10
"""So many signals of one feeder without a value within MISSING_WITHIN_S alarm."""
MISSING_WITHIN_S: Final = 3_600.0
NOBODY: Final = "?"
"""The feeder of signals that name none."""
_PREFIX: Final = "marketfeed_aggregator_"


class AggregatorCounters:
    """What the aggregator has done since it started. `heard` is told of each feeder's signals: when (ms)."""

    def __init__(self, heard: Callable[[str, int], None] = lambda _feeder, _ms: None) -> None:
        self.started_s = time.time()
        self.heard = heard
        self.signals: Counter[tuple[str, str]] = Counter()
        """By feeder and outcome."""
        self.strength_texts: Counter[str] = Counter()
        """By feeder: signals stored whose strength is a text."""
        self.contradictions: Counter[tuple[str, str]] = Counter()
        """By feeder and value: signals stored whose field and tag say different things of it."""
        self.refused: Counter[str] = Counter()
        """By reason: posts that were no signal."""
        self.missing: Counter[tuple[str, str]] = Counter()
        """By feeder and value: signals in which it was missing, rejected or defaulted."""
        self.decisions: Counter[tuple[str, str]] = Counter()
        """By side and outcome."""
        self.forwards: Counter[tuple[str, str]] = Counter()
        """By side and the state that a forward came to."""
        self.requests: Counter[int] = Counter()
        """By status of the answer."""
        self.wrong_passwords = 0
        self.commits = 0
        self.commit_s = 0.0
        self.ledger_failures = 0
        self.close_to_send = Tally(SEND_LAG_BUCKETS_MS)
        self._missing_s: dict[tuple[str, str], deque[float]] = {}
        self._missing_from: dict[tuple[str, str], str] = {}

    def note_missing(self, feeder: str, value: str, now_s: float, sender: str) -> int:
        """Count a signal of `feeder` without `value` from `sender`; returns how many there were lately."""
        self.missing[feeder, value] += 1
        self._missing_from[feeder, value] = sender
        times = self._missing_s.setdefault((feeder, value), deque(maxlen=MISSING_ALARM))
        times.append(now_s)
        return self._lately(times, now_s)

    def often_missing(self, now_s: float) -> list[str]:
        """Which feeders' signals lack a value so often that it is to be known, and who sent the last."""
        return [
            f"signals of feeder {feeder} often lack a {value}, the last from "
            f"{self._missing_from[feeder, value]}"
            for (feeder, value), times in self._missing_s.items()
            if self._lately(times, now_s) >= MISSING_ALARM
        ]

    @staticmethod
    def _lately(times: deque[float], now_s: float) -> int:
        return sum(1 for at_s in times if now_s - at_s <= MISSING_WITHIN_S)


class AggregatorExposition(Exposition):
    """The text of the aggregator's `/metrics`: Prometheus format 0.0.4."""

    def __init__(
        self, counters: AggregatorCounters, report: Callable[[], AggregatorReport]
    ) -> None:
        super().__init__(lambda: _metrics(counters, report()))


def _metrics(c: AggregatorCounters, report: AggregatorReport) -> Iterable[Metric]:
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
        ("commits", "Commits of votes and decisions", c.commits),
        ("commit_seconds", "Time spent in them", c.commit_s),
        ("ledger_failures", "Calls that the ledger could not do", c.ledger_failures),
        ("wrong_passwords", "Requests with a wrong password", c.wrong_passwords),
        ("cpu_seconds", "CPU time, user and system", report.cpu_s),
    )
    refused_posts = {
        (account, status): count
        for account, counts in report.refused_by_account.items()
        for status, count in counts.items()
    }
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        ("signals", ("feeder", "outcome"), "Signals stored", c.signals),
        ("missing", ("feeder", "value"), "Signals without a value", c.missing),
        ("decisions", ("side", "outcome"), "Windows decided", c.decisions),
        ("forwards", ("side", "state"), "States that forwards came to", c.forwards),
        (
            "strength_texts",
            ("feeder",),
            "Signals stored whose strength is a text",
            c.strength_texts,
        ),
        (
            "contradictions",
            ("feeder", "value"),
            "Signals stored whose field and tag contradict each other",
            c.contradictions,
        ),
        ("refused", ("reason",), "Posts that were no signal", c.refused),
        (
            "refused_posts",
            ("account", "status"),
            "Posts refused, by the account that was named (? is any that is none)",
            refused_posts,
        ),
        ("requests", ("status",), "Requests by status", c.requests),
    )
    yield histogram(
        f"{_PREFIX}decision_to_send_seconds",
        "From a decision to the beginning of its POST, but of the meta bot's copies",
        c.close_to_send,
    )
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("start_time_seconds", "Wall time of the start", c.started_s),
        ("healthy", "1 if /health answers 200", int(report.healthy)),
        ("unhealthy_reasons", "Reasons that /health gives", len(report.reasons)),
        ("warnings", "Warnings that /health gives", len(report.warnings)),
        ("open_windows", "Windows that collect votes", report.open_windows),
        ("pending_signals", "Signals received and not yet committed", report.pending),
        (
            "limited_addresses",
            "Accounts or addresses refused after failures",
            report.limited_addresses,
        ),
        ("resident_memory_bytes", "Resident memory", report.rss_bytes),
    )
    lost = {side: len(words) for side, words in report.lost.items()}
    trouble = {side: int(bool(words)) for side, words in report.bot_trouble.items()}
    held = {(side, why): report.waiting[side] for side, (why, _) in report.waits_for.items() if why}
    expired = {
        (side, why): count
        for side, counts in report.expired.items()
        for why, count in counts.items()
    }
    yield from labelled(
        GaugeMetricFamily,
        _PREFIX,
        ("waiting_forwards", ("side",), "Forwards not sent yet", report.waiting),
        ("unsettled_forwards", ("side",), "Forwards of unknown outcome", report.unsettled),
        (
            "lost_forwards",
            ("side",),
            "Forwards that could not be resolved: look into the bot",
            lost,
        ),
        ("bot_trouble", ("side",), "1 while the bot does not answer well", trouble),
        ("held_forwards", ("side", "why"), "Forwards that wait for more than their turn", held),
    )
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        ("expired_forwards", ("side", "why"), "Forwards that expired while they waited", expired),
    )
    yield from _of_bots(report)
    build = ("build_info", ("version",), "Version", {__version__: 1})
    yield from labelled(GaugeMetricFamily, "marketfeed_", build)


def _of_bots(report: AggregatorReport) -> Iterable[Metric]:
    """Every counter is there with 0 from the start: increase() does not see the first event of another."""
    bots = report.bots
    refused = {(side, why): n for side, bot in bots.items() for why, n in bot.refusals.items()}
    outside = {side: bot.outside_whitelist for side, bot in bots.items()}
    expired = {side: bot.expired_with_room for side, bot in bots.items()}
    barred = {side: int(bot.barred) for side, bot in bots.items()}
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        ("refused_orders", ("side", "why"), "Orders that the bot refused", refused),
        ("outside_whitelist", ("side",), "Decisions of pairs that the bot does not list", outside),
        (
            "expired_with_room",
            ("side",),
            "Forwards that expired though the bot was not full",
            expired,
        ),
    )
    yield from labelled(
        GaugeMetricFamily,
        _PREFIX,
        ("bot_barred", ("side",), "1 while the bot answers 401, 403 or 404", barred),
        (
            "feeder_silent_seconds",
            ("feeder",),
            "Since its last signal; since the start, if it has never posted",
            report.silent_s,
        ),
    )
