"""Time Freqtrade's own refresh of many pairs; runs in Freqtrade's environment, prints wall and CPU s as JSON.

`refresh.py REST_URL ROUNDS LIMITED PAIR…`; on the store when MARKETFEED_URL is set. LIMITED 0 switches off
ccxt's own throttling.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from freqtrade.enums import CandleType, RunMode
from freqtrade.resolvers import ExchangeResolver
from harness_config import bot_config

rest_url, rounds, limited, *pairs = sys.argv[1:]
if os.environ.get("MARKETFEED_URL"):
    from reader.freqtrade import install

    install(missing="raise")
config = bot_config(Path(tempfile.gettempdir()), rest_url, pairs, "1m", 0)
config["runmode"] = RunMode.DRY_RUN
config["exchange"]["ccxt_config"]["enableRateLimit"] = limited == "1"
exchange = ExchangeResolver.load_exchange(config, validate=False, load_leverage_tiers=False)
# As its own validation of a strategy sets it.
exchange._startup_candle_count = 30
exchange.reload_markets(force=True, load_leverage_tiers=False)
series = [(pair, "1m", CandleType.FUTURES) for pair in pairs]
took_s: list[tuple[float, float]] = []
for _ in range(int(rounds) + 1):
    # No candle is due to close: none is waited for.
    if time.time() % 60 > 45:
        time.sleep(68 - time.time() % 60)
    started_s, cpu_s = time.monotonic(), time.process_time()
    found = exchange.refresh_latest_ohlcv(series)
    took_s.append((time.monotonic() - started_s, time.process_time() - cpu_s))
    assert len(found) == len(pairs), len(found)
    assert all(len(frame) >= 498 for frame in found.values())
    # As a minute later: every pair is due again, and its frame is there.
    for key in exchange._pairs_last_refresh_time:
        exchange._pairs_last_refresh_time[key] -= 60_000
    exchange._pairs_last_poll_time.clear()
sys.stdout.write(json.dumps(took_s) + "\n")
