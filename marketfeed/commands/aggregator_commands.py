"""The commands of the aggregator: what they take, and what they print."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from marketfeed.commands.options import ConfigOption, print_json, run_until_signal, settings_of
from marketfeed.service.logs import log_to_stderr
from marketfeed.service.systemd import extend_start


def aggregate(config: ConfigOption = None) -> None:
    """Collect the feeders' signals, vote, and forward to the bots, until stopped.

    Example: marketfeed aggregate --config /etc/marketfeed/config.yaml
    """
    from marketfeed.aggregator.aggregator import Aggregator

    log_to_stderr()
    aggregator = Aggregator(settings_of(config))
    # A ledger of an older schema version is migrated.
    extend_start()
    run_until_signal(aggregator.run)


def hash_password() -> None:
    """Print the hash of a password for aggregator.accounts. It is asked for, or read from a pipe.

    Example: pass show feeders | marketfeed hash-password
    """
    from marketfeed.aggregator import auth

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise typer.BadParameter("the password is empty")
    typer.echo(auth.hash_password(password))


def signals(
    config: ConfigOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, until Ctrl-C, with what comes.")
    ] = False,
    newest: Annotated[
        int, typer.Option(min=1, help="How many votes, or refused posts, to go back.")
    ] = 200,
    refused: Annotated[
        bool, typer.Option("--refused", help="The posts that were refused alone: whose, and why.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --follow one object a line.")
    ] = False,
) -> None:
    """Show what went through the aggregator: received, voted, refused, decided, sent, answered."""
    from marketfeed.aggregator.events import Flow
    from marketfeed.commands.render import show_flow

    path = settings_of(config).aggregator.ledger.path
    if refused:
        _show_refused(path, follow=follow, newest=newest, as_json=as_json)
        return
    flow = Flow(path)
    events = flow.read(newest)
    if not follow:
        if as_json:
            print_json({"events": events})
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


def _show_refused(path: Path, *, follow: bool, newest: int, as_json: bool) -> None:
    from marketfeed.aggregator.events import RefusedFlow
    from marketfeed.commands.render_refused import refused_plain, show_refused

    flow = RefusedFlow(path)
    posts = flow.read(newest)
    if not follow:
        if as_json:
            print_json({"refused": [refused_plain(post) for post in posts]})
        else:
            show_refused(posts, title=True)
        return
    with contextlib.suppress(KeyboardInterrupt):
        show_refused([], title=not as_json)
        while True:
            if as_json:
                for post in posts:
                    typer.echo(msgspec.json.encode(refused_plain(post)).decode())
            else:
                show_refused(posts)
            time.sleep(0.5)
            posts = flow.read()
