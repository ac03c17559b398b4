"""The commands about history: what they take, and what they print."""

from datetime import datetime
from typing import Annotated

import typer
import uvloop

from marketfeed.commands.options import (
    ConfigOption,
    FillSource,
    JsonOption,
    Source,
    read_names,
    read_timeframes,
    settings_of,
    show_and_exit,
    utc_ms,
)


def backfill(
    config: ConfigOption = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1, max=3650, help="How far back; history.days without.", show_default=False
        ),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Only these, comma-separated.", show_default=False)
    ] = None,
    source: Annotated[
        FillSource,
        typer.Option(
            "--from",
            help="auto: as exchange.archive says; rest: REST alone; archive: the public archive first, "
            "whose terms forbid its use for live trading.",
        ),
    ] = FillSource.auto,
    as_json: JsonOption = False,
) -> None:
    """Fill the journal's history: every candle that is missing, the newest first. Exit 1 if any is left.

    It may be stopped at any point and started again. A running collector does this by itself: then its
    progress is shown until it is done.

    Example: marketfeed backfill --days 90 --pairs BTC/USDT:USDT,ETH/USDT:USDT
    """
    from marketfeed.commands.history import run_backfill
    from marketfeed.commands.render_history import filling, history_table

    settings = settings_of(config)
    wanted = settings.history.days if days is None else days
    if not wanted:
        raise typer.BadParameter("history.days is 0: give --days")
    with filling(quiet=as_json) as report_progress:
        outcome = uvloop.run(
            run_backfill(settings, wanted, read_names(pairs), source.value, report_progress)
        )
    show_and_exit(
        outcome,
        lambda: [history_table(outcome.history, outcome.by)],
        as_json=as_json,
        good=outcome.good,
    )


def audit(
    config: ConfigOption = None,
    days: Annotated[
        float | None,
        typer.Option(min=0.001, help="How far back; history.days without.", show_default=False),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Instead of --days (UTC).", show_default=False)
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Now without (UTC).", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Only these, comma-separated.", show_default=False)
    ] = None,
    timeframes: Annotated[
        str | None, typer.Option(help="Only these, comma-separated.", show_default=False)
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all/--sample", help="Compare all candles, or as many as --weight buys."),
    ] = False,
    weight: Annotated[
        int,
        typer.Option(
            min=1, max=2400, help="REST weight: of the sample, and at most used a minute."
        ),
    ] = 600,
    source: Annotated[
        Source,
        typer.Option(
            "--from",
            help="Whom to compare with: archive: whole days from the public archive, whose terms forbid "
            "its use for live trading.",
        ),
    ] = Source.rest,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Put the exchange's candles in place of wrong and missing ones."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare stored candles with the exchange's, value by value; exit 1 if any is missing or different.

    What is missing is counted over the whole range, values are compared of a random sample, or of --all.
    The collector may run meanwhile, but for --repair.
    """
    from marketfeed.commands.history import AuditRequest, run_audit
    from marketfeed.commands.render_history import audit_tables, auditing

    if days is not None and since is not None:
        raise typer.BadParameter("--days or --since, not both")
    settings = settings_of(config)
    with auditing(quiet=as_json) as report_progress:
        report = uvloop.run(
            run_audit(
                settings,
                AuditRequest(
                    days=days,
                    since_ms=utc_ms(since),
                    until_ms=utc_ms(until),
                    pairs=read_names(pairs),
                    timeframes=None if timeframes is None else read_timeframes(timeframes),
                    sample_weight=None if everything or source is Source.archive else weight,
                    weight_per_minute=weight,
                    source=source.value,
                    repair=repair,
                ),
                report_progress,
            )
        )
    show_and_exit(report, lambda: audit_tables(report), as_json=as_json, good=report.good)
