"""One POST of lines to InfluxDB: `/api/v2/write` (2.x, 3) or `/write` (1.x). Returns its meaning."""

import asyncio
import logging
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from marketfeed.influxdb.answers import Verdict, judge, judge_failure
from marketfeed.influxdb.tls import trust_of, with_advice
from marketfeed.settings.addresses import is_loopback
from marketfeed.settings.model import InfluxSettings
from marketfeed.settings.secrets import SecretSource

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
_ANSWER_BYTES: Final = 64 * 1024


class InfluxWriter:
    """Writes to the bucket of the settings, on a session of the caller's. Never raises for an answer.

    A token from `token_file` is read again whenever the file changes, so that a new one needs no restart.
    """

    def __init__(self, settings: InfluxSettings, session: aiohttp.ClientSession) -> None:
        if settings.url is None:
            raise ValueError("influxdb.url: found null, expected an address")
        self.target = target_of(settings)
        self._settings = settings
        self._session = session
        if settings.api == "v2":
            self._url = f"{settings.url}/api/v2/write"
            self._params = {"bucket": settings.bucket, "precision": "ms"}
            if settings.org:
                self._params["org"] = settings.org
        else:
            self._url = f"{settings.url}/write"
            self._params = {"db": settings.bucket, "precision": "ms"}
        self._compress = not is_loopback(urlsplit(settings.url).hostname or "")
        self._token = SecretSource(settings.token, settings.token_file)

    async def write(self, lines: list[str]) -> Verdict:
        """Send lines in one request; at most `TIMEOUT_S` wall seconds."""
        body = "\n".join(lines).encode()
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if self._compress:
            # A third of the size for a few ms, off the event loop (zlib gives Python's lock up).
            body = await asyncio.to_thread(_gzip, body)
            headers["Content-Encoding"] = "gzip"
        try:
            token = self._token.read()
        except OSError as error:
            return Verdict("misconfigured", f"token file cannot be read: {error.strerror}")
        if token:
            headers["Authorization"] = authorization(token, self._settings.api)
        try:
            async with self._session.post(
                self._url,
                params=self._params,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
                ssl=trust_of(self._settings),
            ) as response:
                # The first bytes hold the error's message; no more than that is wanted.
                answer = hide_token(await response.content.read(_ANSWER_BYTES), headers)
                return judge(response.status, answer, response.headers, time.time())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError)
            verdict = judge_failure(error, connected=connected)
            words = hide_token(verdict.text.encode(), headers).decode()
            return msgspec.structs.replace(verdict, text=with_advice(words, self._settings))


def target_of(settings: InfluxSettings) -> str:
    """Server and bucket, without secrets: what has been shipped is remembered by it."""
    return f"{settings.url} {settings.org or '-'} {settings.bucket}"


def authorization(token: str, api: str) -> str:
    """The header's value for a token of the settings.

    With 1.x it is `user:password`, which versions before 1.8 know as `Basic` alone; /api/v2/write of 1.8
    takes it as a token, and 2.x takes nothing else.
    """
    if api == "v1" and ":" in token:
        return f"Basic {b64encode(token.encode()).decode()}"
    return f"Token {token}"


def hide_token(words: bytes, headers: Mapping[str, str]) -> bytes:
    """What a server answered, without the token that it was sent: some errors repeat a request's headers."""
    scheme, _, sent = headers.get("Authorization", "").partition(" ")
    secrets = [sent.encode()]
    if scheme == "Basic":
        given = b64decode(sent)
        secrets += [given, given.partition(b":")[2]]
    for secret in secrets:
        words = words.replace(secret, b"***") if secret else words
    return words


def auth_headers(settings: InfluxSettings) -> dict[str, str]:
    """The header with the token of the settings as it is now, or none. Raises OSError."""
    token = token_of(settings)
    return {"Authorization": authorization(token, settings.api)} if token else {}


def token_of(settings: InfluxSettings) -> str | None:
    """The token of the settings as it is now. Raises OSError."""
    return SecretSource(settings.token, settings.token_file).read()


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
