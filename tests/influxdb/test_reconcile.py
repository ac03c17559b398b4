"""What is judged of a bucket's numbers and rows, without any server."""

import functools
import itertools
import operator
import random

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.influxdb.reconcile import (
    AGAIN_AFTER_S,
    NONE,
    Differing,
    Memory,
    Numbers,
    Tile,
    days,
    judge,
    paired,
    recent_start_ms,
)
from marketfeed.schema import DAY_MS, HOUR_MS

TILE = Tile("mark_price", "A/USDT:USDT", 0, HOUR_MS)
# What two collectors may hold of one time: number of trades and a value.
ROWS = st.dictionaries(st.integers(0, 12), st.tuples(st.integers(1, 3), st.integers(0, 2)))


def differing(ours: tuple[int, float], theirs: tuple[int, float], end_ms: int = 1) -> Differing:
    return Differing(TILE._replace(end_ms=end_ms), Numbers(*ours), Numbers(*theirs))


def candle(at_ms: int, trades: int, value: int) -> str:
    return f"ohlcv_1m,pair=A\\ B/USDT:USDT open={value}.5,trades={trades}i {at_ms}"


def test_equal_numbers_do_not_differ() -> None:
    memory = Memory()
    assert not memory.differs(differing((3, 1.5), (3, 1.5)), 0.0)
    assert memory.differs(differing((3, 1.5), (3, 1.25)), 0.0)
    assert memory.differs(differing((3, 1.5), (2, 1.0)), 0.0)
    assert memory.differs(differing((3, 1.5), (4, 2.0)), 0.0), (
        "it may lack one, and have two others"
    )


def test_a_tile_that_differs_for_good_is_left_until_either_side_changes() -> None:
    memory = Memory()
    memory.leave(differing((10, 1.0), (30, 3.0)), 0.0)
    assert len(memory) == 1
    assert not memory.differs(differing((10, 1.0), (30, 3.0)), 1e9)
    assert memory.differs(differing((10, 1.0), (29, 2.9)), 1.0), "a row less"
    assert memory.differs(differing((10, 1.0), (30, 3.1)), 1.0), "another value"
    assert memory.differs(differing((10, 1.1), (30, 3.0)), 1.0)
    assert not memory.differs(differing((10, 1.0), (10, 1.0)), 2.0)
    assert len(memory) == 0, "equal again"


def test_a_tile_that_fills_is_read_now_and_then() -> None:
    memory = Memory()
    memory.leave(differing((10, 1.0), (30, 3.0)), 0.0)
    grown = differing((12, 1.2), (36, 3.6), 2)
    assert not memory.differs(grown, AGAIN_AFTER_S - 1)
    assert memory.differs(grown, AGAIN_AFTER_S)
    assert memory.differs(differing((12, 1.2), (31, 3.1), 2), 1.0), "it has lost more than came"
    same = differing((10, 1.0), (10, 1.5))
    memory.leave(same, 0.0)
    assert not memory.differs(differing((12, 1.2), (12, 1.9)), 1.0)


def test_a_tile_that_lacks_after_it_was_sent_waits_ever_longer() -> None:
    """A name may be mapped to another bucket: what is written is never read there."""
    memory, found, now_s, sent = Memory(), differing((9, 1.0), (0, 0.0)), 0.0, 0
    while now_s < 30 * 86_400:
        if memory.differs(found, now_s):
            memory.sent(found, now_s)
            sent += 1
        now_s += 60
    assert 30 < sent < 45
    assert not memory.differs(differing((9, 1.0), (9, 1.0)), now_s)
    assert memory.differs(found, now_s), "another loss is mended at once"


def test_other_values_are_sent_once() -> None:
    memory = Memory()
    assert memory.unsent(["a 1", "b 1"]) == ["a 1", "b 1"]
    assert memory.unsent(["a 1", "a 2"]) == ["a 2"], "a row that has changed is another"


def test_only_what_we_hold_is_compared() -> None:
    found = paired(
        "m",
        {0: 7, 10: 17},
        {("A", 0): Numbers(2, 3.0), ("B", 10): NONE},
        {("C", 0): Numbers(9, 9.0)},
    )
    assert found == [Differing(Tile("m", "A", 0, 7), Numbers(2, 3.0), NONE)]
    assert found[0].lacking == 2


@given(ROWS, ROWS)
def test_two_collectors_come_to_rest(
    one: dict[int, tuple[int, int]], two: dict[int, tuple[int, int]]
) -> None:
    """Each sends what it finds; after a few turns nobody sends, and no row is missing."""
    bucket: dict[int, tuple[int, int]] = {}
    memories = Memory(), Memory()
    sent = -1
    for _ in range(5):
        sent = 0
        for held, memory in zip((one, two), memories, strict=True):
            ours = [candle(at, *row) for at, row in held.items()]
            found = judge(ours, [candle(at, *row) for at, row in bucket.items()])
            lines = [*found.lacking, *found.fewer, *memory.unsent(found.other)]
            bucket |= {at: row for at, row in held.items() if candle(at, *row) in lines}
            sent += len(lines)
    assert sent == 0
    assert bucket.keys() == one.keys() | two.keys()
    for at, (trades, _) in bucket.items():
        assert trades == max(held[at][0] for held in (one, two) if at in held)


def test_more_and_other_rows_in_the_bucket_are_no_loss() -> None:
    found = judge(
        [candle(1, 5, 0), candle(2, 5, 0), candle(3, 5, 0), candle(4, 5, 0)],
        [
            candle(1, 4, 0),
            candle(2, 6, 0),
            candle(3, 5, 1),
            candle(9, 1, 1),
            "ohlcv_1m {'time': 4}",
        ],
    )
    assert found == ([candle(4, 5, 0)], [candle(1, 5, 0)], [candle(3, 5, 0)])


def test_an_hour_is_recent_for_two_hours() -> None:
    assert recent_start_ms(10 * HOUR_MS) == 8 * HOUR_MS
    assert recent_start_ms(10 * HOUR_MS - 1) == 7 * HOUR_MS


@given(st.integers(0, 90 * DAY_MS), st.integers(0, 90 * DAY_MS), st.sampled_from([1, 1440, 86_400]))
def test_days_are_cut_at_midnight_and_left_out_by_none(
    start_ms: int, end_ms: int, a_day: float
) -> None:
    parts = list(days(start_ms, end_ms, a_day, 200_000))
    if start_ms >= end_ms:
        assert parts == []
        return
    assert (parts[-1][0], parts[0][1]) == (start_ms, end_ms)
    for newer, older in itertools.pairwise(parts):
        assert newer[0] == older[1]
        assert newer[0] % DAY_MS == 0
    assert all(
        (last - first) / DAY_MS * a_day <= max(200_000, a_day) + a_day for first, last in parts
    )


def test_a_sum_depends_on_the_order() -> None:
    """Why floats are added on our side in the order of time, as InfluxDB does."""
    numbers = [random.Random(7).random() * 10**power for power in range(-9, 9)]
    left = functools.reduce(operator.add, numbers)
    assert left != functools.reduce(operator.add, reversed(numbers))
