"""For how long a bucket keeps points, asked of the server."""

import re
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.influxdb.tls import trust_of
from marketfeed.influxdb.writer import auth_headers
from marketfeed.settings.model import InfluxSettings

TIMEOUT_S: Final = 3.0
"""Live rows wait for the answer."""
_ID: Final = re.compile(r"[0-9a-f]{16}")


class _Rule(msgspec.Struct, rename="camel"):
    every_seconds: int = 0


class _Bucket(msgspec.Struct, rename="camel"):
    name: str
    org_id: str = ""
    retention_rules: list[_Rule] = []


class _Buckets(msgspec.Struct):
    buckets: list[_Bucket] = []


class _Series(msgspec.Struct):
    columns: list[str] = []
    values: list[list[str | int | bool | None]] = []


class _Result(msgspec.Struct):
    series: list[_Series] = []


class _Results(msgspec.Struct):
    results: list[_Result] = []


class Expiry:
    """Asks the server of the settings, on a session of the caller's."""

    def __init__(self, settings: InfluxSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session

    async def keeps_ms(self) -> int | None:
        """For how long the bucket keeps points, by the times they bear: ms, 0 for ever.

        None where it cannot be seen: no answer, no right to read the bucket, two of its name.
        """
        is_v2 = self._settings.api == "v2"
        try:
            return await (self._of_bucket() if is_v2 else self._of_policy())
        except (
            aiohttp.ClientError,
            OSError,
            TimeoutError,
            msgspec.DecodeError,
            RecursionError,
        ):
            return None

    async def _of_bucket(self) -> int | None:
        org, name = self._settings.org or "", self._settings.bucket
        params = {"name": name} | ({"orgID": org} if _ID.fullmatch(org) else {})
        body = await self._get("/api/v2/buckets", params)
        found = [
            one for one in msgspec.json.decode(body, type=_Buckets).buckets if one.name == name
        ]
        if len(found) != 1:
            return None
        return min((rule.every_seconds for rule in found[0].retention_rules), default=0) * 1000

    async def _of_policy(self) -> int | None:
        # On 2.x it says 0s whatever the expiry is.
        params = {"q": "SHOW RETENTION POLICIES", "db": self._settings.bucket}
        answer = msgspec.json.decode(await self._get("/query", params), type=_Results)
        for series in (one for result in answer.results for one in result.series):
            for row in series.values:
                policy = dict(zip(series.columns, row, strict=False))
                if policy.get("default") and "duration" in policy:
                    return duration_ms(str(policy["duration"]))
        return None

    async def _get(self, path: str, params: Mapping[str, str]) -> bytes:
        async with self._session.get(
            f"{self._settings.url}{path}",
            params=params,
            headers=auth_headers(self._settings),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ssl=trust_of(self._settings),
            allow_redirects=False,
        ) as answer:
            return await answer.read() if answer.status == 200 else b"{}"


def duration_ms(text: str) -> int:
    """What Go writes of a duration, such as 720h0m0s, in ms; 0s is none."""
    units = {"h": schema.HOUR_MS, "m": schema.MINUTE_MS, "s": schema.SECOND_MS}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))
