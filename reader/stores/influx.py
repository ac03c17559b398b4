"""What collectors have shipped to an InfluxDB (1.x or 2.x), read over InfluxQL.

The answers are those of a journal that holds the same rows. What differs lies in what is shipped:

* It is there a second or so after it is in the journal, forming candles every 5 s.
* `since` of a pair is the time of its first point in `feed_catalog`, which is when its collection began
  or, in a bucket that was begun later, what was noted of it last before that. Where points are kept for a
  time only it moves on with them.
* Where series are whole, and which lives a pair had, was told up to a minute ago, and is asked for once a
  minute.
* What was settled of a pair at one time is one point; of older collectors it is taken for a regular one.

Every question names a range of time: an unbounded one is 10 times slower over a year of data. Its lower
end comes from the newest time seen in that measurement so far (at first, the host's clock). That is a
belief that can only cost time: where rows or pairs are lacking it is widened, at last to everything.
"""

import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketfeed import schema
from reader.clock import StoreClock
from reader.coverage import Interval
from reader.rows import (
    Announced,
    CandleQuery,
    CandleRows,
    CatalogRow,
    FundingRow,
    MarkRow,
    SettledRow,
)
from reader.settlements import BELIEVED_MS, KNOWN_FOR_MS, changes, settled_rows
from reader.stores import influx_candles
from reader.stores import influx_queries as queries
from reader.stores.influx_answers import RowType, StatementAnswer
from reader.stores.influx_catalog import InfluxCatalog
from reader.stores.influx_http import InfluxHttp, asked_again

POLL_S: Final = 0.25

_NAMED: Final = 16
"""Up to so many pairs are named in a question for latest values; of more, those of all are fetched."""
_POINTS: Final = 2
"""So many points a pair are fetched then: collectors are not in step to the second."""


class _Latest(NamedTuple):
    """A question for the newest point of each pair.

    The first `needed` of `columns` are always there. `back_ms` is how far before the newest time seen it
    is looked for at first. `points` are rows of the columns, `points_of` with the pair behind them.
    """

    measurement: str
    columns: tuple[str, ...]
    needed: int
    back_ms: int
    points: RowType[Any]
    points_of: RowType[Any]


_MARK_PRICE: Final = _Latest(
    schema.MARK_PRICE,
    ("mark_price", "index_price"),
    1,
    2 * schema.MINUTE_MS,
    RowType(tuple[int, float, float | None]),
    RowType(tuple[int, float | None, float | None, str | None]),
)
_FUNDING_RATE: Final = _Latest(
    schema.FUNDING_RATE,
    ("rate", "next_funding_time", "settled_rate"),
    2,
    10 * schema.MINUTE_MS,
    RowType(tuple[int, float, int, float | None]),
    RowType(tuple[int, float | None, int | None, float | None, str | None]),
)
_SETTLED_RATE: Final = _Latest(
    schema.FUNDING_SETTLED,
    ("rate", "kinds"),
    1,
    schema.DAY_MS,
    queries.SETTLED_LAST,
    queries.SETTLED_LAST_OF,
)
_SPECIALS: Final = 16
"""Behind so many that are not regular the newest regular settlement is looked for."""


class InfluxStore:
    """The bucket that `http` asks. Looks into it at once.

    Raises StoreUnavailableError and StoreAuthError, here and from every question.
    """

    poll_s = POLL_S

    def __init__(self, http: InfluxHttp) -> None:
        self._http = http
        self._newest_ms: dict[str, int] = {}
        self._then: dict[str, tuple[int, Announced]] = {}
        try:
            self._catalog = asked_again(InfluxCatalog)(http)
        except BaseException:
            http.close()
            raise

    @property
    def source(self) -> str:
        """The address that is asked, without secrets."""
        return self._http.source

    def close(self) -> None:
        """Close the connections; every later question raises."""
        self._http.close()

    def clock(self) -> StoreClock | None:
        """The server's clock, as its last answer was dated: no question."""
        return self._http.clock

    # --- questions --------------------------------------------------------------------------------

    @asked_again
    def catalog(
        self, pairs: Sequence[str] | None = None, *, afresh: bool = False
    ) -> list[CatalogRow]:
        """What is collected, ordered by pair; of `pairs` alone if given. Some seconds old at most."""
        if pairs is None:
            return list(self._catalog.rows(afresh=afresh).values())
        rows = self._catalog.rows(pairs, afresh=afresh)
        return [rows[pair] for pair in sorted(pairs) if pair in rows]

    @asked_again
    def candles(self, query: CandleQuery) -> list[CandleRows]:
        """Answer `query`, in the order of its pairs."""
        measurement = schema.ohlcv_measurement(query.timeframe)
        # Told before the rows are read: what is told to be stored is among them.
        told = self._catalog.coverage(query.pairs, query.timeframe)
        answer = influx_candles.read(self._http, query, self._believed_ms(measurement), told)
        self._note(measurement, (rows.newest_ms for rows in answer if rows.newest_ms is not None))
        return answer

    def last_close(self, pairs: Sequence[str], timeframe: str) -> int | None:
        """None: one query answers for all pairs."""
        return None

    @asked_again
    def newest(self, timeframe: str) -> Mapping[str, int]:
        """Pair -> open time of its newest closed candle."""
        pairs = [row.pair for row in self.catalog() if timeframe in row.timeframes]
        (rows,) = self._latest(
            pairs,
            _Latest(
                schema.ohlcv_measurement(timeframe),
                ("open",),
                1,
                3 * schema.TIMEFRAMES_MS[timeframe],
                queries.OPENS,
                queries.OPENS_OF,
            ),
        )
        return {pair: row[0] for pair, row in rows.items()}

    @asked_again
    def with_candle(self, timeframe: str, open_time_ms: int) -> set[str]:
        """The pairs whose closed candle of that open time is stored."""
        (answer,) = self._http.ask([queries.at(timeframe, open_time_ms)], {})
        return {pair for _, _, pair in answer.rows(queries.OPENS_OF) if pair is not None}

    @asked_again
    def coverage(self, pairs: Sequence[str], timeframe: str) -> Mapping[str, Interval]:
        """Pair -> where its series is whole, as was told two minutes ago at most; without others."""
        self._catalog.rows()
        return self._catalog.coverage(pairs, timeframe)

    @asked_again
    def mark_prices(self, pairs: Sequence[str]) -> Mapping[str, MarkRow]:
        """The newest mark price of each of `pairs`."""
        (rows,) = self._latest(pairs, _MARK_PRICE)
        return {pair: MarkRow(pair, *row) for pair, row in rows.items()}

    @asked_again
    def mark_minutes(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """Each minute's mark prices with start <= time < end, shape (n, 5), ascending."""
        condition, bound = queries.among([pair])
        (answer,) = self._http.ask([queries.mark_minutes(condition, start_ms, end_ms)], bound)
        return answer.numbers(queries.MARK_MINUTES, 5).get(pair, np.empty((0, 5)))

    @asked_again
    def mark_hours(self, pair: str, start_ms: int, end_ms: int) -> NDArray[np.float64]:
        """The hourly candles of the mark price with start <= open time < end, shape (n, 5), ascending."""
        condition, bound = queries.among([pair])
        (answer,) = self._http.ask([queries.mark_hours(condition, start_ms, end_ms)], bound)
        return answer.numbers(queries.MARK_MINUTES, 5).get(pair, np.empty((0, 5)))

    def mark_coverage(self, pair: str) -> Interval | None:
        """Where they are whole, as was told two minutes ago at most."""
        return self.coverage([pair], schema.MARK_1H).get(pair)

    @asked_again
    def funding_rates(self, pairs: Sequence[str]) -> Mapping[str, FundingRow]:
        """The newest running funding rate of each of `pairs`, with the newest settled one."""
        running, settled = self._latest(pairs, _FUNDING_RATE, _SETTLED_RATE)
        regular = self._newest_regular(settled)
        then = self._announced_then(
            {
                pair: regular[pair]
                for pair, (_, _, next_ms, _) in running.items()
                if pair in regular and next_ms - regular[pair] <= BELIEVED_MS
            }
        )
        return {
            pair: FundingRow(
                pair,
                time_ms,
                rate,
                settled[pair][1] if pair in settled else noted,
                next_ms,
                regular.get(pair),
                *then.get(pair, (None, None)),
            )._replace(settled_ms=settled[pair][0] if pair in settled else None)
            for pair, (time_ms, rate, next_ms, noted) in running.items()
        }

    @asked_again
    def settled_rates(self, pair: str, start_ms: int, end_ms: int) -> list[SettledRow]:
        """Settlements with start <= time < end, oldest first; of one time the regular one first."""
        condition, bound = queries.among([pair])
        (answer,) = self._http.ask([queries.settled(condition, start_ms, end_ms)], bound)
        points = answer.rows(queries.SETTLED_RATES)
        return [row for point in points for row in settled_rows(*point)]

    @asked_again
    def announced(self, since_ms: Mapping[str, int]) -> Mapping[str, list[Announced]]:
        """The settlements that running rates announced, from what stood at each pair's time on."""
        asked: dict[int, list[str]] = {}
        for pair, at in since_ms.items():
            asked.setdefault(at, []).append(pair)
        statements: list[str] = []
        bound: dict[str, str] = {}
        for at, pairs in asked.items():
            condition, more = _named(pairs, len(bound))
            bound |= more
            statements += [
                queries.announced("last", condition, at - KNOWN_FOR_MS, at + 1),
                queries.announced("first", condition, at + 1, queries.OPEN_END_MS),
                # The changes alone: of two weeks there are 20,000 running rates of each pair.
                queries.announced_changes(condition, at + 1),
            ]
        answers = iter(self._http.ask(statements, bound) if statements else ())
        found: dict[str, list[Announced]] = {}
        for pairs in asked.values():
            before, first, later = (next(answers).by_pair(queries.ANNOUNCED) for _ in range(3))
            for pair in pairs:
                rows = [Announced(*row) for one in (before, first) for row in one.get(pair, ())]
                for time_ms, change_ms in later.get(pair, ()):
                    rows.append(Announced(time_ms, rows[-1].next_ms + change_ms))
                found[pair] = changes(rows)
        return found

    def settled_to(self, pairs: Sequence[str]) -> Mapping[str, int]:
        """Up to when (ms, exclusive) all settlements of each of `pairs` are stored, as was told last."""
        told = self._catalog.coverage(pairs, schema.SETTLED_TO)
        return {pair: interval.until_ms for pair, interval in told.items()}

    def version(self) -> Hashable:
        """A value that differs after POLL_S: an InfluxDB does not signal that something was written."""
        return int(time.monotonic() / POLL_S)

    # --- inside -----------------------------------------------------------------------------------

    def _latest(self, pairs: Sequence[str], *wanted: _Latest) -> list[dict[str, Any]]:
        """Return pair -> newest point of each question, in the order of `pairs`."""
        if not pairs:
            return [{} for _ in wanted]
        by_name = len(pairs) <= _NAMED
        condition, bound = queries.among(pairs) if by_name else ("", {})
        statements: list[str] = []
        for question in wanted:
            name, columns = question.measurement, question.columns
            start_ms = self._believed_ms(name) - question.back_ms
            if by_name:
                statements.append(queries.last_of_each(name, columns, condition, start_ms))
            else:
                limit = _POINTS * max(len(pairs), len(self._catalog))
                statements.append(queries.newest_points(name, columns, start_ms, limit))
        take = _last_of_each if by_name else _newest_points
        found: list[dict[str, Any]] = []
        for question, answer in zip(wanted, self._http.ask(statements, bound), strict=True):
            rows = take(question, answer)
            older = [pair for pair in pairs if pair not in rows]
            if older:
                condition, bound = queries.among(older)
                statement = queries.last_of_each(
                    question.measurement, question.columns, condition, 0
                )
                rows |= _last_of_each(question, *self._http.ask([statement], bound))
            self._note(question.measurement, (row[0] for row in rows.values()))
            found.append({pair: rows[pair] for pair in pairs if pair in rows})
        return found

    def _newest_regular(
        self, settled: Mapping[str, tuple[int, float, str | None]]
    ) -> dict[str, int]:
        """Pair -> time of its newest regular settlement, by the newest settlement of each pair."""
        newest = {
            pair: settled_rows(at, rate, None, kinds) for pair, (at, rate, kinds) in settled.items()
        }
        found = {
            pair: rows[0].time_ms for pair, rows in newest.items() if rows[0].kind == schema.REGULAR
        }
        lone = [pair for pair in newest if pair not in found]
        if lone:
            condition, bound = queries.among(lone)
            (answer,) = self._http.ask([queries.newest_settled(condition, _SPECIALS)], bound)
            for pair, points in answer.by_pair(queries.SETTLED_RATES).items():
                rows = [row for point in points for row in settled_rows(*point)]
                times_ms = [row.time_ms for row in rows if row.kind == schema.REGULAR]
                if times_ms:
                    found[pair] = times_ms[0]
        return found

    def _announced_then(self, settled_ms: Mapping[str, int]) -> dict[str, Announced]:
        """Pair -> what was first announced after its settlement of that time. It is asked for once."""
        asked = [pair for pair, at in settled_ms.items() if self._then.get(pair, (0,))[0] != at]
        times = sorted({settled_ms[pair] for pair in asked})
        condition, bound = _named(asked)
        statements = [
            queries.announced_after(condition, at, at + schema.LONGEST_INTERVAL_MS) for at in times
        ]
        for at, answer in zip(
            times, self._http.ask(statements, bound) if times else (), strict=True
        ):
            for pair, points in answer.by_pair(queries.ANNOUNCED).items():
                if settled_ms.get(pair) == at:
                    self._then[pair] = at, Announced(*points[0])
        return {
            pair: self._then[pair][1]
            for pair, at in settled_ms.items()
            if pair in self._then and self._then[pair][0] == at
        }

    def _believed_ms(self, measurement: str) -> int:
        return self._newest_ms.get(measurement) or time.time_ns() // 1_000_000

    def _note(self, measurement: str, times_ms: Iterable[int]) -> None:
        newest_ms = max(times_ms, default=0)
        if newest_ms > self._newest_ms.get(measurement, 0):
            self._newest_ms[measurement] = newest_ms


def _named(pairs: Sequence[str], first: int = 0) -> tuple[str, dict[str, str]]:
    """The condition that a point is of one of a few pairs, and its parameters; none of many."""
    return queries.among(pairs, first) if 0 < len(pairs) <= _NAMED else ("", {})


def _last_of_each(question: _Latest, answer: StatementAnswer) -> dict[str, Any]:
    return {pair: points[-1] for pair, points in answer.by_pair(question.points).items()}


def _newest_points(question: _Latest, answer: StatementAnswer) -> dict[str, Any]:
    newest: dict[str, tuple[Any, ...]] = {}
    for *point, pair in answer.rows(question.points_of):
        if pair is not None and pair not in newest and point[1] is not None:
            newest[pair] = tuple(point)
    # What is no whole point is left to the question by name, which fails with it.
    return {
        pair: point for pair, point in newest.items() if None not in point[: question.needed + 1]
    }
