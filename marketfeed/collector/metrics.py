"""What Prometheus sees of a collector. Names end in their unit."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from marketfeed import __version__
from marketfeed.binance.rest_queue import RestReport
from marketfeed.counters import Counters, Tally, cpu_s, rss_bytes
from marketfeed.history.background import HistoryState
from marketfeed.influxdb.shipper import ShipReport
from marketfeed.records import GapState


class Gauges:
    """What is read at a scrape: connections, pending records, journal, clock, age of the data."""

    def __init__(
        self,
        *,
        reasons: int,
        tasks: int,
        connections: dict[str, int],
        streams: int,
        pairs: int,
        pending: int,
        journal_bytes: int,
        dead_letters: int,
        shipping: ShipReport | None,
        rest: RestReport,
        history: HistoryState | None,
        clock_offset_ms: float,
        overdue: dict[str, int],
        missing_candles: int,
        open_gaps: dict[str, int],
        oldest_hole_s: float,
        settling: int,
        mark_price_age_s: dict[str, float],
        newest_close_age_s: dict[str, float],
    ) -> None:
        self.reasons = reasons
        self.tasks = tasks
        self.connections = connections
        self.streams = streams
        self.pairs = pairs
        self.pending = pending
        self.journal_bytes = journal_bytes
        self.dead_letters = dead_letters
        self.shipping = shipping
        self.rest = rest
        self.history = history
        self.clock_offset_ms = clock_offset_ms
        self.overdue = overdue
        self.missing_candles = missing_candles
        self.open_gaps = open_gaps
        self.oldest_hole_s = oldest_hole_s
        self.settling = settling
        self.mark_price_age_s = mark_price_age_s
        self.newest_close_age_s = newest_close_age_s


class _Exporter:
    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._counters = counters
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._collect_counters()
        yield from self._collect_gauges()

    def _collect_counters(self) -> Iterable[Metric]:
        c = self._counters
        for name, text, value in (
            ("frames", "Frames received", c.frames),
            ("subscribe_answers", "Answers to SUBSCRIBE and the like", c.answers),
            ("subscribe_refusals", "Answers that were errors", c.refused_requests),
            ("resubscribed", "Silent streams asked for again", c.resubscribed),
            ("commits", "Journal commits", c.commits),
            ("commit_failures", "Journal commits that failed", c.commit_failures),
            ("commit_seconds", "Time spent in journal commits", c.commit_s),
            ("rechecked_candles", "Candles compared with REST after a reconnect", c.rechecked),
            ("rechecked_different", "Those of them that differed", c.rechecked_different),
            ("rows_changed", "Journal rows new or changed", c.rows_changed),
            ("cpu_seconds", "CPU time, user and system", cpu_s()),
        ):
            yield CounterMetricFamily(f"marketfeed_{name}", text, value=value)
        for name, label, text, counts in (
            (
                "connection_events",
                "state",
                "Times a connection entered a state",
                c.connection_events,
            ),
            ("rollovers", "outcome", "Generations of connections that were to follow", c.rollovers),
            ("records", "kind", "Records decoded", c.records),
            # All states from the start: in a series that begins with its first event, Prometheus sees no
            # increase.
            (
                "gaps",
                "state",
                "Gaps of candles that entered a state",
                dict.fromkeys(get_args(GapState), 0) | c.gaps,
            ),
            ("rejects", "reason", "Frames or rows that gave no record", c.rejects),
            (
                "records_given_up",
                "kind",
                "Records lost while the disk was full",
                c.records_given_up,
            ),
        ):
            family = CounterMetricFamily(f"marketfeed_{name}", text, labels=[label])
            for key, count in counts.items():
                family.add_metric([key], count)
            yield family
        yield _histogram(
            "marketfeed_close_to_commit_seconds",
            "Exchange seconds from a candle's close to its commit, as its stream brought it",
            c.close_lag,
        )
        yield _histogram(
            "marketfeed_close_to_healed_seconds",
            "Exchange seconds from a missing candle's close until it was fetched",
            c.healed_lag,
        )

    def _collect_gauges(self) -> Iterable[Metric]:
        g = self._gauges()
        for name, text, value in (
            ("start_time_seconds", "Wall time of the start", self._counters.started_s),
            ("healthy", "1 if /health answers 200", int(g.reasons == 0)),
            ("unhealthy_reasons", "Reasons that /health gives", g.reasons),
            ("tasks", "Tasks of the event loop", g.tasks),
            ("streams", "Streams subscribed", g.streams),
            ("pairs", "Pairs collected", g.pairs),
            ("pending_records", "Records received and not yet committed", g.pending),
            ("journal_bytes", "Bytes of the journal in use", g.journal_bytes),
            ("dead_letters", "Frames kept aside", g.dead_letters),
            ("missing_candles", "Candles due that have not come", g.missing_candles),
            ("oldest_hole_seconds", "For how long the oldest open gap is known", g.oldest_hole_s),
            ("awaited_settlements", "Funding rates settled and not had yet", g.settling),
            ("clock_offset_seconds", "Exchange clock ahead of this host", g.clock_offset_ms / 1000),
            ("resident_memory_bytes", "Resident memory", rss_bytes()),
        ):
            yield GaugeMetricFamily(f"marketfeed_{name}", text, value=value)
        for name, label, text, values in (
            ("connections", "state", "Connections by state", g.connections),
            ("overdue_series", "channel", "Series silent past their deadline", g.overdue),
            ("open_gaps", "state", "Gaps of candles that are open", g.open_gaps),
            ("mark_price_age_seconds", "pair", "Age of the newest mark price", g.mark_price_age_s),
            (
                "newest_close_age_seconds",
                "timeframe",
                "Age of the close of the timeframe's oldest newest candle",
                g.newest_close_age_s,
            ),
        ):
            family = GaugeMetricFamily(f"marketfeed_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            yield family
        yield from _shipping(g.shipping)
        yield from _rest(g.rest)
        yield from _history(g.history)
        build = GaugeMetricFamily("marketfeed_build_info", "Version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _histogram(name: str, text: str, tally: Tally) -> HistogramMetricFamily:
    bounds = [*(str(bound / 1000) for bound in tally.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(tally.counts)), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=tally.sum_ms / 1000)


def _shipping(report: ShipReport | None) -> Iterable[Metric]:
    if report is None:
        return
    for name, text, value in (
        ("shipped_lines", "Lines that InfluxDB has acknowledged", report.lines),
        ("refused_lines", "Lines that InfluxDB refused and were put aside", report.refused),
        ("ship_requests", "Write requests to InfluxDB", report.batches),
    ):
        yield CounterMetricFamily(f"marketfeed_{name}", text, value=value)
    for name, text, amount in (
        ("unshipped_rows", "Rows that InfluxDB has not acknowledged", report.unshipped),
        ("ship_trouble_seconds", "For how long shipping has been failing", report.trouble_for_s),
        ("ship_parked", "1 while rights, address or settings are wrong", report.state == "parked"),
    ):
        yield GaugeMetricFamily(f"marketfeed_{name}", text, value=float(amount))


def _rest(report: RestReport) -> Iterable[Metric]:
    for name, label, text, counts in (
        ("rest_requests", "endpoint", "REST requests sent", report.requests),
        ("rest_refusals", "status", "REST answers with an error status", report.refused),
        ("rest_odd_rows", "endpoint", "Rows of REST answers that were left out", report.odd_rows),
    ):
        family = CounterMetricFamily(f"marketfeed_{name}", text, labels=[label])
        for key, count in counts.items():
            family.add_metric([key], count)
        yield family
    for name, text, value in (
        ("rest_weight_used", "REST weight used in this minute", report.weight_used),
        ("rest_weight_limit", "REST weight that may be used a minute", report.weight_limit),
        ("rest_funding_used", "Funding requests of the last 5 minutes", report.funding_used),
        ("rest_waiting", "REST requests that wait for their turn", report.waiting),
        ("rest_stopped_seconds", "For how long nothing may be asked any more", report.stopped_s),
    ):
        yield GaugeMetricFamily(f"marketfeed_{name}", text, value=float(value))


def _history(state: HistoryState | None) -> Iterable[Metric]:
    if state is None:
        return
    history, audit = state.history, state.audit
    for name, text, count in (
        ("audited_candles", "Stored candles compared with the exchange's", audit.audited),
        ("audit_missing", "Candles that the audit found missing", audit.missing),
        ("audit_different", "Candles that the audit found different", audit.different),
        ("audit_mended", "Candles that the audit has stored or replaced", audit.mended),
        ("audit_errors", "Looks of the audit that could not be had", audit.errors),
    ):
        yield CounterMetricFamily(f"marketfeed_{name}", text, value=count)
    gauges: list[tuple[str, str, float]] = [
        ("audit_mismatch_rate", "Share of audited candles that were wrong", audit.mismatch_rate),
        ("audit_unmended", "Stored candles known to differ", len(audit.unmended)),
    ]
    if history is not None:
        gauges += [
            ("history_candles_left", "Candles of history still to fill", history.candles_left),
            ("history_pairs_done", "Pairs whose history is filled", history.pairs_done),
            ("history_complete", "1 when the last pass left nothing", float(history.complete)),
        ]
    for name, text, value in gauges:
        yield GaugeMetricFamily(f"marketfeed_{name}", text, value=value)


class Exposition:
    """The text of `/metrics`: Prometheus format 0.0.4."""

    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Exporter(counters, gauges))

    def text(self) -> bytes:
        """Render all metrics now."""
        return generate_latest(self._registry)
