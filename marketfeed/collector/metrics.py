"""What Prometheus sees of a collector. Names end in their unit."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from marketfeed import __version__
from marketfeed.binance.rest_queue import RestReport
from marketfeed.collector.status_report import StatusReport
from marketfeed.counters import CollectorCounters, cpu_s
from marketfeed.history.background import HistoryState
from marketfeed.influxdb.reconcile import CompareReport
from marketfeed.influxdb.ship_report import ShipReport
from marketfeed.records import GapState
from marketfeed.service.metrics import Exposition, histogram, labelled, plain

_PREFIX: Final = "marketfeed_"


class CollectorExposition(Exposition):
    """The text of the collector's `/metrics`: Prometheus format 0.0.4.

    `mark_price_ages_s` are by pair: in the report, they would be most of what the page gets each second.
    """

    def __init__(
        self,
        counters: CollectorCounters,
        report: Callable[[], StatusReport],
        mark_price_ages_s: Callable[[], Mapping[str, float]],
    ) -> None:
        super().__init__(
            lambda: (
                *_counted(counters),
                *_reported(report(), mark_price_ages_s(), counters.started_s),
            )
        )


def _counted(c: CollectorCounters) -> Iterable[Metric]:
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
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
    )
    # All states from the start: in a series that begins with its first event, Prometheus sees no increase.
    gaps = dict.fromkeys(get_args(GapState), 0) | c.gaps
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        (
            "connection_events",
            ("state",),
            "Times a connection entered a state",
            c.connection_events,
        ),
        ("rollovers", ("outcome",), "Generations of connections that were to follow", c.rollovers),
        ("records", ("kind",), "Records decoded", c.records),
        ("gaps", ("state",), "Gaps of candles that entered a state", gaps),
        ("rejects", ("reason",), "Frames or rows that gave no record", c.rejects),
        ("records_given_up", ("kind",), "Records lost while the disk was full", c.records_given_up),
    )
    yield histogram(
        "marketfeed_close_to_commit_seconds",
        "Exchange seconds from a candle's close to its commit, as its stream brought it",
        c.close_lag,
    )
    yield histogram(
        "marketfeed_close_to_healed_seconds",
        "Exchange seconds from a missing candle's close until it was fetched",
        c.healed_lag,
    )


def _reported(
    r: StatusReport, mark_price_ages_s: Mapping[str, float], started_s: float
) -> Iterable[Metric]:
    awaited = 0 if r.settled is None else r.settled.awaited
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("start_time_seconds", "Wall time of the start", started_s),
        ("healthy", "1 if /health answers 200", int(r.healthy)),
        ("filling", "1 while something is filled for the first time", int(r.state == "filling")),
        ("ready_pairs", "Pairs that have the newest 499 candles of all timeframes", r.ready_pairs),
        ("unhealthy_reasons", "Reasons that /health gives", len(r.reasons)),
        ("tasks", "Tasks of the event loop", r.tasks),
        ("streams", "Streams subscribed", r.streams),
        ("pairs", "Pairs collected", r.pairs),
        ("pending_records", "Records received and not yet committed", r.journal.pending),
        ("journal_bytes", "Bytes of the journal in use", r.journal.bytes_used),
        ("journal_wal_bytes", "Bytes of the journal's -wal", r.journal.wal_bytes),
        ("rejected_frames", "Frames that could not be used, kept", r.journal.rejected_frames),
        (
            "dead_letters",
            "Old name of marketfeed_rejected_frames, kept for one release",
            r.journal.dead_letters,
        ),
        ("missing_candles", "Candles due that have not come", r.missing_candles),
        (
            "missing_of_ended",
            "Candles that pairs lack which are halted or have ended",
            r.missing_of_ended,
        ),
        ("absent_candles", "Candles that the exchange does not have", r.absent_candles),
        (
            "oldest_hole_seconds",
            "For how long the oldest candle is missing that healing is to bring",
            r.oldest_hole_s,
        ),
        ("awaited_settlements", "Funding rates settled and not fetched yet", awaited),
        ("clock_offset_seconds", "Exchange clock ahead of this host", r.clock_offset_ms / 1000),
        ("resident_memory_bytes", "Resident memory", r.rss_bytes),
    )
    yield from labelled(
        GaugeMetricFamily,
        _PREFIX,
        (
            "connections",
            ("state",),
            "Connections by state",
            Counter(c.state for c in r.connections),
        ),
        (
            "overdue_series",
            ("channel",),
            "Series silent past their deadline, without those of pairs that have halted, or may have",
            Counter(r.overdue) - Counter(r.overdue_of_halted),
        ),
        (
            "open_gaps",
            ("state",),
            "Gaps of candles that are open",
            {} if r.healing is None else r.healing.open_gaps,
        ),
        ("mark_price_age_seconds", ("pair",), "Age of the newest mark price", mark_price_ages_s),
        (
            "newest_close_age_seconds",
            ("timeframe",),
            "Age of the close of the timeframe's oldest newest candle",
            {
                one.timeframe: one.oldest_close_age_s
                for one in r.timeframes
                if one.oldest_close_age_s is not None
            },
        ),
    )
    yield from _shipping(r.shipping)
    yield from _comparing(r.comparing)
    yield from _rest(r.rest)
    yield from _history(r.history)
    yield from labelled(
        GaugeMetricFamily, _PREFIX, ("build_info", ("version",), "Version", {__version__: 1})
    )


def _shipping(report: ShipReport | None) -> Iterable[Metric]:
    if report is None:
        return
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
        ("shipped_lines", "Lines that InfluxDB has acknowledged", report.lines),
        ("refused_lines", "Lines that InfluxDB refused and were put aside", report.refused),
        ("ship_requests", "Write requests to InfluxDB", report.batches),
    )
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("unshipped_rows", "Rows that InfluxDB has not acknowledged", report.unshipped),
        ("ship_trouble_seconds", "For how long shipping has been failing", report.trouble_for_s),
        ("held_shards", "Measurements and shards that InfluxDB refuses", report.held_shards),
        ("ship_parked", "1 while rights, address or settings are wrong", report.state == "parked"),
    )


def _comparing(report: CompareReport | None) -> Iterable[Metric]:
    if report is None:
        return
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
        ("compared_tiles", "Days and hours of series compared with the bucket's", report.tiles),
        ("wrong_tiles", "Those of them that lacked rows there, or held others", report.wrong),
        ("lost_rows", "Acknowledged rows that were missing in the bucket", report.lacking),
        (
            "mended_rows",
            "Rows sent again one by one, because the bucket lacked them",
            report.mended,
        ),
        ("mended_ranges", "Ranges sent again, because the bucket lacked many rows", report.ranges),
        (
            "bucket_emptied",
            "Times the bucket was found empty and all sent again",
            report.everything,
        ),
        ("compare_rounds", "Rounds of the comparison over all days", report.rounds),
    )
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("bucket_mismatch_rate", "Share of compared tiles that were wrong", report.mismatch_rate),
        ("bucket_left_tiles", "Tiles that differ by another collector's rows", report.left),
        ("compare_off", "1 while the bucket is not compared", report.state == "off"),
        ("compare_age_seconds", "Since the last hours were compared", report.last_look_ago_s),
    )


def _rest(report: RestReport) -> Iterable[Metric]:
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        ("rest_requests", ("endpoint",), "REST requests sent", report.requests),
        ("rest_refusals", ("status",), "REST answers with an error status", report.refused),
        (
            "rest_odd_rows",
            ("endpoint",),
            "Rows of REST answers that were left out",
            report.odd_rows,
        ),
    )
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("rest_weight_used", "REST weight used in this minute", report.weight_used),
        ("rest_weight_limit", "REST weight that may be used a minute", report.weight_limit),
        ("rest_funding_used", "Funding requests of the last 5 minutes", report.funding_used),
        ("rest_waiting", "REST requests that wait for their turn", report.waiting),
        ("rest_stopped_seconds", "For how long nothing may be asked any more", report.stopped_s),
    )


def _history(state: HistoryState | None) -> Iterable[Metric]:
    if state is None:
        return
    history, audit = state.history, state.audit
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
        ("audited_candles", "Stored candles compared with the exchange's", audit.audited),
        ("audit_missing", "Candles that the audit found missing", audit.missing),
        ("audit_different", "Candles that the audit found different", audit.different),
        ("audit_mended", "Candles that the audit has stored or replaced", audit.mended),
        ("audit_errors", "Looks of the audit that failed", audit.errors),
    )
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("audit_mismatch_rate", "Share of audited candles that were wrong", audit.mismatch_rate),
        ("audit_unmended", "Stored candles known to differ", len(audit.unmended)),
    )
    if history is not None:
        yield from plain(
            GaugeMetricFamily,
            _PREFIX,
            ("history_candles_left", "Candles of history still to fill", history.candles_left),
            ("history_pairs_done", "Pairs whose history is filled", history.pairs_done),
            ("history_complete", "1 when the last pass left nothing", history.complete),
        )
