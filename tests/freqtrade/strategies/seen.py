"""A strategy that writes down what Freqtrade shows it; it wants to enter every pair at every candle.

Runs inside Freqtrade, with nothing of marketfeed. `SEEN_DIR` names the directory: `frames.jsonl` has a
line for each frame shown (wall time in ms, pair, newest candle, dtypes), beside the frame's numbers as
`.npy`; `decisions.jsonl` one for each entry that was about to be made, and on which candle.
"""

import json
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from freqtrade.strategy import IStrategy
from pandas import DataFrame

_COLUMNS = ["open", "high", "low", "close", "volume"]


class Seen(IStrategy):
    """See the module's docstring."""

    INTERFACE_VERSION = 3
    can_short = True
    timeframe = "1m"
    minimal_roi: ClassVar = {"0": 10.0}
    stoploss = -0.9
    process_only_new_candles = True
    startup_candle_count = 30

    def _note(self, name: str, **what) -> None:
        folder = Path(os.environ["SEEN_DIR"])
        with (folder / name).open("a") as file:
            file.write(json.dumps({"at_ms": time.time() * 1000, **what}) + "\n")

    def informative_pairs(self):
        """Ask for what else a futures feeder uses, if `SEEN_INFORMATIVE` is set."""
        if os.environ.get("SEEN_INFORMATIVE") != "1":
            return []
        kinds = [("1h", "funding_rate"), ("1h", "mark"), ("15m", "futures")]
        return [(pair, *kind) for pair in self.dp.current_whitelist() for kind in kinds]

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Write the frame down."""
        times_ms = dataframe["date"].dt.as_unit("ms").astype("int64")
        newest_ms = int(times_ms.iloc[-1])
        file = f"{metadata['pair'].partition('/')[0]}-{newest_ms}.npy"
        values = np.column_stack([times_ms, dataframe[_COLUMNS]])
        np.save(Path(os.environ["SEEN_DIR"]) / file, values)
        dtypes = {name: str(dtype) for name, dtype in dataframe.dtypes.items()}
        more = {}
        for _, timeframe, kind in self.informative_pairs()[:3]:
            frame = self.dp.get_pair_dataframe(metadata["pair"], timeframe, candle_type=kind)
            more[kind + timeframe] = [
                len(frame),
                str(frame["date"].iloc[-1]),
                str(frame.dtypes.iloc[0]),
            ]
        self._note(
            "frames.jsonl",
            pair=metadata["pair"],
            newest_ms=newest_ms,
            file=file,
            dtypes=dtypes,
            more=more,
        )
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Enter at every candle."""
        if os.environ.get("SEEN_ENTERS") == "1":
            dataframe["enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Never exit."""
        return dataframe

    def confirm_trade_entry(self, pair: str, *args, **kwargs) -> bool:
        """Write the decision down; enter by force alone."""
        tag = args[5] if len(args) > 5 else kwargs.get("entry_tag")
        if os.environ.get("SEEN_ENTERS") != "1" or tag:
            return True
        frame, _ = self.dp.get_analyzed_dataframe(pair, self.timeframe)
        newest_ms = int(frame["date"].iloc[-1].timestamp() * 1000)
        self._note("decisions.jsonl", pair=pair, newest_ms=newest_ms)
        return False
