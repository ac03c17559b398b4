"""The feeders' API: HTTP as a Freqtrade server speaks it, so that unchanged Freqtrade clients post here.

Bodies and status codes are those of Freqtrade 2026.9 (`facts/freqtrade.md`): 200 `{"status": …}`, 401
`{"detail": "Unauthorized"}`, 422 with a `detail` list. The password is looked at before the body is read;
headers and body may take 5 s each at the most, a body has 16 KB. Connections are bounded (`Connections`): an
order to a bot needs a descriptor, and whoever reaches the port could take them all.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, Self

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from marketfeed import __version__
from marketfeed.aggregator.auth import Caller, Doorkeeper
from marketfeed.aggregator.inbox import Desk, Post, kept_body
from marketfeed.aggregator.metrics import MISSING_ALARM, NOBODY, AggregatorCounters
from marketfeed.aggregator.refused_notes import RefusedNotes
from marketfeed.aggregator.refused_request import Why, no_http, refused_request, sentence_of
from marketfeed.aggregator.signal_body import read_signal
from marketfeed.aggregator.signals import Defaults, Electorate, Refused, SignalMistake
from marketfeed.service import descriptors
from marketfeed.service.connections import Connections, Limits
from marketfeed.service.listen import listen

log = logging.getLogger(__name__)
http_log = logging.getLogger(f"{__name__}.http")

MAX_BODY: Final = 16 * 1024
TIMEOUT_S: Final = 5.0
PREFIX: Final = "/api/v1"
PLACES: Final = 512
"""Connections at once: some feeders post every pair over one of its own, all at a candle's close."""
_KEY: Final = re.compile(r"[!-~]{1,200}")
_CALLER: Final = web.RequestKey("caller", Caller)
_WHY: Final = web.RequestKey("why", Why)
"""Why a request is refused, where whoever refuses it knows more than the status says."""

_CONFIG: Final = {
    "version": __version__,
    "bot_name": "marketfeed aggregator",
    "state": "running",
    "runmode": "live",
    "dry_run": False,
    "trading_mode": "futures",
    "short_allowed": True,
    "force_entry_enable": True,
    "stake_currency": "USDT",
    "stake_amount": "unlimited",
    "max_open_trades": -1,
    "exchange": "binance",
    "strategy": "ensemble",
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Api:
    """Serves the inbox on one address. An async context manager; `url` is its address after entering.

    `health` gives the reasons why the aggregator is not well, if there are any.
    """

    def __init__(
        self,
        host: str,
        port: int,
        desk: Desk,
        doorkeeper: Doorkeeper,
        electorate: Electorate,
        defaults: Defaults,
        whitelist: tuple[str, ...],
        counters: AggregatorCounters,
        health: Callable[[], list[str]],
        notes: RefusedNotes,
    ) -> None:
        self.url = ""
        self._host = host
        self._port = port
        self._desk = desk
        self._doorkeeper = doorkeeper
        self._electorate = electorate
        self._defaults = defaults
        self._whitelist = whitelist
        self._counters = counters
        self._health = health
        self._runner: web.BaseRunner | None = None
        self._descriptors = descriptors.limit()
        places = descriptors.places(PLACES, self._descriptors)
        self._connections = Connections(
            Limits(places, TIMEOUT_S, TIMEOUT_S, of_address=max(places // 2, 1))
        )
        self._handlers: dict[tuple[str, str], Handler] = {}
        """By method and path. A dictionary costs a post a fifth less than `web.Application`."""
        self._notes = notes
        self._malformed = _Malformed(counters, notes)

    async def __aenter__(self) -> Self:
        self._handlers = {("GET", f"{PREFIX}/ping"): _always({"status": "pong"})}
        for name, handler in (
            ("version", _always({"version": __version__})),
            ("health", self._api_health),
            ("show_config", _always(_CONFIG)),
            # Trades are the bots'; a client that looks for open ones finds none here.
            ("status", _always([])),
            ("count", _always({"current": 0, "max": -1, "total_stake": 0.0})),
            (
                "whitelist",
                _always(
                    {
                        "whitelist": self._whitelist,
                        "length": len(self._whitelist),
                        "method": ["StaticPairList"],
                    }
                ),
            ),
        ):
            self._handlers["GET", f"{PREFIX}/{name}"] = self._known(handler)
        for name in ("forceenter", "forcebuy"):
            self._handlers["POST", f"{PREFIX}/{name}"] = self._known(self._forceenter)
        # aiohttp closes a connection whose request line and headers have not come within this time.
        server = web.Server(
            self._outermost,
            access_log=None,
            keepalive_timeout=TIMEOUT_S,
            lingering_time=1.0,
            auto_decompress=False,
            logger=http_log,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=2.0)
        http_log.addFilter(self._malformed)
        # What is no HTTP at all, aiohttp logs as a matter of debugging; the filter lets no such line pass.
        http_log.setLevel(logging.DEBUG)
        self.url = await listen(
            self._runner,
            self._host,
            self._port,
            "aggregator",
            backlog=descriptors.backlog(self._descriptors),
            connections=self._connections,
        )
        log.info("aggregator listening url=%s", self.url)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            http_log.removeFilter(self._malformed)
            http_log.setLevel(logging.NOTSET)

    # --- around every request -------------------------------------------------------------------------

    async def _outermost(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.begin(request)
        try:
            return await self._answer(request)
        finally:
            self._connections.end(connection, known=_CALLER in request)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._handlers.get((method, request.path))
        if handler is not None:
            response = await handler(request)
        elif method == "GET" and ("POST", request.path) not in self._handlers:
            response = _json({"detail": "Not Found"}, 404)
        else:
            # Freqtrade answers a POST to what it does not know with 405.
            response = _json({"detail": "Method Not Allowed"}, 405)
        self._counters.requests[response.status] += 1
        if 400 <= response.status < 500:
            self._note_refused(request, response.status)
        return response

    def _note_refused(self, request: web.BaseRequest, status: int) -> None:
        post = refused_request(
            request,
            status,
            request.get(_WHY),
            request.get(_CALLER),
            self._doorkeeper,
            self._notes.now_ms(),
        )
        if post is not None:
            self._notes.refuse(post)

    def _known(self, handler: Handler) -> Handler:
        """Let only callers in who have shown their password."""

        async def asked(request: web.BaseRequest) -> web.StreamResponse:
            address = request.remote or "?"
            authorization = request.headers.get("Authorization")
            caller = await self._doorkeeper.who(authorization, address)
            if isinstance(caller, Caller):
                request[_CALLER] = caller
                return await handler(request)
            if caller == "wrong":
                self._counters.wrong_passwords += 1
                return _json({"detail": "Unauthorized"}, 401)
            wait_s = self._doorkeeper.wait_s(authorization, address)
            response = _json({"detail": "Too many wrong passwords, try again later"}, 429)
            response.headers["Retry-After"] = str(int(wait_s) + 1)
            return response

        return asked

    # --- a signal -------------------------------------------------------------------------------------

    async def _forceenter(self, request: web.BaseRequest) -> web.StreamResponse:
        caller = request[_CALLER]
        key = request.headers.get("Idempotency-Key")
        if key is not None and not _KEY.fullmatch(key):
            return self._refuse(
                request,
                _mistake("bad_key", "header", "Idempotency-Key", "1 to 200 printable characters"),
            )
        if request.content_length is not None and request.content_length > MAX_BODY:
            return self._too_large(request)
        try:
            body = await _read(request)
        except TimeoutError:
            return self._cut_off(request, 408, "too_slow", "Request body did not come in time")
        except web.RequestPayloadError:
            return self._cut_off(request, 400, "cut_off", "Request body was cut off")
        if len(body) > MAX_BODY:
            return self._too_large(request)
        signal = read_signal(body, self._electorate, self._defaults, caller.feeder)
        if isinstance(signal, Refused):
            return self._refuse(request, signal, body)
        for value in signal.defaulted:
            self._note_missing(request, signal.feeder, value)
        post = Post(signal, caller.username, request.remote or "?", key, kept_body(body))
        reply = await self._desk.post(post)
        if reply.status == 200:
            return _json({"status": reply.text})
        if reply.status == 422:
            reused = _mistake("key_reused", "header", "Idempotency-Key", reply.text)
            return self._refuse(request, reused, body)
        if reply.status == 429:
            request[_WHY] = Why("too_many_windows", reply.text, signal.feeder, body)
        return _json({"error": f"Error querying {request.path}: {reply.text}"}, reply.status)

    def _refuse(
        self, request: web.BaseRequest, refused: Refused, body: bytes | None = None
    ) -> web.StreamResponse:
        self._counters.refused[refused.reason] += 1
        for mistake in refused.mistakes:
            if mistake.reason in ("missing_confidence", "missing_feeder"):
                value = mistake.reason.removeprefix("missing_")
                self._note_missing(request, refused.feeder or NOBODY, value, refused=True)
        sentences = "; ".join(map(sentence_of, refused.mistakes))
        request[_WHY] = Why(refused.reason, sentences, refused.feeder or "", body)
        return _json({"detail": [mistake.plain() for mistake in refused.mistakes]}, 422)

    def _note_missing(
        self, request: web.BaseRequest, feeder: str, value: str, *, refused: bool = False
    ) -> None:
        sender = f"account {request[_CALLER].username} at {request.remote or '?'}"
        lately = self._counters.note_missing(feeder, value, time.monotonic(), sender)
        if refused:
            # It has a line as a refused post.
            return
        log.log(
            logging.ERROR if lately == MISSING_ALARM else logging.WARNING,
            "signal without %s took the default feeder=%s lately=%d",
            value,
            feeder,
            lately,
        )

    def _too_large(self, request: web.BaseRequest) -> web.StreamResponse:
        self._counters.refused["too_large"] += 1
        return self._cut_off(
            request, 413, "too_large", f"Request body is larger than {MAX_BODY} bytes"
        )

    def _cut_off(
        self, request: web.BaseRequest, status: int, reason: str, sentence: str
    ) -> web.StreamResponse:
        """Refuse a body that was not read to its end: what follows on the connection is no request."""
        request[_WHY] = Why(reason, sentence)
        response = _json({"detail": sentence}, status)
        response.force_close()
        return response

    # --- what clients ask besides ---------------------------------------------------------------------

    async def _api_health(self, request: web.BaseRequest) -> web.StreamResponse:
        # Always 200, as a bot's; whether it is well is inside, and in /health of the status port.
        reasons = self._health()
        started_s = self._counters.started_s
        now_s = time.time()
        return _json(
            {
                "last_process": _iso(now_s),
                "last_process_ts": int(now_s),
                "bot_start": _iso(started_s),
                "bot_start_ts": int(started_s),
                "bot_startup": _iso(started_s),
                "bot_startup_ts": int(started_s),
                "healthy": not reasons,
                "reasons": reasons,
            }
        )


class _Malformed(logging.Filter):
    """Has what is no HTTP noted as a refused post, and logged as one.

    aiohttp logs each with a traceback: whoever reaches the port, without a password, could fill the disk.
    """

    def __init__(self, counters: AggregatorCounters, notes: RefusedNotes) -> None:
        super().__init__()
        self._counters = counters
        self._notes = notes

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return record.levelno > logging.DEBUG
        self._counters.refused["malformed"] += 1
        # aiohttp names who sent it.
        address = str(record.args[0]) if isinstance(record.args, tuple) and record.args else "?"
        self._notes.refuse(no_http(address, error, self._notes.now_ms()))
        return False


async def _read(request: web.BaseRequest) -> bytes:
    """The body; of one beyond MAX_BODY what had come when that was seen. Raises TimeoutError."""
    content = request.content
    if content.is_eof():
        # It came with the headers, as most do: a time limit costs more than to read it.
        return content.read_nowait()
    body = bytearray()
    async with asyncio.timeout(TIMEOUT_S):
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await request.writer.drain()
            # As aiohttp's applications do it: the answer has not begun yet.
            request.writer.output_size = 0
        while len(body) <= MAX_BODY and (chunk := await content.readany()):
            body += chunk
    return bytes(body)


def _mistake(reason: str, where: str, name: str, message: str) -> Refused:
    return Refused((SignalMistake(reason, "value_error", (where, name), message),))


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def _always(value: object) -> Handler:
    """What answers with `value`, whatever is asked."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return _json(value)

    return answer


def _iso(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time_s))
