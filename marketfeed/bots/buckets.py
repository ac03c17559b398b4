"""Which bots' trades go into which bucket."""

from collections.abc import Mapping

from marketfeed.errors import SettingsError
from marketfeed.settings.bots import FleetBot
from marketfeed.settings.model import BotsSettings, InfluxSettings


def require_fleet(settings: BotsSettings) -> None:
    """Raise SettingsError when there is no bot to record."""
    if not settings.fleet:
        raise SettingsError(
            "a mistake in the settings:\n  bots.fleet: expected at least one bot, such as "
            "{BOT1: {url: http://bot1.example:8080, password_file: …}}; found none"
        )


def measurements_by_bucket(fleet: Mapping[str, FleetBot]) -> dict[str, dict[str, str]]:
    """Bucket -> the measurement of each bot whose trades go there."""
    found: dict[str, dict[str, str]] = {}
    for name, bot in fleet.items():
        found.setdefault(bot.bucket_of(name), {})[name] = bot.measurement
    return found


def influx_of(settings: InfluxSettings, bucket: str) -> InfluxSettings:
    """The same server with another bucket."""
    return settings.model_copy(update={"bucket": bucket})
