"""Where the series of a journal are whole, out of the rows of its queries."""

import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.coverage import Interval, furthest, of_journal
from reader.life import OPEN_MS, LifeRow, Statement, joined
from reader.rows import CandleQuery, CandleRows, as_float
from reader.stores.lives_text import parsed

PURE = True


class Extent(NamedTuple):
    """What a journal tells of some series: rows of EXTENT or COVERED_EXTENT, and of OPEN_HOLES."""

    rows: Sequence[tuple[Any, ...]]
    holes: Sequence[tuple[str, int, int]] = ()


def settled_to(rows: Sequence[tuple[bytes]], pairs: Sequence[str]) -> dict[str, int]:
    """Up to when (ms, exclusive) the settlements of each pair are stored, by the journal's document.

    Nothing of one that cannot be read: the collector begins it anew.
    """
    try:
        known = schema.settled_to(json.loads(zlib.decompress(rows[0][0])) if rows else {})
    except (zlib.error, ValueError, TypeError, AttributeError):
        return {}
    return {pair: known[pair] for pair in pairs if pair in known}


def kinds(timeframe: str) -> dict[str, str]:
    """The kinds of the gaps of a timeframe or series, as parameters of the queries."""
    return {"gap": schema.gap_kind(timeframe), "history": schema.HISTORY_GAP + timeframe}


def json_of(pairs: Sequence[str]) -> str:
    """Pairs as the queries take them."""
    return json.dumps(pairs, ensure_ascii=False)


def series_of(
    pairs: Sequence[str], timeframe: str, own: tuple[int, int] = (0, OPEN_MS)
) -> dict[str, Any]:
    """The parameters by which queries name the series of pairs; of `own` rows alone."""
    return {
        "pairs": json_of(pairs),
        "own_start": own[0],
        "own_end": own[1],
        "timeframe_ms": schema.TIMEFRAMES_MS[timeframe],
        **kinds(timeframe),
    }


def intervals(extent: Extent, pairs: Sequence[str], timeframe: str) -> dict[str, Interval]:
    """Pair -> where its series is whole; none of a journal of before version 3."""
    length_ms = schema.SERIES_MS[timeframe]
    holes: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair, start_ms, end_ms in extent.holes:
        holes[pair].append((start_ms, end_ms))
    lives: defaultdict[str, list[Interval]] = defaultdict(list)
    for slot, _, newest_ms, *promised in extent.rows:
        if not promised or promised[0] is None:
            continue
        from_ms, looked_ms, is_trusted, absent_ms = promised
        if not is_trusted:
            # Somebody else has changed rows: all are to be looked through.
            continue
        end_ms = max(from_ms if newest_ms is None else newest_ms + length_ms, absent_ms or 0)
        mine = [hole for hole in holes[pairs[slot]] if hole[0] >= from_ms]
        told = of_journal(from_ms, looked_ms, end_ms, newest_ms, mine)
        if told is not None:
            lives[pairs[slot]].append(told)
    return {pair: told for pair, each in lives.items() if (told := furthest(each)) is not None}


def candle_rows(
    query: CandleQuery,
    values: NDArray[np.float64],
    extent: Extent,
    forming: Sequence[tuple[Any, ...]],
) -> list[CandleRows]:
    """The answer to `query`: rows, each with its pair's place in front, and what is told of them."""
    edges = np.searchsorted(values[:, 0], np.arange(len(query.pairs) + 1)).tolist()
    extents = {slot: (first, newest) for slot, first, newest, *_ in extent.rows}
    told = intervals(extent, query.pairs, query.timeframe)
    formings = {slot: tuple(map(as_float, row)) for slot, *row in forming}
    return [
        CandleRows(
            values[edges[slot] : edges[slot + 1], 1:],
            *extents.get(slot, (None, None)),
            formings.get(slot),
            told.get(query.pairs[slot]),
        )
        for slot in range(len(query.pairs))
    ]


@lru_cache(maxsize=2048)
def told_lives(text: str | None) -> tuple[LifeRow, ...]:
    """The lives of a pair, out of what LIVES answers: JSON, as a bucket has it. None where nobody tells.

    Kept, as they are asked for with the catalog, and nearly never change. Raises ValueError.
    """
    if text is None or text == "[]":
        return ()
    return joined([Statement(0, parsed(text))])
