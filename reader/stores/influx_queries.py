"""The questions to an InfluxDB as InfluxQL text; `influx.py` asks them.

Pure. A text is made of constants, measurement names of the schema and whole numbers; pairs are bound by
the server (`$p0`, `$p1` …) and never become part of it. Every range has both ends: start <= time < end.

`GROUP BY pair` gives a series for each pair. Of a selector like `last(open)` the other columns come from
the same point; two selectors in one statement would be mixed from two.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from marketfeed import schema
from reader.stores.influx_answers import RowType

OPEN_END_MS: Final = 9_223_372_036_854
"""The last millisecond that InfluxDB can date: later ends of a range are open."""

CandlePoint = tuple[float | None, ...]
OPENS: Final = RowType(tuple[int, float])
OPENS_OF: Final = RowType(tuple[int, float, str | None])
SETTLED_LAST: Final = RowType(tuple[int, float, str | None])
SETTLED_LAST_OF: Final = RowType(tuple[int, float | None, str | None, str | None])
SETTLED_RATES: Final = RowType(tuple[int, float, float | None, str | None])
ANNOUNCED: Final = RowType(tuple[int, int])
MARK_MINUTES: Final = RowType(tuple[float, float, float, float, float])
CATALOG_FIRST: Final = RowType(tuple[int, str])
CATALOG_LAST: Final = RowType(tuple[int, str, int | None, int | None, bool | None])

COVERAGE: Final = RowType(tuple[int | None, ...])
LIVES: Final = RowType(tuple[int, str])

_OHLCV: Final = ("open", "high", "low", "close", "volume")


@cache
def candle_points(more: int) -> RowType[Any]:
    """The type of candles' rows: all numbers are there but the last `more`, which may be None."""
    columns = (*[float] * 6, *[float | None] * more)
    return RowType(tuple[columns])  # type: ignore[valid-type]  # known at run time


def among(pairs: Sequence[str], first: int = 0) -> tuple[str, dict[str, str]]:
    """The condition that a point is of one of `pairs`, and its parameters, numbered from `first` on."""
    bound = {f"p{number}": pair for number, pair in enumerate(pairs, first)}
    return "(" + " OR ".join(f"pair = ${name}" for name in bound) + ") AND ", bound


def each_of(pairs: Sequence[str]) -> list[str]:
    """The condition that a point is of the pair, for each of `pairs`; the parameters are those of `among`."""
    return [f"pair = $p{number} AND " for number in range(len(pairs))]


def candles(
    timeframe: str,
    condition: str,
    start_ms: int,
    end_ms: int,
    limit: int | None,
    more: Sequence[str] = (),
) -> str:
    """The newest `limit` closed candles of each pair, newest first, with `more` of their fields."""
    newest = "" if limit is None else f" LIMIT {limit:d}"
    return (
        f"SELECT {', '.join((*_OHLCV, *more))} FROM {_closed(timeframe)} "
        f"WHERE {condition}{_between(start_ms, end_ms)} "
        f"GROUP BY pair ORDER BY time DESC{newest}"
    )


def forming(timeframe: str, condition: str, start_ms: int, more: Sequence[str] = ()) -> str:
    """The newest forming candle of each pair, with `more` of its fields."""
    measurement = schema.forming_measurement(_known(timeframe))
    return last_of_each(measurement, (*_OHLCV, *more), condition, start_ms)


def edge(which: str, timeframe: str, condition: str, start_ms: int, end_ms: int) -> str:
    """The `first` or `last` closed candle of each pair."""
    return (
        f"SELECT {which}(open) FROM {_closed(timeframe)} "
        f"WHERE {condition}{_between(start_ms, end_ms)} GROUP BY pair"
    )


def at(timeframe: str, open_time_ms: int) -> str:
    """The closed candles that open at one time, with their pairs."""
    return f"SELECT open, pair FROM {_closed(timeframe)} WHERE time = {open_time_ms:d}ms"


def last_of_each(measurement: str, columns: Sequence[str], condition: str, start_ms: int) -> str:
    """The newest point of each pair that has the first of `columns`, with the others of that point."""
    chosen = ", ".join([f"last({columns[0]})", *columns[1:]])
    return (
        f'SELECT {chosen} FROM "{measurement}" '
        f"WHERE {condition}{_between(start_ms, OPEN_END_MS)} GROUP BY pair"
    )


def newest_points(measurement: str, columns: Sequence[str], start_ms: int, limit: int) -> str:
    """The newest points of all pairs, newest first, each with its pair behind the columns."""
    return (
        f'SELECT {", ".join(columns)}, pair FROM "{measurement}" '
        f"WHERE {_between(start_ms, OPEN_END_MS)} ORDER BY time DESC LIMIT {limit:d}"
    )


def settled(condition: str, start_ms: int, end_ms: int) -> str:
    """Settled funding rates, oldest first."""
    between = _between(start_ms, end_ms)
    return (
        f"SELECT rate, special_rate, kinds FROM {schema.FUNDING_SETTLED} WHERE {condition}{between}"
    )


def newest_settled(condition: str, limit: int) -> str:
    """The newest `limit` settled funding rates of each pair, newest first."""
    return (
        f"SELECT rate, special_rate, kinds FROM {schema.FUNDING_SETTLED} "
        f"WHERE {condition}{_between(0, OPEN_END_MS)} GROUP BY pair ORDER BY time DESC LIMIT {limit:d}"
    )


def announced(which: str, condition: str, start_ms: int, end_ms: int) -> str:
    """What settlement was announced `first` or `last` of each pair."""
    return (
        f"SELECT {which}(next_funding_time) FROM {schema.FUNDING_RATE} "
        f"WHERE {condition}{_between(start_ms, end_ms)} GROUP BY pair"
    )


def announced_changes(condition: str, start_ms: int) -> str:
    """By how many ms later than before a settlement of each pair was announced, at each change of that."""
    return (
        "SELECT change FROM (SELECT difference(next_funding_time) AS change "
        f"FROM {schema.FUNDING_RATE} WHERE {condition}{_between(start_ms, OPEN_END_MS)} "
        "GROUP BY pair) WHERE change <> 0 GROUP BY pair"
    )


def announced_after(condition: str, settled_ms: int, end_ms: int) -> str:
    """What was first announced of each pair to come after a settlement."""
    return (
        f"SELECT first(next_funding_time) FROM {schema.FUNDING_RATE} "
        f"WHERE {condition}next_funding_time > {settled_ms:d} "
        f"AND {_between(settled_ms, end_ms)} GROUP BY pair"
    )


def mark_minutes(condition: str, start_ms: int, end_ms: int) -> str:
    """Each minute's first, greatest, least and last mark price, oldest first."""
    chosen = ", ".join(f"{which}(mark_price)" for which in ("first", "max", "min", "last"))
    return (
        f"SELECT {chosen} FROM {schema.MARK_PRICE} WHERE {condition}{_between(start_ms, end_ms)} "
        "GROUP BY time(1m), pair fill(none)"
    )


def catalog_first(condition: str) -> str:
    """What was noted first of each pair that is collected."""
    return (
        f"SELECT first(timeframes) FROM {schema.FEED_CATALOG} "
        f"WHERE {condition}{_between(0, OPEN_END_MS)} GROUP BY pair"
    )


def catalog_last(condition: str, start_ms: int) -> str:
    """What was noted last of each pair that is collected, at `start_ms` or later."""
    columns = ("timeframes", "listed", "ended", "dropped")
    return last_of_each(schema.FEED_CATALOG, columns, condition, start_ms)


def mark_hours(condition: str, start_ms: int, end_ms: int) -> str:
    """The hourly candles of the mark price that open in a range."""
    return (
        f"SELECT open, high, low, close FROM {schema.MARK_1H} "
        f"WHERE {condition}{_between(start_ms, end_ms)} GROUP BY pair"
    )


def coverage_last(timeframes: Sequence[str], start_ms: int, condition: str = "") -> str:
    """What each collector has told last of each pair, at `start_ms` or later.

    That are two edges a timeframe, and up to when settlements are stored.
    """
    fields = [field for name in timeframes for field in schema.coverage_fields(_known(name))]
    return (
        f"SELECT {', '.join([*fields, schema.SETTLED_TO])} FROM {schema.FEED_COVERAGE} "
        f"WHERE {condition}{_between(start_ms, OPEN_END_MS)} "
        "GROUP BY pair, collector ORDER BY time DESC LIMIT 1"
    )


def lives_last(start_ms: int, condition: str = "") -> str:
    """What each collector has told last of each pair's lives, at `start_ms` or later."""
    return (
        f"SELECT {schema.LIVES} FROM {schema.FEED_COVERAGE} "
        f"WHERE {condition}{_between(start_ms, OPEN_END_MS)} "
        "GROUP BY pair, collector ORDER BY time DESC LIMIT 1"
    )


def _between(start_ms: int, end_ms: int) -> str:
    first, end = (min(max(ms, 0), OPEN_END_MS) for ms in (start_ms, end_ms))
    return f"time >= {first:d}ms AND time < {end:d}ms"


def _closed(timeframe: str) -> str:
    return f'"{schema.ohlcv_measurement(_known(timeframe))}"'


def _known(timeframe: str) -> str:
    if timeframe not in schema.SERIES_MS:
        raise ValueError(f"found timeframe {timeframe!r}, expected one of the schema's")
    return timeframe
