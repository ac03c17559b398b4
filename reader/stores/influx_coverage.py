"""Where series are whole, out of an InfluxDB: the last point that each collector has written of each pair.

Pure. A collector that runs writes its points again every minute, at the hour's start: the last hours have
all of them. What one that has stopped told is looked for a week back, and further only if there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from reader.coverage import Interval, furthest
from reader.stores import influx_queries as queries
from reader.stores.influx_answers import StatementAnswer

WEEK_MS: Final = 7 * schema.DAY_MS
_BACK_MS: Final = 2 * schema.HOUR_MS
_PLACES: Final = {
    name: slice(2 * place, 2 * place + 2) for place, name in enumerate(schema.TIMEFRAMES_MS)
}

Fields = tuple[int | None, ...]
"""The fields of a point, in the order of `queries.coverage_last`."""


class Told(NamedTuple):
    """What collectors have told: pair -> collector -> the fields of its last point; the newest one's time."""

    points: Mapping[str, Mapping[str, Fields]]
    newest_ms: int

    def interval(self, pair: str, timeframe: str) -> Interval | None:
        """Where a series is whole, None where nobody tells."""
        place = _PLACES[timeframe]
        each = [fields[place] for fields in self.points.get(pair, {}).values()]
        return furthest(
            Interval(from_ms, until_ms)
            for from_ms, until_ms in each
            if from_ms is not None and until_ms is not None
        )

    def intervals(self, pairs: Sequence[str], timeframe: str) -> dict[str, Interval]:
        """The same of many pairs, without those of which nobody tells."""
        found = ((pair, self.interval(pair, timeframe)) for pair in pairs)
        return {pair: interval for pair, interval in found if interval is not None}

    def since_ms(self, newest_ms: int, host_ms: int) -> int:
        """Where to look from for what is newer; `newest_ms` is the newest time seen of anything else.

        By the host's clock at most: behind a point from the future nothing else would be seen.
        """
        return min(max(self.newest_ms, newest_ms), host_ms) - _BACK_MS

    def with_newer(self, answer: StatementAnswer) -> "Told":
        """Add what an answer to `queries.coverage_last` holds."""
        points = {pair: dict(each) for pair, each in self.points.items()}
        newest_ms = self.newest_ms
        for tags, rows in answer.by_tags(queries.COVERAGE):
            time_ms, *fields = rows[0]
            points.setdefault(tags.get("pair", ""), {})[tags.get("collector", "")] = tuple(fields)
            newest_ms = max(newest_ms, time_ms or 0)
        return Told(points, newest_ms)


NOTHING: Final = Told({}, 0)
