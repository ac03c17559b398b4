"""The status table of a write, with real servers: influxd 1.6.7, and 2.x's rules in front of it."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from filled import MINUTE, PAIRS, QUICK, ROWS, T0, fill
from front import Front, Rights
from front_faults import SERVER_ERROR, UNAVAILABLE, Answer, Cut, Partial, Slow, too_many
from influxd import Influxd, quoted
from shipped import Target, compared, marketfeed, shipping, v1_target, v2_target

from marketfeed.commands.check_influxdb import check_influx
from marketfeed.commands.refused_lines import read_refused, resend_refused
from marketfeed.commands.setup_influxdb import setup_influx
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap, MarkPrice
from marketfeed.settings.model import Settings
from marketfeed.storage.ranges import Acknowledged
from tests.waiting import until

GAP_TAGS = "kind=connection_feed-1,pair=*"


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


@pytest.fixture
def v2(front: Front) -> Target:
    return v2_target(front)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def written(*batches: Batch) -> Callable[[JournalWriter], Coroutine[Any, Any, None]]:
    async def write(writer: JournalWriter) -> None:
        for batch in batches:
            await writer.call(lambda journal, batch=batch: journal.write(batch))

    return write


def all_shipped(writer: JournalWriter, shipper: Shipper) -> bool:
    return writer.next_seq > 1 and shipper.shipped_below() == writer.next_seq


async def equal(path: Path, target: Target, *, but_for: int = 0) -> None:
    """InfluxDB holds what the journal holds, but for so many rows, and nothing else."""
    rows = await compared(path, target.settings)
    assert (rows.missing, rows.extra) == (but_for, 0), rows.examples


# --- bad lines ----------------------------------------------------------------------------------------


def test_one_bad_line_of_five_thousand_costs_that_line_only(path: Path, target: Target) -> None:
    """No tag can be empty: 2.x stores nothing of such a batch (400), 1.x the other lines."""

    async def main() -> None:
        marks = Batch()
        for number in range(4_999):
            marks.add(MarkPrice(PAIRS[number % 3], T0 + number * 1_000, 7.0 + number, 8.0))
        marks.add(MarkPrice("", T0 + 2_500_000, 1.0, 2.0))
        pace = msgspec.structs.replace(QUICK, max_lines=5_000)
        with Journal.open(path) as journal:
            journal.write(marks)
        async with shipping(path, target.settings, pace) as (writer, shipper):
            await until(lambda: all_shipped(writer, shipper))
            assert shipper.report().refused == 1
            assert shipper.report().lines == 4_999
            # All, and one half at each step.
            assert shipper.report().batches <= 2 * 13 + 1
        (refused,) = read_refused(path)
        assert refused.line == f"mark_price,pair= mark_price=1.0,index_price=2.0 {T0 + 2_500_000}"
        assert refused.answer.startswith("status 400: unable to parse 'mark_price,pair= ")
        await equal(path, target, but_for=1)

    uvloop.run(main())


def test_a_line_of_another_type_costs_that_line_only(path: Path, target: Target) -> None:
    """422 on 2.x, "partial write" on 1.x: the other lines are stored."""
    target.write(f"feed_gap,collector=other,{GAP_TAGS} end=1.5 {T0}")

    async def main() -> None:
        async with shipping(path, target.settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: all_shipped(writer, shipper))
            assert shipper.report().refused == 1
        (refused,) = read_refused(path)
        assert refused.line.startswith("feed_gap,")
        status = "status 400: " if target.front is None else "status 422: failure writing points "
        assert refused.answer.startswith(status)
        assert "field type conflict" in refused.answer
        rows = await compared(path, target.settings)
        assert (rows.missing, rows.extra) == (1, 1), "the gap, and the other's point"

    uvloop.run(main())


def test_a_long_history_that_the_bucket_does_not_keep(path: Path, target: Target) -> None:
    """Refused as a whole, not by halves; what is new goes through."""
    target.influxd.query(
        f"ALTER RETENTION POLICY autogen ON {quoted(target.database)} DURATION 24h SHARD DURATION 1h"
    )
    now_ms = time.time_ns() // 1_000_000

    async def main() -> None:
        old, new = Batch(), Batch()
        for number in range(3_000):
            old.add(MarkPrice(PAIRS[0], now_ms - 100 * 24 * 60 * MINUTE + number * 1_000, 7.0, 8.0))
        for number in range(10):
            new.add(MarkPrice(PAIRS[0], now_ms - number * 1_000, 7.0, 8.0))
        async with shipping(path, target.settings) as (writer, shipper):
            await written(old, new)(writer)
            await until(lambda: all_shipped(writer, shipper))
            assert (shipper.report().refused, shipper.report().lines) == (3_000, 10)
            assert shipper.report().batches < 60
        assert len(read_refused(path)) == 3_000

    uvloop.run(main())


def test_a_partial_write_that_blames_none_of_them_alone(path: Path, v2: Target) -> None:
    assert v2.front is not None
    v2.front.fail(Partial(), Partial())

    async def main() -> None:
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: all_shipped(writer, shipper))
        assert read_refused(path) == []
        await equal(path, v2)

    uvloop.run(main())


# --- the server's own troubles -----------------------------------------------------------------------

TROUBLES: list[Answer | Cut | Slow] = [
    SERVER_ERROR,
    UNAVAILABLE,
    Answer(503, "unavailable", "later", "0"),
    too_many("0"),
    too_many("Thu, 01 Jan 1970 00:00:00 GMT"),
    Answer(502, "bad gateway", "<html>"),
    Cut(stored=True),
    Cut(stored=False),
]


@pytest.mark.parametrize("fault", TROUBLES, ids=str)
def test_it_waits_and_goes_on_and_a_restart_in_between_loses_nothing(
    path: Path, v2: Target, fault: Answer | Cut
) -> None:
    front = v2.front
    assert front is not None
    front.fail_always(fault)

    async def main() -> None:
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: front.counts.writes.total() >= 3)
            report = shipper.report()
            assert (report.state, report.lines) == ("waiting", 0)
            assert report.trouble
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(fill(10))(writer)
            await until(lambda: shipper.report().state == "waiting")
            front.fail_always(None)
            await until(lambda: all_shipped(writer, shipper))
            await until(lambda: shipper.report().state == "shipping")
        await equal(path, v2)
        assert read_refused(path) == []

    uvloop.run(main())


def test_a_server_that_is_killed_and_started_again(path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        with Influxd(tmp_path / "influxd") as server, server.database("market_data") as name:
            target = v1_target(server, name)
            async with shipping(path, target.settings) as (writer, shipper):
                await written(fill())(writer)
                await until(lambda: all_shipped(writer, shipper))
                await asyncio.to_thread(server.kill)
                await written(fill(10))(writer)
                await until(lambda: shipper.report().state == "waiting")
                await asyncio.to_thread(server.start)
                await until(lambda: all_shipped(writer, shipper))
            await equal(path, target)

    uvloop.run(main())


# --- token, rights, bucket ----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
def test_a_revoked_token_keeps_everything_until_its_file_holds_another(
    path: Path, v2: Target, tmp_path: Path, restart: bool
) -> None:
    front = v2.front
    assert front is not None
    file = tmp_path / "token"
    file.write_text("first\n")
    settings = {k: v for k, v in v2.settings.items() if k != "token"} | {"token_file": str(file)}
    front.tokens["first"] = Rights()

    async def main() -> None:
        async with shipping(path, settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: all_shipped(writer, shipper))
            del front.tokens["first"]
            await written(fill(10))(writer)
            await until(lambda: shipper.report().state == "parked")
            report = shipper.report()
            assert report.trouble == "status 401: unauthorized access"
            front.tokens["second"] = Rights(manage=False)
            if not restart:
                file.write_text("second\n")
                await until(lambda: all_shipped(writer, shipper))
                await until(lambda: shipper.report().trouble == "")
        file.write_text("second\n")
        async with shipping(path, settings) as (writer, shipper):
            await until(lambda: all_shipped(writer, shipper))
        assert read_refused(path) == []
        await equal(path, v2)

    uvloop.run(main())


def test_users_and_passwords_of_1_x(path: Path, tmp_path: Path) -> None:
    """Before 1.8 it knows no other authorization than Basic."""

    async def main() -> None:
        with Influxd(tmp_path / "influxd", auth=True) as server:
            server.query("CREATE USER root WITH PASSWORD 'canary-root' WITH ALL PRIVILEGES")
            server.query("CREATE USER ship WITH PASSWORD 'canary-ship'", user="root:canary-root")
            token = tmp_path / "token"
            token.write_text("root:canary-root\n")
            given = {"url": server.url, "api": "v1", "bucket": "fleet", "token_file": str(token)}
            settings = Settings.model_validate({"influxdb": given})
            async with aiohttp.ClientSession() as session:
                (made,) = await setup_influx(settings, session)
                assert (made.verdict, made.text) == ("good", "'fleet' created")
                server.query('GRANT ALL ON "fleet" TO "ship"', user="root:canary-root")
                token.write_text("ship:canary-ship\n")
                findings = await check_influx(settings, session)
                assert {item.verdict for item in findings} == {"good"}, findings
                token.write_text("ship:canary-wrong\n")
                findings = await check_influx(settings, session)
                assert ("influxdb rights", "bad") in {(f.subject, f.verdict) for f in findings}
                assert "canary" not in str(findings)
            async with shipping(path, given) as (writer, shipper):
                await written(fill())(writer)
                await until(lambda: shipper.report().state == "parked")
                assert shipper.report().trouble == "status 401: authorization failed"
                token.write_text("ship:canary-ship\n")
                await until(lambda: all_shipped(writer, shipper))
            rows = await compared(path, given)
            assert (rows.missing, rows.extra, sum(rows.rows.values())) == (0, 0, ROWS)

    uvloop.run(main())


def test_rights_that_are_taken_and_given_back(path: Path, v2: Target) -> None:
    front = v2.front
    assert front is not None
    front.tokens[front.token] = Rights(write=frozenset())

    async def main() -> None:
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: shipper.report().state == "parked")
            assert shipper.report().trouble == "status 403: insufficient permissions for write"
            front.tokens[front.token] = Rights()
            await until(lambda: all_shipped(writer, shipper))
        await equal(path, v2)

    uvloop.run(main())


def test_a_bucket_that_is_made_later(path: Path, target: Target) -> None:
    settings = {**target.settings, "bucket": "later"}

    async def main() -> None:
        async with shipping(path, settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: shipper.report().state == "parked")
            words = 'bucket "later" not found' if target.front else 'database not found: "later"'
            assert shipper.report().trouble == f"status 404: {words}"
        async with shipping(path, settings) as (writer, shipper):
            await until(lambda: shipper.report().state == "parked")
            if target.front is not None:
                await asyncio.to_thread(target.front.add_bucket, "later")
            else:
                await asyncio.to_thread(target.influxd.query, "CREATE DATABASE later")
            await until(lambda: all_shipped(writer, shipper))
        rows = await compared(path, settings)
        assert (rows.missing, rows.extra, sum(rows.rows.values())) == (0, 0, ROWS)

    try:
        uvloop.run(main())
    finally:
        if target.front is None:
            target.influxd.query("DROP DATABASE later")


# --- too large ----------------------------------------------------------------------------------------


def test_too_large_a_request_is_halved_on_v2(path: Path, v2: Target) -> None:
    front = v2.front
    assert front is not None
    front.max_body_bytes = 2_000

    async def main() -> None:
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(fill())(writer)
            await until(lambda: all_shipped(writer, shipper))
        assert front.counts.writes[413] > 0
        assert read_refused(path) == []
        await equal(path, v2)

    uvloop.run(main())


@pytest.mark.parametrize("limit", [2_000, 300_000])
def test_too_large_a_request_is_halved_on_v1(path: Path, tmp_path: Path, limit: int) -> None:
    """It answers before it has read all, and closes the connection."""

    async def main() -> None:
        with (
            Influxd(tmp_path / "influxd", max_body_bytes=limit) as server,
            server.database("market_data") as name,
        ):
            target = v1_target(server, name)
            minutes = 10 if limit == 2_000 else 900
            with Journal.open(path) as journal:
                journal.write(fill(minutes=minutes))
            pace = msgspec.structs.replace(QUICK, backoff_first_s=0.5)
            async with shipping(path, target.settings, pace) as (writer, shipper):
                await until(lambda: all_shipped(writer, shipper))
            assert read_refused(path) == []
            await equal(path, target)

    uvloop.run(main())


# --- refused lines ------------------------------------------------------------------------------------


def test_refused_lines_are_shown_exported_and_sent_again(
    path: Path, v2: Target, tmp_path: Path
) -> None:
    v2.write(f"feed_gap,collector=other,{GAP_TAGS} end=1.5 {T0}")

    async def refuse() -> None:
        batch = fill()
        batch.add(MarkPrice("", T0, 1.0, 2.0))
        batch.add(Gap("connection_feed-2", None, T0, T0 + 7, "healed", "lost"))
        async with shipping(path, v2.settings) as (writer, shipper):
            await written(batch)(writer)
            await until(lambda: all_shipped(writer, shipper))

    uvloop.run(refuse())
    commanded = v2.configure(tmp_path / "config.yaml", journal={"path": str(path)})
    shown = marketfeed(commanded, "deadletter")
    assert shown.returncode == 1, shown.stderr
    assert "field type conflict" in shown.stdout
    assert "unable to parse" in shown.stdout
    exported = tmp_path / "lines"
    found = json.loads(marketfeed(commanded, "deadletter", "--json", "--export", exported).stdout)[
        "refused"
    ]
    assert exported.read_text("utf-8").splitlines() == [item["line"] for item in found]
    assert len(found) == 3
    # As long as the bucket is as it is, they are refused again, and kept.
    assert marketfeed(commanded, "deadletter", "--resend").returncode == 1
    assert len(read_refused(path)) == 3
    v2.influxd.query("DROP MEASUREMENT feed_gap", v2.database)
    assert marketfeed(commanded, "deadletter", "--resend").returncode == 1
    (left,) = read_refused(path)
    assert left.line.startswith("mark_price,pair= ")
    asyncio.run(equal(path, v2, but_for=1))


def test_a_row_that_has_changed_is_sent_again_as_it_stands(path: Path, v2: Target) -> None:
    """Its old line, put aside, would undo what was taken later."""
    names = [*PAIRS, "A,pair=B C\\"]

    def closed(pair: str, close: float, trades: int) -> Candle:
        return Candle(pair, "1m", T0, 1.5, 9.5, 1.0, close, 3.0, 4.0, 1.0, trades, True, T0)

    async def main() -> None:
        batch = Batch()
        batch.extend([closed(pair, 2.0, 5) for pair in names])
        batch.add(Gap("connection_feed-1", None, T0, None, "found", "lost"))
        with Journal.open(path) as journal:
            journal.write(batch)
            outbox = JournalOutbox(path, socket.gethostname())
            old = outbox.newest(Acknowledged.alike(KIND.measurements), 100).lines
            outbox.close()
            gone = f"mark_price,pair={PAIRS[0]} mark_price=1.0,index_price=2.0 {T0 - 1_000}"
            journal.put_aside("x", [(line, "status 422") for line in [*old, gone]], T0)
            better = Batch()
            better.extend([closed(pair, 3.0, 6) for pair in names])
            better.add(Gap("connection_feed-1", None, T0, T0 + 5, "healed", "lost"))
            journal.write(better)
        async with shipping(path, v2.settings) as (writer, shipper):
            await until(lambda: all_shipped(writer, shipper))
        await equal(path, v2)
        settings = Settings.model_validate(
            {"journal": {"path": str(path)}, "influxdb": dict(v2.settings)}
        )
        assert await resend_refused(settings) == 6
        rows = await compared(path, v2.settings)
        assert (rows.missing, rows.examples) == (0, [gone]), "retention has deleted it here"

    uvloop.run(main())


def test_refused_lines_stay_when_the_server_is_away(path: Path, v2: Target, tmp_path: Path) -> None:
    front = v2.front
    assert front is not None
    with Journal.open(path) as journal:
        journal.put_aside("x", [("mark_price,pair=A mark_price=1.0 1", "status 422")], T0)
    commanded = v2.configure(tmp_path / "config.yaml", journal={"path": str(path)})
    front.fail_always(UNAVAILABLE)
    done = marketfeed(commanded, "deadletter", "--resend")
    assert done.returncode == 1
    assert done.stderr == "marketfeed: not sent: status 503: service unavailable\n"
    assert len(read_refused(path)) == 1
    front.fail_always(None)
    assert marketfeed(commanded, "deadletter", "--resend").returncode == 0
    assert read_refused(path) == []
    assert marketfeed(commanded, "deadletter").returncode == 0
