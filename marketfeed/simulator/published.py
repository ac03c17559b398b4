"""The truth that was published: every closing frame, numbered."""

from collections import deque
from itertools import islice

import msgspec

from marketfeed.simulator.venue import ClosedCandle

PURE = True


class Published(ClosedCandle, frozen=True, gc=False):
    """One closing candle that was sent.

    `number` rises by one from 1. `sent_monotonic_ns` is `time.monotonic_ns()` of this host right
    before the frame was handed to the sockets, so that a difference to it includes the sending;
    `receivers` is how many connections it was handed to as it is, `withheld` how many listened and did
    not get it, or not so, or later: a fault's doing. The rest is as in `ClosedCandle`.
    """

    number: int
    sent_monotonic_ns: int
    receivers: int
    withheld: int


class PublishedLog:
    """The newest `kept` closing candles, in the order of sending."""

    def __init__(self, kept: int) -> None:
        self._entries: deque[Published] = deque(maxlen=kept)
        self.last_number = 0

    def add(
        self, candle: ClosedCandle, sent_monotonic_ns: int, receivers: int, withheld: int
    ) -> None:
        """Append a candle that was handed to `receivers` connections, and kept from others."""
        self.last_number += 1
        sent = (self.last_number, sent_monotonic_ns, receivers, withheld)
        self._entries.append(Published(*(*msgspec.structs.astuple(candle), *sent)))

    def after(self, number: int, limit: int | None = None) -> list[Published]:
        """Return the entries with a greater number, oldest first, at most `limit` of them."""
        new = max(0, min(self.last_number - number, len(self._entries)))
        start = len(self._entries) - new
        stop = None if limit is None else start + limit
        return list(islice(self._entries, start, stop))
