"""Durations, sizes, addresses, pairs: what is read, and what is refused."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pydantic_core import PydanticCustomError

from marketfeed import schema
from marketfeed.settings import values
from marketfeed.settings.values import Duration, TopPairs

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
UNITS_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


@given(st.integers(0, 10**12), st.sampled_from(sorted(UNITS_MS)))
def test_duration_is_its_number_times_its_unit_and_reads_back(number: int, unit: str) -> None:
    duration = Duration.parse(f"{number}{unit}")
    assert duration.ms == number * UNITS_MS[unit]
    assert Duration.parse(str(duration)) == duration
    assert duration.s * 1000 == pytest.approx(duration.ms)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "s",
        "-3s",
        "+3s",
        "1.5s",
        "3 sec",
        "3S",
        "3:00",
        "1h30m",
        "3s ",
        "٣s",
        "9" * 16 + "s",
    ],
)
def test_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        Duration.parse(text)


def test_durations_are_written_with_the_largest_unit_that_divides_them() -> None:
    assert [
        str(Duration(ms)) for ms in (0, 250, 3_000, 60_000, 90_000, 86_400_000, 90_000_000)
    ] == [
        "0s",
        "250ms",
        "3s",
        "1m",
        "90s",
        "1d",
        "25h",
    ]


@given(st.integers(1, 10**5), st.sampled_from(sorted(UNITS_BYTES)), st.sampled_from(["", " "]))
def test_size_is_its_number_times_its_unit_and_reads_back(number: int, unit: str, gap: str) -> None:
    size = values.parse_size(f"{number}{gap}{unit}", 0, 10**18)
    assert size == number * UNITS_BYTES[unit]
    assert values.parse_size(str(size), 0, 10**18) == size
    assert values.parse_size(values.size_text(size), 0, 10**18) == size


@pytest.mark.parametrize(
    "value", ["", "10G", "10 Gi", "1.5GB", "-1GB", "ten", True, 1.5, None, [], "1e9"]
)
def test_size_refuses(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        values.parse_size(value, 0, 10**18)


@pytest.mark.parametrize(
    "value", [True, 3.0, "3.0", "03", "0x3", "+3", "-1", "1_0", "yes", "", None, "11", 11]
)
def test_whole_number_refuses(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="a whole number from 0 to 10"):
        values.parse_whole_number(value, 0, 10)


@pytest.mark.parametrize("value", ["True", "yes", "on", "1", 1, 0, "", None, []])
def test_switch_refuses(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="expected true or false"):
        values.parse_switch(value)


def test_switch() -> None:
    texts = (True, "true", False, "false")
    assert [values.parse_switch(v) for v in texts] == [True, True, False, False]


def test_whole_number_takes_both_ends() -> None:
    assert [values.parse_whole_number(v, 0, 10) for v in ("0", 0, "10", 10)] == [0, 0, 10, 10]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://host:8086", "http://host:8086"),
        ("HTTP://Host.Example/", "http://host.example"),
        ("http://host/influx/", "http://host/influx"),
        ("http://[::1]:8086/", "http://[::1]:8086"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("http://my_host:1", "http://my_host:1"),
    ],
)
def test_url_is_normalised(text: str, normal: str) -> None:
    assert values.parse_url(text, ("http", "https"), may_have_path=True) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:8086",
        "ftp://host",
        "http://",
        "http:///path",
        "http://host:0",
        "http://host:99999",
        "http://host:x",
        "http://ho st",
        "http://host\n",
        "http://a:b@host",
        "http://a:b/c@host",
        "http://host?token=x",
        "http://host/#x",
        "http://host/?",
        "http://[::1",
        "http://-x",
        "http://256.1.1.1",
        "http://${HOST}",
        "http://hôst",
        None,
        1,
        ["http://host"],
    ],
)
def test_url_refuses(text: object) -> None:
    with pytest.raises(PydanticCustomError, match="http://host"):
        values.parse_url(text, ("http", "https"), may_have_path=True)


def test_url_without_a_path() -> None:
    assert values.parse_url("wss://h/", ("wss",), may_have_path=False) == "wss://h"
    with pytest.raises(PydanticCustomError, match="without a path"):
        values.parse_url("wss://h/ws", ("wss",), may_have_path=False)


@pytest.mark.parametrize("value", ["127.0.0.1", "::1", "0.0.0.0", "localhost", "a-b.example"])  # noqa: S104 - read, not bound
def test_host(value: str) -> None:
    assert values.parse_host(value) == value


@pytest.mark.parametrize(
    "value", ["", "127.0.0.1:80", "[::1]", "*", "1.2.3", "a b", "a..b", None, 1]
)
def test_host_refuses(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        values.parse_host(value)


def test_pairs_in_each_of_their_forms() -> None:
    assert values.parse_pairs("all", "USDT") == "all"
    assert values.parse_pairs({"top": "5"}, "USDT") == TopPairs(5)
    assert values.parse_pairs(TopPairs(5), "USDT") == TopPairs(5)
    assert values.parse_pairs(["BTC/USDT:USDT"], "USDT") == ("BTC/USDT:USDT",)
    assert values.parse_pairs(("币安人生/USDT:USDT",), "USDT") == ("币安人生/USDT:USDT",)
    assert values.parse_pairs(["BTC/USDC:USDC"], None) == ("BTC/USDC:USDC",)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "ALL",
        "BTC/USDT:USDT",
        [],
        {},
        {"top": 0},
        {"top": 1001},
        {"top": "x"},
        {"top": True},
        {"top": 5, "x": 1},
        TopPairs(0),
        ["BTCUSDT"],
        ["BTC/USDC:USDC"],
        ["BTC/USDT:USDC"],
        ["BTC/USDT:USDT", "BTC/USDT:USDT"],
        [["BTC/USDT:USDT"]],
        [None],
    ],
)
def test_pairs_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        values.parse_pairs(value, "USDT")


@given(st.lists(st.sampled_from(sorted(schema.TIMEFRAMES_MS)), min_size=1, unique=True))
def test_timeframes_come_in_ascending_order(names: list[str]) -> None:
    lengths = [schema.TIMEFRAMES_MS[name] for name in values.parse_timeframes(names)]
    assert lengths == sorted(schema.TIMEFRAMES_MS[name] for name in names)


@pytest.mark.parametrize(
    "value", [None, [], "3m", {"3m": None}, ["3m", "3m"], ["3M"], [180], [["3m"]]]
)
def test_timeframes_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        values.parse_timeframes(value)


def test_funding_grid_divides_a_minute_and_every_choice_is_named() -> None:
    accepted = []
    for s in range(1, 121):
        try:
            accepted.append(values.parse_funding_rate_every(f"{s}s").ms // 1000)
        except PydanticCustomError as error:
            message = str(error)
    assert accepted == [s for s in range(3, 61) if 60 % s == 0]
    assert all(f"{s}s" in message for s in accepted)
    assert values.parse_funding_rate_every("1m") == Duration(60_000)


def test_paths_are_absolute(tmp_path: Path) -> None:
    assert values.parse_path("x.db") == Path.cwd() / "x.db"
    assert values.parse_path("~/x.db") == Path.home() / "x.db"
    assert values.parse_path(tmp_path / "x.db") == tmp_path / "x.db"
    assert values.parse_path("/x/${HOME}/x.db") == Path("/x/${HOME}/x.db")


@pytest.mark.parametrize(
    "value", ["", "/", "dir/", "a\0b", "a\nb", None, 3, "~no-such-user-here/x"]
)
def test_paths_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="the path of a file"):
        values.parse_path(value)


def test_token_is_one_line_of_ascii() -> None:
    token = values.parse_token(" a-token== ")
    assert token is not None
    assert token.get_secret_value() == "a-token=="
    assert values.parse_token(token) == token
    assert values.parse_token(None) is None
    for wrong in ("", "  ", "a\nb", "é", 5, SecretStr("a\r\nX: y")):
        with pytest.raises(PydanticCustomError, match="one line"):
            values.parse_token(wrong)


def test_what_the_environment_may_write() -> None:
    assert values.decode_list("1m, 3m") == ["1m", "3m"]
    assert values.decode_list('["1m"]') == ["1m"]
    assert values.decode_list("[1m") == "[1m"
    assert values.decode_list("1m,") == ["1m", ""]
    assert values.decode_pairs("all") == "all"
    assert values.decode_pairs("top:50") == {"top": "50"}
    assert values.decode_pairs('{"top": 50}') == {"top": 50}
    assert values.decode_pairs("BTC/USDT:USDT,ETH/USDT:USDT") == ["BTC/USDT:USDT", "ETH/USDT:USDT"]
    assert values.decode_json("[" * 100_000) == "[" * 100_000


@given(ANYTHING)
def test_whatever_is_there_nothing_but_the_one_error_is_raised(value: object) -> None:
    low, high = Duration(1), Duration(2)
    for parse in (
        lambda v: values.parse_whole_number(v, 0, 5),
        lambda v: values.parse_size(v, 0, 5),
        lambda v: values.parse_duration(v, low, high),
        values.parse_switch,
        values.parse_mark_price_every,
        values.parse_funding_rate_every,
        values.parse_name,
        values.parse_quote,
        lambda v: values.parse_choice(v, ("v2", "v1")),
        values.parse_path,
        values.parse_token,
        values.parse_host,
        lambda v: values.parse_url(v, ("http",), may_have_path=True),
        lambda v: values.parse_pairs(v, "USDT"),
        values.parse_timeframes,
    ):
        with contextlib.suppress(PydanticCustomError):
            parse(value)
