"""Asks a running collector for its status report."""

from http import HTTPStatus

import aiohttp
import msgspec

from marketfeed.collector.status_report import StatusReport
from marketfeed.errors import MarketfeedError, words_of
from marketfeed.settings.secrets import SecretSource


class NoCollectorError(MarketfeedError):
    """Nobody answers at the status address, or not a collector."""


def status_url(host: str, port: int) -> str:
    """The address at which a collector bound to `host` answers callers on its own host."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is not bound here
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


async def fetch_status(
    url: str, token: SecretSource | None = None, timeout_s: float = 5.0
) -> StatusReport:
    """Fetch the report from `http://host:port` with `token`. Raises NoCollectorError."""
    try:
        known = None if token is None else token.read()
    except OSError as error:
        raise NoCollectorError(f"the status token cannot be read: {error}") from error
    headers = {} if known is None else {"Authorization": f"Bearer {known}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            # The token is for this address and for no other that it may point to.
            session.get(
                url.rstrip("/") + "/status", headers=headers, allow_redirects=False
            ) as response,
        ):
            if response.status == HTTPStatus.UNAUTHORIZED:
                what = (
                    "no other than status.token is taken" if known else "it asks for status.token"
                )
                raise NoCollectorError(f"{url} does not answer: {what}")
            body = await response.read()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NoCollectorError(
            f"no collector answers at {url}, is `marketfeed run` running there? {words_of(error)}"
        ) from error
    try:
        return msgspec.json.decode(body, type=StatusReport)
    except msgspec.DecodeError as error:
        raise NoCollectorError(f"{url} is no collector of this version: {error}") from error
