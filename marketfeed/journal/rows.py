"""Records -> rows of the journal's tables, numbered from `seq` on. The columns' order is `tables.py`'s.

`ids` maps a pair to its number in the table `pair`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from marketfeed import schema
from marketfeed.journal import tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Hole
from marketfeed.records import Candle, CatalogEntry, Gap

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
            c.taker_buy_quote_volume,
        )
        for number, c in enumerate(candles, seq)
    ]


def forming_rows(candles: Collection[Candle], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `forming`."""
    plain = candle_rows(candles, ids, seq)
    return [
        (*row[:-2], candle.event_time_ms, *row[-2:])
        for row, candle in zip(plain, candles, strict=True)
    ]


def without_quotes(rows: Rows) -> Rows:
    """Rows of `candle` or `forming` for a file that has no `taker_buy_quote_volume`."""
    return [row[:-1] for row in rows]


def mark_candle_rows(candles: Iterable[Candle], ids: dict[str, int], seq: int) -> Rows:
    """Rows of `mark_1h`."""
    return [
        (ids[c.pair], c.open_time_ms, c.open, c.high, c.low, c.close, number)
        for number, c in enumerate(candles, seq)
    ]


def mark_rows(batch: Batch, ids: dict[str, int], seq: int) -> Rows:
    """Rows of `mark_price`: whole seconds, and how long after them the event was.

    No index price is 0: see `schema.INDEX_PRICE`.
    """
    return [
        (ids[pair], time_ms, m.event_time_ms - time_ms, m.mark_price, m.index_price or 0.0, number)
        for number, ((pair, time_ms), m) in enumerate(batch.mark_prices.items(), seq)
    ]


def funding_rows(
    batch: Batch,
    ids: dict[str, int],
    seq: int,
    written_before: Mapping[str, tuple[int, int]],
    settled_of: Mapping[str, tuple[int, float]],
) -> tuple[Rows, dict[str, tuple[int, int]]]:
    """Rows of `funding_rate`, and of each pair the time and event (ms) of the last one written.

    `written_before` has those of before, `settled_of` time (ms) and rate of the newest settlements.
    """
    # Of the ~20 frames in a grid step the first one stays; the rest need not reach SQLite.
    numbered: Rows = []
    written: dict[str, tuple[int, int]] = {}
    for (pair, time_ms), rate in batch.funding_rates.items():
        known = written.get(pair) or written_before.get(pair)
        if known is not None and known[0] == time_ms and known[1] <= rate.event_time_ms:
            continue
        written[pair] = (time_ms, rate.event_time_ms)
        offset_ms = rate.event_time_ms - time_ms
        settled = settled_of.get(pair)
        numbered.append(
            (
                ids[pair],
                time_ms,
                offset_ms,
                rate.rate,
                # A row that came late must not hold what was settled after it.
                settled[1] if settled is not None and settled[0] <= time_ms else None,
                rate.next_funding_time_ms,
                seq + len(numbered),
            )
        )
    return numbered, written


def settled_rows(batch: Batch, ids: dict[str, int], seq: int) -> Rows:
    """Rows of `funding_settled`."""
    return [
        (ids[s.pair], s.time_ms, s.kind, s.rate, s.mark_price, number)
        for number, s in enumerate(batch.settled, seq)
    ]


def gap_rows(
    gaps: Iterable[tuple[Gap, Hole | None]], ids: dict[str, int], seq: int, *, version: int
) -> Rows:
    """Rows of `gap`, each with the hole that it is, if it is one; without its answers up to version 2."""
    rows: Rows = [
        (
            g.kind,
            tables.NO_PAIR if g.pair is None else ids[g.pair],
            g.start_ms,
            g.end_ms,
            g.healed,
            g.reason,
            g.state,
            number,
            None if hole is None else hole.empty_1_ms,
            None if hole is None else hole.empty_2_ms,
        )
        for number, (g, hole) in enumerate(gaps, seq)
    ]
    return rows if version >= schema.COVERAGE_FROM else [row[:-2] for row in rows]


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
