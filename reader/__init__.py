"""Market data of Binance USD-M futures for Freqtrade feeders, out of what the collector stores.

Install the distribution `marketfeed`; another package on PyPI also imports as `reader`.

```python
from reader import MarketReader

with MarketReader.connect() as reader:  # MARKETFEED_URL=sqlite:////var/lib/marketfeed/journal.db
    frame = reader.get_ohlcv("BTC/USDT:USDT", "3m", limit=500)
```
"""

from reader.default import (
    get_all_pairs_funding_rates,
    get_funding_rate,
    get_mark_price,
    get_ohlcv,
    lives,
    ready,
)
from reader.errors import (
    GapError,
    ReaderError,
    StaleDataError,
    StoreAuthError,
    StoreUnavailableError,
    UnknownPairError,
    UnknownTimeframeError,
)
from reader.frames import sum_settlements
from reader.reader import MarketReader
from reader.values import FundingRate, Life, MarkPrice

__all__ = [
    "FundingRate",
    "GapError",
    "Life",
    "MarkPrice",
    "MarketReader",
    "ReaderError",
    "StaleDataError",
    "StoreAuthError",
    "StoreUnavailableError",
    "UnknownPairError",
    "UnknownTimeframeError",
    "get_all_pairs_funding_rates",
    "get_funding_rate",
    "get_mark_price",
    "get_ohlcv",
    "lives",
    "ready",
    "sum_settlements",
]
