"""Auditing: what is stored against the exchange's REST and archive, number by number."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import pytest
import uvloop
from archive_server import archive_server
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.archive import day_file
from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.collector.upkeep import save_budget
from marketfeed.commands.history import AuditRequest, run_audit, run_backfill
from marketfeed.errors import ExchangeRefusedError
from marketfeed.gaps.promises import look_through
from marketfeed.grid import TimeRange, candles_in
from marketfeed.history.audit import AuditReport, audited_series
from marketfeed.history.comparison import compare
from marketfeed.history.continuous_audit import Auditor
from marketfeed.history.plan import CandleSeries
from marketfeed.journal.coverage import Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.view import JournalView
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, CatalogEntry
from marketfeed.settings.model import Settings
from marketfeed.simulator.dataset import made_zip
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.sweeps import delete

PAIR = "BTC/USDT:USDT"
DAY_MS = 1_735_776_000_000  # 2025-01-02
DAY = TimeRange(DAY_MS, DAY_MS + schema.DAY_MS)


def candle(open_ms: int, **other: Any) -> Candle:
    length_ms = 3 * schema.MINUTE_MS
    plain = Candle(
        PAIR, "3m", open_ms, 2.0, 4.0, 1.0, 3.0, 5.0, 12.5, 2.5, 7, True, open_ms + length_ms, 6.25
    )
    return msgspec.structs.replace(plain, **other)


# --- the comparison ---------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_everything_wrong_is_found_and_nothing_else(
    ours: set[int], theirs: set[int], changed: set[int]
) -> None:
    names = list(schema.CANDLE_FIELDS)
    stored = [
        candle(at, **({names[at % len(names)]: 99} if at in changed else {})) for at in sorted(ours)
    ]
    found = compare(stored, [candle(at) for at in sorted(theirs)])
    assert {c.open_time_ms for c in found.missing} == theirs - ours
    assert {d.stored.open_time_ms for d in found.different} == (ours - theirs) | (ours & changed)
    assert found.stored == len(ours)
    assert found.good == (ours == theirs and not ours & changed)
    assert {c.open_time_ms for c in found.mending} == (theirs - ours) | (ours & theirs & changed)


def test_what_had_an_odd_row_is_neither_wrong_nor_right() -> None:
    stored = [candle(0), candle(1, close=9.0), candle(2)]
    found = compare(stored, [candle(0), candle(3)], [TimeRange(1, 3)])
    assert (found.stored, found.different) == (1, [])
    assert found.missing == [candle(3)]


@given(
    st.sets(st.integers(0, 20)),
    st.sets(st.integers(0, 20)),
    st.sets(st.integers(0, 20)),
)
def test_what_is_not_known_is_no_difference_and_can_be_filled(
    ours: set[int], theirs: set[int], wrong: set[int]
) -> None:
    """`ours` and `theirs` have the number, where the others have none; `wrong` differ in another one."""
    lacks: dict[str, Any] = {"taker_buy_quote_volume": None}
    stored = [candle(at, **({} if at in ours else lacks)) for at in range(21)]
    truth = [
        candle(at, **({} if at in theirs else lacks), **({"close": 2.5} if at in wrong else {}))
        for at in range(21)
    ]
    found = compare(stored, truth)
    assert {d.stored.open_time_ms for d in found.different} == wrong
    assert found.good == (not wrong)
    # One that differs is put right as a whole.
    assert {c.open_time_ms for c in found.lacking} == theirs - ours - wrong
    assert all(c.taker_buy_quote_volume == 6.25 for c in found.lacking)


@pytest.mark.parametrize("name", list(schema.CANDLE_FIELDS))
def test_every_number_counts_to_its_last_bit(name: str) -> None:
    value = getattr(candle(0), name)
    other = value + 1 if name == "trades" else value * (1 + 2**-52)
    (different,) = compare([candle(0, **{name: other})], [candle(0)]).different
    assert different.fields == (name,)
    assert f"{name} stored {other!r}, exchange {value!r}" in str(different)


# --- an audit ---------------------------------------------------------------------------------------


def settings_for(path: Path, sim: Simulator, **exchange: Any) -> Settings:
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "archive": True,
                "archive_url": sim.rest_url,
                "pairs": "all",
                "timeframes": ["3m", "1h"],
                **exchange,
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": {"days": 3, "weight_per_minute": 2_400},
        }
    )


async def audited(
    settings: Settings,
    source: Literal["rest", "archive"] = "rest",
    sample: int | None = None,
    *,
    repair: bool = False,
    since_ms: int | None = None,
    until_ms: int | None = None,
) -> AuditReport:
    request = AuditRequest(
        since_ms=since_ms,
        until_ms=until_ms,
        sample_weight=sample,
        weight_per_minute=2_400,
        source=source,
        repair=repair,
    )
    return await run_audit(settings, request, lambda _: None)


@contextlib.asynccontextmanager
async def filled(path: Path, pairs: int = 2) -> AsyncIterator[tuple[Simulator, Settings]]:
    """A simulated exchange, and a journal with three days of it."""
    # No candle closes within the next minutes, between the filling and an audit.
    start_ms = 1_792_800_020_000
    options = SimulatorOptions(pairs=pairs, timeframes=("1m",), speed=1.0, start_ms=start_ms)
    async with Simulator(options) as sim:
        settings = settings_for(path, sim)
        outcome = await run_backfill(settings, 3, None, "rest", lambda *_: None)
        assert outcome.good
        yield sim, settings


def spoil(path: Path, pair: str = PAIR) -> tuple[int, int]:
    """Take 5 candles away and change two, one of them so that it counts more trades."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            """SELECT open_time FROM candle WHERE timeframe_ms = 180000
               AND pair_id = (SELECT id FROM pair WHERE pair = ?) ORDER BY open_time""",
            (pair,),
        ).fetchall()
        opens = [ms for (ms,) in rows]
        more, close = opens[700], opens[900]
        db.execute(
            """DELETE FROM candle WHERE open_time BETWEEN ? AND ? AND timeframe_ms = 180000
               AND pair_id = (SELECT id FROM pair WHERE pair = ?)""",
            (opens[600], opens[604], pair),
        )
        db.execute(
            """UPDATE candle SET trades = trades + 5 * (open_time = :more),
                   close = CASE WHEN open_time = :more THEN close ELSE low END
               WHERE open_time IN (:more, :close) AND timeframe_ms = 180000
               AND pair_id = (SELECT id FROM pair WHERE pair = :pair)""",
            {"more": more, "close": close, "pair": pair},
        )
        db.commit()
    return more, close


def test_a_whole_journal_is_found_whole_and_every_fault_is_found_and_mended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"

    async def run() -> None:
        async with filled(path) as (_, settings):
            whole = await audited(settings)
            assert whole.good
            assert whole.percent == 100.0
            assert whole.compared == whole.expected == whole.stored
            assert len(whole.series) == 4
            more, close = spoil(path)
            found = await audited(settings)
            assert not found.good
            assert (found.missing, found.different) == (5, 2)
            assert found.percent < 100.0
            bad = [row for row in found.series if not row.good]
            assert [(row.pair, row.timeframe) for row in bad] == [(PAIR, "3m")]
            assert any(f"{more}: trades stored" in text for text in found.differences)
            assert any(f"{close}: close stored" in text for text in found.differences)
            # A sample of nothing finds the missing ones all the same, and no more.
            counted = await audited(settings, sample=0)
            assert (counted.missing, counted.different, counted.compared) == (5, 0, 0)
            sampled = await audited(settings, sample=4)
            assert sampled.missing == 5
            assert 0 < sampled.compared < found.compared
            # Repairing takes the exchange's word, whatever is counted.
            repaired = await audited(settings, repair=True)
            assert repaired.repaired == 7
            assert repaired.good
            again = await audited(settings)
            assert again.good
            assert again.repaired == 0

    uvloop.run(run())


def test_a_day_from_an_archive_equals_the_exchange_that_serves_the_same_day(
    tmp_path: Path,
) -> None:
    """Imported from a local archive that serves its file, audited against REST and archive."""

    async def run(path: Path, body: bytes, checksum: str | None, *, refused: int) -> None:
        options = SimulatorOptions(
            pairs=(PAIR,),
            timeframes=("1m",),
            speed=20.0,
            start_ms=DAY.end_ms + 7 * schema.HOUR_MS,
            every_trade=True,
        )
        async with Simulator(options) as sim, archive_server() as server:
            file = day_file("BTCUSDT", "1m", DAY_MS)
            server.put(file.path, body, checksum)
            settings = settings_for(path, sim, archive_url=server.url, timeframes=["1m"])
            outcome = await run_backfill(settings, 2, None, "archive", lambda *_: None)
            history = outcome.history
            assert outcome.good
            assert (history.files, history.files_refused) == (1 - refused, refused)
            report = await audited(settings, since_ms=DAY.start_ms, until_ms=DAY.end_ms)
            assert report.good
            assert report.compared == report.expected == 1_440
            server.put(file.path, made_zip())
            report = await audited(settings, "archive", since_ms=DAY.start_ms, until_ms=DAY.end_ms)
            assert report.good
            assert report.compared == 1_440
            first = JournalView(path).candles(PAIR, "1m", DAY)[0]
            assert (first.close, first.volume, first.trades) == (94460.40, 129.224, 2228)

    good = made_zip()
    uvloop.run(run(tmp_path / "good.db", good, None, refused=0))
    uvloop.run(run(tmp_path / "sum.db", good, "0" * 64, refused=1))
    broken = good[:30_000] + b"x" + good[30_001:]
    uvloop.run(run(tmp_path / "zip.db", broken, None, refused=1))


def test_an_exchange_that_does_not_answer_is_no_good_audit(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def run() -> None:
        async with filled(path, 1) as (sim, _):
            async with archive_server() as empty:
                other = settings_for(path, sim, archive_url=empty.url)
                report = await audited(other, "archive")
            assert not report.good
            assert "there is none" in report.errors[0]
            # Counted all the same.
            assert report.expected == report.stored > 0

    uvloop.run(run())


def test_while_the_exchange_has_stopped_the_collector_no_command_asks_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def run() -> None:
        async with filled(path, 1) as (sim, settings):
            asked = len(sim.rest.asked)
            turns = Turns(Budget(2_400), ExchangeClock())
            turns.stop(600.0, 418, "klines: status 418: banned")
            async with JournalWriter(path) as writer:
                await save_budget(writer, turns)
            with pytest.raises(ExchangeRefusedError, match="after klines: status 418: banned"):
                await audited(settings)
            with pytest.raises(ExchangeRefusedError, match="after klines: status 418: banned"):
                await run_backfill(settings, 3, None, "rest", lambda *_: None)
            # Beside a collector, too.
            async with JournalWriter(path):
                with pytest.raises(ExchangeRefusedError, match="not asked for"):
                    await audited(settings)
            assert len(sim.rest.asked) == asked

    uvloop.run(run())


# --- the continuous one -----------------------------------------------------------------------------


def test_the_continuous_audit_stores_what_is_missing_and_tells_what_the_rule_keeps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.db"

    async def run() -> None:
        async with filled(path, 1) as (sim, _):
            clock = ExchangeClock()
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                # While the collector runs: no hole tells of it.
                more, close = spoil(path)
                rest = BinanceRest(session, sim.rest_url, turns=Turns(Budget(2_400), clock))
                await rest.server_time()
                one = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS)
                auditor = Auditor(
                    writer,
                    rest,
                    clock,
                    lambda: [CandleSeries(one, "3m")],
                    chance=random.Random(1),
                )
                for _ in range(400):
                    await auditor.look()
                    report = auditor.report()
                    if report.missing == 5 and report.different == 2:
                        break
                assert (report.missing, report.different, report.mended) == (5, 2, 6)
                # All is there again, as is what the rule keeps.
                assert await writer.call(partial(_holes_of, key=(PAIR, "3m"))) == []
                assert report.audited > 1_000
                assert 0 < report.mismatch_rate < 1
                # The exchange counts fewer trades there: what is stored stays, and is reported.
                (text,) = report.unmended
                assert str(more) in text
                assert f"audit: a candle differs {PAIR} 3m {close}: close stored" in caplog.text
                # Reported once, however often it is met.
                for _ in range(60):
                    await auditor.look()
                assert auditor.report().different == 2
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("UPDATE candle SET trades = trades - 5 WHERE open_time = ?", (more,))
                db.commit()
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                turns = Turns(Budget(2_400), clock)
                auditor._writer = writer
                auditor._rest = BinanceRest(session, sim.rest_url, turns=turns)
                for _ in range(100):
                    await auditor.look()
                    if not auditor.report().unmended:
                        break
                assert auditor.report().unmended == []

    asyncio.run(run())


@pytest.mark.parametrize("how", ["ended", "released", "deleted"])
def test_the_continuous_audit_forgets_what_nobody_audits_any_more(tmp_path: Path, how: str) -> None:
    """A difference of a pair that has ended, or of candles that are promised no more, is no reason."""
    path = tmp_path / "journal.db"

    async def run() -> None:
        async with filled(path, 1) as (sim, _):
            clock = ExchangeClock()
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                more, _ = spoil(path)
                rest = BinanceRest(session, sim.rest_url, turns=Turns(Budget(2_400), clock))
                await rest.server_time()
                one = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS)
                series = [CandleSeries(one, "3m")]
                auditor = Auditor(writer, rest, clock, lambda: series, chance=random.Random(1))
                for _ in range(400):
                    await auditor.look()
                    if auditor.report().unmended:
                        break
                (text,) = auditor.report().unmended
                assert str(more) in text
                if how == "ended":
                    series.clear()
                elif how == "released":
                    await writer.call(lambda journal: journal.release([(PAIR, "3m")]))
                else:
                    await writer.call(lambda journal: expire(journal, more + 3 * schema.MINUTE_MS))
                assert auditor.report().unmended == []
                # What was seen is counted all the same.
                assert auditor.report().different >= 1

    asyncio.run(run())


def expire(journal: Journal, before_ms: int) -> None:
    """Have a journal keep no candles of before a time, as its retention does."""
    ids = [pair_id for (pair_id,) in journal.db.execute("SELECT id FROM pair")]
    delete(journal, "candle", ids, before_ms)


def _holes_of(journal: Journal, key: Key) -> list[TimeRange]:
    """What the rows lack of what is promised of a series."""
    covered = journal.coverage[key]
    return journal.holes(*key, TimeRange(covered.from_ms, covered.end_ms))


def test_the_continuous_audit_counts_what_no_hole_tells_of(tmp_path: Path) -> None:
    """What a hole tells of is known, and history fills it; the audit of others does not wait for that."""
    path = tmp_path / "journal.db"
    other = "ETH/USDT:USDT"

    async def run() -> None:
        async with filled(path, 2) as (sim, _):
            # Between two runs: that rows are gone is noticed, and they are looked through.
            spoil(path)
            clock = ExchangeClock()
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                await look_through(writer)
                (hole,) = writer.coverage[PAIR, "3m"].holes
                assert candles_in(hole.time_range, 3 * schema.MINUTE_MS) == 5
                # During one: nobody knows.
                spoil(path, other)
                assert writer.coverage[other, "3m"].holes == ()
                rest = BinanceRest(session, sim.rest_url, turns=Turns(Budget(2_400), clock))
                await rest.server_time()
                series = [
                    CandleSeries(
                        Instrument(symbol, pair, "USDT", "TRADING", "PERPETUAL", 0, NEVER_MS), "3m"
                    )
                    for symbol, pair in (("BTCUSDT", PAIR), ("ETHUSDT", other))
                ]
                auditor = Auditor(writer, rest, clock, lambda: series, chance=random.Random(3))
                for _ in range(600):
                    await auditor.look()
                    if auditor.report().missing >= 5 and auditor.report().different >= 4:
                        break
                report = auditor.report()
                # Of both pairs what differs, of one what is missing.
                assert (report.missing, report.different) == (5, 4)
                holes = [await writer.call(partial(_holes_of, key=one.key)) for one in series]
                assert holes == [[hole.time_range], []]

    asyncio.run(run())


def test_what_the_settings_have_dropped_is_audited_when_it_is_named() -> None:
    frames = ("1m", "3m")
    catalog = [
        CatalogEntry(PAIR, "BTCUSDT", frames, 1, None, 2, 2, dropped=True),
        CatalogEntry("ETH/USDT:USDT", "ETHUSDT", frames, 1, None, None, 1),
    ]

    def names(pairs: list[str] | None) -> list[tuple[str, str]]:
        return [(one.instrument.pair, one.timeframe) for one in audited_series(catalog, pairs)]

    assert names(None) == [("ETH/USDT:USDT", name) for name in frames]
    assert names([PAIR]) == [(PAIR, name) for name in frames]
