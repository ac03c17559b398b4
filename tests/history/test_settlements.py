"""Settlements that change their rhythm, from the exchange's answers to what a feeder gets."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.symbols import Instrument
from marketfeed.grid import TimeRange
from marketfeed.history.awaited import (
    EARLIER_MS,
    LATE_ROUNDS,
    PAUSES_S,
    Awaited,
    FetchedRates,
    completed,
    is_certain,
)
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import CatalogEntry, FundingRate
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from reader import MarketReader, ReaderError
from reader.feeder import FUNDING_RATE, Download, Feeder
from tests.history.rates_exchange import T0, Line, instrument, run
from tests.waiting import until

OURS, OTHER = instrument(0), instrument(1)
PAIR = OURS.pair


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a journal that collects one pair."""
    write(tmp_path / "journal.db", entry(OURS))
    return tmp_path / "journal.db"


def entry(one: Instrument) -> CatalogEntry:
    return CatalogEntry(one.pair, one.symbol, ("1m",), T0 - DAY_MS, None, None, T0 - DAY_MS)


def write(path: Path, *records: Any) -> None:
    batch = Batch()
    batch.extend(records)
    with Journal.open(path) as journal:
        journal.write(batch)


def row(hour: float, kind: str = "Regular", late_ms: int = 3) -> dict[str, Any]:
    return {
        "symbol": OURS.symbol,
        "fundingTime": at(hour) + late_ms,
        "fundingRate": f"{0.0001 * (hour + 50):.8f}",
        "markPrice": "10.0",
        "rateType": kind,
    }


def at(hour: float) -> int:
    return T0 + int(hour * HOUR_MS)


def go(
    path: Path,
    check: Callable[[Line], Awaitable[None]],
    now_h: float,
    rows: list[dict[str, Any]],
    days: int = 1,
    speed: float = 600.0,
) -> None:
    async def main(line: Line) -> None:
        line.rates.rows = rows
        await check(line)

    run(path, main, collected=1, listed=1, days=days, now_ms=at(now_h), speed=speed)


def stored(path: Path) -> list[tuple[float, str]]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT time, kind FROM funding_settled ORDER BY time, kind").fetchall()
    return [((ms - T0) / HOUR_MS, kind) for ms, kind in found]


def settled_to(path: Path, pair: str = PAIR) -> float | None:
    """In hours."""
    with MarketReader.connect(f"sqlite:///{path}") as reader:
        to_ms = reader.get_funding_history(pair).attrs["settled_to"]
    return None if to_ms is None else (to_ms - T0) / HOUR_MS


def answer(path: Path, now_ms: int, since_h: float | None = None) -> list[float] | ReaderError:
    """What Freqtrade gets."""
    since_ms = None if since_h is None else at(since_h)
    asked = Download(PAIR, "1h", FUNDING_RATE, since_ms, 100, T0 - 100 * DAY_MS)
    with MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as reader:
        (found,) = Feeder(reader, lambda: now_ms).answer([asked])
    return found if isinstance(found, ReaderError) else [(ms - T0) / HOUR_MS for ms, _ in found]


MINUTE_H = MINUTE_MS / HOUR_MS


def close(found: float | None, hour: float) -> bool:
    return found is not None and abs(found - hour) < 1e-9


# --- from the exchange to a feeder -------------------------------------------------------------------


def test_from_1_h_to_4_h(path: Path) -> None:
    """The next hour was announced still, and taken back: nothing waits for it."""
    rows = [row(h) for h in range(-20, 1)]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(1), OURS)
        await until(lambda: stored(path)[-1:] == [(0, "Regular")])
        await until(lambda: line.clock.now_ms() > at(0.25))
        await line.say(at(4), OURS)
        await until(lambda: line.clock.now_ms() > at(1.5))
        assert line.settled_rates.report().awaited == 0
        assert line.settled_rates.report().given_up == 0
        assert answer(path, line.clock.now_ms()) == [*range(-20, 1)]
        assert answer(path, at(3.9), -10) == [*range(-10, 1)]

    go(path, check, -0.05, rows)
    assert close(settled_to(path), MINUTE_H)
    # Not asked for when it came.
    assert isinstance(answer(path, at(4.2)), ReaderError)


def test_from_8_h_to_1_h(path: Path) -> None:
    """Each hour is asked for as it passes, and those that nobody heard of come with the next."""
    rows = [row(h) for h in (-16, -8, 0, 1, 2, 3, 4)]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: close(settled_to(path), MINUTE_H))
        await line.say(at(1), OURS)
        await until(lambda: line.clock.now_ms() > at(1))
        await line.say(at(2), OURS)
        await until(lambda: close(settled_to(path), 1 + MINUTE_H))
        # Silence until half past three.
        line.clock.set_server_time(at(3.5), 0.0, 600.0)
        assert isinstance(answer(path, at(3.5)), ReaderError)
        await line.say(at(4), OURS)
        await until(lambda: (3, "Regular") in stored(path))
        await until(lambda: answer(path, line.clock.now_ms()) == [-16, -8, 0, 1, 2, 3])

    go(path, check, -0.05, rows)
    assert answer(path, at(3.9), -8) == [-8, 0, 1, 2, 3]


def test_special_ones_alone_and_beside_a_regular_one(path: Path) -> None:
    """`../shared/cases/04_special_beside_regular.json`; the special one may be published later."""
    rows = [row(-8), row(-4, "Special"), row(0)]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: close(settled_to(path), MINUTE_H))
        rows.append(row(0, "Special", 6))
        rows.append(row(8))
        line.clock.set_server_time(at(7.99), 0.0, 600.0)
        await line.say(at(8), OURS)
        await until(lambda: line.clock.now_ms() > at(8))
        await line.say(at(16), OURS)
        await until(lambda: close(settled_to(path), 8 + MINUTE_H))

    go(path, check, -0.05, rows)
    assert stored(path) == [
        *[(-8, "Regular"), (-4, "Special"), (0, "Regular"), (0, "Special"), (8, "Regular")]
    ]
    assert answer(path, at(10), -8) == [-8, -4, 0, 0, 8]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_special_one_of_minutes_before_is_published_after_the_regular_one(
    path: Path, restarted: bool
) -> None:
    """What is complete to after the regular one is asked for once more, by the next request or start."""
    rows = [row(-8), row(0)]

    async def first(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: close(settled_to(path), MINUTE_H))
        if not restarted:
            await second(line)

    async def second(line: Line) -> None:
        rows.insert(1, row(-9 * MINUTE_H, "Special"))
        if not restarted:
            line.clock.set_server_time(at(7.99), 0.0, 600.0)
            rows.append(row(8))
            await until(lambda: line.clock.now_ms() > at(8))
            await line.say(at(16), OURS)
        await until(lambda: "Special" in {kind for _, kind in stored(path)})

    go(path, first, -0.05, rows)
    if restarted:
        go(path, second, 3, rows)
    assert answer(path, at(3), -8)[:3] == [-8, -9 * MINUTE_H, 0]  # type: ignore[index]


def test_each_answer_goes_on_with_those_that_settle_seldom(path: Path) -> None:
    """Hourly answers complete what settles every 8 h up to ten minutes ago, the next as the first."""
    write(path, entry(OTHER))
    rows = [row(0)]

    async def check(line: Line) -> None:
        line.rates.rows = rows
        await line.say(at(0), OURS, OTHER)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        for hour in range(1, 4):
            rows.append({**row(hour - 1), "symbol": OTHER.symbol})
            await line.say(at(hour), OTHER)
            await until(lambda: settled_to(path, OTHER.pair) == hour - 1 + MINUTE_H)  # noqa: B023
            line.clock.set_server_time(at(hour) - 1_000, 0.0, 600.0)
        # Up to ten minutes before the other's last one.
        assert (settled_to(path) or 0) > 1.8

    run(path, check, collected=2, listed=2, days=1, now_ms=at(-0.05), speed=600.0)


def test_a_regular_one_that_follows_a_special_one_of_its_minute_is_awaited(path: Path) -> None:
    rows = [row(-8), row(0, "Special")]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: (0, "Special") in stored(path))
        assert (settled_to(path) or 0) <= 0
        assert isinstance(answer(path, at(0.2), -8), ReaderError)
        rows.append(row(0))
        await until(lambda: (0, "Regular") in stored(path))
        await until(lambda: close(settled_to(path), MINUTE_H))

    go(path, check, -0.05, rows, speed=60.0)
    assert answer(path, at(0.2), -8) == [-8, 0, 0]


def test_a_special_one_in_the_place_of_an_announced_one_counts_after_ten_minutes(
    path: Path,
) -> None:
    rows = [row(-8), row(0, "Special")]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: (settled_to(path) or 0) > 0)
        assert line.clock.now_ms() > at(0) + schema.SETTLED_LATE_MS
        assert line.settled_rates.report().given_up == 0

    go(path, check, -0.05, rows)
    assert answer(path, at(4), -8) == [-8, 0]


def test_what_is_not_published_is_not_complete_though_later_ones_are(path: Path) -> None:
    rows = [row(-8), row(1)]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(1), OURS)
        await until(lambda: line.clock.now_ms() > at(1))
        await line.say(at(9), OURS)
        await until(lambda: (1, "Regular") in stored(path))
        assert close(settled_to(path), 0)
        assert isinstance(answer(path, at(1.5), -8), ReaderError)
        assert answer(path, at(1.5)) == [1]
        rows.insert(1, row(0))
        # Asked for every hour.
        await until(lambda: (0, "Regular") in stored(path))
        await until(lambda: (settled_to(path) or 0) > 1)
        assert answer(path, line.clock.now_ms(), -8) == [-8, 0, 1]

    go(path, check, -0.05, rows)


def test_one_that_nobody_announced_is_looked_for_after_the_start(path: Path) -> None:
    """Of an hourly contract that begins to be collected just then, and is told of the next hour alone."""
    rows = [row(-2), row(-1)]

    async def check(line: Line) -> None:
        await until(lambda: (-1, "Regular") in stored(path))
        await line.say(at(1), OURS)
        rows.append(row(0))
        await until(lambda: (0, "Regular") in stored(path))
        assert line.clock.now_ms() < at(0.5)

    go(path, check, 0.001, rows)


def test_what_was_settled_a_minute_before_the_start_comes_with_history(path: Path) -> None:
    async def check(line: Line) -> None:
        await until(lambda: (0, "Regular") in stored(path))
        assert line.clock.now_ms() < at(0.1)

    go(path, check, 0.02, [row(-8), row(0)])


def test_a_rhythm_that_changed_while_nothing_ran(path: Path) -> None:
    """What was announced last before that was never settled, and holds nobody up."""
    write(path, FundingRate(PAIR, at(0) + 60_000, 0.0001, at(1)))
    rows = [row(h) for h in range(-20, 1)]

    async def check(line: Line) -> None:
        await line.say(at(4), OURS)
        await until(lambda: (settled_to(path) or 0) > 1)
        assert line.settled_rates.report().awaited == 0
        assert answer(path, line.clock.now_ms()) == [*range(-20, 1)]

    go(path, check, 1.5, rows)


def test_one_that_was_taken_back_unheard_is_given_up_without_a_word(path: Path) -> None:
    """While frames were silent, or scheduled none; ten minutes later nothing waits for it."""

    async def check(line: Line) -> None:
        said = line.intake.announced_ms
        said[PAIR] = at(-0.5)
        line.announce(at(0), OURS)
        await until(lambda: line.settled_rates.report().awaited == 1)
        said[PAIR] = at(0.05)
        line.announce(at(4), OURS)
        await until(lambda: line.settled_rates.report().awaited == 0)
        assert line.settled_rates.report().given_up == 0

    go(path, check, 0.01, [row(-8)])


def test_a_document_of_an_older_collector_is_gone_on_from(path: Path) -> None:
    body = msgspec.json.encode({PAIR: [TimeRange(at(-24), at(-0.02))]})
    with Journal.open(path) as journal:
        journal.save_document(schema.SETTLED_DOCUMENT, body, at(0))
    rows = [row(-8), row(0)]

    async def check(line: Line) -> None:
        await line.say(at(0), OURS)
        await until(lambda: line.clock.now_ms() > at(0))
        await line.say(at(8), OURS)
        await until(lambda: close(settled_to(path), MINUTE_H))

    go(path, check, -0.01, rows, days=1)
    # What it had said to be complete was not asked for again.
    assert (0, "Regular") in stored(path)


# --- the rules ----------------------------------------------------------------------------------------

times = st.integers(0, 200).map(lambda n: n * MINUTE_MS)


@given(
    times,
    st.tuples(times, times).map(sorted),
    times,
    st.sets(times, max_size=4),
    st.sets(times, max_size=4),
)
def test_what_an_answer_completes(
    from_ms: int, ends: list[int], published_ms: int, came: set[int], awaited: set[int]
) -> None:
    answered = TimeRange(*ends)
    part = completed(from_ms, answered, published_ms, came, awaited)
    if part is None:
        return
    assert part.start_ms == from_ms
    # Nothing that was not asked for, nothing that is awaited still.
    assert answered.start_ms <= part.start_ms < part.end_ms <= answered.end_ms
    assert not any(at_ms < part.end_ms for at_ms in awaited)
    # All that is young came after all.
    assert part.end_ms <= max([published_ms, *(at_ms + MINUTE_MS for at_ms in came)])


@given(times, times, st.booleans())
def test_an_answer_goes_on_where_any_earlier_one_ended(
    first_ms: int, later_ms: int, came: bool
) -> None:
    """One contract's settlement came with the first answer; the next is asked for this contract alone."""
    until_ms = first_ms - schema.SETTLED_LATE_MS
    other = completed(
        until_ms, TimeRange(until_ms, first_ms + MINUTE_MS), until_ms, [first_ms] * came, []
    )
    where = TimeRange((other.end_ms if other else until_ms) - EARLIER_MS, first_ms + later_ms)
    published_ms = where.end_ms - schema.SETTLED_LATE_MS
    part = completed(until_ms, where, published_ms, [], [])
    assert part == (TimeRange(until_ms, published_ms) if published_ms > until_ms else None)


def test_hearsay_is_asked_for_ten_minutes_and_the_rest_a_day() -> None:
    for certain, rounds in ((True, len(PAUSES_S) + LATE_ROUNDS), (False, len(PAUSES_S))):
        item, now_s = Awaited(0.0, certain), 0.0
        while not item.is_over:
            item.ask_again(now_s)
            now_s = item.due_s
        assert item.rounds == rounds + 1
        assert item.given_up
    assert sum(PAUSES_S) * 1000 > schema.SETTLED_LATE_MS


def test_who_was_heard_until_shortly_before_it_is_certain_of_it() -> None:
    assert is_certain(T0, None)
    assert is_certain(T0, T0 - schema.SETTLED_LATE_MS)
    assert not is_certain(T0, T0 - schema.SETTLED_LATE_MS - 1)


def test_an_odd_row_leaves_its_minute_open() -> None:
    where = TimeRange(T0, T0 + 10 * MINUTE_MS)
    fetched = FetchedRates(set(), set(), [(PAIR, T0 + MINUTE_MS)])
    assert fetched.clear(PAIR, where) == [
        TimeRange(T0, T0 + MINUTE_MS),
        TimeRange(T0 + 2 * MINUTE_MS, where.end_ms),
    ]
    assert fetched.clear("OTHER", where) == [where]
    assert FetchedRates(set(), set(), [(None, None)]).clear(PAIR, where) == []
