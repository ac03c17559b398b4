"""A bucket that has lost what it acknowledged is mended by itself: real servers, emptied by a hand."""

import time
from pathlib import Path

import aiohttp
import pytest
import uvloop
from comparing import COMPARE, Comparing, candles, comparing, losing, marks
from front import Front, Rights
from influxd import Influxd
from shipped import Target, v1_target, v2_target

from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.both_sides import BothSides
from marketfeed.influxdb.bucket_numbers import BucketNumbers
from marketfeed.influxdb.holds import shard_of
from marketfeed.influxdb.reconciler import Reconciler
from marketfeed.records import CatalogEntry, FundingRate, FundingSettled, Gap
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.settings.model import InfluxSettings
from tests.waiting import until

NOW_MS = time.time_ns() // 1_000_000
HOUR = NOW_MS // HOUR_MS * HOUR_MS - HOUR_MS
"""The last whole hour of before."""
MIDNIGHT = NOW_MS // DAY_MS * DAY_MS
PAIRS = tuple(f"{name}/USDT:USDT" for name in ("BTC", "ETH", "SOL", "币安"))


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


@pytest.fixture
def v1(influxd: Influxd, database: str) -> Target:
    return v1_target(influxd, database)


def count(target: Target, measurement: str, field: str) -> int:
    text = f'SELECT count("{field}") FROM "{measurement}"'  # noqa: S608 - constants
    found = target.influxd.query(text, target.database)
    return int(found[0]["values"][0][1]) if found else 0


def delete(target: Target, text: str) -> None:
    target.influxd.query(f"DELETE FROM {text}", target.database)  # noqa: S608


async def at_rest(one: Comparing) -> None:
    """Wait until all is shipped and has been compared since."""
    await until(lambda: one.is_shipped)
    await until(one.looked())
    await until(lambda: one.is_shipped)


def test_a_quarter_of_the_last_hours_comes_back(target: Target, path: Path) -> None:
    async def run() -> None:
        async with comparing(path, target.settings, lambda: NOW_MS) as one:
            await one.write(candles(PAIRS, HOUR - HOUR_MS, 100))
            await one.write(marks(PAIRS, HOUR, 500))
            await at_rest(one)
            lines = one.shipper.lines
            assert one.reconciler.report().wrong == 0
            delete(target, f"ohlcv_1m WHERE time < {HOUR - HOUR_MS + 25 * MINUTE_MS}ms")
            delete(target, f"mark_price WHERE time < {HOUR + 100_000}ms")
            assert count(target, "ohlcv_1m", "trades") == 300
            await until(lambda: count(target, "ohlcv_1m", "trades") == 400)
            await until(lambda: count(target, "mark_price", "mark_price") == 2_000)
            await at_rest(one)
            report = one.reconciler.report()
            assert (report.state, report.lacking, report.mended) == ("comparing", 500, 500)
            assert (report.ranges, report.everything, report.foreign) == (0, 0, 0)
            assert one.shipper.lines - lines == 500

    uvloop.run(run())


def test_days_come_back_within_a_round_and_many_rows_as_a_range(v1: Target, path: Path) -> None:
    day = MIDNIGHT - 3 * DAY_MS

    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(candles(PAIRS, day, 1_300))
            await one.write(candles(PAIRS, day - DAY_MS, 100, "5m"))
            rates = (FundingRate(PAIRS[0], day + n * MINUTE_MS, 0.0001 * n, day) for n in range(99))
            await one.write(rates)
            await at_rest(one)
            # By the pair's hundred one by one, by its thousand as the whole range.
            delete(v1, f"ohlcv_1m WHERE time < {day + 1_200 * MINUTE_MS}ms AND pair = '{PAIRS[0]}'")
            delete(v1, f"ohlcv_5m WHERE pair = '{PAIRS[1]}'")
            delete(v1, f"funding_rate WHERE time < {day + 50 * MINUTE_MS}ms")
            await until(lambda: count(v1, "ohlcv_1m", "trades") == 5_200)
            await until(lambda: count(v1, "ohlcv_5m", "trades") == 400)
            await until(lambda: count(v1, "funding_rate", "rate") == 99)
            await at_rest(one)
            report = one.reconciler.report()
            assert (report.ranges, report.mended, report.lacking) == (1, 150, 1_350)

    uvloop.run(run())


def test_an_emptied_bucket_is_filled_anew(v1: Target, path: Path) -> None:
    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(candles(PAIRS, MIDNIGHT - 5 * DAY_MS, 5 * 288, "5m"))
            await one.write(candles(PAIRS, HOUR, 30))
            await at_rest(one)
            delete(v1, "/.*/")
            await until(lambda: count(v1, "ohlcv_5m", "trades") == 4 * 5 * 288)
            await until(lambda: count(v1, "ohlcv_1m", "trades") == 120)
            assert one.reconciler.report().everything == 1

    uvloop.run(run())


def test_what_a_server_took_and_lost_is_whole_again(v1: Target, path: Path) -> None:
    async def run() -> None:
        async with (
            losing(v1.influxd) as server,
            comparing(path, {**v1.settings, "url": server.url}, lambda: NOW_MS) as one,
        ):
            await one.write(candles(PAIRS, HOUR, 20))
            await at_rest(one)
            server.loses = True
            await one.write(candles(PAIRS, HOUR + 20 * MINUTE_MS, 10))
            await one.write([Gap("connection_feed-1", None, HOUR, HOUR + 5, "healed", "lost")])
            await until(lambda: one.shipper.shipped_below() == one.writer.next_seq)
            server.loses = False
            assert server.lost >= 41
            await until(lambda: count(v1, "ohlcv_1m", "trades") == 120)
            await until(lambda: count(v1, "feed_gap", "healed") == 1)

    uvloop.run(run())


def test_small_measurements_are_read_whole(v1: Target, path: Path) -> None:
    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(
                [
                    FundingSettled(PAIRS[0], HOUR, 0.0001, None),
                    Gap("connection_feed-1", None, HOUR, HOUR + 5, "healed", "lost"),
                    CatalogEntry(PAIRS[3], "X", ("1m",), HOUR, 5, None, HOUR),
                ]
            )
            await until(lambda: one.is_shipped)
            names = {"funding_settled": "rate", "feed_gap": "healed"}
            for name, field in names.items():
                await until(lambda at=(name, field): count(v1, *at) == 1)
                delete(v1, name)
            for name, field in names.items():
                await until(lambda at=(name, field): count(v1, *at) == 1)

    uvloop.run(run())


def test_two_collectors_do_not_fight(v1: Target, tmp_path: Path) -> None:
    """Different histories, cadences and values: at rest nothing is sent, and a loss is found still."""

    async def run() -> None:
        async with (
            comparing(tmp_path / "one.db", v1.settings, lambda: NOW_MS) as one,
            comparing(tmp_path / "two.db", v1.settings, lambda: NOW_MS) as two,
        ):
            await one.write(candles(PAIRS, MIDNIGHT - 2 * DAY_MS, 288, "5m"))
            await two.write(candles(PAIRS, MIDNIGHT - 2 * DAY_MS, 144, "5m", trades=4))
            await one.write(marks(PAIRS, HOUR, 600))
            await two.write(marks(PAIRS, HOUR, 200, 3_000, index=9.0))
            for each in (one, two, one, two):
                await at_rest(each)
            sent = [each.shipper.mends.sent for each in (one, two)]
            lines = [each.shipper.lines for each in (one, two)]
            for each in (one, two, one, two):
                await until(each.looked())
            assert [each.shipper.mends.sent for each in (one, two)] == sent
            assert [each.shipper.lines for each in (one, two)] == lines
            assert count(v1, "ohlcv_5m", "trades") == 4 * 288
            # A real loss of what only one of them has, where they differ.
            delete(v1, f"mark_price WHERE time = {HOUR + 4_000}ms")
            delete(v1, f"ohlcv_5m WHERE time = {MIDNIGHT - DAY_MS - 5 * MINUTE_MS}ms")
            await until(lambda: count(v1, "mark_price", "mark_price") == 4 * 600)
            await until(lambda: count(v1, "ohlcv_5m", "trades") == 4 * 288)

    uvloop.run(run())


def test_fewer_trades_are_replaced_and_other_values_sent_once(v1: Target, path: Path) -> None:
    pair = PAIRS[0]

    def field(name: str, at_ms: int) -> float:
        text = f"SELECT {name} FROM ohlcv_1m WHERE time = {at_ms}ms AND pair = '{pair}'"  # noqa: S608
        (series,) = v1.influxd.query(text, v1.database)
        return float(series["values"][0][1])

    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(candles([pair], HOUR, 30))
            await at_rest(one)
            fields = "open=9.0,high=2.5,low=1.0,close=2.0,volume=3.0,quote_volume=4.0"
            start = f"ohlcv_1m,pair={pair} {fields},taker_buy_volume=1.0"
            v1.write(f"{start},trades=3i {HOUR}", f"{start},trades=9i {HOUR + MINUTE_MS}")
            await until(lambda: field("open", HOUR) == 1.5)
            await at_rest(one)
            assert field("open", HOUR + MINUTE_MS) == 9.0, "more trades are another collector's"
            # The sum of trades does not show it; a tile that is read for another row does.
            v1.write(f"{start},trades=5i {HOUR + 2 * MINUTE_MS}", f"{start},trades=3i {HOUR}")
            await until(lambda: field("open", HOUR + 2 * MINUTE_MS) == 1.5)
            await at_rest(one)
            sent = one.shipper.mends.sent
            v1.write(f"{start},trades=5i {HOUR + 2 * MINUTE_MS}", f"{start},trades=3i {HOUR}")
            await until(lambda: field("open", HOUR) == 1.5)
            await at_rest(one)
            assert field("open", HOUR + 2 * MINUTE_MS) == 9.0, "sent once, then another's"
            assert one.shipper.mends.sent == sent + 1
            assert one.reconciler.report().foreign >= 1

    uvloop.run(run())


def test_what_is_held_or_was_refused_does_not_lack(v1: Target, path: Path) -> None:
    week, _ = shard_of(NOW_MS - 14 * DAY_MS, None)
    v1.write(f"ohlcv_1m,pair=OLD/USDT:USDT trades=6.0 {week + 5}")

    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(candles(PAIRS, week + DAY_MS, 20))
            await one.write(candles(PAIRS, HOUR, 20))
            await at_rest(one)
            assert one.shipper.report().held
            line = f"ohlcv_1m,pair={PAIRS[0]} trades=5i {HOUR}"
            await one.writer.call(
                lambda journal: journal.put_aside(one.shipper.report().target, [(line, "no")], 1)
            )
            delete(v1, f"ohlcv_1m WHERE time = {HOUR}ms AND pair = '{PAIRS[0]}'")
            await at_rest(one)
            report = one.reconciler.report()
            assert (report.lacking, report.mended, report.ranges) == (0, 0, 0)
            assert report.left == 1

    uvloop.run(run())


def test_what_has_expired_does_not_lack(influxd: Influxd, path: Path) -> None:
    with influxd.database("expiring") as name:
        influxd.query(f'ALTER RETENTION POLICY autogen ON "{name}" DURATION 48h SHARD DURATION 1h')
        target = v1_target(influxd, name)

        async def run() -> None:
            async with comparing(path, target.settings, lambda: NOW_MS) as one:
                await one.write(candles(PAIRS, NOW_MS // MINUTE_MS * MINUTE_MS - 3 * DAY_MS, 4_000))
                await at_rest(one)
                report = one.reconciler.report()
                assert report.tiles > 0
                assert (report.lacking, report.ranges, report.everything) == (0, 0, 0)

        uvloop.run(run())


def test_answers_that_are_cut_off_mend_nothing(tmp_path: Path) -> None:
    with Influxd(tmp_path / "influxd", max_rows=3) as influxd, influxd.database("cut") as name:
        target = v1_target(influxd, name)

        async def run() -> None:
            async with comparing(tmp_path / "j.db", target.settings, lambda: NOW_MS) as one:
                await one.write(candles(PAIRS, HOUR, 20))
                await until(lambda: "max-row-limit" in one.reconciler.report().why)
                await until(lambda: one.is_shipped)
                report = one.reconciler.report()
                assert (report.lacking, report.ranges, report.everything) == (0, 0, 0)

        uvloop.run(run())


def test_a_field_of_another_type_stops_no_other_measurement(v1: Target, path: Path) -> None:
    v1.write(f'mark_price,pair=OLD/USDT:USDT mark_price="text" {HOUR + 5}')

    async def run() -> None:
        async with comparing(path, v1.settings, lambda: NOW_MS) as one:
            await one.write(marks(PAIRS, HOUR, 20))
            await one.write(candles(PAIRS, HOUR, 20))
            await at_rest(one)
            delete(v1, f"ohlcv_1m WHERE time = {HOUR}ms")
            await until(lambda: count(v1, "ohlcv_1m", "trades") == 80)
            assert one.reconciler.report().ranges == 0

    uvloop.run(run())


def test_without_the_right_to_read_it_is_off(front: Front, path: Path) -> None:
    front.tokens["writer"] = Rights(read=frozenset(), manage=False)
    settings = {**v2_target(front).settings, "token": "writer"}

    async def run() -> None:
        async with comparing(path, settings, lambda: NOW_MS) as one:
            await one.write(candles(PAIRS, HOUR, 20))
            await until(lambda: one.reconciler.report().state == "off")
            assert "database not found" in one.reconciler.report().why
            await until(lambda: one.is_shipped)

    uvloop.run(run())


def test_where_it_is_not_wanted_nothing_is_asked(front: Front, path: Path) -> None:
    async def run() -> None:
        async with comparing(path, v2_target(front).settings, lambda: NOW_MS) as one:
            parts = one.writer, one.shipper
            async with aiohttp.ClientSession() as session:
                influx = InfluxSettings.model_validate(dict(v2_target(front).settings))
                bucket = BucketNumbers(InfluxAdmin(influx, session), influx.bucket)
                sides = BothSides(*parts, bucket, "t", lambda: NOW_MS)
                off = Reconciler(*parts, sides, "t", COMPARE, is_wanted=False)
                await off.run()
            assert sides.asked_s == 0
            assert off.report().state == "off"
            assert "influxdb.compare" in off.report().why

    uvloop.run(run())
