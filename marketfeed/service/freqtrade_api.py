"""A Freqtrade bot's REST API: questions with its password, and what a failure means.

`NotSentError`: not a byte of a request has left this host; any other `BotError`, nobody knows.
"""

import base64
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
import msgspec

from marketfeed.errors import MarketfeedError
from marketfeed.settings.secrets import SecretSource

WORDS_KEPT: Final = 500
CONNECT_S: Final = 2.5
"""What a connection may take; until it stands, nothing has been sent."""
LOOK_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""What is read of an answer to a question."""


class BotError(MarketfeedError):
    """The bot did not answer, or not as a Freqtrade bot does."""


class NotSentError(BotError):
    """Nothing of the request has left this host: it may be tried again."""


class AnsweredError(BotError):
    """The bot answered a question with `status`, and not with what was asked for."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"status {status}: {words}")
        self.status = status

    @property
    def says_no(self) -> bool:
        """Whether it does not know or allow the question: it has been reached, unlike by a gateway's 5xx."""
        return 400 <= self.status < 500


class FreqtradeApi:
    """One bot's API at `url`.

    Its password is read again when the file changes, so that a new one needs no restart.
    """

    def __init__(
        self,
        url: str,
        username: str,
        password: SecretSource,
        timeout_s: float,
        session: aiohttp.ClientSession,
    ) -> None:
        self._base = url if url.endswith("/api/v1") else f"{url}/api/v1"
        self._username = username
        self._session = session
        self._password = password
        # Connecting times out by itself before the whole does: then nothing was sent.
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_s, connect=min(CONNECT_S, timeout_s / 2)
        )

    @property
    def url(self) -> str:
        """Where its API is."""
        return self._base

    async def asked(self, path: str) -> object:
        """The answer to a question that some bots, or what stands before them, deny: None then."""
        try:
            data, _ = await self.get(path, LOOK_ANSWER_BYTES)
        except AnsweredError as error:
            # 401 is to whoever asks, and for that there is a remedy.
            if error.says_no and error.status != 401:
                return None
            raise
        return data

    async def field(self, path: str, name: str, without: object = False) -> object:
        """One field of such an answer; `without` if there is none."""
        data = await self.asked(path)
        return data.get(name, without) if isinstance(data, dict) else without

    async def rows(
        self, path: str, now_ms: Callable[[], int] = lambda: 0
    ) -> tuple[list[object], int]:
        """The list of trades that is answered, and as `get` how far the clock is behind. Raises BotError."""
        data, behind_ms = await self.get(path, LOOK_ANSWER_BYTES, now_ms)
        rows = data.get("trades") if isinstance(data, dict) else data
        if not isinstance(rows, list):
            raise BotError(f"{self._base}/{path}: no list of trades")
        return rows, behind_ms

    async def get(
        self,
        path: str,
        limit: int,
        now_ms: Callable[[], int] = lambda: 0,
        decode: Callable[[bytes], Any] = msgspec.json.decode,
    ) -> tuple[Any, int]:
        """The decoded answer, and how far (ms) the bot's clock is behind this host's. Raises BotError.

        `limit`: bytes that are read of it.
        """
        headers = self.headers()
        try:
            async with self._session.get(
                f"{self._base}/{path}",
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                # Now, not before: of a slow answer, every trade would seem older than it is.
                behind_ms = _behind_ms(response, now_ms())
                body = await read_body(response, limit)
                if response.status != 200:
                    raise AnsweredError(response.status, hide(words_in(body), headers))
                try:
                    return decode(body), behind_ms
                except (msgspec.DecodeError, RecursionError) as error:
                    raise AnsweredError(200, failure_text(error)) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(failure_text(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise BotError(hide(failure_text(error), headers)) from error

    def headers(self) -> dict[str, str]:
        """What a request carries. Raises NotSentError when the password cannot be read."""
        try:
            password = self._password.read() or ""
        except OSError as error:
            raise NotSentError(f"password file cannot be read: {error.strerror}") from error
        pair = f"{self._username}:{password}".encode()
        return {
            "Authorization": f"Basic {base64.b64encode(pair).decode()}",
            "Content-Type": "application/json",
        }


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A body, or its beginning if there is more than `limit` bytes of it."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            # The status is known, and that is what counts.
            break
    return bytes(body)


def decoded(body: bytes) -> object:
    """What stands in a body of JSON; None if it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def words_in(body: bytes) -> str:
    """What a bot answered, in one line: the sentence of its JSON if there is one, else the text."""
    text = body.decode("utf-8", "replace")
    data = decoded(body)
    if isinstance(data, dict):
        if "trade_id" in data:
            text = f"trade {data['trade_id']}"
        else:
            fields = (data.get(key) for key in ("error", "detail", "status"))
            text = next((str(words) for words in fields if words), text)
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= WORDS_KEPT else line[:WORDS_KEPT] + "…"


def hide(words: str, headers: dict[str, str]) -> str:
    """Words of an answer, without the password that was sent."""
    secret = headers["Authorization"].removeprefix("Basic ")
    return words.replace(secret, "***")


def failure_text(error: BaseException) -> str:
    """Why there was no answer, in words."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _behind_ms(response: aiohttp.ClientResponse, now_ms: int) -> int:
    try:
        date = parsedate_to_datetime(response.headers["Date"])
        return now_ms - int(date.timestamp() * 1000) - 500
    except (KeyError, ValueError, TypeError, OverflowError):
        return 0
