"""A FreqAI strategy whose training and live data come from marketfeed, funding and mark price included.

    freqtrade trade --config config.json --config freqai.config.json \
        --strategy FreqaiWithMarketfeed --freqaimodel LightGBMRegressor

Let `history.days` reach a day further back than `train_period_days` does. For a backtest download the data
through the store: `python -m reader.freqtrade download-data …` (docs/feeders.md). Not for real money.
"""

from typing import ClassVar

import talib.abstract as ta
from freqtrade.strategy import IStrategy
from pandas import DataFrame, Timedelta, merge_asof

from reader import MarketReader, sum_settlements
from reader.freqtrade import install

install(missing="raise")  # train on what is stored, or not at all


class FreqaiWithMarketfeed(IStrategy):
    """Predict the close an hour ahead from candles, settled funding rates and the mark price's premium."""

    INTERFACE_VERSION = 3
    can_short = True
    timeframe = "5m"
    startup_candle_count = 30
    process_only_new_candles = True
    minimal_roi: ClassVar = {"0": 0.03}
    stoploss = -0.05

    def bot_start(self, **kwargs: object) -> None:
        """Open the store; one that keeps silent must not hold the bot up for long."""
        self.reader = MarketReader.connect(timeout_s=10)

    def feature_engineering_expand_all(
        self, dataframe: DataFrame, period: int, metadata: dict, **kwargs: object
    ) -> DataFrame:
        """Features for every period, timeframe and correlated pair."""
        dataframe["%-rsi-period"] = ta.RSI(dataframe, timeperiod=period)
        dataframe["%-roc-period"] = ta.ROC(dataframe, timeperiod=period)
        return dataframe

    def feature_engineering_expand_basic(
        self, dataframe: DataFrame, metadata: dict, **kwargs: object
    ) -> DataFrame:
        """Features for every timeframe and correlated pair."""
        dataframe["%-change"] = dataframe["close"].pct_change()
        dataframe["%-volume"] = dataframe["volume"]
        return dataframe

    def feature_engineering_standard(
        self, dataframe: DataFrame, metadata: dict, **kwargs: object
    ) -> DataFrame:
        """The funding rate that was settled last, and by the hour how far the mark price was from the last.

        An hour's mark candle is known with the candle that ends with it, and not before.
        """
        pair, first = metadata["pair"], dataframe["date"].iloc[0]
        reader, hour = self.reader, Timedelta(hours=1)
        funding = sum_settlements(reader.get_funding_history(pair, first - 8 * hour))
        marks = reader.get_mark_candles(pair, since=first - hour)[["date", "close"]]
        marks["date"] += hour - Timedelta(self.timeframe)
        for frame in (funding, marks):
            frame["date"] = frame["date"].astype(dataframe["date"].dtype)
        funding = funding.rename(columns={"rate": "%-funding"})
        dataframe = merge_asof(dataframe, funding, on="date")
        marks = marks.rename(columns={"close": "mark"})
        dataframe = dataframe.merge(marks, on="date", how="left")
        dataframe["%-premium"] = (dataframe.pop("mark") / dataframe["close"] - 1.0).ffill()
        return dataframe

    def set_freqai_targets(
        self, dataframe: DataFrame, metadata: dict, **kwargs: object
    ) -> DataFrame:
        """What is to be predicted: the mean change over the coming hour."""
        candles = self.freqai_info["feature_parameters"]["label_period_candles"]
        ahead = dataframe["close"].shift(-candles).rolling(candles).mean()
        dataframe["&-change"] = ahead / dataframe["close"] - 1.0
        return dataframe

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Let FreqAI train and predict."""
        return self.freqai.start(dataframe, metadata, self)

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Enter where the prediction is far from naught and FreqAI trusts it."""
        trusted = dataframe["do_predict"] == 1
        dataframe.loc[trusted & (dataframe["&-change"] > 0.002), "enter_long"] = 1
        dataframe.loc[trusted & (dataframe["&-change"] < -0.002), "enter_short"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Exit when the prediction turns."""
        dataframe.loc[dataframe["&-change"] < 0, "exit_long"] = 1
        dataframe.loc[dataframe["&-change"] > 0, "exit_short"] = 1
        return dataframe
