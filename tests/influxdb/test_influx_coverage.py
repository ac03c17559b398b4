"""What collectors tell a bucket explains what a reader does not find in it, as a journal does."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from both import Both
from covered import cover, coverage_line, whole_part
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influxd import Influxd
from stored import M3, OTHER, PAIR, START_MS, candle, entry, url
from test_influx_random import Question, answer, same

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.journal import Journal
from reader import MarketReader
from reader.stores import influx_catalog

MANY = 20
NOW_MS = START_MS + MANY * M3
_names = (f"coverage {number}" for number in itertools.count())


@pytest.fixture
def both(influxd: Influxd, database: str, tmp_path: Path) -> Both:
    return Both(influxd, database, tmp_path / "journal.db")


@pytest.fixture
def opened(both: Both, clock) -> Iterator[Callable[[], MarketReader]]:
    """Open another reader of the bucket."""
    readers: list[MarketReader] = []
    clock.ms = NOW_MS + 20_000

    def made() -> MarketReader:
        readers.append(
            MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms)
        )
        return readers[-1]

    yield made
    for reader in readers:
        reader.close()


def tell(both: Both, *lines: str) -> None:
    both.influxd.write(both.database, lines)


def part(start: int, end: int) -> dict[str, tuple[int, int]]:
    return {"3m": (START_MS + start * M3, START_MS + end * M3)}


def lacking(both: Both, *slots: int) -> None:
    both.add(entry(), [candle(START_MS + n * M3) for n in range(MANY) if n not in slots])


def absent(reader: MarketReader) -> list[int]:
    found = reader.get_ohlcv(PAIR, "3m", since=START_MS).attrs["absent"]
    return [(time - START_MS) // M3 for time in found]


# --- both stores ----------------------------------------------------------------------------------------


kinds = st.text(".....?x", min_size=1, max_size=MANY)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    pair, timeframe = (
        draw(st.sampled_from([PAIR, OTHER])),
        draw(st.sampled_from(["3m", "3m", "15m"])),
    )
    now_ms = NOW_MS + draw(st.integers(-5, 5)) * M3 + draw(st.sampled_from([0, 20_000]))
    bound = st.none() | st.integers(-2, MANY).map(lambda n: START_MS + n * M3)
    match draw(st.sampled_from(["get_ohlcv", "get_ohlcv", "ready", "wait_closed", "many"])):
        case "ready":
            return Question(now_ms, "ready", (pair, timeframe, draw(st.integers(1, MANY + 2))), {})
        case "wait_closed":
            length_ms = schema.TIMEFRAMES_MS[timeframe]
            open_ms = START_MS + draw(st.integers(-1, MANY)) * length_ms
            return Question(now_ms, "wait_closed", (timeframe, open_ms, 0), {})
        case "many":
            asked = {"limit": draw(st.integers(1, MANY + 2)), "max_age_s": None}
            return Question(now_ms, "get_ohlcv_many", ([OTHER, PAIR], timeframe), asked)
    asked = {"limit": draw(st.none() | st.integers(1, MANY + 2)), "since": draw(bound)}
    ages = st.sampled_from([None, 100_000.0])
    return Question(now_ms, "get_ohlcv", (pair, timeframe), asked | {"max_age_s": draw(ages)})


@given(kinds, kinds, st.lists(questions(), min_size=10, max_size=20), st.booleans())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_both_stores_give_the_same_answers(
    influxd: Influxd, one: str, other: str, asked: list[Question], told: bool
) -> None:
    """`.` is stored, `?` missing, `x` missing at the exchange, too."""
    series = {(PAIR, "3m"): one, (OTHER, "3m"): other}
    opens = {
        key: [START_MS + n * M3 for n, kind in enumerate(text) if kind == "."]
        for key, text in series.items()
    }
    now = [0]
    with tempfile.TemporaryDirectory() as folder, influxd.database(next(_names)) as database:
        both = Both(influxd, database, Path(folder) / "journal.db")
        both.add(
            [entry(pair) for pair in (PAIR, OTHER)],
            [candle(ms, *key) for key, times in opens.items() for ms in times],
        )
        if told:
            slots = {
                key: [
                    TimeRange(START_MS + n * M3, START_MS + (n + 1) * M3)
                    for n, k in enumerate(t)
                    if k == "x"
                ]
                for key, t in series.items()
            }
            cover(
                both.path,
                NOW_MS,
                MANY * M3,
                series,
                [(key, where) for key, each in slots.items() for where in each],
            )
            with Journal.open(both.path) as journal:
                parts = {
                    key: whole_part(known, opens[key], M3)
                    for key, known in journal.coverage.items()
                }
            lines = [
                coverage_line(pair, {tf: p}) for (pair, tf), p in parts.items() if p is not None
            ]
            if lines:
                influxd.write(database, lines)
        clock: Callable[[], int] = lambda: now[0]  # noqa: E731
        with (
            MarketReader.connect(url(both.path), now_ms=clock) as journal_reader,
            MarketReader.connect(influxd.url, bucket=database, now_ms=clock) as influx_reader,
        ):
            for question in asked:
                now[0] = question.now_ms
                same(answer(question, influx_reader), answer(question, journal_reader))


# --- several collectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], []),
        ([(0, 20)], [3, 9]),
        ([(3, 9)], [3]),
        ([(4, 20)], [9]),
        # One's beginning never stands with another's end.
        ([(0, 5), (8, 20)], [9]),
        ([(0, 8), (8, 20)], [3, 9]),
        ([(0, 9), (2, 4)], [3]),
        ([(10, 10), (0, 9)], [3]),
        ([(0, 5), (8, 20), (4, 9)], [3, 9]),
    ],
)
def test_intervals_that_meet_are_one(
    both: Both, opened, told: list[tuple[int, int]], expected: list[int]
) -> None:
    lacking(both, 3, 9)
    for number, edges in enumerate(told):
        # Each at another hour.
        hour_ms = START_MS + number * schema.HOUR_MS
        tell(both, coverage_line(PAIR, part(*edges), hour_ms, f"host_{number}"))
    assert absent(opened()) == expected


def test_a_collectors_last_point_counts_and_no_field_of_an_older_one(both: Both, opened) -> None:
    lacking(both, 3, 9)
    tell(both, coverage_line(PAIR, part(0, 20), START_MS))
    tell(both, coverage_line(PAIR, part(5, 20), START_MS + schema.HOUR_MS))
    assert absent(opened()) == [9]
    # From then on this one keeps another timeframe alone.
    both.add(entry(OTHER, ("1m",)))
    tell(both, coverage_line(PAIR, {"1m": (0, 1)}, START_MS + 2 * schema.HOUR_MS))
    assert absent(opened()) == []


def test_nothing_is_believed_below_the_buckets_first_row(both: Both, opened) -> None:
    lacking(both, 0, 1, 2, 9)
    tell(both, coverage_line(PAIR, part(0, 20)))
    reader = opened()
    frame = reader.get_ohlcv(PAIR, "3m", since=START_MS)
    assert frame.attrs["absent"] == [START_MS + 9 * M3]
    assert frame.attrs["short"] == "history"
    assert not reader.ready(PAIR, "3m", MANY)
    assert reader.ready(PAIR, "3m", MANY - 3)


def test_half_of_an_interval_tells_nothing(both: Both, opened) -> None:
    lacking(both, 3)
    hour_ms = schema.floor_to(START_MS, schema.HOUR_MS)
    for field in schema.coverage_fields("3m"):
        tell(both, f"feed_coverage,collector={field},pair={PAIR} {field}=1i {hour_ms}")
    assert absent(opened()) == []
    assert opened().get_ohlcv(PAIR, "3m", 100).attrs["short"] == "unknown"


def test_a_bucket_of_an_older_collector_tells_nothing(both: Both, opened) -> None:
    lacking(both, 3)
    reader = opened()
    frame = reader.get_ohlcv(PAIR, "3m", 100)
    assert (frame.attrs["absent"], frame.attrs["short"]) == ([], "unknown")
    assert reader.wait_closed("3m", START_MS + 3 * M3, 0) == (PAIR,)
    assert reader.ready(PAIR, "3m", MANY - 4)
    assert not reader.ready(PAIR, "3m", MANY - 3)


# --- when it is asked -----------------------------------------------------------------------------------


def test_what_is_told_later_is_heard(both: Both, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(both, 3, 9)
    first, second = opened(), opened()
    assert absent(first) == absent(second) == []
    tell(both, coverage_line(PAIR, part(5, 20)))
    monkeypatch.setattr(influx_catalog, "CATALOG_S", 0.0)
    assert absent(first) == [], "it is asked for once a minute"
    monkeypatch.setattr(influx_catalog, "TOLD_S", 0.0)
    assert absent(first) == [9]
    tell(both, coverage_line(PAIR, part(0, 20)), coverage_line(OTHER, part(0, 20)))
    assert absent(first) == absent(second) == [3, 9]


def test_one_that_stopped_last_week_is_heard_beside_one_that_runs(both: Both, opened) -> None:
    """By the host's clock: in these days the exchange's is the same."""
    now_ms = time.time_ns() // 1_000_000
    for days, slots, collector in ((6, (0, 8), "old"), (0, (8, 20), "new")):
        line = coverage_line(PAIR, part(*slots), now_ms - days * schema.DAY_MS, collector)
        tell(both, line)
    lacking(both, 3, 9)
    assert absent(opened()) == [3, 9]


def test_no_question_more_is_asked_for_candles(both: Both, opened) -> None:
    lacking(both, 3, 9)
    tell(both, coverage_line(PAIR, part(0, 20)))
    reader = opened()
    http = reader._store._http  # type: ignore[attr-defined]
    asked: list[str] = []
    query = http._query

    def counted(statements, parameters):
        asked.extend(statements)
        return query(statements, parameters)

    http._query = counted
    assert reader.get_ohlcv(PAIR, "3m", 10).attrs["absent"] == []
    assert absent(reader) == [3, 9]
    assert len(asked) > 1
    assert not any(schema.FEED_COVERAGE in statement for statement in asked)
