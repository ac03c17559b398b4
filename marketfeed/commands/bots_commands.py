"""The commands of the bots' records: what they take, and what they print."""

import contextlib
import time
from datetime import datetime
from typing import Annotated

import msgspec
import typer
import uvloop

from marketfeed.commands.options import (
    ConfigOption,
    JsonOption,
    print_json,
    run_until_signal,
    settings_of,
    show_and_exit,
    utc_ms,
)
from marketfeed.errors import JournalError
from marketfeed.service.logs import log_to_stderr
from marketfeed.service.systemd import extend_start

bots = typer.Typer(
    name="bots",
    no_args_is_help=True,
    help="Record every closed trade of the executor bots, for good; see and verify the records.",
)
FOLLOW_S = 0.5


@bots.command()
def run(config: ConfigOption = None) -> None:
    """Record the closed trades of the bots of bots.fleet, until stopped.

    The bots are asked over their REST API and need no change. Without InfluxDB the books are the store.

    Example: marketfeed bots run --config /etc/marketfeed/config.yaml
    """
    from marketfeed.bots.service import BotsService

    log_to_stderr()
    service = BotsService(settings_of(config))
    extend_start()
    run_until_signal(service.run)


@bots.command()
def trades(
    config: ConfigOption = None,
    bot: Annotated[
        str | None,
        typer.Option("--bot", help="The trades of this bot alone.", show_default=False),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", help="Those that closed since then (UTC).", show_default=False),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, until Ctrl-C, with what comes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --follow one object a line.")
    ] = False,
) -> None:
    """Show the recorded trades, the oldest close first.

    Profits are fractions of the position, without leverage.

    Example: marketfeed bots trades --bot BOT1 --since 2026-11-30 --config /etc/marketfeed/config.yaml
    """
    from marketfeed.bots.books_reading import read_trades
    from marketfeed.commands.render_bots import show_trades, trade_plain

    settings = settings_of(config).bots
    if bot is not None and bot not in settings.fleet:
        known = ", ".join(settings.fleet) or "none"
        raise typer.BadParameter(f"--bot: found {bot!r}, expected one of bots.fleet ({known})")
    path, since_ms = settings.books.path, utc_ms(since) or 0
    kept, seq = read_trades(path, bot, since_ms)
    if not follow:
        if as_json:
            print_json({"trades": [trade_plain(one) for one in kept]})
        else:
            show_trades(kept, title=True)
        return
    with contextlib.suppress(KeyboardInterrupt):
        show_trades([], title=not as_json)
        while True:
            if as_json:
                for one in kept:
                    typer.echo(msgspec.json.encode(trade_plain(one)).decode())
            else:
                show_trades(kept)
            time.sleep(FOLLOW_S)
            kept, seq = read_trades(path, bot, since_ms, seq)


@bots.command()
def verify(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare books, bots' databases and InfluxDB, trade by trade. Exit 1 if anything differs.

    The service may run meanwhile. A trade that closed in between shows as a difference: ask again then.
    Imported trades, and those of a database that a bot had before, are counted apart.

    Example: marketfeed bots verify --config /etc/marketfeed/config.yaml
    """
    import aiohttp

    from marketfeed.bots.buckets import require_fleet
    from marketfeed.bots.verify import Verified
    from marketfeed.bots.verify import verify as compare
    from marketfeed.commands.render_bots import verified_parts

    settings = settings_of(config)
    require_fleet(settings.bots)

    async def compared() -> list[Verified]:
        async with aiohttp.ClientSession() as session:
            return await compare(settings, session)

    found = uvloop.run(compared())
    equal = all(one.equal for one in found)
    show_and_exit(
        {"equal": equal, "bots": found},
        lambda: verified_parts(found),
        as_json=as_json,
        good=equal,
    )


@bots.command("import")
def import_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Copy trades that others wrote into InfluxDB, and that no bot's database has, into the books.

    `marketfeed bots run` has to be stopped, and to have read the bots before. A point has a partner when a
    trade of its pair and side closed within 5 s of it. What cannot be a trade is counted by the reason.

    Example: marketfeed bots import --config /etc/marketfeed/config.yaml
    """
    import aiohttp

    from marketfeed.bots.buckets import require_fleet
    from marketfeed.bots.importing import ImportDone, import_foreign
    from marketfeed.commands.render_bots import import_parts

    settings = settings_of(config)
    require_fleet(settings.bots)
    if settings.influxdb.url is None:
        raise JournalError("influxdb.url is null: there is nothing to import from")

    async def done() -> list[ImportDone]:
        async with aiohttp.ClientSession() as session:
            return await import_foreign(settings, session)

    found = uvloop.run(done())
    show_and_exit({"bots": found}, lambda: import_parts(found), as_json=as_json, good=True)
