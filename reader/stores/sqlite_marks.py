"""The hourly candles of mark prices in a journal, which older ones do not have."""

from collections.abc import Callable
from typing import Any

from marketfeed import schema
from reader.stores import sqlite_queries as queries
from reader.stores.sqlite_coverage import Extent, kinds

Execute = Callable[..., Any]
"""`execute` of an open connection."""


def hours(execute: Execute, pair: str, start_ms: int, end_ms: int) -> list[tuple[Any, ...]]:
    """Rows (open time, open, high, low, close) with start <= open time < end, ascending."""
    if not _has_table(execute):
        return []
    asked = {"pair": pair, "start": start_ms, "end": end_ms}
    rows: list[tuple[Any, ...]] = execute(queries.MARK_HOURS, asked).fetchall()
    return rows


def extent(execute: Execute, pair: str) -> Extent:
    """What is told of a pair's."""
    if not _has_table(execute):
        return Extent([])
    asked = {"pair": pair, **kinds(schema.MARK_1H)}
    rows = execute(queries.MARK_EXTENT, asked).fetchall()
    return Extent(rows, execute(queries.OPEN_HOLES, asked).fetchall())


def _has_table(execute: Execute) -> bool:
    (found,) = execute(schema.HAS_MARK_1H).fetchone()
    return bool(found)
