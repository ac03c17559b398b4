"""Keeps the book of what is not sent to a bucket: saves it, probes what is held, sends what waited."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.delivery import Delivery, Refused
from marketfeed.influxdb.holds import DOCUMENT, Again, Book, Hold, decode, encode, time_of
from marketfeed.influxdb.outbox import START, Place
from marketfeed.influxdb.shipped_file import Documents

log = logging.getLogger(__name__)

EXPIRY_EVERY_S: Final = 3_600.0
"""Monotonic seconds between two looks at how long the bucket keeps points; a minute until one is answered."""
_FIRST_EVERY_S: Final = 60.0


def is_state(measurement: str) -> bool:
    """Whether its lines say how something is, and are no rows of the journal: the next ones come soon."""
    return measurement in (schema.FEED_COVERAGE, schema.FEED_CATALOG) or measurement.startswith(
        schema.FORMING_PREFIX
    )


class HeldBack:
    """The book of `target`, kept in `documents`; without them nothing is held.

    `keeps_ms` asks for how long the bucket keeps points (None: not seen). Raises JournalError where it cannot
    be kept, NotNowError where the server does not take it now.
    """

    def __init__(
        self,
        target: str,
        documents: Documents | None,
        now_ms: Callable[[], int] | None,
        keeps_ms: Callable[[], Awaitable[int | None]] | None,
    ) -> None:
        self.book = Book()
        self._target = target
        self._documents = documents
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._ask = keeps_ms
        self._looked_s: float | None = None
        self._place: tuple[Again, Place] | None = None

    @property
    def hold(self) -> Callable[[list[str], str, str], None] | None:
        """What a delivery has lines held by, None where nothing is."""
        return None if self._documents is None else self._hold

    def _hold(self, lines: list[str], answer: str, field: str) -> None:
        if (held := self.book.hold(lines, answer, field)) is not None:
            log.error("rows are refused and wait, a line a minute is tried held=%r", str(held))

    def sent(self, lines: Sequence[str]) -> list[str]:
        """Those of `lines` that are not passed over now."""
        return self.book.sent(lines, self._now_ms())

    def lacking(self, measurement: str) -> list[TimeRange]:
        """Where the bucket lacks rows of a measurement that have been passed over."""
        return self.book.lacking(measurement, self._now_ms())

    async def begin(self, *, anew: bool) -> None:
        """Read the book; `anew`: all is shipped again, it is empty."""
        if self._documents is None:
            return
        found = await self._documents.load_document(DOCUMENT)
        self.book, _ = decode(None if found is None else found[0], self._target)
        self._place = None
        if anew:
            self.book.clear()
        await self.look(time.monotonic())
        await self.save()

    async def look(self, now_s: float) -> None:
        """Look for how long the bucket keeps points, when it is time."""
        every_s = _FIRST_EVERY_S if self.book.keeps_ms is None else EXPIRY_EVERY_S
        if self._ask is None or self._documents is None:
            return
        if self._looked_s is not None and now_s - self._looked_s < every_s:
            return
        self._looked_s = now_s
        keeps_ms = await self._ask()
        if keeps_ms is not None and keeps_ms != self.book.keeps_ms:
            log.info("the bucket keeps points for keeps_s=%d (0: for ever)", keeps_ms // 1000)
            self.book.keeps(keeps_ms, self._now_ms())

    async def save(self) -> None:
        """Save what has changed. Before rows that were passed over count as shipped."""
        if self._documents is None or not self.book.is_changed:
            return
        found = await self._documents.load_document(DOCUMENT)
        _, of = decode(None if found is None else found[0], self._target)
        body = encode(self.book, self._target, of)
        try:
            await self._documents.save_document(DOCUMENT, body, self._now_ms())
        except BaseException:
            self.book.is_changed = True
            raise

    async def probe(
        self,
        delivery: Delivery,
        standing: Callable[[list[str]], Awaitable[list[str | None]]],
        now_s: float,
        every_s: float,
    ) -> list[str]:
        """Send a line of what is held, when it is its turn: one of a measurement in `every_s`.

        Returns the measurements of which the bucket takes what it refused.
        """
        released = []
        for hold in self.book.due(now_s, every_s):
            if hold.end_ms <= self.book.floor_ms(self._now_ms()):
                self.book.drop(hold)
            elif not await self._is_refused(hold, delivery, standing):
                log.info("rows that waited are sent again held=%r", str(hold))
                self.book.release(hold)
                released.append(hold.measurement)
        return released

    async def _is_refused(
        self,
        hold: Hold,
        delivery: Delivery,
        standing: Callable[[list[str]], Awaitable[list[str | None]]],
    ) -> bool:
        """Whether rows of a hold are refused as before; False, too, where its line cannot show it."""
        if time_of(hold.line) < self.book.floor_ms(self._now_ms()):
            # Too old by now, and refused for that. Of what is sent again another line shows it.
            return False
        text: str | None = hold.line
        if not is_state(hold.measurement):
            (text,) = await standing([hold.line])
        if text is None:
            return False
        verdict = await delivery.one(text)
        return verdict.action == "rejected" and not verdict.beyond_retention

    async def send_again(
        self,
        delivery: Delivery,
        between: Callable[[Again, Place, int], Awaitable[tuple[list[str], Place | None]]],
        put_aside: Callable[[Refused], Awaitable[None]],
        at_once: int,
    ) -> int:
        """Send a batch of what is to be sent again; returns how many lines, 0 when there is nothing left."""
        again = self.book.again
        if again is None:
            return 0
        place = START
        if self._place is not None and self._place[0] == again:
            place = self._place[1]
        lines, after = await between(again, place, at_once)
        wanted = self.sent(lines)
        if wanted and (refused := await delivery.rows(wanted, at_once)):
            await put_aside(refused)
        if after is None:
            self._place = None
            self.book.done(again)
        else:
            self._place = again, after
        return max(len(lines), 1)
