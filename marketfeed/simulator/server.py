"""A Binance USD-M futures exchange on loopback: REST and WebSocket on one port, in one event loop.

Exchange time is `start_ms` + elapsed wall time x `speed`. Every few wall milliseconds the market is
brought to it, and what happened goes out to the subscribers, each frame stamped with its own instant.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from aiohttp import web

from marketfeed.errors import SettingsError
from marketfeed.simulator import catalogue, dataset, tls
from marketfeed.simulator.archive import Archive
from marketfeed.simulator.control import Controls, State, control_routes
from marketfeed.simulator.faults import Faults
from marketfeed.simulator.listings import ListingChange
from marketfeed.simulator.market import Market
from marketfeed.simulator.published import Published, PublishedLog
from marketfeed.simulator.recording import read_recording
from marketfeed.simulator.replay import Replay
from marketfeed.simulator.rest import Rest
from marketfeed.simulator.sockets import MAX_BUFFER_BYTES, Hub
from marketfeed.simulator.venue import Event, Venue

log = logging.getLogger(__name__)

# Wall seconds between two looks at the clock: short, so that frames are spread as trades are, yet no
# shorter than pays. At speed 60 the shorter one is 0.3 s of exchange time.
_TICK_S: Final = (0.005, 0.010)
# Exchange time that is caught up with at once, so that a late simulator still answers.
_MAX_STEP_MS: Final = 2_000
# Wall seconds from the first subscription until a recording starts: time to subscribe to the rest.
_REPLAY_GRACE_S: Final = 1.0


class SimulatorOptions(msgspec.Struct, frozen=True):
    """What to simulate.

    `port` 0 takes any free one. `pairs` is a number or Freqtrade names; `timeframes` are those of the
    kline streams. `speed` is exchange seconds per wall second. `start_ms` is the exchange time to start
    from, None now. `replay` names a recording to play instead of a simulated market: `pairs`,
    `timeframes`, `seed`, `start_ms` and `empty_closes` then mean nothing, and time begins a second after
    the first subscription. `paused` starts with time standing still, until `resume`. `every_trade` gives
    the day that BTC repeats all of its trades (up to 150 a second) instead of some of them. `tradifi` are
    pairs of TradFi contracts that trade beside `pairs`; without any there is one that is listed only.
    `liveliness` is how many trades there are, 1.0 as many as on the exchange: a fast one has fewer.
    """

    host: str = "127.0.0.1"
    port: int = 0
    pairs: int | tuple[str, ...] = 164
    timeframes: tuple[str, ...] = ("1m", "3m", "5m", "15m", "1h")
    speed: float = 1.0
    seed: int = 1
    start_ms: int | None = None
    empty_closes: bool = True
    tls: bool = False
    tradifi: tuple[str, ...] = ()
    replay: Path | None = None
    paused: bool = False
    every_trade: bool = False
    liveliness: float = 1.0
    published_kept: int = 500_000
    max_buffer_bytes: int = MAX_BUFFER_BYTES


class _Elapsed:
    """Exchange milliseconds that have run, by the monotonic clock; they can be stopped."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._before_ms = 0.0
        self._since_s: float | None = None

    @property
    def stopped(self) -> bool:
        return self._since_s is None

    def ms(self) -> float:
        if self._since_s is None:
            return self._before_ms
        return self._before_ms + (time.monotonic() - self._since_s) * 1_000.0 * self._speed

    def stop(self) -> None:
        self._before_ms = self.ms()
        self._since_s = None

    def go(self) -> None:
        if self._since_s is None:
            self._since_s = time.monotonic()

    def go_on(self, from_ms: float, speed: float) -> None:
        self._before_ms = from_ms
        if self._since_s is not None:
            self._since_s = time.monotonic()
        self._speed = speed


class Simulator:
    """A running simulated exchange: `async with Simulator(options) as simulator: …`.

    Raises SettingsError for options that make no sense, OSError if the port cannot be taken, RuntimeError if
    TLS is asked for and no certificate can be made. `venue` is the market or the recording behind it;
    `hub` the connections; `faults` what it does wrong on request.
    """

    def __init__(self, options: SimulatorOptions | None = None) -> None:
        self.options = options = options if options is not None else SimulatorOptions()
        self.speed = _checked_speed(options.speed)
        """Exchange seconds per wall second, now."""
        self.venue: Venue = _make_venue(options)
        self.published_log = PublishedLog(options.published_kept)
        self.hub = Hub(
            self.venue.streams,
            self.published_log,
            None if options.replay is None else self._start_replay_soon,
            max_buffer_bytes=options.max_buffer_bytes,
        )
        self.rest = Rest(self.venue, self.now_ms, self.catch_up, lambda: self.speed)
        self.archive: Archive | None = None
        """The files of past candles, at `rest_url`; a recording has none."""
        if isinstance(self.venue, Market):
            self.archive = Archive(self.venue, self.now_ms, self.catch_up)
        self.faults = Faults(
            self.hub, self.rest, lambda: self.venue.listed, self.now_ms, self._set_listening
        )
        self.certificate: Path | None = None
        """The certificate to trust, with TLS; it is gone when the simulator has stopped."""
        self.port = 0
        self._elapsed = _Elapsed(options.speed)
        self._reached_ms = self._start_ms = self.venue.time_at(0.0)
        self._started_s = 0.0
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._start_replay: asyncio.TimerHandle | None = None
        self._resources = contextlib.AsyncExitStack()
        self._make_site: Callable[[], web.TCPSite] | None = None
        self._site: web.TCPSite | None = None
        self._tick_s = _tick_s(self.speed)

    # --- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._listen(stack)
            self._resources = stack.pop_all()
        self._started_s = time.monotonic()
        if self.options.replay is None and not self.options.paused:
            self._elapsed.go()
        self._tasks = [
            asyncio.create_task(self._run(), name="simulator"),
            asyncio.create_task(self.hub.keep_pinging(), name="simulator pings"),
        ]
        return self

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        options = self.options
        context = None
        if options.tls:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="simulator-")))
            self.certificate, key = tls.self_signed(directory)
            context = tls.server_context(self.certificate, key)
        application = web.Application()
        application.add_routes(self.rest.routes())
        if self.archive is not None:
            application.add_routes(self.archive.routes())
        application.add_routes(self._socket_routes())
        application.add_routes(
            control_routes(
                Controls(
                    self.state,
                    self._published_body,
                    self.pause,
                    self.resume,
                    self.set_speed,
                    self.faults,
                    self.change,
                )
            )
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(self.hub.close)
        self.port = options.port
        self._make_site = lambda: web.TCPSite(runner, options.host, self.port, ssl_context=context)
        await self._set_listening(True)
        self.port = runner.addresses[0][1]

    async def _set_listening(self, listening: bool) -> None:
        """Open the listening socket, or close it: connections that are open stay so."""
        if listening and self._site is None and self._make_site is not None:
            site = self._make_site()
            await site.start()
            self._site = site
        elif not listening and self._site is not None:
            site, self._site = self._site, None
            await site.stop()

    def _socket_routes(self) -> list[web.RouteDef]:
        def route(path: str, *, combined: bool, routed: bool) -> web.RouteDef:
            async def serve(request: web.Request) -> web.StreamResponse:
                text = request.query.get("streams", "") or request.match_info.get("names", "")
                names = [name for name in text.split("/") if name]
                return await self.hub.serve(request, combined=combined, routed=routed, names=names)

            return web.get(path, serve)

        return [
            route(f"{prefix}/{path}", combined=path == "stream", routed=prefix == "/market")
            for prefix in ("/market", "/public", "/private", "")
            for path in ("stream", "ws", "ws/{names:.+}")
        ]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._start_replay is not None:
            self._start_replay.cancel()
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        # No request may hang, and nobody connect any more.
        self._make_site = None
        await self.faults.end()
        await self._resources.aclose()
        for one in ended:
            if isinstance(one, Exception) and error is None:
                raise one

    async def _run(self) -> None:
        """Bring the market to the clock, again and again."""
        try:
            while True:
                behind = self._advance(_MAX_STEP_MS)
                self._wake()
                await self.faults.tick(self._reached_ms)
                await asyncio.sleep(0.0 if behind else self._tick_s)
        except Exception as error:
            log.exception("simulator failed")
            for _, future in self._waiters:
                if not future.done():
                    future.set_exception(error)
            raise

    def _advance(self, at_most_ms: int | None) -> bool:
        """Let time go on; return whether the clock is still ahead."""
        now_ms = self.now_ms()
        target_ms = now_ms
        # A recording may jump; it has few frames.
        if at_most_ms is not None and self.options.replay is None:
            target_ms = min(now_ms, self._reached_ms + at_most_ms)
        if target_ms > self._reached_ms:
            self._reached_ms = target_ms
            events: list[Event] = self.venue.advance(target_ms)
            if events:
                self.hub.publish(events)
        return target_ms < now_ms

    def catch_up(self) -> None:
        """Bring the market to the clock at once."""
        self._advance(None)

    # --- time -------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Exchange time, ms."""
        return self.venue.time_at(self._elapsed.ms())

    @property
    def paused(self) -> bool:
        """Whether exchange time stands still."""
        return self._elapsed.stopped

    def pause(self) -> None:
        """Stop exchange time, and with it all frames."""
        self._elapsed.stop()

    def resume(self) -> None:
        """Let exchange time go on from where it stopped."""
        self._elapsed.go()

    def set_speed(self, speed: float) -> None:
        """Let exchange time go on at another speed, which `time` tells, from where the frames are.

        What a busy machine is behind is not made up for; no clock goes back behind what an answer has told.
        Raises SettingsError.
        """
        elapsed_ms = self._elapsed.ms()
        known_ms = max(self._reached_ms, self.rest.told_ms)
        behind_ms = max(0, self.venue.time_at(elapsed_ms) - known_ms)
        self._elapsed.go_on(elapsed_ms - behind_ms, _checked_speed(speed))
        self.speed = speed
        self._tick_s = _tick_s(speed)

    def _start_replay_soon(self) -> None:
        if self._start_replay is None and not self.options.paused:
            self._start_replay = asyncio.get_running_loop().call_later(_REPLAY_GRACE_S, self.resume)

    def change(self, change: ListingChange) -> int:
        """List, delist or change a contract; return the exchange time (ms) at which it takes effect.

        Raises SettingsError for a pair that does not fit, and while a recording is replayed.
        """
        if not isinstance(self.venue, Market):
            raise SettingsError("a recording is replayed: there is no market to list in")
        self.catch_up()
        return self.venue.change(change)

    # --- what can be seen -------------------------------------------------------------------------

    @property
    def ws_url(self) -> str:
        """Base address for WebSockets: `/market/stream` and so on follow it."""
        return f"ws{'s' if self.options.tls else ''}://{self.options.host}:{self.port}"

    @property
    def rest_url(self) -> str:
        """Base address for REST: `/fapi/v1/…` follows it."""
        return f"http{'s' if self.options.tls else ''}://{self.options.host}:{self.port}"

    @property
    def market(self) -> Market:
        """The simulated market. Raises TypeError while a recording is replayed."""
        if not isinstance(self.venue, Market):
            raise TypeError("a recording is replayed: there is no market")
        return self.venue

    def published(self, after: int = 0) -> list[Published]:
        """Return the closing candles that were sent, those with a number above `after`."""
        return self.published_log.after(after)

    def _published_body(self, after: int, limit: int | None) -> bytes:
        return msgspec.json.encode(self.published_log.after(after, limit))

    def state(self) -> State:
        """Return how the simulator stands."""
        now_ms = self.now_ms()
        return State(
            exchange_time_ms=now_ms,
            start_ms=self._start_ms,
            speed=self.speed,
            paused=self.paused,
            pairs=sum(instrument.trades for instrument in self.venue.listed),
            timeframes=self.options.timeframes,
            connections=len(self.hub.connections),
            connections_opened=self.hub.connections_opened,
            streams=self.hub.streams_wanted,
            frames_sent=self.hub.frames_sent,
            bytes_sent=self.hub.bytes_sent,
            published=self.published_log.last_number,
            requests=dict(self.rest.requests),
            archive_requests=0 if self.archive is None else self.archive.asked,
            lag_ms=max(0, now_ms - self._reached_ms),
            cpu_s=time.process_time(),
            uptime_s=time.monotonic() - self._started_s,
        )

    # --- waiting ----------------------------------------------------------------------------------

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return once `condition` holds; it is looked at after every tick.

        Raises TimeoutError after `timeout_s` wall seconds, or what ended the simulator.
        """
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (condition, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def wait_connections(self, count: int, timeout_s: float = 10.0) -> None:
        """Return once exactly `count` connections are open."""
        await self.wait_until(lambda: len(self.hub.connections) == count, timeout_s)

    async def wait_subscribed(self, stream: str, timeout_s: float = 10.0) -> None:
        """Return once somebody listens to `stream`."""
        await self.wait_until(lambda: self.hub.listeners(stream) > 0, timeout_s)

    async def wait_published(self, number: int, timeout_s: float = 10.0) -> None:
        """Return once the closing candle of that number was sent."""
        await self.wait_until(lambda: self.published_log.last_number >= number, timeout_s)

    def _wake(self) -> None:
        for waiter in tuple(self._waiters):
            condition, future = waiter
            if not future.done() and condition():
                future.set_result(None)
                self._waiters.remove(waiter)


def _checked_speed(speed: float) -> float:
    if not 0.0 < speed <= 100_000.0:
        raise SettingsError(f"speed: more than 0 is expected, not {speed}")
    return speed


def _tick_s(speed: float) -> float:
    return min(max(0.25 / speed, _TICK_S[0]), _TICK_S[1])


def _make_venue(options: SimulatorOptions) -> Venue:
    if options.replay is not None:
        return Replay(read_recording(options.replay))
    start_ms = options.start_ms if options.start_ms is not None else int(time.time() * 1_000)
    instruments = tuple(
        msgspec.structs.replace(one, trades_per_s=one.trades_per_s * options.liveliness)
        for one in (*catalogue.instruments(options.pairs), *catalogue.tradifi(options.tradifi))
    )
    symbols = {instrument.symbol for instrument in instruments}
    if len(symbols) < len(instruments):
        raise SettingsError("tradifi: a pair that is there already")
    return Market(
        instruments,
        options.timeframes,
        start_ms=start_ms,
        seed=options.seed,
        bystanders=[one for one in catalogue.bystanders(start_ms) if one.symbol not in symbols],
        day=dataset.made_day(),
        empty_closes=options.empty_closes,
        every_trade=options.every_trade,
    )
