"""A strategy that trades what is forced in alone; its entries wait in the bot's lock while a file exists.

Runs inside Freqtrade, with nothing of marketfeed. The file is `lock` in the directory `SEEN_DIR`. While the
file `half` is there, it refuses about half of all pairs, always the same ones.
"""

import os
import time
import zlib
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

    def confirm_trade_entry(self, pair: str, *args, **kwargs) -> bool:
        """Hold the entry, with the lock in which it stands, while the file is there; refuse half of all."""
        place = Path(os.environ["SEEN_DIR"])
        while (place / "lock").exists():
            time.sleep(0.02)
        return not ((place / "half").exists() and zlib.crc32(pair.encode()) % 2)

    def leverage(self, *args, **kwargs) -> float:
        """What a bot takes that is told no leverage."""
        return 3.0
