"""Questions to a bot, which a stop does not wait for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from marketfeed.aggregator.freqtrade_bot import BotError

T = TypeVar("T")


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

    async def __call__(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer. Raises what the question raises, and BotError when it was broken off."""
        asked = asyncio.create_task(question)
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise BotError("the aggregator is stopping")
            return asked.result()
        finally:
            for task in (asked, ended):
                task.cancel()
            await asyncio.gather(asked, ended, return_exceptions=True)
