"""Another InfluxDB in the place of the tests' own: `make test-influx URL=… [TOKEN=…] [ORG=…]`.

It offers what `Influxd` and `Front` do, as far as any server can do it: databases and buckets of a name
that nobody else has, made and deleted again, and what is written and asked there. Whatever else a test wants
of it (a kill, a fault, a right, a limit) skips that test, with the reason. Nothing else is touched there.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn, Self
from urllib.parse import quote as percent
from urllib.parse import urlencode

import pytest
import urllib3
from front import Front
from influxd import Influxd, InfluxdError, quoted

URL, TOKEN, ORG = (f"MARKETFEED_TEST_INFLUX_{name}" for name in ("URL", "TOKEN", "ORG"))

PREFIX: Final = f"marketfeed test {secrets.token_hex(4)} "
"""How all names begin that these tests make: nothing else is dropped."""
NO_SERVER: Final = "asks no server, or one of its own that is scripted"
OF_THE_FRONT: Final = "is about the tests' own front"
FIXED_NAME: Final = "makes a bucket whose name is fixed, or reads one"
_API_V1: Final = "its settings say api v1, and this server is a 2.x"
_UNNAMED: Final = "its reader has no token"
_ALWAYS: Final = {
    "test_front.py": OF_THE_FRONT,
    "test_a_missing_bucket_is_reported_and_set_up": FIXED_NAME,
    "test_a_bucket_that_is_made_later": FIXED_NAME,
    "test_exit_codes_of_the_commands": FIXED_NAME,
}
SKIPPED: Final = {
    # By module or test.
    "1.x": _ALWAYS,
    "2.x": {
        **_ALWAYS,
        **dict.fromkeys(
            (
                *("test_alerts.py", "test_archive_rates_line.py", "test_collected_settlements.py"),
                *("test_contracts_line.py", "test_grafana.py", "test_influx_aggregator.py"),
                *("test_mark_hours.py", "test_mark_hours_collectors.py", "test_two_collectors.py"),
            ),
            _API_V1,
        ),
        **dict.fromkeys(
            (
                "test_a_closed_reader_says_so",
                "test_a_new_token_in_the_file_is_taken_when_the_old_one_is_refused",
                "test_no_thread_is_left_behind",
            ),
            FIXED_NAME,
        ),
        "test_a_bucket_that_does_not_exist": _UNNAMED,
        "test_what_comes_between_two_questions_is_not_missing": _UNNAMED,
    },
}
_ABOUT_DATABASES: Final = re.compile(
    r"\s*(?:CREATE DATABASE|DROP DATABASE|ALTER RETENTION POLICY \w+ ON)\s", re.IGNORECASE
)


def is_asked_for() -> bool:
    """Whether the tests are to run against another server."""
    return bool(os.environ.get(URL))


class Another(Influxd):
    """The server of the environment, as if it were an influxd of the tests. `kind` is `1.x` or `2.x`."""

    def __init__(self) -> None:
        self._url = os.environ[URL].rstrip("/")
        self.token = os.environ.get(TOKEN) or None
        self._http = urllib3.PoolManager(retries=False, timeout=30.0)
        answer = self._http.request("GET", f"{self._url}/ping")
        self.version = answer.headers.get("X-Influxdb-Version", "?")
        is_v2 = self.version.lstrip("v").startswith("2.") or bool(os.environ.get(ORG))
        self.kind = "2.x" if is_v2 else "1.x"
        if is_v2 and self.token is None:
            raise InfluxdError(f"TOKEN: found none, expected an all-access token of {self._url}")
        if not is_v2 and self.token is not None:
            raise InfluxdError(
                f"TOKEN: found one, {self._url} is a 1.x: one without users is needed"
            )
        self.org = self.org_id = ""
        if is_v2:
            named = os.environ.get(ORG)
            found = self.ask("GET", "orgs", **({"org": named} if named else {}))["orgs"]
            if len(found) != 1:
                raise InfluxdError(
                    f"ORG: found {len(found)} organisations, expected the name of one"
                )
            self.org, self.org_id = found[0]["name"], found[0]["id"]

    def __getattribute__(self, name: str) -> Any:
        # What of an influxd is a process, which this one is not for its tests.
        if name in ("start", "stop", "kill", "pause", "resume", "pid", "port"):
            skip(f"influxd.{name}: no server of others is to be stopped")
        return super().__getattribute__(name)

    @property
    def url(self) -> str:
        return self._url

    @property
    def running(self) -> bool:
        return True

    def own_name(self, number: int) -> str:
        """A name for a database that nobody else has, as strange as the server allows."""
        name = f"""{PREFIX}{number} "o'clock", $p0; DROP = 币 &db=x"""
        return name.replace('"', "") if self.kind == "2.x" else name

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        # Somebody may have one of the name that a test gives it.
        name = name if name.startswith(PREFIX) else PREFIX + name
        if self.kind == "1.x":
            with super().database(name):
                yield name
            return
        number = self.add_bucket(name)
        try:
            yield name
        finally:
            self.ask("DELETE", f"buckets/{number}")

    def add_bucket(self, name: str) -> str:
        """Create a bucket of a 2.x server; returns its id."""
        body = {"orgID": self.org_id, "name": name, "retentionRules": []}
        return str(self.ask("POST", "buckets", body)["id"])

    def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Ask the API of a 2.x. Raises InfluxdError."""
        answer = self._http.request(
            method,
            f"{self._url}/api/v2/{path}?{urlencode(query)}",
            body=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._rights()},
        )
        if answer.status >= 300:
            raise InfluxdError(f"{method} {path}: {answer.status} {answer.data[:500]!r}")
        return json.loads(answer.data) if answer.data else None

    def post_lines(self, database: str, lines: bytes, precision: str = "ms") -> tuple[int, bytes]:
        if self.kind == "1.x":
            return super().post_lines(database, lines, precision)
        fields = {"org": self.org, "bucket": database, "precision": precision}
        url = f"{self._url}/api/v2/write?{urlencode(fields)}"
        answer = self._http.request("POST", url, body=lines, headers=self._rights())
        return answer.status, answer.data

    def query(
        self,
        text: str,
        database: str | None = None,
        *,
        user: str | None = None,
        **parameters: str | int,
    ) -> list[dict[str, Any]]:
        if user is not None:
            skip("influxd.query: users are of a server of its own")
        if _ABOUT_DATABASES.match(text) and quoted(PREFIX)[:-1] not in text:
            skip(FIXED_NAME)
        if self.kind == "1.x":
            return super().query(text, database, **parameters)
        if not text.lstrip().upper().startswith(("SELECT", "SHOW", "DELETE")) or "SHARDS" in text:
            skip(f"influxd.query: a 2.x has no {' '.join(text.split()[:2])}")
        fields = {"q": text, "epoch": "ms", "params": json.dumps(parameters)}
        if database is not None:
            fields["db"] = database
        answer = self._http.request(
            "POST",
            f"{self._url}/query",
            fields=fields,
            encode_multipart=False,
            headers=self._rights(),
        )
        body = json.loads(answer.data)
        for found in (body, *body.get("results", ())):
            if error := found.get("error") or found.get("message"):
                raise InfluxdError(f"query: {answer.status} {error}")
        results = body.get("results", ())
        return [series for result in results for series in result.get("series", ())]

    def _rights(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Token {self.token}"}


class _Bucket:
    """A bucket of another server: its settings are not changed by an assignment."""

    def __init__(self, number: str, name: str) -> None:
        self.__dict__.update(id=number, name=name, database=name)

    def __setattr__(self, name: str, value: object) -> None:
        skip(f"front.bucket.{name}: only the tests' front can be set so")


class _Buckets(dict[str, _Bucket]):
    def _skip(self, *_: object) -> NoReturn:
        skip("front.buckets: only the tests' front loses one")

    __setitem__ = __delitem__ = clear = pop = _skip


class AnotherFront(Front):
    """Another server of 2.x as if it were the tests' front; towards a 1.x there is none."""

    def __init__(self, influxd: Another) -> None:
        self.__dict__.update(influxd=influxd, _stack=contextlib.ExitStack())

    def __enter__(self) -> Self:
        influxd = self.__dict__["influxd"]
        if influxd.kind == "2.x":
            name = f"{PREFIX}{secrets.token_hex(4)}"
            number = influxd.add_bucket(name)
            self.__dict__["_stack"].callback(influxd.ask, "DELETE", f"buckets/{number}")
            self.__dict__["buckets"] = _Buckets(market_data=_Bucket(number, name))
        return self

    def __exit__(self, *_: object) -> None:
        self.__dict__["_stack"].close()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name == "expire":
            return super().__getattribute__(name)
        influxd = self.__dict__["influxd"]
        if influxd.kind == "1.x":
            skip("a 1.x server has no /api/v2")
        if name in ("url", "org", "org_id", "token"):
            return getattr(influxd, name)
        if name in ("influxd", "buckets"):
            return self.__dict__[name]
        return skip(f"front.{name}: no other server can be made to do it")

    def __setattr__(self, name: str, value: object) -> None:
        skip(f"front.{name}: no other server can be set so")

    def expire(self, name: str, expiry_s: int) -> None:
        bucket, influxd = self.buckets[name], self.__dict__["influxd"]
        rules = [{"type": "expire", "everySeconds": expiry_s}] if expiry_s else []
        influxd.ask("PATCH", f"buckets/{percent(bucket.id)}", {"retentionRules": rules})


def skip(reason: str) -> NoReturn:
    """Skip a test that wants what another server does not do."""
    pytest.skip(reason)


def skip_what_is_of_the_tests_own(items: Iterable[pytest.Item]) -> None:
    """Mark tests that ask no server; servers that a test starts itself skip it."""

    def own(self: object, *_: object, **__: object) -> None:
        skip(f"{type(self).__name__.lower()} of its own: to stop, to limit or to set otherwise")

    # Before any fixture of a module makes something there.
    named = SKIPPED[Another().kind]
    Influxd.__init__ = Front.__init__ = own  # type: ignore[method-assign]
    for item in items:
        why = named.get(item.path.name) or named.get(getattr(item, "originalname", ""))
        if "influxd" not in getattr(item, "fixturenames", ()):
            why = NO_SERVER
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


def summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests ran against the server, and why the others did not."""
    stats, reasons = terminalreporter.stats, dict[str, int]()
    for report in stats.get("skipped", []):
        *_, words = report.longrepr
        # Hypothesis adds the example to it.
        why = words.removeprefix("Skipped: ").partition("\n")[0]
        reasons[why] = reasons.get(why, 0) + 1
    ran = {name: len(stats.get(name, [])) for name in ("passed", "failed", "error")}
    terminalreporter.section(f"against {os.environ[URL]}")
    counted = ", ".join(f"{count} {name}" for name, count in ran.items())
    terminalreporter.write_line(f"ran: {counted}; skipped: {sum(reasons.values())}")
    for why, count in sorted(reasons.items(), key=lambda one: (-one[1], one[0])):
        terminalreporter.write_line(f"{count:6}  {why}")
