"""Faults on demand: what the simulated exchange does wrong, on request.

`Faults.start` takes one of `fault_kinds`; it ends by itself when its time is over or it has struck often
enough, or by `end`. What a fault costs costs nothing while there is none: the hooks are empty then.
What was published stays the truth: each closing candle records from how many listeners it was withheld.
"""

import asyncio
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from marketfeed.simulator.fault_kinds import (
    OVERSIZE_BYTES,
    ActiveFault,
    Close,
    ConnectionFault,
    Drop,
    Fault,
    FaultReport,
    HalfOpen,
    HangRest,
    Lack,
    Lag,
    Mute,
    MuteConnection,
    Refuse,
    RefuseRest,
    ShiftClock,
    ShiftStamps,
    ShrinkExchangeInfo,
    Spoil,
    StopListening,
)
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.rest import Rest
from marketfeed.simulator.sockets import Connection, Hub
from marketfeed.simulator.venue import Event

_STAMP: Final = re.compile(rb'"E":(\d+)')
_MARK: Final = b'"e":"markPriceUpdate"'
_CLOSING: Final = b'"x":true'
_NO_JSON: Final = b"\x00\x01\x1b\x7f\xfe\xff"
_GARBLED_BYTES: Final = 24
_HELD_BACK: Final = 8


class _Active:
    """A fault at work: when it ends, how often it struck, and what it keeps meanwhile."""

    def __init__(self, number: int, fault: Fault, now_ms: int) -> None:
        self.number = number
        self.fault = fault
        self.until_ms = None if fault.for_s is None else now_ms + round(fault.for_s * 1_000)
        self.struck = 0
        self.over = asyncio.Event()
        self.connections: dict[int, Connection] = {}
        """Those that it has struck, of a fault that lasts."""

    def over_at(self, now_ms: int) -> bool:
        return self.until_ms is not None and now_ms >= self.until_ms

    def may_strike(self) -> bool:
        return self.fault.count is None or self.struck < self.fault.count

    def pass_on(
        self, connection: Connection, stream: str | None, payloads: Sequence[bytes]
    ) -> Sequence[bytes]:
        """Return what becomes of the payloads of one frame. Faults of frames override this."""
        return () if connection.number in self.connections else payloads

    def finish(self) -> None:
        """Let go of what was kept."""
        self.over.set()
        for connection in self.connections.values():
            if isinstance(self.fault, HalfOpen):
                connection.mend_cable()


class _Muting(_Active):
    def __init__(self, number: int, fault: Mute, now_ms: int, opened: int) -> None:
        super().__init__(number, fault, now_ms)
        self._above = opened if fault.new_connections else 0
        self._mute = fault
        self._frame: bytes | None = None
        self._lost = False

    def pass_on(
        self, connection: Connection, stream: str | None, payloads: Sequence[bytes]
    ) -> Sequence[bytes]:
        if not payloads or connection.number <= self._above or not self._mute.concerns(stream):
            return payloads
        # One object serves all connections that listen: a frame is lost to all of them, or to none.
        if payloads[0] is not self._frame:
            self._frame = payloads[0]
            self._lost = self.may_strike() and (
                not self._mute.closing_only or _CLOSING in payloads[0]
            )
            self.struck += self._lost
        return () if self._lost else payloads


class _Spoiling(_Active):
    def __init__(self, number: int, fault: Spoil, now_ms: int) -> None:
        super().__init__(number, fault, now_ms)
        self._spoil = fault
        self._random = random.Random(fault.seed)
        # Of each connection the payloads held back, and how many others have to pass first.
        self._held: dict[Connection, list[tuple[int, bytes]]] = {}

    def pass_on(
        self, connection: Connection, stream: str | None, payloads: Sequence[bytes]
    ) -> Sequence[bytes]:
        if not payloads or stream is None:
            return payloads
        passed = list(payloads)
        if (
            self._spoil.concerns(stream)
            and self.may_strike()
            and self._random.random() < self._spoil.share
        ):
            self.struck += 1
            passed = self._spoiled(connection, passed)
        if self._held:
            passed += self._let_go(connection)
        return passed

    def _spoiled(self, connection: Connection, payloads: list[bytes]) -> list[bytes]:
        draw = self._random
        match self._spoil.how:
            case "duplicate":
                return payloads + payloads
            case "reorder":
                behind = draw.randint(1, _HELD_BACK) + 1
                held = self._held.setdefault(connection, [])
                held += [(behind, payload) for payload in payloads]
                return []
            case "garble":
                return [_garbled(payload, draw) for payload in payloads]
            case "truncate":
                return [payload[: int(draw.random() * len(payload))] for payload in payloads]
            case "oversize":
                return [payload[:-1] + b" " * OVERSIZE_BYTES + payload[-1:] for payload in payloads]

    def _let_go(self, connection: Connection) -> list[bytes]:
        held = [(behind - 1, payload) for behind, payload in self._held.pop(connection, ())]
        still = [one for one in held if one[0] > 0]
        if still:
            self._held[connection] = still
        return [payload for behind, payload in held if behind <= 0]

    def finish(self) -> None:
        super().finish()
        for connection, held in self._held.items():
            for _, payload in held:
                connection.send_late(payload)
            connection.flush()


class _Restamping(_Active):
    def __init__(self, number: int, fault: ShiftStamps, now_ms: int) -> None:
        super().__init__(number, fault, now_ms)
        self._shift = fault

    def pass_on(
        self, connection: Connection, stream: str | None, payloads: Sequence[bytes]
    ) -> Sequence[bytes]:
        if not payloads or not self._shift.concerns(stream) or not self.may_strike():
            return payloads
        self.struck += 1
        return [_STAMP.sub(self._later, payload) for payload in payloads]

    def _later(self, stamp: re.Match[bytes]) -> bytes:
        return b'"E":%d' % (int(stamp[1]) + self._shift.offset_ms)


class _Lacking(_Active):
    def __init__(self, number: int, fault: Lack, now_ms: int) -> None:
        super().__init__(number, fault, now_ms)
        self._lack = fault
        self._value = re.compile(rb'"%s":("[^"]*"|[0-9]+),' % fault.key.encode())
        instead = {"empty": b'"%s":"",', "null": b'"%s":null,', "absent": b""}[fault.how]
        self._instead = instead % fault.key.encode() if instead else b""

    def pass_on(
        self, connection: Connection, stream: str | None, payloads: Sequence[bytes]
    ) -> Sequence[bytes]:
        if not payloads or not self._lack.concerns(stream) or not self.may_strike():
            return payloads
        self.struck += 1
        return [
            self._value.sub(self._instead, payload) if _MARK in payload else payload
            for payload in payloads
        ]


class _Lagging(_Active):
    def __init__(self, number: int, fault: Lag, now_ms: int, hub: Hub) -> None:
        super().__init__(number, fault, now_ms)
        self._lag = fault
        self._hub = hub
        self._late: deque[Event] = deque()

    @property
    def is_holding(self) -> bool:
        return bool(self._late)

    def hold(self, event: Event) -> bool:
        if not self._lag.concerns(event.stream.name) or not self.may_strike():
            return False
        self.struck += 1
        # The candle that it closes is published by now.
        self._late.append(msgspec.structs.replace(event, closed=None))
        return True

    def let_go(self, reached_ms: int) -> None:
        """Send what is as late as it was to be."""
        since_ms = reached_ms - round(self._lag.by_s * 1_000)
        due = []
        while self._late and self._late[0].time_ms <= since_ms:
            due.append(self._late.popleft())
        if due:
            self._hub.send(due)

    def finish(self) -> None:
        super().finish()
        self._hub.send(self._late)


def _garbled(payload: bytes, draw: random.Random) -> bytes:
    # Nothing is left of it if another fault has cut it off.
    start = int(draw.random() * len(payload))
    end = min(start + draw.randint(1, _GARBLED_BYTES), len(payload))
    return payload[:start] + bytes(draw.choices(_NO_JSON, k=end - start)) + payload[end:]


class Faults:
    """The faults of one simulated exchange.

    `listed` gives the contracts of exchangeInfo, `now_ms` gives exchange time, `listen` opens and closes the
    listening socket.
    """

    def __init__(
        self,
        hub: Hub,
        rest: Rest,
        listed: Callable[[], Sequence[Instrument]],
        now_ms: Callable[[], int],
        listen: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._hub = hub
        self._rest = rest
        self._listed = listed
        self._now_ms = now_ms
        self._listen = listen
        self._active: dict[int, _Active] = {}
        self._framewise: list[_Active] = []
        self._last_number = 0

    @property
    def active(self) -> list[ActiveFault]:
        """The faults at work, the oldest first."""
        return [
            ActiveFault(one.number, one.fault, one.until_ms, one.struck)
            for one in self._active.values()
        ]

    def report(self) -> FaultReport:
        """The faults at work, and the connections that they could strike."""
        return FaultReport(self.active, [one.number for one in self._hub.connections])

    async def start(self, fault: Fault) -> int:
        """Start a fault and return its number."""
        self._last_number += 1
        active = _make(self._last_number, fault, self._now_ms(), self._hub)
        self._active[active.number] = active
        match fault:
            case MuteConnection() | HalfOpen() | Drop() | Close():
                await self._strike_open(active, fault)
        await self._set_hooks()
        return active.number

    async def end(self, number: int | None = None) -> None:
        """End the fault of that number, None all; unknown ones have ended before."""
        for active in tuple(self._active.values()):
            if number in (None, active.number):
                self._finish(active)
        await self._set_hooks()

    async def tick(self, reached_ms: int) -> None:
        """End what is over once the market has come to `reached_ms`. Called again and again.

        The clock may be ahead of the market on a busy machine: frames that are still to come are struck, too.
        """
        for active in self._active.values():
            if isinstance(active, _Lagging):
                active.let_go(reached_ms)
        over = [one for one in self._active.values() if one.over_at(reached_ms) or self._spent(one)]
        for active in over:
            self._finish(active)
        if over:
            await self._set_hooks()

    # --- inside -----------------------------------------------------------------------------------

    def _spent(self, active: _Active) -> bool:
        """Whether a fault has nothing left to do, and keeps nothing up either."""
        if isinstance(active, _Lagging) and active.is_holding:
            return False
        match active.fault:
            case Mute() | Spoil() | ShiftStamps() | Lack() | Lag() | Refuse() | RefuseRest():
                return not active.may_strike()
            case Drop() | Close() as fault:
                return fault.connections not in ("new", "all") or not active.may_strike()
        return False

    def _finish(self, active: _Active) -> None:
        self._active.pop(active.number, None)
        active.finish()

    async def _set_hooks(self) -> None:
        actives = list(self._active.values())
        faults = [one.fault for one in actives]
        self._framewise = [
            one
            for one in actives
            if isinstance(one.fault, Mute | Spoil | ShiftStamps | Lack | MuteConnection)
        ]
        hub, rest = self._hub, self._rest
        hub.gate = self._gate if self._framewise else None
        lagging = [one for one in actives if isinstance(one, _Lagging)]
        hub.on_publish = (
            (lambda event: any(one.hold(event) for one in lagging)) if lagging else None
        )
        hub.on_handshake = self._refusal if _any(faults, Refuse) else None
        opening = any(
            isinstance(f, ConnectionFault) and f.connections in ("new", "all") for f in faults
        )
        hub.on_open = self._strike_new if opening else None
        await self._listen(not _any(faults, StopListening))
        rest.on_request = self._rest_fault if _any(faults, RefuseRest, HangRest) else None
        rest.clock_shift_ms = sum(f.offset_ms for f in faults if isinstance(f, ShiftClock))
        shrinking = [f for f in faults if isinstance(f, ShrinkExchangeInfo)]
        rest.list_only(_shrunk(self._listed(), shrinking[-1]) if shrinking else None)

    def _gate(self, connection: Connection, stream: str | None, payload: bytes) -> Sequence[bytes]:
        payloads: Sequence[bytes] = (payload,)
        for active in self._framewise:
            payloads = active.pass_on(connection, stream, payloads)
        return payloads

    async def _strike_open(self, active: _Active, fault: ConnectionFault) -> None:
        if fault.connections == "new":
            return
        for connection in self._hub.connections:
            if fault.connections in ("open", "all", connection.number) and active.may_strike():
                await self._strike(active, connection)

    async def _strike_new(self, connection: Connection) -> None:
        for active in tuple(self._active.values()):
            fault = active.fault
            if (
                isinstance(fault, ConnectionFault)
                and fault.connections in ("new", "all")
                and active.may_strike()
            ):
                await self._strike(active, connection)

    async def _strike(self, active: _Active, connection: Connection) -> None:
        active.struck += 1
        match active.fault:
            case MuteConnection():
                active.connections[connection.number] = connection
            case HalfOpen():
                active.connections[connection.number] = connection
                connection.cut_cable()
            case Drop():
                connection.reset()
            case Close(code=code):
                await connection.web_socket.close(code=code)

    def _refusal(self) -> web.Response | None:
        for active in self._active.values():
            if isinstance(active.fault, Refuse) and active.may_strike():
                active.struck += 1
                return web.Response(status=active.fault.status, text="refused by a fault\n")
        return None

    async def _rest_fault(self, endpoint: str) -> web.Response | None:
        for active in tuple(self._active.values()):
            fault = active.fault
            if not (
                isinstance(fault, RefuseRest | HangRest)
                and fault.concerns(endpoint)
                and active.may_strike()
            ):
                continue
            active.struck += 1
            if isinstance(fault, RefuseRest):
                return _refused(fault)
            await active.over.wait()
        return None


def _make(number: int, fault: Fault, now_ms: int, hub: Hub) -> _Active:
    match fault:
        case Mute():
            return _Muting(number, fault, now_ms, hub.connections_opened)
        case Lag():
            return _Lagging(number, fault, now_ms, hub)
        case Spoil():
            return _Spoiling(number, fault, now_ms)
        case Lack():
            return _Lacking(number, fault, now_ms)
        case ShiftStamps():
            return _Restamping(number, fault, now_ms)
    return _Active(number, fault, now_ms)


def _any(faults: Sequence[Fault], *kinds: type) -> bool:
    return any(isinstance(fault, kinds) for fault in faults)


def _shrunk(listed: Sequence[Instrument], fault: ShrinkExchangeInfo) -> list[Instrument]:
    draw = random.Random(fault.seed)
    gone = set(draw.sample(range(len(listed)), round(len(listed) * fault.share)))
    return [instrument for at, instrument in enumerate(listed) if at not in gone]


def _refused(fault: RefuseRest) -> web.Response:
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    if fault.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.IM_A_TEAPOT):
        # As on the exchange; 403 and 5xx come from what stands before it, and are no JSON.
        message = "Way too many requests; IP banned. Please use the websocket for live updates."
        return web.Response(
            status=fault.status,
            body=msgspec.json.encode({"code": -1003, "msg": message}),
            content_type="application/json",
            headers=headers,
        )
    return web.Response(status=fault.status, text=f"{fault.status} refused\n", headers=headers)
