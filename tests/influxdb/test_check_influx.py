"""`check` and `setup` report what is wrong with an InfluxDB and what to do, against real servers."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from front import Front, Rights
from front_faults import SERVER_ERROR, UNAVAILABLE
from influxd import Influxd, quoted
from pydantic import ValidationError
from shipped import Target, marketfeed, v1_target, v2_target

from marketfeed.commands.check_influxdb import check_influx
from marketfeed.commands.finding import Finding
from marketfeed.commands.setup_influxdb import setup_influx
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import Journal
from marketfeed.settings.model import InfluxSettings, Settings
from tests.shipped_ranges import of_all, ranges_of

T0_MS = 1_767_225_600_000


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


@pytest.fixture
def v2(front: Front) -> Target:
    return v2_target(front)


def settings(target: Target, **influx: Any) -> Settings:
    return Settings.model_validate(
        {"exchange": {"timeframes": ["3m"]}, "influxdb": {**target.settings, **influx}}
    )


def checked(target: Target, **influx: Any) -> list[Finding]:
    async def ask() -> list[Finding]:
        async with aiohttp.ClientSession() as session:
            return await check_influx(settings(target, **influx), session)

    return asyncio.run(ask())


def set_up(target: Target, **influx: Any) -> list[Finding]:
    async def ask() -> list[Finding]:
        async with aiohttp.ClientSession() as session:
            return await setup_influx(settings(target, **influx), session)

    return asyncio.run(ask())


def found(findings: list[Finding]) -> dict[tuple[str, str], str]:
    return {(item.subject, item.verdict): item.text for item in findings}


def bad(findings: list[Finding]) -> list[str]:
    return [item.text for item in findings if item.verdict == "bad"]


def test_an_empty_bucket_is_good(target: Target) -> None:
    texts = found(checked(target))
    name = target.settings["bucket"]
    assert {verdict for _, verdict in texts} == {"good"}
    assert "is InfluxDB " in texts["influxdb", "good"]
    assert texts["influxdb rights", "good"] == f"may write to bucket {name!r}"
    assert (
        texts["influxdb schema", "good"] == f"what bucket {name!r} holds fits what will be written"
    )


# --- what an older writer has left there ---------------------------------------------------------------


def test_a_field_of_another_type(target: Target) -> None:
    target.write(
        f'ohlcv_3m,pair=BTC/USDT:USDT open=1.0,close="2.0",trades=7.0 {T0_MS}',
        f"elsewhere,pair=A open=true {T0_MS}",
    )
    texts = [(i.subject, i.verdict, i.text) for i in checked(target) if i.verdict != "good"]
    end = (
        "the server would refuse every new point of it; write to a new bucket (influxdb.bucket), or "
        "delete the measurement (what the journal has of it comes back by itself)"
    )
    assert texts == [
        ("influxdb ohlcv_3m", "bad", f'field "close" is string there and float here: {end}'),
        ("influxdb ohlcv_3m", "bad", f'field "trades" is float there and integer here: {end}'),
    ]


def test_an_extra_tag(target: Target) -> None:
    target.write(
        f"mark_price,pair=BTC/USDT:USDT,exchange=BINANCE,kind=x mark_price=1.0 {T0_MS}",
        f"feed_gap,pair=*,kind=x,collector=y healed=true {T0_MS}",
    )
    texts = [(i.subject, i.verdict, i.text) for i in checked(target) if i.verdict != "good"]
    assert texts == [
        (
            "influxdb mark_price",
            "bad",
            (
                "points there have the extra tags exchange, kind: each series would be split in two, "
                "panels and readers would see both; write to a new bucket, or delete the measurement "
                "(what the journal has of it comes back by itself)"
            ),
        )
    ]


def test_old_predicted_rates_that_are_prices(target: Target) -> None:
    target.write(
        f"funding_rate,pair=BTC/USDT:USDT rate=0.0001,predicted_rate=97123.5 {T0_MS}",
        f"funding_rate,pair=XRP/USDT:USDT rate=0.0001,predicted_rate=0.5 {T0_MS}",
    )
    texts = [(i.subject, i.verdict, i.text) for i in checked(target) if i.verdict != "good"]
    assert texts == [
        (
            "influxdb funding_rate",
            "warning",
            (
                '"predicted_rate" reaches 97123.5: an older writer stored the estimated settle price '
                "there; panels over old days show prices instead of rates"
            ),
        )
    ]


def test_predicted_rates_of_another_type_hide_no_clash(target: Target) -> None:
    target.write(f'funding_rate,pair=A rate=0.1,predicted_rate="None" {T0_MS}')
    (text,) = bad(checked(target))
    assert text.startswith('field "predicted_rate" is string there and float here: ')


def test_what_a_bucket_should_hold_is_good(target: Target) -> None:
    target.write(
        f"funding_rate,pair=A rate=0.1,predicted_rate=0.1,next_funding_time=5i {T0_MS}",
        f"ohlcv_3m,pair=A open=1.0,trades=5i {T0_MS}",
    )
    assert {item.verdict for item in checked(target)} == {"good"}


@pytest.mark.parametrize(("hours", "warned"), [(72, True), (400 * 24, False)])
def test_a_bucket_that_forgets_sooner_than_the_journal(
    target: Target, hours: int, warned: bool
) -> None:
    if target.front is None:
        name = quoted(target.database)
        text = f"ALTER RETENTION POLICY autogen ON {name} DURATION {hours}h SHARD DURATION 1h"
        target.influxd.query(text)
    else:
        target.front.expire("market_data", hours * 3600)
    texts = {text for (_, verdict), text in found(checked(target)).items() if verdict != "good"}
    assert texts == (
        {
            (
                f"bucket {target.settings['bucket']!r} keeps its points for 3d, the journal its candles "
                "for 400d (journal.retention.candles): what is older is not sent, and not to be read there"
            )
        }
        if warned
        else set()
    )


# --- rights, bucket, mapping, server -------------------------------------------------------------------


def test_a_missing_bucket_is_reported_and_set_up(target: Target) -> None:
    name = "later"
    texts = found(checked(target, bucket=name))
    words = f'bucket "{name}" not found' if target.front else f'database not found: "{name}"'
    assert texts["influxdb rights", "bad"] == f"may not write: status 404: {words}"
    assert texts["influxdb", "warning"] == (
        "`marketfeed setup` creates bucket 'later' and its mapping where the token may; look at "
        "influxdb.org and bucket if they should be there"
    )
    try:
        done = [(item.verdict, item.text) for item in set_up(target, bucket=name)]
        if target.front is None:
            assert done == [("good", "'later' created")]
            again = [("good", "'later' is there")]
        else:
            assert done == [
                ("good", "'later' created, without expiry"),
                ("good", "InfluxQL knows 'later'"),
            ]
            again = [("good", "'later' is there"), ("good", "InfluxQL knows 'later'")]
        assert {item.verdict for item in checked(target, bucket=name)} == {"good"}
        assert [(item.verdict, item.text) for item in set_up(target, bucket=name)] == again
    finally:
        if target.front is None:
            target.influxd.query("DROP DATABASE later")


def test_an_organisation_that_is_not_there(v2: Target) -> None:
    texts = found(checked(v2, org="nosuch"))
    assert texts["influxdb rights", "bad"] == (
        'may not write: status 404: organization name "nosuch" not found'
    )


def test_a_token_that_the_server_does_not_know(v2: Target) -> None:
    texts = found(checked(v2, token="canary-of-a-token"))  # noqa: S106
    assert texts["influxdb rights", "bad"] == "may not write: status 401: unauthorized access"
    assert texts["influxdb", "warning"] == (
        "the server does not know this token: look at influxdb.token or token_file"
    )
    assert "canary" not in str(texts)


def test_no_token(v2: Target) -> None:
    texts = found(checked(v2, token=None))
    assert texts["influxdb token", "warning"] == (
        "neither influxdb.token nor token_file is set: v2 takes nothing without a token"
    )
    assert ("influxdb rights", "bad") in texts


def test_a_token_without_the_right_to_write(v2: Target) -> None:
    assert v2.front is not None
    v2.front.tokens["reader"] = Rights(write=frozenset(), manage=False)
    texts = found(checked(v2, token="reader"))  # noqa: S106
    assert texts["influxdb rights", "bad"] == (
        "may not write: status 403: insufficient permissions for write"
    )
    assert texts["influxdb", "warning"] == (
        "give the token the rights to write and to read bucket 'market_data'"
    )


UNMAPPED = (
    "InfluxQL knows no database 'market_data' for this token, readers could not read: the mapping is "
    "missing (`marketfeed setup` creates it), or the right to read the bucket"
)


def test_a_token_without_the_right_to_read(v2: Target) -> None:
    assert v2.front is not None
    v2.front.tokens["writer"] = Rights(read=frozenset(), manage=False)
    assert bad(checked(v2, token="writer")) == [UNMAPPED]  # noqa: S106


def test_a_missing_mapping_is_reported_and_set_up(influxd: Influxd) -> None:
    with Front(influxd, virtual_mappings=False) as front:
        front.add_bucket("market_data")
        target = v2_target(front)
        assert bad(checked(target)) == [UNMAPPED]
        done = [(item.verdict, item.text) for item in set_up(target)]
        assert done == [
            ("good", "'market_data' is there"),
            ("good", "'market_data' created for InfluxQL"),
        ]
        assert {item.verdict for item in checked(target)} == {"good"}
        # Both are missing.
        done = [(item.verdict, item.text) for item in set_up(target, bucket="later")]
        assert done == [
            ("good", "'later' created, without expiry"),
            ("good", "'later' created for InfluxQL"),
        ]
        assert {item.verdict for item in checked(target, bucket="later")} == {"good"}


def test_a_token_that_may_set_up_nothing(v2: Target) -> None:
    assert v2.front is not None
    v2.front.tokens["writer"] = Rights(manage=False)
    (item,) = set_up(v2, token="writer", bucket="later")  # noqa: S106
    assert item.verdict == "bad"
    assert re.search(r"status 401: .*write:orgs/\w+/buckets is unauthorized", item.text), item.text
    assert "later" not in v2.front.buckets


@pytest.mark.parametrize("ship_again", [False, True])
def test_a_token_that_sees_no_bucket_has_nothing_shipped_again(
    v2: Target, tmp_path: Path, ship_again: bool
) -> None:
    """The bucket may well be there: only on the user's word everything in the journal is shipped anew."""
    assert v2.front is not None
    v2.front.tokens["writer"] = Rights(manage=False)
    given = Settings.model_validate(
        {
            "journal": {"path": str(tmp_path / "journal.db")},
            "aggregator": {"ledger": {"path": str(tmp_path / "ledger.db")}},
            "influxdb": {**v2.settings, "token": "writer", "bucket": "unseen"},
        }
    )
    where = target_of(given.influxdb)
    with Journal.open(given.journal.path) as journal:
        journal.note_shipped(where, of_all([(1, 5_000)]))

    async def ask() -> list[Finding]:
        async with aiohttp.ClientSession() as session:
            return await setup_influx(given, session, ship_again=ship_again)

    findings = asyncio.run(ask())
    assert [(item.subject, item.verdict) for item in findings] == [
        ("journal", "good"),
        ("influxdb", "bad"),
    ]
    with Journal.open(given.journal.path) as journal:
        assert journal.forget_if_demanded(where) == ship_again
        assert ranges_of(journal.shipped(where)) == ([] if ship_again else [(1, 5_000)])


def test_a_token_that_may_not_read_organisations_says_what_to_give(v2: Target) -> None:
    assert v2.front is not None
    v2.front.tokens["buckets"] = Rights(orgs=False)
    (item,) = set_up(v2, token="buckets", bucket="later")  # noqa: S106
    assert item.verdict == "bad"
    assert re.search(r"may not read organisations.*set influxdb.org to its id", item.text), (
        item.text
    )
    assert "later" not in v2.front.buckets
    done = set_up(v2, token="buckets", bucket="later", org=v2.front.org_id)  # noqa: S106
    assert [item.verdict for item in done] == ["good", "good"]
    assert "later" in v2.front.buckets
    # With the id in place of the name everything else goes on as before.
    assert {i.verdict for i in checked(v2, bucket="later", org=v2.front.org_id)} == {"good"}


def test_nothing_is_demanded_of_a_token_that_may_not_read_organisations(
    v2: Target, tmp_path: Path
) -> None:
    assert v2.front is not None
    v2.front.tokens["buckets"] = Rights(orgs=False)
    given = Settings.model_validate(
        {
            "journal": {"path": str(tmp_path / "journal.db")},
            "influxdb": {**v2.settings, "token": "buckets", "bucket": "later"},
        }
    )
    where = target_of(given.influxdb)
    with Journal.open(given.journal.path) as journal:
        journal.note_shipped(where, of_all([(1, 5_000)]))

    async def ask() -> list[Finding]:
        async with aiohttp.ClientSession() as session:
            return await setup_influx(given, session)

    assert [(item.subject, item.verdict) for item in asyncio.run(ask())] == [("influxdb", "bad")]
    with Journal.open(given.journal.path) as journal:
        assert not journal.forget_if_demanded(where)


def test_an_organisation_that_is_misspelt_is_named(v2: Target) -> None:
    (item,) = set_up(v2, org="fleeet")
    assert (item.subject, item.verdict) == ("influxdb", "bad")
    assert item.text.startswith("influxdb.org: the server has no organisation 'fleeet'")
    assert checked(v2, org="fleeet")[-1].verdict != "good"


def test_least_rights(v2: Target) -> None:
    """Of one bucket each: to write, as a collector's; to read, as a reader's."""
    assert v2.front is not None
    here, none = frozenset({"market_data"}), frozenset[str]()
    v2.front.tokens["writer"] = Rights(none, here, manage=False, orgs=False)
    v2.front.tokens["both"] = Rights(here, here, manage=False, orgs=False)
    done = set_up(v2, token="both")  # noqa: S106
    assert [(item.subject, item.verdict) for item in done] == [
        ("bucket", "good"),
        ("mapping", "good"),
    ]
    assert {item.verdict for item in checked(v2, token="both")} == {"good"}  # noqa: S106
    assert bad(checked(v2, token="writer")) == [UNMAPPED]  # noqa: S106
    (*_, last) = set_up(v2, token="writer")  # noqa: S106
    assert (last.subject, last.verdict) == ("influxdb", "bad")
    assert "does not see the bucket 'market_data': it needs the right to read it" in last.text


def test_a_bucket_that_influxql_cannot_name_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValidationError, match="a name without a slash"):
        InfluxSettings.model_validate({"bucket": "a/b"})


def test_a_server_that_is_not_there_or_not_well(v2: Target) -> None:
    front = v2.front
    assert front is not None
    for fault in (SERVER_ERROR, UNAVAILABLE):
        front.fail(fault)
        (text,) = bad(checked(v2))
        assert text.startswith(
            f"whether it takes writes could not be seen: status {fault.status}: "
        )
    front.refuse()
    for findings in (checked(v2), set_up(v2)):
        (item,) = findings
        assert (item.subject, item.verdict) == ("influxdb", "bad")
        assert item.text.startswith(f"{front.url}: ")
        assert "Connection refused" in item.text or "Connect call failed" in item.text
    front.accept()


# --- as commands ----------------------------------------------------------------------------------------


@pytest.fixture
def exchange() -> Iterator[dict[str, str]]:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "marketfeed",
            "simulate",
            "--pairs=2",
            "--timeframes=3m",
            "--port=0",
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if match := re.search(r"ws_url=(?P<ws_url>\S+) rest_url=(?P<rest_url>\S+)", line):
                break
        else:
            raise AssertionError("no simulator")
        yield match.groupdict()
        running.terminate()


def test_exit_codes_of_the_commands(v2: Target, tmp_path: Path, exchange: dict[str, str]) -> None:
    commanded = v2.configure(
        tmp_path / "config.yaml",
        exchange=exchange | {"pairs": {"top": 2}, "timeframes": ["3m"]},
        journal={"path": str(tmp_path / "journal.db"), "max_bytes": "64MB"},
    )
    later = commanded | {"MARKETFEED_INFLUXDB__BUCKET": "later"}
    missing = marketfeed(later, "check")
    assert missing.returncode == 1, missing.stderr
    assert 'may not write: status 404: bucket "later" not found' in missing.stdout
    made = marketfeed(later, "setup")
    assert made.returncode == 0, made.stderr
    assert "'later' created, without expiry" in made.stdout
    good = marketfeed(later, "check", "--json")
    assert good.returncode == 0, good.stdout
    subjects = {item["subject"] for item in json.loads(good.stdout)["findings"]}
    assert {"influxdb", "influxdb rights", "influxdb schema", "stream"} <= subjects
    assert v2.settings["token"] not in made.stdout + good.stdout
    none = {k: v for k, v in commanded.items() if k != "MARKETFEED_CONFIG"}
    assert marketfeed(none, "setup").returncode == 2
