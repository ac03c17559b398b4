"""Waiting until something is so. What does not come in time is a TimeoutError that names it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

TIMEOUT_S: Final = 180.0
"""For whatever is waited for: far more than it takes."""


async def until(
    condition: Callable[[], object], what: object = "", *, timeout_s: float = TIMEOUT_S
) -> None:
    """Wait until `condition` is true, on the event loop. `what` names it in the error, or gives its name."""
    for _ in _looks(condition, what, timeout_s):
        await asyncio.sleep(0.01)


def wait_until(
    condition: Callable[[], object], what: object = "", *, timeout_s: float = TIMEOUT_S
) -> float:
    """Wait until `condition` is true, in a thread of its own; return how many wall seconds that took."""
    started_s = time.monotonic()
    for _ in _looks(condition, what, timeout_s):
        time.sleep(0.02)
    return time.monotonic() - started_s


def _looks(condition: Callable[[], object], what: object, timeout_s: float) -> Iterator[None]:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            named = what() if callable(what) else what
            raise TimeoutError(f"not within {timeout_s:g} s: {named or 'what was waited for'}")
        yield
