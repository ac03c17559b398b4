"""How a demo's outcome looks to people: tables, and its verdict."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from marketfeed.commands.demo_report import DemoReport, DemoResult, SeriesResult


def demo_tables(result: DemoResult) -> list[RenderableType]:
    """The demonstration's outcome: per timeframe, in total, and a sample as the reader gives it."""
    report = result.report
    table = Table(title="Stored candles against the exchange's own")
    for name in ("timeframe", "pairs", "exchange", "stored", "missing", "wrong"):
        table.add_column(name, justify="left" if name == "timeframe" else "right")
    for timeframe in report.timeframes:
        _add_series_row(table, timeframe, [s for s in result.series if s.timeframe == timeframe])
    table.add_section()
    _add_series_row(table, "all", result.series)
    facts = Table(show_header=False, box=None)
    latency = report.close_to_reader_ms
    for name, value in (
        ("frames received", f"{report.frames:,} ({report.seconds:g} s at speed {report.speed:g})"),
        ("mark prices", f"{report.mark_prices:,}"),
        ("funding rates", f"{report.funding_rates:,}"),
        (
            "closing frame sent → readable",
            f"p50 {latency.p50} ms, p99 {latency.p99} ms, max {latency.max} ms",
        ),
        ("collector's memory", f"{report.rss_mb} MB"),
    ):
        facts.add_row(name, value)
    if report.influxdb is not None:
        influx = report.influxdb
        facts.add_row(
            "InfluxDB",
            f"{influx.rows:,} rows of the journal, {influx.missing} missing or different, "
            f"{influx.extra} extra; {influx.unequal_frames} of {influx.frames} frames unequal",
        )
    notes = [Text(note, style="yellow") for note in report.notes]
    return [table, facts, Text(f"\n{result.sample}\n"), *notes, _demo_verdict(report)]


def _demo_verdict(report: DemoReport) -> Text:
    if report.good:
        return Text(
            "missing 0, wrong 0: every candle is there with its numbers.", style="bold green"
        )
    lines = [f"missing {report.missing}, wrong {report.wrong}", *report.differences]
    if report.influxdb is not None and not report.influxdb.good:
        lines.append("InfluxDB does not hold what the journal has")
    return Text("\n".join(lines), style="bold red")


def _add_series_row(table: Table, name: str, series: Sequence[SeriesResult]) -> None:
    missing, wrong = sum(s.missing for s in series), sum(s.wrong for s in series)
    table.add_row(
        name,
        f"{len({s.pair for s in series})}",
        f"{sum(s.expected for s in series):,}",
        f"{sum(s.stored for s in series):,}",
        _alarming(missing),
        _alarming(wrong),
    )


def _alarming(count: int) -> Text:
    return Text(f"{count:,}", style="green" if count == 0 else "bold red")
