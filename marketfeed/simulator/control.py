"""`/simulator/…`: what demos and tests ask of the simulator beside the exchange's own interface.

GET state · GET published?after=N[&limit=M] · POST pause · POST resume · POST speed (`{"speed": 15}`)
POST listings (one of `listings` as JSON: `ListingChange`)
GET faults · POST faults (one of `fault_kinds` as JSON) · DELETE faults, faults/N
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

from marketfeed.errors import SettingsError
from marketfeed.simulator.fault_kinds import Fault
from marketfeed.simulator.faults import Faults
from marketfeed.simulator.listings import ListingChange


class State(msgspec.Struct, frozen=True):
    """How the simulator stands.

    `lag_ms` is how far the frames are behind `exchange_time_ms` (both exchange time); `cpu_s` the CPU
    seconds of the whole process, `uptime_s` wall seconds. `published` is the last number given.
    """

    exchange_time_ms: int
    start_ms: int
    speed: float
    paused: bool
    pairs: int
    timeframes: tuple[str, ...]
    connections: int
    connections_opened: int
    streams: int
    frames_sent: int
    bytes_sent: int
    published: int
    requests: Mapping[str, int]
    archive_requests: int
    lag_ms: int
    cpu_s: float
    uptime_s: float


class _Speed(msgspec.Struct, forbid_unknown_fields=True):
    speed: float


class Controls(msgspec.Struct, frozen=True):
    """What the control endpoints call: `published` takes a number and an optional limit."""

    state: Callable[[], State]
    published: Callable[[int, int | None], bytes]
    pause: Callable[[], None]
    resume: Callable[[], None]
    set_speed: Callable[[float], None]
    faults: Faults
    change: Callable[[ListingChange], int]


def control_routes(controls: Controls) -> list[web.RouteDef]:
    """Return the routes of `/simulator`."""

    async def state(_: web.Request) -> web.Response:
        return _json(msgspec.json.encode(controls.state()))

    async def published(request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "0"))
            limit = int(request.query["limit"]) if "limit" in request.query else None
        except ValueError:
            return web.Response(
                status=HTTPStatus.BAD_REQUEST, text="after and limit are integers\n"
            )
        return _json(controls.published(after, limit))

    async def pause(_: web.Request) -> web.Response:
        controls.pause()
        return _json(msgspec.json.encode(controls.state()))

    async def resume(_: web.Request) -> web.Response:
        controls.resume()
        return _json(msgspec.json.encode(controls.state()))

    async def set_speed(request: web.Request) -> web.Response:
        try:
            controls.set_speed(msgspec.json.decode(await request.read(), type=_Speed).speed)
        except (msgspec.DecodeError, SettingsError) as error:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        return _json(msgspec.json.encode(controls.state()))

    async def faults(_: web.Request) -> web.Response:
        return _json(msgspec.json.encode(controls.faults.report()))

    async def start_fault(request: web.Request) -> web.Response:
        try:
            fault = _decode_fault(await request.read())
        except msgspec.DecodeError as error:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        return _json(msgspec.json.encode({"number": await controls.faults.start(fault)}))

    async def end_faults(request: web.Request) -> web.Response:
        number = request.match_info.get("number")
        await controls.faults.end(None if number is None else int(number))
        return _json(msgspec.json.encode(controls.faults.report()))

    async def change_listings(request: web.Request) -> web.Response:
        try:
            at_ms = controls.change(_decode_change(await request.read()))
        except (msgspec.DecodeError, SettingsError) as error:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        return _json(msgspec.json.encode({"at_ms": at_ms}))

    return [
        web.post("/simulator/listings", change_listings),
        web.get("/simulator/faults", faults),
        web.post("/simulator/faults", start_fault),
        web.delete("/simulator/faults", end_faults),
        web.delete(r"/simulator/faults/{number:\d{1,15}}", end_faults),
        web.get("/simulator/state", state),
        web.get("/simulator/published", published),
        web.post("/simulator/pause", pause),
        web.post("/simulator/resume", resume),
        web.post("/simulator/speed", set_speed),
    ]


_decode_change = msgspec.json.Decoder(ListingChange).decode
_decode_fault = msgspec.json.Decoder(Fault).decode


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
