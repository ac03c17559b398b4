"""Loads the settings: file, environment and credential files, with all mistakes reported together."""

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marketfeed.errors import SettingsError
from marketfeed.settings import sources
from marketfeed.settings.mistakes import validate
from marketfeed.settings.model import ExchangeSettings, Settings
from marketfeed.settings.yaml import read_config

log = logging.getLogger(__name__)


def load_settings(
    path: Path | None,
    environ: Mapping[str, str] | None = None,
    secrets_dir: Path | None = None,
) -> Settings:
    """Load the settings from config.yaml at `path`, the environment and credential files.

    Without `path`, the file is the one that MARKETFEED_CONFIG names, or none. `environ` is this process's
    environment unless given. Credential files are looked for in `secrets_dir`, else where
    MARKETFEED_SECRETS_DIR says, else in systemd's CREDENTIALS_DIRECTORY.

    Raises SettingsError, whose text lists every mistake on a line of its own.
    """
    reading = _read(path, os.environ if environ is None else environ, secrets_dir)
    settings, mistakes = None, reading.mistakes
    if reading.complete:
        settings, wrong = validate(Settings, reading)
        mistakes += wrong
    if mistakes or settings is None:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "a mistake"
        raise SettingsError(f"{count} in the settings:\n" + "\n".join(f"  {m}" for m in mistakes))
    bots, ports = (
        settings.aggregator.bots,
        (settings.status, settings.aggregator.status, settings.bots.status),
    )
    files = [settings.influxdb.token_file]
    files += [bot.password_file for bot in (bots.long, bots.short, bots.meta)]
    files += [bot.password_file for bot in settings.bots.fleet.values()]
    for file in (*files, *(port.token_file for port in ports)):
        if file is not None and (mode := file.stat().st_mode) & stat.S_IROTH:
            what = "secret file is readable by everybody path=%s mode=%04o"
            log.warning(what, file, stat.S_IMODE(mode))
    exchange = settings.exchange
    if not exchange.archive and exchange.archive_url != ExchangeSettings().archive_url:
        log.warning(
            "exchange.archive_url is set, but exchange.archive is false: history comes from REST alone"
        )
    return settings


def origin_of(
    key: sources.KeyPath, path: Path | None, environ: Mapping[str, str] | None = None
) -> str:
    """Where a key was set, for people: a file and its line, or a variable; "" where it has its default.

    Otherwise as `load_settings`; mistakes are ignored.
    """
    reading = _read(path, os.environ if environ is None else environ, None)
    origin = reading.origins.get(key)
    return "" if origin is None else origin.text


def _read(
    path: Path | None, environ: Mapping[str, str], secrets_dir: Path | None
) -> sources.Reading:
    if path is None and environ.get(sources.CONFIG_VARIABLE):
        path = Path(environ[sources.CONFIG_VARIABLE])
    directory = environ.get(sources.SECRETS_DIR_VARIABLE) or environ.get("CREDENTIALS_DIRECTORY")
    if secrets_dir is None and directory:
        secrets_dir = Path(directory)

    # From the lowest precedence to the highest.
    reading = read_config(Settings, path) if path else sources.Reading()
    if secrets_dir:
        sources.read_credentials(Settings, secrets_dir, reading)
    sources.read_environment(Settings, environ, reading)
    return reading


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as nested plain values (text, int, list, dict, None), with `***` for every secret.

    Written as YAML and read again, it gives equal settings, but for the secrets.
    """
    return settings.model_dump(mode="json")


def variables() -> dict[str, str]:
    """Every key's path (`exchange.pairs`) and the environment variable that sets it."""
    return {sources.dotted(path): sources.variable(path) for path in sources.keys(Settings)}
