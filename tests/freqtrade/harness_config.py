"""The configuration of a bot; nothing but the standard library, so that Freqtrade's Python has it too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

USER, PASSWORD = "freqtrader", "invented-for-tests"


def bot_config(
    directory: Path, rest_url: str, pairs: Sequence[str], timeframe: str, api_port: int
) -> dict[str, Any]:
    """Return the configuration of a dry-run futures bot of the exchange at `rest_url`."""
    return {
        "bot_name": "marketfeed-test",
        "dry_run": True,
        "dry_run_wallet": 100_000,
        "max_open_trades": len(pairs),
        "stake_currency": "USDT",
        "stake_amount": 100,
        "trading_mode": "futures",
        "margin_mode": "isolated",
        "timeframe": timeframe,
        "db_url": f"sqlite:///{directory / 'trades.sqlite'}",
        "initial_state": "running",
        "force_entry_enable": True,
        "entry_pricing": {"price_side": "other", "use_order_book": True, "order_book_top": 1},
        "exit_pricing": {"price_side": "other", "use_order_book": True, "order_book_top": 1},
        "order_types": {
            "entry": "market",
            "exit": "market",
            "stoploss": "market",
            "stoploss_on_exchange": False,
        },
        "exchange": {
            "name": "binance",
            "key": "",
            "secret": "",
            "pair_whitelist": list(pairs),
            "only_from_ccxt": True,
            "ccxt_config": {
                "options": {"fetchMarkets": {"types": ["linear"]}},
                "urls": {
                    "api": {
                        name: f"{rest_url}/fapi/v{version}"
                        for name, version in (
                            ("fapiPublic", 1),
                            ("fapiPublicV2", 2),
                            ("fapiPublicV3", 3),
                        )
                    }
                },
            },
        },
        "pairlists": [{"method": "StaticPairList"}],
        "internals": {"process_throttle_secs": 5, "heartbeat_interval": 10},
        "api_server": {
            "enabled": bool(api_port),
            "listen_ip_address": "127.0.0.1",
            "listen_port": api_port or 8080,
            "verbosity": "error",
            "jwt_secret_key": "an-invented-key-of-at-least-32-characters",
            "username": USER,
            "password": PASSWORD,
        },
    }
