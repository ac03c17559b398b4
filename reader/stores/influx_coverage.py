"""Where series are whole, out of an InfluxDB: the last point that each collector has written of each pair.

Pure. A collector that runs writes its points again every minute, at the hour's start: the last hours have
all of them. What one that has stopped told is looked for a week back, and further only if there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from reader.coverage import Interval, furthest
from reader.life import OPEN_MS, LifeRow, Statement, joined
from reader.rows import CatalogRow
from reader.stores import influx_queries as queries
from reader.stores.influx_answers import StatementAnswer
from reader.stores.lives_text import parsed

TOLD_S: Final = 60.0
"""Wall seconds for which is believed what was told: it is told every minute, and speaks of older candles."""
WEEK_MS: Final = 7 * schema.DAY_MS
_BACK_MS: Final = 2 * schema.HOUR_MS

Point = Mapping[str, Interval]
"""What one collector tells of a pair, by timeframe, and of its settlements."""


class Told(NamedTuple):
    """What collectors have told: pair -> collector -> its last point; the newest one's time, 0 of none.

    `statements` are what they told of lives, and `lives` what comes of that. `times_ms` are those of the
    `points`.
    """

    points: Mapping[str, Mapping[str, Point]]
    newest_ms: int
    statements: Mapping[str, Mapping[str, Statement]]
    lives: Mapping[str, tuple[LifeRow, ...]]
    times_ms: Mapping[str, Mapping[str, int]]

    def lives_to_ms(self, pair: str) -> int:
        """Up to when lives are told: as far as one who tells of them has stored something of the pair.

        Lives are told with what is stored, in one point. Of one who tells of them no more, when it did last.
        """
        points, times_ms = self.points.get(pair, {}), self.times_ms.get(pair, {})
        told_ms = [one.told_ms for one in self.statements.get(pair, {}).values()]
        stored_ms = [
            interval.until_ms
            for collector, one in self.statements.get(pair, {}).items()
            if times_ms.get(collector) == one.told_ms
            for name, interval in points[collector].items()
            if name != schema.SETTLED_TO
        ]
        return max([*told_ms, *stored_ms], default=OPEN_MS)

    def intervals(self, pairs: Sequence[str], timeframe: str) -> dict[str, Interval]:
        """Pair -> where its series is whole, without those of which nobody tells."""
        found = {
            pair: furthest(
                point[timeframe]
                for point in self.points.get(pair, {}).values()
                if timeframe in point
            )
            for pair in pairs
        }
        return {pair: interval for pair, interval in found.items() if interval is not None}

    def since_ms(self, newest_ms: int, host_ms: int) -> int:
        """Where to look from for what is newer; `newest_ms` is the newest time seen of anything else.

        By the host's clock at most: behind a point from the future nothing else would be seen.
        """
        return min(max(self.newest_ms, newest_ms), host_ms) - _BACK_MS

    def with_newer(self, timeframes: Sequence[str], answer: StatementAnswer) -> "Told":
        """Add the answer to `queries.coverage_last` of these timeframes."""
        points = {pair: dict(each) for pair, each in self.points.items()}
        times_ms = {pair: dict(each) for pair, each in self.times_ms.items()}
        newest_ms = self.newest_ms
        for tags, rows in answer.by_tags(queries.COVERAGE):
            time_ms, *edges, settled_to_ms = rows[0]
            # Settlements are told of as a series without a beginning.
            names = (*timeframes, schema.SETTLED_TO)
            edges += [0, settled_to_ms]
            collectors = points.setdefault(tags.get("pair", ""), {})
            collectors[tags.get("collector", "")] = {
                name: Interval(from_ms, until_ms)
                for name, from_ms, until_ms in zip(names, edges[::2], edges[1::2], strict=True)
                if from_ms is not None and until_ms is not None
            }
            times_ms.setdefault(tags.get("pair", ""), {})[tags.get("collector", "")] = time_ms or 0
            newest_ms = max(newest_ms, time_ms or 0)
        return self._replace(points=points, newest_ms=newest_ms, times_ms=times_ms)

    def with_lives(self, answer: StatementAnswer) -> "Told":
        """Add the answer to `queries.lives_last`."""
        statements, lives = dict(self.statements), dict(self.lives)
        for tags, rows in answer.by_tags(queries.LIVES):
            told_ms, text = rows[0]
            try:
                told = Statement(told_ms, parsed(text))
            except ValueError as error:
                raise answer.foreign(
                    f"{schema.FEED_COVERAGE} of {tags.get('pair')}: {error}"
                ) from error
            pair = tags.get("pair", "")
            statements[pair] = {**statements.get(pair, {}), tags.get("collector", ""): told}
            lives.pop(pair, None)
        lives |= {
            pair: joined(each.values()) for pair, each in statements.items() if pair not in lives
        }
        return self._replace(statements=statements, lives=lives)


NOTHING: Final = Told({}, 0, {}, {}, {})


def timeframes_of(rows: Iterable[CatalogRow]) -> tuple[str, ...]:
    """The series that are collected of any pair, mark candles last: the server reads no other fields."""
    collected = {timeframe for row in rows for timeframe in row.timeframes}
    found = tuple(timeframe for timeframe in schema.TIMEFRAMES_MS if timeframe in collected)
    return (*found, schema.MARK_1H) if found else ()
