"""Durations, sizes, addresses, pairs: what is read, and what is refused."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, create_model

from marketfeed import schema
from marketfeed.settings import values
from marketfeed.settings.addresses import Host, address, is_loopback
from marketfeed.settings.aggregator import Account, AggregatorSettings, BotSettings, FeedersSettings
from marketfeed.settings.exchange import ExchangeSettings, TopPairs, decode_pairs
from marketfeed.settings.mistakes import validate
from marketfeed.settings.sources import Reading
from marketfeed.settings.status import CollectorStatusSettings
from marketfeed.settings.values import Duration, Section


class RefusedError(Exception):
    """A mistake was made of a value; its text is what users read."""


def reader(kind: Any) -> Callable[[object], Any]:
    """A function that reads a value as settings do where a key is of this type."""
    return key(create_model("Keys", __base__=Section, x=(kind, ...)), "x")


def key(section: type[Section], name: str, **others: object) -> Callable[[object], Any]:
    """A function that reads the value of one key of a section, beside others."""

    def read(value: object) -> Any:
        made, mistakes = validate(section, Reading(data={**others, name: value}))
        if made is None:
            raise RefusedError("; ".join(map(str, mistakes)))
        return getattr(made, name)

    return read


size = reader(Annotated[values.Size, Field(ge=0, le=10**18)])
whole_number = reader(Annotated[values.Whole, Field(ge=0, le=10)])
number = reader(Annotated[values.Number, Field(ge=0.5, le=10)])
duration = reader(Annotated[Duration, Field(ge=Duration(1), le=Duration(2_000))])
switch = reader(values.Switch)
name = reader(values.Name)
path = reader(values.AbsolutePath)
secret = reader(values.Secret | None)
host = reader(Host)
server = reader(Annotated[str, address("http", "https")])
websocket = reader(Annotated[str, address("wss", may_have_path=False)])
pairs = key(ExchangeSettings, "pairs", quote="USDT")
timeframes = key(ExchangeSettings, "timeframes")
contracts = key(ExchangeSettings, "contracts")
mark_price_every = key(ExchangeSettings, "mark_price_every")
funding_rate_every = key(ExchangeSettings, "funding_rate_every")
filling_is = key(CollectorStatusSettings, "filling_is")

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
def test_size_is_its_number_times_its_unit_and_reads_back(count: int, unit: str, gap: str) -> None:
    read = size(f"{count}{gap}{unit}")
    assert read == count * UNITS_BYTES[unit]
    assert size(str(read)) == size(read) == read


@pytest.mark.parametrize(
    "value", ["", "10G", "10 Gi", "1.5GB", "-1GB", "ten", True, 1.5, None, [], "1e9"]
)
def test_size_refuses(value: object) -> None:
    with pytest.raises(RefusedError):
        size(value)


@pytest.mark.parametrize(
    "value", [True, 3.0, "3.0", "03", "0x3", "+3", "-1", "1_0", "yes", "", None, "11", 11]
)
def test_whole_number_refuses(value: object) -> None:
    with pytest.raises(RefusedError, match="a whole number from 0 to 10"):
        whole_number(value)


@pytest.mark.parametrize(
    "value", [True, "nan", float("nan"), "-1", "1e1", ".5", "1_0", "", None, "11"]
)
def test_number_refuses(value: object) -> None:
    with pytest.raises(RefusedError, match=r"a number from 0\.5 to 10"):
        number(value)


def test_number() -> None:
    assert [number(v) for v in ("0.5", 0.5, "10", 10, "2.25")] == [0.5, 0.5, 10.0, 10.0, 2.25]


@pytest.mark.parametrize("value", ["2", "3s", "0s", 1, None, ["1s"], {"ms": 1}])
def test_duration_of_a_setting_refuses(value: object) -> None:
    with pytest.raises(
        RefusedError, match="a duration such as 90s, 5m, 2h or 400d, from 1ms to 2s"
    ):
        duration(value)


@pytest.mark.parametrize("value", ["True", "yes", "on", "1", 1, 0, "", None, []])
def test_switch_refuses(value: object) -> None:
    with pytest.raises(RefusedError, match="expected true or false"):
        switch(value)


def test_switch() -> None:
    texts = (True, "true", False, "false")
    assert [switch(v) for v in texts] == [True, True, False, False]


def test_whole_number_takes_both_ends() -> None:
    assert [whole_number(v) for v in ("0", 0, "10", 10)] == [0, 0, 10, 10]


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
    assert server(text) == normal


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
    with pytest.raises(RefusedError, match="http://host"):
        server(text)


def test_url_without_a_path() -> None:
    assert websocket("wss://h/") == "wss://h"
    with pytest.raises(RefusedError, match="without a path"):
        websocket("wss://h/ws")


@pytest.mark.parametrize("value", ["127.0.0.1", "::1", "0.0.0.0", "localhost", "a-b.example"])  # noqa: S104 - read, not bound
def test_host(value: str) -> None:
    assert host(value) == value


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "localhost", "LocalHost."]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:192.0.2.7", "192.0.2.7", "128.0.0.1"),  # noqa: S104
        *("", "127.1", "127.0.0.1.example", "localhost.example", "a.localhost", "127.0.0.1:80"),
    ],
)
def test_what_others_may_reach_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "value", ["", "127.0.0.1:80", "[::1]", "*", "1.2.3", "a b", "a..b", None, 1]
)
def test_host_refuses(value: object) -> None:
    with pytest.raises(RefusedError):
        host(value)


def test_pairs_in_each_of_their_forms() -> None:
    assert pairs("all") == "all"
    assert pairs({"top": "5"}) == TopPairs(5)
    assert pairs(TopPairs(5)) == TopPairs(5)
    assert pairs(["BTC/USDT:USDT"]) == ("BTC/USDT:USDT",)
    assert pairs(("币安人生/USDT:USDT",)) == ("币安人生/USDT:USDT",)
    # A quote that is a mistake itself makes no second one.
    with pytest.raises(RefusedError, match=r"^quote: [^;]*; found 'x'$"):
        key(ExchangeSettings, "pairs", quote="x")(["BTC/USDC:USDC"])


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
    with pytest.raises(RefusedError):
        pairs(value)


@given(st.lists(st.sampled_from(sorted(schema.TIMEFRAMES_MS)), min_size=1, unique=True))
def test_timeframes_come_in_ascending_order(names: list[str]) -> None:
    lengths = [schema.TIMEFRAMES_MS[name] for name in timeframes(names)]
    assert lengths == sorted(schema.TIMEFRAMES_MS[name] for name in names)


@pytest.mark.parametrize(
    "value", [None, [], "3m", {"3m": None}, ["3m", "3m"], ["3M"], [180], [["3m"]]]
)
def test_timeframes_refused(value: object) -> None:
    with pytest.raises(RefusedError):
        timeframes(value)


def test_types_of_contracts_come_in_one_order() -> None:
    assert contracts(["tradifi", "perpetual"]) == ("perpetual", "tradifi")
    assert contracts(("tradifi",)) == ("tradifi",)
    assert ExchangeSettings().contracts == ("perpetual",)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "perpetual",
        {"perpetual": None},
        ["perpetual", "perpetual"],
        ["Perpetual"],
        [["x"]],
    ],
)
def test_types_of_contracts_refused(value: object) -> None:
    with pytest.raises(
        RefusedError, match=r"contracts.*expected (a list such as|one of|each type)"
    ):
        contracts(value)


def test_funding_grid_divides_a_minute_and_every_choice_is_named() -> None:
    accepted = []
    for s in range(1, 121):
        try:
            accepted.append(funding_rate_every(f"{s}s").ms // 1000)
        except RefusedError as error:
            message = str(error)
    assert accepted == [s for s in range(3, 61) if 60 % s == 0]
    assert all(f"{s}s" in message for s in accepted)
    assert funding_rate_every("1m") == Duration(60_000)


def test_paths_are_absolute(tmp_path: Path) -> None:
    assert path("x.db") == Path.cwd() / "x.db"
    assert path("~/x.db") == Path.home() / "x.db"
    assert path(tmp_path / "x.db") == tmp_path / "x.db"
    assert path("/x/${HOME}/x.db") == Path("/x/${HOME}/x.db")


@pytest.mark.parametrize(
    "value", ["", "/", "dir/", "a\0b", "a\nb", None, 3, "~no-such-user-here/x"]
)
def test_paths_refused(value: object) -> None:
    with pytest.raises(RefusedError, match="the path of a file"):
        path(value)


def test_token_is_one_line_of_ascii() -> None:
    token = secret(" a-token== ")
    assert token is not None
    assert token.get_secret_value() == "a-token=="
    assert secret(token) == token
    assert secret(None) is None
    for wrong in ("", "  ", "a\nb", "é", 5, SecretStr("a\r\nX: y")):
        with pytest.raises(RefusedError, match="one line"):
            secret(wrong)


def test_what_the_environment_may_write() -> None:
    assert values.decode_list("1m, 3m") == ["1m", "3m"]
    assert values.decode_list('["1m"]') == ["1m"]
    assert values.decode_list("[1m") == "[1m"
    assert values.decode_list("1m,") == ["1m", ""]
    assert decode_pairs("all") == "all"
    assert decode_pairs("top:50") == {"top": "50"}
    assert decode_pairs('{"top": 50}') == {"top": 50}
    assert decode_pairs("BTC/USDT:USDT,ETH/USDT:USDT") == ["BTC/USDT:USDT", "ETH/USDT:USDT"]
    assert values.decode_json("[" * 100_000) == "[" * 100_000


HASH = "scrypt$16384$8$1$" + "0" * 32 + "$" + "1" * 64


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("fleet", r"^accounts: expected a list such as \[\{username: fleet, .*; found \*\*\*$"),
        (
            ["c4n4ry"],
            r"^accounts\[0\]: expected a mapping with keys of username, hash, feeder; found",
        ),
        (
            [{"username": "a"}],
            r"^accounts\[0\]\.hash: expected a hash as `marketfeed hash-password` prints it; found nothing$",
        ),
        ([{"username": "c4n4ry:", "hash": HASH}], r"^accounts\[0\]\.username: .*; found \*\*\*$"),
        ([{"username": "a", "hash": "c4n4ry"}], r"^accounts\[0\]\.hash: .*; found \*\*\*$"),
        ([{"username": "a", "hash": HASH, "feeder": "c4n4ry!"}], r"feeder: .*; found \*\*\*$"),
        (
            [{"username": "a", "hash": HASH, "feedr": "x"}],
            r"\[0\]\.feedr: unknown key, did you mean f",
        ),
        (
            [{"username": "a", "hash": HASH}] * 2,
            r"^accounts\[1\]\.username: expected another username than that of accounts\[0\]; found the",
        ),
        (
            [{"username": "a", "hash": HASH, "feeder": "9"}],
            r"^accounts\[0\]\.feeder: expected one of aggregator.feeders \(73, 74, .*, 124\); found '9'$",
        ),
    ],
)
def test_accounts_say_what_is_wrong_and_show_nothing(value: object, what: str) -> None:
    with pytest.raises(RefusedError, match=what) as caught:
        key(AggregatorSettings, "accounts")(value)
    assert "c4n4ry" not in str(caught.value)


def test_no_representation_shows_a_hash() -> None:
    account = Account(username="a", hash=HASH)
    assert HASH not in f"{account!r} {account} {account.model_dump()} {account.model_dump_json()}"


@pytest.mark.parametrize("value", ["x", ["ab"], ["a"], [1], [None]])
def test_aliases_refused(value: object) -> None:
    with pytest.raises(RefusedError, match="a mapping of feeders to their other names, such as"):
        key(FeedersSettings, "aliases", long=["1"])(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"1": "x"}, r"aliases\.1: expected a list of other names such as \[75a, 75b\]; found 'x'"),
        (
            {"1": ["a", "a"]},
            r"aliases\.1\[1\]: expected each name once \(it is one of 1's .*; found 'a'",
        ),
        ({"1": ["a", "b c"]}, r"aliases\.1\[1\]: expected a feeder's name: .*; found 'b c'"),
        (
            {"3": ["a"]},
            r"aliases\.3: expected one of the feeders of long and short \(1, 2\); found '3'",
        ),
        ({"1": ["2"]}, r"aliases\.1\[0\]: expected another name than a feeder's own; found '2'"),
    ],
)
def test_a_mistake_in_aliases_is_named_where_it_stands(value: object, what: str) -> None:
    with pytest.raises(RefusedError, match=f"^{what}$"):
        key(FeedersSettings, "aliases", long=["1"], short=["2"])(value)


def test_a_feeder_of_both_sides_is_named_where_it_stands() -> None:
    what = r"^short\[1\]: expected a feeder that does not vote long as well; found '1'$"
    with pytest.raises(RefusedError, match=what):
        key(FeedersSettings, "short", long=["1"])(["2", "1"])


def test_feeders_that_are_left_out_are_those_shown() -> None:
    assert AggregatorSettings().feeders.known == AggregatorSettings(min_agreements=5).feeders.known
    assert len(AggregatorSettings().feeders.known) == 10
    # Who names those of one side has none of the other.
    assert (
        AggregatorSettings.model_validate({"feeders": {"long": ["a", "b", "c"]}}).feeders.short
        == ()
    )


@pytest.mark.parametrize("value", [[], "market", ["market"] * 2, ["stop"], ["market", 1], None])
def test_ordertypes_refused(value: object) -> None:
    what = r"^ordertypes: expected \[market\], \[limit\], \[market, limit\] or \[limit, market\]; found"
    with pytest.raises(RefusedError, match=what):
        key(AggregatorSettings, "ordertypes")(value)


@pytest.mark.parametrize("value", ["a:b", "", " a", "a\n", "x" * 129, "a\u2028b", 5, None, ["a"]])
def test_a_bot_s_username_is_a_name_without_a_colon(value: object) -> None:
    with pytest.raises(RefusedError, match=r"^username: expected a (user)?name "):
        key(BotSettings, "username")(value)
    assert key(BotSettings, "username")("é x") == "é x"


@given(ANYTHING)
def test_whatever_is_there_nothing_but_the_one_error_is_raised(value: object) -> None:
    for read in (
        *(whole_number, number, size, duration, switch, mark_price_every, funding_rate_every),
        *(name, path, secret, host, server, websocket, pairs, timeframes),
        *(key(AggregatorSettings, field) for field in AggregatorSettings.model_fields),
    ):
        with contextlib.suppress(RefusedError):
            read(value)


def test_what_health_answers_while_filling() -> None:
    assert filling_is("503") == filling_is(503) == 503
    assert filling_is(200) == 200
    for wrong in ("404", 0, "ok", True, "", None, "200.0"):
        with pytest.raises(RefusedError, match="filling_is: expected 200 or 503; found "):
            filling_is(wrong)
