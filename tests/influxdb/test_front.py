"""The front answers writes by the rules of 2.x, and fails as it is set to; influxd is the judge of lines."""

import gzip
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3
from front import Front, Rights, surely_parses
from front_faults import (
    FORBIDDEN,
    NOT_FOUND,
    SERVER_ERROR,
    TOO_LARGE,
    UNAUTHORIZED,
    UNAVAILABLE,
    Answer,
    Cut,
    Partial,
    Slow,
    too_many,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from influxd import Influxd

from marketfeed.influxdb import line_protocol as lines

T = 1_767_225_600_000
# What a real 2.7.12 answered, word for word.
RECORDED = json.loads(
    (Path(__file__).parents[1] / "data" / "influxdb_2.7.12_answers.json").read_bytes()
)
GOOD = [f"m,pair=BTC/USDT:USDT open={n}.5,trades={n}i {1_700_000_000_000 + n}" for n in range(5)]


def post(front: Front, *lines: str, **more: str) -> urllib3.BaseHTTPResponse:
    return post_body(front, "\n".join(lines).encode(), **more)


def post_body(front: Front, body: bytes, **more: str) -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": f"Token {more.pop('token', front.token)}"}
    if body[:2] == b"\x1f\x8b":
        headers["Content-Encoding"] = "gzip"
    query = urlencode({"org": front.org, "bucket": "market_data", "precision": "ms"} | more)
    url = f"{front.url}/api/v2/write?{query}"
    return urllib3.request("POST", url, body=body, headers=headers, retries=False)


def stored(front: Front) -> list[float]:
    bucket = front.buckets["market_data"]
    series = front.influxd.query("SELECT open FROM m", bucket.database)
    return [value for each in series for _, value in each["values"]]


@pytest.fixture
def recorded_front(influxd: Influxd) -> Iterator[Front]:
    """The buckets and tokens of the recording."""
    with Front(influxd) as server:
        for name in ("gz", "short"):
            server.add_bucket(name)
        server.expire("short", 3600)
        none: frozenset[str] = frozenset()
        gz = frozenset({"gz"})
        server.tokens |= {
            "operator": Rights(),
            "read-only": Rights(gz, none, manage=False, orgs=False),
            "write-only": Rights(none, gz, manage=False, orgs=False),
            "another bucket's": Rights(
                frozenset({"x"}), frozenset({"x"}), manage=False, orgs=False
            ),
        }
        now_ms = time.time_ns() // 1_000_000
        good = f"mark_price,pair=A/USDT:USDT mark_price=1.5 {now_ms - 1}"
        assert post(server, good, bucket="gz").status == 204
        yield server


def said(answer: bytes) -> object:
    """What a body says: without the server's links, times, ids and positions in a text."""
    if not answer.strip():
        return None
    body = json.loads(answer)
    body.pop("links", None)
    if message := body.get("message"):
        message = message.split(" - oldest point")[0].split(", expected")[0]
        return body["code"], re.sub(r"orgs/\w+", "orgs/ORGID", message.split(" at line")[0])
    return json.loads(re.sub(r"\b1[67]\d{11}\b", "0", json.dumps(body)))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["case"])
def test_the_front_answers_as_a_real_one_did(recorded_front: Front, case: dict[str, Any]) -> None:
    front = recorded_front
    now_ms = time.time_ns() // 1_000_000
    old_ms = now_ms - 86_400_000

    def of_here(text: str) -> str:
        # Times of the recording's own days first: ours may look like them.
        text = re.sub(r"\b1795\d{9}\b", "LATER_OLD_MS", re.sub(r"\b1796\d{9}\b", "NOW_MS", text))
        text = text.replace("LATER_OLD_MS", str(old_ms + 1))
        text = text.replace("NOW_MS", str(now_ms)).replace("OLD_MS", str(old_ms))
        return text.replace("ec5b53cc4f85041f", front.org_id).replace("ORGID", front.org_id)

    headers = {"Accept": "application/x-msgpack"} if "msgpack" in case["case"] else {}
    if case["token"] is not None:
        scheme = "Bearer" if "Bearer" in case["case"] else "Token"
        headers["Authorization"] = f"{scheme} {case['token']}"
    query = urlencode({name: of_here(value) for name, value in case["params"].items()})
    answer = urllib3.request(
        case["method"],
        f"{front.url}{case['path']}?{query}",
        body=of_here(case["body"]).encode() if case["body"] else None,
        headers=headers,
        retries=False,
    )
    assert answer.status == case["status"]
    assert said(answer.data) == said(case["answer"].encode())


def test_good_lines_are_stored(front: Front) -> None:
    assert post(front, *GOOD).status == 204
    assert post_body(front, gzip.compress("\n".join(GOOD).encode())).status == 204
    assert stored(front) == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert (front.counts.writes[204], front.counts.gzipped, front.counts.lines) == (2, 1, 10)


@pytest.mark.parametrize(
    "bad",
    [
        "m,pair=A open=nan 1",
        "m,pair=A",
        "m open=1 x",
        "m,pair= open=1 1",
        "m open=1e400 1",
        "m open= 1",
    ],
)
def test_one_line_that_does_not_parse_costs_all(front: Front, bad: str) -> None:
    answer = post(front, *GOOD[:2], bad, *GOOD[2:])
    assert answer.status == 400
    assert answer.json()["code"] == "invalid"
    assert answer.json()["message"].startswith("unable to parse '")
    assert stored(front) == []


def test_one_line_of_another_type_costs_itself(front: Front) -> None:
    assert post(front, GOOD[0]).status == 204
    answer = post(front, *GOOD[1:3], 'm,pair=A open="text" 1700000000009', *GOOD[3:])
    assert answer.status == 422
    assert answer.json()["code"] == "unprocessable entity"
    assert "partial write: field type conflict" in answer.json()["message"]
    assert stored(front) == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_what_is_wrong_with_a_request(front: Front) -> None:
    front.tokens["reader"] = Rights(write=frozenset())
    for more, status in (
        ({"token": "wrong"}, 401),
        ({"token": "reader"}, 403),
        ({"org": "other"}, 404),
        ({"bucket": "other"}, 404),
        ({"precision": "hours"}, 400),
    ):
        assert post(front, *GOOD, **more).status == status
    assert post(front, "").status == 204
    front.max_body_bytes = 100
    assert post(front, *GOOD).status == 413
    assert stored(front) == []


@pytest.mark.parametrize(
    "fault",
    [UNAUTHORIZED, FORBIDDEN, NOT_FOUND, TOO_LARGE, SERVER_ERROR, UNAVAILABLE, too_many("7")],
)
def test_it_fails_as_it_is_asked_to_and_then_no_more(front: Front, fault: Answer) -> None:
    front.fail(fault)
    answer = post(front, *GOOD)
    assert (answer.status, answer.json()["code"]) == (fault.status, fault.code)
    assert answer.headers.get("Retry-After") == fault.retry_after
    assert stored(front) == []
    assert post(front, *GOOD).status == 204
    front.fail_always(fault)
    assert [post(front, *GOOD).status for _ in range(3)] == [fault.status] * 3
    front.fail_always(None)
    assert post(front, *GOOD).status == 204


@pytest.mark.parametrize("kept", [False, True])
def test_a_lost_answer(front: Front, kept: bool) -> None:
    front.fail(Cut(stored=kept))
    with pytest.raises(urllib3.exceptions.ProtocolError):
        post(front, *GOOD)
    assert len(stored(front)) == (5 if kept else 0)


def test_a_partial_write_and_a_slow_one(front: Front) -> None:
    front.fail(Partial())
    assert post(front, *GOOD).status == 422
    assert len(stored(front)) == 4
    front.fail(Slow(0.05))
    started_s = time.monotonic()
    assert post(front, *GOOD).status == 204
    assert time.monotonic() - started_s >= 0.05


def test_it_refuses_connections_until_it_accepts_them(front: Front) -> None:
    url = front.url
    for _ in range(2):
        front.refuse()
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            post(front, *GOOD)
        front.accept()
        assert front.url == url
        assert post(front, *GOOD).status == 204


@pytest.mark.parametrize("name", ["a/b", "back\\slash", "quo'te\"s", "币安", "x, y = z"])
def test_any_bucket_name(front: Front, name: str) -> None:
    bucket = front.add_bucket(name)
    assert post(front, *GOOD, bucket=name).status == 204
    assert len(front.influxd.query("SELECT open FROM m", bucket.database)[0]["values"]) == 5


# --- the lines that influxd is not asked about ------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
values = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers(-(2**63), 2**63 - 1).map(lambda n: f"{n}i")
    | names.map(lambda text: f'"{text}"')
    | st.sampled_from(["true", "false", "T", "nan", "1e5", "-", "0x1", "1.", ".5", '"', "1e999"])
)
raw_lines = st.builds(
    lambda name, tag, fields, time_ms: f"{name},pair={tag} {fields} {time_ms}",
    names,
    names,
    st.lists(st.builds(lambda n, v: f"{n}={v}", names, values), min_size=1, max_size=3).map(
        ",".join
    ),
    st.integers(-(10**13), 10**13) | st.integers(0, 2 * 10**12),
)


@given(st.lists(raw_lines, min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_lines_that_surely_parse_do(influxd: Influxd, found: list[str]) -> None:
    with influxd.database("judged") as database:
        for line in found:
            if surely_parses(line.encode()):
                _, body = influxd.post_lines(database, line.encode())
                assert b"unable to parse" not in body, line


def test_what_is_shipped_surely_parses() -> None:
    """Otherwise every line would be shown to influxd twice."""
    found = [
        lines.candle_text("ohlcv_3m", "BTC/USDT:USDT", 1.5, 1e16, 1e-05, 0.0, 1.0, 1.0, 1.0, 7, T),
        lines.mark_price_text("1000PEPE/USDT:USDT", T, 1e-12, 123456.789),
        lines.funding_rate_text("币安人生/USDT:USDT", T, -0.0001, 0.0002, T),
        lines.funding_settled_text("A/B:B", T, 1e-7, None),
        lines.gap_text("*", "candle_3m", "host-1.example", T, T, healed=True, state="healed"),
        lines.catalog_text("A/B:B", "1m,3m", T, None, T, dropped=True),
    ]
    assert [line for line in found if not surely_parses(line.encode())] == []
