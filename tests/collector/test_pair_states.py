"""How a pair is judged: every case, and that nothing that is not well ever looks fresh."""

from hypothesis import given
from hypothesis import strategies as st

from marketfeed.collector.pair_states import PairTile, State, make_tiles
from marketfeed.gaps.deadlines import MARK_PRICE, Overdue, Series

NOW_MS = 1_790_000_000_000
PAIR = "BTC/USDT:USDT"
OTHER = "ETH/USDT:USDT"


def late(pair: str, channel: str = MARK_PRICE) -> Overdue:
    return Overdue(Series(pair, channel), 3.0, None)


def tile(
    age_ms: int | None,
    overdue: list[Overdue],
    holes: dict[tuple[str, str], int],
    speed: float = 1.0,
) -> PairTile:
    marks = {} if age_ms is None else {PAIR: NOW_MS - age_ms}
    [found] = make_tiles([PAIR], NOW_MS, speed, marks, overdue, holes)
    return found


def test_each_state() -> None:
    assert tile(1_290, [], {}) == PairTile(State.FRESH, 12, 0, 0)
    assert tile(None, [], {}) == PairTile(State.WAITING, None, 0, 0)
    assert tile(10_000, [], {}).state is State.FRESH
    assert tile(10_100, [], {}).state is State.LATE
    assert tile(900, [], {(PAIR, "1m"): 2, (PAIR, "3m"): 1}) == PairTile(State.HOLES, 9, 0, 3)
    assert tile(900, [late(PAIR), late(PAIR, "1m")], {(PAIR, "1m"): 1}) == PairTile(
        State.SILENT, 9, 2, 1
    )
    # A stamp a little ahead of the clock is no age.
    assert tile(-400, [], {}) == PairTile(State.FRESH, 0, 0, 0)


def test_what_concerns_another_pair_does_not_show() -> None:
    assert tile(500, [late(OTHER)], {(OTHER, "1m"): 1}).state is State.FRESH


def test_against_a_fast_exchange_a_commit_may_take_many_of_its_seconds() -> None:
    assert tile(100_000, [], {}, speed=60.0).state is State.FRESH
    assert tile(120_200, [], {}, speed=60.0).state is State.LATE


@given(
    st.none() | st.integers(-5_000, 100_000),
    st.lists(st.sampled_from([late(PAIR), late(OTHER), late(PAIR, "1m")]), max_size=4),
    st.dictionaries(st.sampled_from([(PAIR, "1m"), (OTHER, "3m")]), st.integers(0, 9)),
)
def test_fresh_is_shown_only_of_what_is(
    age_ms: int | None, overdue: list[Overdue], holes: dict[tuple[str, str], int]
) -> None:
    found = tile(age_ms, overdue, holes)
    well = (
        age_ms is not None
        and max(0, age_ms) // 100 <= 100
        and not any(item.series.pair == PAIR for item in overdue)
        and not holes.get((PAIR, "1m"))
    )
    assert (found.state is State.FRESH) == well
