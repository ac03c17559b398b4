"""What commands share: options, how their values are read, JSON, and serving until a signal."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
import uvloop
from rich.console import Console, RenderableType

from marketfeed import schema
from marketfeed.errors import MarketfeedError

if TYPE_CHECKING:
    from marketfeed.settings.model import Settings

log = logging.getLogger("marketfeed")

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


class Source(StrEnum):
    """Where candles come from."""

    archive = "archive"
    rest = "rest"


class FillSource(StrEnum):
    """Where history comes from."""

    auto = "auto"
    rest = "rest"
    archive = "archive"


def read_timeframes(text: str) -> tuple[str, ...]:
    """Read comma-separated timeframes, the shortest first. Raises typer.BadParameter."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in schema.TIMEFRAMES_MS:
            raise typer.BadParameter(
                f"timeframes: found {name!r}, expected some of {', '.join(schema.TIMEFRAMES_MS)}"
            )
    return tuple(sorted(set(names), key=schema.TIMEFRAMES_MS.__getitem__))


def read_names(text: str | None) -> tuple[str, ...] | None:
    """Read comma-separated names; None stays None."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def utc_ms(time: datetime | None) -> int | None:
    """A time without a zone, meant as UTC, as ms since the epoch."""
    return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1000)


def print_json(value: object) -> None:
    """Print one JSON object to standard output, indented."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def show_and_exit(
    value: object, parts: Callable[[], Iterable[RenderableType]], *, as_json: bool, good: bool
) -> NoReturn:
    """Print `value` as JSON, or `parts` of it for people, and exit: 0 if it is `good`, else 1."""
    if as_json:
        print_json(value)
    else:
        console = Console()
        for part in parts():
            console.print(part)
    raise typer.Exit(0 if good else 1)


def write_export(path: Path, content: bytes) -> None:
    """Write what --export asks for. Raises MarketfeedError when the file cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise MarketfeedError(f"--export {path}: {error.strerror or error}") from error


def settings_of(config: Path | None) -> "Settings":
    """The settings, as `load_settings` finds them. Raises SettingsError."""
    from marketfeed.settings.load import load_settings  # noqa: PLC0415 - not for `--help`

    return load_settings(config)


def run_until_signal(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a service; SIGTERM and Ctrl-C set the event that it gets. Exit 1 when it dies.

    Raises MarketfeedError when it has ended for reasons that are known, of whichever of its tasks.
    """

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
        if (known := _known(error)) is not None:
            raise known from None
        log.critical("died error=%r", str(error), exc_info=error)
        raise typer.Exit(1) from error


def _known(error: BaseException) -> MarketfeedError | None:
    """What tasks have died of, in one sentence; None if any has died of what nobody foresaw."""
    if isinstance(error, MarketfeedError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [_known(inner) for inner in error.exceptions]
    known = [inner for inner in found if inner is not None]
    if len(known) < len(found):
        return None
    texts = list(dict.fromkeys(str(inner) for inner in known))
    return known[0] if len(texts) == 1 else MarketfeedError("; ".join(texts))
