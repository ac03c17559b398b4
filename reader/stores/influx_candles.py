"""Candles out of an InfluxDB: as few rows as the question needs, from as few shards as hold them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.coverage import Interval
from reader.rows import CandleQuery, CandleRows, as_float
from reader.stores import influx_queries as queries
from reader.stores.influx_answers import RowType, StatementAnswer
from reader.stores.influx_http import InfluxHttp, Request

_Floats = NDArray[np.float64]

_WIDER: Final = 4
"""A second look goes so many times as far back as the first; a third one has no lower end."""
_MANY: Final = 16
_FORMING_CANDLES: Final = 3
"""How far back forming candles are looked for at first."""


def read(
    http: InfluxHttp, query: CandleQuery, newest_ms: int, told: Mapping[str, Interval]
) -> list[CandleRows]:
    """Answer `query`, in the order of its pairs; `told` is passed on.

    `newest_ms` is where the newest candles are believed to open; a wrong belief costs time only. Where
    the rows reach an end of the range, what lies beyond that end is not asked for.
    """
    length_ms = schema.TIMEFRAMES_MS[query.timeframe]
    forming_start_ms = newest_ms - _FORMING_CANDLES * length_ms
    forming: dict[str, queries.CandlePoint] = {}
    width = 6 + len(query.columns)
    points, none = queries.candle_points(len(query.columns)), np.empty((0, width))
    found = dict.fromkeys(query.pairs, none)
    short: Sequence[str] = query.pairs
    for number, (start_ms, end_ms) in enumerate(_windows(query, newest_ms, length_ms)):
        # Forming candles are asked for in the first turn alone.
        forming_from_ms = forming_start_ms if query.forming and number == 0 else None
        requests = [
            _request(query, found, members, (start_ms, end_ms), forming_from_ms)
            for members in _halves(short)
        ]
        for members, answers in zip(_halves(short), http.ask_at_once(requests), strict=True):
            if forming_from_ms is not None:
                forming |= _newest(answers[0], points)
            for pair, answer in zip(members, answers[-len(members) :], strict=True):
                # Newest first.
                rows = answer.numbers(points, width, some_absent=width > 6).get(pair, none)[::-1]
                _check_rising(rows, pair, answer)
                found[pair] = np.vstack([rows, found[pair]]) if len(found[pair]) else rows
        short = [pair for pair in short if _lacking(query, found[pair])]
        if not short:
            break
    edges = _edges(http, query, found, length_ms)
    if query.forming:
        forming |= _older_forming(http, query, forming, edges, forming_start_ms)
    return [
        _rows(found[pair], edges[pair], forming.get(pair), told.get(pair)) for pair in query.pairs
    ]


def _halves(pairs: Sequence[str]) -> list[Sequence[str]]:
    """Of many pairs two requests at once: a server works through the statements of one alone."""
    middle = len(pairs) // 2
    return [pairs[:middle], pairs[middle:]] if len(pairs) >= _MANY else [pairs]


def _request(
    query: CandleQuery,
    found: Mapping[str, _Floats],
    pairs: Sequence[str],
    window: tuple[int, int],
    forming_from_ms: int | None,
) -> Request:
    """Ask for what `pairs` lack, a statement for each; before these for the forming ones, if wanted.

    Of several pairs in one statement the server would merge the points by time and part them again,
    which takes it half as long again.
    """
    condition, bound = queries.among(pairs)
    statements = [
        queries.candles(
            query.timeframe, alone, *window, _lacking(query, found[pair]), query.columns
        )
        for alone, pair in zip(queries.each_of(pairs), pairs, strict=True)
    ]
    if forming_from_ms is not None:
        # Read before the closed ones: a candle that closes in between is in the answer once, and none
        # is there without its predecessor.
        statements.insert(
            0, queries.forming(query.timeframe, condition, forming_from_ms, query.columns)
        )
    return Request(statements, bound)


def _windows(query: CandleQuery, newest_ms: int, length_ms: int) -> Iterator[tuple[int, int]]:
    """Yield ranges to look into, (start, end) in ms, the later before the earlier."""
    start_ms, end_ms = query.start_ms, query.end_ms
    if start_ms >= end_ms:
        return
    if query.limit is None:
        yield start_ms, end_ms
        return
    reach_ms = query.limit * length_ms
    # As many as asked for if none is missing.
    top_ms = min(newest_ms + length_ms, end_ms)
    for first_ms in (top_ms - reach_ms, top_ms - (1 + _WIDER) * reach_ms, start_ms):
        if end_ms > start_ms:
            yield max(first_ms, start_ms), end_ms
            end_ms = max(first_ms, start_ms)


def _lacking(query: CandleQuery, rows: _Floats) -> int | None:
    """How many more rows are wanted; None: there is no end to it."""
    return None if query.limit is None else query.limit - len(rows)


def _check_rising(rows: _Floats, pair: str, answer: StatementAnswer) -> None:
    if not (rows[1:, 0] > rows[:-1, 0]).all():
        raise answer.foreign(
            f"{pair} has several candles at one time: points with a further tag are among them"
        )


def _newest(
    answer: StatementAnswer, points: RowType[queries.CandlePoint]
) -> dict[str, queries.CandlePoint]:
    return {pair: rows[-1] for pair, rows in answer.by_pair(points).items()}


# --- what lies beyond the rows ----------------------------------------------------------------------

_Edges = tuple[int | None, int | None]


def _edges(
    http: InfluxHttp, query: CandleQuery, found: Mapping[str, _Floats], length_ms: int
) -> dict[str, _Edges]:
    """Open times of the first and newest closed candle of each pair.

    What lies outside the range is asked for where it matters. What lies in it is read from the rows
    alone: asked for now, a candle that has come since they were read would count, and be absent from them.
    """
    times_ms = {
        pair: [int(rows[0, 0]), int(rows[-1, 0])] if len(rows) else []
        for pair, rows in found.items()
    }
    open_ends = {pair: _open_ends(query, rows, length_ms) for pair, rows in found.items()}
    unsure = [pair for pair, ends in open_ends.items() if any(ends)]
    if unsure:
        condition, bound = queries.among(unsure)
        own_ms, own_end_ms = query.own
        beyond = (
            (own_ms, min(query.start_ms, own_end_ms)),
            (query.end_ms, min(own_end_ms, queries.OPEN_END_MS)),
        )
        statements = [
            queries.edge(which, query.timeframe, condition, *beyond[end])
            for end in (0, 1)
            if any(open_ends[pair][end] for pair in unsure)
            for which in ("first", "last")
        ]
        for answer in http.ask(statements, bound):
            points = answer.by_pair(queries.OPENS)
            for pair in unsure:
                times_ms[pair] += [open_ms for open_ms, _ in points.get(pair, ())]
    return {pair: (min(t, default=None), max(t, default=None)) for pair, t in times_ms.items()}


def _open_ends(query: CandleQuery, rows: _Floats, length_ms: int) -> tuple[bool, bool]:
    """Whether candles before the range, and after it, could change what the rows show of its ends."""
    before = query.own[1] > query.own[0] < query.start_ms
    after = query.end_ms < min(query.own[1], queries.OPEN_END_MS)
    cut = _lacking(query, rows) == 0
    # Of parts that make no whole candle, the age goes by what lies outside.
    if len(rows) == 0 or (query.whole_ms not in (None, length_ms) and not cut):
        return before, after
    first_slot_ms = schema.ceil_to(query.start_ms, length_ms)
    last_slot_ms = schema.ceil_to(query.end_ms, length_ms) - length_ms
    return (
        before and not cut and bool(rows[0, 0] > first_slot_ms),
        after and bool(rows[-1, 0] < last_slot_ms),
    )


def _older_forming(
    http: InfluxHttp,
    query: CandleQuery,
    forming: Mapping[str, queries.CandlePoint],
    edges: Mapping[str, _Edges],
    looked_from_ms: int,
) -> dict[str, queries.CandlePoint]:
    """Forming candles from before `looked_from_ms`, of pairs that may have such a one."""
    length_ms = schema.TIMEFRAMES_MS[query.timeframe]
    late = [
        pair
        for pair in query.pairs
        if pair not in forming
        and ((newest_ms := edges[pair][1]) is None or newest_ms + length_ms < looked_from_ms)
    ]
    if not late:
        return {}
    condition, bound = queries.among(late)
    (answer,) = http.ask([queries.forming(query.timeframe, condition, 0, query.columns)], bound)
    return _newest(answer, queries.candle_points(len(query.columns)))


def _rows(
    values: _Floats,
    edges: _Edges,
    forming: queries.CandlePoint | None,
    told: Interval | None,
) -> CandleRows:
    first_ms, newest_ms = edges
    # The points of forming candles stay after these have closed.
    if forming is not None and newest_ms is not None and as_float(forming[0]) <= newest_ms:
        forming = None
    row = None if forming is None else tuple(map(as_float, forming))
    return CandleRows(values, first_ms, newest_ms, row, told)
