"""What is collected, out of an InfluxDB: each pair's first point and its last one; and where it is whole.

Collectors send each pair's row again every day, so that a bucket's retention does not take it. All of a
year's points are half a second's work for the server, so all of them are looked at seldom, those of the last
days often, and a pair that is not known by its name.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from marketfeed import schema
from reader.coverage import Interval
from reader.life import with_listing
from reader.rows import CatalogRow
from reader.stores import influx_queries as queries
from reader.stores.influx_answers import StatementAnswer
from reader.stores.influx_coverage import NOTHING, TOLD_S, WEEK_MS, Told, timeframes_of
from reader.stores.influx_http import InfluxHttp

CATALOG_S: Final = 5.0
"""Wall seconds for which the catalog is believed; a pair that is not in it is looked up at once."""

FEW: Final = 16
"""Up to so many pairs are looked at afresh by their names, more with all others."""

WHOLE_S: Final = 3_600.0
"""Wall seconds after which all of it is looked at again: what came late may lie far back."""

_BACK_MS: Final = 2 * schema.DAY_MS
"""How far behind the newest point a look at what is new begins: in a day each row has been sent again."""


class _Seen(NamedTuple):
    """The rows, by pair; when (monotonic) they and all of them were asked for; the newest point's time.

    `told` is what collectors told, `told_s` when they were asked.
    """

    rows: Mapping[str, CatalogRow]
    asked_s: float
    whole_s: float
    newest_ms: int
    told: Told
    told_s: float


class InfluxCatalog:
    """The catalog of the bucket that `http` asks. Looks into it at once; raises as `http` does."""

    def __init__(self, http: InfluxHttp) -> None:
        self._http = http
        self._seen = self._whole()

    def __len__(self) -> int:
        """How many pairs were collected when it was last looked at."""
        return len(self._seen.rows)

    def rows(self, pairs: Sequence[str] = (), *, afresh: bool = False) -> Mapping[str, CatalogRow]:
        """What is collected, in the order of its pairs, up to CATALOG_S old; `pairs` are looked for.

        `afresh`: what is new of them, and what is told of them, as of now.
        """
        began_s = time.monotonic()
        seen = self._seen
        if not seen.rows or began_s - seen.whole_s >= WHOLE_S:
            seen = self._whole()
        elif began_s - seen.asked_s >= CATALOG_S:
            seen = self._newer(seen, afresh=afresh)
        elif afresh:
            seen = self._newer(seen, pairs if len(pairs) <= FEW else (), afresh=True)
        unknown = [pair for pair in pairs if pair not in seen.rows]
        if unknown and seen.whole_s < began_s:
            found, _ = self._ask(*queries.among(unknown))
            seen = seen._replace(rows=_joined(seen.told, seen.rows, found))
        self._seen = seen
        return seen.rows

    def coverage(self, pairs: Sequence[str], timeframe: str) -> dict[str, Interval]:
        """Pair -> where its series is whole, as was told when `rows` were asked for: no question."""
        return self._seen.told.intervals(pairs, timeframe)

    def _whole(self) -> _Seen:
        asked_s = time.monotonic()
        rows, newest_ms = self._ask("", {})
        told = self._told(timeframes_of(rows.values()))
        return _Seen(_joined(told, rows), asked_s, asked_s, newest_ms, told, asked_s)

    def _told(self, timeframes: Sequence[str]) -> Told:
        """Ask what collectors have told, of the last week or, where nobody has, before.

        What each has told last of lives stays true: it is asked for however old it is.
        """
        if not timeframes:
            return NOTHING
        week_ms = time.time_ns() // 1_000_000 - WEEK_MS
        statements = [queries.coverage_last(timeframes, week_ms), queries.lives_last(0)]
        last, lives = self._http.ask(statements, {})
        told = NOTHING.with_newer(timeframes, last).with_lives(lives)
        if not told.points:
            (last,) = self._http.ask([queries.coverage_last(timeframes, 0)], {})
            told = told.with_newer(timeframes, last)
        return told

    def _newer(self, seen: _Seen, pairs: Sequence[str] = (), *, afresh: bool) -> _Seen:
        """Add to what was seen what has been noted since, of `pairs` alone if given; `afresh`: and told."""
        condition, bound = queries.among(pairs) if pairs else ("", {})
        asked_s = time.monotonic()
        # By the host's clock at most: behind a point from the future nothing else would be seen.
        host_ms = time.time_ns() // 1_000_000
        start_ms = min(seen.newest_ms, host_ms) - _BACK_MS
        statements = [queries.catalog_last(condition, start_ms)]
        told, told_s, timeframes = seen.told, seen.told_s, timeframes_of(seen.rows.values())
        told_ms = told.since_ms(seen.newest_ms, host_ms)
        tell = [
            queries.coverage_last(timeframes, told_ms, condition),
            queries.lives_last(told_ms, condition),
        ]
        if (afresh or asked_s - told_s >= TOLD_S) and timeframes:
            statements += tell
            told_s = asked_s
        last, *answers = self._http.ask(statements, bound)
        since_ms = {pair: row.since_ms for pair, row in seen.rows.items()}
        rows, newest_ms = _rows(last, since_ms)
        new = [pair for pair in rows if pair not in seen.rows]
        if new:
            # They may have been collected before.
            rows |= self._ask(*queries.among(new))[0]
        newest_ms = max(newest_ms, seen.newest_ms)
        if any(_is_relisted(seen.rows.get(pair), row) for pair, row in rows.items()):
            # Its lives have changed, too, perhaps: they are asked for now, and told by the next look at last.
            answers = answers or self._http.ask(tell, bound)
            told_s = -TOLD_S
        if answers:
            coverage, lives = answers
            told = told.with_newer(timeframes, coverage).with_lives(lives)
        rows = _joined(told, seen.rows, rows)
        if pairs:
            # Of the others nothing was asked.
            return seen._replace(rows=rows, told=told, told_s=min(seen.told_s, told_s))
        return _Seen(rows, asked_s, seen.whole_s, newest_ms, told, told_s)

    def _ask(self, condition: str, bound: Mapping[str, str]) -> tuple[dict[str, CatalogRow], int]:
        """Ask for the pairs that fulfil the condition, wherever their points lie; answers as `_rows`."""
        statements = [queries.catalog_first(condition), queries.catalog_last(condition, 0)]
        first, last = self._http.ask(statements, bound)
        firsts = first.by_pair(queries.CATALOG_FIRST)
        return _rows(last, {pair: points[0][0] for pair, points in firsts.items()})


def _rows(last: StatementAnswer, since_ms: Mapping[str, int]) -> tuple[dict[str, CatalogRow], int]:
    """Return the rows out of their last points, and the time of the newest of these."""
    rows: dict[str, CatalogRow] = {}
    newest_ms = 0
    for pair, points in last.by_pair(queries.CATALOG_LAST).items():
        time_ms, timeframes, listed_ms, ended_ms, dropped = points[0]
        if pair:
            # Without a first one it was noted after that was asked for: this is the first.
            began_ms = since_ms.get(pair, time_ms)
            row = CatalogRow.stored(pair, timeframes, began_ms, listed_ms, ended_ms, dropped)
            rows[pair] = row._replace(noted_ms=time_ms)
            newest_ms = max(newest_ms, time_ms)
    return rows, newest_ms


def _is_relisted(before: CatalogRow | None, row: CatalogRow) -> bool:
    return before is not None and before.listed_ms != row.listed_ms


def _joined(told: Told, *parts: Mapping[str, CatalogRow]) -> dict[str, CatalogRow]:
    """Return the rows of all, a later part's before an earlier's, ordered by pair, with their lives."""
    rows = {pair: row for part in parts for pair, row in part.items()}
    return {pair: _with_lives(told, row) for pair, row in sorted(rows.items())}


def _with_lives(told: Told, row: CatalogRow) -> CatalogRow:
    lives, to_ms = told.lives.get(row.pair, ()), told.lives_to_ms(row.pair)
    # A contract is collected once it has been listed: a date that lay ahead is no listing.
    if row.listed_ms is not None and row.listed_ms <= row.noted_ms:
        lives = with_listing(lives, row.listed_ms, to_ms)
    return row._replace(lives=lives, lives_to_ms=to_ms)
