"""One InfluxDB database asked over HTTP: `POST /query`, the errors, and the bytes of the answers.

Connections are kept alive in a deque without locks: a thread takes one or makes one, and gives it back.
After a fork the child drops those it inherited, whose other end belongs to the parent.

Nothing is tried again, with two exceptions: a kept connection that the server has closed meanwhile is
replaced, and who asks by `asked_again` does so where a point lacked some of its fields. A query changes
nothing, so asking twice is harmless.
"""

import contextlib
import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import wraps
from http.client import HTTPException
from typing import Final, NamedTuple, ParamSpec, TypeVar
from urllib.parse import SplitResult, urlencode

import msgspec
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
)

from reader.clock import StoreClock
from reader.errors import ArgumentError, ReaderError, StoreAuthError, StoreUnavailableError
from reader.host import boot_ms
from reader.stores.influx_answers import (
    LAST,
    MSGPACK,
    NOT_EXECUTED,
    UNREADABLE,
    Answers,
    StatementAnswer,
    decode,
    words,
)

CONNECT_S: Final = 5.0
READ_S: Final = 30.0
"""Wall seconds for a connection, and for the server's next bytes."""

AGAIN_S: Final = (0.05, 0.5)
"""Wall seconds after which is asked again for points that are not as a marketfeed writes them."""

P = ParamSpec("P")
T = TypeVar("T")

_KEPT: Final = 8
_DATE_STEP_MS: Final = 1_000
_CLOCK_WITHIN_MS: Final = _DATE_STEP_MS + 4_000
"""Nearer to the server's date than this the host's clock is the finer one."""
_PORTS: Final = {"http": 80, "https": 443}
_NOT_FOUND: Final = (
    "database not found",
    "retention policy not found",
    "default retention policy not set",
    "database name required",
)


class ForeignPointsError(StoreUnavailableError):
    """Points are not as a marketfeed writes them."""


def asked_again(ask: Callable[P, T]) -> Callable[P, T]:
    """`ask`, which is called again where it found points that no marketfeed wrote, as often as `AGAIN_S`.

    An influxd stores the fields of a point one after another: read meanwhile, it lacks some of them.
    """

    @wraps(ask)
    def asked(*args: P.args, **named: P.kwargs) -> T:
        for pause_s in AGAIN_S:
            try:
                return ask(*args, **named)
            except ForeignPointsError:
                time.sleep(pause_s)
        return ask(*args, **named)

    return asked


class Request(NamedTuple):
    """InfluxQL statements, and the values that the server binds in them (`$name` in a statement)."""

    statements: Sequence[str]
    parameters: Mapping[str, str]


class _Answer(NamedTuple):
    status: int
    content_type: str
    location: str
    body: bytes


class InfluxHttp:
    """Asks `database` (a bucket of 2.x) of the server at `url`.

    `url` has a scheme and a host. `token` gives the token as it is now (`user:password` for 1.x), None
    where none is needed; it is asked again when the server refuses one. `read_s` is how long the server
    may keep silent, `ca_file` the certificate of a private authority (PEM). Safe in threads and after a fork.
    """

    def __init__(
        self,
        url: SplitResult,
        database: str,
        token: Callable[[], str | None] = lambda: None,
        *,
        read_s: float = READ_S,
        ca_file: str | None = None,
    ) -> None:
        self._secure = url.scheme == "https"
        self._host = url.hostname or ""
        self._port = url.port or _PORTS[url.scheme]
        self._path = url.path.rstrip("/") + "/query"
        self._address = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
        self._database = database
        self._read_token = token
        self._token = token()
        self._read_s = read_s
        self._ca_file = ca_file
        self._idle: deque[HTTPConnection] = deque()
        self._pid = os.getpid()
        self._closed = False
        self.clock: StoreClock | None = None
        """The server's clock by its last answer; None before, and of one that dates none."""

    @property
    def source(self) -> str:
        """The address that is asked, without secrets."""
        return f"{self._address}/query?{urlencode({'db': self._database})}"

    def close(self) -> None:
        """Close the connections; every later question raises."""
        self._closed = True
        self._drop_idle()

    def ask(
        self, statements: Sequence[str], parameters: Mapping[str, str]
    ) -> list[StatementAnswer]:
        """Ask InfluxQL statements in one request; an answer for each.

        `parameters` are bound by the server (`$name` in a statement). Times are ms.

        Raises StoreUnavailableError, also when any statement failed, and StoreAuthError.
        """
        found = self._query([*statements, LAST], parameters)
        if found.error == NOT_EXECUTED:
            # 1.x answers the failed statement as it does those after it; sent alone it gives the reason.
            alone = (self._query([statement], parameters).error for statement in statements)
            found = found._replace(error=next(filter(None, alone), NOT_EXECUTED))
        if found.error is not None:
            raise self._failed(found.error)
        if len(found.statements) != len(statements) + 1:
            raise self._unavailable(
                "cuts its answers short: set max-row-limit of its [http] section to 0"
            )
        return found.statements[:-1]

    def ask_at_once(self, requests: Sequence[Request]) -> list[list[StatementAnswer]]:
        """`ask` several requests, each on a connection of its own; raises as it does."""
        if len(requests) < 2:
            return [self.ask(*request) for request in requests]
        # Threads of this call alone: none is left that a fork or an exit would have to think of.
        with ThreadPoolExecutor(len(requests) - 1, "marketfeed-reader") as threads:
            others = [threads.submit(self.ask, *request) for request in requests[1:]]
            return [self.ask(*requests[0]), *(other.result() for other in others)]

    def _query(self, statements: Sequence[str], parameters: Mapping[str, str]) -> Answers:
        if self._closed:
            raise ReaderError(f"the reader of {self.source} is closed")
        body = urlencode(
            {
                "db": self._database,
                "q": ";".join(statements),
                "epoch": "ms",
                "params": msgspec.json.encode(parameters),
            }
        ).encode()
        answer = self._post(body)
        if answer.status == 401 and self._has_other_token():
            answer = self._post(body)
        self._judge_status(answer)
        try:
            return decode(answer.content_type, answer.body, self._foreign)
        except UNREADABLE as error:
            raise self._unavailable(
                f"answered with something else than InfluxQL results ({error}); is it an InfluxDB?"
            ) from error

    def _has_other_token(self) -> bool:
        try:
            token = self._read_token()
        except ArgumentError:
            return False
        changed = token != self._token
        self._token = token
        return changed

    # --- what went wrong --------------------------------------------------------------------------

    def _judge_status(self, answer: _Answer) -> None:
        if answer.status == 200:
            return
        message = words(answer.content_type, answer.body)
        text = f"status {answer.status}" + (f": {message}" if message else "")
        match answer.status:
            case 401 | 403:
                raise StoreAuthError(
                    f"InfluxDB {self._address} refused the credentials ({text}); set MARKETFEED_TOKEN or "
                    f"MARKETFEED_TOKEN_FILE to a token that may read bucket {self._database!r}"
                )
            case _ if any(sign in message for sign in _NOT_FOUND):
                raise self._failed(message)
            case 400 | 404:
                raise self._unavailable(
                    f"answered {text}; is it an InfluxDB, and the address right?"
                )
            case status if 300 <= status < 400:
                raise self._unavailable(f"redirects to {answer.location}; use that address")
            case _:
                raise self._unavailable(f"answered {text}; try again later")

    def _failed(self, error: str) -> StoreUnavailableError:
        if any(sign in error for sign in _NOT_FOUND):
            return self._unavailable(
                f"has no bucket or database {self._database!r} that InfluxQL and this token can see "
                f"({error}); check MARKETFEED_BUCKET and the token's rights, or let `marketfeed "
                "setup` create the bucket and its mapping"
            )
        return self._unavailable(f"could not answer: {error}")

    def _foreign(self, what: object) -> StoreUnavailableError:
        found = self._unavailable(
            f"holds points that no marketfeed wrote ({what}); `marketfeed check` says what clashes"
        )
        return ForeignPointsError(str(found))

    def _unavailable(self, text: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"InfluxDB {self._address} {text}")

    # --- connections ------------------------------------------------------------------------------

    def _post(self, body: bytes) -> _Answer:
        connection = self._kept()
        if connection is not None:
            try:
                return self._exchange(connection, body)
            except (ConnectionError, HTTPException):
                # The server closed it while it was idle, and so the others, too.
                self._drop_idle()
            except (HTTPError, OSError) as error:
                raise self._unreachable(error) from error
        try:
            return self._exchange(self._connect(), body)
        except (HTTPError, HTTPException, OSError) as error:
            raise self._unreachable(error) from error

    def _exchange(self, connection: HTTPConnection, body: bytes) -> _Answer:
        headers = {
            "Accept": MSGPACK,
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "marketfeed-reader",
        }
        if self._token is not None:
            headers["Authorization"] = _authorization(self._token)
        asked_ms = boot_ms()
        try:
            connection.request("POST", self._path, body, headers, preload_content=False)
            response = connection.getresponse()
            data = response.read()
        except BaseException:
            connection.close()
            raise
        self._note_date(response.headers.get("Date", ""), asked_ms)
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        if self._closed or len(self._idle) >= _KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        location = response.headers.get("Location", "nowhere")
        return _Answer(response.status, content_type, location, data)

    def _note_date(self, date: str, asked_ms: int) -> None:
        """Take in when the server says that it answered: some time between `asked_ms` and now."""
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            told_ms = int(parsedate_to_datetime(date).timestamp() * 1000)
            now_ms = boot_ms()
            took_ms = now_ms - asked_ms
            # In the middle of its second, and of the way there and back.
            ahead_ms = told_ms + _DATE_STEP_MS // 2 - (asked_ms + took_ms // 2)
            self.clock = StoreClock(ahead_ms, told_ms, _CLOCK_WITHIN_MS + took_ms)

    def _kept(self) -> HTTPConnection | None:
        if self._pid != os.getpid():
            # First the deque, then the number: another thread that sees the number sees an empty one.
            self._drop_idle()
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self) -> HTTPConnection:
        connection = (
            HTTPSConnection(self._host, self._port, timeout=CONNECT_S, ca_certs=self._ca_file)
            if self._secure
            else HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.timeout = self._read_s
        return connection

    def _drop_idle(self) -> None:
        dropped, self._idle = self._idle, deque()
        for connection in dropped:
            connection.close()

    def _unreachable(self, error: Exception) -> StoreUnavailableError:
        found = self._unavailable(
            f"cannot be reached ({self._reason(error)}); does it run, and is MARKETFEED_URL right?"
        )
        refused = isinstance(error, NewConnectionError)
        waited = isinstance(error, TimeoutError | ReadTimeoutError | ConnectTimeoutError)
        return StoreUnavailableError(str(found), silent=waited and not refused)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError | ReadTimeoutError):
            return f"no answer within {self._read_s:g} s"
        if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
            return f"no connection within {CONNECT_S:g} s"
        if "certificate verify failed" in str(error).lower():
            trusted = self._ca_file or "the system's authorities"
            return (
                f"its certificate is not trusted by {trusted}; MARKETFEED_CA_FILE or ca_file= names a "
                "private authority's certificate"
            )
        cause = error.__cause__ if isinstance(error, NewConnectionError) else None
        return getattr(cause, "strerror", None) or str(error) or type(error).__name__


def _authorization(token: str) -> str:
    # Tokens of 2.x hold no colon. What does is a user and password of 1.x, which before 1.8 knows no
    # `Token`.
    if ":" in token:
        return f"Basic {b64encode(token.encode('ascii')).decode('ascii')}"
    return f"Token {token}"
