"""Takes single points out of a bucket: by InfluxQL on 1.x, by `/api/v2/delete` on 2.x."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import aiohttp
import msgspec

from marketfeed.errors import MarketfeedError, words_of
from marketfeed.influxdb.tls import trust_of, with_advice
from marketfeed.influxdb.writer import auth_headers, hide_token
from marketfeed.settings.model import InfluxSettings

TIMEOUT_S: Final = 30.0
_ANSWER_BYTES: Final = 64 * 1024


class EraseError(MarketfeedError):
    """The server did not take a point out, or did not say so: it has to be asked again."""


async def erase(
    settings: InfluxSettings,
    session: aiohttp.ClientSession,
    measurement: str,
    tags: dict[str, str],
    time_ms: int,
) -> None:
    """Take the point of these tags and this time (ms) out of the bucket. Raises EraseError.

    A point that is not there is no error: to ask twice is harmless.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if settings.api == "v1":
                await _by_influxql(settings, session, measurement, tags, time_ms)
            else:
                await _by_delete(settings, session, measurement, tags, time_ms)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise EraseError(f"{settings.url}: {with_advice(words_of(error), settings)}") from error


async def _by_influxql(
    settings: InfluxSettings,
    session: aiohttp.ClientSession,
    measurement: str,
    tags: dict[str, str],
    time_ms: int,
) -> None:
    where = " AND ".join(f'"{name}" = {_quoted(value)}' for name, value in tags.items())
    text = f'DELETE FROM "{measurement}" WHERE {where} AND time = {time_ms}ms'  # noqa: S608
    await _send(settings, session, "/query", {"db": settings.bucket}, {"q": text}, None)


async def _by_delete(
    settings: InfluxSettings,
    session: aiohttp.ClientSession,
    measurement: str,
    tags: dict[str, str],
    time_ms: int,
) -> None:
    named = {"_measurement": measurement} | tags
    body = {
        "start": _rfc3339(time_ms),
        # Exclusive or not by version: no other point of these tags is that near.
        "stop": _rfc3339(time_ms, more_us=100),
        "predicate": " AND ".join(f'{name}="{_escaped(value)}"' for name, value in named.items()),
    }
    params = {"bucket": settings.bucket} | ({"org": settings.org} if settings.org else {})
    await _send(settings, session, "/api/v2/delete", params, None, msgspec.json.encode(body))


async def _send(
    settings: InfluxSettings,
    session: aiohttp.ClientSession,
    path: str,
    params: dict[str, str],
    form: dict[str, str] | None,
    body: bytes | None,
) -> None:
    headers = auth_headers(settings)
    if body is not None:
        headers = {**headers, "Content-Type": "application/json"}
    async with session.post(
        f"{settings.url}{path}",
        params=params,
        data=form if body is None else body,
        headers=headers,
        allow_redirects=False,
        ssl=trust_of(settings),
    ) as answer:
        words = hide_token(await answer.content.read(_ANSWER_BYTES), headers)
        if answer.status not in (200, 204) or b'"error"' in words:
            shown = " ".join(words[:200].decode("utf-8", "replace").split())
            raise EraseError(f"{settings.url}{path}: status {answer.status}: {shown}")


def _quoted(value: str) -> str:
    text = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _rfc3339(time_ms: int, more_us: int = 0) -> str:
    seconds, ms = divmod(time_ms, 1000)
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms * 1000 + more_us:06d}Z"
