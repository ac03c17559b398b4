"""What a Freqtrade bot says of itself (`/show_config`), and what of it keeps our orders from being traded.

Pure. What it does not say, or says in another way than Freqtrade 2026.9, is None: nothing follows from it.
"""

from typing import Final

import msgspec

from marketfeed.aggregator.ledger_tables import BotName

PURE = True

RUNNING: Final = "running"
"""The state of a Freqtrade bot that takes orders; the others are `paused`, `stopped`, `reload_config`."""


class BotConfig(msgspec.Struct, frozen=True):
    """One answer of `/show_config`. `max_open_trades` is negative without a limit."""

    state: str | None = None
    force_entry_enable: bool | None = None
    max_open_trades: float | None = None
    stake_currency: str | None = None
    trading_mode: str | None = None

    @property
    def not_running(self) -> str:
        """What it does instead of running, in words; empty: it runs, or does not say."""
        if self.state is None or self.state == RUNNING:
            return ""
        return f"its state is {self.state[:_KEPT]}" if self.state else "it tells no state"


_KEPT: Final = 40


def config_of(data: object) -> BotConfig:
    """What a decoded answer says."""
    if not isinstance(data, dict):
        return BotConfig()

    def text(name: str) -> str | None:
        value = data.get(name)
        return value if isinstance(value, str) else None

    enabled, most = data.get("force_entry_enable"), data.get("max_open_trades")
    return BotConfig(
        text("state"),
        enabled if isinstance(enabled, bool) else None,
        most if isinstance(most, int | float) and not isinstance(most, bool) else None,
        text("stake_currency"),
        text("trading_mode"),
    )


def unsuited(config: BotConfig, side: BotName, quote: str) -> list[str]:
    """What of it does not suit orders of `side` (meta: both) for pairs quoted in `quote`; each a sentence."""
    found = []
    if config.trading_mode == "spot":
        cannot = "opens no shorts and " if side != "long" else ""
        found.append(
            f"its trading_mode is spot: it {cannot}does not know pairs such as BTC/{quote}:{quote}; "
            "set it to futures in its config"
        )
    if config.stake_currency not in (None, quote):
        found.append(
            f"its stake_currency is {config.stake_currency}: it refuses pairs in {quote}, which "
            "exchange.quote names"
        )
    if config.max_open_trades == 0:
        found.append("its max_open_trades is 0: it has room for no trade")
    return found


def whitelist_of(data: object) -> frozenset[str] | None:
    """The pairs of a decoded answer of `/whitelist`; None: it does not say.

    An empty one says nothing, either: a bot has it before its first turn.
    """
    pairs = data.get("whitelist") if isinstance(data, dict) else None
    if not isinstance(pairs, list) or not all(isinstance(pair, str) for pair in pairs):
        return None
    return frozenset(pairs) or None
