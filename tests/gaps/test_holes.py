"""What is due and not there, held against a model that knows every minute of every series."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.gaps.holes import CANDLE_DUE_MS, Holes
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.journal import coverage
from marketfeed.journal.batch import Due
from marketfeed.journal.coverage import AGAIN_AFTER_MS, BELIEVED_FOR_MS, Covered, Hole, Key, Promise
from marketfeed.schema import HOUR_MS, MINUTE_MS, TIMEFRAMES_MS

PAIR = "BTC/USDT:USDT"
ONE: Key = (PAIR, "1m")
T0 = 1_791_360_000_000
assert T0 % HOUR_MS == 0


def at(number: float) -> int:
    return T0 + int(number * MINUTE_MS)


class Watched:
    """A series of minutes from T0 on, and `Holes` of it."""

    def __init__(self, from_number: int = 0) -> None:
        from_ms = at(from_number)
        self.known: dict[Key, Covered] = {ONE: Covered(from_ms, from_ms, from_ms, 0)}
        self.here: dict[Key, set[int]] = {}
        self.due_after_ms = CANDLE_DUE_MS
        self.holes = Holes(lambda: self.known, lambda: self.here, lambda: self.due_after_ms)

    def come(self, *numbers: int) -> None:
        self.here.setdefault(ONE, set()).update(map(at, numbers))

    def store(self, *numbers: int) -> None:
        self.known[ONE] = coverage.stored(
            self.known[ONE], sorted(map(at, numbers)), TIMEFRAMES_MS["1m"]
        )
        self.here.pop(ONE, None)

    def expect(self, now_ms: int) -> None:
        for key, due in list(self.holes.overdue(now_ms)):
            self.known[key] = coverage.expected(self.known[key], due.until_ms)

    def answer_without(self, first: int, after: int, at_ms: int) -> None:
        where = TimeRange(at(first), at(after))
        self.known[ONE] = coverage.answered_without(self.known[ONE], where, at_ms)

    def lacking(self, now_ms: int) -> list[int]:
        return numbers(self.holes.lacking(ONE, now_ms))


def numbers(holes: Iterable[Hole | TimeRange]) -> list[int]:
    """The candles in holes, as numbers from T0 on; holes neither touch backwards nor overlap."""
    ranges = [TimeRange(one[0], one[1]) for one in holes]
    assert all(one.end_ms <= two.start_ms for one, two in pairwise(ranges))
    assert all(one.start_ms < one.end_ms for one in ranges)
    return [(open_ms - T0) // MINUTE_MS for one in ranges for open_ms in range(*one, MINUTE_MS)]


def test_a_candle_is_missing_4_s_after_its_close_and_a_slower_machine_may_wait_longer() -> None:
    watched = Watched()
    assert watched.lacking(at(1) + 4_000) == []
    assert watched.lacking(at(1) + 4_001) == [0]
    assert list(watched.holes.overdue(at(1) + 4_000)) == []
    assert list(watched.holes.overdue(at(1) + 4_001)) == [
        (ONE, Due(at(1), (TimeRange(at(0), at(1)),)))
    ]
    watched.due_after_ms = 30_000
    assert watched.lacking(at(1) + 30_000) == []
    assert watched.lacking(at(1) + 30_001) == [0]


def test_what_has_come_is_missing_neither_before_nor_after_its_commit() -> None:
    watched = Watched()
    watched.come(0, 2)
    now_ms = at(4) + 4_001
    assert watched.lacking(now_ms) == [1, 3]
    watched.store(0, 2)
    assert watched.lacking(now_ms) == [1, 3]
    assert watched.known[ONE].holes == (Hole(at(1), at(2)),)
    # Repeats, and what is older, change nothing.
    watched.store(0)
    watched.store(-5)
    watched.come(2)
    assert watched.lacking(now_ms) == [1, 3]


def test_what_was_received_and_given_up_is_due_again() -> None:
    watched = Watched()
    watched.come(0)
    assert watched.lacking(at(1) + 4_001) == []
    watched.here.clear()
    assert watched.lacking(at(1) + 4_001) == [0]


def test_a_candle_that_came_before_it_was_due_is_not_missing() -> None:
    watched = Watched()
    watched.store(0, 1)
    assert watched.lacking(at(2) + 4_001) == []
    assert watched.lacking(at(3) + 4_001) == [2]


def test_nothing_is_missing_of_what_is_not_promised() -> None:
    watched = Watched(from_number=5)
    assert watched.lacking(at(5)) == []
    assert watched.lacking(at(6) + 4_001) == [5]
    other = "X/USDT:USDT", "1m"
    now_ms = at(99)
    assert watched.holes.lacking(other, now_ms) == []
    assert not watched.holes.ready(other, 1, now_ms)
    assert watched.holes.complete_until(other, now_ms) == 0


def test_a_long_absence_is_one_hole() -> None:
    days = 10
    watched = Watched(from_number=-days * 1_440)
    (hole,) = watched.holes.lacking(ONE, at(0) + 4_001)
    assert hole == Hole(at(-days * 1_440), at(0))
    watched.expect(at(0) + 4_001)
    assert watched.known[ONE].holes == (hole,)
    # Healing is given the newest of it, history the rest.
    assert numbers(watched.holes.for_healing(ONE, at(0) + 4_001)) == list(range(-TILE_CANDLES, 0))
    rest = watched.holes.for_history(ONE, at(0) + 4_001)
    assert rest == (TimeRange(at(-days * 1_440), at(-TILE_CANDLES)),)
    both = watched.holes.for_history(ONE, at(0) + 4_001, newest_too=True)
    assert both == (hole.time_range,)


def test_nothing_is_due_that_opens_after_a_pairs_end_or_is_cut_by_it() -> None:
    watched = Watched()
    watched.holes.ended_ms[PAIR] = at(3.5)
    assert watched.lacking(at(99)) == [0, 1, 2]
    watched.store(0, 1, 2)
    assert watched.lacking(at(99)) == []
    assert list(watched.holes.overdue(at(99))) == []
    assert watched.holes.complete_until(ONE, at(99)) == at(3)
    assert watched.holes.ready(ONE, 3, at(99))
    # Taken back, it is due as any other.
    del watched.holes.ended_ms[PAIR]
    assert watched.lacking(at(5) + 4_001) == [3, 4]


def test_holes_of_an_ended_pair_can_heal() -> None:
    watched = Watched()
    watched.store(1)
    watched.holes.ended_ms[PAIR] = at(2)
    assert watched.lacking(at(99)) == [0]
    assert numbers(watched.holes.for_healing(ONE, at(99))) == [0]
    watched.store(0)
    assert watched.lacking(at(99)) == []


def test_a_clock_that_is_set_back_makes_holes_of_the_future_not_due() -> None:
    watched = Watched()
    watched.expect(at(180) + 4_001)
    assert watched.known[ONE].holes == (Hole(at(0), at(180)),)
    assert watched.lacking(at(2) + 4_001) == [0, 1]
    assert watched.holes.count(at(2) + 4_001)[ONE] == 2
    watched.store(0, 1)
    assert watched.lacking(at(2) + 4_001) == []
    assert watched.lacking(at(3) + 4_001) == [2]


def test_what_the_exchange_does_not_have_is_not_waited_for_and_asked_for_a_week_later() -> None:
    watched = Watched()
    now_ms = at(20)
    watched.store(2)
    watched.answer_without(0, 2, now_ms)
    assert not watched.holes.ready(ONE, 19, now_ms)
    watched.answer_without(0, 2, now_ms + AGAIN_AFTER_MS)
    now_ms = at(23)
    watched.store(*range(3, 23))
    assert watched.lacking(now_ms) == [0, 1]
    assert watched.holes.ready(ONE, 400, now_ms)
    assert watched.holes.complete_until(ONE, now_ms) == at(22)
    assert not watched.holes.count(now_ms)
    assert not watched.holes.open_longer_than(0.0, now_ms)
    assert watched.holes.oldest_s(now_ms) == 0.0
    assert watched.holes.for_healing(ONE, now_ms) == []
    # In a week it is history's.
    later_ms = now_ms + BELIEVED_FOR_MS
    assert 0 in numbers(watched.holes.for_history(ONE, later_ms))


def test_a_series_is_ready_when_the_newest_are_there_whatever_is_missing_behind() -> None:
    watched = Watched()
    now_ms = at(100) + 4_001
    watched.store(*range(50, 100))
    assert watched.holes.ready(ONE, 50, now_ms)
    assert not watched.holes.ready(ONE, 51, now_ms)
    # What has come and is not committed is there for nobody who reads.
    watched.come(100)
    assert not watched.holes.ready(ONE, 1, at(101) + 4_001)
    assert watched.holes.open_longer_than(0.0, at(101) + 4_001) == {ONE: 51}
    assert numbers(watched.holes.for_healing(ONE, at(101) + 4_001)) == list(range(50))
    # Nor is what is older than a range asked for, of a hole whose newest part has come.
    watched.come(*range(105, 110))
    later_ms = at(110) + 4_001
    assert numbers(watched.holes.lacking(ONE, later_ms, at(102))) == [101, 102, 103, 104]
    assert watched.holes.lacking(ONE, later_ms, at(105)) == []
    watched.here.clear()
    # All that is promised is enough, however many are asked for.
    watched.store(*range(50))
    assert watched.holes.ready(ONE, 10_000, now_ms)
    # Nobody knows yet of rows that are still to be looked through.
    assert watched.holes.complete_until(ONE, now_ms) == at(100)
    watched.known[ONE] = coverage.distrusted(watched.known[ONE])
    assert not watched.holes.ready(ONE, 1, now_ms)
    assert watched.holes.complete_until(ONE, now_ms) == at(0)
    watched.known[ONE] = coverage.looked(watched.known[ONE], at(60), [])
    assert watched.holes.ready(ONE, 40, now_ms)
    assert not watched.holes.ready(ONE, 41, now_ms)


def test_a_hole_is_open_longer_than_60_s_from_its_deadline_on() -> None:
    watched = Watched()
    due_ms = at(1) + CANDLE_DUE_MS
    assert not watched.holes.open_longer_than(60.0, due_ms + 60_000)
    # By then the next one is missing, too: the first one alone is old.
    assert watched.holes.open_longer_than(60.0, due_ms + 60_001) == {ONE: 1}
    assert watched.holes.oldest_s(due_ms + 60_001) == 60.001
    # A first filling is no hole of the feed.
    watched.known[ONE] = coverage.promised(
        None, Promise(*ONE, at(5), 60 * MINUTE_MS), None, lambda _: ()
    )
    assert not watched.holes.open_longer_than(0.0, at(5))
    assert watched.holes.count(at(5) + 4_001, first=True) == {ONE: 60}
    assert watched.holes.count(at(5) + 4_001) == {}


def test_what_other_pairs_lack_is_left_out_when_pairs_are_named() -> None:
    watched = Watched()
    other: Key = "X/USDT:USDT", "1m"
    watched.known[other] = watched.known[ONE]
    now_ms = at(3) + CANDLE_DUE_MS + 60_000
    assert watched.holes.open_longer_than(60.0, now_ms) == {ONE: 2, other: 2}
    assert watched.holes.open_longer_than(60.0, now_ms, {PAIR}) == {ONE: 2}
    assert watched.holes.open_longer_than(60.0, now_ms, set()) == {}
    assert watched.holes.oldest_s(now_ms, {PAIR}) == watched.holes.oldest_s(now_ms)
    assert watched.holes.oldest_s(now_ms, set()) == 0.0


def test_what_the_exchange_does_not_have_is_counted_by_itself() -> None:
    watched = Watched()
    now_ms = at(60) + CANDLE_DUE_MS + 1
    watched.expect(now_ms)
    assert watched.holes.absent() == {}
    watched.answer_without(10, 13, now_ms)
    assert watched.holes.absent() == {}
    watched.answer_without(10, 13, now_ms + AGAIN_AFTER_MS)
    assert watched.holes.absent() == {ONE: 3}
    assert watched.holes.count(now_ms) == {ONE: 57}


def test_ten_thousand_holes_are_all_remembered() -> None:
    watched = Watched()
    watched.store(*range(1, 20_001, 2))
    now_ms = at(20_000) + 4_001
    assert watched.holes.count(now_ms)[ONE] == 10_000
    assert len(watched.holes.for_history(ONE, now_ms)) == 10_000 - TILE_CANDLES // 2
    healing = numbers(watched.holes.for_healing(ONE, now_ms))
    assert healing == list(range(20_000 - 498, 20_000, 2))


CANDLES = st.integers(-20, 700)


class Truth:
    """The minutes of a series one by one."""

    def __init__(self, from_number: int) -> None:
        self.from_number = from_number
        self.stored: set[int] = set()
        self.received: set[int] = set()
        self.empty: dict[int, int] = {}
        """When (ms) the exchange answered without a candle for the first time."""
        self.absent: set[int] = set()
        self.ended: float | None = None

    def due(self, now_ms: int) -> range:
        until_ms = now_ms - CANDLE_DUE_MS - 1
        if self.ended is not None:
            until_ms = min(until_ms, at(self.ended))
        return range(self.from_number, max(self.from_number, (until_ms - T0) // MINUTE_MS))

    def lacking(self, now_ms: int) -> list[int]:
        there = self.stored | self.received
        return [number for number in self.due(now_ms) if number not in there]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_holes_are_what_is_promised_due_and_neither_stored_nor_received(
    data: st.DataObject,
) -> None:
    from_number = data.draw(st.integers(-10, 10), "from")
    watched, truth = Watched(from_number), Truth(from_number)
    now_ms = at(from_number) + 5_000
    for _ in range(data.draw(st.integers(1, 15), "events")):
        match data.draw(st.integers(0, 9), "event"):
            case 0 | 1:
                now_ms += data.draw(st.sampled_from((1_000, MINUTE_MS, 7 * MINUTE_MS, 9 * HOUR_MS)))
            case 2:
                # The clock is set back.
                now_ms -= data.draw(st.sampled_from((1_000, 10 * MINUTE_MS)))
            case 3 | 4:
                came = data.draw(st.sets(CANDLES, min_size=1, max_size=8))
                if data.draw(st.booleans(), "newest, too"):
                    due = truth.due(now_ms)
                    came |= set(due[-data.draw(st.integers(1, 8)) :])
                watched.come(*came)
                truth.received |= came
            case 5:
                # A commit of all that has come; the supervisor's word goes with it, or after it.
                if truth.received:
                    watched.store(*truth.received)
                truth.stored |= truth.received
                truth.received = set()
            case 6:
                first = data.draw(CANDLES)
                tile = range(first, first + data.draw(st.integers(1, 499)))
                watched.store(*tile)
                truth.stored |= set(tile) | truth.received
                if truth.received:
                    watched.store(*truth.received)
                    truth.received = set()
            case 7:
                watched.expect(now_ms)
            case 8:
                truth.ended = data.draw(st.sampled_from((None, 3.5, 60.0, 400.0)))
                watched.holes.ended_ms.clear()
                if truth.ended is not None:
                    watched.holes.ended_ms[PAIR] = at(truth.ended)
            case _:
                # Received ones go with the commit; then what is due has a hole, which is answered.
                if not truth.received:
                    watched.expect(now_ms)
                    first = data.draw(CANDLES)
                    answer(watched, truth, first, first + data.draw(st.integers(1, 499)), now_ms)
        check(watched.holes, truth, now_ms, data.draw(st.integers(1, 600), "asked"))


def answer(watched: Watched, truth: Truth, first: int, after: int, now_ms: int) -> None:
    before = watched.known[ONE].holes
    watched.answer_without(first, after, now_ms)
    assert numbers(watched.known[ONE].holes) == numbers(before)
    truth.absent = {
        number for hole in watched.known[ONE].holes if hole.is_absent for number in numbers([hole])
    }


def check(holes: Holes, truth: Truth, now_ms: int, asked: int) -> None:
    truth.absent -= truth.stored
    lacking = truth.lacking(now_ms)
    found = holes.lacking(ONE, now_ms)
    assert numbers(found) == lacking
    waited_for = [number for number in lacking if number not in truth.absent]
    due = truth.due(now_ms)
    assert holes.count(now_ms).total() == len(waited_for)

    # Who is to bring it: every one is somebody's, and nobody else's.
    healing = numbers(holes.for_healing(ONE, now_ms))
    history = numbers(holes.for_history(ONE, now_ms))
    assert history + healing == [
        n for n in lacking if n not in truth.absent or is_doubted_again(found, n, now_ms)
    ]
    newest = holes.newest(ONE, now_ms)
    assert all(at(n) < newest.start_ms for n in history)
    assert all(newest.start_ms <= at(n) < newest.end_ms for n in healing)
    assert len(healing) <= TILE_CANDLES
    assert numbers(holes.for_history(ONE, now_ms, newest_too=True)) == history + healing

    end_ms = holes.due_ms(ONE, now_ms)
    assert holes.complete_until(ONE, now_ms) == (at(waited_for[0]) if waited_for else end_ms)
    from_ms = end_ms - asked * MINUTE_MS
    # As readers have it: what has come and is not committed is not there.
    unstored = [n for n in due if n not in truth.stored and n not in truth.absent]
    assert holes.ready(ONE, asked, now_ms) == all(at(n) < from_ms for n in unstored)

    for for_s in (0.0, 60.0, 3_600.0):
        old = [
            n
            for n in unstored
            if at(n) >= newest.start_ms and now_ms - (at(n + 1) + CANDLE_DUE_MS) > for_s * 1_000
        ]
        assert holes.open_longer_than(for_s, now_ms).total() == len(old)
    # What is history's to bring wakes nobody at night.
    ours = [n for n in waited_for if at(n) >= newest.start_ms]
    oldest_ms = now_ms - (at(ours[0] + 1) + CANDLE_DUE_MS) if ours else 0
    assert holes.oldest_s(now_ms) == max(0, oldest_ms) / 1_000
    # The supervisor is told of a series exactly if the journal does not know of something yet.
    known = holes.series()[ONE]
    beyond = [n for n in due if at(n) >= known.end_ms and n in lacking]
    due_now = list(holes.overdue(now_ms))
    assert [(key, one.until_ms) for key, one in due_now] == ([(ONE, end_ms)] if beyond else [])
    assert [n for _, one in due_now for n in numbers(one.missing)] == beyond


def is_doubted_again(holes: Iterable[Hole], number: int, now_ms: int) -> bool:
    hole = next(one for one in holes if one.start_ms <= at(number) < one.end_ms)
    return hole.empty_2_ms is not None and hole.empty_2_ms < now_ms - BELIEVED_FOR_MS
