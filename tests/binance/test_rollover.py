"""When the next generation may come, and what it has to show before it is trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.binance.rollover import Ages, Proof, is_quiet, stream_of
from marketfeed.schema import TIMEFRAMES_MS

MARKS = ["btcusdt@markPrice", "ethusdt@markPrice"]
KLINES = ["btcusdt@kline_1m", "ethusdt@kline_1m"]
STREAMS = [*MARKS, *KLINES]


def frame(stream: str) -> bytes:
    return b'{"stream":"' + stream.encode() + b'","data":{}}'


def watching() -> Proof:
    proof = Proof(10.0)
    proof.watch(0.0, old_open=True, new_open=True)
    return proof


def test_the_stream_of_a_frame_is_its_name_and_of_an_answer_none() -> None:
    assert stream_of(frame("龙虾usdt@markPrice@1s")) == "龙虾usdt@markPrice@1s".encode()
    assert stream_of(b'{"result":null,"id":1}') == b""


def test_proven_by_every_mark_price_and_each_kline_that_the_old_one_brought() -> None:
    proof = watching()
    for name in (MARKS[0], MARKS[1], KLINES[0]):
        proof.from_new(frame(name))
        proof.from_old(frame(name))
    # The other pair has traded on neither: nothing can be asked of it.
    assert proof.lacking(STREAMS) == []
    assert not proof.is_given(STREAMS, 9.9)
    assert proof.is_given(STREAMS, 10.0)
    proof.from_old(frame(KLINES[1]))
    assert proof.lacking(STREAMS) == [KLINES[1]]
    assert not proof.is_given(STREAMS, 11.0)
    proof.from_new(frame(KLINES[1]))
    assert proof.is_given(STREAMS, 11.0)


def test_a_muted_mark_price_is_no_proof_unless_the_old_one_lacks_it_as_well() -> None:
    proof = watching()
    proof.from_new(frame(MARKS[0]))
    assert (
        proof.lacking(STREAMS) == []
    )  # the exchange sends none of the other, as far as can be seen
    proof.from_old(frame(MARKS[1]))
    assert proof.lacking(STREAMS) == [MARKS[1]]


def test_when_the_old_one_is_broken_every_mark_price_must_come() -> None:
    proof = watching()
    proof.from_new(frame(MARKS[0]))
    proof.watch(5.0, old_open=False, new_open=True)
    assert proof.lacking(STREAMS) == [MARKS[1]]
    proof.from_new(frame(MARKS[1]))
    # The first one's klines have been compared since 5.0.
    assert not proof.is_given(STREAMS, 14.9)
    assert proof.is_given(STREAMS, 15.0)


def test_a_kline_of_before_the_subscription_is_not_held_against_the_new_one() -> None:
    proof = watching()
    proof.from_old(frame(KLINES[1]))
    for name in MARKS:
        proof.from_new(frame(name))
    assert proof.is_given(STREAMS, 10.0)


def test_klines_are_watched_in_full_from_the_last_mark_price_on() -> None:
    proof = watching()
    proof.from_new(frame(MARKS[0]))
    proof.watch(1.0, old_open=True, new_open=True)
    proof.from_new(frame(MARKS[1]))
    proof.watch(9.0, old_open=True, new_open=True)
    # The second pair's klines could not be compared before: one second would prove nothing of them.
    assert not proof.is_given(STREAMS, 10.0)
    proof.watch(18.0, old_open=True, new_open=True)
    assert not proof.is_given(STREAMS, 18.9)
    assert proof.is_given(STREAMS, 19.0)


def test_a_connection_lost_meanwhile_starts_the_proof_anew() -> None:
    proof = watching()
    for name in STREAMS:
        proof.from_new(frame(name))
    proof.watch(9.0, old_open=True, new_open=False)
    assert not proof.is_given(STREAMS, 20.0)
    proof.watch(20.0, old_open=True, new_open=True)
    proof.from_old(frame(MARKS[0]))
    assert proof.lacking(STREAMS) == [MARKS[0]]


@given(st.integers(0, 10**13), st.sets(st.sampled_from(sorted(TIMEFRAMES_MS)), min_size=1))
def test_quiet_is_ten_seconds_from_every_close(now_ms: int, timeframes: set[str]) -> None:
    near = min(
        min(now_ms % TIMEFRAMES_MS[name], -now_ms % TIMEFRAMES_MS[name]) for name in timeframes
    )
    at_close = any(now_ms % TIMEFRAMES_MS[name] == 0 for name in timeframes)
    assert is_quiet(now_ms, timeframes, 10.0) == (near >= 10_000 and not at_close)


def test_a_rollover_waits_for_its_age_and_after_a_failure_but_not_at_the_end() -> None:
    ages = Ages()
    due_s = ages.roll_from_s
    assert not ages.may_start(due_s - 1, due_s, 1e9)
    assert ages.may_start(due_s, due_s, 1e9)
    assert not ages.may_start(due_s + 60, due_s, ages.retry_s - 1)
    assert ages.may_start(ages.hard_s - ages.prove_s, due_s, 0.0)
    assert ages.roll_before_s < 23.5 * 3600
    assert ages.hard_s <= 23 * 3600 + 55 * 60


def test_ages_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="roll_from_s"):
        Ages(roll_from_s=10.0, roll_before_s=5.0)
