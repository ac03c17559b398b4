"""Records -> rows of the journal's tables, numbered from `seq` on. The columns' order is `tables.py`'s.

`ids` maps a pair to its number in the table `pair`.
"""

from collections.abc import Collection
from typing import Any, TypeAlias

from marketfeed import schema
from marketfeed.journal import tables
from marketfeed.journal.batch import Batch
from marketfeed.records import Candle, CatalogEntry

PURE = True

Rows: TypeAlias = list[tuple[Any, ...]]


def candle_rows(candles: Collection[Candle], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `candle`, closed candles all."""
    lengths = schema.TIMEFRAMES_MS
    return [
        (
            ids[c.pair],
            lengths[c.timeframe],
            c.open_time_ms,
            c.open,
            c.high,
            c.low,
            c.close,
            c.volume,
            c.quote_volume,
            c.taker_buy_volume,
            c.trades,
            number,
        )
        for number, c in enumerate(candles, seq)
    ]


def forming_rows(candles: Collection[Candle], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `forming`."""
    plain = candle_rows(candles, ids, seq)
    return [
        (*row[:-1], candle.event_time_ms, row[-1])
        for row, candle in zip(plain, candles, strict=True)
    ]


def mark_rows(batch: Batch, ids: dict[str, int], seq: int) -> Rows:
    """Rows of `mark_price`: whole seconds, and how long after them the event was."""
    return [
        (ids[pair], time_ms, m.event_time_ms - time_ms, m.mark_price, m.index_price, number)
        for number, ((pair, time_ms), m) in enumerate(batch.mark_prices.items(), seq)
    ]


def settled_rows(batch: Batch, ids: dict[str, int], seq: int) -> Rows:
    """Rows of `funding_settled`."""
    return [
        (ids[s.pair], s.time_ms, s.kind, s.rate, s.mark_price, number)
        for number, s in enumerate(batch.settled, seq)
    ]


def gap_rows(batch: Batch, ids: dict[str, int], seq: int) -> Rows:
    """Rows of `gap`."""
    return [
        (
            g.kind,
            tables.NO_PAIR if g.pair is None else ids[g.pair],
            g.start_ms,
            g.end_ms,
            g.healed,
            g.reason,
            g.state,
            number,
        )
        for number, g in enumerate(batch.gaps.values(), seq)
    ]


def catalog_rows(entries: list[CatalogEntry], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `catalog`."""
    return [
        (
            ids[e.pair],
            e.symbol,
            ",".join(e.timeframes),
            e.since_ms,
            e.listed_ms,
            e.ended_ms,
            e.changed_ms,
            number,
            int(e.dropped),
        )
        for number, e in enumerate(entries, seq)
    ]


def catalog_rows_2(entries: list[CatalogEntry], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `catalog` in a journal up to version 2: `dropped` stands in front of the timeframes."""
    return [
        (pair_id, symbol, f"{schema.DROPPED},{names}" if dropped else names, *others)
        for pair_id, symbol, names, *others, dropped in catalog_rows(entries, ids, seq)
    ]
