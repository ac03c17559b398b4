"""A strategy that enters every pair at once and holds it to the end; runs inside Freqtrade."""

from typing import ClassVar

from freqtrade.strategy import IStrategy
from pandas import DataFrame


class Holds(IStrategy):
    """See the module's docstring."""

    INTERFACE_VERSION = 3
    timeframe = "5m"
    minimal_roi: ClassVar = {"0": 10.0}
    stoploss = -0.9
    startup_candle_count = 30

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Nothing is needed."""
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Enter at every candle."""
        dataframe["enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Never exit."""
        return dataframe
