"""The command line. Exit 0: good; 1: the thing checked is not good; 2: wrong use or wrong settings."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
import uvloop
from rich.console import Console

from marketfeed import __version__, schema
from marketfeed.errors import MarketfeedError, SettingsError
from marketfeed.service.logs import is_journald, log_to_stderr

if TYPE_CHECKING:
    from marketfeed.commands.finding import Finding

log = logging.getLogger("marketfeed")

app = typer.Typer(
    name="marketfeed",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=(
        "One collector of Binance USD-M futures market data for a whole fleet of bots.\n\n"
        "Start with **marketfeed demo**: it needs nothing else. Then write a config.yaml, look at it "
        "with **marketfeed check**, and start **marketfeed run**."
    ),
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="MARKETFEED_CONFIG",
        help="The settings file. Without one, defaults and MARKETFEED_… variables alone hold.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


class _Source(StrEnum):
    """Where candles come from."""

    archive = "archive"
    rest = "rest"


class _FillSource(StrEnum):
    """Where history comes from."""

    auto = "auto"
    rest = "rest"
    archive = "archive"


def _version(show: bool) -> None:
    if show:
        typer.echo(f"marketfeed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """See the help of the Typer object above."""


@app.command()
def run(config: ConfigOption = None) -> None:
    """Collect until told to stop (SIGTERM or Ctrl-C); nothing received is lost by that.

    Example: marketfeed run --config /etc/marketfeed/config.yaml
    """
    from marketfeed.collector.collector import Collector
    from marketfeed.settings.load import load_settings

    log_to_stderr()
    settings = load_settings(config)
    _run_until_signal(Collector(settings).run)


@app.command()
def demo(
    pairs: Annotated[int, typer.Option(min=1, max=600, help="How many pairs.")] = 164,
    speed: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Exchange seconds per second.")
    ] = 60.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long to stream.")] = 30.0,
    timeframes: Annotated[str, typer.Option(help="Comma-separated.")] = "1m,3m",
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep journal and settings in this directory.", show_default=False),
    ] = None,
    influx: Annotated[
        str | None,
        typer.Option(
            help="Ship into this InfluxDB, too, and compare it; api, org, bucket and token come from "
            "MARKETFEED_INFLUXDB__… variables. Its bucket should be an empty one.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the whole line at work, with nothing else at hand.

    Starts a simulated Binance with many pairs, the real collector against it, and reads everything back;
    ends with a comparison of every stored candle with what the exchange published. Exit 1 if one is
    missing or wrong.
    """
    from marketfeed.commands.demo import run_demo
    from marketfeed.commands.demo_report import DemoOptions
    from marketfeed.commands.render import demo_tables, stages

    options = DemoOptions(pairs, _timeframes(timeframes), seconds, speed, keep, influx)
    with stages(quiet=as_json) as progress:
        result = uvloop.run(run_demo(options, progress))
    if as_json:
        _print_json(result.report)
    else:
        console = Console()
        for part in demo_tables(result):
            console.print(part)
    raise typer.Exit(0 if result.report.good else 1)


@app.command()
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
    as_json: JsonOption = False,
) -> None:
    """Tell what is wrong with settings, journal and exchange. Changes nothing; exit 1 if anything is bad.

    A configured pair that the exchange does not trade is a warning: the others are collected. With
    --live 120 all streams must bring data, kline streams as their pairs trade: an ACK proves nothing.
    """
    from marketfeed.commands.check import check as look
    from marketfeed.commands.check_aggregator import check_aggregator, is_configured
    from marketfeed.commands.check_influxdb import check_influx
    from marketfeed.commands.check_streams import prove_streams
    from marketfeed.commands.render import findings_table, stages
    from marketfeed.settings.load import load_settings

    settings = load_settings(config)
    with stages(quiet=as_json) as progress:
        proving = None
        if live is not None:
            proving = partial(prove_streams, settings.exchange, seconds=live, progress=progress)
        store = None if settings.influxdb.url is None else check_influx
        aggregator = check_aggregator if is_configured(settings.aggregator) else None
        findings = uvloop.run(look(settings, proving, store, aggregator))
    if as_json:
        _print_json({"findings": findings})
    else:
        Console().print(findings_table(findings))
    raise typer.Exit(1 if any(finding.verdict == "bad" for finding in findings) else 0)


@app.command()
def backup(
    destination: Annotated[
        Path, typer.Argument(help="A file that is not there yet; its directory is.")
    ],
    config: ConfigOption = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="The aggregator's ledger instead of the journal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the journal (or the ledger) into one file, as it stands now; its writer may run meanwhile.

    The copy is checked before it gets its name. Another user than the collector's has to be in its group.
    To restore it: stop the collector, move journal.db, journal.db-wal and journal.db-shm away together, put
    the copy in the place of journal.db with the collector's user and group, and start again.

    Example: marketfeed backup --config /etc/marketfeed/config.yaml /var/backups/journal-$(date +%F).db
    """
    from marketfeed.aggregator.ledger import KIND as LEDGER
    from marketfeed.commands.render import backup_text, stages
    from marketfeed.journal.journal import KIND as JOURNAL
    from marketfeed.settings.load import load_settings
    from marketfeed.storage.backup import back_up

    settings = load_settings(config)
    path = settings.aggregator.ledger.path if ledger else settings.journal.path
    with stages(quiet=as_json) as progress:
        done = back_up(LEDGER if ledger else JOURNAL, path, destination, progress)
    if as_json:
        _print_json(done)
    else:
        typer.echo(backup_text(done))


@app.command()
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

    from marketfeed.commands.render import findings_table
    from marketfeed.commands.setup_influxdb import setup_influx
    from marketfeed.settings.load import load_settings

    settings = load_settings(config)
    if settings.influxdb.url is None:
        raise typer.BadParameter("influxdb.url is null: there is no InfluxDB to set up")

    async def set_up() -> "list[Finding]":
        async with aiohttp.ClientSession() as session:
            return await setup_influx(settings, session, ship_again=ship_again)

    done = uvloop.run(set_up())
    if as_json:
        _print_json({"findings": done})
    else:
        Console().print(findings_table(done))
    raise typer.Exit(1 if any(item.verdict == "bad" for item in done) else 0)


@app.command()
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
    from marketfeed.settings.load import load_settings

    settings = load_settings(config)
    if resend:
        uvloop.run(resend_refused(settings))
    refused = read_refused(settings.journal.path)
    gone = lines_gone(settings.journal.path)
    if export is not None:
        export.write_text("".join(f"{item.line}\n" for item in refused), encoding="utf-8")
    if as_json:
        _print_json({"refused": refused, "gone": gone})
    else:
        Console().print(refused_table(refused, gone))
    raise typer.Exit(1 if refused or gone else 0)


@app.command()
def status(
    config: ConfigOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="The collector's status address, instead of the settings' one. The settings' token is "
            "told there only if --config is given too."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the running collector says of itself. Exit 1 if it is not well, or not there."""
    from marketfeed.commands.render import status_tables
    from marketfeed.commands.status_client import fetch_status, status_url
    from marketfeed.settings.load import load_settings
    from marketfeed.settings.tokens import Token

    token = None
    if url is None or config is not None:
        settings = load_settings(config).status
        token = Token(settings.token, settings.token_file)
        url = url or status_url(settings.host, settings.port)
    report = uvloop.run(fetch_status(url, token))
    if as_json:
        _print_json(report)
    else:
        console = Console()
        for part in status_tables(report):
            console.print(part)
    raise typer.Exit(0 if report.healthy else 1)


@app.command()
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
        _FillSource,
        typer.Option(
            "--from",
            help="auto: as exchange.archive says; rest: REST alone; archive: the public archive first, "
            "whose terms forbid its use for live trading.",
        ),
    ] = _FillSource.auto,
    as_json: JsonOption = False,
) -> None:
    """Fill the journal's history: every candle that is missing, the newest first. Exit 1 if any is left.

    It may be stopped at any point and started again. A running collector does this by itself: then its
    progress is shown until it is done.

    Example: marketfeed backfill --days 90 --pairs BTC/USDT:USDT,ETH/USDT:USDT
    """
    from marketfeed.commands.history import run_backfill
    from marketfeed.commands.render_history import filling, history_table
    from marketfeed.settings.load import load_settings

    settings = load_settings(config)
    wanted = settings.history.days if days is None else days
    if not wanted:
        raise typer.BadParameter("history.days is 0: say how many --days")
    with filling(quiet=as_json) as tell:
        outcome = uvloop.run(run_backfill(settings, wanted, _names(pairs), source.value, tell))
    if as_json:
        _print_json(outcome)
    else:
        Console().print(history_table(outcome.history, outcome.by))
    raise typer.Exit(0 if outcome.good else 1)


@app.command()
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
        _Source,
        typer.Option(
            "--from",
            help="Whom to compare with: archive: whole days from the public archive, whose terms forbid "
            "its use for live trading.",
        ),
    ] = _Source.rest,
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
    from marketfeed.commands.history import run_audit
    from marketfeed.commands.render_history import audit_tables, auditing
    from marketfeed.settings.load import load_settings

    if days is not None and since is not None:
        raise typer.BadParameter("--days or --since, not both")
    settings = load_settings(config)
    with auditing(quiet=as_json) as tell:
        report = uvloop.run(
            run_audit(
                settings,
                days,
                _utc_ms(since),
                _utc_ms(until),
                _names(pairs),
                None if timeframes is None else _timeframes(timeframes),
                None if everything or source is _Source.archive else weight,
                weight,
                source.value,
                repair,
                tell,
            )
        )
    if as_json:
        _print_json(report)
    else:
        console = Console()
        for part in audit_tables(report):
            console.print(part)
    raise typer.Exit(0 if report.good else 1)


@app.command()
def aggregate(config: ConfigOption = None) -> None:
    """Collect the feeders' signals, vote, and forward to the bots, until told to stop.

    Example: marketfeed aggregate --config /etc/marketfeed/config.yaml
    """
    from marketfeed.aggregator.aggregator import Aggregator
    from marketfeed.settings.load import load_settings

    log_to_stderr()
    _run_until_signal(Aggregator(load_settings(config)).run)


@app.command("hash-password")
def hash_a_password() -> None:
    """Print the hash of a password for aggregator.accounts. It is asked for, or read from a pipe.

    Example: pass show feeders | marketfeed hash-password
    """
    from marketfeed.aggregator.auth import hash_password

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise typer.BadParameter("the password is empty")
    typer.echo(hash_password(password))


@app.command()
def signals(
    config: ConfigOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, until Ctrl-C, with what comes.")
    ] = False,
    newest: Annotated[int, typer.Option(min=1, help="How many votes to go back.")] = 200,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --follow one object a line.")
    ] = False,
) -> None:
    """Show what went through the aggregator: received, voted, decided, sent, answered."""
    from marketfeed.aggregator.events import Flow
    from marketfeed.commands.render import show_flow
    from marketfeed.settings.load import load_settings

    flow = Flow(load_settings(config).aggregator.ledger.path)
    events = flow.read(newest)
    if not follow:
        if as_json:
            _print_json({"events": events})
        else:
            show_flow(events, title=True)
        return
    with contextlib.suppress(KeyboardInterrupt):
        show_flow([], title=not as_json)
        while True:
            if as_json:
                for event in events:
                    typer.echo(msgspec.json.encode(event).decode())
            else:
                show_flow(events)
            time.sleep(0.5)
            events = flow.read()


@app.command()
def simulate(
    pairs: Annotated[int, typer.Option(min=1, max=600, help="How many pairs.")] = 164,
    speed: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Exchange seconds per second.")
    ] = 1.0,
    timeframes: Annotated[str, typer.Option(help="Comma-separated.")] = "1m,3m,5m,15m,1h",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 9443,
    seed: Annotated[int, typer.Option(help="Another seed, other markets.")] = 1,
    tls: Annotated[bool, typer.Option("--tls", help="wss and https, self-signed.")] = False,
    replay: Annotated[
        Path | None,
        typer.Option(help="Replay a recorded file instead of making markets.", show_default=False),
    ] = None,
) -> None:
    """Run a Binance USD-M futures exchange on loopback until Ctrl-C.

    Point a collector at it: exchange.ws_url and exchange.rest_url as printed, and exchange.archive_url with
    exchange.archive: true.
    """
    from marketfeed.simulator.server import Simulator, SimulatorOptions

    log_to_stderr()
    options = SimulatorOptions(
        host=host,
        port=port,
        pairs=pairs,
        speed=speed,
        timeframes=_timeframes(timeframes),
        seed=seed,
        tls=tls,
        replay=replay,
    )

    async def serve(stop: asyncio.Event) -> None:
        async with Simulator(options) as simulator:
            log.info(
                "simulator listening ws_url=%s rest_url=%s archive_url=%s",
                simulator.ws_url,
                simulator.rest_url,
                simulator.rest_url,
            )
            await stop.wait()

    _run_until_signal(serve)


def main() -> NoReturn:
    """Run the command line; a known error is one line on standard error, never a traceback."""
    try:
        app()
    except SettingsError as error:
        _complain(str(error))
        sys.exit(2)
    except MarketfeedError as error:
        _complain(f"marketfeed: {error}")
        sys.exit(1)
    sys.exit(0)


def _complain(text: str) -> None:
    # For journald each line is a record of its own, with a priority.
    prefix = "<3>" if is_journald(sys.stderr, os.environ) else ""
    for line in text.splitlines():
        typer.echo(prefix + line, err=True)


def _timeframes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in schema.TIMEFRAMES_MS:
            raise typer.BadParameter(
                f"timeframes: found {name!r}, expected some of {', '.join(schema.TIMEFRAMES_MS)}"
            )
    return tuple(sorted(set(names), key=schema.TIMEFRAMES_MS.__getitem__))


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _utc_ms(time: datetime | None) -> int | None:
    return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1000)


def _print_json(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def _run_until_signal(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(stop)

    try:
        uvloop.run(with_signals())
    except MarketfeedError:
        raise
    except Exception as error:
        log.critical("died error=%r", str(error), exc_info=error)
        raise typer.Exit(1) from error
