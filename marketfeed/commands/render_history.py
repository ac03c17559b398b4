"""How filling and auditing look to people: progress bars and tables."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from marketfeed.binance.rest_queue import RestReport
from marketfeed.history.audit import AuditProgress, AuditReport, SeriesAudit
from marketfeed.history.backfill import HistoryReport

SERIES_SHOWN: Final = 40
DIFFERENCES_SHOWN: Final = 20


@contextlib.contextmanager
def filling(*, quiet: bool) -> Iterator[Callable[[HistoryReport, RestReport], None]]:
    """Show how history is filled: pairs, candles, weight used, time left. On standard error."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task("starting", total=1.0, text="")

        def report_progress(report: HistoryReport, rest: RestReport) -> None:
            done = report.candles - report.candles_left
            left = "" if report.left_s is None else f" · {_duration(report.left_s)} left"
            trouble = f" · {report.trouble}" if report.trouble else ""
            progress.update(
                task,
                description=report.state,
                total=report.candles or 1,
                completed=done if report.candles else float(report.complete),
                text=f"pairs {report.pairs_done}/{report.pairs} · candles {done:,}/{report.candles:,}"
                f" · weight {rest.weight_used:,}/{rest.weight_limit:,} a minute{left}{trouble}",
            )

        yield report_progress


@contextlib.contextmanager
def auditing(*, quiet: bool) -> Iterator[Callable[[AuditProgress], None]]:
    """Show how far an audit is. On standard error."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task("counting", total=1.0, text="")

        def report_progress(state: AuditProgress) -> None:
            progress.update(
                task,
                description="comparing" if state.pieces else "counting",
                total=state.pieces or 1,
                completed=state.pieces_done,
                text=f"candles {state.compared:,} · missing or different {state.wrong:,}",
            )

        yield report_progress


def _progress(*, quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    console = Console(stderr=True, quiet=quiet)
    # Where nobody watches it would leave an empty line.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def history_table(report: HistoryReport, by: str) -> RenderableType:
    """What came of filling."""
    table = Table(show_header=False, box=None)
    for name, value in (
        ("history", Text(report.state, style="green" if report.complete else "bold red")),
        ("filled by", by),
        ("pairs done", f"{report.pairs_done} of {report.pairs}"),
        ("candles stored", f"{report.stored:,}"),
        ("the exchange has none of", f"{report.absent:,}"),
        ("left", f"{report.candles_left:,}"),
        ("archive files read", f"{report.files:,}"),
        ("refused, not there", f"{report.files_refused:,}, {report.files_absent:,}"),
        ("trouble", report.trouble or "none"),
    ):
        table.add_row(name, value)
    return table


def audit_tables(report: AuditReport) -> list[RenderableType]:
    """Completeness per pair and timeframe; of many series the totals and the bad ones only."""
    title = f"{_time(report.since_ms)} to {_time(report.until_ms)}, compared with {report.source}"
    table = Table(title=title + (" (a sample)" if report.sampled else ""))
    for name in ("pair", "timeframe", "expected", "stored", "missing", "compared", "different"):
        table.add_column(name, justify="left" if name in ("pair", "timeframe") else "right")
    bad = [row for row in report.series if not row.good]
    shown = report.series if len(report.series) <= SERIES_SHOWN else bad[:SERIES_SHOWN]
    for row in shown:
        _add_row(table, row.pair, row)
    table.add_section()
    for timeframe in dict.fromkeys(row.timeframe for row in report.series):
        rows = [row for row in report.series if row.timeframe == timeframe]
        _add_row(table, f"{len(rows)} pairs", _total(timeframe, rows))
    parts: list[RenderableType] = [table]
    if len(bad) > len(shown):
        parts.append(Text(f"and {len(bad) - len(shown)} more with something wrong", style="red"))
    parts += [Text(text, style="red") for text in report.differences[:DIFFERENCES_SHOWN]]
    parts += [Text(text, style="yellow") for text in report.errors[:DIFFERENCES_SHOWN]]
    # Rounded down: 100.000 % is shown of nothing less.
    percent = int(report.percent * 1000) / 1000
    verdict = f"{percent:.3f} %: {report.missing:,} missing, {report.different:,} different"
    if report.repaired:
        verdict += f", {report.repaired:,} repaired"
    if report.lacking:
        verdict += f"; {report.lacking:,} lack taker_buy_quote_volume, {report.filled:,} filled"
    parts.append(Text(verdict, style="bold green" if report.good else "bold red"))
    return parts


def _total(timeframe: str, rows: Sequence[SeriesAudit]) -> SeriesAudit:
    return SeriesAudit(
        "",
        timeframe,
        sum(row.expected for row in rows),
        sum(row.stored for row in rows),
        sum(row.missing for row in rows),
        sum(row.compared for row in rows),
        sum(row.different for row in rows),
    )


def _add_row(table: Table, name: str, row: SeriesAudit) -> None:
    table.add_row(
        name,
        row.timeframe,
        f"{row.expected:,}",
        f"{row.stored:,}",
        _alarming(row.missing),
        f"{row.compared:,}",
        _alarming(row.different),
    )


def _alarming(count: int) -> Text:
    return Text(f"{count:,}", style="green" if count == 0 else "bold red")


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
