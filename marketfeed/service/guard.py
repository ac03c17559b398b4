"""Who may ask the status port, and the security headers of every answer.

With a token, everything but `/health` needs it: as `Authorization: Bearer`, or as the password of Basic
authentication, whatever the user's name, which a browser asks its user for. Without one, only a loopback
address answers, and only to a `Host` that is loopback: a page elsewhere whose name has been turned to
127.0.0.1 (DNS rebinding) reads nothing. Pages of other sites are refused whatever they ask for.
"""

import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from marketfeed.counters import Trouble
from marketfeed.settings.addresses import is_loopback
from marketfeed.settings.secrets import SecretSource

log = logging.getLogger(__name__)

HEALTH: Final = "/health"
TRUSTED: Final = web.RequestKey("trusted", bool)
"""Whether the caller may be shown more than that all is well, or not."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ASK: Final = {"WWW-Authenticate": 'Basic realm="marketfeed", charset="UTF-8"'}


class Guard:
    """Stands before a server that listens on `host`; without `token` that has to be a loopback address."""

    def __init__(self, host: str, token: SecretSource) -> None:
        self._loopback = is_loopback(host)
        self._token = token
        self._trouble = Trouble(
            log, "no status token, nobody is let in", "status token is read again", logging.ERROR
        )

    def add_to(self, app: web.Application) -> None:
        """Stand before every route of `app`."""
        app.middlewares.append(self._check)
        app.on_response_prepare.append(_add_headers)

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _of_another_site(request):
            return web.Response(status=403, text="not for pages of other sites\n")
        if not self._token.wanted:
            if not self._loopback:
                # Settings do not allow this; whoever gets around them gets nothing.
                trusted = False
            elif not is_loopback(_host_of(request)):
                return web.Response(status=421, text="ask for 127.0.0.1 or localhost\n")
            else:
                trusted = True
        else:
            trusted = self._knows_token(request)
        if not trusted and request.path != HEALTH:
            return web.Response(status=401, text="the status token is needed\n", headers=_ASK)
        request[TRUSTED] = trusted
        return await handler(request)

    def _knows_token(self, request: web.Request) -> bool:
        presented = _presented_token(request.headers.get("Authorization", ""))
        try:
            token = self._token.read()
            self._trouble.end()
        except OSError as error:
            self._trouble.met(error)
            return False
        if presented is None or token is None:
            return False
        # Of hashes, so that not even the token's length shows in the time.
        return hmac.compare_digest(
            hashlib.sha256(presented).digest(), hashlib.sha256(token.encode()).digest()
        )


def _presented_token(authorization: str) -> bytes | None:
    """The token that a header carries, None if it carries none."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode("utf-8", "surrogateescape")
    credentials = basic_credentials(authorization)
    return None if credentials is None else credentials[1]


def basic_credentials(authorization: str | None) -> tuple[bytes, bytes] | None:
    """Name and password of a header of HTTP Basic, as bytes; None if it is none."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    name, colon, password = text.partition(b":")
    return (name, password) if colon else None


def _host_of(request: web.Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _of_another_site(request: web.Request) -> bool:
    """Whether another site's page asks, by the browser's headers; following a link from there is no harm."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return site not in {"none", "same-origin"} and request.headers.get("Sec-Fetch-Mode") != (
        "navigate"
    )


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
