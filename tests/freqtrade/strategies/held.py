"""A strategy that trades what is forced in alone; its entries wait in the bot's lock while a file exists.

Runs inside Freqtrade, with nothing of marketfeed. The file is `lock` in the directory `SEEN_DIR`.
"""

import os
import time
from pathlib import Path
from typing import ClassVar

from freqtrade.strategy import IStrategy
from pandas import DataFrame


class Held(IStrategy):
    """See the module's docstring."""

    INTERFACE_VERSION = 3
    can_short = True
    timeframe = "1m"
    minimal_roi: ClassVar = {"0": 10.0}
    stoploss = -0.9
    startup_candle_count = 30

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Add nothing."""
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Never enter."""
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Never exit."""
        return dataframe

    def confirm_trade_entry(self, *args, **kwargs) -> bool:
        """Hold the entry, with the lock in which it stands, while the file is there."""
        lock = Path(os.environ["SEEN_DIR"]) / "lock"
        while lock.exists():
            time.sleep(0.02)
        return True

    def leverage(self, *args, **kwargs) -> float:
        """What a bot takes that is told no leverage."""
        return 3.0
