"""What is noted of a request that was refused: who sent it, what it was, and why.

No header and no body is kept: either may hold a secret. Of the body there is the digest, of the
Authorization header the name if it is an account's or spelled like one, of the path what is made of plain
words.
"""

import hashlib
import re
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from marketfeed.aggregator.auth import Caller, Doorkeeper
from marketfeed.aggregator.refused_posts import MAX_NAME, MAX_SENTENCE, Identity, RefusedPost
from marketfeed.aggregator.signals import SignalMistake

_PATH: Final = re.compile(r"(/[a-z_]{1,16}|/v[0-9]){1,4}")
"""A path that may be shown: words alone. A webhook's may hold its secret."""
_ELSEWHERE: Final = "(another path)"
LONG_NAME: Final = 8
"""Characters from which on a name that is none shows its first two."""
_LOGIN: Final = "/token/login"
_SIGNALS: Final = ("/forceenter", "/forcebuy")
_QUESTIONS: Final = ("GET", "HEAD", "OPTIONS")


class Why(NamedTuple):
    """Why a request is refused: a short name, and a sentence. `feeder` is who it seems to be from.

    `body` is None when none was read.
    """

    reason: str
    sentence: str
    feeder: str = ""
    body: bytes | None = None


class _Tried(NamedTuple):
    account: str
    identity: Identity
    why: Why


def refused_request(
    request: web.BaseRequest,
    status: int,
    why: Why | None,
    caller: Caller | None,
    doorkeeper: Doorkeeper,
    now_ms: int,
) -> RefusedPost | None:
    """What is noted of it; None: nothing, as it is a question that sends no signal and tries no password.

    `caller` is None when no password was shown.
    """
    tried = _tried(request, doorkeeper)
    if why is None and status in (401, 429):
        why = tried.why if status == 401 else Why("limited", "too many wrong passwords")
    is_question = request.method in _QUESTIONS
    if why is None and status in (404, 405):
        if is_question and not request.path.endswith(_SIGNALS):
            return None
        why = Why("no_such_address", _no_such_address(request))
    if why is None or (is_question and tried.identity == "none"):
        return None
    body = why.body
    return RefusedPost(
        account=tried.account if caller is None else caller.username,
        identity=tried.identity if caller is None else "shown",
        address=(request.remote or "?")[:MAX_NAME],
        feeder=why.feeder[:MAX_NAME],
        request=f"{_plain(request.method, 10)} {_shown(request.path)}",
        status=status,
        reason=why.reason,
        sentence=_plain(why.sentence, MAX_SENTENCE),
        digest=b"" if body is None else hashlib.sha256(body).digest(),
        body_bytes=None if body is None else len(body),
        first_ms=now_ms,
        last_ms=now_ms,
    )


def sentence_of(mistake: SignalMistake) -> str:
    """A mistake of a body in words that name its field."""
    field, text = mistake.loc[-1], mistake.message
    if mistake.reason == "not_json" and mistake.context:
        text = f"{text}: {mistake.context.get('error', '')}"
    return text if isinstance(field, int) or field in text else f"{field}: {text}"


def no_http(address: str, error: HttpProcessingError, now_ms: int) -> RefusedPost:
    """What is noted of bytes that are no HTTP: as when a client speaks TLS to a plain port."""
    what = f"no HTTP that can be read ({type(error).__name__})"
    if "HTTPS" in error.message:
        # aiohttp's words for the first bytes of TLS.
        what += ": is it https:// to a port without TLS?"
    return RefusedPost(
        account="",
        identity="none",
        address=address[:MAX_NAME],
        feeder="",
        request="",
        status=400,
        reason="malformed",
        sentence=what,
        digest=b"",
        body_bytes=None,
        first_ms=now_ms,
        last_ms=now_ms,
    )


def _tried(request: web.BaseRequest, doorkeeper: Doorkeeper) -> _Tried:
    """As whom the caller tried to be let in, and why that fails."""
    authorization = request.headers.get("Authorization")
    found = doorkeeper.named_in(authorization)
    if found is None:
        what = "no name and password" if not authorization else "the header is not of HTTP Basic"
        sentence = f"{what}: expected HTTP Basic, of one of aggregator.accounts"
        return _Tried("", "none", Why("no_password", sentence))
    name = _plain(found.name.decode(errors="backslashreplace"), MAX_NAME)
    if found.known:
        return _Tried(name, "claimed", Why("wrong_password", "wrong password"))
    if found.swapped:
        # Then it is the password that stands as the name.
        what = "an account's name stands as the password: name and password may be swapped"
        return _Tried("", "unknown", Why("swapped", what))
    # A token, or a password, may stand in the name's place.
    shown = "" if found.alone else name if found.alike else _beginning(found.name)
    return _Tried(shown, "unknown", Why("unknown_account", "no account of this name"))


def _beginning(name: bytes) -> str:
    """By what its sender knows it again, and nobody else what it is."""
    text = name.decode(errors="backslashreplace")
    begins = _plain(text[:2], 2) if len(text) >= LONG_NAME else ""
    return f"{begins}… ({len(text)} characters)"


def _no_such_address(request: web.BaseRequest) -> str:
    if request.path.endswith(_LOGIN):
        return "no login by token (JWT) here: every request shows name and password (HTTP Basic)"
    return "nothing takes this here: signals go to POST /api/v1/forceenter"


def _shown(path: str) -> str:
    return path if _PATH.fullmatch(path) else _ELSEWHERE


def _plain(text: str, at_most: int) -> str:
    """The text without what would move a terminal's cursor, and cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= at_most else text[: at_most - 1] + "…"
