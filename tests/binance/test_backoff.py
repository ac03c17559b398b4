"""The connecting rules, without a socket."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.binance.backoff import Backoff, ConnectLimiter, FeedOptions, spread


def test_address_is_the_market_route() -> None:
    assert FeedOptions().address == "wss://fstream.binance.com/market/stream"
    assert FeedOptions(ws_url="ws://127.0.0.1:1/").address == "ws://127.0.0.1:1/market/stream"


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        FeedOptions(streams_per_connection=0)


@pytest.mark.parametrize("url", ["", "fstream.binance.com", "http://x", "wss://", "ws:///"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws_url"):
        FeedOptions(ws_url=url)


@given(
    attempts=st.integers(1, 20),
    window_s=st.integers(1, 100),
    pauses_s=st.lists(st.integers(0, 30), max_size=200),
)
def test_no_window_holds_more_than_the_limit(
    attempts: int, window_s: int, pauses_s: list[int]
) -> None:
    limiter = ConnectLimiter(attempts, window_s)
    now_s, granted = 0.0, []
    for pause_s in pauses_s:
        now_s += pause_s
        wait_s = limiter.reserve(now_s)
        assert wait_s >= 0
        granted.append(now_s + wait_s)
    assert granted == sorted(granted)
    for first, later in zip(granted, granted[attempts:], strict=False):
        assert later - first >= window_s


def test_a_limiter_with_room_does_not_wait() -> None:
    limiter = ConnectLimiter(attempts=2, window_s=300)
    assert [limiter.reserve(100.0), limiter.reserve(100.0), limiter.reserve(101.0)] == [0, 0, 299]


def test_backoff_grows_with_failures_and_is_capped() -> None:
    backoff = Backoff(1.0, 60.0, 1.0, jitter=lambda _, high: high)
    waits = [backoff.wait_s(0.0)]
    for _ in range(9):
        backoff.attempted(0.0)
        backoff.ended(steady=False)
        waits.append(backoff.wait_s(0.0))
    assert waits == [0, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    for _ in range(5000):
        backoff.ended(steady=False)
    assert backoff.wait_s(0.0) == 60


def test_only_a_steady_connection_resets_the_backoff() -> None:
    backoff = Backoff(1.0, 60.0, 1.0, jitter=lambda _, high: high)
    backoff.attempted(0.0)
    for _ in range(3):
        backoff.ended(steady=False)
    assert backoff.wait_s(0.0) == 8
    backoff.ended(steady=True)
    assert backoff.wait_s(0.0) == 1


@given(seed=st.integers(), steady=st.lists(st.booleans(), max_size=30), gap_s=st.floats(0.01, 5))
def test_attempts_keep_their_distance(seed: int, steady: list[bool], gap_s: float) -> None:
    backoff = Backoff(1.0, 60.0, gap_s, jitter=random.Random(seed).uniform)
    now_s = before_s = 1000.0
    assert backoff.wait_s(now_s) == 0
    backoff.attempted(now_s)
    for was_steady in steady:
        backoff.ended(steady=was_steady)
        now_s += backoff.wait_s(now_s)
        assert gap_s - 1e-9 <= now_s - before_s <= max(60.0, gap_s)
        backoff.attempted(now_s)
        before_s = now_s


def test_streams_of_a_symbol_stay_together_and_volume_is_spread() -> None:
    kinds = ("kline_1m", "kline_3m", "kline_1h", "markPrice@1s")
    streams = [f"s{number}usdt@{kind}" for number in range(164) for kind in kinds]
    shares = spread(streams, [], 200)
    assert [len(share) for share in shares] == [164] * 4
    for index, share in enumerate(shares):
        assert share[:4] == streams[4 * index : 4 * index + 4]
        assert len({name.partition("@")[0] for name in share}) == 41


@given(
    groups=st.lists(st.integers(1, 12), max_size=40),
    loads=st.lists(st.integers(0, 25), max_size=5),
    limit=st.integers(1, 20),
)
def test_spreading_loses_nothing_and_exceeds_nothing(
    groups: list[int], loads: list[int], limit: int
) -> None:
    streams = [f"s{n}@{kind}" for n, size in enumerate(groups) for kind in range(size)]
    shares = spread([*streams, *streams], loads, limit)
    assert sorted(name for share in shares for name in share) == sorted(streams)
    for load, share in zip([*loads, *[0] * len(shares)], shares, strict=False):
        assert not share or load + len(share) <= limit
    room = sum(max(limit - load, 0) for load in loads)
    assert len(shares) - len(loads) == math.ceil(max(len(streams) - room, 0) / limit)
