"""The command line. Exit 0: good; 1: the thing checked is not good; 2: wrong use or wrong settings."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from marketfeed import __version__
from marketfeed.commands.aggregator_commands import aggregate, hash_password, signals
from marketfeed.commands.bots_commands import bots
from marketfeed.commands.collector_commands import (
    backup,
    check,
    deadletter,
    pairs,
    rejected_frames,
    run,
    setup,
    status,
    upgrade,
)
from marketfeed.commands.history_commands import audit, backfill
from marketfeed.commands.simulator_commands import demo, simulate
from marketfeed.errors import MarketfeedError, SettingsError
from marketfeed.service.logs import is_journald

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


for command in (
    run,
    demo,
    check,
    backup,
    upgrade,
    setup,
    rejected_frames,
    deadletter,
    status,
    pairs,
    backfill,
    audit,
    aggregate,
    hash_password,
    signals,
    simulate,
):
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(bots)


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
