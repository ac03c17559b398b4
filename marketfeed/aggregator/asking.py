"""Questions to a bot, which a stop does not wait for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from marketfeed.service.freqtrade_api import BotError

T = TypeVar("T")


class BrokenOffError(BotError):
    """It was asked no longer: nothing is known of the bot by that."""


class Asking:
    """Asks until `end`: from then on a question fails at once. An order is no question."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing is asked any more."""
        return self._ended.is_set()

    def end(self) -> None:
        """Break off what is being asked."""
        self._ended.set()

    async def __call__(
        self, question: Coroutine[Any, Any, T], unless: asyncio.Event | None = None
    ) -> T:
        """The answer. Raises what the question raises; BrokenOffError at the end, or once `unless` is set."""
        asked = asyncio.create_task(question)
        events = [self._ended] if unless is None else [self._ended, unless]
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait({asked, *waits}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise BrokenOffError(
                    "the aggregator is stopping" if self.ended else "something else has come"
                )
            return asked.result()
        finally:
            for task in (asked, *waits):
                task.cancel()
            await asyncio.gather(asked, *waits, return_exceptions=True)
