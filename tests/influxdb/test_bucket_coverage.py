"""What a bucket is said to have: never more than it has, and all of it once nothing is on its way."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.grid import TimeRange
from marketfeed.influxdb import bucket_coverage
from marketfeed.influxdb.bucket_coverage import (
    NONE_REFUSED,
    Look,
    Points,
    Refused,
    Unacknowledged,
    interval,
    intervals,
    settled_parts,
)
from marketfeed.journal.coverage import Covered, Hole, Key
from marketfeed.schema import MINUTE_MS, SETTLED_TO
from marketfeed.storage.ranges import Ranges

KEY = ("BTC/USDT:USDT", "1m")
OTHER = ("ETH/USDT:USDT", "1m")
NAMES = {KEY: "ohlcv_1m,pair=BTC/USDT:USDT", OTHER: "ohlcv_1m,pair=ETH/USDT:USDT"}
MANY = 24


def minutes(start: int, end: int) -> TimeRange:
    return TimeRange(start * MINUTE_MS, end * MINUTE_MS)


def covered(holes: str, *, looked: int = 0, start: int = 0) -> Covered:
    """A series, a character a minute from `start` on: `.` is stored, `?` missing, `x` absent."""
    parts: list[Hole] = []
    at = start
    for kind, group in itertools.groupby(holes):
        end = at + len(list(group))
        if kind != ".":
            empty = (1, 2) if kind == "x" else (None, None)
            parts.append(Hole(at * MINUTE_MS, end * MINUTE_MS, False, *empty))
        at = end
    return Covered(start * MINUTE_MS, looked * MINUTE_MS, at * MINUTE_MS, 0, tuple(parts))


@pytest.mark.parametrize(
    ("holes", "lacking", "expected"),
    [
        ("......", [], (0, 6)),
        ("..?...", [], (3, 6)),
        ("..x...", [], (0, 6)),
        ("?.x..?", [], (1, 5)),
        ("..xx", [], (0, 4)),
        ("..x?x", [], (0, 3)),
        ("......", [minutes(5, 6)], (0, 5)),
        ("......", [minutes(2, 4)], (4, 6)),
        ("......", [minutes(2, 4), minutes(3, 6)], (0, 2)),
        ("..?.?.", [minutes(5, 6)], (3, 4)),
        ("....", [minutes(0, 4)], (0, 0)),
        ("????", [], (0, 0)),
        ("x...", [minutes(2, 3)], (3, 4)),
    ],
)
def test_the_newest_part_without_a_hole(
    holes: str, lacking: list[TimeRange], expected: tuple[int, int]
) -> None:
    assert interval(covered(holes), lacking) == minutes(*expected)


def test_where_rows_are_still_to_be_looked_through_nothing_is_said() -> None:
    assert interval(covered("......", looked=3), []) == minutes(3, 6)
    assert interval(covered("......", looked=6), []) is None
    assert interval(covered("......", looked=3), [minutes(2, 6)]) is None


@given(
    st.text(".?x", min_size=1, max_size=MANY),
    st.lists(st.tuples(st.integers(-2, MANY), st.integers(1, 6)), max_size=5),
    st.integers(0, MANY),
)
@settings(max_examples=2_000)
def test_an_interval_is_what_a_walk_from_the_newest_down_finds(
    holes: str, spans: list[tuple[int, int]], looked: int
) -> None:
    lacking = [minutes(start, start + length) for start, length in spans]
    lacked = {at for start, length in spans for at in range(start, start + length)}
    looked = min(looked, len(holes))
    bad = [holes[at] == "?" or at in lacked for at in range(len(holes))]
    until = start = len(holes)
    while until > looked:
        while start > looked and not bad[start - 1]:
            start -= 1
        if start == looked or "." in holes[start:until]:
            break
        until = start = start - 1
    found = interval(covered(holes, looked=looked), lacking)
    if start < until:
        assert found == minutes(start, until)
    else:
        assert found == (minutes(0, 0) if looked == 0 else None)


# --- rows by their numbers ------------------------------------------------------------------------------


class Rows:
    """A file and a bucket: which candle has which number, and which numbers have been acknowledged."""

    def __init__(self) -> None:
        self.seqs: dict[tuple[Key, int], int] = {}
        self.next_seq = 1
        self.acknowledged = Ranges()
        self.unacknowledged = Unacknowledged()

    def store(self, key: Key, opens: list[int]) -> None:
        for at in opens:
            self.seqs[key, at] = self.next_seq
            self.next_seq += 1
        # Rows of other tables have numbers, too.
        self.next_seq += len(opens) % 3

    def acknowledge(self, which: int, count: int) -> None:
        gaps = list(self.acknowledged.gaps(self.next_seq))
        if gaps:
            first, last = gaps[which % len(gaps)]
            self.acknowledged.add(max(first, last - count), last)

    def look(self, rows: int, looks: int) -> None:
        """Look at so many rows at once, so often, as an outbox does."""
        left = self.unacknowledged.left(self.acknowledged, self.next_seq)
        for _ in range(looks):
            if not left:
                return
            first, last = left[0]
            found = sorted(
                ((seq, *what) for what, seq in self.seqs.items() if first <= seq <= last),
                reverse=True,
            )[:rows]
            low = found[-1][0] if len(found) == rows else first
            opens: dict[Key, list[int]] = {}
            for _, key, at in found:
                opens.setdefault(key, []).append(at * MINUTE_MS)
            self.unacknowledged.add([Look(low, last, opens)])
            left[:1] = [(first, low - 1)] if low > first else []

    def lacking(self) -> set[tuple[Key, int]]:
        return {what for what, seq in self.seqs.items() if seq not in self.acknowledged}

    def told(self) -> set[tuple[Key, int]]:
        return {
            (key, at_ms // MINUTE_MS)
            for key, ranges in self.unacknowledged.ranges().items()
            for start_ms, end_ms in ranges
            for at_ms in range(start_ms, end_ms, MINUTE_MS)
        }


opens = st.lists(st.integers(0, MANY - 1), min_size=1, max_size=8, unique=True)
events = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.sampled_from([KEY, OTHER]), opens),
        st.tuples(st.just("acknowledge"), st.integers(0, 5), st.integers(0, 12)),
        st.tuples(st.just("look"), st.integers(1, 6), st.integers(1, 4)),
        st.tuples(st.just("look"), st.just(100), st.just(100)),
    ),
    max_size=30,
)


@given(events, st.sampled_from([1, 3, bucket_coverage.MOST_LOOKS]), st.sampled_from([0, 4, 5_000]))
@settings(max_examples=500, deadline=None)
def test_what_has_not_been_acknowledged_is_known_and_forgotten_when_it_is(
    done: list[tuple[str, object, object]], most_looks: int, candles: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_coverage, "MOST_LOOKS", most_looks)
        patch.setattr(bucket_coverage, "CANDLES", candles)
        rows = Rows()
        for what, *arguments in done:
            getattr(rows, what)(*arguments)
            if what == "look" and rows.unacknowledged.is_whole:
                assert rows.lacking() <= rows.told()
        rows.acknowledged.add(1, rows.next_seq)
        rows.look(100, 100)
        assert rows.unacknowledged.is_whole
        assert rows.told() == set()


def test_candles_of_one_look_stay_exact() -> None:
    rows = Rows()
    rows.store(KEY, [1, 2, 3, 7, 9])
    rows.store(OTHER, [4])
    rows.look(100, 100)
    assert rows.unacknowledged.ranges() == {
        KEY: [minutes(1, 4), minutes(7, 8), minutes(9, 10)],
        OTHER: [minutes(4, 5)],
    }


# --- all that is known of a bucket -----------------------------------------------------------------------


def whole() -> Unacknowledged:
    found = Unacknowledged()
    assert found.left(Ranges(), 1) == []
    return found


def told(
    stored: Covered, refused: Refused = NONE_REFUSED, *, kept: Covered | None = None
) -> TimeRange | None:
    return intervals({KEY: stored}, {KEY: kept or stored}, whole(), refused, NAMES).get(KEY)


def test_refused_lines_end_an_interval() -> None:
    name = NAMES[KEY]
    series = covered("......")
    assert told(series, Refused({name: [2 * MINUTE_MS]})) == minutes(3, 6)
    assert told(series, Refused({name: [5 * MINUTE_MS, 0]})) == minutes(1, 5)
    assert told(series, Refused({NAMES[OTHER]: [2 * MINUTE_MS]})) == minutes(0, 6)
    assert told(series, Refused(gone_ms={name: 3 * MINUTE_MS})) == minutes(4, 6)
    assert told(series, Refused({name: [MINUTE_MS]}, {name: 0})) == minutes(2, 6)
    assert told(series, Refused(is_unknown=True)) == minutes(0, 0)


def test_what_was_deleted_while_rows_were_looked_at_is_not_said() -> None:
    assert told(covered("......"), kept=covered("..", start=4)) == minutes(4, 6)
    assert told(covered("..."), kept=covered("..", start=4)) == minutes(0, 0)
    assert intervals({KEY: covered("...")}, {}, whole(), NONE_REFUSED, NAMES) == {}


def test_until_all_rows_have_been_looked_at_nothing_is_said() -> None:
    rows = Rows()
    rows.store(KEY, [0, 1, 2])
    rows.acknowledge(0, 0)
    rows.look(1, 1)
    series = {KEY: covered("...")}
    unacknowledged = rows.unacknowledged
    assert not unacknowledged.is_whole
    assert intervals(series, series, unacknowledged, NONE_REFUSED, NAMES) == {KEY: minutes(0, 0)}
    rows.look(100, 100)
    assert intervals(series, series, unacknowledged, NONE_REFUSED, NAMES) == {KEY: minutes(2, 3)}
    rows.acknowledge(0, 100)
    rows.look(100, 100)
    assert intervals(series, series, unacknowledged, NONE_REFUSED, NAMES) == {KEY: minutes(0, 3)}


# --- when it is said -------------------------------------------------------------------------------------


def test_growth_is_said_each_minute_and_less_at_once() -> None:
    points = Points(60.0)

    def say(now_s: float, *found: tuple[Key, TimeRange]) -> set[str]:
        due = points.due(dict(found), now_s)
        points.written(due, now_s)
        return set(due)

    assert say(0.0, (KEY, minutes(2, 6)), (OTHER, minutes(2, 6))) == {KEY[0], OTHER[0]}
    assert say(5.0, (KEY, minutes(2, 7)), (OTHER, minutes(2, 6))) == set()
    assert say(10.0, (KEY, minutes(2, 7)), (OTHER, minutes(3, 6))) == {OTHER[0]}
    # Below what was written last, though above what was known in between.
    assert say(15.0, (KEY, minutes(2, 5)), (OTHER, minutes(3, 6))) == {KEY[0]}
    assert say(20.0, (KEY, minutes(1, 5)), (OTHER, minutes(3, 6))) == {KEY[0]}
    assert say(59.9, (KEY, minutes(1, 9)), (OTHER, minutes(3, 6))) == set()
    assert say(60.0, (KEY, minutes(1, 9)), (OTHER, minutes(3, 6))) == {KEY[0], OTHER[0]}
    assert say(61.0, (KEY, minutes(1, 9)), ((KEY[0], "3m"), minutes(0, 0))) == {KEY[0]}
    assert say(62.0, (KEY, minutes(1, 9)), ((KEY[0], "3m"), minutes(0, 3))) == {KEY[0]}
    assert say(119.9, (KEY, minutes(1, 12))) == set()


def test_what_could_not_be_written_is_due_again() -> None:
    points = Points(60.0)
    series = {KEY: minutes(0, 1)}
    assert points.due(series, 0.0)
    assert points.due(series, 1.0), "nothing was written"
    points.written(points.due(series, 2.0), 2.0)
    assert not points.due(series, 3.0)
    assert points.due({KEY: minutes(1, 1)}, 4.0)
    assert points.due({KEY: minutes(1, 1)}, 5.0)


def test_what_was_passed_over_is_in_no_interval() -> None:
    stored = {KEY: covered("........"), OTHER: covered("........")}
    nothing = Unacknowledged()

    def held(measurement: str) -> list[TimeRange]:
        return [minutes(2, 4)] if measurement == "ohlcv_1m" else []

    names = NAMES | {OTHER: "ohlcv_3m,pair=ETH/USDT:USDT"}
    found = intervals(stored, stored, nothing, NONE_REFUSED, names, held)
    assert found == {KEY: minutes(4, 8), OTHER: minutes(0, 8)}


def test_settlements_end_where_they_were_passed_over() -> None:
    day = 24 * 60
    told = {"BTC/USDT:USDT": 30 * day * MINUTE_MS}
    names = {"BTC/USDT:USDT": "funding_settled,pair=BTC/USDT:USDT"}

    def parts(*held: TimeRange) -> dict[Key, TimeRange]:
        return settled_parts(told, NONE_REFUSED, names, (), 16 * day * MINUTE_MS, held)

    key = ("BTC/USDT:USDT", SETTLED_TO)
    assert parts() == {key: minutes(30 * day, 30 * day)}
    assert parts(minutes(20 * day, 27 * day)) == {key: minutes(20 * day, 20 * day)}
    # Of before what readers look at; and what a bucket keeps no more.
    assert parts(minutes(1 * day, 8 * day)) == {key: minutes(30 * day, 30 * day)}
    assert parts(minutes(0, 17 * day)) == {key: minutes(30 * day, 30 * day)}
