"""Requests that no feeder sends: hostile methods, paths, headers, bodies and framings, drawn at random."""

import asyncio
import contextlib
import json
import random
import string
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from running import LONG, SHORT, Login, basic

ANSWER_S = 30.0
UNFINISHED_S = 0.3
"""What may be no whole request is not waited for."""
TRICKLE_S = 0.2
METHODS = (
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "OPTIONS",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "P\x01",
)
PATHS = (
    "/api/v1/forceenter", "/api/v1/forcebuy", "/api/v1/ping", "/api/v1/status", "/api/v1/show_config",
    "/api/v1/health", "/api/v1/forceenter/", "/api/v1//forceenter", "/api/v1/../../etc/passwd", "/",
    "*", "http://other.example/api/v1/forceenter", "/%00", "/api/v1/%2e%2e/status", "/api/v1/trades?x=%ff",
    "//", "/\u00e9", "/" + "a" * 9_000, "/api/v1/forceenter?" + "b=1&" * 500,
)  # fmt: skip
VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1.5, 10**400, -(10**19), 1e308, "", " ", "NaN", "1e999", "0x10", "١",
    "long", "short", "LONG", "BTC/USDT:USDT", "btc", "75b", "from 73 conf=0.9", "from 73 conf=nan",
    "conf=0.9 " * 800, "\x00", "\ud800", "😀" * 100, "x" * 5_000, "'; DROP TABLE signal;--", [], [[]], {},
    {"pair": "BTC/USDT:USDT"}, ["73"] * 50,
)  # fmt: skip
FIELDS = (
    "pair", "side", "enter_tag", "entry_tag", "feeder_id", "confidence", "price", "entry_price",
    "leverage", "ordertype", "stakeamount", "signal_strength", "__proto__", "",
)  # fmt: skip


class Hostile:
    """Draws requests. `login` is an account that may post: behind the door is where it gets interesting."""

    def __init__(self, seed: int, login: Login) -> None:
        self._random = random.Random(seed)
        self._login = login

    def request(self) -> tuple[bytes, float]:
        """The bytes of one request, whole or not, and how long (s) its answer is waited for."""
        draw = self._random
        kind = draw.random()
        if kind < 0.04:
            return draw.randbytes(draw.randint(1, 300)), UNFINISHED_S
        body = self._body()
        if kind < 0.6:
            return self._head("POST", PATHS[draw.randint(0, 1)], body, honest=True) + body, ANSWER_S
        data = self._head(draw.choice(METHODS), draw.choice(PATHS), body, honest=kind < 0.8) + body
        if kind > 0.95:
            data = data[: draw.randint(0, len(data))]
        elif kind > 0.9:
            place = draw.randrange(len(data))
            data = data[:place] + draw.randbytes(draw.randint(1, 8)) + data[place + 1 :]
        return data, UNFINISHED_S

    def _head(self, method: str, path: str, body: bytes, *, honest: bool) -> bytes:
        draw = self._random
        lines = [f"{method} {path} HTTP/1.1", "Host: x", self._authorization(honest=honest)]
        if honest:
            lines.append(f"Content-Length: {len(body)}")
        else:
            lines[0] = (
                f"{method} {path} {draw.choice(('HTTP/1.1', 'HTTP/1.0', 'HTTP/9.9', '', 'X'))}"
            )
            lines += draw.sample(
                [
                    f"Content-Length: {len(body)}", f"Content-Length: {draw.randint(-2, 10**12)}",
                    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
                    "Content-Encoding: gzip", "Content-Encoding: br", "Expect: 100-continue",
                    "Expect: no", "Connection: upgrade", "Upgrade: websocket", f"X: {'y' * 9_000}",
                    "Content-Type: application/json; charset=nonsense", " folded: line", "no colon",
                    f"Idempotency-Key: {draw.choice(('', 'k', 'x' * 300, 'a b', 'é'))}",
                    *(f"X-{number}: z" for number in range(3)),
                ],
                draw.randint(0, 6),
            )  # fmt: skip
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass")

    def _authorization(self, *, honest: bool) -> str:
        draw = self._random
        if honest or draw.random() < 0.5:
            return f"Authorization: {basic(self._login)['Authorization']}"
        guess = basic((self._login[0], str(draw.random())))["Authorization"]
        return "Authorization: " + draw.choice(
            (guess, "Basic", "Basic ====", "Bearer x", "\u00e9", "")
        )

    def _body(self) -> bytes:
        draw = self._random
        kind = draw.random()
        if kind < 0.05:
            return draw.randbytes(draw.randint(0, 500))
        if kind < 0.1:
            depth = draw.choice((10, 1_000, 8_000, 16_000, 40_000))
            return draw.choice(
                (b"[" * depth, b'{"a":' * depth, b"[" * (depth // 2) + b"]" * (depth // 2))
            )
        if kind < 0.15:
            return draw.choice(
                (b"", b"null", b"1", b'"x"', b"NaN", b'{"pair": NaN}', b"[]", b"{}", b"{" * 3, b"\xff\xfe",
                 b'{"pair":' + b" " * draw.choice((100, 16_000, 17_000)) + b"1}", b'{"a":1,"a":2}'),
            )  # fmt: skip
        side, feeder = draw.choice((("long", draw.choice(LONG)), ("short", draw.choice(SHORT))))
        pair = f"F{draw.randint(1, 300)}/USDT:USDT"
        confidence = round(draw.uniform(0.0, 1.2), 2)
        body: dict[str, object] = {
            "pair": pair,
            "side": side,
            "enter_tag": f"{side} from {feeder} conf={confidence}",
        }
        for _ in range(draw.choice((0, 1, 1, 2, 3, 6))):
            body[draw.choice(FIELDS)] = draw.choice(VALUES)
        if draw.random() < 0.05:
            body["".join(draw.choices(string.printable, k=20))] = draw.choice(VALUES)
        return json.dumps(body, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")


async def assault(
    url: str, hostile: Hostile, count: int, rate: float, parallel: int = 50
) -> Counter[str]:
    """Send `count` requests, each on a connection of its own; returns how often each status came.

    "cut": the server closed without an answer; "silent": it answered nothing for as long as was waited.
    """
    found: Counter[str] = Counter()
    parsed = urlsplit(url)
    room = asyncio.Semaphore(parallel)

    async def one(data: bytes, wait_s: float) -> None:
        status = "cut"
        try:
            async with asyncio.timeout(wait_s):
                reader, writer = await asyncio.open_connection(parsed.hostname, parsed.port)
                try:
                    writer.write(data)
                    line = await reader.readline()
                    if line:
                        status = line.split()[1].decode()
                finally:
                    writer.transport.abort()
        except TimeoutError:
            status = "silent"
        except OSError:
            pass
        found[status] += 1
        room.release()

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await room.acquire()
            group.create_task(one(*hostile.request()))
            await asyncio.sleep(max(started_s + number / rate - time.perf_counter(), 0))
    return found


async def trickle(url: str, data: bytes, ended: Callable[[], bool]) -> int:
    """Write `data` byte by byte, again and again, until `ended`; returns how often it was cut off."""
    parsed, cuts = urlsplit(url), 0
    while not ended():
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(parsed.hostname, parsed.port)
            cut = False
            try:
                for sign in data:
                    # The answer to a cut is not read: its reader is never at the end.
                    cut = reader.at_eof() or writer.is_closing()
                    if cut or ended():
                        break
                    writer.write(bytes([sign]))
                    await writer.drain()
                    await asyncio.sleep(TRICKLE_S)
            except OSError:
                cut = True
            finally:
                cuts += cut
                writer.transport.abort()
    return cuts
