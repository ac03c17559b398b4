"""Which settlements are due, by what running rates announced; kinds, intervals, and what a feeder gets."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import D1, H1, M1, OTHER, PAIR, START_MS, entry

from marketfeed import schema
from marketfeed.records import FundingRate, FundingSettled
from reader import ReaderError, settlements, sum_settlements
from reader.feeder import FUNDING_RATE, Download, Feeder, NotStoredError
from reader.rows import Announced, FundingRow

SPECIAL = schema.SPECIAL
REGULAR = schema.REGULAR


def hour(number: float) -> int:
    return START_MS + int(number * H1)


def settled(*hours: float, pair: str = PAIR, kind: str = REGULAR) -> list[FundingSettled]:
    return [FundingSettled(pair, hour(h), 0.0001 * (h + 50), 1.0, kind) for h in hours]


def running(
    *announced: tuple[float, float, float], pair: str = PAIR, every_ms: int = 5 * M1
) -> list[FundingRate]:
    """From each hour to the next one (exclusive) what was announced for when."""
    return [
        FundingRate(pair, at_ms + 1_000, 0.0001, hour(next_hour))
        for start, end, next_hour in announced
        for at_ms in range(hour(start), hour(end), every_ms)
    ]


def hours(rows: Iterable[Iterable[float]]) -> list[float]:
    return [(ms - START_MS) / H1 for ms, *_ in rows]


# --- the rule ---------------------------------------------------------------------------------------


def test_what_was_taken_back_before_it_came_is_not_due() -> None:
    announced = [
        Announced(hour(-8), hour(0)),
        Announced(hour(0), hour(1)),
        Announced(hour(0.5), hour(4)),
        Announced(hour(4), hour(8)),
    ]
    assert settlements.passed(announced, hour(3)) == [hour(0)]
    assert settlements.passed(announced, hour(4)) == [hour(0), hour(4)]
    # Nobody has heard of another one.
    assert settlements.passed(announced[:2], hour(3)) == [hour(0), hour(1)]


@pytest.mark.parametrize("kinds", [None, ""])
@pytest.mark.parametrize(("at", "kind"), [(1, REGULAR), (0.75, SPECIAL)])
def test_what_an_older_collector_wrote_is_a_special_one_off_the_hour(
    kinds: str | None, at: float, kind: str
) -> None:
    assert settlements.settled_rows(hour(at), 0.1, None, kinds) == [(hour(at), 0.1, kind)]


def test_it_is_due_ten_minutes_after_it_passed() -> None:
    announced = [Announced(hour(-1), hour(0)), Announced(hour(0), hour(8))]
    late_ms = schema.SETTLED_LATE_MS
    assert settlements.lacking(announced, (), None, hour(0) + late_ms) == []
    assert settlements.lacking(announced, (), None, hour(0) + late_ms + 1) == [hour(0)]
    assert settlements.lacking(announced, {hour(0)}, None, hour(1)) == []
    assert settlements.lacking(announced, (), hour(0), hour(1)) == [hour(0)]
    assert settlements.lacking(announced, (), hour(0) + M1, hour(1)) == []


def test_no_settlement_is_scheduled_at_zero() -> None:
    assert settlements.passed([Announced(hour(0), 0), Announced(hour(1), hour(8))], hour(8)) == [
        hour(8)
    ]


@given(
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=40),
    st.sets(st.integers(0, 39)),
    st.integers(1, 12),
    st.integers(0, 100),
)
def test_every_settlement_that_passed_and_no_other_is_due(
    rhythm: list[int], absent: set[int], every_min: int, at_most_h: int
) -> None:
    """Whatever the rhythm: the grid of running rates tells the times, and what of them lacks."""
    times = [START_MS]
    for length_h in rhythm:
        times.append(times[-1] + length_h * H1)
    grid = range(START_MS, times[-1] + 1, every_min * M1)
    nexts = iter(times)
    next_ms = next(nexts)
    said = []
    for at_ms in grid:
        while next_ms <= at_ms and (later := next(nexts, None)) is not None:
            next_ms = later
        said.append(Announced(at_ms, next_ms))
    announced = settlements.changes(said)
    now_ms = START_MS + at_most_h * H1
    # What is not on the grid of announcements names the next one a step late at most.
    heard = [one for one in announced if one.from_ms <= now_ms]
    passed_ms = [at for at in times[1:] if at + schema.SETTLED_LATE_MS < now_ms]
    stored = {at for number, at in enumerate(times) if number not in absent}
    found = settlements.lacking(heard, stored, None, now_ms)
    assert found == [at for at in passed_ms if at not in stored]


# --- kinds ------------------------------------------------------------------------------------------


def test_both_of_one_minute_are_given_with_their_kinds(connect) -> None:
    reader = connect(
        entry(),
        settled(-8, 0),
        FundingSettled(PAIR, hour(0), 0.009, 2.0, SPECIAL),
        FundingSettled(PAIR, hour(2), -0.001, 2.0, SPECIAL),
    )
    frame = reader.get_funding_history(PAIR)
    assert list(frame.columns) == ["date", "rate", "kind"]
    assert [
        (ms.value // 1_000_000, kind) for ms, kind in zip(frame["date"], frame["kind"], strict=True)
    ] == [
        (hour(-8), REGULAR),
        (hour(0), REGULAR),
        (hour(0), SPECIAL),
        (hour(2), SPECIAL),
    ]
    assert frame["rate"].tolist() == [0.0001 * 42, 0.0001 * 50, 0.009, -0.001]
    summed = sum_settlements(frame)
    assert list(summed.columns) == ["date", "rate"]
    assert summed["rate"].tolist() == [0.0001 * 42, 0.0001 * 50 + 0.009, -0.001]
    assert summed.attrs == frame.attrs
    # What is given to the frame's user can be written down.
    json.dumps(frame.attrs)
    assert len(sum_settlements(frame.iloc[:0])) == 0


def test_a_special_that_comes_later_takes_nothing_away(connect) -> None:
    reader = connect(entry(), settled(-8, 0))
    connect(FundingSettled(PAIR, hour(0), 0.009, 2.0, SPECIAL))
    assert reader.get_funding_history(PAIR)["rate"].tolist() == [0.0001 * 42, 0.0001 * 50, 0.009]
    # Nor a regular one that comes after it.
    connect(FundingSettled(PAIR, hour(8), 0.007, 2.0, SPECIAL))
    connect(settled(8))
    assert reader.get_funding_history(PAIR)["kind"].tolist() == [
        *[REGULAR, REGULAR, SPECIAL],
        *[REGULAR, SPECIAL],
    ]


# --- the running interval ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "now_h", "expected"),
    [
        ([running((-4, 3, 8)), settled(-8, 0)], 3, 8.0),
        # Not stored yet, or of a minute ago.
        ([running((-4, 0, 0), (0, 1, 8)), settled(-8)], 1, None),
        # From 1 h to 4 h, with a settlement that was taken back.
        ([running((-1, 0, 0), (0, 0.25, 1), (0.25, 2, 4)), settled(-2, -1, 0)], 2, 4.0),
        # From 8 h to 1 h in between: it is 7 h until the first one.
        ([running((0, 6, 8), (6, 6.5, 7)), settled(-8, 0)], 6.5, 7.0),
        ([running((0, 6, 8), (6, 7, 7), (7, 7.5, 8)), settled(-8, 0, 7)], 7.5, 1.0),
        # One of them lacks.
        ([running((0, 6, 8), (6, 7, 7), (7, 7.5, 11)), settled(-8, 0)], 7.5, None),
        # A special one changes no interval, alone or not.
        ([running((0, 5, 8)), settled(0), settled(0, 3, 4, kind=SPECIAL)], 5, 8.0),
        # Nobody listened when it was settled, and an hour after.
        ([running((1, 2, 4)), settled(0)], 2, None),
        ([running((0, 1, 4))], 1, None),
        ([running((0, 1, 60)), settled(0)], 1, None),
    ],
)
def test_the_interval(connect, clock, records, now_h: float, expected: float | None) -> None:
    clock.ms = hour(now_h)
    reader = connect(entry(), entry(OTHER), running((0, 1, 8), pair=OTHER), *records)
    for _ in range(2):
        assert reader.get_funding_rate(PAIR, max_age_s=None).interval_h == expected
        found = reader.get_all_pairs_funding_rates(max_age_s=None)
        assert [rate.interval_h for rate in found.values()] == [expected, None]
        frame = reader.funding_frame(max_age_s=None)
        assert frame["interval_h"].fillna(-1.0).tolist() == [expected or -1.0, -1.0]


def test_what_the_exchange_was_asked_for_is_known_though_nobody_listened() -> None:
    row = FundingRow(PAIR, hour(2), 0.1, None, hour(4), hour(0), hour(1), hour(4))
    assert settlements.interval_h(row, None, []) is None
    assert settlements.interval_h(row, hour(1) - schema.SETTLED_LATE_MS - 1, []) is None
    assert settlements.interval_h(row, hour(1) - schema.SETTLED_LATE_MS, []) == 4.0


def test_nothing_lacks_before_the_first_that_is_stored(connect, clock) -> None:
    """Unless it is asked for."""
    clock.ms = hour(1)
    reader = connect(entry(), running((-20, -16, -16), (-16, -8, -8), (-8, 0, 0)), settled(-8, 0))
    assert reader.get_funding_history(PAIR).attrs["missing"] == []
    assert reader.get_funding_history(PAIR, hour(-19)).attrs["missing"] == [hour(-16)]
    assert reader.get_funding_history(PAIR, hour(-19), hour(-16)).attrs["missing"] == []
    assert reader.get_funding_history(PAIR, hour(-15)).attrs["missing"] == []


# --- what a feeder gets -----------------------------------------------------------------------------


def live() -> Download:
    return Download(PAIR, "1h", FUNDING_RATE, None, 20, START_MS - 100 * D1)


def since(number: float) -> Download:
    return Download(PAIR, "1h", FUNDING_RATE, hour(number), 100, START_MS - 100 * D1)


@pytest.fixture
def answer(connect, clock):
    def asked(now_h: float, download: Download, *records: object) -> list[float] | ReaderError:
        clock.ms = hour(now_h)
        (found,) = Feeder(connect(entry(), *records), clock.now_ms).answer([download])
        return found if isinstance(found, ReaderError) else hours(found)

    return asked


HOURLY = range(-24, 1)


@pytest.mark.parametrize("now_h", [0.2, 1.2, 3.9, 4.1, 4.2, 5.0])
def test_from_1_h_to_4_h_nothing_is_refused(answer, now_h: float) -> None:
    """`../shared/cases/01_funding_interval.json`, and what was announced and taken back."""
    stored = [
        settled(*HOURLY),
        running(*((h - 1, h, h) for h in HOURLY[1:]), (0, 0.1, 1), (0.1, min(now_h, 4), 4)),
    ]
    if now_h >= 4:
        stored += [settled(4), running((4, now_h, 8))]
    times = [*HOURLY, *([4] if now_h >= 4 else [])]
    assert answer(now_h, live(), *stored) == times[-20:]
    assert answer(now_h, since(-20), *stored) == times[-len(times) + 4 :]


@pytest.mark.parametrize("now_h", [4.5, 7.9, 8.15])
def test_from_4_h_to_8_h_nothing_is_refused(answer, now_h: float) -> None:
    stored = [
        settled(-12, -8, -4, 0),
        running(*((h - 4, h, h) for h in (-8, -4, 0)), (0, now_h, 8)),
    ]
    assert answer(now_h, live(), *stored) == [-12, -8, -4, 0]
    assert answer(now_h, since(-8), *stored) == [-8, -4, 0]


def test_a_special_between_makes_nothing_due(answer) -> None:
    stored = [
        settled(-16, -8, 0),
        settled(0.5, kind=SPECIAL),
        running((-16, -8, -8), (-8, 0, 0), (0, 5, 8)),
    ]
    assert answer(5, live(), *stored) == [-16, -8, 0, 0.5]
    # Both of one minute, as the exchange sends them.
    assert answer(5, since(-8), *stored, settled(0, kind=SPECIAL)) == [-8, 0, 0, 0.5]


def test_from_8_h_to_1_h_what_lacks_is_noticed(answer) -> None:
    """Three hours lack, be there one after them or not."""
    said = [running((-8, 0, 0), *((h, h + 1, h + 1) for h in range(4)))]
    assert isinstance(answer(3.5, live(), settled(-8, 0), *said), NotStoredError)
    later = [settled(-8, 0, 4), *said, running((4, 4.5, 5))]
    refused = answer(4.5, since(-8), *later)
    assert isinstance(refused, NotStoredError)
    assert "2026-01-01 03:00" in str(refused)
    # The newest ones, as far as there is no hole in them.
    assert answer(4.5, live(), *later) == [4]
    assert answer(4.5, since(4), *later) == [4]


def test_it_may_be_ten_minutes_late(answer) -> None:
    stored = [settled(-8, 0), running((-8, 0, 0), (0, 8, 8), (8, 8.25, 16))]
    assert answer(8.16, live(), *stored) == [-8, 0]
    assert isinstance(answer(8.18, live(), *stored), NotStoredError)


def test_without_announcements_no_interval_is_longer_than_8_h(answer) -> None:
    assert answer(8.1, live(), settled(-8, 0)) == [-8, 0]
    assert isinstance(answer(8.2, live(), settled(-8, 0)), NotStoredError)
    assert isinstance(answer(1, since(-20), settled(-24, -8, 0)), NotStoredError)


def test_an_ended_pair_has_no_settlement_after_its_end(connect, clock) -> None:
    clock.ms = hour(40)
    ended = entry(ended_ms=hour(2))
    reader = connect(ended, settled(-8, 0), running((-8, 0, 0), (0, 2, 8)))
    (found,) = Feeder(reader, clock.now_ms).answer([live()])
    assert hours(found) == [-8, 0]
