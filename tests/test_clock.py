"""Waiting for an event, or until a time is over."""

import asyncio

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
