"""The book of what is not sent: shards, turns of probes, what is sent again, and that it is kept."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.grid import TimeRange
from marketfeed.influxdb.holds import ALL, Again, Book, decode, encode, shard_of
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS

MONDAY_MS = int(datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC).timestamp()) * 1000
WEEK_MS = 7 * DAY_MS


def line(measurement: str, at_ms: int) -> str:
    return f"{measurement},pair=A/USDT:USDT open=1.5 {at_ms}"


def test_a_week_begins_on_a_monday() -> None:
    start_ms, end_ms = shard_of(MONDAY_MS + 5 * HOUR_MS, None)
    start = datetime.datetime.fromtimestamp(start_ms / 1000, datetime.UTC)
    assert (start.weekday(), start.hour, end_ms - start_ms) == (0, 0, WEEK_MS)


@given(st.integers(0, 2**42), st.sampled_from([None, 0, HOUR_MS, 3 * DAY_MS, 400 * DAY_MS]))
def test_every_time_has_one_shard(at_ms: int, keeps_ms: int | None) -> None:
    start_ms, end_ms = shard_of(at_ms, keeps_ms)
    assert start_ms <= at_ms < end_ms
    assert shard_of(start_ms, keeps_ms) == shard_of(end_ms - 1, keeps_ms) == (start_ms, end_ms)


def test_a_shard_that_is_held_is_passed_over_and_nothing_beside_it() -> None:
    book = Book()
    assert book.hold([line("ohlcv_3m", MONDAY_MS + 1)], "conflict") is not None
    assert book.hold([line("ohlcv_3m", MONDAY_MS + 2)], "conflict") is None
    lines = [
        line("ohlcv_3m", MONDAY_MS - 1),
        line("ohlcv_3m", MONDAY_MS),
        line("ohlcv_3m", MONDAY_MS + WEEK_MS - 1),
        line("ohlcv_3m", MONDAY_MS + WEEK_MS),
        line("ohlcv_30m", MONDAY_MS),
        f"feed_gap,kind=x,pair=* healed=true {MONDAY_MS}",
    ]
    assert book.sent(lines, MONDAY_MS) == [lines[0], *lines[3:]]
    assert book.lacking("ohlcv_3m", MONDAY_MS) == [TimeRange(MONDAY_MS, MONDAY_MS + WEEK_MS)]
    assert book.lacking("ohlcv_30m", MONDAY_MS) == []


def test_of_each_measurement_one_shard_is_probed_in_its_turn() -> None:
    book = Book()
    for week in range(3):
        book.hold([line("ohlcv_3m", MONDAY_MS + week * WEEK_MS)], "c")
    book.hold([line("mark_price", MONDAY_MS)], "c")
    assert book.due(0.0, 60.0) == []
    probed = []
    for minute in range(1, 7):
        probed += book.due(60.0 * minute, 60.0)
    weeks = [hold.start_ms for hold in probed if hold.measurement == "ohlcv_3m"]
    assert len(probed) == 12
    assert sorted(weeks[:3]) == sorted(weeks[3:]) == [MONDAY_MS + n * WEEK_MS for n in range(3)]


def test_what_is_taken_is_sent_again_until_it_is_done() -> None:
    book = Book()
    hold = book.hold([line("ohlcv_3m", MONDAY_MS)], "c")
    assert hold is not None
    book.release(hold)
    again = Again("ohlcv_3m", MONDAY_MS, MONDAY_MS + WEEK_MS)
    assert (book.holds, book.again) == ([], again)
    assert book.lacking("ohlcv_3m", 0) == [TimeRange(MONDAY_MS, MONDAY_MS + WEEK_MS)]
    assert book.sent([line("ohlcv_3m", MONDAY_MS)], 0) == [line("ohlcv_3m", MONDAY_MS)]
    book.done(again)
    assert (book.again, book.lacking("ohlcv_3m", 0)) == (None, [])


@pytest.mark.parametrize(("longer_ms", "start_ms"), [(60 * DAY_MS, MINUTE_MS), (0, 0)])
def test_what_is_too_old_is_passed_over_and_sent_when_the_bucket_keeps_more(
    longer_ms: int, start_ms: int
) -> None:
    now_ms = 60 * DAY_MS
    book = Book()
    book.keeps(30 * DAY_MS, now_ms)
    floor_ms = 30 * DAY_MS + MINUTE_MS
    old, young = line("ohlcv_3m", floor_ms - 1), line("ohlcv_3m", floor_ms)
    assert book.sent([old, young], now_ms) == [young]
    assert book.again is None
    assert book.lacking("mark_1h", now_ms) == [TimeRange(0, 30 * DAY_MS + HOUR_MS)]
    book.keeps(longer_ms, now_ms)
    assert book.sent([old, young], now_ms) == [old, young]
    assert book.again == Again(ALL, start_ms, floor_ms + 2 * HOUR_MS)
    book.keeps(DAY_MS, now_ms)
    assert book.again is not None, "what is to be sent again stays so"
    assert book.sent([young], now_ms) == []


def test_a_bucket_whose_expiry_was_not_known_has_nothing_sent_again() -> None:
    book = Book()
    book.keeps(30 * DAY_MS, 60 * DAY_MS)
    assert book.again is None


def test_it_is_kept_for_each_target() -> None:
    book, of = decode(None, "a")
    book.hold([line("ohlcv_3m", MONDAY_MS)], "conflict")
    book.keeps(DAY_MS, MONDAY_MS)
    assert book.is_changed
    body = encode(book, "a", of)
    assert not book.is_changed
    other, of = decode(body, "b")
    assert (other.holds, other.keeps_ms) == ([], None)
    other.keeps(0, 0)
    again, _ = decode(encode(other, "b", of), "a")
    assert (again.holds, again.keeps_ms, again.is_changed) == (book.holds, DAY_MS, False)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"a": 7}', b"\xff"])
def test_a_document_that_cannot_be_read_holds_nothing(body: bytes) -> None:
    book, of = decode(body, "a")
    assert (book.holds, of) == ([], {})


def test_a_shard_of_another_length_is_another_one_though_it_begins_with_it() -> None:
    book = Book()
    book.keeps(30 * DAY_MS, MONDAY_MS)
    assert book.hold([line("ohlcv_3m", MONDAY_MS + HOUR_MS)], "c") is not None
    book.keeps(0, MONDAY_MS)
    later = line("ohlcv_3m", MONDAY_MS + 3 * DAY_MS)
    assert book.hold([later], "c") is not None, "its row counts as shipped: it must be in the book"
    assert book.sent([later], MONDAY_MS) == []


def test_lines_without_the_field_that_clashes_are_sent() -> None:
    book = Book()
    without = line("mark_price", MONDAY_MS)
    first = f"mark_price,pair=A/USDT:USDT index_price=1.5,mark_price=2.5 {MONDAY_MS}"
    last = f"mark_price,pair=A/USDT:USDT mark_price=2.5,index_price=1.5 {MONDAY_MS}"
    like = f"mark_price,pair=A/USDT:USDT mark_price=2.5,last_index_price=1.5 {MONDAY_MS}"
    assert book.hold([first], "c", "index_price") is not None
    assert book.sent([without, first, last, like], MONDAY_MS) == [without, like]
    # Another field of the shard clashes, too.
    assert book.hold([without], "c", "open") is not None
    assert book.sent([without, first, last, like], MONDAY_MS) == [like]
    decoded, _ = decode(encode(book, "a", {}), "a")
    assert decoded.holds == book.holds


def test_once_a_shard_is_taken_the_next_one_is_probed_at_once() -> None:
    book = Book()
    for week in range(500):
        book.hold([line("ohlcv_3m", MONDAY_MS - week * WEEK_MS)], "c")
    assert book.due(0.0, 60.0) == []
    released = set()
    # Probed within a minute, then one a turn.
    for second in range(60, 560):
        for hold in book.due(float(second), 60.0):
            released.add(hold.start_ms)
            book.release(hold)
    assert len(released) == 500
    assert book.holds == []


@given(
    st.lists(st.tuples(st.integers(0, 60 * DAY_MS), st.sampled_from([0, HOUR_MS, 30 * DAY_MS]))),
    st.lists(st.integers(0, 60 * DAY_MS)),
)
def test_exactly_what_lies_in_a_held_shard_is_passed_over(
    held: list[tuple[int, int]], times: list[int]
) -> None:
    book = Book()
    for at_ms, keeps_ms in held:
        book.keeps_ms = keeps_ms
        book.hold([line("ohlcv_3m", at_ms)], "c")
    book.keeps_ms = 0
    spans = [(hold.start_ms, hold.end_ms) for hold in book.holds]
    wanted = [
        line("ohlcv_3m", at_ms)
        for at_ms in times
        if not any(start_ms <= at_ms < end_ms for start_ms, end_ms in spans)
    ]
    assert book.sent([line("ohlcv_3m", at_ms) for at_ms in times], 0) == wanted
