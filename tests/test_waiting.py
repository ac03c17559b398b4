"""What tests wait with."""

import asyncio

import pytest

from tests.waiting import until, wait_until


def test_what_comes_ends_the_wait() -> None:
    looks = iter([0, 0, 1, 0, "so"])
    assert wait_until(lambda: next(looks)) >= 2 * 0.02
    asyncio.run(until(lambda: next(looks)))


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: the forward"):
        wait_until(lambda: False, "the forward", timeout_s=0.01)
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: it is night"):
        asyncio.run(until(lambda: False, lambda: "it is night", timeout_s=0.01))
