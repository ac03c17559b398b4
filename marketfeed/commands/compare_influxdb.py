"""Whether InfluxDB holds what the journal holds, row by row: for the demonstration and the tests."""

from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.bucket_rows import line_of, writer_of
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.journal import KIND
from marketfeed.storage.ranges import Acknowledged

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
        write = writer_of(name)
        if write is not None:
            # The name is one of ours, and holds no quote.
            text = f'SELECT * FROM "{name}"'  # noqa: S608
            for series in await admin.query(text, bucket):
                for row in series.values:
                    found.add(line_of(name, write, dict(zip(series.columns, row, strict=True))))
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
