"""What may be asked of Binance's REST API now, and how long to wait otherwise. `now` is passed in.

Two pools, both of them per address: request weight, counted per UTC minute of the exchange, and requests
for funding, 500 in any 5 minutes. Exceeding one is a 429 or 403, going on after that a ban (418), so
after any of the three everything stops until the exchange's own time is over.
"""

from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from marketfeed import schema

PURE = True

FUNDING_WINDOW_S: Final = 300.0
FUNDING_REQUESTS: Final = 250
"""Half of what the exchange allows in `FUNDING_WINDOW_S`."""
FUNDING_MARGIN_S: Final = 5.0
"""The window is kept that much longer: the exchange counts when a request arrives."""
KEPT_FREE: Final = 0.1
"""Share of the weight that old history and audits leave to what is urgent."""
LIVE_WEIGHT: Final = 10
"""Weight that only LIVE requests may use, of a budget that is worth dividing."""
_DIVIDED_FROM: Final = 100
_RAMP_FROM_MS: Final = 2_000
_RAMP_MS: Final = 50_000
_RAMP_TO_MS: Final = 58_000
BANNED: Final = 418
MAX_BAN_S: Final = 3 * 86_400.0
"""The longest ban that Binance documents."""
MAX_STOP_S: Final = 600.0
"""The longest that anything else than a ban may ask for."""


class Priority(IntEnum):
    """Who goes first: the listing and the clock, a hole of now, settlements, audits, old history."""

    LIVE = 0
    HEAL = 1
    SETTLED = 2
    AUDIT = 3
    HISTORY = 4


class Cost(NamedTuple):
    """What a request costs: weight, or one of the funding requests (`weight` is 0 then)."""

    weight: int
    funding: bool = False


class Instant(NamedTuple):
    """One reading of the clock: exchange time, and monotonic exchange seconds."""

    now_ms: int
    elapsed_s: float


class Taken(NamedTuple):
    """A request that went out: what it costs, and in which minute it was counted."""

    cost: Cost
    minute: int


class _State(msgspec.Struct):
    minute: int
    used: int
    funding_ms: list[int]
    stopped_until_ms: int = 0
    stopped_status: int = 0
    stopped_why: str = ""
    stopped_s: float = 0.0


class Budget:
    """Counts what was asked. `weight_per_minute` is never exceeded in any minute of the exchange.

    A single request that costs more than all of it goes out when nothing else was asked in its minute.
    """

    def __init__(self, weight_per_minute: int, funding_requests: int = FUNDING_REQUESTS) -> None:
        self.limit = weight_per_minute
        self.funding_limit = funding_requests
        self.stopped_why = ""
        """What the exchange answered when it stopped everything; kept until the time is over."""
        self.stopped_status = 0
        self._minute = -1
        self._used = 0
        self._in_flight = 0
        self._funding_s: deque[float] = deque()
        self._stopped_until_s = 0.0

    def used(self, at: Instant) -> int:
        """Weight used in the minute of `at`."""
        self._turn(at)
        return self._used

    def funding_used(self, at: Instant) -> int:
        """Funding requests within the window that ends at `at`."""
        self._trim(at)
        return len(self._funding_s)

    def stopped_s(self, at: Instant) -> float:
        """For how many exchange seconds more nothing may be asked at all; 0 when something may."""
        left_s = self._stopped_until_s - at.elapsed_s
        if left_s <= 0.0:
            self.stopped_why = ""
        return max(0.0, left_s)

    def wait_ms(self, at: Instant, cost: Cost, priority: Priority) -> float:
        """Exchange ms until a request may go out, as far as is known now; 0 when it may go."""
        stopped_s = self.stopped_s(at)
        if stopped_s > 0.0:
            return stopped_s * 1000.0
        if cost.funding:
            self._trim(at)
            if len(self._funding_s) < self.funding_limit:
                return 0.0
            free_s = self._funding_s[0] + FUNDING_WINDOW_S + FUNDING_MARGIN_S
            return max(1.0, (free_s - at.elapsed_s) * 1000.0)
        self._turn(at)
        in_minute_ms = at.now_ms % schema.MINUTE_MS
        if priority < Priority.AUDIT:
            keep = LIVE_WEIGHT if priority > Priority.LIVE and self.limit >= _DIVIDED_FROM else 0
            fits = self._used + cost.weight <= self.limit - keep
            return 0.0 if fits or not self._used else float(schema.MINUTE_MS - in_minute_ms)
        return self._wait_of_patient_ms(in_minute_ms, cost.weight)

    def _wait_of_patient_ms(self, in_minute_ms: int, weight: int) -> float:
        # Spread over the minute: candles close at its beginning, and what was lost then must be fetched at
        # once. Nothing near its ends, which the exchange may see on the other side.
        share = (self._used + weight) / (self.limit * (1.0 - KEPT_FREE))
        due_ms = _RAMP_FROM_MS + _RAMP_MS * (share if self._used else 0.0)
        if due_ms > _RAMP_TO_MS or (share > 1.0 and self._used) or in_minute_ms > _RAMP_TO_MS:
            return schema.MINUTE_MS - in_minute_ms + _RAMP_FROM_MS
        return max(0.0, due_ms - in_minute_ms)

    def take(self, at: Instant, cost: Cost) -> Taken:
        """Count a request that goes out at `at`."""
        self._turn(at)
        self._used += cost.weight
        self._in_flight += cost.weight
        if cost.funding:
            self._funding_s.append(at.elapsed_s)
        return Taken(cost, self._minute)

    def answered(self, at: Instant, taken: Taken, reported: int | None) -> None:
        """Count a request as over. `reported` is the used weight of the answer's header.

        Others may share the address: the larger number holds. What is reported across the turn of a minute
        may belong to either and is not taken.
        """
        self._turn(at)
        self._in_flight -= taken.cost.weight
        if reported is not None and taken.minute == self._minute:
            self._used = max(self._used, reported)

    def stop(self, at: Instant, for_s: float, status: int, why: str) -> None:
        """Ask nothing for `for_s` exchange seconds from `at` on: an answer came with that `status`.

        At most `max_stop_s` of it, whatever its source: a header, or what another run has saved.
        """
        until_s = at.elapsed_s + min(for_s, max_stop_s(status))
        if until_s > self._stopped_until_s:
            self._stopped_until_s = until_s
            self.stopped_status, self.stopped_why = status, why

    def state(self, at: Instant) -> bytes:
        """What a restart must know, for `restore`."""
        self._trim(at)
        stopped_s = self.stopped_s(at)
        return msgspec.json.encode(
            _State(
                self._minute,
                self._used,
                [_past_ms(at, elapsed_s) for elapsed_s in self._funding_s],
                at.now_ms + int(stopped_s * 1000) if stopped_s else 0,
                self.stopped_status,
                self.stopped_why,
                stopped_s,
            )
        )

    def restore(self, at: Instant, state: bytes) -> None:
        """Take over what another run has used. Something else than a state is ignored."""
        try:
            known = msgspec.json.decode(state, type=_State)
        except msgspec.DecodeError:
            return
        self._turn(at)
        if known.minute == self._minute:
            self._used += known.used
        before = (at.elapsed_s - (at.now_ms - ms) / 1000 for ms in known.funding_ms)
        self._funding_s.extendleft(sorted((min(one, at.elapsed_s) for one in before), reverse=True))
        self._trim(at)
        # This run's clock may be behind: while all is stopped the exchange's time cannot be learnt.
        left_s = min((known.stopped_until_ms - at.now_ms) / 1000, known.stopped_s)
        if left_s > 0.0:
            self.stop(at, left_s, known.stopped_status, known.stopped_why)

    def _turn(self, at: Instant) -> None:
        minute = at.now_ms // schema.MINUTE_MS
        # A clock that is set back by a little does not give the minute before once more.
        if minute > self._minute or minute < self._minute - 1:
            # What is under way may arrive in this minute or in the last: it counts in both.
            self._minute, self._used = minute, self._in_flight

    def _trim(self, at: Instant) -> None:
        since_s = at.elapsed_s - FUNDING_WINDOW_S - FUNDING_MARGIN_S
        while self._funding_s and self._funding_s[0] <= since_s:
            self._funding_s.popleft()


def _past_ms(at: Instant, elapsed_s: float) -> int:
    return at.now_ms - int((at.elapsed_s - elapsed_s) * 1000)


def max_stop_s(status: int) -> float:
    """The longest pause (s) that an answer with this status may ask for."""
    return MAX_BAN_S if status == BANNED else MAX_STOP_S


def klines_weight(limit: int) -> int:
    """Weight of a request for `limit` klines: Binance USD-M "Kline/Candlestick Data"."""
    if limit <= 100:
        return 1
    if limit <= 499:
        return 2
    return 5 if limit <= 1_000 else 10
