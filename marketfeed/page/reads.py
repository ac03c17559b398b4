"""Questions to a file beside its writer: one after the other, off the event loop, and not too many."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from marketfeed.errors import JournalError

T = TypeVar("T")

MAX_WAITING: Final = 32
"""Questions that wait for the one before them; more are turned away."""


class Reads:
    """Asks on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = 0

    def add_to(self, app: web.Application) -> None:
        """End with `app`."""
        app.on_cleanup.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, question: Callable[[], T]) -> T:
        """Ask `question`. Raises JournalError, also when too many wait."""
        if self._waiting >= MAX_WAITING:
            raise JournalError("too many questions at a time")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        finally:
            self._waiting -= 1


def answer(value: object, status: int = 200) -> web.Response:
    """A value as JSON that nobody keeps."""
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def refuse(status: int, error: str) -> web.Response:
    """An error as JSON."""
    return answer({"error": error}, status)
