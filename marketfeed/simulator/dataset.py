"""Loads the real day of candles that the simulator ships with."""

import csv
import functools
import importlib.resources
import io
import zipfile
from typing import Final

from marketfeed.simulator.history import RecordedDay

_SYMBOL: Final = "BTCUSDT"
_NAME: Final = "BTCUSDT-1m-2025-01-02"


@functools.cache
def recorded_day() -> RecordedDay:
    """Return BTCUSDT's one-minute candles of 2025-01-02, as the public archive serves them."""
    archive = importlib.resources.files("marketfeed.simulator") / "data" / f"{_NAME}.zip"
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
        text = files.read(f"{_NAME}.csv").decode("ascii")
    rows = tuple(tuple(row) for row in csv.reader(io.StringIO(text)))
    # The header line is in recent files only.
    return RecordedDay(_SYMBOL, rows if rows[0][0].isdigit() else rows[1:])
