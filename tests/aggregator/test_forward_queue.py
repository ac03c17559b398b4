"""What waits for a bot: the best first, none longer than it may; its time stands while others hold it up."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.queue import Queue, chosen_again, rank

EXPIRE_MS = 30_000
BASE = Forward(
    window=1,
    bot="long",
    pair="BTC/USDT:USDT",
    side="long",
    primary="73",
    tag="long ensemble 3/5 conf=0.90 from=73",
    leverage=3.0,
    ordertype="market",
    price=None,
    decided_ms=1_000,
    expires_ms=31_000,
    state="queued",
    changed_ms=1_000,
    attempts=0,
    sent_ms=None,
    answered_ms=None,
    status=None,
    answer="",
    trade_id=None,
    votes=3,
    of=5,
    confidence=0.9,
)


def forward(
    window: int, votes: int = 3, confidence: float = 0.9, decided_ms: int = 1_000
) -> Forward:
    return msgspec.structs.replace(
        BASE,
        window=window,
        votes=votes,
        confidence=confidence,
        decided_ms=decided_ms,
        expires_ms=decided_ms + EXPIRE_MS,
    )


forwards = st.builds(
    forward,
    st.integers(1, 50),
    st.integers(1, 5),
    st.sampled_from([0.7, 0.8, 0.9]),
    st.integers(0, 2_000),
)
unlike = st.lists(forwards, unique_by=lambda item: item.window, max_size=12)


def test_share_goes_before_confidence_and_confidence_before_age() -> None:
    queue = Queue(EXPIRE_MS)
    queue.take(
        [
            forward(1, votes=3, confidence=0.99, decided_ms=0),
            forward(2, votes=4, confidence=0.7, decided_ms=500),
            forward(3, votes=4, confidence=0.8, decided_ms=900),
            forward(4, votes=4, confidence=0.8, decided_ms=800),
        ]
    )
    assert queue.windows == [4, 3, 2, 1]
    queue.put(forward(5, votes=5, confidence=0.7, decided_ms=950))
    assert queue.windows == [5, 4, 3, 2, 1]
    # Of other electorates it is the share that counts.
    queue.put(msgspec.structs.replace(forward(6, votes=6), of=12))
    assert queue.windows == [5, 4, 3, 2, 1, 6]


@given(unlike, st.lists(st.tuples(st.sampled_from(["put", "drop"]), forwards), max_size=20))
def test_whatever_joins_and_leaves_the_best_is_the_first(
    first: list[Forward], changes: list[tuple[str, Forward]]
) -> None:
    queue, model = Queue(EXPIRE_MS), {item.window: item for item in first}
    queue.take(first)
    for what, item in changes:
        if what == "put":
            queue.put(item)
            model[item.window] = item
        else:
            queue.drop(item.window)
            model.pop(item.window, None)
        assert list(queue) == sorted(model.values(), key=rank)


@given(unlike, st.sets(st.integers(1, 50)), st.data())
def test_what_is_committed_is_the_best_of_what_is_queued_then(
    queued: list[Forward], known: set[int], data: st.DataObject
) -> None:
    """But for those that were known and passed by, because they may not go now."""
    chosen = data.draw(st.one_of(forwards, *map(st.just, queued)))
    again = chosen_again(chosen, known, queued)
    is_there = chosen.window in {item.window for item in queued}
    joined = [item for item in queued if item.window not in known]
    assert again == (not is_there or any(rank(item) < rank(chosen) for item in joined))


@given(
    st.integers(0, 5_000),
    st.lists(st.tuples(st.integers(0, 20_000), st.booleans(), st.booleans()), max_size=12),
)
def test_time_that_was_stalled_is_added_and_no_other(
    decided_ms: int, steps: list[tuple[int, bool, bool]]
) -> None:
    """Against a model that counts every ms of which nobody knew what became of an order."""
    queue, item = Queue(EXPIRE_MS), forward(1, decided_ms=decided_ms)
    queue.take([item])
    now_ms = stalled_ms = 0
    stalls = False
    for forward_ms, stall, with_post in steps:
        if stall and not stalls:
            # With the POST before it: as much of it as there was since the last step.
            since_ms = now_ms if with_post else now_ms + forward_ms
            queue.stall(since_ms, now_ms + forward_ms)
            if with_post:
                stalled_ms += max(0, now_ms + forward_ms - max(now_ms, decided_ms))
        elif stalls:
            stalled_ms += max(0, now_ms + forward_ms - max(now_ms, decided_ms))
            if not stall:
                queue.go_on(now_ms + forward_ms)
        stalls = stall
        now_ms += forward_ms
        assert queue.expires_ms(item, now_ms) == item.expires_ms + min(stalled_ms, EXPIRE_MS)


def test_a_stall_of_before_the_decision_adds_nothing() -> None:
    queue = Queue(EXPIRE_MS)
    queue.stall(0, 0)
    queue.go_on(10_000)
    late = forward(2, decided_ms=10_000)
    queue.take([late])
    assert queue.expires_ms(late, 10_000) == late.expires_ms
    # It goes on from one to the next: neither is forgotten while something waits that it is of use to.
    queue.stall(11_000, 11_000)
    queue.go_on(12_000)
    queue.stall(13_000, 13_000)
    queue.go_on(15_000)
    assert queue.expires_ms(late, 15_000) == late.expires_ms + 3_000
    assert not queue.is_over(late, late.expires_ms + 2_999)
    assert queue.is_over(late, late.expires_ms + 3_000)


def test_the_next_end_of_what_is_stalled_does_not_move_with_the_clock() -> None:
    """Else whoever waits for it would wake every few ms for as long as nothing is sent."""
    queue, item = Queue(EXPIRE_MS), forward(1, decided_ms=0)
    queue.take([item])
    now_ms = item.expires_ms - 2
    assert queue.next_end_ms(now_ms) == item.expires_ms
    queue.stall(now_ms, now_ms)
    for _ in range(3):
        assert queue.next_end_ms(now_ms) == item.expires_ms + EXPIRE_MS
        assert not queue.is_over(item, now_ms)
        now_ms += EXPIRE_MS // 4
    now_ms = item.expires_ms + EXPIRE_MS
    assert queue.is_over(item, now_ms)
    assert queue.next_end_ms(now_ms) == now_ms


def test_what_a_clock_that_was_ahead_decided_is_over() -> None:
    queue, item = Queue(EXPIRE_MS), forward(1, decided_ms=100_000)
    assert queue.is_over(item, 99_999)
    assert not queue.is_over(item, 100_000)
