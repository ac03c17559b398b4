"""The WebSocket side: connections, their subscriptions, and the fan-out of frames to them.

As on the exchange: a SUBSCRIBE is always ACKed and proves nothing, names are matched exactly, only
`/market` carries klines and mark prices, a 1025th stream or an eleventh message in a second ends the
connection with 1008. A frame is written once, whoever listens, and handed to a connection's transport
together with all others of the same tick, past aiohttp's own (slower) writer.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from marketfeed.simulator.frames import combined_head
from marketfeed.simulator.limits import MESSAGES_PER_SECOND, CountLimit
from marketfeed.simulator.published import PublishedLog
from marketfeed.simulator.venue import ClosedCandle, Event, Stream

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 1_024
MAX_BUFFER_BYTES: Final = 64 * 1024 * 1024
PING_EVERY_S: Final = 180.0
PONG_WITHIN_S: Final = 600.0
_CLOSE_TIMEOUT_S: Final = 1.0
_METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_HANDSHAKES_KEPT: Final = 10_000
# SO_LINGER on, for no time: closing sends RST instead of FIN.
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_TOO_MANY: Final = b'{"error":{"code":4,"msg":"Too many subscriptions"}}'


def text_frame(payload: bytes) -> bytes:
    """Return `payload` as one unmasked WebSocket text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class _Request(msgspec.Struct):
    method: str
    params: list[msgspec.Raw] = []
    id: msgspec.Raw = msgspec.Raw(b"null")


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_name = msgspec.json.Decoder(str).decode


Gate: TypeAlias = Callable[["Connection", str | None, bytes], Sequence[bytes]]
"""The hook for faults: decides what becomes of a frame on its way to a connection.

It is given the connection, the stream (None with answers to requests) and the payload. The payloads
it returns are sent instead, in their order; none at all loses the frame.
"""


class Connection:
    """One client. `combined` wraps frames as `{"stream": …, "data": …}`; an unrouted one gets no data.

    Every frame passes through `send`; `flush` hands what has gathered to the transport.
    """

    def __init__(
        self, number: int, web_socket: web.WebSocketResponse, transport: asyncio.Transport,
        *, combined: bool, routed: bool, max_buffer_bytes: int,
    ) -> None:  # fmt: skip
        self.number = number
        self.web_socket = web_socket
        self.combined = combined
        self.routed = routed
        self.names: dict[str, None] = {}
        self.gate: Gate | None = None
        self.frames_sent = 0
        self.bytes_sent = 0
        self.last_pong_s = time.monotonic()
        self.cut = False
        """Nothing comes in or goes out any more: a fault."""
        self._transport = transport
        self._max_buffer_bytes = max_buffer_bytes
        self._outgoing: list[bytes] = []
        self._messages = CountLimit(MESSAGES_PER_SECOND, 1.0)

    def send(self, stream: str | None, payload: bytes, frame: bytes) -> bool:
        """Take a payload, and the same as a WebSocket frame; return whether it will be sent as it is."""
        if self.cut:
            return False
        if self.gate is None:
            self._outgoing.append(frame)
            return True
        payloads = self.gate(self, stream, payload)
        self._outgoing += [text_frame(changed) for changed in payloads]
        return payload in payloads

    def send_late(self, payload: bytes) -> None:
        """Take a payload that was held back; it does not pass the gate again."""
        if not self.cut:
            self._outgoing.append(text_frame(payload))

    def answer(self, payload: bytes) -> None:
        """Send the answer to a request, at once."""
        self.send(None, payload, text_frame(payload))
        self.flush()

    def flush(self) -> None:
        """Hand everything taken so far to the transport, in one write.

        A client that does not keep up is cut off once its buffer holds more than it may.
        """
        outgoing = self._outgoing
        if not outgoing:
            return
        transport = self._transport
        if not transport.is_closing():
            data = b"".join(outgoing)
            self.frames_sent += len(outgoing)
            self.bytes_sent += len(data)
            transport.write(data)
            if transport.get_write_buffer_size() > self._max_buffer_bytes:
                log.warning("simulator slow_consumer_closed connection=%d", self.number)
                transport.abort()
        outgoing.clear()

    def ping(self) -> None:
        """Send a ping, or cut the connection if it has not answered one for too long (wall time)."""
        if time.monotonic() - self.last_pong_s > PONG_WITHIN_S:
            log.warning("simulator silent_client_closed connection=%d", self.number)
            self.abort()
        elif not self.cut and not self._transport.is_closing():
            # Not aiohttp's ping(): it waits for the buffer to drain, for a slow client without end.
            self._transport.write(b"\x89\x00")

    def may_speak(self) -> bool:
        """Count an incoming message; false when it is one too many in this wall second."""
        return self._messages.allow(time.monotonic())

    def abort(self) -> None:
        """Cut the connection without a word."""
        self._transport.abort()

    def reset(self) -> None:
        """Cut the connection by a TCP reset."""
        tcp = self._transport.get_extra_info("socket")
        if tcp is not None:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        # Nothing more is handed to it, not even before its end has been noticed.
        self.cut = True
        self._transport.abort()

    def cut_cable(self) -> None:
        """Neither read nor write any more, and keep the socket."""
        self.cut = True
        self._outgoing.clear()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def mend_cable(self) -> None:
        """Read and write again; if the client has left meanwhile, that is noticed now."""
        self.cut = False
        """Nothing comes in or goes out any more: a fault."""
        if not self._transport.is_closing():
            self._transport.resume_reading()


class _Heads(dict[str, bytes]):
    """What stands before a stream's data in a combined frame; streams may come later."""

    def __missing__(self, name: str) -> bytes:
        head = self[name] = combined_head(name)
        return head


class Hub:
    """All connections, and who listens to what.

    `streams` are the names that carry frames; `on_subscribed` is called after each subscription to one.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        published: PublishedLog,
        on_subscribed: Callable[[], None] | None = None,
        *,
        max_buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> None:
        self._streams = streams
        self._heads = _Heads()
        self._published = published
        self._on_subscribed = on_subscribed
        self._max_buffer_bytes = max_buffer_bytes
        self._listeners: dict[str, list[Connection]] = {}
        self._connections: dict[int, Connection] = {}
        self._gate: Gate | None = None
        self._gone_frames = self._gone_bytes = 0
        self.connections_opened = 0
        self.handshakes_s: deque[float] = deque(maxlen=_HANDSHAKES_KEPT)
        """When the newest WebSocket requests came, the refused ones too (monotonic wall seconds)."""
        self.on_handshake: Callable[[], web.Response | None] | None = None
        """Called before a WebSocket request is accepted; an answer that it gives refuses it."""
        self.on_open: Callable[[Connection], Awaitable[None]] | None = None
        """Called with a new connection, before anything is read or sent."""
        self.on_publish: Callable[[Event], bool] | None = None
        """Called with each frame that is published; one for which it returns true is not sent now."""

    # --- what there is ----------------------------------------------------------------------------

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Connections that are open."""
        return tuple(self._connections.values())

    @property
    def gate(self) -> Gate | None:
        """The hook for faults: every frame to every connection passes through it."""
        return self._gate

    @gate.setter
    def gate(self, gate: Gate | None) -> None:
        self._gate = gate
        for connection in self._connections.values():
            connection.gate = gate

    @property
    def frames_sent(self) -> int:
        """Frames handed to transports since the start."""
        return self._gone_frames + sum(one.frames_sent for one in self._connections.values())

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to transports since the start, WebSocket headers included."""
        return self._gone_bytes + sum(one.bytes_sent for one in self._connections.values())

    @property
    def streams_wanted(self) -> int:
        """Streams that carry frames and have a listener."""
        return sum(bool(listeners) for listeners in self._listeners.values())

    def listeners(self, name: str) -> int:
        """How many connections listen to a stream that carries frames."""
        return len(self._listeners.get(name, ()))

    # --- fan-out ----------------------------------------------------------------------------------

    def publish(self, events: Sequence[Event]) -> None:
        """Send each frame to those who subscribed, and note down the closing ones."""
        hold = self.on_publish
        if hold is not None:
            events = [event for event in events if not self._is_held(event, hold)]
        self.send(events)

    def _is_held(self, event: Event, hold: Callable[[Event], bool]) -> bool:
        held = hold(event)
        if held and event.closed is not None:
            listeners = self.listeners(event.stream.name)
            self._published.add(event.closed, time.monotonic_ns(), 0, listeners)
        return held

    def send(self, events: Sequence[Event]) -> None:
        """Send each frame to those who subscribed."""
        closed: list[tuple[ClosedCandle, int, int]] = []
        for event in events:
            got = 0
            name = event.stream.name
            listeners = self._listeners.get(name)
            if listeners:
                wrapped = wrapped_frame = plain_frame = b""
                for connection in listeners:
                    if connection.combined:
                        if not wrapped:
                            wrapped = self._heads[name] + event.data + b"}"
                            wrapped_frame = text_frame(wrapped)
                        got += connection.send(name, wrapped, wrapped_frame)
                    else:
                        plain_frame = plain_frame or text_frame(event.data)
                        got += connection.send(name, event.data, plain_frame)
            if event.closed is not None:
                closed.append((event.closed, got, len(listeners or ()) - got))
        sent_ns = time.monotonic_ns()
        for connection in self._connections.values():
            connection.flush()
        for candle, got, withheld in closed:
            self._published.add(candle, sent_ns, got, withheld)

    # --- connections ------------------------------------------------------------------------------

    async def serve(
        self, request: web.Request, *, combined: bool, routed: bool, names: Sequence[str]
    ) -> web.StreamResponse:
        """Answer a WebSocket request until either side closes."""
        self.handshakes_s.append(time.monotonic())
        if self.on_handshake is not None and (refused := self.on_handshake()) is not None:
            return refused
        # Pings and pongs are seen here, so that they count as messages; frames go out uncompressed.
        web_socket = web.WebSocketResponse(
            autoping=False, compress=False, timeout=_CLOSE_TIMEOUT_S, max_msg_size=1 << 20
        )
        await web_socket.prepare(request)
        transport = request.transport
        if transport is None:
            return web_socket
        self.connections_opened += 1
        connection = Connection(
            self.connections_opened, web_socket, transport,
            combined=combined, routed=routed, max_buffer_bytes=self._max_buffer_bytes,
        )  # fmt: skip
        connection.gate = self._gate
        self._connections[connection.number] = connection
        try:
            if self.on_open is not None:
                await self.on_open(connection)
            if await self._subscribe(connection, names):
                await self._listen(connection)
        finally:
            self._forget(connection)
        return web_socket

    async def _listen(self, connection: Connection) -> None:
        web_socket = connection.web_socket
        async for message in web_socket:
            if connection.cut:
                # It was read before the cable was cut.
                continue
            if not connection.may_speak():
                await self._refuse(connection, b"Too many requests")
                return
            if message.type is WSMsgType.PING:
                await web_socket.pong(message.data)
            elif message.type is WSMsgType.PONG:
                connection.last_pong_s = time.monotonic()
            elif message.type is WSMsgType.TEXT:
                await self._request(connection, message.data)

    async def _request(self, connection: Connection, text: str) -> None:
        try:
            request = _decode_request(text)
            names = [_decode_name(name) for name in request.params]
        except msgspec.DecodeError as error:
            connection.answer(_error(3, f"Invalid JSON: {error}", None))
            return
        result = b"null"
        match request.method:
            case "SUBSCRIBE":
                if not await self._subscribe(connection, names):
                    return
            case "UNSUBSCRIBE":
                for name in names:
                    self._unsubscribe(connection, name)
            case "LIST_SUBSCRIPTIONS":
                result = msgspec.json.encode(list(connection.names))
            case unknown:
                expected = ", ".join(f"`{method}`" for method in _METHODS)
                problem = (
                    f"Invalid request: unknown variant `{unknown}`, expected one of {expected}"
                )
                connection.answer(_error(2, problem, bytes(request.id)))
                return
        connection.answer(b'{"result":%b,"id":%b}' % (result, bytes(request.id)))

    async def _subscribe(self, connection: Connection, names: Sequence[str]) -> bool:
        """Subscribe, before the ACK goes out. Returns false if the connection was closed for it."""
        new = [name for name in dict.fromkeys(names) if name not in connection.names]
        if len(connection.names) + len(new) > MAX_STREAMS:
            connection.answer(_TOO_MANY)
            await self._refuse(connection, b"Too many subscriptions")
            return False
        carried = False
        for name in new:
            connection.names[name] = None
            stream = self._streams.get(name)
            if stream is not None and connection.routed:
                self._listeners.setdefault(name, []).append(connection)
                stream.wanted = carried = True
        if carried and self._on_subscribed is not None:
            self._on_subscribed()
        return True

    def _unsubscribe(self, connection: Connection, name: str) -> None:
        connection.names.pop(name, None)
        listeners = self._listeners.get(name)
        if listeners is not None and connection in listeners:
            listeners.remove(connection)
            self._streams[name].wanted = bool(listeners)

    async def _refuse(self, connection: Connection, reason: bytes) -> None:
        self._forget(connection)
        await connection.web_socket.close(code=WSCloseCode.POLICY_VIOLATION, message=reason)

    def _forget(self, connection: Connection) -> None:
        """Drop a connection and its streams; it may be gone already."""
        if self._connections.pop(connection.number, None) is None:
            return
        for name in tuple(connection.names):
            self._unsubscribe(connection, name)
        self._gone_frames += connection.frames_sent
        self._gone_bytes += connection.bytes_sent

    async def keep_pinging(self, every_s: float = PING_EVERY_S) -> None:
        """Ping every connection every so often (wall seconds), for ever."""
        while True:
            await asyncio.sleep(every_s)
            for connection in self.connections:
                connection.ping()

    async def close(self) -> None:
        """Close all connections politely; one that does not answer in time is cut."""
        connections = self.connections
        if connections:
            await asyncio.wait([asyncio.ensure_future(_leave(one)) for one in connections])


async def _leave(connection: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        if not connection.cut:
            await connection.web_socket.close(
                code=WSCloseCode.GOING_AWAY, message=b"simulator stops"
            )
    connection.abort()


def _error(code: int, message: str, request_id: bytes | None) -> bytes:
    error = msgspec.json.encode({"code": code, "msg": message})
    if request_id is None:
        return b'{"error":%b}' % error
    return b'{"error":%b,"id":%b}' % (error, request_id)
