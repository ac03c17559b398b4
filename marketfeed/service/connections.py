"""Bounds for the connections of a port: how many, how long for a request, how long for an answer.

An idle connection costs a descriptor. Without bounds, whoever reaches the port takes all that a process may
have before a token or a password is asked, and the collector's next connection to the exchange, or the
aggregator's to a bot, fails.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from marketfeed.settings.addresses import network_of

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEEP_ALIVE_S: Final = 75.0
"""Seconds in which a connection may wait for its next request."""
_ADDRESSES: Final = 256
_OTHERS: Final = "others"


class Limits(NamedTuple):
    """How many connections, and seconds (monotonic) for a request's head and for a client to read on.

    `of_address`: of one address (IPv6: of one /64) so many that have shown no password; None: as many
    as there are places.
    """

    connections: int = 64
    head_s: float = 5.0
    write_s: float = 10.0
    of_address: int | None = None


DEFAULT_LIMITS: Final = Limits()


class Connections:
    """The open connections of a listening socket, within `limits`.

    When all places are taken, the connection that has been without a complete request for longest gives way;
    one that is being answered does so only if all are. One whose last request showed a password gives way
    after all that have shown none. `listen` puts it before an application; a bare server's handler calls
    `begin` and `end` itself. Used on one event loop.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        # In each, whoever has been without a complete request for longest comes first.
        self._strangers: dict[int, _Connection] = {}
        self._known: dict[int, _Connection] = {}
        self._of_address: dict[str, dict[int, _Connection]] = {}
        """The strangers once more, by where they come from."""

    def __len__(self) -> int:
        return len(self._strangers) + len(self._known)

    def over(self, make: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocols of a listening socket: those of `make`, bounded."""
        return lambda: _Connection(self, cast("asyncio.Protocol", make()), self._limits)

    def add_to(self, app: web.Application) -> None:
        """Stand before every route of `app`, and before what its other middlewares answer."""
        app.middlewares.insert(0, self._answer)

    def begin(self, request: web.BaseRequest) -> "_Connection | None":
        """A request is complete; returns what `end` is given. None: its connection has gone."""
        key = id(request.transport)
        connection = self._known.get(key) or self._strangers.get(key)
        if connection is not None:
            connection.begin()
        return connection

    def end(self, connection: "_Connection | None", *, known: bool = False) -> None:
        """It has been handled, and is the last of those that give way; `known`: it showed a password."""
        if connection is None:
            return
        connection.end()
        if self._leave(connection):
            self._enter(connection, known=known)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = self.begin(request)
        try:
            return await handler(request)
        finally:
            self.end(connection)

    def _joined(self, connection: "_Connection") -> None:
        most, beside = self._limits.of_address, self._of_address.get(connection.address, {})
        if most is not None and len(beside) >= most:
            self._cut(beside)
        elif len(self) >= self._limits.connections:
            self._cut(self._strangers or self._known)
        self._enter(connection, known=False)

    def _cut(self, of: "dict[int, _Connection]") -> None:
        oldest = next((one for one in of.values() if not one.answering), None)
        oldest = oldest or next(iter(of.values()))
        oldest.abort()
        self._leave(oldest)

    def _enter(self, connection: "_Connection", *, known: bool) -> None:
        if known:
            self._known[connection.key] = connection
            return
        self._strangers[connection.key] = connection
        if self._limits.of_address is not None:
            self._of_address.setdefault(connection.address, {})[connection.key] = connection

    def _leave(self, connection: "_Connection") -> bool:
        """Whether it was there."""
        key = connection.key
        if self._known.get(key) is connection:
            del self._known[key]
            return True
        if self._strangers.get(key) is not connection:
            return False
        del self._strangers[key]
        if (beside := self._of_address.get(connection.address)) is not None:
            del beside[key]
            if not beside:
                del self._of_address[connection.address]
        return True


class _Connection(asyncio.Protocol):
    """One connection: passes everything on to `inner`, and is cut when its time is over."""

    def __init__(self, owner: Connections, inner: asyncio.Protocol, limits: Limits) -> None:
        self._owner = owner
        self._inner = inner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self.key = 0
        self.address = ""
        self.answering = False

    def begin(self) -> None:
        """A request is complete."""
        self.answering = True
        self._head = _cancel(self._head)

    def end(self) -> None:
        """It has been handled."""
        self.answering = False

    def abort(self) -> None:
        """Cut it, whatever is on its way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.key = id(transport)
        if self._limits.of_address is not None:
            peer = transport.get_extra_info("peername")
            self.address = network_of(peer[0]) if peer else ""
        self._owner._joined(self)  # noqa: SLF001 - two halves of one thing
        self._await_head()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._head is None and not self.answering:
            self._await_head()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._write is None:
            self._write = self._loop.call_later(self._limits.write_s, self.abort)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._write = _cancel(self._write)
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._write = _cancel(self._head), _cancel(self._write)
        self._owner._leave(self)  # noqa: SLF001 - two halves of one thing
        self._inner.connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self._loop.call_later(self._limits.head_s, self.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel `timer`; returns what stands in its place."""
    if timer is not None:
        timer.cancel()
    return None


class RequestLog(logging.LoggerAdapter[logging.Logger]):
    """The HTTP library's log of a port: one short line a minute for each address and each kind of error.

    The library logs a traceback for each malformed request, with the line of the request that it could not
    read: strangers could fill the disk, and a mistyped `Authorization` would stand in the log. An error of
    our own keeps its traceback, once a minute. `now_s` is a monotonic clock.
    """

    def __init__(
        self, logger: logging.Logger = log, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logger, {})
        self._now_s = now_s
        self._since_s: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def debug(self, msg: object, *args: object, **kwargs: object) -> None:
        """Log a malformed request; the library has its commonest kind at this level."""
        self._met(args, kwargs.get("exc_info"))

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """Log a malformed request, or an error of ours."""
        self._met(args, kwargs.get("exc_info"))

    def _met(self, args: tuple[object, ...], error: object) -> None:
        if not isinstance(error, BaseException):
            return
        peer = str(args[0]) if args else ""
        kind = type(error).__name__
        is_ours = not isinstance(error, HttpProcessingError)
        now_s = self._now_s()
        key = self._key(peer, kind, now_s)
        since_s = self._since_s.get(key)
        if since_s is not None and now_s - since_s < 60.0:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return
        self._since_s[key] = now_s
        more = self._left_out.pop(key, 0)
        text = "a request failed" if is_ours else "a malformed request was refused"
        self.logger.log(
            logging.ERROR if is_ours else logging.WARNING,
            "%s peer=%s error=%s not_logged_before=%d",
            text, key[0], kind, more,
            exc_info=error if is_ours else None,
        )  # fmt: skip

    def _key(self, peer: str, kind: str, now_s: float) -> tuple[str, str]:
        key = (peer, kind)
        if key not in self._since_s and len(self._since_s) >= _ADDRESSES:
            for one in [one for one, at_s in self._since_s.items() if now_s - at_s >= 60.0]:
                del self._since_s[one]
                self._left_out.pop(one, None)
            if len(self._since_s) >= _ADDRESSES:
                return (_OTHERS, kind)
        return key
