"""Rows that a bucket lacks, sent again one by one: in the shipper's turns, as they stand then."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from marketfeed.influxdb.delivery import Delivery, Refused

MOST_WAITING: Final = 50_000


class Mends:
    """Lines that wait to be sent again, each once; `sent` counts them.

    They are lines of rows as they were when it was seen that they lack. In memory alone: what is lost by a
    stop lacks as before, and is found again.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self.sent = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lines: Iterable[str]) -> None:
        """Have lines sent again; beyond MOST_WAITING they are left for the next look."""
        room = MOST_WAITING - len(self._waiting)
        self._waiting.update(dict.fromkeys(islice(lines, max(0, room))))

    async def send(
        self,
        delivery: Delivery,
        standing: Callable[[list[str]], Awaitable[list[str | None]]],
        wanted: Callable[[Sequence[str]], list[str]],
        put_aside: Callable[[Refused], Awaitable[None]],
        at_once: int,
    ) -> int:
        """Send a request of them; returns how many lines it was. Raises NotNowError; they stay then."""
        lines = list(islice(self._waiting, at_once))
        if not lines:
            return 0
        texts = wanted([text for text in await standing(lines) if text is not None])
        refused = await delivery.rows(texts, at_once) if texts else []
        for line in lines:
            self._waiting.pop(line, None)
        if refused:
            await put_aside(refused)
        self.sent += len(texts) - len(refused)
        return len(texts)
