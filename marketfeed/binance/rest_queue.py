"""Lets REST requests go as the budget allows, the most urgent first."""

import asyncio
import heapq
import logging
import re
from collections import Counter
from collections.abc import Collection
from http import HTTPStatus
from itertools import count
from typing import Final, TypeAlias

import msgspec

from marketfeed.binance.budget import Budget, Cost, Instant, Priority, Taken
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.errors import ExchangeRefusedError

log = logging.getLogger(__name__)

_AT_LEAST_S: Final = 0.001
_AT_MOST_S: Final = 1.0
"""Wall seconds between two looks at the budget: its clock may be set meanwhile."""
UNNAMED: Final = "?"
"""Stands for the name of a row that cannot be read so far."""
_NAMED_AT_MOST: Final = 10_000
_NAMED_AT_A_TIME: Final = 3
_INVALID_SYMBOL: Final = re.compile(rb'"code"\s*:\s*-1121\b')


_Queue: TypeAlias = list[tuple[Priority, int, Cost, "asyncio.Future[Taken]"]]
"""A heap of who waits."""


class RestReport(msgspec.Struct, frozen=True):
    """What was asked of the exchange's REST API, and what may be. Seconds are exchange seconds."""

    weight_used: int
    weight_limit: int
    funding_used: int
    funding_limit: int
    waiting: int
    stopped_s: float
    stopped_why: str
    requests: dict[str, int]
    refused: dict[str, int]
    odd_rows: dict[str, int] = {}
    """Rows of its answers that were left out, by endpoint."""
    stopped_in_all_s: float = 0.0
    """How long it will have been stopped when that is over, without a good answer in between."""


class Turns:
    """The queue before one exchange's REST API. On one event loop."""

    def __init__(self, budget: Budget, clock: ExchangeClock) -> None:
        self.budget = budget
        self.clock = clock
        self.requests: Counter[str] = Counter()
        """Requests sent, by endpoint."""
        self.refused: Counter[int] = Counter()
        """Error answers, by status."""
        self.odd_rows: Counter[str] = Counter()
        """Rows of answers that were left out, by endpoint."""
        self.invalid_symbols: Counter[str] = Counter()
        """How often in a row klines of a symbol were answered with -1121, by symbol."""
        self.changes = 0
        """Rises with every change of `Budget.state`."""
        self._number = count()
        self._queues: tuple[_Queue, _Queue] = [], []
        self._timer: asyncio.TimerHandle | None = None
        self._named: set[tuple[str, str]] = set()
        # When it was stopped first since the last good answer (exchange s).
        self._stopped_from_s: float | None = None

    def now(self) -> Instant:
        """Read the clock."""
        return Instant(self.clock.now_ms(), self.clock.elapsed_s())

    async def wait(self, cost: Cost, priority: Priority) -> Taken:
        """Return when a request may go out; it is counted then. End it with `answered`.

        While everything is stopped LIVE requests are refused at once (ExchangeRefusedError), and all
        others wait.
        """
        turn: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queues[cost.funding], (priority, next(self._number), cost, turn))
        self._let_go()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.answered(turn.result(), None)
            raise

    def answered(self, taken: Taken, reported: int | None) -> None:
        """Note that a request is over; `reported` is the used weight of the answer's header."""
        self.budget.answered(self.now(), taken, reported)
        self.changes += 1

    def stop(self, for_s: float, status: int, why: str) -> None:
        """Send nothing more for `for_s` exchange seconds: the exchange has demanded it."""
        at = self.now()
        if self._stopped_from_s is None:
            self._stopped_from_s = at.elapsed_s
        self.budget.stop(at, for_s, status, why)
        self.changes += 1
        log.error("REST stopped for_s=%.0f status=%d why=%r", for_s, status, why)
        self._let_go()

    def answered_well(self) -> None:
        """Note that the exchange has answered what it was asked: the next stop is another one."""
        # What was on its way when it was stopped says nothing.
        if not self.budget.stopped_s(self.now()):
            self._stopped_from_s = None

    def note_odd(self, endpoint: str, rows: Collection[tuple[str, str]]) -> None:
        """Count rows of an answer that were left out: of what each is (symbol, series), and why.

        Each of these is named once, however often the exchange serves it.
        """
        self.odd_rows[endpoint] += len(rows)
        fresh = {name[:64]: why for name, why in rows if (endpoint, name[:64]) not in self._named}
        if not fresh or len(self._named) >= _NAMED_AT_MOST:
            return
        self._named.update((endpoint, name) for name in fresh)
        first = list(fresh.items())[:_NAMED_AT_A_TIME]
        log.warning(
            "odd rows of an answer left out endpoint=%s count=%d of=%d names named=%r",
            endpoint,
            len(rows),
            len(fresh),
            "; ".join(f"{name}: {why[:200]}" for name, why in first),
        )

    def note_symbol(self, symbol: str, status: int, body: bytes) -> None:
        """Count, by an answer to klines, how often in a row the exchange calls a symbol invalid."""
        if status == HTTPStatus.OK:
            self.invalid_symbols.pop(symbol, None)
        elif _INVALID_SYMBOL.search(body):
            self.invalid_symbols[symbol] += 1

    def report(self) -> RestReport:
        """What was asked, and what may be."""
        at = self.now()
        budget = self.budget
        stopped_s = budget.stopped_s(at)
        from_s = at.elapsed_s if self._stopped_from_s is None else self._stopped_from_s
        return RestReport(
            weight_used=budget.used(at),
            weight_limit=budget.limit,
            funding_used=budget.funding_used(at),
            funding_limit=budget.funding_limit,
            waiting=sum(not item[3].done() for queue in self._queues for item in queue),
            stopped_s=stopped_s,
            stopped_in_all_s=at.elapsed_s - from_s + stopped_s if stopped_s else 0.0,
            stopped_why=budget.stopped_why,
            requests=dict(self.requests),
            refused={str(status): number for status, number in self.refused.items()},
            odd_rows=dict(self.odd_rows),
        )

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.now()
        waits = [self._let_go_of(queue, at) for queue in self._queues if queue]
        if any(self._queues):
            pause_s = self.clock.wall_s(min(waits) / 1000, _AT_LEAST_S)
            self._timer = asyncio.get_running_loop().call_later(
                min(pause_s, _AT_MOST_S), self._let_go
            )

    def _let_go_of(self, queue: _Queue, at: Instant) -> float:
        """Let go what may; returns in how many exchange ms the next one may."""
        budget = self.budget
        while queue:
            priority, _, cost, turn = queue[0]
            if turn.done():
                heapq.heappop(queue)
                continue
            stopped_s = budget.stopped_s(at)
            if stopped_s > 0.0 and priority is Priority.LIVE:
                heapq.heappop(queue)
                text = f"not asked for {stopped_s:.0f} s more, after {budget.stopped_why}"
                turn.set_exception(ExchangeRefusedError(text, budget.stopped_status, stopped_s))
                continue
            wait_ms = budget.wait_ms(at, cost, priority)
            if wait_ms > 0.0:
                return wait_ms
            heapq.heappop(queue)
            turn.set_result(budget.take(at, cost))
            self.changes += 1
        return float("inf")
