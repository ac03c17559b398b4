"""What the `/metrics` of every service is made of: families of metrics, and their text for Prometheus."""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, TypeAlias

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from marketfeed.counters import Tally

Family: TypeAlias = type[CounterMetricFamily] | type[GaugeMetricFamily]


class Exposition:
    """The text of `/metrics`: Prometheus format 0.0.4. `collect` gives all metrics as they stand."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect

    def text(self) -> bytes:
        """Render all metrics now."""
        return generate_latest(self)


def plain(family: Family, prefix: str, *rows: tuple[str, str, float]) -> Iterable[Metric]:
    """Metrics without labels: name (behind `prefix`), text, value."""
    for name, text, value in rows:
        yield family(f"{prefix}{name}", text, value=value)


def labelled(
    family: Family, prefix: str, *rows: tuple[str, tuple[str, ...], str, Mapping[Any, float]]
) -> Iterable[Metric]:
    """Metrics with labels: name (behind `prefix`), labels, text, and the values by what the labels name."""
    for name, labels, text, values in rows:
        metric = family(f"{prefix}{name}", text, labels=labels)
        for key, value in values.items():
            metric.add_metric(key if isinstance(key, tuple) else (str(key),), value)
        yield metric


def histogram(name: str, text: str, tally: Tally) -> HistogramMetricFamily:
    """A histogram in seconds."""
    bounds = [*(str(bound / 1000) for bound in tally.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(tally.counts)), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=tally.sum_ms / 1000)
