"""The module-level functions: a MarketReader's methods over one default reader.

It is made from the environment with the first call, kept for the process and closed at its end.
"""

import atexit
from collections.abc import Iterable
from typing import Final

import pandas as pd

from reader.arguments import DEFAULT, MaxAge, Time
from reader.reader import MarketReader
from reader.values import FundingRate, Life, MarkPrice

# A dict and no lock: one that another thread held during a fork would stay locked in the child.
_readers: Final[dict[str, MarketReader]] = {}


def _default() -> MarketReader:
    reader = _readers.get("default")
    if reader is None:
        fresh = MarketReader.connect()
        reader = _readers.setdefault("default", fresh)
        if reader is not fresh:
            fresh.close()
    return reader


@atexit.register
def _close() -> None:
    for reader in _readers.values():
        reader.close()


def get_ohlcv(
    pair: str,
    timeframe: str,
    limit: int | None = None,
    *,
    since: Time | None = None,
    until: Time | None = None,
    include_forming: bool = False,
    strict: bool = False,
    max_age_s: MaxAge = DEFAULT,
    columns: Iterable[str] = (),
) -> pd.DataFrame:
    """Return closed candles of `pair`: `MarketReader.get_ohlcv` of the default reader."""
    return _default().get_ohlcv(
        pair,
        timeframe,
        limit,
        since=since,
        until=until,
        include_forming=include_forming,
        strict=strict,
        max_age_s=max_age_s,
        columns=columns,
    )


def ready(pair: str, timeframe: str, n: int) -> bool:
    """Return whether the newest `n` candles are stored: `MarketReader.ready` of the default reader."""
    return _default().ready(pair, timeframe, n)


def lives(pair: str) -> list[Life]:
    """Return the contracts that `pair` has been the name of: `MarketReader.lives` of the default reader."""
    return _default().lives(pair)


def get_funding_rate(pair: str, *, max_age_s: MaxAge = DEFAULT) -> FundingRate:
    """Return the running rate of `pair`: `MarketReader.get_funding_rate` of the default reader."""
    return _default().get_funding_rate(pair, max_age_s=max_age_s)


def get_mark_price(pair: str, *, max_age_s: MaxAge = DEFAULT) -> MarkPrice:
    """Return the mark price of `pair`: `MarketReader.get_mark_price` of the default reader."""
    return _default().get_mark_price(pair, max_age_s=max_age_s)


def get_all_pairs_funding_rates(*, max_age_s: MaxAge = DEFAULT) -> dict[str, FundingRate]:
    """Return all running rates: `MarketReader.get_all_pairs_funding_rates` of the default reader."""
    return _default().get_all_pairs_funding_rates(max_age_s=max_age_s)
