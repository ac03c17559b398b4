"""What was sent without an answer is looked at again: the server may carry it out after what came later."""

import logging
from collections.abc import Awaitable, Callable

from marketfeed.influxdb.delivery import Delivery, NotNowError, Refused
from marketfeed.influxdb.unanswered import MOST_LINES, UnansweredLines

log = logging.getLogger(__name__)


class Doubts:
    """Sends again of `unanswered` lines what has changed since, by `delivery`. Raises NotNowError.

    `standing` gives each line as the file holds its row now, `put_aside` keeps what is refused, and
    `failures` counts the requests that failed in a row.
    """

    def __init__(
        self,
        unanswered: UnansweredLines,
        delivery: Delivery,
        standing: Callable[[list[str]], Awaitable[list[str | None]]],
        put_aside: Callable[[Refused], Awaitable[None]],
        failures: Callable[[], int],
    ) -> None:
        self._unanswered = unanswered
        self._delivery = delivery
        self._standing = standing
        self._put_aside = put_aside
        self._failures = failures

    async def probe(self, at_once: int) -> None:
        """Ask a server that gave no answer with a line that it may have already, and with no other.

        So an outage leaves one batch in doubt, however often it is tried. When it answers with an error
        of its own, new rows are tried every second time: the line's own shard may fail, and nothing else.
        """
        while lines := self._unanswered.unanswered(1):
            standing = await self._standing(lines)
            texts = [text for text in standing if text is not None]
            self._unanswered.drop(lines)
            if not texts:
                continue
            # Last in the row: the next time it is another one's turn.
            self._unanswered.add(lines)
            try:
                await self._delivery.rows(texts, at_once)
            except NotNowError as error:
                verdict = error.verdict
                only_this = verdict.pending and verdict.answered and self._failures() % 2 == 0
                if not only_this or len(self._unanswered) >= MOST_LINES:
                    raise
            return

    async def recheck(self, now_s: float, at_once: int) -> None:
        """Send again what has changed since it was sent without an answer: the server may have undone it."""
        while lines := self._unanswered.due(now_s):
            standing = await self._standing(lines)
            changed = [
                text
                for text, sent in zip(standing, lines, strict=True)
                if text is not None and text != sent
            ]
            if changed:
                log.info("sent again after a request without an answer lines=%d", len(changed))
                try:
                    refused = await self._delivery.rows(changed, at_once)
                except NotNowError:
                    # Some time later again, and not before everything else.
                    self._unanswered.rechecked(len(lines))
                    self._unanswered.add(changed)
                    raise
                if refused:
                    await self._put_aside(refused)
            self._unanswered.rechecked(len(lines))
