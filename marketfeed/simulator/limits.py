"""The exchange's limits: request weight, request counts, messages per connection. `now` is passed in."""

import math
from collections import deque
from typing import Final, NamedTuple

from marketfeed import schema

PURE = True

WEIGHT_PER_MINUTE: Final = 2_400
FUNDING_REQUESTS: Final = 500
FUNDING_WINDOW_MS: Final = 5 * schema.MINUTE_MS
MESSAGES_PER_SECOND: Final = 10


class Charge(NamedTuple):
    """What a request came to: the weight used so far, and how long to wait if that was too much."""

    used: int
    retry_after_s: int | None


class WeightLimit:
    """The request weight of one address, counted per UTC minute of exchange time.

    A request that goes over the limit is refused, and counts all the same.
    """

    def __init__(self, limit: int = WEIGHT_PER_MINUTE) -> None:
        self.limit = limit
        self.most_used = 0
        """The most that was used in any minute."""
        self.total = 0
        self._minute = -1
        self._used = 0

    def charge(self, now_ms: int, weight: int) -> Charge:
        """Count `weight` at exchange time `now_ms`; `retry_after_s` is in exchange seconds."""
        minute, in_minute_ms = divmod(now_ms, schema.MINUTE_MS)
        if minute != self._minute:
            self._minute, self._used = minute, 0
        self._used += weight
        self.total += weight
        self.most_used = max(self.most_used, self._used)
        if self._used <= self.limit:
            return Charge(self._used, None)
        return Charge(self._used, math.ceil((schema.MINUTE_MS - in_minute_ms) / schema.SECOND_MS))


class CountLimit:
    """At most `limit` events within any `window`, whatever the unit of time."""

    def __init__(self, limit: int, window: float) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=limit)

    def allow(self, now: float) -> bool:
        """Count an event at `now` if it fits; return whether it did."""
        times = self._times
        if len(times) == times.maxlen and now - times[0] < self._window:
            return False
        times.append(now)
        return True


def klines_weight(limit: int | None) -> int:
    """Weight of a klines request by its `limit`: Binance USD-M "Kline/Candlestick Data"."""
    if limit is None:
        return 5
    if limit <= 100:
        return 1
    if limit <= 499:
        return 2
    return 5 if limit <= 1_000 else 10
