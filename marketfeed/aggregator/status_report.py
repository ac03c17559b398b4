"""What `/status` of an aggregator shows, and `/health` and `/metrics` with it."""

import msgspec

from marketfeed.influxdb.ship_report import ShipReport


class AggregatorReport(msgspec.Struct, frozen=True):
    """The aggregator's report. Counts of forwards are by side, `strength_texts` by feeder.

    `waits_for` is what keeps back those that are `waiting`, in a word and in words, empty when nothing does;
    `expired` counts those that expired while they waited, by that word.
    `bot_trouble` is what is wrong with the bot of a side, empty when nothing is; `limited_addresses` counts
    accounts and addresses that are refused after failures.
    """

    version: str
    healthy: bool
    reasons: list[str]
    uptime_s: float
    url: str
    open_windows: int
    pending: int
    commits: int
    ledger_schema: str
    """Which schema version the ledger has, and what that means for others."""
    signals: dict[str, int]
    strength_texts: dict[str, int]
    refused: dict[str, int]
    decisions: dict[str, int]
    forwards: dict[str, int]
    waiting: dict[str, int]
    waits_for: dict[str, tuple[str, str]]
    expired: dict[str, dict[str, int]]
    unsettled: dict[str, int]
    lost: dict[str, list[str]]
    bot_trouble: dict[str, str]
    limited_addresses: int
    shipping: ShipReport | None
    rss_bytes: int
    cpu_s: float

    def health(self) -> dict[str, object]:
        """What `/health` says to everybody."""
        return {"state": "well" if self.healthy else "not well", "healthy": self.healthy}
