"""Waiting for an event, or until a time is over."""

import asyncio

import pytest

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.clock import wait_at_most


def test_a_wait_ends_with_its_event_or_its_time() -> None:
    async def run() -> list[bool]:
        event = asyncio.Event()
        late = await wait_at_most(0.0, event)
        waiting = asyncio.create_task(wait_at_most(None, event))
        await asyncio.sleep(0)
        event.set()
        return [late, await waiting, await wait_at_most(0.0, event)]

    assert asyncio.run(run()) == [False, True, True]


@pytest.mark.parametrize(
    ("exchange_s", "speed", "wall_s"), [(3.0, 1.0, 3.0), (3.0, 6.0, 0.5), (3.0, 600.0, 0.25)]
)
def test_exchange_seconds_are_fewer_wall_seconds_down_to_a_minimum(
    exchange_s: float, speed: float, wall_s: float
) -> None:
    assert ExchangeClock(speed).wall_s(exchange_s, at_least_s=0.25) == wall_s
