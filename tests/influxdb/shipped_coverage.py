"""A journal whose history is filled while it is shipped, and what is said of a bucket against what it has."""

import asyncio
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import uvloop
from influxd import Influxd
from shipped import shipping

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.pace import Pace
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import Covered, Key, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry
from marketfeed.schema import MINUTE_MS
from tests.sweeps import delete

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT", "币安人生/USDT:USDT")
SERIES: Final = tuple((pair, timeframe) for pair in PAIRS for timeframe in ("1m", "3m"))
START_MS: Final = schema.floor_to(1_790_000_000_000, schema.HOUR_MS)
KEEP_MS: Final = 600 * MINUTE_MS
PACE: Final = Pace(
    max_lines=60,
    turn_s=0.01,
    forming_every_s=0.03,
    backoff_first_s=0.01,
    backoff_cap_s=0.1,
    parked_s=0.05,
    coverage_every_s=0.2,
)


def candle(key: Key, open_ms: int, trades: int = 1) -> Candle:
    end_ms = open_ms + schema.TIMEFRAMES_MS[key[1]]
    return Candle(*key, open_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, trades, True, end_ms)


class Load:
    """What a collector would store: a minute after the other, and history behind it."""

    writer: JournalWriter

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = START_MS

    async def begin(self, writer: JournalWriter) -> None:
        self.writer = writer
        newest = await self.writer.call(Journal.newest_candles)
        self.now_ms = max([START_MS, *(at_ms + MINUTE_MS for at_ms in newest.values())])
        made = [Promise(*key, self.now_ms, KEEP_MS) for key in SERIES]
        await self.writer.call(lambda journal: journal.promise(made))
        batch = Batch()
        for pair in PAIRS:
            frames = tuple(timeframe for one, timeframe in SERIES if one == pair)
            batch.add(CatalogEntry(pair, pair[:3], frames, START_MS, 5, None, START_MS))
        await self.writer.call(lambda journal: journal.write(batch))

    async def minute(self) -> None:
        """A minute passes; now and then a candle does not come, or comes again with more trades."""
        rng = self.rng
        self.now_ms += MINUTE_MS
        batch = Batch()
        for key in SERIES:
            length_ms = schema.TIMEFRAMES_MS[key[1]]
            due_ms = schema.floor_to(self.now_ms, length_ms)
            open_ms = due_ms - length_ms
            if rng.random() < 0.05:
                batch.expect(key, Due(due_ms, (TimeRange(open_ms, due_ms),)))
            else:
                batch.add(candle(key, open_ms))
            if rng.random() < 0.1:
                batch.add(candle(key, due_ms - rng.randint(1, 60) * length_ms, rng.randint(1, 9)))
        await self.writer.call(lambda journal: journal.write(batch))

    async def fill(self, candles: int = 50) -> None:
        """Some of the newest hole of a series is filled, or the exchange does not have it."""
        key = self.rng.choice(SERIES)
        known = self.writer.coverage[key]
        holes = [hole for hole in known.holes if not hole.is_absent]
        if not holes:
            return
        length_ms = schema.TIMEFRAMES_MS[key[1]]
        start_ms = max(holes[-1].start_ms, holes[-1].end_ms - candles * length_ms)
        where = TimeRange(start_ms, holes[-1].end_ms)
        batch = Batch()
        if self.rng.random() < 0.05:
            where = TimeRange(where.end_ms - length_ms, where.end_ms)
            batch.absent += [(key, where, self.now_ms), (key, where, self.now_ms + 2 * MINUTE_MS)]
        else:
            batch.candles = [candle(key, at_ms) for at_ms in range(*where, length_ms)]
        await self.writer.call(lambda journal: journal.write(batch))

    async def delete(self) -> None:
        """The disk budget takes what is old, shipped or not."""
        pair_id, before_ms = self.rng.randint(1, len(PAIRS)), self.now_ms - KEEP_MS // 2
        await self.writer.call(
            lambda journal: delete(journal, schema.TABLE_CANDLE, pair_id, before_ms)
        )

    async def look_through(self) -> None:
        await self.writer.call(lambda journal: journal.look_through(SERIES, 200))

    async def go_on(self, rounds: int, pause_s: float = 0.0) -> None:
        for _ in range(rounds):
            await self.minute()
            await self.fill()
            await self.look_through()
            if self.rng.random() < 0.02:
                await self.delete()
            await asyncio.sleep(pause_s)

    async def fill_all(self) -> None:
        while any(
            not hole.is_absent for known in self.writer.coverage.values() for hole in known.holes
        ):
            await self.fill(600)


def told(influxd: Influxd, database: str) -> dict[Key, TimeRange]:
    """What the newest point of each pair says, of one collector."""
    text = "SELECT * FROM feed_coverage GROUP BY pair, collector ORDER BY time DESC LIMIT 1"
    found: dict[Key, TimeRange] = {}
    for series in influxd.query(text, database):
        (row,) = [dict(zip(series["columns"], row, strict=True)) for row in series["values"]]
        assert row["time"] % schema.HOUR_MS == 0
        for name, from_ms in row.items():
            timeframe = name.removeprefix("from_")
            until_ms = row.get(f"until_{timeframe}")
            # influxd reads field by field, beside a write one may be there alone: as readers, no interval.
            if name.startswith("from_") and from_ms is not None and until_ms is not None:
                found[series["tags"]["pair"], timeframe] = TimeRange(from_ms, until_ms)
    return found


def lacking(influxd: Influxd, database: str, said: dict[Key, TimeRange]) -> list[tuple[Key, int]]:
    """The candles that lie in what was said, and not in the bucket."""
    found: list[tuple[Key, int]] = []
    for key, (from_ms, until_ms) in said.items():
        text = f'SELECT close FROM "ohlcv_{key[1]}" WHERE pair = $pair'  # noqa: S608
        series = influxd.query(text, database, pair=key[0])
        there = {row[0] for one in series for row in one["values"]}
        found += [
            (key, at_ms)
            for at_ms in range(from_ms, until_ms, schema.TIMEFRAMES_MS[key[1]])
            if at_ms not in there
        ]
    return found


def absent(coverage: Mapping[Key, Covered]) -> set[tuple[Key, int]]:
    """The candles that the exchange does not have."""
    return {
        (key, at_ms)
        for key, known in coverage.items()
        for hole in known.holes
        if hole.is_absent
        for at_ms in range(hole.start_ms, hole.end_ms, schema.TIMEFRAMES_MS[key[1]])
    }


def main() -> None:
    """Store and ship until killed. Arguments: the journal, InfluxDB's settings as JSON, a seed."""
    path, settings, seed = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])

    async def run() -> None:
        load = Load(seed)
        async with shipping(path, settings, PACE, lambda: load.now_ms) as (writer, _):
            await load.begin(writer)
            await load.go_on(1_000_000, 0.002)

    uvloop.run(run())


if __name__ == "__main__":
    main()
