"""The commands around a collector and its InfluxDB: what they take, and what they print."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvloop

from marketfeed.commands.finding import Finding
from marketfeed.commands.options import (
    ConfigOption,
    JsonOption,
    print_json,
    run_until_signal,
    settings_of,
    show_and_exit,
    write_export,
)
from marketfeed.service.logs import log_to_stderr


def run(
    config: ConfigOption = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Take the journal to the newest schema version first: see `upgrade`."
        ),
    ] = False,
) -> None:
    """Collect until stopped (SIGTERM or Ctrl-C); nothing received is lost by that.

    Example: marketfeed run --config /etc/marketfeed/config.yaml
    """
    from marketfeed.collector.collector import Collector
    from marketfeed.commands.upgrade import upgrade_at_start

    log_to_stderr()
    settings = settings_of(config)
    if upgrade:
        upgrade_at_start(settings.journal.path)
    run_until_signal(Collector(settings).run)


def upgrade(
    config: ConfigOption = None,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            help="Another schema version than the newest, to go back to an older marketfeed.",
            show_default=False,
        ),
    ] = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="The aggregator's ledger instead of the journal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take the journal (or the ledger) to the newest schema version, or back with --to.

    Its writer has to be stopped. A reader refuses a version that it does not know: first install this
    marketfeed for all readers, then for the collector, which goes on with the old version; then stop it,
    upgrade, and start it again. Readers stay open meanwhile. A kill leaves the old version, whole. The ledger
    is taken there by its aggregator.

    Example: marketfeed upgrade --config /etc/marketfeed/config.yaml
    """
    from marketfeed.commands.render import conversion_text
    from marketfeed.commands.upgrade import kind_and_path
    from marketfeed.storage.versions import change_version, versions

    kind, path = kind_and_path(settings_of(config), ledger=ledger)
    if to is not None and to not in versions(kind):
        possible = " or ".join(map(str, versions(kind)))
        raise typer.BadParameter(f"--to: found {to}, expected {possible} for the {kind.name}")
    done = change_version(kind, path, kind.version if to is None else to)
    if as_json:
        print_json(done)
    else:
        typer.echo(conversion_text(kind, done))


def check(
    config: ConfigOption = None,
    live: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Subscribe every stream for up to so many seconds, and require data of each.",
            show_default=False,
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Look over every page of the journal, too: minutes for a large one, and its -wal grows "
            "meanwhile if a collector runs.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Report what is wrong with settings, journal and exchange. Changes nothing; exit 1 if anything is bad.

    A configured pair that the exchange does not trade is a warning: the others are collected. With
    --live 120 all streams must bring data, kline streams as their pairs trade: an ACK proves nothing.
    """
    from marketfeed.commands.check import check as look
    from marketfeed.commands.check_aggregator import check_aggregator, is_configured
    from marketfeed.commands.check_bots import check_bots
    from marketfeed.commands.check_influxdb import check_influx
    from marketfeed.commands.check_streams import prove_streams
    from marketfeed.commands.render import stages

    settings = settings_of(config)
    with stages(quiet=as_json) as progress:
        prove = partial(prove_streams, settings.exchange, progress=progress)
        proving = None if live is None else partial(prove, seconds=live)
        store = None if settings.influxdb.url is None else check_influx
        aggregator = check_aggregator if is_configured(settings.aggregator) else None
        bots = check_bots if settings.bots.fleet else None
        findings = uvloop.run(look(settings, proving, store, aggregator, bots, whole=whole))
    _show_findings(findings, as_json=as_json)


def backup(
    destination: Annotated[
        Path, typer.Argument(help="A file that is not there yet; its directory is.")
    ],
    config: ConfigOption = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="The aggregator's ledger instead of the journal.")
    ] = False,
    compact: Annotated[
        bool,
        typer.Option(
            "--compact",
            help="Leave out what is free in the file. To shrink it: stop the collector first, then put the "
            "copy in its place.",
        ),
    ] = False,
    whole_check: Annotated[
        bool,
        typer.Option("--check", help="Check all of the copy, also of one above 256 MB (minutes)."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the journal (or the ledger) into one file, as it stands now; its writer may run meanwhile.

    A copy up to 256 MB is checked whole before it gets its name. Another user than the collector's has to be
    in its group.
    To restore it: stop the collector, move journal.db, journal.db-wal and journal.db-shm away together, put
    the copy in the place of journal.db with the collector's user and group, and start again.

    Example: marketfeed backup --config /etc/marketfeed/config.yaml /var/backups/journal-$(date +%F).db
    """
    from marketfeed.commands.render import backup_text, stages
    from marketfeed.commands.upgrade import kind_and_path
    from marketfeed.storage.backup import back_up

    kind, path = kind_and_path(settings_of(config), ledger=ledger)
    with stages(quiet=as_json) as progress:
        done = back_up(kind, path, destination, progress, compact=compact, check=whole_check)
    if as_json:
        print_json(done)
    else:
        typer.echo(backup_text(done))


def setup(
    config: ConfigOption = None,
    ship_again: Annotated[
        bool,
        typer.Option(
            "--ship-again",
            help="Have everything in journal and ledger shipped once more, as into a bucket that was "
            "emptied or restored. A running collector begins with it within seconds.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the InfluxDB bucket and its InfluxQL mapping where they are missing and the token may.

    A bucket that was missing is filled again from the journal's start.
    """
    import aiohttp

    from marketfeed.commands.check_bots import setup_bots
    from marketfeed.commands.setup_influxdb import setup_influx

    settings = settings_of(config)
    if settings.influxdb.url is None:
        raise typer.BadParameter("influxdb.url is null: there is no InfluxDB to set up")

    async def set_up() -> list[Finding]:
        async with aiohttp.ClientSession() as session:
            done = await setup_influx(settings, session, ship_again=ship_again)
            return done + await setup_bots(settings, session, ship_again=ship_again)

    done = uvloop.run(set_up())
    _show_findings(done, as_json=as_json)


def rejected_frames(
    config: ConfigOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write the frames to this file, whole, as JSON: one object a line.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the frames of the exchange that could not be used, each with the reason. Exit 1 if there are any.

    Such a frame costs only what it held: a candle is fetched by REST, the next mark price comes soon. A few
    of one moment ask for nothing. If more come: `not_json` is damage on the way, such as by a proxy; other
    reasons mostly mean that the exchange has changed its format: take the newest marketfeed, or report the
    frames (--export).

    The collector may run meanwhile. The newest 1,000 are kept, of each the first 4,096 bytes; the metric
    `marketfeed_rejects_total` counts all of them by reason.

    Example: marketfeed rejected-frames --config /etc/marketfeed/config.yaml --export frames.jsonl
    """
    import msgspec

    from marketfeed.commands.rejected_frames import read_rejected
    from marketfeed.commands.render import rejected_table

    frames = read_rejected(settings_of(config).journal.path)
    if export is not None:
        write_export(export, msgspec.json.Encoder().encode_lines(frames))
    show_and_exit(
        {"rejected_frames": frames},
        lambda: [rejected_table(frames)],
        as_json=as_json,
        good=not frames,
    )


def deadletter(
    config: ConfigOption = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the lines to this file, as line protocol.", show_default=False),
    ] = None,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send them again; what is taken is forgotten.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the lines that InfluxDB refused, each with its words; export or send them again.

    Exit 1 if there are any (after --resend: any left). The collector may run meanwhile. The newest 10,000 are
    kept: `setup --ship-again` sends those that are gone, once their cause is mended.
    """
    from marketfeed.commands.refused_lines import lines_gone, read_refused, resend_refused
    from marketfeed.commands.render import refused_table

    settings = settings_of(config)
    if resend:
        uvloop.run(resend_refused(settings))
    refused = read_refused(settings.journal.path)
    gone = lines_gone(settings.journal.path)
    if export is not None:
        write_export(export, "".join(f"{item.line}\n" for item in refused).encode())
    show_and_exit(
        {"refused": refused, "gone": gone},
        lambda: [refused_table(refused, gone)],
        as_json=as_json,
        good=not (refused or gone),
    )


def pairs(
    config: ConfigOption = None,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop",
            metavar="PAIR",
            help="Take this pair out of the kept choice, such as BTC/USDT:USDT.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which pairs are collected and since when, or drop one of them for good.

    With `pairs: {top: N}` the pairs are chosen once and kept. When one of them has left the exchange without
    notice, `status` warns of it: --drop takes it out of the choice. A running collector lets go of it at its
    next look, within minutes; without one, the next start does. What is stored of it stays, until retention
    takes it, and no other pair takes its place.

    Where exchange.pairs is a list, that list is what to change: --drop names its line, and exits with 2.

    Example: marketfeed pairs --config /etc/marketfeed/config.yaml --drop OLDCOIN/USDT:USDT
    """
    from marketfeed.commands.pairs import drop_pair, show_pairs
    from marketfeed.commands.render import dropped_text, pairs_table

    settings = settings_of(config)
    if drop is None:
        found = show_pairs(settings)
        show_and_exit(found, lambda: [pairs_table(found)], as_json=as_json, good=True)
    done = drop_pair(settings, config, drop)
    show_and_exit(done, lambda: [dropped_text(done)], as_json=as_json, good=True)


def status(
    config: ConfigOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="The collector's status address, instead of the settings' one. The settings' token is "
            "sent there only if --config is given too."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the running collector's report. Exit 1 if it is not well, or not there."""
    from marketfeed.commands.render import status_tables
    from marketfeed.commands.status_client import fetch_status, status_url
    from marketfeed.settings.secrets import SecretSource

    token = None
    if url is None or config is not None:
        settings = settings_of(config).status
        token = SecretSource(settings.token, settings.token_file)
        url = url or status_url(settings.host, settings.port)
    report = uvloop.run(fetch_status(url, token))
    show_and_exit(report, lambda: status_tables(report), as_json=as_json, good=report.healthy)


def _show_findings(findings: Sequence[Finding], *, as_json: bool) -> NoReturn:
    from marketfeed.commands.render import findings_table

    good = all(finding.verdict != "bad" for finding in findings)
    show_and_exit(
        {"findings": findings}, lambda: [findings_table(findings)], as_json=as_json, good=good
    )
