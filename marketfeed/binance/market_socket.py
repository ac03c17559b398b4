"""One WebSocket connection to the exchange that opens again whenever it ends.

It does what cryptofeed's ConnectionHandler asks of an AsyncConnection (`_open`, `read`, `write`, `close`),
and what the feed asks besides: streams that come and go, and an end from outside. The transport is
aiohttp's, whose frame parser is compiled: a frame costs it a quarter of the CPU that websockets,
cryptofeed's own choice, takes.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import islice

import aiohttp
import msgspec

from marketfeed.binance.backoff import (
    Backoff,
    ConnectionState,
    ConnectionStatus,
    ConnectLimiter,
    FeedOptions,
)

log = logging.getLogger(__name__)

WebSocket = aiohttp.ClientWebSocketResponse[bool]
OnState = Callable[[ConnectionStatus], None]


class MarketSocket:
    """One connection with the streams it has to carry.

    `dial` opens a WebSocket; `report` is called with each change of state. `conn`, `received`, `sent` and
    `last_message` (receive time, wall clock, s) are cryptofeed's names and meanings.
    """

    def __init__(
        self,
        name: str,
        options: FeedOptions,
        limiter: ConnectLimiter,
        dial: Callable[[], Awaitable[WebSocket]],
        report: OnState,
    ) -> None:
        self.name = name
        self.streams: dict[str, None] = {}  # a set that keeps its order
        self.frames = 0
        self.last_frame_s: float | None = None
        self.conn: WebSocket | None = None
        self.received = 0
        self.sent = 0
        self.last_message: float | None = None
        self._options = options
        self._limiter = limiter
        self._dial = dial
        self._report = report
        self._backoff = Backoff(
            options.backoff_base_s,
            options.backoff_cap_s,
            options.min_attempt_gap_s,
            random.uniform,
        )
        self._state: ConnectionState = "connecting"
        self._since_s = time.monotonic()
        self._last_error = ""
        self._opened = 0
        self._opened_s = 0.0
        self._frames_before = 0
        self._expecting_since_s = 0.0
        self._end_reason = ""
        self._reading: asyncio.Timeout | None = None
        self._subscribed: set[str] = set()
        self._commanding = asyncio.Lock()
        self._next_command_s = 0.0
        self._command_id = 0

    # --- what cryptofeed asks ----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self.conn is not None and not self.conn.closed

    async def _open(self) -> None:
        """Try until the connection stands. All pacing is here, however the last connection ended."""
        while True:
            await asyncio.sleep(self._backoff.wait_s(time.monotonic()))
            await asyncio.sleep(self._limiter.reserve(time.monotonic()))
            self._set_state("connecting")
            try:
                async with asyncio.timeout(self._options.open_timeout_s):
                    self.conn = await self._dial()
                break
            except Exception as error:  # any: cryptofeed's own retries would wait ever longer
                self._attempt_failed(_describe(error))
            finally:
                # At its end: the exchange counts an attempt when it arrives, some time after it began.
                self._backoff.attempted(time.monotonic())
        self._subscribed = set()
        self._end_reason = ""
        self._opened += 1
        self._opened_s = self._expecting_since_s = time.monotonic()
        self._frames_before = self.frames
        self.last_message = time.time()
        self._set_state("open")
        log.info("connection open name=%s streams=%d", self.name, len(self.streams))

    async def read(self) -> AsyncIterator[bytes]:
        """Yield frames as they come. Returns when there are no more, for any reason; `_open` is next."""
        socket = self.conn
        if socket is None:
            return
        receive = socket.receive
        text, binary = aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY
        loop = asyncio.get_running_loop()
        try:
            # `end` moves this deadline: it interrupts a read without cancelling cryptofeed's task.
            async with asyncio.timeout_at(
                loop.time() if self._end_reason else None
            ) as self._reading:
                while True:
                    kind, data, extra = await receive()
                    if kind is not text and kind is not binary:
                        break
                    self.received += 1
                    self.last_message = time.time()
                    yield data
            reason = _describe_end(socket, kind, data, extra)
        except TimeoutError:
            reason = self._end_reason
        finally:
            self._reading = None
        self._ended(reason)

    async def write(self, data: str) -> None:
        """Send one text frame. Raises OSError or aiohttp.ClientError when that cannot be done."""
        if self.conn is None:
            raise ConnectionResetError("not open")
        await self.conn.send_str(data)
        self.sent += 1

    async def close(self) -> None:
        """Send a close frame, and drop the connection after `close_timeout_s` in any case."""
        if self.conn is None or self.conn.closed:
            return
        try:
            async with asyncio.timeout(self._options.close_timeout_s):
                await self.conn.close()
        except TimeoutError:
            log.debug("close not answered name=%s", self.name)

    # --- what the feed asks ------------------------------------------------------------------------

    def status(self) -> ConnectionStatus:
        """The connection as it stands now."""
        return ConnectionStatus(
            name=self.name,
            streams=tuple(self.streams),
            state=self._state,
            since_s=self._since_s,
            opened=self._opened,
            frames=self.frames,
            last_frame_s=self.last_frame_s,
            last_error=self._last_error,
        )

    def add(self, streams: Iterable[str]) -> None:
        """Take streams on; `sync` subscribes them."""
        if not self.streams:
            self._expecting_since_s = time.monotonic()
        self.streams.update(dict.fromkeys(streams))

    def remove(self, streams: Iterable[str]) -> None:
        """Give streams up; `sync` unsubscribes them."""
        for stream in streams:
            self.streams.pop(stream, None)

    def end(self, reason: str) -> None:
        """End the connection if it is open, whatever the peer does; it opens again."""
        if self._state != "open" or self._end_reason:
            return
        self._end_reason = reason
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    def end_if_idle(self, now_s: float) -> None:
        """End the connection if it should bring data and has brought none for `idle_timeout_s`."""
        silent_s = now_s - max(self._expecting_since_s, self.last_frame_s or 0.0)
        if self.streams and silent_s > self._options.idle_timeout_s:
            self.end(f"no market data for {silent_s:.1f} s")

    async def sync(self) -> None:
        """Bring the exchange's list of this connection's streams in line with `streams`.

        Raises nothing when the connection is not open or ends meanwhile: the next one starts anew.
        """
        async with self._commanding:
            have, want = self._subscribed, self.streams
            await self._command([stream for stream in have if stream not in want], "UNSUBSCRIBE")
            await self._command([stream for stream in want if stream not in have], "SUBSCRIBE")

    async def resubscribe(self, streams: set[str]) -> None:
        """UNSUBSCRIBE and SUBSCRIBE those of `streams` that are carried here."""
        async with self._commanding:
            mine = [stream for stream in self.streams if stream in streams]
            # Both at once: a candle that closed between them would be lost.
            await self._command(mine, "UNSUBSCRIBE", "SUBSCRIBE")

    def retire(self) -> None:
        """Mark it as not to be opened any more."""
        if self._state != "closed":
            self._set_state("closed", "stopped")

    # --- inside ------------------------------------------------------------------------------------

    async def _command(self, names: Sequence[str], *methods: str) -> None:
        """Send each of `methods` for `names`, share by share as they fit in a frame, each in its turn."""
        socket, subscribed = self.conn, self._subscribed
        remaining = iter(names)
        while chunk := list(islice(remaining, self._options.names_per_subscribe)):
            await asyncio.sleep(self._next_command_s - time.monotonic())
            self._next_command_s = time.monotonic() + len(methods) / self._options.subscribes_per_s
            for method in methods:
                if socket is None or socket is not self.conn or socket.closed:
                    return
                self._command_id += 1
                command = {"method": method, "params": chunk, "id": self._command_id}
                try:
                    await self.write(msgspec.json.encode(command).decode())
                except (OSError, aiohttp.ClientError) as error:
                    # The reader meets the same end and reports it.
                    log.debug("command not sent name=%s error=%r", self.name, str(error))
                    return
                if method == "SUBSCRIBE":
                    subscribed.update(chunk)
                else:
                    subscribed.difference_update(chunk)

    def _attempt_failed(self, error: str) -> None:
        self._backoff.ended(steady=False)
        failures = self._backoff.failures
        log.log(
            logging.WARNING if failures == 1 else logging.INFO,
            "connect failed name=%s failures=%d error=%r",
            self.name,
            failures,
            error,
        )
        self._set_state("failed", error)

    def _ended(self, reason: str) -> None:
        frames = self.frames - self._frames_before
        lasted_s = time.monotonic() - self._opened_s
        self._backoff.ended(steady=frames > 0 and lasted_s >= self._options.steady_after_s)
        log.warning(
            "connection ended name=%s lasted_s=%.1f frames=%d reason=%r",
            self.name,
            lasted_s,
            frames,
            reason,
        )
        self._set_state("closed", reason)

    def _set_state(self, state: ConnectionState, error: str | None = None) -> None:
        self._state = state
        self._since_s = time.monotonic()
        if error is not None:
            self._last_error = error
        self._report(self.status())


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _describe_end(
    socket: WebSocket, kind: aiohttp.WSMsgType, data: object, extra: str | None
) -> str:
    if kind is aiohttp.WSMsgType.CLOSE:
        return f"closed by the exchange: {data} {extra or ''}".rstrip()
    error = data if isinstance(data, BaseException) else socket.exception()
    # aiohttp's farewell could not be sent either, and hides why.
    if error is None or isinstance(error, aiohttp.ClientConnectionResetError):
        return "connection lost"
    return _describe(error)
