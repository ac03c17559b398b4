"""Tables and progress bars: how the commands' results look to people. Colours only on a terminal."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from marketfeed.aggregator.events import Event
from marketfeed.aggregator.mean import confidence_text
from marketfeed.binance.rest_queue import RestReport
from marketfeed.collector.status_report import JournalReport, StatusReport
from marketfeed.commands.finding import Finding
from marketfeed.commands.pairs import Dropped, PairChoices
from marketfeed.commands.rejected_frames import FrameText
from marketfeed.commands.render_journal import of_journal
from marketfeed.gaps.healer import HealReport
from marketfeed.history.backfill import HistoryReport
from marketfeed.history.background import HistoryState
from marketfeed.history.funding import SettledRatesReport
from marketfeed.history.quotes import QuotesReport
from marketfeed.influxdb.reconcile import CompareReport
from marketfeed.influxdb.ship_report import ShipReport
from marketfeed.records import RefusedLine
from marketfeed.storage.backup import BackupReport
from marketfeed.storage.database import Kind
from marketfeed.storage.versions import Conversion, about_version


@contextlib.contextmanager
def stages(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar on standard error; yields the function that takes stage and fraction."""
    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description:<31}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    # Where nobody watches it would leave an empty line.
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("starting", total=1.0)

        def report_progress(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        yield report_progress


def backup_text(report: BackupReport) -> str:
    """What was copied, in a line."""
    return (
        f"{report.path}: {report.bytes / 1e6:,.1f} MB, schema version {report.schema_version}, "
        f"{'checked' if report.checked else 'not checked whole (--check)'}, {report.seconds:.1f} s"
    )


def conversion_text(kind: Kind, done: Conversion) -> str:
    """What became of a file's schema version, in a line."""
    what = "was so already" if done.before == done.after else f"was {done.before}"
    return f"{done.path}: {about_version(kind, done.after)} ({what}, {done.seconds:.2f} s)"


_STYLES = {"good": "green", "warning": "yellow", "bad": "bold red"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """What `check` found, one line a finding."""
    table = Table(show_edge=False)
    for name in ("what", "verdict", "found"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(finding.subject, verdict, Text(finding.text))
    return table


REJECTED_SHOWN = 50
FRAME_SHOWN = 200
"""Characters of a frame that a table shows."""


def rejected_table(frames: Sequence[FrameText]) -> RenderableType:
    """Frames that could not be used, the newest last, each cut; how many there are of each reason."""
    if not frames:
        return Text("no frame is kept that could not be used", style="green")
    reasons = Counter(item.reason.partition(":")[0] for item in frames)
    table = Table(
        title=f"{len(frames):,} rejected frames, the newest {REJECTED_SHOWN} shown",
        caption=_counts(reasons),
    )
    for name in ("received at", "reason", "frame"):
        table.add_column(name, overflow="fold")
    for item in frames[-REJECTED_SHOWN:]:
        more = "…" if len(item.frame) > FRAME_SHOWN else ""
        frame = _printable(item.frame[:FRAME_SHOWN]) + more
        table.add_row(_time(item.received_ms), Text(_printable(item.reason)), Text(frame))
    return table


def _printable(text: str) -> str:
    """The text without what would move a terminal's cursor or colour it: that is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


REFUSED_SHOWN = 50


def refused_table(refused: Sequence[RefusedLine], gone: int) -> RenderableType:
    """Lines that InfluxDB refused, the newest last; so many more are `gone`."""
    pushed_out = (
        f"{gone:,} more were too many to keep: "
        "`marketfeed setup --ship-again` sends them when the cause is mended"
    )
    if not refused:
        return Text(pushed_out, style="red") if gone else Text("no line was refused", style="green")
    table = Table(
        title=f"{len(refused):,} refused lines, the newest {REFUSED_SHOWN} shown",
        caption=pushed_out if gone else None,
    )
    for name in ("refused at", "answer", "line"):
        table.add_column(name, overflow="fold")
    for item in refused[-REFUSED_SHOWN:]:
        table.add_row(_time(item.refused_ms), Text(item.answer), Text(item.line))
    return table


def pairs_table(found: PairChoices) -> RenderableType:
    """Which pairs are to be collected, and what became of them."""
    chosen = sum(item.chosen for item in found.pairs)
    table = Table(title=f"exchange.pairs {found.setting}: {chosen:,} pairs to be collected")
    for name in ("pair", "collected since", "state"):
        table.add_column(name, overflow="fold")
    for item in found.pairs:
        since = "not yet" if item.since_ms is None else _time(item.since_ms)
        if item.missing_since_ms is not None:
            state = f"not in exchangeInfo since {_time(item.missing_since_ms)}"
        elif item.dropped or not item.chosen:
            state = "dropped"
        else:
            state = "" if item.ended_ms is None else f"ended {_time(item.ended_ms)}"
        table.add_row(item.pair, since, state)
    return table


def dropped_text(done: Dropped) -> Text:
    """What became of a pair that was dropped, in a line."""
    who = (
        f"{done.collector} lets go of it at its next look, within minutes"
        if done.collector
        else "the next start of the collector goes without it"
    )
    return Text(f"{done.pair} is dropped, {done.left:,} pairs are left: {who}")


def status_tables(report: StatusReport) -> list[RenderableType]:
    """What `status` shows of a running collector."""
    if report.reasons:
        headline = Text("NOT WELL: " + "; ".join(report.reasons), style="bold red")
    else:
        headline = Text(report.state, style="bold green")
    warnings = [Text(f"warning: {text}", style="yellow") for text in report.warnings]
    facts = Table(show_header=False, box=None)
    mark_age = report.mark_price_age_s
    for name, value in (
        ("version", report.version),
        ("running for", f"{report.uptime_s:,.0f} s"),
        ("exchange time", _time(report.exchange_time_ms)),
        ("its clock ahead by", f"{report.clock_offset_ms:+,.0f} ms"),
        ("pairs, streams", f"{report.pairs:,}, {report.streams:,}"),
        ("pairs ready", f"{report.ready_pairs:,}: the newest 499 candles of all timeframes"),
        ("left out", ", ".join(report.refused_pairs) or "none"),
        *((("halted", _halted(report.halted)),) if report.halted else ()),
        ("frames", f"{report.frames:,} ({report.frames_per_s:,.0f}/s)"),
        ("rejected", _counts(report.rejects)),
        ("silent series", _counts(report.overdue)),
        ("missing candles", _missing(report)),
        ("gaps", _healing(report.healing)),
        ("settled funding", _settled(report.settled)),
        ("oldest mark price", "not all there yet" if mark_age is None else f"{mark_age:.1f} s"),
        ("journal", f"{report.journal.path} ({report.journal.bytes_used:,} bytes)"),
        ("its -wal", _wal(report.journal)),
        ("", report.journal.schema),
        ("waiting for a commit", f"{report.journal.pending:,}"),
        ("commits, failed", f"{report.journal.commits:,}, {report.journal.commit_failures:,}"),
        ("given up", _counts(report.journal.records_given_up)),
        *of_journal(report.journal),
        ("rejected frames kept", f"{report.journal.rejected_frames:,}"),
        ("shipping", _shipping(report.shipping)),
        *([] if report.comparing is None else [("bucket", _comparing(report.comparing))]),
        ("REST", _rest(report.rest)),
        ("history", _history(report.history)),
        ("audit", _audit(report.history)),
        ("quote volumes", _quote_volumes(report.history)),
        ("mark candles", _mark_candles(report.history)),
        ("refused lines", f"{report.journal.refused_lines:,}"),
        ("memory, CPU", f"{report.rss_bytes / 1e6:.0f} MB, {report.cpu_s:.0f} s"),
    ):
        facts.add_row(name, value)
    candles = Table(title="Closed candles")
    for name in ("timeframe", "newest opened at", "pairs that have it", "stored since the start"):
        candles.add_column(name, justify="right")
    for item in report.timeframes:
        candles.add_row(
            item.timeframe,
            "none yet" if item.newest_open_time_ms is None else _time(item.newest_open_time_ms),
            f"{item.pairs_with_newest} of {item.pairs}",
            f"{item.candles:,}",
        )
    connections = Table(title="Connections")
    for name in ("name", "state", "streams", "opened", "frames", "last frame", "last error"):
        connections.add_column(name, overflow="fold")
    for connection in report.connections:
        age_s = connection.last_frame_age_s
        connections.add_row(
            connection.name,
            Text(connection.state, style="green" if connection.state == "open" else "bold red"),
            str(connection.streams),
            str(connection.opened),
            f"{connection.frames:,}",
            "none yet" if age_s is None else f"{age_s:.1f} s ago",
            Text(connection.last_error),
        )
    return [headline, *warnings, facts, candles, connections]


def _wal(journal: JournalReport) -> str:
    held = f", held by {', '.join(journal.wal_held_by)}" if journal.wal_held_by else ""
    waits = f"; {journal.retention_waits}" if journal.retention_waits else ""
    return f"{journal.wal_bytes:,} bytes{held}{waits}"


_EVENT_STYLES = {
    "decided": "bold green",
    "sent": "cyan",
    "answered": "green",
    "found": "green",
    "skipped": "yellow",
    "received": "dim",
    "refused": "yellow",
    "expired": "bold red",
    "unknown": "bold red",
    "lost": "bold red",
}
_EVENT_WIDTHS = (23, 9, 8, 20, 5, 6, 4)


def show_flow(events: Sequence[Event], *, title: bool = False) -> None:
    """Print what went through the aggregator, a line an event, in fixed columns: more may follow."""
    console = Console(soft_wrap=True, highlight=False)

    def line(*cells: str) -> str:
        *fixed, text = cells
        widths = zip(fixed, _EVENT_WIDTHS, strict=True)
        return "  ".join(cell.ljust(width) for cell, width in widths) + "  " + text

    if title:
        console.print(
            Text(line("time (UTC)", "what", "window", "pair", "side", "who", "conf", "")),
            style="bold",
        )
    for event in events:
        at = datetime.fromtimestamp(event.time_ms / 1000, UTC)
        confidence = "" if event.confidence is None else confidence_text(event.confidence)
        text = line(
            f"{at:%Y-%m-%d %H:%M:%S}.{event.time_ms % 1000:03d}",
            event.what,
            str(event.window or ""),
            event.pair,
            event.side,
            event.who,
            confidence,
            event.text,
        )
        console.print(Text(text, style=_EVENT_STYLES.get(event.what, "")))


def _shipping(report: ShipReport | None) -> str:
    if report is None:
        return "no InfluxDB: the journal is the store"
    trouble = f", {report.trouble} for {report.trouble_for_s:.0f} s" if report.trouble else ""
    return f"{report.state}, {report.lines:,} lines, {report.unshipped:,} rows to go{trouble}"


def _comparing(report: CompareReport) -> str:
    why = f" ({report.why})" if report.why else ""
    return (
        f"{report.state}{why}, since the start {report.tiles:,} tiles compared, {report.wrong:,} wrong, "
        f"{report.lacking:,} rows lost and sent again, {report.rounds:,} rounds"
    )


def _history(state: HistoryState | None) -> str:
    if state is None:
        return "not begun"
    history = state.history
    if history is None:
        return "not kept (history.days: 0)"
    return (
        f"{history.state}, {history.days} days, pairs {history.pairs_done} of {history.pairs}, "
        f"{history.candles_left:,} candles left{_to_go(history)}"
    )


def _audit(state: HistoryState | None) -> str:
    if state is None:
        return "not begun"
    audit = state.audit
    return (
        f"since the start {audit.audited:,} candles compared, {audit.missing:,} missing, "
        f"{audit.different:,} different, {audit.mended:,} mended"
    )


def _quote_volumes(state: HistoryState | None) -> str:
    if state is None:
        return "not begun"
    quotes = state.quote_volumes
    if quotes.state == "off":
        return "not kept: the journal is of an older version (marketfeed upgrade)"
    return (
        f"{quotes.state}, {quotes.candles_left:,} candles to look at, {quotes.asked:,} asked for again, "
        f"{quotes.filled:,} filled{_to_go(quotes)}"
    )


def _mark_candles(state: HistoryState | None) -> str:
    if state is None:
        return "not begun"
    marks = state.mark_candles
    if marks is None:
        return "not kept: the journal is of an older version (marketfeed upgrade)"
    return f"{marks.state}, {marks.days} days, {marks.candles_left:,} candles left{_to_go(marks)}"


def _to_go(report: HistoryReport | QuotesReport) -> str:
    trouble = f", {report.trouble}" if report.trouble else ""
    return trouble if report.left_s is None else f", about {report.left_s:,.0f} s to go{trouble}"


def _rest(report: RestReport) -> str:
    stopped = f", STOPPED for {report.stopped_s:.0f} s more" if report.stopped_s else ""
    rows = {name: count for name, count in report.odd_rows.items() if count}
    odd = f", odd rows left out: {_counts(rows)}" if rows else ""
    return (
        f"weight {report.weight_used:,} of {report.weight_limit:,} this minute, "
        f"{report.waiting:,} waiting{stopped}{odd}"
    )


def _healing(report: HealReport | None) -> str:
    if report is None:
        return "not started"
    rechecks = f", {report.rechecks:,} series to be compared" if report.rechecks else ""
    trouble = f"; REST: {report.trouble}" if report.trouble else ""
    return f"{_counts(report.open_gaps | report.ended)}{rechecks}{trouble}"


def _missing(report: StatusReport) -> str:
    parts = [f"{report.missing_candles:,}"]
    if report.missing_of_ended:
        parts.append(f"of pairs halted or ended {report.missing_of_ended:,}")
    if report.absent_candles:
        parts.append(f"not to be had {report.absent_candles:,}")
    if report.perhaps_halted:
        parts.append(f"{report.perhaps_halted} may be halted")
    return ", ".join(parts)


def _halted(halted: Mapping[str, str]) -> str:
    return ", ".join(f"{pair} ({status or 'no status'})" for pair, status in halted.items())


def _settled(report: SettledRatesReport | None) -> str:
    if report is None:
        return "not started"
    history = f", history of {report.history_pairs:,} pairs to go" if report.history_pairs else ""
    trouble = f"; {report.trouble}" if report.trouble else ""
    return f"{report.rates:,} fetched since the start, {report.awaited:,} awaited{history}{trouble}"


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
