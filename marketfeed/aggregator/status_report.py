"""What `/status` of an aggregator shows, and `/health` and `/metrics` with it."""

import msgspec

from marketfeed.influxdb.ship_report import ShipReport


class BotReport(msgspec.Struct, frozen=True):
    """How a bot is by its own last answers; None: it has not said.

    `max_open_trades` is negative without a limit. `barred`: it answers 401, 403 or 404. `whitelist` is how
    many pairs are on it, `outside_whitelist` how many decisions were of other pairs, `outside_pairs` which
    within a day. `refusals` counts the orders that it refused, by why. `expired_with_room` are those that
    expired although it was not full.
    """

    state: str | None
    force_entry_enable: bool | None
    max_open_trades: float | None
    stake_currency: str | None
    trading_mode: str | None
    barred: bool
    whitelist: int | None
    outside_whitelist: int
    outside_pairs: list[str]
    refusals: dict[str, int]
    expired_with_room: int


class AggregatorReport(msgspec.Struct, frozen=True):
    """The aggregator's report. Counts of forwards are by side, `strength_texts` by feeder.

    `waits_for` is what keeps back those that are `waiting`, in a word and in words, empty when nothing does;
    `expired` counts those that expired while they waited, by that word.
    `bot_trouble` is what is wrong with the bot of a side, empty when nothing is; `limited_addresses` counts
    accounts and addresses that are refused after failures. `warnings` are the mistakes of senders, which are
    no reason not to be well; `refused_by_account` counts refused posts by account and status.
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
    contradictions: dict[str, int]
    """Signals whose field and tag contradict each other, by feeder and value."""
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
    bots: dict[str, BotReport] = {}
    """By side."""
    silent_s: dict[str, float] = {}
    """By feeder: since its last signal, as far as that is known."""
    warnings: list[str] = []
    """What asks for a hand, though the aggregator is well."""
    refused_by_account: dict[str, dict[str, int]] = {}

    def health(self) -> dict[str, object]:
        """What `/health` says to everybody."""
        return {"state": "well" if self.healthy else "not well", "healthy": self.healthy}
