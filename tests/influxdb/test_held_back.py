"""Rows that a bucket refuses as a whole delay no others, and come when it takes them: real servers."""

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import uvloop
from endpoint import serving, stored
from filled import PAIRS, QUICK
from front import Front
from influxd import Influxd, quoted
from shipped import Target, shipping, v1_target, v2_target

from marketfeed.influxdb import held_back
from marketfeed.influxdb.holds import shard_of, time_of
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, MarkPrice
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from tests.waiting import until

WEEK_MS = 7 * DAY_MS
# The last whole week of before, by the wall: a bucket with an expiry goes by that.
NOW_MS = time.time_ns() // 1_000_000
WEEK, NEXT_WEEK = shard_of(NOW_MS - 2 * WEEK_MS, None)
PACE = msgspec.structs.replace(
    QUICK, turn_s=0.05, probe_every_s=0.5, older_first_s=0.05, older_cap_s=0.2
)


@pytest.fixture(params=["v1", "v2"])
def target(request: pytest.FixtureRequest, influxd: Influxd, database: str, front: Front) -> Target:
    return v1_target(influxd, database) if request.param == "v1" else v2_target(front)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def candles(start_ms: int, count: int = 20) -> Iterable[Candle]:
    for number in range(count):
        at_ms = start_ms + number * MINUTE_MS
        for pair in PAIRS:
            yield Candle(
                pair, "1m", at_ms, 1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0, 5, True, at_ms + MINUTE_MS
            )


async def write(writer: JournalWriter, *records: Candle | MarkPrice) -> None:
    batch = Batch()
    for record in records:
        batch.add(record)
    await writer.call(lambda journal: journal.write(batch))


def opens_in(target: Target) -> set[int]:
    found = target.influxd.query("SELECT trades FROM ohlcv_1m", target.database)
    return {at_ms for series in found for at_ms, trades in series["values"] if trades == 5}


def weeks_in(target: Target) -> set[int]:
    return {shard_of(at_ms, None)[0] for at_ms in opens_in(target)}


def is_shipped(writer: JournalWriter, shipper: Shipper) -> bool:
    return shipper.shipped_below() == writer.next_seq


def spoil(target: Target) -> None:
    """An older writer's field of another type, in one week."""
    target.write(f"ohlcv_1m,pair=OLD/USDT:USDT trades=6.0 {WEEK + 5}")


def test_a_refused_week_waits_and_delays_nothing(target: Target, path: Path) -> None:
    spoil(target)

    async def run() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            await write(writer, *candles(WEEK + DAY_MS), *candles(NEXT_WEEK))
            await write(writer, *(MarkPrice(pair, WEEK + DAY_MS, 7.0, 8.0) for pair in PAIRS))
            await until(lambda: is_shipped(writer, shipper) and bool(shipper.report().held))
            report = shipper.report()
            assert (report.state, report.refused, report.unshipped) == ("shipping", 0, 0)
            (held,) = report.held
            assert held.startswith("ohlcv_1m of ")
            assert "field type conflict" in held
            assert weeks_in(target) == {NEXT_WEEK}
            assert target.influxd.query("SELECT * FROM mark_price", target.database)
            # What comes for that week later costs no request but the probes'.
            requests = report.batches
            started_s = time.monotonic()
            for number in range(20):
                await write(writer, *candles(WEEK + 2 * DAY_MS + number * 20 * MINUTE_MS))
                await until(lambda: is_shipped(writer, shipper))
            probes = (time.monotonic() - started_s) / PACE.probe_every_s + 1
            # Each turn may also ship the next candles' coverage.
            assert shipper.report().batches - requests <= probes + 22
            assert weeks_in(target) == {NEXT_WEEK}
            drop_week(target)
            await until(lambda: WEEK in weeks_in(target))
            await until(lambda: not shipper.report().held and shipper.held.book.again is None)
            wanted = {WEEK + DAY_MS + n * MINUTE_MS for n in range(20)}
            wanted |= {WEEK + 2 * DAY_MS + n * MINUTE_MS for n in range(400)}
            await until(lambda: opens_in(target) >= wanted)

    uvloop.run(run())


def drop_week(target: Target) -> None:
    """Mend the week: drop the shard whose types clash."""
    for series in target.influxd.query("SHOW SHARDS"):
        for row in series.get("values", ()):
            shard = dict(zip(series["columns"], row, strict=True))
            if shard["database"] == target.database and shard["start_time"].startswith(
                time.strftime("%Y-%m-%d", time.gmtime(WEEK / 1000))
            ):
                target.influxd.query(f"DROP SHARD {shard['id']}")


def test_what_is_held_is_kept_over_a_start(target: Target, path: Path) -> None:
    spoil(target)
    slow = msgspec.structs.replace(PACE, probe_every_s=3_600.0)

    async def held() -> None:
        async with shipping(path, target.settings, slow, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            await write(writer, *candles(WEEK + DAY_MS))
            await until(lambda: is_shipped(writer, shipper) and bool(shipper.report().held))

    async def after() -> None:
        async with shipping(path, target.settings, slow, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            await write(writer, *candles(WEEK + 2 * DAY_MS), *candles(NEXT_WEEK, 1))
            await until(lambda: is_shipped(writer, shipper) and weeks_in(target) == {NEXT_WEEK})
            assert len(shipper.report().held) == 1
            assert shipper.report().refused == 0

    async def mended() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True):
            await until(lambda: len(opens_in(target)) == 41)

    uvloop.run(held())
    uvloop.run(after())
    drop_week(target)
    uvloop.run(mended())


def test_older_rows_that_are_not_taken_keep_nothing_new_back(path: Path) -> None:
    """A shard of before fails for good (500), and what is new goes on at its own pace."""
    old_ms = NOW_MS - 30 * DAY_MS

    def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        is_old = any(time_of(line) < NOW_MS - 2 * DAY_MS for line in lines)
        return (500, b"{}", {}) if is_old else (204, b"", {})

    async def run() -> None:
        async with serving() as server:
            influx = {"url": server.url, "org": "fleet", "token": "invented"}
            async with shipping(path, influx, PACE, lambda: NOW_MS, holds=True) as (
                writer,
                shipper,
            ):
                await write(writer, *candles(old_ms))
                await until(lambda: is_shipped(writer, shipper))
                server.answer = answer
                # The week was refused as a whole, and is taken again: now its rows are to come.
                hold = shipper.held.book.hold([f"ohlcv_1m,pair=A open=1 {old_ms}"], "status 422: f")
                assert hold is not None
                shipper.held.book.release(hold)
                await until(
                    lambda: any(time_of(line) < NOW_MS - DAY_MS for line in server.requests[-1])
                )
                for number in range(10):
                    await write(writer, *candles(NOW_MS - DAY_MS + number * HOUR_MS, 2))
                    await until(lambda: is_shipped(writer, shipper))
                    report = shipper.report()
                    assert (report.state, report.trouble_for_s) == ("shipping", 0.0)
                assert shipper.held.book.again is not None
                server.answer = stored
                await until(lambda: shipper.held.book.again is None)

    uvloop.run(run())


def expire(target: Target, days: int) -> None:
    if target.front is not None:
        target.front.expire("market_data", days * 86_400)
    else:
        duration = f"{days}d" if days else "INF"
        target.influxd.query(
            f"ALTER RETENTION POLICY autogen ON {quoted(target.database)} "
            f"DURATION {duration} SHARD DURATION 1d"
        )


def test_what_is_too_old_is_not_sent_until_the_bucket_keeps_it(
    target: Target, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_back, "EXPIRY_EVERY_S", 0.3)
    expire(target, 10)
    # On both sides of what it keeps, and a year back.
    times = [*range(NOW_MS - 20 * DAY_MS, NOW_MS - HOUR_MS, DAY_MS // 4), NOW_MS - 370 * DAY_MS]

    async def run() -> None:
        async with shipping(path, target.settings, PACE, lambda: NOW_MS, holds=True) as (
            writer,
            shipper,
        ):
            await write(writer, *(one for at_ms in times for one in candles(at_ms, 1)))
            await until(lambda: is_shipped(writer, shipper))
            report = shipper.report()
            assert (report.refused, report.held, report.unshipped) == (0, [], 0)
            kept = {at_ms for at_ms in times if at_ms >= NOW_MS - 10 * DAY_MS + MINUTE_MS}
            assert opens_in(target) == kept
            if target.front is not None:
                assert set(target.front.counts.writes) == {204}
            expire(target, 0)
            await until(lambda: opens_in(target) == set(times))
            await until(lambda: shipper.held.book.again is None)
            assert shipper.report().refused == 0

    uvloop.run(run())
