"""What tests/reader asks of a journal, asked of an InfluxDB: the same tests, the same answers.

The fixture `connect` is this directory's: it ships what a test stores.
"""

import pandas as pd
import test_reader_arguments
import test_reader_candles
import test_reader_columns
import test_reader_settlements
import test_reader_values
from stored import M3, PAIR, START_MS, candle, entry, row
from test_reader_candles import COLUMNS, grid

MODULES = (
    test_reader_arguments,
    test_reader_candles,
    test_reader_columns,
    test_reader_settlements,
    test_reader_values,
)

globals().update(
    {
        name: found
        for module in MODULES
        for name, found in vars(module).items()
        if name.startswith("test_") or name == "answer"
    }
)


def test_the_frame_is_as_freqtrade_has_it(connect, clock, influxd) -> None:
    """In place of the one that looks for a journal's path."""
    candles = [candle(ms) for ms in grid(*range(10))]
    reader = connect(entry(), candles)
    clock.ms = START_MS + 10 * M3 + 1_500

    frame = reader.get_ohlcv(PAIR, "3m")

    assert list(frame.columns) == COLUMNS
    assert frame["date"].dtype == pd.to_datetime([0], unit="ms", utc=True).dtype
    assert [str(frame[name].dtype) for name in COLUMNS[1:]] == ["float64"] * 5
    assert isinstance(frame.index, pd.RangeIndex)
    assert [tuple(values) for values in frame[COLUMNS[1:]].to_numpy()] == list(map(row, candles))
    assert frame.attrs == {
        "pair": PAIR,
        "timeframe": "3m",
        "source": reader._store.source,
        "age_s": 1.5,
        "missing": [],
        "absent": [],
        "short": "unknown",
        "forming": False,
        "lives": [],
    }
    assert frame.attrs["source"].startswith(f"{influxd.url}/query?db=")
