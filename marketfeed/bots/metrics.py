"""How Prometheus sees the bots' records."""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marketfeed.bots.status_report import BotsReport
from marketfeed.service.metrics import Exposition, labelled, plain

_PREFIX: Final = "marketfeed_bots_"


class BotsExposition(Exposition):
    """The text of `/metrics` of the bots' records: Prometheus format 0.0.4."""

    def __init__(self, report: Callable[[], BotsReport]) -> None:
        super().__init__(lambda: _metrics(report()))


def _metrics(report: BotsReport) -> Iterable[Metric]:
    bots = report.bots
    yield from plain(
        GaugeMetricFamily,
        _PREFIX,
        ("healthy", "1 if /health answers 200", int(report.healthy)),
        ("unhealthy_reasons", "Reasons that /health gives", len(report.reasons)),
        ("gone_points", "Points that are to go from a bucket yet", report.gone_points),
        ("resident_memory_bytes", "Resident memory", report.rss_bytes),
    )
    yield from plain(
        CounterMetricFamily,
        _PREFIX,
        ("erased_points", "Points taken out of buckets", report.erased),
        ("cpu_seconds", "CPU time, user and system", report.cpu_s),
    )
    recorded = {
        (name, origin): count
        for name, bot in bots.items()
        for origin, count in bot.recorded.items()
    }
    yield from labelled(
        GaugeMetricFamily,
        _PREFIX,
        ("trades", ("bot", "from"), "Closed trades in the books", recorded),
        (
            "trouble",
            ("bot",),
            "1 while the bot does not answer",
            {name: int(bool(bot.trouble)) for name, bot in bots.items()},
        ),
        (
            "lacking_trades",
            ("bot",),
            "Closed trades that the bot counts and does not list",
            {name: bot.lacking for name, bot in bots.items()},
        ),
        (
            "refused_trades",
            ("bot",),
            "Closed trades that cannot be recorded",
            {name: len(bot.refused) for name, bot in bots.items()},
        ),
        (
            "unshipped_trades",
            ("bucket",),
            "Trades that InfluxDB has not acknowledged",
            {bucket: ship.unshipped for bucket, ship in report.shipping.items()},
        ),
    )
    yield from labelled(
        CounterMetricFamily,
        _PREFIX,
        ("looks", ("bot",), "Times the bot was asked", {n: bot.looks for n, bot in bots.items()}),
        (
            "struck_trades",
            ("bot",),
            "Trades struck that the bot has no more",
            {name: bot.struck for name, bot in bots.items()},
        ),
    )
