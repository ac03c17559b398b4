"""Rows of a bucket as lines: what is written there is the same as what a journal holds if its line is."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from marketfeed import schema
from marketfeed.influxdb import line_protocol as lines

PURE = True

Row: TypeAlias = Mapping[str, Any]


def line_of(name: str, write: Callable[[Row], str], row: Row) -> str:
    """A bucket's row as the line that would have written it; one that is not ours as it is."""
    try:
        return write(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Not one of ours: a field is absent, or of another type.
        return f"{name} {row}"


def writer_of(measurement: str) -> Callable[[Row], str] | None:
    """What makes lines of a measurement's rows, None of those that are not compared."""
    if measurement.startswith(schema.OHLCV_PREFIX):
        return lambda row: _candle(measurement, row)
    return _WRITERS.get(measurement)


def _tag(row: Row) -> str:
    return lines.escape_tag(row["pair"])


def _candle(measurement: str, row: Row) -> str:
    names = (name for name in schema.CANDLE_FIELDS if name != schema.TAKER_BUY_QUOTE)
    *numbers, trades = (row[name] for name in names)
    o, high, low, c, volume, quote_volume, taker_buy_volume = map(float, numbers)
    return lines.candle_text(
        measurement,
        _tag(row),
        o,
        high,
        low,
        c,
        volume,
        quote_volume,
        taker_buy_volume,
        trades,
        row["time"],
        _optional(row.get(schema.TAKER_BUY_QUOTE)),
    )


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


_WRITERS: Final[Mapping[str, Callable[[Row], str]]] = {
    schema.MARK_PRICE: lambda row: lines.mark_price_text(
        _tag(row), row["time"], float(row["mark_price"]), _optional(row.get("index_price"))
    ),
    schema.MARK_1H: lambda row: lines.mark_candle_text(
        _tag(row),
        float(row["open"]),
        float(row["high"]),
        float(row["low"]),
        float(row["close"]),
        row["time"],
    ),
    schema.FUNDING_RATE: lambda row: lines.funding_rate_text(
        _tag(row),
        row["time"],
        float(row["rate"]),
        _optional(row.get("settled_rate")),
        row["next_funding_time"],
    ),
    schema.FUNDING_SETTLED: lambda row: lines.funding_settled_text(
        _tag(row),
        row["time"],
        float(row["rate"]),
        _optional(row.get("mark_price")),
        special_rate=_optional(row.get("special_rate")),
        kinds=row["kinds"],
    ),
    schema.FEED_GAP: lambda row: lines.gap_text(
        _tag(row),
        row["kind"],
        row["collector"],
        row["time"],
        row.get("end"),
        row["healed"],
        row["state"],
    ),
    schema.FEED_CATALOG: lambda row: lines.catalog_text(
        _tag(row),
        row["timeframes"].removeprefix(f"{schema.DROPPED},"),
        row.get("listed"),
        row.get("ended"),
        row["time"],
        dropped=bool(row.get("dropped")),
    ),
}
