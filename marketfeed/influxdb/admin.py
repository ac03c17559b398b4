"""What `check` and `setup` ask an InfluxDB: is it there, may we, does what it holds fit the schema.

Questions about data are InfluxQL over `/query`, which 1.x, 2.x and 3 answer; organisations, buckets and
mappings of 2.x are influxdb-client's, imported only when needed (its import takes a third of a second).
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.errors import MarketfeedError, words_of
from marketfeed.influxdb.answers import Verdict
from marketfeed.influxdb.expiry import Expiry
from marketfeed.influxdb.tls import trust_of, with_advice
from marketfeed.influxdb.writer import InfluxWriter, auth_headers, hide_token, token_of
from marketfeed.settings.model import InfluxSettings

if TYPE_CHECKING:
    from influxdb_client import Bucket, InfluxDBClient

TIMEOUT_S: Final = 10.0
_ID: Final = re.compile(r"[0-9a-f]{16}")
_TYPES: Final = {float: "float", int: "integer", str: "string", bool: "boolean"}


class InfluxError(MarketfeedError):
    """InfluxDB did not answer, or with an error. The text names what to do.

    `refused`: it has answered, with a status (4xx) that means that nothing was done.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.refused = status is not None and 400 <= status < 500


class UnreadableError(InfluxError):
    """The token may not read the bucket, or InfluxQL does not know it (a mapping is missing)."""


class StatementError(InfluxError):
    """The server has answered, and not this question: a field of another type, say."""


class Clash(msgspec.Struct, frozen=True):
    """Something in the bucket that does not fit what will be written there, and what it leads to.

    `refuses`: it hurts what is written from now on, not only what old panels show.
    """

    measurement: str
    text: str
    refuses: bool = True


class ResultSeries(msgspec.Struct):
    """A series of an answer; `partial`: the server has left rows of it out."""

    name: str = ""
    tags: dict[str, str] = {}
    columns: list[str] = []
    values: list[list[Any]] = []
    partial: bool = False


class _Result(msgspec.Struct):
    series: list[ResultSeries] = []
    error: str = ""


class _Answer(msgspec.Struct):
    results: list[_Result] = []
    error: str = ""
    message: str = ""


_TAGS: Final[Mapping[str, frozenset[str]]] = {
    schema.FEED_GAP: frozenset({"pair", "kind", "collector"}),
    schema.FEED_COVERAGE: frozenset({"pair", "collector"}),
    schema.SIGNAL: frozenset({"pair", "side", "feeder"}),
    schema.ENSEMBLE: frozenset({"pair", "side", "primary"}),
}
"""Measurement -> its tags; all others have `pair` alone."""


def expected_fields(
    timeframes: Sequence[str], *, aggregator: bool = False
) -> dict[str, Mapping[str, type]]:
    """Measurement -> fields, of all that a collector of these timeframes writes, or an aggregator too."""
    expected: dict[str, Mapping[str, type]] = dict(schema.MEASUREMENT_FIELDS)
    for timeframe in timeframes:
        expected[schema.ohlcv_measurement(timeframe)] = schema.CANDLE_FIELDS
        expected[schema.forming_measurement(timeframe)] = schema.CANDLE_FIELDS
    expected[schema.FEED_COVERAGE] = {
        name: int for timeframe in timeframes for name in schema.coverage_fields(timeframe)
    } | {schema.SETTLED_TO: int, schema.LIVES: str}
    if aggregator:
        expected |= schema.AGGREGATOR_FIELDS
    return expected


class InfluxAdmin:
    """Asks one InfluxDB, as the settings name it. Raises InfluxError."""

    def __init__(self, settings: InfluxSettings, session: aiohttp.ClientSession) -> None:
        if settings.url is None:
            raise ValueError("influxdb.url: found null, expected an address")
        self._settings = settings
        self._url = settings.url
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)

    async def version(self) -> str:
        """The server's version, by `/ping`."""
        try:
            async with self._session.get(
                self._url + "/ping", timeout=self._timeout, ssl=trust_of(self._settings)
            ) as answer:
                await answer.read()
                if answer.status >= 400:
                    raise InfluxError(
                        f"{self._url}/ping: status {answer.status}: is it an InfluxDB?"
                    )
                return answer.headers.get("X-Influxdb-Version", "unknown")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def query(self, text: str, db: str | None = None, **bound: str) -> list[ResultSeries]:
        """Run InfluxQL statements of ours (no foreign text in it, but as `bound` to $names); their series."""
        params = {"q": text, "epoch": "ms"}
        if bound:
            params["params"] = msgspec.json.encode(bound).decode()
        if db is not None:
            params["db"] = db
        status, body = await self._ask("GET", params)
        try:
            parsed = msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError:
            parsed = _Answer(error=body[:200].decode("utf-8", "replace"))
        failure = parsed.error or next((r.error for r in parsed.results if r.error), "")
        if status != 200 or failure:
            words = failure or parsed.message
            unreadable = status in (401, 403, 404) or words.startswith("database not found")
            answered = StatementError if status in (200, 400) else InfluxError
            raise (UnreadableError if unreadable else answered)(
                f"{self._url}/query: status {status}: {words}"
            )
        return [series for result in parsed.results for series in result.series]

    async def _ask(self, method: str, params: dict[str, str]) -> tuple[int, bytes]:
        """Send InfluxQL; returns the status and the body of the answer."""
        try:
            headers = auth_headers(self._settings)
            async with self._session.request(
                method,
                self._url + "/query",
                params=params,
                headers=headers,
                timeout=self._timeout,
                ssl=trust_of(self._settings),
            ) as answer:
                return answer.status, hide_token(await answer.read(), headers)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> InfluxError:
        return InfluxError(f"{self._url}: {with_advice(words_of(error), self._settings)}")

    async def may_write(self) -> Verdict:
        """Try a write without any line: the rights are looked at before the lines are."""
        return await InfluxWriter(self._settings, self._session).write([""])

    async def databases(self) -> list[str]:
        """Names that InfluxQL knows: databases of 1.x, mappings of 2.x."""
        return [str(row[0]) for item in await self.query("SHOW DATABASES") for row in item.values]

    async def keeps_ms(self) -> int | None:
        """For how long the bucket keeps points, by the time they bear; None: for ever.

        Raises InfluxError where this token may not see it.
        """
        found = await Expiry(self._settings, self._session).keeps_ms()
        if found is None:
            raise InfluxError(f"{self._url}: this token does not see the bucket")
        return found or None

    async def create_database(self) -> None:
        """Create the bucket's database on 1.x."""
        name = self._settings.bucket.replace("\\", "\\\\").replace('"', '\\"')
        status, body = await self._ask("POST", {"q": f'CREATE DATABASE "{name}"'})
        if status != 200 or b'"error"' in body:
            words = body[:200].decode("utf-8", "replace")
            raise InfluxError(f"the database was not created: status {status}: {words}", status)

    async def clashes(self, timeframes: Sequence[str], *, aggregator: bool = False) -> list[Clash]:
        """Compare field types and tag keys of what the bucket holds with what will be written."""
        found: list[Clash] = []
        expected = expected_fields(timeframes, aggregator=aggregator)
        for series in await self.query("SHOW FIELD KEYS", self._settings.bucket):
            fields = expected.get(series.name, {})
            for name, held in series.values:
                wanted = _TYPES[fields[name]] if name in fields else held
                if held != wanted:
                    text = (
                        f'field "{name}" is {held} there and {wanted} here: the server would refuse '
                        "every new point of it; write to a new bucket (influxdb.bucket), or delete "
                        "the measurement (what the journal has of it comes back by itself)"
                    )
                    found.append(Clash(series.name, text))
        for series in await self.query("SHOW TAG KEYS", self._settings.bucket):
            if series.name not in expected:
                continue
            allowed = _TAGS.get(series.name, frozenset({"pair"}))
            extra = sorted(str(row[0]) for row in series.values if row[0] not in allowed)
            if extra:
                text = (
                    f"points there have the extra tags {', '.join(extra)}: each series would be split "
                    "in two, panels and readers would see both; write to a new bucket, or delete the "
                    "measurement (what the journal has of it comes back by itself)"
                )
                found.append(Clash(series.name, text))
        found += await self._old_predicted_rates()
        return found

    async def _old_predicted_rates(self) -> list[Clash]:
        text = 'SELECT max("predicted_rate") FROM "funding_rate"'
        try:
            series = await self.query(text, self._settings.bucket)
        except InfluxError as error:
            # Of another type (a clash that is reported already), or too many to look at in time.
            words = f'"predicted_rate" of an older writer could not be looked at: {error}'
            return [Clash(schema.FUNDING_RATE, words, refuses=False)]
        highest = [row[-1] for item in series for row in item.values]
        if highest and isinstance(highest[0], int | float) and highest[0] > 1:
            words = (
                f'"predicted_rate" reaches {highest[0]}: an older writer stored the estimated settle '
                "price there; panels over old days show prices instead of rates"
            )
            return [Clash(schema.FUNDING_RATE, words, refuses=False)]
        return []

    # --- 2.x: organisation, bucket, mapping ---------------------------------------------------------

    async def is_there(self) -> bool:
        """Whether the organisation has the bucket on 2.x, whatever this token may do with it.

        Only a write is told apart by organisation for a token that may not read organisations: a list of
        buckets holds those of others, too.
        """
        verdict = await self.may_write()
        if verdict.action in ("retryable", "throttled"):
            raise InfluxError(f"{self._url}: {verdict.text}")
        if not verdict.text.startswith("status 404"):
            return True
        if "organization" in verdict.text:
            raise InfluxError(
                f"influxdb.org: the server has no organisation {self._settings.org!r} ({verdict.text})",
                404,
            )
        return False

    async def org_id(self) -> str:
        """The organisation's id on 2.x; a name needs the right to read organisations."""
        return await asyncio.to_thread(self._org_id)

    async def create_bucket(self, org_id: str) -> None:
        """Create the bucket on 2.x, without an expiry."""
        await asyncio.to_thread(self._create_bucket, org_id)

    async def create_mapping(self) -> None:
        """Create the InfluxQL mapping (DBRP) of the bucket on 2.x."""
        await asyncio.to_thread(self._create_mapping)

    def _client(self) -> "InfluxDBClient":
        from influxdb_client import InfluxDBClient  # noqa: PLC0415 - imported only when needed

        return InfluxDBClient(
            self._url,
            token=token_of(self._settings) or "",
            org=self._settings.org,
            timeout=int(TIMEOUT_S * 1000),
            ssl_ca_cert=None if self._settings.ca_file is None else str(self._settings.ca_file),
        )

    def _org_id(self) -> str:
        org = self._settings.org or ""
        if _ID.fullmatch(org):
            return org
        with _errors_as_ours(self._settings), self._client() as client:
            found = client.organizations_api().find_organizations(org=org)
        if not found:
            # Answered so to a token without read:orgs, whatever the name.
            raise InfluxError(
                f"{self._url}: this token may not read organisations, so the id of {org!r} is not known: set "
                "influxdb.org to its id (16 hexadecimal digits, in the address of InfluxDB's page), or give "
                "the token the right to read organisations",
                403,
            )
        return str(found[0].id)

    def _bucket(self) -> "Bucket":
        """The bucket as this token sees it."""
        org, name = self._settings.org or "", self._settings.bucket
        with _errors_as_ours(self._settings), self._client() as client:
            buckets = client.buckets_api()
            found = buckets.find_buckets(name=name).buckets or []
            if len({bucket.org_id for bucket in found}) > 1:
                # Of several organisations; an id is needed to tell which.
                wanted = self._org_id()
                found = [bucket for bucket in found if bucket.org_id == wanted]
            if not found or (_ID.fullmatch(org) and found[0].org_id != org):
                raise InfluxError(
                    f"{self._url}: this token does not see the bucket {name!r}: it needs the right to read it"
                )
            return found[0]

    def _create_bucket(self, org_id: str) -> None:
        from influxdb_client import Bucket  # noqa: PLC0415 - imported only when needed

        with _errors_as_ours(self._settings), self._client() as client:
            client.buckets_api().create_bucket(
                bucket=Bucket(name=self._settings.bucket, org_id=org_id, retention_rules=[])
            )

    def _create_mapping(self) -> None:
        from influxdb_client import DBRPCreate  # noqa: PLC0415 - imported only when needed
        from influxdb_client.service.dbr_ps_service import DBRPsService  # noqa: PLC0415

        bucket = self._bucket()
        with _errors_as_ours(self._settings), self._client() as client:
            DBRPsService(client.api_client).post_dbrp(
                dbrp_create=DBRPCreate(
                    org_id=bucket.org_id,
                    bucket_id=bucket.id,
                    database=self._settings.bucket,
                    retention_policy="autogen",
                    default=True,
                )
            )


@contextlib.contextmanager
def _errors_as_ours(settings: InfluxSettings) -> Iterator[None]:
    """Turn influxdb-client's errors into ours: its own show the whole answer with all headers."""
    try:
        yield
    except InfluxError:
        raise
    except Exception as error:
        status = getattr(error, "status", None)
        words = str(getattr(error, "message", None) or type(error).__name__)
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError):
            words = cause.strerror or words
        else:
            words = hide_token(words.encode(), auth_headers(settings)).decode()
        place = f"status {status}: " if status else ""
        text = f"{settings.url}: {place}{' '.join(words[:200].split())}"
        raise InfluxError(text, status) from None
