"""Whether InfluxDB holds what the journal holds, row by row: for the demonstration and the tests."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from marketfeed import schema
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.journal import KIND
from marketfeed.storage.ranges import Acknowledged

Row: TypeAlias = Mapping[str, Any]

_EVERYTHING: Final = 2**40


class InfluxComparison(msgspec.Struct, frozen=True):
    """Rows by measurement; `missing` of the journal's are not in InfluxDB as they stand, `extra` only there.

    A row with another value counts as both. A catalog's row that stands there at other times, too, does not.
    """

    rows: dict[str, int]
    missing: int
    extra: int
    examples: list[str]


async def compare(
    admin: InfluxAdmin, bucket: str, journal_path: Path, collector: str
) -> InfluxComparison:
    """Compare everything but forming candles. Raises InfluxError, JournalError."""
    outbox = JournalOutbox(journal_path, collector)
    try:
        nothing = Acknowledged.alike(KIND.measurements)
        expected = set(outbox.newest(nothing, _EVERYTHING).lines)
    finally:
        outbox.close()
    found: set[str] = set()
    for (name,) in [
        row for series in await admin.query("SHOW MEASUREMENTS", bucket) for row in series.values
    ]:
        write = _writer_of(name)
        if write is not None:
            # The name is one of ours, and holds no quote.
            text = f'SELECT * FROM "{name}"'  # noqa: S608
            for series in await admin.query(text, bucket):
                for row in series.values:
                    found.add(_line(name, write, dict(zip(series.columns, row, strict=True))))
    rows = Counter(line.partition(",")[0] for line in expected)
    # The catalog is shipped again and again, at other times.
    catalog = {_untimed(line) for line in expected if line.startswith(schema.FEED_CATALOG)}
    found = {line for line in found if line in expected or _untimed(line) not in catalog}
    missing, extra = expected - found, found - expected
    return InfluxComparison(
        rows, len(missing), len(extra), [*sorted(missing)[:5], *sorted(extra)[:5]]
    )


def _untimed(line: str) -> str:
    return line.rpartition(" ")[0]


def _line(name: str, write: Callable[[Row], str], row: Row) -> str:
    try:
        return write(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Not one of ours: a field is absent, or of another type.
        return f"{name} {row}"


def _writer_of(measurement: str) -> Callable[[Row], str] | None:
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
