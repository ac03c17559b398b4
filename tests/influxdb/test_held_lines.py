"""Holds whose line shows little: of a state, of an optional field, too old by now; and slow servers."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from endpoint import Server, serving
from filled import PAIRS, QUICK
from front import Front
from influxd import Influxd
from shipped import Target, shipping, v1_target, v2_target

from marketfeed.influxdb.delivery import Delivery
from marketfeed.influxdb.expiry import Expiry
from marketfeed.influxdb.held_back import HeldBack
from marketfeed.influxdb.holds import Again, shard_of
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter, target_of
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry, MarkPrice
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.acknowledged import demand_again
from tests.waiting import until

NOW_MS = time.time_ns() // 1_000_000
WEEK, _ = shard_of(NOW_MS, None)
PACE = msgspec.structs.replace(QUICK, probe_every_s=0.5)
CONFLICT = (
    b'{"error": "partial write: field type conflict: input field \\"open\\" on measurement '
    b'\\"ohlcv_1m\\" is type float, already exists as type integer dropped=1"}'
)
TOO_OLD = b'{"error": "partial write: points beyond retention policy dropped=1"}'


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


async def write(writer: JournalWriter, *records: Candle | MarkPrice | CatalogEntry) -> None:
    batch = Batch()
    for record in records:
        batch.add(record)
    await writer.call(lambda journal: journal.write(batch))


def candle(at_ms: int, *, closed: bool = True) -> Candle:
    return Candle(
        PAIRS[0], "1m", at_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, closed, at_ms + MINUTE_MS
    )


def values(target: Target, field: str, measurement: str) -> list[Any]:
    """What is stored, without what an older writer left."""
    found = target.influxd.query(
        f"SELECT {field} FROM {measurement} WHERE pair != 'OLD/USDT:USDT'",  # noqa: S608
        target.database,
    )
    return [value for series in found for _, value in series["values"]]


def empty(target: Target) -> None:
    """Drop all shards: the types that clash are gone."""
    for series in target.influxd.query("SHOW SHARDS"):
        for row in series.get("values", ()):
            shard = dict(zip(series["columns"], row, strict=True))
            if shard["database"] == target.database:
                target.influxd.query(f"DROP SHARD {shard['id']}")


def test_of_a_field_that_not_all_rows_have_only_those_that_have_it_wait(
    target: Target, path: Path
) -> None:
    target.write(f"mark_price,pair=OLD/USDT:USDT index_price=6i {WEEK + 5}")

    async def run() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            # The newest has none.
            for number in range(100):
                index = None if number % 2 else 8.0
                await write(writer, MarkPrice(PAIRS[0], WEEK + number * 1_000, 7.0, index))
            await until(lambda: bool(shipper.report().held))
            await until(lambda: shipper.shipped_below() == writer.next_seq)
            assert values(target, "mark_price", "mark_price") == [7.0] * 50
            (hold,) = shipper.held.book.holds
            assert hold.field == "index_price"
            # Not taken by a line that has no such field: five probes on, it waits as before.
            requests = shipper.report().batches
            await until(lambda: shipper.report().batches >= requests + 5)
            assert shipper.held.book.holds == [hold]
            assert shipper.held.book.again is None
            empty(target)
            await until(lambda: values(target, "index_price", "mark_price") == [8.0] * 50)
            assert shipper.report().refused == 0

    uvloop.run(run())


def test_a_state_that_is_refused_is_probed_and_comes_anew_when_it_is_taken(
    target: Target, path: Path
) -> None:
    target.write(
        f"forming_1m,pair=OLD/USDT:USDT trades=6.0 {WEEK + 5}",
        f"feed_catalog,pair=OLD/USDT:USDT timeframes=6i {WEEK + 5}",
    )

    async def run() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            entry = CatalogEntry(PAIRS[0], "BTCUSDT", ("1m",), WEEK, 5, None, WEEK)
            await write(writer, entry, candle(WEEK, closed=False))
            names = {"forming_1m", "feed_catalog"}

            def held() -> set[str]:
                return {hold.measurement for hold in shipper.held.book.holds}

            await until(lambda: held() == names)
            before = shipper.held.book.holds
            requests = shipper.report().batches
            await until(lambda: shipper.report().batches >= requests + 6)
            assert shipper.held.book.holds == before, "what is not mended is not released"
            empty(target)
            await until(lambda: values(target, "trades", "forming_1m") == [5])
            # As it changed, and as it is said anew.
            await until(lambda: len(values(target, "timeframes", "feed_catalog")) == 2)
            assert held() == set()

    uvloop.run(run())


class Held:
    """The book, the server that is probed, and the time that a test sets."""

    delivery: Delivery

    def __init__(self, server: Server, held: HeldBack) -> None:
        self.server = server
        self.held = held
        self.now_ms = NOW_MS

    async def probe(self, now_s: float) -> list[str]:
        async def standing(lines: list[str]) -> list[str | None]:
            return list(lines)

        return await self.held.probe(self.delivery, standing, now_s, 60.0)


@contextlib.asynccontextmanager
async def held_line(path: Path, keeps_ms: int | None) -> AsyncIterator[Held]:
    """A book with one line of an hour ago, whose expiry is as asked for."""

    async def expiry() -> int | None:
        return keeps_ms

    async with (
        serving() as server,
        aiohttp.ClientSession() as session,
        JournalWriter(path) as writer,
    ):
        settings = InfluxSettings.model_validate({"url": server.url, "api": "v1"})
        made = Held(server, HeldBack("t", writer, lambda: made.now_ms, expiry))
        await made.held.begin(anew=False)
        made.delivery = Delivery(
            InfluxWriter(settings, session), UnansweredLines(60.0), made.held.hold
        )
        server.answer = lambda _: (400, CONFLICT, {})
        line = f"ohlcv_1m,pair=A/USDT:USDT open=1.5 {NOW_MS - HOUR_MS}"
        assert await made.delivery.rows([line], 10) == []
        assert await made.probe(0.0) == []
        yield made


def test_a_line_that_is_too_old_by_now_does_not_keep_the_rest_of_its_shard(path: Path) -> None:
    async def run() -> None:
        async with held_line(path, 10 * DAY_MS) as made:
            (hold,) = made.held.book.holds
            line_ms = NOW_MS - HOUR_MS
            made.now_ms = line_ms + 10 * DAY_MS - MINUTE_MS
            assert await made.probe(60.0) == []
            assert len(made.server.requests) == 2
            # Refused for its age from now on, whatever becomes of the types.
            made.now_ms += 1
            if hold.end_ms > made.held.book.floor_ms(made.now_ms):
                assert await made.probe(120.0) == ["ohlcv_1m"]
                assert made.held.book.again == Again("ohlcv_1m", hold.start_ms, hold.end_ms)
            made.now_ms = hold.end_ms + 10 * DAY_MS
            assert await made.probe(180.0) == []
            assert made.held.book.holds == []
            assert len(made.server.requests) == 2

    uvloop.run(run())


def test_where_the_expiry_is_not_seen_the_words_say_that_a_line_is_too_old(path: Path) -> None:
    async def run() -> None:
        async with held_line(path, None) as made:
            assert await made.probe(60.0) == []
            made.server.answer = lambda _: (400, TOO_OLD, {})
            assert await made.probe(120.0) == ["ohlcv_1m"]
            assert made.held.book.again is not None

    uvloop.run(run())


def test_what_waited_is_sent_though_each_turn_takes_longer_than_it_should(
    target: Target, path: Path
) -> None:
    target.write(f"ohlcv_1m,pair=OLD/USDT:USDT trades=6.0 {WEEK + 5}")
    # Every turn is over when it begins.
    slow = msgspec.structs.replace(PACE, turn_s=0.0)

    async def run() -> None:
        async with shipping(path, target.settings, slow, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            # The newest is what is tried.
            await write(writer, candle(WEEK), candle(WEEK + MINUTE_MS))
            await until(lambda: bool(shipper.report().held))
            empty(target)
            await until(lambda: values(target, "trades", "ohlcv_1m") == [5, 5])

    uvloop.run(run())


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b"7", b"\xff", b"[" * 100_000, b'{"results": null}', b"<html>"),
        *(b'{"results": [{"series": [{"values": [["autogen"]]}]}]}', b'{"buckets": [{}]}'),
        b'{"results": [{"series": [{"columns": ["default"], "values": [[true]]}]}]}',
        b'{"buckets": [{"name": "market_data", "retentionRules": [{"everySeconds": null}]}]}',
    ],
)
def test_an_answer_that_is_none_of_an_influxdb_says_nothing_of_the_expiry(
    api: str, body: bytes
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async def asked() -> int | None:
        app = web.Application()
        app.router.add_get("/{any:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            address = {"url": f"http://{host}:{port}", "org": "fleet", "api": api}
            settings = InfluxSettings.model_validate(address)
            async with aiohttp.ClientSession() as session:
                return await Expiry(settings, session).keeps_ms()
        finally:
            await runner.cleanup()

    assert uvloop.run(asked()) is None


def test_all_that_is_shipped_again_while_rows_are_held_comes_once_they_are_taken(
    target: Target, path: Path
) -> None:
    target.write(f"ohlcv_1m,pair=OLD/USDT:USDT trades=6.0 {WEEK + 5}")
    name = target_of(InfluxSettings.model_validate(dict(target.settings)))

    async def run() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            await write(writer, candle(WEEK), MarkPrice(PAIRS[0], WEEK, 7.0, 8.0))
            await until(lambda: bool(shipper.report().held))
            await until(lambda: shipper.shipped_below() == writer.next_seq)
            book = shipper.held.book
            demand_again(KIND, path, name)
            await until(lambda: shipper.held.book is not book, "begun anew")
            await until(lambda: bool(shipper.report().held))
            await until(lambda: shipper.shipped_below() == writer.next_seq)
            # Demanded once more while what waited is being sent.
            empty(target)
            demand_again(KIND, path, name)
            await until(lambda: values(target, "trades", "ohlcv_1m") == [5])
            await until(lambda: values(target, "mark_price", "mark_price") == [7.0])
            await until(lambda: not shipper.report().held and shipper.held.book.again is None)

    uvloop.run(run())
