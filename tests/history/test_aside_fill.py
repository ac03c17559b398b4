"""What a journal that was set aside gives to its successor, page for page, and when it may be deleted."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from marketfeed.binance.symbols import Instrument
from marketfeed.gaps.promises import promises
from marketfeed.history.aside_fill import AsideFill
from marketfeed.journal.aside_rows import is_possible
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, floor_to
from marketfeed.storage.damage import put_aside
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
DROPPED: Final = "OLD/USDT:USDT"
T0: Final = floor_to(1_790_000_160_000, HOUR_MS)
CANDLES: Final = 3_000
END_MS: Final = T0 + CANDLES * MINUTE_MS
TABLES: Final = {
    "candle": "timeframe_ms, open_time, open, close, volume, trades, taker_buy_quote_volume",
    "mark_1h": "open_time, open, close",
    "mark_price": "time, offset_ms, mark_price, index_price",
    "funding_rate": "time, offset_ms, rate, settled_rate, next_funding_time",
    "funding_settled": "time, kind, rate, mark_price",
    "gap": 'kind, start, "end", state, reason',
}


def candle(pair: str, number: int, timeframe: str = "1m") -> Candle:
    length_ms = HOUR_MS if timeframe == "mark_1h" else MINUTE_MS
    at_ms = T0 + number * length_ms
    amounts = (7.0, 8.0, 3.0, 4) if timeframe == "1m" else (0.0, 0.0, 0.0, 0)
    return Candle(pair, timeframe, at_ms, 1.0, 1.5, 0.5, 1.0, *amounts, True, at_ms, 2.0)


def fill(journal: Journal) -> None:
    """A few days of one pair that is collected, and some of another that was."""
    journal.promise(
        [Promise(PAIR, name, END_MS, END_MS - T0 - 60 * MINUTE_MS) for name in ("1m", "mark_1h")]
    )
    batch = Batch()
    batch.candles = [candle(PAIR, number) for number in range(CANDLES)]
    batch.candles += [candle(DROPPED, number) for number in range(500)]
    batch.marks = [candle(PAIR, number, "mark_1h") for number in range(CANDLES // 60)]
    batch.extend(MarkPrice(PAIR, T0 + n * 3_000 + 7, 1.0, 2.0) for n in range(2_500))
    batch.extend(
        FundingRate(PAIR, T0 + n * MINUTE_MS + 7, 0.1, T0 + DAY_MS) for n in range(CANDLES)
    )
    batch.extend(FundingSettled(PAIR, T0 + n * 8 * HOUR_MS, 0.1, 1.0) for n in range(6))
    batch.extend([Gap("rejected", None, T0, None, "unresolvable", "a reason")])
    batch.extend([Gap("candle_3m", PAIR, T0, T0 + 1, "healed", "stored")])
    batch.extend(
        CatalogEntry(pair, f"{pair[:3]}USDT", ("1m",), T0, None, None, T0)
        for pair in (PAIR, DROPPED)
    )
    journal.write(batch)


def rows(path: Path) -> dict[str, set[tuple[object, ...]]]:
    """What a journal holds of each table, without its numbers."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return {
            table: set(
                db.execute(
                    f"SELECT coalesce(pair, ''), {columns} FROM {table} "  # noqa: S608
                    "LEFT JOIN pair ON pair.id = pair_id"
                )
            )
            for table, columns in TABLES.items()
        }


@contextlib.asynccontextmanager
async def taking_over(path: Path) -> AsyncIterator[tuple[JournalWriter, AsideFill]]:
    """A fresh journal that promises what the old one did, and takes over from it."""
    async with JournalWriter(path, again_after_s=(0.0, 0.0)) as writer:
        promised = False
        aside = AsideFill(writer, 1 << 40, lambda: END_MS, lambda: promised)
        theirs = await aside.promised_from_ms()
        keys = [key for key in theirs if key[0] == PAIR and key[1] in ("1m", "mark_1h")]
        await writer.call(
            lambda journal: journal.promise(
                [Promise(*key, END_MS, HOUR_MS, 0, END_MS - theirs[key]) for key in keys]
            )
        )
        promised = True
        running = asyncio.create_task(aside.run())
        try:
            yield writer, aside
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def remove(old: Path) -> None:
    for file in old.parent.glob("*.corrupt-*"):
        file.unlink()


def set_aside(path: Path) -> Path:
    with Journal.open(path) as journal:
        fill(journal)
        # With rows that only its -wal has, as after a kill.
        journal.db.execute("PRAGMA wal_autocheckpoint = 0")
        kept = [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]
        contents = [file.read_bytes() for file in kept]
    for file, content in zip(kept, contents, strict=True):
        file.write_bytes(content)
    return put_aside(path)


def test_all_of_a_whole_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old = set_aside(path)
    before = rows(old)

    async def run() -> None:
        async with taking_over(path) as (writer, aside):
            await until(lambda: aside.report() and aside.report()[0].state == "drained")
            (report,) = aside.report()
            assert (report.path, report.lost, report.trouble) == (str(old), 0, "")
            assert report.bytes >= old.stat().st_size
            assert report.candles >= CANDLES
            # What it promised is promised, and there.
            covered = writer.coverage[PAIR, "1m"]
            assert covered.from_ms == T0 + 60 * MINUTE_MS
            assert covered.holes == ()
            assert writer.mark_coverage[PAIR, "mark_1h"].holes == ()

    asyncio.run(run())
    after = rows(path)
    for table, found in before.items():
        missing = found - after[table]
        if table == "gap":
            # Its own holes are found anew.
            missing = {
                row for row in missing if "history" not in str(row[1]) and row[4] == "healed"
            }
        assert missing == set(), table

    async def again() -> None:
        async with taking_over(path) as (writer, aside):
            next_seq = writer.next_seq
            await until(aside.report)
            # Once is enough, over restarts, too.
            assert await aside.promised_from_ms() == {}
            assert [one.state for one in aside.report()] == ["drained"]
            assert writer.next_seq == next_seq
            remove(old)
            await writer.look_beside()
            assert aside.report() == []

    asyncio.run(again())


@pytest.mark.parametrize("table", ["candle", "mark_price", "funding_rate"])
def test_a_bad_page_costs_its_own_rows(tmp_path: Path, table: str) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        fill(journal)
    before = rows(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        pages = db.execute(
            "SELECT pageno, ncell FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path",
            (table,),
        ).fetchall()
    number, cells = pages[len(pages) // 2]
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(18)[16:18], "big")
        file.seek((number - 1) * size)
        file.write(b"\xff" * 100)
    put_aside(path)

    async def run() -> None:
        async with taking_over(path) as (_, aside):
            await until(lambda: aside.report() and aside.report()[0].state == "drained")
            assert aside.report()[0].lost > 0

    asyncio.run(run())
    after = rows(path)
    for name, found in before.items():
        if name != "gap":
            missing = found - after[name]
            # The rows between it and its neighbours lie in the page above, and are reached through it.
            assert len(missing) <= (cells + 2 if name == table else 0), name


def test_what_would_be_deleted_for_its_age_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    set_aside(path)
    keep_ms = {"candle": HOUR_MS, "mark_price": END_MS - T0 - 3_000, "funding_rate": DAY_MS}

    async def run() -> None:
        async with JournalWriter(path) as writer:
            aside = AsideFill(writer, 1 << 40, lambda: END_MS, lambda: True, keep_ms)
            running = asyncio.create_task(aside.run())
            await until(lambda: aside.report() and aside.report()[0].state == "drained")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    found = rows(path)
    assert {len(found[name]) for name in ("mark_1h", "candle")} == {1, 60}
    assert len(found["mark_price"]) == 2_499
    assert len(found["funding_rate"]) == DAY_MS // MINUTE_MS
    assert len(found["funding_settled"]) == 6


def test_what_is_no_journal_gives_nothing_and_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    spoilt = tmp_path / "journal.db.corrupt-20260101T000000.000000Z"
    spoilt.write_bytes(b"\xff" * 10_000)

    async def run() -> None:
        async with taking_over(path) as (_, aside):
            await until(lambda: aside.report() and aside.report()[0].state == "unreadable")
            assert "not a database" in aside.report()[0].trouble

    asyncio.run(run())


def test_no_room_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    set_aside(path)

    async def run() -> None:
        async with JournalWriter(path) as writer:
            aside = AsideFill(writer, 1_000, lambda: END_MS, lambda: True)
            running = asyncio.create_task(aside.run())
            await until(lambda: aside.report() and "no room" in aside.report()[0].trouble)
            assert aside.report()[0].state == "reading"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_what_cannot_be_is_no_candle() -> None:
    good = candle(PAIR, 0)
    assert is_possible(good)
    for field, value in [
        ("open", float("nan")), ("low", -1.0), ("high", 0.1), ("volume", -1.0), ("trades", "x"),
        ("close", b"1"), ("open_time_ms", T0 + 1), ("taker_buy_quote_volume", float("inf")),
    ]:  # fmt: skip
        values = {name: getattr(good, name) for name in good.__struct_fields__}
        assert not is_possible(Candle(**{**values, field: value})), field


def test_a_promise_reaches_as_far_as_that_of_the_one_set_aside() -> None:
    one = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, 4_000_000_000_000)
    (plain,) = promises([one], ["1m"], END_MS, HOUR_MS)
    (deep,) = promises([one], ["1m"], END_MS, HOUR_MS, aside_ms={(PAIR, "1m"): T0})
    assert (plain.reach_ms, deep.reach_ms) == (0, END_MS - T0)
    assert deep.keep_ms == plain.keep_ms
