"""Rows to ship, in every table, and the pace of a test."""

from marketfeed.influxdb.pace import Pace
from marketfeed.journal.batch import Batch
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice

T0 = 1_791_360_000_000
MINUTE = 60_000
PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT", "币安/USDT:USDT")
ROWS = 3 * 3 * 10 + 3
"""Of one `fill`."""
QUICK = Pace(
    turn_s=0.01, forming_every_s=0.05, backoff_first_s=0.01, backoff_cap_s=0.1, parked_s=0.02
)


def fill(start: int = 0, minutes: int = 10) -> Batch:
    batch = Batch()
    for number in range(start, start + minutes):
        at_ms = T0 + number * MINUTE
        for pair in PAIRS:
            batch.add(
                Candle(
                    pair, "1m", at_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, True, at_ms + MINUTE
                )
            )
            batch.add(MarkPrice(pair, at_ms + 1_000, 7.0, 8.0))
            batch.add(FundingRate(pair, at_ms + 1_000, 0.0001, T0 + 8 * 60 * MINUTE))
    batch.add(FundingSettled(PAIRS[0], T0, 0.0001, None))
    batch.add(Gap("connection_feed-1", None, T0, T0 + 5, "healed", "lost"))
    batch.add(CatalogEntry(PAIRS[0], "BTCUSDT", ("1m",), T0, 5, None, T0))
    return batch
