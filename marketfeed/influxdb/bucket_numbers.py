"""What a bucket holds, in numbers and as lines: InfluxQL over `/query`, which 1.x, 2.x and 3 answer."""

import asyncio
from typing import Final

from marketfeed.grid import TimeRange
from marketfeed.influxdb.admin import InfluxAdmin, ResultSeries, StatementError
from marketfeed.influxdb.bucket_rows import line_of, writer_of
from marketfeed.influxdb.reconcile import Numbers

_STEPS: Final = {3_600_000: "1h", 86_400_000: "1d"}


class BucketNumbers:
    """Asks the database `bucket` by `admin`. Raises InfluxError, UnreadableError where it may not be read.

    Names of measurements and fields are ours; a pair's name is bound, never part of a text.
    """

    def __init__(self, admin: InfluxAdmin, bucket: str) -> None:
        self._admin = admin
        self._bucket = bucket

    async def require_readable(self) -> None:
        """Raise UnreadableError where it is not."""
        await self._admin.query("SHOW MEASUREMENTS LIMIT 1", self._bucket)

    async def of_pairs(
        self, measurement: str, field: str, start_ms: int, end_ms: int
    ) -> dict[str, Numbers]:
        """The numbers of a range, by pair."""
        where = f"WHERE time >= {start_ms}ms AND time < {end_ms}ms GROUP BY pair"
        found: dict[str, list[float]] = {}
        # As two statements: in one, newer servers need twice as long.
        for series in await self._ask(measurement, field, where):
            for _, value in series.values:
                found.setdefault(series.tags.get("pair", ""), []).append(value)
        return {
            pair: Numbers(int(both[0]), both[1]) for pair, both in found.items() if len(both) == 2
        }

    async def of_pair(
        self, measurement: str, field: str, pair: str, start_ms: int, end_ms: int, step_ms: int
    ) -> dict[int, Numbers]:
        """A pair's numbers of a range, by the start of each tile of `step_ms` (an hour or a day)."""
        where = (
            f"WHERE pair = $pair AND time >= {start_ms}ms AND time < {end_ms}ms "
            f"GROUP BY time({_STEPS[step_ms]}) fill(none)"
        )
        found: dict[int, list[float]] = {}
        for series in await self._ask(measurement, field, where, pair=pair):
            for at_ms, value in series.values:
                found.setdefault(at_ms, []).append(value)
        # A count of 0 has no sum.
        return {
            at_ms: Numbers(int(both[0]), both[1]) for at_ms, both in found.items() if len(both) == 2
        }

    async def lines(self, measurement: str, pair: str | None, span: TimeRange) -> list[str]:
        """The rows of a range (`pair` None: of all pairs) as the lines that would have written them."""
        write = writer_of(measurement)
        if write is None:
            raise ValueError(f"measurement: found {measurement!r}, expected one of the journal's")
        text = (
            f'SELECT * FROM "{measurement}" WHERE '  # noqa: S608 - a name of ours
            f"{'' if pair is None else 'pair = $pair AND '}"
            f"time >= {span.start_ms}ms AND time < {span.end_ms}ms"
        )
        bound = {} if pair is None else {"pair": pair}
        answer = await self._admin.query(text, self._bucket, **bound)
        for series in answer:
            self._require_whole(series.partial)
        # Thousands of rows: the event loop has candles to pass on.
        return await asyncio.to_thread(
            lambda: [
                line_of(measurement, write, dict(zip(series.columns, row, strict=True)))
                for series in answer
                for row in series.values
            ]
        )

    async def _ask(
        self, measurement: str, field: str, where: str, **bound: str
    ) -> list[ResultSeries]:
        text = "; ".join(
            f'SELECT {what}("{field}") FROM "{measurement}" {where}'  # noqa: S608 - names of ours
            for what in ("count", "sum")
        )
        answer = await self._admin.query(text, self._bucket, **bound)
        for series in answer:
            self._require_whole(series.partial)
        return answer

    def _require_whole(self, partial: bool) -> None:
        if partial:
            # What it leaves out would be taken for lost, and sent again for ever.
            raise StatementError(
                "the server cuts its answers off (max-row-limit): nothing can be compared"
            )
