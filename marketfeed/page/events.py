"""Server-sent events: what has changed, to every page that is open.

Nothing runs while nobody listens: a snapshot is taken when a listener's turn has come, once a second (wall)
for all of them. A listener that does not take its events is dropped; it may come again. Small events fill no
buffer for minutes, so what the other host has not acknowledged is looked at, too: a place is for who reads.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from aiohttp import web

from marketfeed.clock import wait_at_most

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
MAX_LISTENERS: Final = 16
WRITE_WITHIN_S: Final = 10.0
"""Wall seconds in which a listener must take an event when the buffers before it are full."""
_BUFFER_BYTES: Final = 32 * 1024
"""Of the kernel, for what a listener has not taken."""
_SHARED_FOR_S: Final = 0.9 * EVERY_S


class Snapshot(NamedTuple):
    """JSON of what seldom changes, sent when it has changed, and of what always does."""

    seldom: bytes
    now: bytes


class Events:
    """Sends `take()` to those who ask at `path`, as events `seldom` and `now`."""

    def __init__(
        self, path: str, take: Callable[[], Snapshot], write_within_s: float = WRITE_WITHIN_S
    ) -> None:
        self.taken = 0
        """Snapshots taken so far."""
        self._path = path
        self._take = take
        self._write_within_s = write_within_s
        self._listeners = 0
        self._latest: Snapshot | None = None
        self._latest_s = 0.0
        self._closing = asyncio.Event()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return self._listeners

    def add_to(self, app: web.Application) -> None:
        """Serve the events."""
        app.router.add_get(self._path, self._get, allow_head=False)
        app.on_shutdown.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    def _snapshot(self) -> Snapshot:
        now_s = time.monotonic()
        if self._latest is None or now_s - self._latest_s >= _SHARED_FOR_S:
            self._latest, self._latest_s = self._take(), now_s
            self.taken += 1
        return self._latest

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if self._listeners >= MAX_LISTENERS:
            return web.Response(
                status=503, text="too many pages are open\n", headers={"Retry-After": "30"}
            )
        self._listeners += 1
        try:
            return await self._send(request)
        finally:
            self._listeners -= 1

    async def _send(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                # A proxy that collects answers before it passes them on would hold them back.
                "X-Accel-Buffering": "no",
            }
        )
        sent = b""
        waiting = _Unread(request, self._write_within_s)
        try:
            async with asyncio.timeout(self._write_within_s):
                await response.prepare(request)
                await response.write(b"retry: 2000\n\n")
            while not self._closing.is_set():
                waiting.look(time.monotonic())
                snapshot = self._snapshot()
                text = b"event: now\ndata: %b\n\n" % snapshot.now
                if snapshot.seldom != sent:
                    sent = snapshot.seldom
                    text = b"event: seldom\ndata: %b\n\n" % sent + text
                async with asyncio.timeout(self._write_within_s):
                    await response.write(text)
                await wait_at_most(EVERY_S, self._closing)
        except TimeoutError:
            log.info("status page dropped: it takes no events peer=%s", request.remote)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # it has gone
        return response


class _Unread:
    """How long a listener's host has had bytes to acknowledge at every look."""

    def __init__(self, request: web.Request, at_most_s: float) -> None:
        self._socket: socket.socket | None = (
            None if request.transport is None else request.transport.get_extra_info("socket")
        )
        self._at_most_s = at_most_s
        self._since_s: float | None = None
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def look(self, now_s: float) -> None:
        """Look once. Raises TimeoutError when none of the looks of `at_most_s` found all acknowledged."""
        if self._socket is None or self._socket.fileno() < 0 or not _unacknowledged(self._socket):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= self._at_most_s:
            raise TimeoutError


def _unacknowledged(connected: socket.socket) -> int:
    """Bytes that the other host has not acknowledged yet (tcp(7): SIOCOUTQ, which is TIOCOUTQ)."""
    answer = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
