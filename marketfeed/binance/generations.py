"""The feed for good: one generation of connections after the other, none of them cut by the exchange.

`Generations` is to its users what a single `Feed` would be. Before the connections are a day old it opens
the same streams a second time, waits until they have proven themselves by data (`rollover.Proof`), and
stops the old ones. Both are read meanwhile: a repeat changes nothing in the journal.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from marketfeed.binance.backoff import ConnectionStatus
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.feed import Feed, OnFrame
from marketfeed.binance.market_socket import OnState
from marketfeed.binance.rollover import Ages, Proof, is_quiet
from marketfeed.clock import wait_at_most
from marketfeed.counters import CollectorCounters

log = logging.getLogger(__name__)

NAMES: Final = ("feed", "feed2")
"""Generations take turns with these, so that what is reported of connections has a bounded set of names."""
LOOK_EVERY_S: Final = 1.0
LOOK_EVERY_PROVING_S: Final = 0.25
"""Exchange seconds between two looks; never closer than `_LOOK_AT_LEAST_S` wall seconds."""
_LOOK_AT_LEAST_S: Final = 0.02
PROVE_AT_LEAST_S: Final = 4.0
"""Wall seconds that a generation has at least to prove itself: a connection takes its time at any speed."""
_WATCH_AT_LEAST_S: Final = 0.5
"""Wall seconds of watching: a busy machine may not run this process at all for some tenths of a second."""

MakeFeed = Callable[[str, Sequence[str], OnFrame, OnState], Feed]
"""Makes a Feed of a name, streams, and callbacks for frames and for connections' states."""
OnConnection = Callable[[ConnectionStatus, bool], None]
"""Takes a connection's state, and whether its generation is the one that counts."""


class _Generation:
    """One Feed, and since when each of its open connections has been open (exchange s)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.feed: Feed
        self.opened_s: dict[str, float] = {}
        self.died = False

    def is_open(self) -> bool:
        """Whether every connection that carries streams is open."""
        return all(c.state == "open" for c in self.feed.connections() if c.streams)


class Generations:
    """Keeps `streams` coming until `stop`; it runs once, like a Feed.

    `on_connection` is called at each change of a connection's state, `on_replaced` when the connections
    that count have become others. `jitter(low, high)` draws an age (`random.uniform`).
    """

    def __init__(
        self,
        make_feed: MakeFeed,
        streams: Sequence[str],
        on_frame: OnFrame,
        on_connection: OnConnection,
        on_replaced: Callable[[], None],
        clock: ExchangeClock,
        timeframes: Sequence[str],
        counters: CollectorCounters,
        ages: Ages | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._make_feed = make_feed
        self._streams = dict.fromkeys(streams)
        self._on_frame = on_frame
        self._on_connection = on_connection
        self._on_replaced = on_replaced
        self._clock = clock
        self._timeframes = tuple(timeframes)
        self._counters = counters
        self._ages = Ages() if ages is None else ages
        self._jitter = jitter
        self._stop = asyncio.Event()
        self._current = self._generation(NAMES[0])
        self._spare: _Generation | None = None
        self._proof = self._make_proof()
        self._spare_since_s = 0.0
        self._given_up_s = -math.inf
        self._due_age_s = self._draw_age()

    @property
    def streams(self) -> Sequence[str]:
        """What is subscribed."""
        return tuple(self._streams)

    def connections(self) -> tuple[ConnectionStatus, ...]:
        """Every connection as it stands now, those of a generation that is still to prove itself too."""
        return tuple(status for one in self._both() for status in one.feed.connections())

    def current_connections(self) -> tuple[ConnectionStatus, ...]:
        """The connections that count."""
        return self._current.feed.connections()

    async def run(self) -> None:
        """Keep the connections open until `stop`. Raises what has killed the feed that counts."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._carry(self._current), name=self._current.name)
            while not await self._stopping():
                spare = self._look()
                if spare is not None:
                    group.create_task(self._carry(spare), name=spare.name)
                await self._judge()

    async def stop(self) -> None:
        """Close everything and return when nothing is left to do."""
        self._stop.set()
        await asyncio.gather(*(one.feed.stop() for one in self._both()))

    async def subscribe(self, streams: Iterable[str]) -> None:
        """Add streams by frames, without disturbing others. Returns when the frames are sent."""
        names = tuple(streams)
        self._streams.update(dict.fromkeys(names))
        await asyncio.gather(*(one.feed.subscribe(names) for one in self._both()))

    async def unsubscribe(self, streams: Iterable[str]) -> None:
        """End streams by frames, without disturbing others."""
        names = tuple(streams)
        for name in names:
            self._streams.pop(name, None)
        await asyncio.gather(*(one.feed.unsubscribe(names) for one in self._both()))

    async def resubscribe(self, streams: Iterable[str]) -> None:
        """UNSUBSCRIBE and SUBSCRIBE again what has gone silent on the connections that count."""
        await self._current.feed.resubscribe(streams)

    # --- inside -----------------------------------------------------------------------------------

    def _generation(self, name: str) -> _Generation:
        generation = _Generation(name)

        def on_frame(frame: bytes, connection: str) -> None:
            if self._spare is not None:
                if generation is self._spare:
                    self._proof.from_new(frame)
                else:
                    self._proof.from_old(frame)
            self._on_frame(frame, connection)

        def on_state(status: ConnectionStatus) -> None:
            if status.state == "open":
                generation.opened_s[status.name] = self._clock.elapsed_s()
            else:
                generation.opened_s.pop(status.name, None)
            self._on_connection(status, generation is self._current)

        generation.feed = self._make_feed(name, self.streams, on_frame, on_state)
        return generation

    def _both(self) -> tuple[_Generation, ...]:
        return (self._current,) if self._spare is None else (self._current, self._spare)

    def _make_proof(self) -> Proof:
        return Proof(max(self._ages.watch_s, _WATCH_AT_LEAST_S * self._clock.speed))

    def _draw_age(self) -> float:
        return self._jitter(self._ages.roll_from_s, self._ages.roll_before_s)

    def _age_s(self) -> float:
        """Exchange seconds for which the oldest open connection that counts has been open."""
        opened_s = self._current.opened_s.values()
        return self._clock.elapsed_s() - min(opened_s) if opened_s else 0.0

    async def _stopping(self) -> bool:
        """Wait until the next look; whether `stop` was called meanwhile."""
        every_s = LOOK_EVERY_S if self._spare is None else LOOK_EVERY_PROVING_S
        return await wait_at_most(self._clock.wall_s(every_s, _LOOK_AT_LEAST_S), self._stop)

    async def _carry(self, generation: _Generation) -> None:
        try:
            await generation.feed.run()
        except Exception:
            if generation is self._current:
                raise
            # Nothing depends on it yet, or any more: the next one may do better.
            log.exception("a generation of connections died name=%s", generation.name)
            generation.died = True

    def _is_quiet(self) -> bool:
        return is_quiet(self._clock.now_ms(), self._timeframes, self._ages.quiet_s)

    def _look(self) -> _Generation | None:
        """Open the next generation if it is time to."""
        now_s = self._clock.elapsed_s()
        if (
            self._spare is not None
            or not self._streams
            or not self._ages.may_start(self._age_s(), self._due_age_s, now_s - self._given_up_s)
            or not self._is_quiet()
        ):
            return None
        name = NAMES[self._current.name == NAMES[0]]
        self._proof = self._make_proof()
        self._spare_since_s = now_s
        self._spare = self._generation(name)
        log.info("rollover begins name=%s age_s=%.0f", name, self._age_s())
        return self._spare

    async def _judge(self) -> None:
        """Replace the old generation by the next one, or give that up."""
        spare, ages = self._spare, self._ages
        if spare is None:
            return
        now_s = self._clock.elapsed_s()
        is_open = spare.is_open()
        self._proof.watch(now_s, old_open=self._current.is_open(), new_open=is_open)
        if self._proof.is_given(self._streams, now_s):
            if self._is_quiet():
                await self._replace(spare, "proven")
            return
        tried_s = now_s - self._spare_since_s
        if not spare.died and tried_s < max(ages.prove_s, PROVE_AT_LEAST_S * self._clock.speed):
            return
        if is_open and not spare.died and self._age_s() >= ages.hard_s:
            # The exchange cuts the old one any moment.
            if self._is_quiet():
                await self._replace(spare, "unproven")
            return
        await self._give_up(spare)

    async def _replace(self, new: _Generation, how: str) -> None:
        old, age_s = self._current, self._age_s()
        lacking = self._proof.lacking(self._streams)
        self._current, self._spare = new, None
        self._due_age_s, self._given_up_s = self._draw_age(), -math.inf
        self._counters.rollovers[how] += 1
        log.log(
            logging.WARNING if lacking else logging.INFO,
            "rolled over from=%s to=%s %s age_s=%.0f lacking=%d first=%s",
            old.name,
            new.name,
            how,
            age_s,
            len(lacking),
            lacking[0] if lacking else "",
        )
        self._on_replaced()
        await old.feed.stop()

    async def _give_up(self, spare: _Generation) -> None:
        lacking = self._proof.lacking(self._streams)
        self._spare = None
        self._given_up_s = self._clock.elapsed_s()
        self._counters.rollovers["given_up"] += 1
        log.warning(
            "rollover given up name=%s open=%s lacking=%d first=%s: the old connections stay",
            spare.name,
            spare.is_open(),
            len(lacking),
            lacking[0] if lacking else "",
        )
        await spare.feed.stop()
