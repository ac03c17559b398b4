"""An InfluxDB 2.x for tests: its routes and its rules for errors, in front of a real influxd 1.6.7.

The lines and queries go through to influxd, which stores and answers them. What 1.x has not is made
here, after the answers of a real 2.7.12 (`tests/data/influxdb_2.7.12_answers.json`, which a test asks of
it): organisations, buckets, tokens and their rights, the InfluxQL mappings, `/api/v2/write` (400 and
nothing stored for a line that does not parse, 422 for lines that were refused while the others were
stored), 429 and 503. And it can be made to fail (`faults`).

It runs in a thread with a loop of its own, so that tests may be synchronous or not.
"""

import asyncio
import itertools
import json
import re
import threading
from base64 import b64decode
from collections import Counter, deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp import web
from front_faults import TOO_LARGE, Answer, Cut, Fault, Partial, Slow
from influxd import Influxd, quoted

from tests.ports import held_port

VERSION = "v2.7.12"
_OURS_BYTES = 2**30
_PRECISIONS = {"": "n", "ns": "n", "us": "u", "ms": "ms", "s": "s"}
_TOO_OLD = re.compile(r"points beyond retention policy dropped=(\d+)")
_NOT_IMPLEMENTED = re.compile(
    r"\s*(CREATE DATABASE|DROP SERIES|SHOW SHARDS|SHOW SERIES CARDINALITY|SELECT .* INTO )",
    re.IGNORECASE,
)
_MAPPED_NAME = re.compile(r"[\w.\- ]+")

# Lines that surely parse, as all of ours are written; influxd itself is asked about any other.
_NAME = r"(?:[^\s\x00-\x1f\x7f,=\\\"#]|\\[,= ])+"
_NUMBER = r"-?\d{1,40}(?:\.\d{1,40})?(?:e[+-]?\d{1,2})?"
_FIELD = rf'{_NAME}=(?:{_NUMBER}|-?\d{{1,18}}i|true|false|"(?:[^"\\\n]|\\["\\])*")'
_PLAIN = re.compile(
    rf"{_NAME}(?:,collector={_NAME},kind={_NAME})?(?:,pair={_NAME})? "
    rf"{_FIELD}(?:,{_FIELD})* (?:\d{{1,12}}|[1-8]\d{{12}})"
)


@dataclass
class Bucket:
    """A bucket; `database` is where influxd keeps it. Points expire after `expiry_s`, 0: never."""

    id: str
    name: str
    database: str
    expiry_s: int = 0


@dataclass
class Rights:
    """What a token may: names of buckets, `*` for all; `manage` to create some, `orgs` to read of orgs."""

    read: frozenset[str] = frozenset("*")
    write: frozenset[str] = frozenset("*")
    manage: bool = True
    orgs: bool = True

    def may(self, names: frozenset[str], bucket: str) -> bool:
        return "*" in names or bucket in names


@dataclass
class Counts:
    """What has come in. `writes` counts requests by the status that they were answered with."""

    writes: Counter[int] = field(default_factory=Counter)
    queries: int = 0
    lines: int = 0
    body_bytes: int = 0
    gzipped: int = 0
    largest_lines: int = 0


class Front:
    """A 2.x server on loopback. A context manager; it keeps its port over `refuse` and `accept`.

    `virtual_mappings`: InfluxQL finds buckets by their name, as since 2.5. `json_only`: answers are JSON
    whatever was asked for, as InfluxDB 3 gives them. `max_body_bytes`: a limit, as some proxies and services
    have one. `old_words`: what is too old is said as up to 2.7.11.
    """

    def __init__(
        self,
        influxd: Influxd,
        *,
        org: str = "fleet",
        token: str = "operator-token",  # noqa: S107 - of a test
        virtual_mappings: bool = True,
        json_only: bool = False,
        max_body_bytes: int | None = None,
        old_words: bool = False,
    ) -> None:
        self.org = org
        self.token = token
        self.tokens = {token: Rights()}
        self.virtual_mappings = virtual_mappings
        self.json_only = json_only
        self.max_body_bytes = max_body_bytes
        self.old_words = old_words
        self.counts = Counts()
        self.buckets: dict[str, Bucket] = {}
        self.mappings: list[dict[str, Any]] = []
        self.port = held_port()
        self.influxd = influxd
        self._faults: deque[Fault | None] = deque()
        self._always: Fault | None = None
        self._numbers = itertools.count(0x0A00_0000_0000_0000)
        self.org_id = self._next_id()
        self._scratch = f"front {id(self):x}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._runner: web.AppRunner | None = None

    # --- what a test sets -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.influxd.query(f"CREATE DATABASE {quoted(self._scratch)}")
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self.influxd.running:
            for name in [self._scratch, *(bucket.database for bucket in self.buckets.values())]:
                self.influxd.query(f"DROP DATABASE {quoted(name)}")

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def add_bucket(self, name: str) -> Bucket:
        """Create a bucket."""
        number = self._next_id()
        # influxd takes no slashes in names.
        bucket = Bucket(number, name, name if not set("/\\") & set(name) else number)
        self.influxd.query(f"CREATE DATABASE {quoted(bucket.database)}")
        self.buckets[name] = bucket
        return bucket

    def expire(self, name: str, expiry_s: int) -> None:
        """Have a bucket keep points for so long (an hour at least), 0: for ever."""
        bucket = self.buckets[name]
        bucket.expiry_s = expiry_s
        duration = f"{expiry_s}s" if expiry_s else "INF"
        # As a server chooses them.
        shard = "1h" if 0 < expiry_s < 2 * 86_400 else "1d" if 0 < expiry_s < 180 * 86_400 else "7d"
        self.influxd.query(
            f"ALTER RETENTION POLICY autogen ON {quoted(bucket.database)} "
            f"DURATION {duration} SHARD DURATION {shard}"
        )

    def fail(self, *faults: Fault | None) -> None:
        """Meet the next writes with these faults, one each; None is none."""
        self._faults.extend(faults)

    def fail_always(self, fault: Fault | None) -> None:
        """Meet all writes with this fault, until it is None again."""
        self._always = fault

    def refuse(self) -> None:
        """Refuse connections, and close those that are open."""
        self._call(self._end())

    def accept(self) -> None:
        """Accept connections again."""
        self._call(self._start())

    # --- the server -------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        application = web.Application(client_max_size=_OURS_BYTES)
        application.add_routes(
            [
                web.get("/ping", self._ping),
                web.get("/health", self._health),
                web.post("/api/v2/write", self._write),
                web.post("/api/v2/delete", self._delete),
                web.route("*", "/query", self._query),
                web.get("/api/v2/orgs", self._orgs),
                web.get("/api/v2/buckets", self._get_buckets),
                web.post("/api/v2/buckets", self._post_bucket),
                web.patch("/api/v2/buckets/{id}", self._patch_bucket),
                web.delete("/api/v2/buckets/{id}", self._delete_bucket),
                web.get("/api/v2/dbrps", self._get_mappings),
                web.post("/api/v2/dbrps", self._post_mapping),
            ]
        )
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def _end(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
            await self._session.close()

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(status=204, headers={"X-Influxdb-Version": VERSION})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "name": "influxdb",
                "message": "ready for queries and writes",
                "status": "pass",
                "checks": [],
                "version": VERSION,
            }
        )

    # --- writing ----------------------------------------------------------------------------------

    async def _write(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()  # unpacked already
        self.counts.body_bytes += request.content_length or len(body)
        self.counts.gzipped += request.headers.get("Content-Encoding") == "gzip"
        fault = self._faults.popleft() if self._faults else self._always
        if isinstance(fault, Answer):
            response = _error(fault.status, fault.code, fault.message)
            if fault.retry_after is not None:
                response.headers["Retry-After"] = fault.retry_after
        elif isinstance(fault, Cut):
            if fault.stored:
                await self._store(request, body)
            self.counts.writes[0] += 1
            return _cut(request)
        else:
            if isinstance(fault, Slow) and fault.where == "storing":
                await asyncio.sleep(fault.seconds)
            response = await self._store(request, body, partial=isinstance(fault, Partial))
            if isinstance(fault, Slow) and fault.where == "answering":
                await asyncio.sleep(fault.seconds)
        self.counts.writes[response.status] += 1
        return response

    async def _store(
        self, request: web.Request, body: bytes, *, partial: bool = False
    ) -> web.Response:
        """Do what a write asks for, by the rules of 2.7."""
        rights = self._rights(request)
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        precision = _PRECISIONS.get(request.query.get("precision", "ns"))
        if precision is None:
            text = "invalid precision; valid precision units are ns, us, ms, and s"
            return _error(400, "invalid", text)
        org, name = request.query.get("org", ""), request.query.get("bucket", "")
        org = org or request.query.get("orgID", "")
        if not org:
            return _error(400, "invalid", "Please provide either orgID or org")
        if org not in (self.org, self.org_id):
            return _error(404, "not found", f'organization name "{org}" not found')
        bucket = self._bucket(name)
        if bucket is None:
            text = f'bucket "{name}" not found' if name else "bucket not found"
            return _error(404, "not found", text)
        if not rights.may(rights.write, bucket.name):
            return _error(403, "forbidden", "insufficient permissions for write")
        if self.max_body_bytes is not None and len(body) > self.max_body_bytes:
            return _error(TOO_LARGE.status, TOO_LARGE.code, TOO_LARGE.message)
        lines = [line for line in body.split(b"\n") if line.strip()]
        if not lines:
            return web.Response(status=204)
        if (refused := await self._first_unparsable(lines, precision)) is not None:
            return _error(400, "invalid", refused)
        if partial:
            lines = lines[:-1]
        status, answer_text = await self._influxd_write(
            bucket.database, b"\n".join(lines), precision
        )
        self.counts.lines += len(lines)
        self.counts.largest_lines = max(self.counts.largest_lines, len(lines))
        if partial:
            answer_text = "partial write: field type conflict: made to fail dropped=1"
        if answer_text.startswith("partial write"):
            answer_text = self._newer_words(answer_text, bucket)
            text = f"failure writing points to database: {answer_text}"
            return _error(422, "unprocessable entity", text)
        if status != 204:
            text = f"unexpected error writing points to database: {answer_text}"
            return _error(500, "internal error", text)
        return web.Response(status=204)

    def _newer_words(self, text: str, bucket: Bucket) -> str:
        """What 1.6 says of points that are too old, as 2.7.12 does."""
        found = _TOO_OLD.search(text)
        if self.old_words or found is None:
            return text
        bound = "of KEY at TIME dropped because it violates a Retention Policy Lower Bound at TIME"
        return (
            f"partial write: dropped {found[1]} points outside retention policy of duration "
            f"{bucket.expiry_s // 3600}h0m0s - oldest point {bound}, newest point {bound} {'.' * 200} "
            f"dropped={found[1]} for database: {bucket.id} for retention policy: autogen"
        )

    async def _first_unparsable(self, lines: Iterable[bytes], precision: str) -> str | None:
        """Why the first line that does not parse does not, in influxd's words."""
        doubtful = [line for line in lines if precision != "ms" or not surely_parses(line)]
        if not doubtful:
            return None
        status, _ = await self._influxd_write(self._scratch, b"\n".join(doubtful), precision)
        # Of several faults influxd names one only: any answer but this leaves the question open.
        if status != 204:
            for line in doubtful:
                _, answer_text = await self._influxd_write(self._scratch, line, precision)
                if answer_text.startswith("unable to parse"):
                    return answer_text
        return None

    async def _influxd_write(self, database: str, body: bytes, precision: str) -> tuple[int, str]:
        query = {"db": database, "precision": precision}
        async with self._session.post(
            f"{self.influxd.url}/write", params=query, data=body
        ) as answer:
            text = await answer.text()
        return answer.status, json.loads(text)["error"] if text else ""

    async def _delete(self, request: web.Request) -> web.Response:
        """Delete by times, both inclusive, and a predicate of equal tags."""
        rights, bucket = self._rights(request), self._bucket(request.query.get("bucket", ""))
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        if bucket is None or not rights.may(rights.write, bucket.name):
            return _error(403, "forbidden", "insufficient permissions to delete")
        wanted = await request.json()
        if re.search(r"=~|\bOR\b", predicate := wanted.get("predicate", "")):
            return _error(400, "invalid", "the logical operator OR is not supported yet")
        condition = f"time >= '{wanted['start']}' AND time <= '{wanted['stop']}'"
        for name, value in re.findall(r'([\w"]+)\s*=\s*"((?:[^"\\]|\\.)*)"', predicate):
            condition += f""" AND {quoted(name.strip('"'))} = '{value}'"""
        text = f"DELETE FROM /.*/ WHERE {condition}"  # noqa: S608 - of tests
        await asyncio.to_thread(self.influxd.query, text, bucket.database)
        return web.Response(status=204)

    # --- reading ----------------------------------------------------------------------------------

    async def _query(self, request: web.Request) -> web.Response:
        self.counts.queries += 1
        rights = self._query_rights(request)
        if rights is None:
            given = request.headers.get("Authorization", "").startswith("Token ")
            return _error(401, "unauthorized", "Unauthorized" if given else "unauthorized access")
        form = {**request.query, **await request.post()}
        text = str(form.get("q", ""))
        if found := _NOT_IMPLEMENTED.match(text):
            return _results({"error": f"not implemented: {found[1].strip().upper()}"})
        readable = {
            name: bucket
            for name, bucket in self._databases().items()
            if rights.may(rights.read, bucket.name)
        }
        if text.strip().upper() == "SHOW DATABASES":
            series = {"name": "databases", "columns": ["name"]}
            if readable:
                series["values"] = [[n] for n in readable]
            return _results({"series": [series]})
        name = str(form.get("db", ""))
        if name not in readable:
            return _results({"error": f"database not found: {name}"})
        if text.strip().upper() == "SHOW RETENTION POLICIES":
            columns = ["name", "duration", "shardGroupDuration", "replicaN", "default"]
            values = [["autogen", "0s", "168h0m0s", 1, True]]
            return _results({"series": [{"columns": columns, "values": values}]})
        form["db"] = readable[name].database
        accept = {"Accept": "" if self.json_only else request.headers.get("Accept", "")}
        async with self._session.post(
            f"{self.influxd.url}/query", data=form, headers=accept
        ) as answer:
            body = await answer.read()
        if answer.status == 400:
            packed = answer.content_type == "application/x-msgpack"
            said = msgspec.msgpack.decode(body) if packed else json.loads(body)
            text = said["error"].removeprefix("error parsing query: ")
            return _error(400, "invalid", f"failed to parse query: {text}")
        if text.lstrip().upper().startswith("DELETE") and b'"error"' not in body:
            return web.json_response({})
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    def _query_rights(self, request: web.Request) -> Rights | None:
        """Those of a token in `Token …`, or as the password of `Basic …`."""
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            return self._rights(request)
        return self.tokens.get(b64decode(rest).decode().partition(":")[2])

    def _databases(self) -> dict[str, Bucket]:
        """What InfluxQL calls the buckets: mappings that were made, and names if they are virtual."""
        names = dict(self.buckets) if self.virtual_mappings else {}
        # InfluxQL takes what follows a slash as a retention policy.
        names = {name: bucket for name, bucket in names.items() if "/" not in name}
        by_id = {bucket.id: bucket for bucket in self.buckets.values()}
        names.update({item["database"]: by_id[item["bucketID"]] for item in self.mappings})
        return names

    # --- organisations, buckets, mappings ---------------------------------------------------------

    async def _orgs(self, request: web.Request) -> web.Response:
        if self._rights(request) is None:
            return _error(401, "unauthorized", "unauthorized access")
        rights = self._rights(request)
        name = request.query.get("org")
        if rights is not None and not rights.orgs:
            return web.json_response({"links": {"self": "/api/v2/orgs"}, "orgs": []})
        if name not in (None, self.org):
            return _error(404, "not found", f'organization name "{name}" not found')
        return web.json_response({"orgs": [{"id": self.org_id, "name": self.org}]})

    async def _get_buckets(self, request: web.Request) -> web.Response:
        rights = self._rights(request)
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        name = request.query.get("name")
        found = [
            self._bucket_body(bucket)
            for bucket in self.buckets.values()
            if name in (None, bucket.name) and rights.may(rights.read, bucket.name)
        ]
        if name is not None and "orgID" in request.query and not found:
            return _error(404, "not found", f'bucket "{name}" not found')
        return web.json_response({"links": {"self": "/api/v2/buckets"}, "buckets": found})

    async def _post_bucket(self, request: web.Request) -> web.Response:
        if (refusal := self._unmanageable(request, "buckets")) is not None:
            return refusal
        wanted = await request.json()
        for is_bad, words in (
            ('"' in wanted["name"], "Bucket names may not include quotation marks"),
            (wanted["name"].startswith("_"), "Buckets may not start with underscore"),
        ):
            if is_bad:
                text = f"bucket name {wanted['name']} is invalid. {words}"
                return _error(400, "invalid", text)
        if wanted["name"] in self.buckets:
            text = f"bucket with name {wanted['name']} already exists"
            return _error(422, "conflict", text)
        bucket = await asyncio.to_thread(self.add_bucket, wanted["name"])
        return web.json_response(self._bucket_body(bucket), status=201)

    async def _patch_bucket(self, request: web.Request) -> web.Response:
        bucket = self._bucket(request.match_info["id"])
        if (refusal := self._unmanageable(request, "buckets")) is not None:
            return refusal
        if bucket is None:
            return _error(404, "not found", "bucket not found")
        rules = (await request.json()).get("retentionRules", [])
        seconds = min((rule["everySeconds"] for rule in rules), default=0)
        await asyncio.to_thread(self.expire, bucket.name, seconds)
        return web.json_response(self._bucket_body(bucket))

    async def _delete_bucket(self, request: web.Request) -> web.Response:
        bucket = self._bucket(request.match_info["id"])
        if (refusal := self._unmanageable(request, "buckets")) is not None:
            return refusal
        if bucket is None:
            return _error(404, "not found", "bucket not found")
        del self.buckets[bucket.name]
        text = f"DROP DATABASE {quoted(bucket.database)}"
        await asyncio.to_thread(self.influxd.query, text)
        return web.Response(status=204)

    async def _get_mappings(self, request: web.Request) -> web.Response:
        rights = self._rights(request)
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        if not {"org", "orgID"} & set(request.query):
            return _error(400, "invalid", "either 'org' or 'orgID' must be provided")
        mapped = {item["database"] for item in self.mappings}
        virtual = [
            self._mapping_body(bucket.id, bucket.id, name, virtual=True)
            for name, bucket in self.buckets.items()
            if self.virtual_mappings and name not in mapped and rights.may(rights.read, name)
        ]
        wanted = {key: request.query[key] for key in ("bucketID", "db") if key in request.query}
        content = [
            item
            for item in [*self.mappings, *virtual]
            if wanted.get("bucketID") in (None, item["bucketID"])
            and wanted.get("db") in (None, item["database"])
        ]
        return web.json_response({"content": content})

    async def _post_mapping(self, request: web.Request) -> web.Response:
        rights = self._rights(request)
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        wanted = await request.json()
        if not _MAPPED_NAME.fullmatch(wanted["database"]):
            words = "database must contain at least one character and only be letters, numbers"
            return _error(400, "invalid", f"DBRP provided is invalid: {words}, '_', '-', and '.'")
        bucket = self._bucket(wanted["bucketID"])
        if bucket is None:
            return _error(404, "not found", "bucket not found")
        if not (rights.may(rights.read, bucket.name) and rights.may(rights.write, bucket.name)):
            text = f"write:orgs/{self.org_id}/buckets/{bucket.id} is unauthorized"
            return _error(401, "unauthorized", text)
        if any(item["database"] == wanted["database"] for item in self.mappings):
            text = "another DBRP mapping with same orgID, db, and rp exists"
            return _error(422, "conflict", text)
        item = self._mapping_body(
            self._next_id(), wanted["bucketID"], wanted["database"], virtual=False
        )
        self.mappings.append(item)
        return web.json_response(item, status=201)

    def _unmanageable(self, request: web.Request, what: str) -> web.Response | None:
        rights = self._rights(request)
        if rights is None:
            return _error(401, "unauthorized", "unauthorized access")
        if not rights.manage:
            text = f"write:orgs/{self.org_id}/{what} is unauthorized"
            return _error(401, "unauthorized", text)
        return None

    def _bucket_body(self, bucket: Bucket) -> dict[str, Any]:
        return {
            "id": bucket.id,
            "orgID": self.org_id,
            "type": "user",
            "name": bucket.name,
            "retentionRules": [{"type": "expire", "everySeconds": bucket.expiry_s}]
            if bucket.expiry_s
            else [],
            "links": {},
        }

    def _mapping_body(
        self, number: str, bucket_id: str, database: str, *, virtual: bool
    ) -> dict[str, Any]:
        return {
            "id": number,
            "database": database,
            "retention_policy": "autogen",
            "default": True,
            "orgID": self.org_id,
            "bucketID": bucket_id,
            "virtual": virtual,
        }

    # --- inside -----------------------------------------------------------------------------------

    def _rights(self, request: web.Request) -> Rights | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self.tokens.get(token) if scheme == "Token" else None

    def _bucket(self, name: str) -> Bucket | None:
        for bucket in self.buckets.values():
            if name in (bucket.name, bucket.id):
                return bucket
        return None

    def _next_id(self) -> str:
        return f"{next(self._numbers):016x}"


def surely_parses(line: bytes) -> bool:
    """Whether a line, with its time in ms, is one of the many that need not be shown to influxd."""
    try:
        return _PLAIN.fullmatch(line.decode()) is not None
    except UnicodeDecodeError:
        return False


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response(
        {"code": code, "message": message},
        status=status,
        headers={"X-Platform-Error-Code": code},
    )


def _results(result: dict[str, Any]) -> web.Response:
    return web.json_response({"results": [{"statement_id": 0, **result}]})


def _cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response(status=500)
