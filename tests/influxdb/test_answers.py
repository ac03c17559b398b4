"""Every answer of the table has its verdict."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.influxdb.answers import MAX_RETRY_AFTER_S, judge, judge_failure

# What a real 2.7.12 answered, word for word; from the project's shared cases.
RECORDED = Path(__file__).parents[1] / "data" / "influxdb_2.7.12_answers.json"


def recorded(case: str) -> bytes:
    """The body of a recorded answer."""
    (found,) = (one for one in json.loads(RECORDED.read_bytes()) if one["case"] == case)
    return str(found["answer"]).encode()


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (204, "acknowledged"),
        (200, "misconfigured"),
        (202, "misconfigured"),
        (400, "rejected"),
        (413, "rejected"),
        (422, "rejected"),
        (429, "throttled"),
        (500, "retryable"),
        (502, "retryable"),
        (503, "throttled"),
        (504, "retryable"),
        (301, "misconfigured"),
        (401, "misconfigured"),
        (403, "misconfigured"),
        (404, "misconfigured"),
        (405, "misconfigured"),
    ],
)
def test_what_each_status_means(status: int, action: str) -> None:
    assert judge(status, b"", {}, 0.0).action == action


@pytest.mark.parametrize(
    ("header", "after_s"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("86400", MAX_RETRY_AFTER_S),
        ("inf", MAX_RETRY_AFTER_S),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("nan", None),
        ("soon", None),
        ("Mon, 01 Jan 2020 00:00:00 +99999999999999", None),
        ("Mon, 99 Jan 2020 99:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after(header: str | None, after_s: float | None) -> None:
    headers = {} if header is None else {"Retry-After": header}
    for status in (429, 503):
        assert judge(status, b"", headers, 60.0).after_s == after_s


_DATE = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "Sun", "Xyz"]),
    st.integers(0, 40),
    st.sampled_from(["Jan", "Feb", "Dec"]),
    st.integers(0, 10**6),
    *(st.integers(0, 99) for _ in range(3)),
    st.one_of(
        st.sampled_from(["GMT", "-0000", ""]), st.integers(-(10**20), 10**20).map("{:+}".format)
    ),
)


@given(st.one_of(_DATE, st.text(), st.floats().map(str)))
def test_no_wish_of_a_server_is_more_than_a_wait(header: str) -> None:
    after_s = judge(503, b"", {"Retry-After": header}, 1e9).after_s
    assert after_s is None or 0.0 <= after_s <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"partial write: dropped=1"}', "status 400: partial write: dropped=1"),
        (b'{"code":"invalid","message":"unable to parse"}', "status 400: unable to parse"),
        (b"<html>\n<b>no</b>", "status 400: <html> <b>no</b>"),
        (b"\xff" * 999, "status 400: " + "\ufffd" * 300),
        (b"", "status 400"),
    ],
)
def test_the_servers_words(body: bytes, text: str) -> None:
    assert judge(400, body, {}, 0.0).text == text


@pytest.mark.parametrize(
    ("status", "pending"),
    [(500, True), (502, True), (504, True), (503, False), (429, False), (400, False), (404, False)],
)
def test_what_a_server_may_carry_out_yet(status: int, pending: bool) -> None:
    """A proxy says 504 when it has waited long enough, and 1.x 500; what they waited for may go on."""
    assert judge(status, b"", {}, 0.0).pending is pending
    assert judge_failure(TimeoutError()).pending
    assert not judge_failure(ConnectionRefusedError("refused"), connected=False).pending


def test_no_answer_is_tried_again() -> None:
    assert judge_failure(ConnectionRefusedError("refused")).action == "retryable"
    assert judge_failure(TimeoutError()).text == "TimeoutError"


@pytest.mark.parametrize(
    ("body", "too_old"),
    [
        (b'{"error":"partial write: points beyond retention policy dropped=12"}', 12),
        (b'{"message":"failed: partial write: points beyond retention policy dropped=3"}', 3),
        (b'{"error":"partial write: field type conflict: x dropped=9"}', 0),
        (b'{"error":"points beyond retention policy dropped=many"}', 0),
        (recorded("older than the bucket's expiry, one good"), 2),
        (
            b'{"error":"partial write: dropped 7 points outside retention policy of duration 1h0m0s - '
            + b"x" * 500
            + b' dropped=7 for database: d"}',
            7,
        ),
        (b'{"error":"partial write: dropped many points outside retention policy"}', 0),
    ],
)
def test_how_many_lines_are_too_old(body: bytes, too_old: int) -> None:
    for status in (400, 422):
        verdict = judge(status, body, {}, 0.0)
        assert (verdict.action, verdict.beyond_retention) == ("rejected", too_old)
        assert verdict.blames_lines
    # 2.0 answers so; without a number of lines that are too old it is a fault of the server.
    assert judge(500, body, {}, 0.0).action == ("rejected" if too_old else "retryable")
