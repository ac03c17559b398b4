"""What `/status` of the bots' records shows, and `/health` and `/metrics` with it."""

import msgspec

from marketfeed.influxdb.ship_report import ShipReport


class BotReport(msgspec.Struct, frozen=True):
    """The records of one bot. `total` is how many closed trades it says it has; None: it has not said.

    `recorded` are by where they are from: the bot's database, one that it had before, imported points.
    `lacking` are closed trades that were counted and not met, `refused` those that cannot be recorded.
    """

    trouble: str
    total: int | None
    recorded: dict[str, int]
    lacking: int
    refused: dict[str, str]
    struck: int
    databases: int
    looks: int
    behind_ms: int
    no_stop_on_exchange: bool


class BotsReport(msgspec.Struct, frozen=True):
    """The report of the bots' records. `shipping` is by bucket, empty without InfluxDB."""

    version: str
    healthy: bool
    reasons: list[str]
    uptime_s: float
    bots: dict[str, BotReport]
    shipping: dict[str, ShipReport]
    gone_points: int
    """Points that are to go from a bucket yet."""
    erased: int
    rss_bytes: int
    cpu_s: float

    def health(self) -> dict[str, object]:
        """What `/health` says to everybody."""
        return {"state": "well" if self.healthy else "not well", "healthy": self.healthy}
