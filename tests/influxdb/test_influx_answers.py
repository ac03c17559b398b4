"""Bytes of answers to rows, and the errors that are hidden in them. No server."""

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reader.stores.influx_answers import MSGPACK, UNREADABLE, RowType, decode, words

WIDTH = 6
ROW = RowType(tuple[float, float, float, float, float, float])


class ForeignError(Exception):
    pass


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def answer(values: Any, **more: Any) -> dict[str, Any]:
    series = {"name": "m", "tags": {"pair": "A"}, "columns": [], "values": values, **more}
    return {"results": [{"statement_id": 0, "series": [series]}]}


times = st.integers(2**31, 2**53)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(times, *[numbers] * 5), max_size=40))
def test_numbers_are_exact_in_either_format(rows: list[tuple[float, ...]]) -> None:
    expected = np.array(rows, np.float64).reshape(-1, WIDTH)
    body = answer(rows)
    for kind, data in ((MSGPACK, packed(body)), ("application/json", msgspec.json.encode(body))):
        (found,) = decode(kind, data, ForeignError).statements
        values = found.numbers(ROW, WIDTH)["A"]
        assert values.shape == (len(rows), WIDTH)
        assert values.tobytes() == expected.tobytes() or (values == expected).all()
        assert values.flags.writeable
        assert found.by_pair(ROW) == {"A": [tuple(map(float, row)) for row in rows]}


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), *[numbers | st.integers(-100, 2**40)] * 5), max_size=20
    )
)
def test_numbers_that_are_not_written_in_nine_bytes_are_read_all_the_same(
    rows: list[tuple[float, ...]],
) -> None:
    (found,) = decode(MSGPACK, packed(answer(rows)), ForeignError).statements
    expected = np.array(rows, np.float64).reshape(-1, WIDTH)
    assert (found.numbers(ROW, WIDTH)["A"] == expected).all()


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_arrays_of_every_length(count: int) -> None:
    rows = [(2**40 + n, n + 0.5, 1.5, 2.5, 3.5, -0.0) for n in range(count)]
    (found,) = decode(MSGPACK, packed(answer(rows)), ForeignError).statements
    assert found.numbers(ROW, WIDTH)["A"].tolist() == [list(row) for row in rows]


def test_bytes_that_only_look_like_rows_are_not_taken_for_them() -> None:
    # As long as a row of six, but other things: strings of eight bytes.
    row = bytes([0x96]) + (bytes([0xD3]) + struct.pack(">q", 2**40))
    row += (bytes([0xA8]) + b"12345678") * 5
    body = packed(answer(msgspec.Raw(bytes([0x91]) + row)))
    (found,) = decode(MSGPACK, body, ForeignError).statements
    with pytest.raises(ForeignError, match=r"Expected `float`, got `str`"):
        found.numbers(ROW, WIDTH)


@pytest.mark.parametrize(
    "row", [[2**40, 1.0, None, 1.0, 1.0, 1.0], [2**40, "1", 1.0, 1.0, 1.0, 1.0], [2**40], "x", None]
)
def test_rows_of_another_type_are_an_error(row: Any) -> None:
    body = answer([row])
    for kind, data in ((MSGPACK, packed(body)), ("application/json", msgspec.json.encode(body))):
        (found,) = decode(kind, data, ForeignError).statements
        for look in (
            lambda found=found: found.numbers(ROW, WIDTH),
            lambda found=found: found.by_pair(ROW),
            lambda found=found: found.rows(ROW),
        ):
            with pytest.raises(ForeignError):
                look()


# --- errors -------------------------------------------------------------------

NOTHING = {"statement_id": 0}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": "all"}, "all"),
        ({"results": [{"error": "one"}]}, "one"),
        ({"results": [NOTHING, {"error": "two"}, {"error": "not executed"}]}, "two"),
        ({"results": [{"error": "not executed"}, {"error": "last"}]}, "last"),
        ({"results": [NOTHING, {"error": "not executed"}]}, "not executed"),
        ({"results": [answer([])["results"][0] | {"error": "with rows"}]}, "with rows"),
    ],
)
def test_an_error_anywhere_is_the_answer(body: Any, error: str) -> None:
    for kind, data in ((MSGPACK, packed(body)), ("application/json", msgspec.json.encode(body))):
        found = decode(kind, data, ForeignError)
        assert (found.error, found.statements) == (error, [])


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"<html>", b"[]", b"7", b"null", b'{"results": 3}', b"\xff"),
        b'{"error": "\xff"}',
        packed({"error": "x"}).replace(b"x", b"\xff"),
        b'{"error":' + b"[" * 100_000,
        b"\x91" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_answer(data: bytes) -> None:
    for kind in (MSGPACK, "application/json", "text/html", ""):
        with pytest.raises(UNREADABLE):
            decode(kind, data, ForeignError)
        assert len(words(kind, data)) <= 300


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("application/json", b'{"code": "x", "message": "a  b\\n c"}', "a b c"),
        ("application/json", b'{"error": "bad"}', "bad"),
        (MSGPACK, packed({"error": "bad"}), "bad"),
        ("text/plain", b"404 page not found\n", "404 page not found"),
        ("application/json", b"[1]", "[1]"),
        ("", b"", ""),
        ("text/html", b"x" * 1000, "x" * 300),
        ("text/plain", b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_the_words_of_an_error(kind: str, data: bytes, message: str) -> None:
    assert words(kind, data) == message
