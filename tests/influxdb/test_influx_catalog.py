"""A bucket that keeps its points for an hour does not forget what is collected."""

import time
from pathlib import Path

import uvloop
from filled import PAIRS
from influxd import Influxd, quoted
from shipped import compared, shipping, v1_target

from marketfeed.commands.refused_lines import read_refused
from marketfeed.journal.batch import Batch
from marketfeed.records import Candle, CatalogEntry, FundingRate
from marketfeed.schema import HOUR_MS, MINUTE_MS, floor_to
from reader import MarketReader
from tests.waiting import until


def test_a_catalog_older_than_the_bucket_keeps(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    path, pair = tmp_path / "journal.db", PAIRS[0]
    target = v1_target(influxd, database)
    influxd.query(
        f"ALTER RETENTION POLICY autogen ON {quoted(database)} DURATION 1h SHARD DURATION 1h"
    )
    now_ms = time.time_ns() // 1_000_000
    close_ms = floor_to(now_ms, MINUTE_MS)
    old_ms = now_ms - 3 * HOUR_MS
    batch = Batch()
    batch.add(CatalogEntry(pair, "BTCUSDT", ("1m",), old_ms, 5, None, old_ms))
    batch.extend(
        Candle(pair, "1m", t, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, True, t + MINUTE_MS)
        for t in range(close_ms - 10 * MINUTE_MS, close_ms, MINUTE_MS)
    )
    batch.add(FundingRate(pair, close_ms, 0.0001, close_ms + 8 * HOUR_MS))

    async def ship() -> None:
        async with shipping(path, target.settings, now_ms=lambda: now_ms) as (writer, shipper):
            await writer.call(lambda journal: journal.write(batch))
            await until(lambda: shipper.shipped_below() == writer.next_seq)
            # Twelve rows: one is refused, and shipped again.
            await until(lambda: shipper.lines == 12)
        rows = await compared(path, target.settings)
        assert (rows.missing, rows.extra) == (1, 0), rows.examples

    uvloop.run(ship())
    (refused,) = read_refused(path)
    assert "beyond retention" in refused.answer
    with MarketReader.connect(influxd.url, bucket=database, now_ms=lambda: now_ms) as reader:
        (info,) = reader.pairs()
        assert (info.pair, info.timeframes, info.ended) == (pair, ("1m",), None)
        assert len(reader.get_ohlcv(pair, "1m", 5)) == 5
        assert list(reader.get_all_pairs_funding_rates()) == [pair]
