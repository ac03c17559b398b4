"""The market streams of Binance USD-M futures, carried by cryptofeed. Nothing else imports cryptofeed.

A frame travels so: `MarketSocket.read` -> cryptofeed's ConnectionHandler -> `_MarketFeed.message_handler`
-> `on_frame`. cryptofeed's FeedHandler, Feed, AsyncConnection and ConnectionHandler run as they are; what
they leave to a subclass is overridden where the original would lose data (seen on 2.4.1, 2.5.0, 3.0.1):

* its watchdog waits for a first message, and by the wall clock: here the monotonic clock is watched from
  the moment of opening;
* its delay between attempts doubles without bound, and after a polite close 2.x makes no pause at all:
  here `_open` paces all attempts and returns with a connection, and `read` ends without an exception;
* an exception in a callback, or an answer to SUBSCRIBE, tears the connection down: here neither does;
* it fetches exchangeInfo when symbols are missing: here they are always given.

Versions of cryptofeed are distinguished by what they offer (`run_async`, `authenticate`), not by number.
"""

import asyncio
import atexit
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

import aiohttp
from cryptofeed import FeedHandler
from cryptofeed.connection import AsyncConnection
from cryptofeed.exchanges.binance_futures import BinanceFutures
from cryptofeed.symbols import Symbols

from marketfeed.binance.backoff import ConnectionStatus, ConnectLimiter, FeedOptions, spread
from marketfeed.binance.market_socket import MarketSocket, OnState, WebSocket
from marketfeed.binance.symbols import Instrument

log = logging.getLogger(__name__)

OnFrame = Callable[[bytes, str], None]
"""Takes a frame as it came (market data or an answer to a command) and its connection's name."""

_ERRORS_LOGGED_EVERY_S: Final = 60.0
_MARKET_DATA: Final = b'{"stream"'
_ANSWERS: Final = (b'{"result"', b'{"error"', b'{"id"')
# cryptofeed 2 sets a global uvloop policy and writes feedhandler.log unless configured otherwise.
_CRYPTOFEED_CONFIG: Final = {"uvloop": False, "log": {"disabled": True}}


class Feed:
    """One generation of connections: `run` opens them and lasts until `stop`; it runs once.

    A rollover starts a second Feed, waits until it brings data, and stops the first. `on_frame` is
    called on the event loop, never concurrently, and for nothing that arrives after `stop` returned;
    what it raises is counted in `frame_errors` and logged, and disturbs no connection. `on_state` is
    called at each change of a connection's state. Connections are named `name-1`, `name-2` …

    cryptofeed's symbols are those of `instruments`, what is collected, and no HTTP request is ever made.
    """

    def __init__(
        self,
        options: FeedOptions,
        instruments: Iterable[Instrument],
        streams: Sequence[str],
        on_frame: OnFrame,
        on_state: OnState,
        limiter: ConnectLimiter,
        name: str = "feed",
    ) -> None:
        _set_logging()
        _MarketFeed.take_symbols(instruments)
        self.frame_errors = 0
        """How often `on_frame` has raised."""
        self._options = options
        self._limiter = limiter
        self._on_frame = on_frame
        self._on_state = on_state
        self._name = name
        self._connections: list[_Connection] = []
        self._session: aiohttp.ClientSession | None = None
        self._handler: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: asyncio.Future[None] | None = None
        self._stop_asked = False
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._error_logged_s = 0.0
        self._errors_unlogged = 0
        self._place(streams)

    async def run(self) -> None:
        """Keep the connections open until `stop`. Raises what has killed one of cryptofeed's tasks."""
        if self._ending is not None:
            raise RuntimeError("a Feed runs once: make another one")
        self._ending = asyncio.get_running_loop().create_future()
        if self._stop_asked:
            return
        self._stopped.clear()
        try:
            self._session = self._make_session()
            self._handler = FeedHandler(config=_CRYPTOFEED_CONFIG)
            self._handler.add_feed(self._cryptofeed_feed(self._connections))
            if hasattr(self._handler, "run_async"):
                running = self._handler.run_async(install_signal_handlers=False)
                self._keep(asyncio.get_running_loop().create_task(running, name=self._name))
            else:
                self._handler.run(start_loop=False, install_signal_handlers=False)
            check_every_s = min(1.0, self._options.idle_timeout_s / 4)
            while not self._ending.done():
                await asyncio.wait([self._ending], timeout=check_every_s)
                for connection in self._connections:
                    connection.end_if_idle(time.monotonic())
            self._ending.result()
        finally:
            await self._take_down()
            self._stopped.set()

    async def stop(self) -> None:
        """Close everything and return when `run` has nothing left to do; within a second at any moment.

        Frames that have reached this process before are still handed on.
        """
        self._stop_asked = True
        self._end(None)
        await self._stopped.wait()

    def connections(self) -> tuple[ConnectionStatus, ...]:
        """Every connection as it stands now."""
        return tuple(connection.status() for connection in self._connections)

    def reconnect(self, name: str, reason: str) -> None:
        """Close the connection of that name, which then opens again; nothing if it is not open."""
        for connection in self._connections:
            if connection.name == name:
                connection.end(reason)

    async def subscribe(self, streams: Iterable[str]) -> None:
        """Add streams by SUBSCRIBE frames: where there is room first, on new connections otherwise.

        Returns when the frames are sent. A connection that is not open takes its share when it opens.
        """
        known = {stream for connection in self._connections for stream in connection.streams}
        before = len(self._connections)
        touched = self._place(stream for stream in streams if stream not in known)
        if self._running and len(self._connections) > before:
            self._handler.add_feed(self._cryptofeed_feed(self._connections[before:]))
        await asyncio.gather(*(connection.sync() for connection in touched))

    async def unsubscribe(self, streams: Iterable[str]) -> None:
        """End streams by UNSUBSCRIBE frames. A connection left without any stays, as room for others."""
        gone = set(streams)
        touched = [c for c in self._connections if not gone.isdisjoint(c.streams)]
        for connection in touched:
            connection.remove(gone)
        await asyncio.gather(*(connection.sync() for connection in touched))

    async def resubscribe(self, streams: Iterable[str]) -> None:
        """UNSUBSCRIBE and SUBSCRIBE again what has gone silent; unknown streams are ignored."""
        silent = set(streams)
        await asyncio.gather(
            *(
                connection.resubscribe(silent)
                for connection in self._connections
                if not silent.isdisjoint(connection.streams)
            )
        )

    # --- inside -----------------------------------------------------------------------------------

    @property
    def _running(self) -> bool:
        return self._ending is not None and not self._ending.done()

    def _place(self, streams: Iterable[str]) -> list["_Connection"]:
        loads = [len(connection.streams) for connection in self._connections]
        shares = spread(streams, loads, self._options.streams_per_connection)
        for number in range(len(self._connections) + 1, len(shares) + 1):
            name = f"{self._name}-{number}"
            self._connections.append(
                _Connection(name, self._options, self._limiter, self._dial, self._report)
            )
        touched = []
        for connection, share in zip(self._connections, shares, strict=True):
            if share:
                connection.add(share)
                touched.append(connection)
        return touched

    def _cryptofeed_feed(self, connections: Sequence["_Connection"]) -> "_MarketFeed":
        return _MarketFeed(tuple(connections), self._on_frame, self._frame_failed, self._keep)

    def _make_session(self) -> aiohttp.ClientSession:
        context: ssl.SSLContext | bool = True
        if self._options.cafile is not None:
            context = ssl.create_default_context(cafile=self._options.cafile)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _dial(self) -> WebSocket:
        if self._session is None:
            raise RuntimeError("the feed does not run")
        return await self._session.ws_connect(
            self._options.address,
            compress=0,
            decode_text=False,
            heartbeat=self._options.heartbeat_s,
            timeout=aiohttp.ClientWSTimeout(ws_close=self._options.close_timeout_s),
            max_msg_size=self._options.max_frame_bytes,
        )

    def _report(self, status: ConnectionStatus) -> None:
        try:
            self._on_state(status)
        except Exception:
            log.exception("on_state failed connection=%s state=%s", status.name, status.state)

    def _frame_failed(self, error: Exception) -> None:
        self.frame_errors += 1
        self._errors_unlogged += 1
        now_s = time.monotonic()
        if self.frame_errors == 1 or now_s - self._error_logged_s >= _ERRORS_LOGGED_EVERY_S:
            log.error(
                "on_frame failed errors=%d since_last_line=%d",
                self.frame_errors,
                self._errors_unlogged,
                exc_info=error,
            )
            self._error_logged_s = now_s
            self._errors_unlogged = 0

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._end(task.exception() or RuntimeError("cryptofeed's connection handler has ended"))

    def _end(self, error: BaseException | None) -> None:
        if self._ending is None or self._ending.done():
            return
        if error is None:
            self._ending.set_result(None)
        else:
            self._ending.set_exception(error)

    async def _take_down(self) -> None:
        # cryptofeed's own ways to stop wait for its back-off; cancelling ends any wait at once, and each
        # connection sends its goodbye on the way out. No frame is lost: a reader never waits while it
        # has some, and one that just got some was woken before this task was.
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self._handler, "stop_async"):
            await self._handler.stop_async()
        for connection in self._connections:
            connection.retire()
        if self._session is not None:
            await self._session.close()


class _Connection(MarketSocket, AsyncConnection):  # type: ignore[misc] # cryptofeed has no types
    """A MarketSocket as cryptofeed knows it."""

    def __init__(
        self,
        name: str,
        options: FeedOptions,
        limiter: ConnectLimiter,
        dial: Callable[[], Awaitable[WebSocket]],
        report: OnState,
    ) -> None:
        AsyncConnection.__init__(self, name)
        MarketSocket.__init__(self, name, options, limiter, dial, report)

    def __del__(self) -> None:
        """Nothing: cryptofeed 2 would start a task from here."""

    def retire(self) -> None:
        """Mark it as not to be opened any more."""
        super().retire()
        # cryptofeed 2 registers every connection to be kept until the process ends.
        atexit.unregister(self.__del__)


class _MarketFeed(BinanceFutures):  # type: ignore[misc] # cryptofeed has no types
    """cryptofeed's Binance futures feed over connections of our own, handing frames on undecoded."""

    def __init__(
        self,
        connections: Sequence[_Connection],
        on_frame: OnFrame,
        frame_failed: Callable[[Exception], None],
        keep_task: Callable[["asyncio.Task[Any]"], None],
    ) -> None:
        # timeout=-1: no watchdog of cryptofeed's.
        super().__init__(config=_CRYPTOFEED_CONFIG, retries=-1, timeout=-1)
        self._own_connections = connections
        self._on_frame = on_frame
        self._frame_failed = frame_failed
        self._keep_task = keep_task

    @classmethod
    def take_symbols(cls, instruments: Iterable[Instrument]) -> None:
        """Give cryptofeed its symbols, so that it need not fetch them."""
        Symbols.set(cls.id, *cls._parse_symbol_data({"symbols": _plain_symbols(instruments)}))

    def connect(self) -> list[tuple[object, ...]]:
        """What to run: connection, what to do when it is open, what to do with a frame."""
        # cryptofeed 2 wants to authenticate, too.
        more = (self.authenticate,) if hasattr(self, "authenticate") else ()
        return [(c, self.subscribe, self.message_handler, *more) for c in self._own_connections]

    async def subscribe(self, connection: _Connection) -> None:
        """Subscribe to what the connection carries. Raises nothing for a connection that is lost."""
        await connection.sync()

    async def message_handler(self, msg: bytes, conn: _Connection, timestamp: float) -> None:
        """Hand one frame on; whatever comes of that, the connection lives."""
        if msg.startswith(_MARKET_DATA) or not msg.startswith(_ANSWERS):
            conn.frames += 1
            conn.last_frame_s = time.monotonic()
        try:
            self._on_frame(msg, conn.name)
        except Exception as error:
            self._frame_failed(error)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the connections' tasks, and keep hold of them: cryptofeed 2 calls this, and does not."""
        super().start(_TaskKeeper(loop, self._keep_task))


class _TaskKeeper:
    """An event loop as far as cryptofeed 2 needs one to start connections."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, keep: Callable[["asyncio.Task[Any]"], None]
    ) -> None:
        self._loop = loop
        self._keep = keep

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(coroutine)
        self._keep(task)
        return task


def _plain_symbols(instruments: Iterable[Instrument]) -> list[dict[str, object]]:
    """Rows of exchangeInfo, reduced to what each version of cryptofeed understands.

    2.x takes an unknown contract type for spot; both fail on a symbol without filters. What is collected goes
    on when exchangeInfo lists it halted, or not at all: so not a row of it decides.
    """
    return [
        {
            "symbol": one.symbol,
            "baseAsset": one.pair.partition("/")[0],
            "quoteAsset": one.quote,
            "status": "TRADING",
            "contractType": "PERPETUAL",
            "filters": [{"tickSize": "0"}],  # asked for, and used by nobody here
        }
        for one in instruments
    ]


def _set_logging() -> None:
    """Send cryptofeed's warnings where ours go, and nothing below."""
    for name in ("feedhandler", "cryptofeed"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
