"""get_ohlcv against a plain model of it: random stores, random requests, the real journal between."""

import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import OTHER, PAIR, START_MS, candle, entry, store, url

from marketfeed import schema
from marketfeed.records import Candle
from reader import GapError, MarketReader, StaleDataError
from reader.arguments import CandleRequest
from reader.frames import resample, series
from reader.rows import CandleRows

SLOTS = 40
MINUTE = schema.MINUTE_MS


@dataclass(frozen=True)
class Answer:
    opens: list[int]
    values: list[tuple[float, ...]]
    missing: list[int]
    forming: bool
    age_s: float | None


@dataclass(frozen=True)
class Stored:
    """One pair's series of the collected timeframe."""

    length_ms: int
    parts: dict[int, Candle]
    forming: Candle | None
    listed_ms: int | None
    ended_ms: int | None


def joined(parts: list[Candle]) -> tuple[float, ...]:
    exact = float(sum(map(Fraction, (part.volume for part in parts)), Fraction(0)))
    return (
        parts[0].open,
        max(part.high for part in parts),
        min(part.low for part in parts),
        parts[-1].close,
        exact,
    )


def whole(stored: Stored, open_ms: int, length_ms: int) -> list[Candle] | None:
    """The parts of a candle, None if one lacks."""
    times = range(open_ms, open_ms + length_ms, stored.length_ms)
    if all(time in stored.parts for time in times):
        return [stored.parts[time] for time in times]
    return None


def expected(stored: Stored, request: CandleRequest, now_ms: int) -> Answer | type[Exception]:
    """What the documentation of get_ohlcv promises, slot by slot."""
    length_ms = request.length_ms
    over = stored.ended_ms is not None and stored.ended_ms <= now_ms
    judged = request.max_age_s is not None
    slots = range(START_MS, START_MS + (SLOTS + 40) * MINUTE + length_ms, length_ms)
    complete = {slot: parts for slot in slots if (parts := whole(stored, slot, length_ms))}
    inside = [
        slot
        for slot in complete
        if (request.since_ms is None or slot >= request.since_ms)
        and (request.until_ms is None or slot < request.until_ms)
    ]
    found = inside if request.limit is None else inside[-request.limit :]
    cut = request.limit is not None and len(inside) >= request.limit
    first_ms, reach_ms = None, 0
    if stored.parts:
        first_ms = min(stored.parts)
        reach_ms = max(stored.parts) + stored.length_ms

    spoken_of = [
        slot
        for slot in slots
        if first_ms is not None and slot >= first_ms and slot + length_ms <= reach_ms
    ]
    if found:
        newest_ms = found[-1]
    elif spoken_of and (request.since_ms is not None or request.until_ms is not None):
        newest_ms = spoken_of[-1]
    else:
        newest_ms = None
    age_s = math.inf if newest_ms is None else max(0, now_ms - newest_ms - length_ms) / 1000
    to_now = request.until_ms is None or request.until_ms > now_ms
    if judged and not over and (newest_ms is None or (to_now and age_s > request.max_age_s)):
        return StaleDataError

    last = forming(stored, request, found) if request.include_forming else None
    missing = []
    for slot in slots:
        end_ms = slot + length_ms
        due = (
            slot in spoken_of
            or (judged and not over and end_ms + 15_000 <= now_ms)
            or (last is not None and end_ms <= last[0])
        )
        if (
            slot not in complete
            and due
            and first_ms is not None
            and slot >= first_ms
            and not (cut and slot < found[0])
            and not (request.since_ms is not None and slot < request.since_ms)
            and not (request.until_ms is not None and slot >= request.until_ms)
            and not (stored.listed_ms is not None and end_ms <= stored.listed_ms)
            and not (stored.ended_ms is not None and end_ms > stored.ended_ms)
        ):
            missing.append(slot)
    if missing and request.strict:
        return GapError
    values = [joined(complete[slot]) for slot in found]
    if last is not None:
        found, values = [*found, last[0]], [*values, last[1]]
    told_s = None if newest_ms is None else age_s
    return Answer(found, values, missing, last is not None, told_s)


def forming(
    stored: Stored, request: CandleRequest, found: list[int]
) -> tuple[int, tuple[float, ...]] | None:
    parts = dict(stored.parts)
    if stored.forming is not None:
        parts[stored.forming.open_time_ms] = stored.forming
    elif request.length_ms == stored.length_ms:
        return None
    if not parts:
        return None
    start_ms = schema.floor_to(max(parts), request.length_ms)
    times = range(start_ms, max(parts) + 1, stored.length_ms)
    if (
        any(time not in parts for time in times)
        or whole(stored, start_ms, request.length_ms)
        or (found and start_ms <= found[-1])
        or (request.since_ms is not None and start_ms < request.since_ms)
        or (request.until_ms is not None and start_ms >= request.until_ms)
    ):
        return None
    return start_ms, joined([parts[time] for time in times])


def stores(length_ms: int) -> st.SearchStrategy[Stored]:
    times = st.integers(0, SLOTS * MINUTE // length_ms).map(lambda n: START_MS + n * length_ms)
    holes = st.sets(times, max_size=6)
    edge = st.none() | st.integers(START_MS, START_MS + (SLOTS + 10) * MINUTE)

    @st.composite
    def made(draw: st.DrawFn) -> Stored:
        first, last = sorted((draw(times), draw(times)))
        lacking = draw(holes)
        opens = [t for t in range(first, last + 1, length_ms) if t not in lacking]
        parts = {t: candle(t, timeframe=schema.TIMEFRAME_NAMES[length_ms]) for t in opens}
        ahead = draw(st.sampled_from([None, 0, 0, 0, 1, 3]))
        open_part = None
        if ahead is not None:
            newest = max(opens, default=first)
            open_part = candle(
                newest + (1 + ahead) * length_ms,
                timeframe=schema.TIMEFRAME_NAMES[length_ms],
                closed=False,
            )
        return Stored(length_ms, parts, open_part, draw(edge), draw(edge))

    return made()


def requests(timeframe: str) -> st.SearchStrategy[CandleRequest]:
    moment = st.none() | st.integers(START_MS - MINUTE, START_MS + (SLOTS + 20) * MINUTE)
    ages = st.sampled_from([None, 0.0, 60.0, 600.0, 100_000.0, math.inf])
    return st.builds(
        CandleRequest,
        st.just(timeframe),
        moment,
        moment,
        st.none() | st.integers(1, 12),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        ages,
    ).filter(lambda r: r.since_ms is None or r.until_ms is None or r.since_ms < r.until_ms)


CASES = [("1m", "1m"), ("1m", "3m"), ("1m", "5m"), ("3m", "15m"), ("5m", "5m"), ("5m", "15m")]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Stored, list[tuple[CandleRequest, int]]]:
    source, _ = draw(st.sampled_from(CASES))
    stored = draw(stores(schema.TIMEFRAMES_MS[source]))
    wanted = st.sampled_from([asked for stored_one, asked in CASES if stored_one == source])
    asked = wanted.flatmap(requests)
    now_ms = st.integers(START_MS, START_MS + (SLOTS + 30) * MINUTE)
    return stored, draw(st.lists(st.tuples(asked, now_ms), min_size=1, max_size=12))


@given(cases())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_answer_is_what_the_documentation_says(
    case: tuple[Stored, list[tuple[CandleRequest, int]]],
) -> None:
    stored, asked = case
    source = schema.TIMEFRAME_NAMES[stored.length_ms]
    now = [0]
    with tempfile.TemporaryDirectory() as folder:
        path = store(
            Path(folder) / "journal.db",
            entry(PAIR, (source,), listed_ms=stored.listed_ms, ended_ms=stored.ended_ms),
            # A neighbour on either side, whose candles must never get in.
            [entry(pair, (source,)) for pair in (OTHER, "AAA/USDT:USDT")],
            [
                candle(START_MS + n * stored.length_ms, pair, source)
                for n in range(3)
                for pair in (OTHER, "AAA/USDT:USDT")
            ],
            list(stored.parts.values()),
            [] if stored.forming is None else [stored.forming],
        )
        with MarketReader.connect(url(path), now_ms=lambda: now[0]) as reader:
            for request, now_ms in asked:
                now[0] = now_ms
                assert answer(reader, request) == expected(stored, request, now_ms)


def answer(reader: MarketReader, request: CandleRequest) -> Answer | type[Exception]:
    try:
        frame = reader.get_ohlcv(
            PAIR,
            request.timeframe,
            request.limit,
            since=request.since_ms,
            until=request.until_ms,
            include_forming=request.include_forming,
            strict=request.strict,
            max_age_s=request.max_age_s,
        )
    except (StaleDataError, GapError) as error:
        return type(error)
    return Answer(
        [int(stamp.timestamp() * 1000) for stamp in frame["date"]],
        [tuple(values) for values in frame.iloc[:, 1:].to_numpy().tolist()],
        frame.attrs["missing"],
        frame.attrs["forming"],
        frame.attrs["age_s"],
    )


# --- resampling alone -------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64, min_value=0, max_value=1e300)


@given(
    st.sampled_from([("1m", "3m"), ("1m", "15m"), ("3m", "1h"), ("15m", "4h"), ("1h", "1d")]),
    st.lists(st.tuples(st.integers(0, 100), *[numbers] * 5), unique_by=lambda part: part[0]),
)
@settings(max_examples=200, deadline=None)
def test_resampling_against_plain_python(
    frames: tuple[str, str], parts: list[tuple[float, ...]]
) -> None:
    source_ms, length_ms = (schema.TIMEFRAMES_MS[name] for name in frames)
    rows = sorted((START_MS + n * source_ms, *values) for n, *values in parts)
    by_start: dict[int, list[tuple[float, ...]]] = {}
    for part in rows:
        by_start.setdefault(part[0] - part[0] % length_ms, []).append(part)
    model = [
        (
            start,
            run[0][1],
            max(p[2] for p in run),
            min(p[3] for p in run),
            run[-1][4],
            math.fsum(p[5] for p in run),
        )
        for start, run in by_start.items()
        if len(run) * source_ms == length_ms
    ]
    values = np.array(rows, np.float64).reshape(-1, 6)
    assert [tuple(row) for row in resample(values, source_ms, length_ms).tolist()] == model


@pytest.mark.parametrize("limit", range(1, 8))
def test_a_limited_read_does_not_pretend_that_its_edge_is_a_hole(limit: int) -> None:
    """The oldest candle of a limited read may lack parts that simply were not read."""
    rows = [(START_MS + n * MINUTE, 1.0, 2.0, 0.5, 1.5, 1.0) for n in range(100)]
    for offset in range(3):
        asked = (limit + 1) * 3
        values = np.array(rows[: 100 - offset][-asked:], np.float64)
        answer = CandleRows(values, START_MS, int(values[-1, 0]), None)
        request = CandleRequest("3m", None, None, limit, False, False, None)
        made = series(answer, MINUTE, request)
        assert made.truncated
        assert len(made.values) == limit
        assert made.values[0, 0] % schema.TIMEFRAMES_MS["3m"] == 0
