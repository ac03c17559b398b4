"""A Freqtrade strategy that takes its candles from marketfeed: the two lines below are all it needs.

Put it into `user_data/strategies`, set `MARKETFEED_URL`, and run

    freqtrade trade --config config.json --strategy StrategyWithMarketfeed

It trades for the example's sake: RSI, and no longs where funding is dear. Not for real money.
"""

from typing import ClassVar

import talib.abstract as ta
from freqtrade.strategy import IStrategy, merge_informative_pair
from pandas import DataFrame

from reader import StaleDataError, get_funding_rate
from reader.freqtrade import install

install()


class StrategyWithMarketfeed(IStrategy):
    """RSI on the strategy's timeframe, with the trend of the hour and the running funding rate."""

    INTERFACE_VERSION = 3
    can_short = True
    timeframe = "3m"
    startup_candle_count = 50
    process_only_new_candles = True
    minimal_roi: ClassVar = {"0": 0.02}
    stoploss = -0.05
    dearest_funding = 0.0005

    def informative_pairs(self) -> list[tuple[str, str, str]]:
        """Hourly candles of every pair; they come from the store as well."""
        return [(pair, "1h", "futures") for pair in self.dp.current_whitelist()]

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Compute indicators."""
        hours = self.dp.get_pair_dataframe(metadata["pair"], "1h")
        hours["trend"] = ta.EMA(hours, timeperiod=20)
        dataframe = merge_informative_pair(dataframe, hours, self.timeframe, "1h", ffill=True)
        dataframe["rsi"] = ta.RSI(dataframe)
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Enter on extremes of RSI, with the hour's trend."""
        rising = dataframe["close"] > dataframe["trend_1h"]
        dataframe.loc[rising & (dataframe["rsi"] < 30), "enter_long"] = 1
        dataframe.loc[~rising & (dataframe["rsi"] > 70), "enter_short"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Exit in the middle."""
        dataframe.loc[dataframe["rsi"] > 55, "exit_long"] = 1
        dataframe.loc[dataframe["rsi"] < 45, "exit_short"] = 1
        return dataframe

    def confirm_trade_entry(self, pair: str, *args: object, **kwargs: object) -> bool:
        """Ask for the running funding rate at the moment of the entry; do without rather than guess."""
        try:
            rate = get_funding_rate(pair)
        except StaleDataError:
            return False
        return rate < self.dearest_funding if kwargs.get("side") == "long" else True
