"""Random stores, random questions: an InfluxDB answers as the journal that was shipped to it."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from both import Both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influxd import Influxd
from stored import START_MS, candle, url

from marketfeed import schema
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, MarkPrice
from reader import MarketReader, ReaderError

PAIRS = ["BTC/USDT:USDT", "1000PEPE/USDT:USDT", "币安人生/USDT:USDT"]
NOT_COLLECTED = "XYZ/USDT:USDT"
TIMEFRAMES = ("1m", "3m")
SLOTS = 24
MINUTE = schema.MINUTE_MS
_names = (f"random {number}" for number in itertools.count())

pairs = st.sampled_from([PAIRS[0], *PAIRS])
moments = st.integers(START_MS, START_MS + SLOTS * MINUTE)


@st.composite
def candles(draw: st.DrawFn) -> list[Candle]:
    """A run of candles of one series, some left out, perhaps with the forming one behind them."""
    timeframe = draw(st.sampled_from(TIMEFRAMES))
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    pair = draw(pairs)
    first, last = sorted(draw(st.tuples(*[st.integers(0, SLOTS * MINUTE // length_ms)] * 2)))
    absent = draw(st.sets(st.integers(first, last), max_size=4))
    run = [
        candle(START_MS + n * length_ms, pair, timeframe)
        for n in range(first, last + 1)
        if n not in absent
    ]
    ahead = draw(st.sampled_from([None, 1, 1, 1, 0, -2, 3]))
    if ahead is not None:
        run.append(candle(START_MS + (last + ahead) * length_ms, pair, timeframe, closed=False))
    return run


funding_rates = st.builds(
    FundingRate,
    pairs,
    moments,
    st.floats(-1, 1),
    st.integers(START_MS, START_MS + schema.DAY_MS),
)
settlements = st.builds(
    FundingSettled,
    pairs,
    st.integers(-4, 4).map(lambda n: START_MS + n * 8 * schema.HOUR_MS),
    st.floats(-1, 1),
    st.none() | st.floats(0, 1e6),
    st.sampled_from([schema.REGULAR, schema.REGULAR, schema.SPECIAL]),
)
mark_prices = st.builds(MarkPrice, pairs, moments, st.floats(0, 1e12), st.floats(0, 1e12))

entries = st.tuples(
    pairs,
    st.sampled_from([TIMEFRAMES, ("1m",), ("3m", "5m"), ()]),
    st.none() | moments,
    st.none() | moments,
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Any]]:
    """What is written in each commit. Something is always collected from the first on."""
    steps: list[list[Any]] = []
    for number in range(draw(st.integers(1, 3))):
        changed_ms = START_MS + number * 1_000
        noted = {entry[0]: entry for entry in draw(st.lists(entries, max_size=2))}
        if number == 0:
            # Only now and then is a pair not there at all, or its timeframes other ones.
            for pair in PAIRS[: draw(st.sampled_from([3, 3, 3, 1]))]:
                noted.setdefault(pair, (pair, TIMEFRAMES, None, None))
        steps.append(
            [
                [
                    CatalogEntry(pair, "SYMBOL", frames, changed_ms, listed, ended, changed_ms)
                    for pair, frames, listed, ended in noted.values()
                ],
                *draw(st.lists(candles(), min_size=2, max_size=6)),
                draw(st.lists(funding_rates, max_size=4)),
                draw(st.lists(settlements, max_size=4, unique_by=lambda s: (s.pair, s.time_ms))),
                draw(st.lists(mark_prices, max_size=4)),
            ]
        )
    return steps


# --- questions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A call of a reader's method, at a time of the exchange."""

    now_ms: int
    method: str
    positional: tuple[Any, ...]
    named: dict[str, Any]

    def ask(self, reader: MarketReader) -> object:
        return getattr(reader, self.method)(*self.positional, **self.named)


ages = st.sampled_from([None, None, None, 0.0, 60.0, 600.0, 100_000.0])


def in_order(asked: dict[str, Any]) -> dict[str, Any]:
    since, until = asked.pop("between")
    if since is not None and until is not None and since > until:
        since, until = until, since
    return asked | {"since": since, "until": until}


bound = (
    st.none()
    | st.integers(-1, SLOTS + 3).map(lambda n: START_MS + n * MINUTE)
    | st.integers(START_MS - MINUTE, START_MS + (SLOTS + 3) * MINUTE)
)
names = st.sampled_from([*PAIRS, *PAIRS, *PAIRS, NOT_COLLECTED])
timeframes = st.sampled_from(["1m", "1m", "3m", "3m", "5m", "15m"])
ranges = st.fixed_dictionaries(
    {
        "limit": st.none() | st.integers(1, 12),
        "between": st.tuples(bound, bound),
        "include_forming": st.booleans(),
        "strict": st.sampled_from([False, False, False, True]),
        "max_age_s": ages,
    }
).map(in_order)
aged = st.fixed_dictionaries({"max_age_s": ages})
nothing = st.just({})
of_candles = st.one_of(
    st.tuples(st.just("get_ohlcv"), st.tuples(names, timeframes), ranges),
    st.tuples(
        st.just("get_ohlcv_many"),
        st.tuples(st.lists(pairs, unique=True, min_size=1), timeframes),
        ranges,
    ),
)
others = st.one_of(
    st.tuples(st.just("newest"), st.tuples(timeframes), nothing),
    st.tuples(st.just("ready"), st.tuples(names, timeframes, st.integers(1, 12)), nothing),
    st.tuples(
        st.just("wait_closed"),
        st.tuples(timeframes, moments.map(lambda ms: ms - ms % (15 * MINUTE)), st.just(0)),
        nothing,
    ),
    st.tuples(st.just("get_mark_price"), st.tuples(names), aged),
    st.tuples(st.just("get_funding_rate"), st.tuples(names), aged),
    st.tuples(st.just("get_all_pairs_funding_rates"), st.just(()), aged),
    st.tuples(st.just("funding_frame"), st.just(()), aged),
    st.tuples(st.just("get_funding_history"), st.tuples(names), nothing),
    st.tuples(
        st.just("get_funding_history"),
        st.tuples(names, st.just(START_MS - schema.DAY_MS), moments),
        nothing,
    ),
    st.tuples(st.just("pairs"), st.just(()), nothing),
)
questions = st.builds(
    lambda now_ms, asked: Question(now_ms, *asked),
    st.integers(START_MS, START_MS + (SLOTS + 10) * MINUTE),
    st.sampled_from([True, True, False]).flatmap(lambda c: of_candles if c else others),
)


@pytest.mark.long(55)
@given(histories(), st.lists(questions, min_size=20, max_size=40))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_both_stores_give_the_same_answers(
    influxd: Influxd, history: list[list[Any]], asked: list[Question]
) -> None:
    now = [0]
    with (
        tempfile.TemporaryDirectory() as folder,
        influxd.database(next(_names)) as database,
    ):
        both = Both(influxd, database, Path(folder) / "journal.db")
        for records in history:
            both.add(*records)
        clock: Callable[[], int] = lambda: now[0]  # noqa: E731
        with (
            MarketReader.connect(url(both.path), now_ms=clock) as journal,
            MarketReader.connect(influxd.url, bucket=database, now_ms=clock) as influx,
        ):
            for question in asked:
                now[0] = question.now_ms
                same(answer(question, influx), answer(question, journal))


def answer(question: Question, reader: MarketReader) -> object:
    try:
        return question.ask(reader)
    except ReaderError as error:
        return error


def same(found: object, expected: object) -> None:
    assert type(found) is type(expected), (found, expected)
    if isinstance(expected, pd.DataFrame):
        assert isinstance(found, pd.DataFrame)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert found.attrs.keys() == expected.attrs.keys()
        for name in expected.attrs.keys() - {"source"}:
            assert found.attrs[name] == expected.attrs[name], name
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, ReaderError):
        assert str(found) == str(expected)
    else:
        assert repr(found) == repr(expected)
