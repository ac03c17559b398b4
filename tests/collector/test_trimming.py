"""Retention of a running collector: slices, the disk budget, and what a large `-wal` holds up."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.collector import trimming
from marketfeed.collector.reporter import Reporter
from marketfeed.collector.trimming import Trimming
from marketfeed.collector.upkeep import Upkeep
from marketfeed.collector.wal_watch import WalWatch
from marketfeed.counters import CollectorCounters
from marketfeed.errors import JournalWriteError
from marketfeed.journal import retention
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import Sweep
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import MarkPrice
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from marketfeed.settings.model import JournalSettings
from marketfeed.storage import wal
from tests.waiting import until

T0 = 1_790_000_001_000
PAIRS = [f"P{number:02}/USDT:USDT" for number in range(8)]
STEPS = 4_000
"""Of 3 s: more than three hours."""

Scenario = Callable[[JournalWriter], Awaitable[None]]


def run(path: Path, scenario: Scenario, steps: int = STEPS) -> None:
    async def main() -> None:
        async with JournalWriter(path) as writer:
            batch = Batch()
            batch.extend(
                MarkPrice(pair, T0 + n * 3_000, 1.5 + n, 1.25)
                for pair in PAIRS
                for n in range(steps)
            )
            await writer.call(lambda journal: journal.write(batch))
            await writer.take_stock()
            await scenario(writer)

    uvloop.run(main())


def settings_of(path: Path, max_bytes: int, **retention_of: str) -> JournalSettings:
    # Less than the settings allow: 64 MB of rows would take a test a minute.
    return JournalSettings(path=path, retention=retention_of).model_copy(  # type: ignore[arg-type]
        update={"max_bytes": max_bytes}
    )


def oldest_ms(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT min(time) FROM mark_price").fetchone()[0])


@contextlib.contextmanager
def reader_in_a_transaction(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM pair").fetchone()
        yield


async def grow_wal(writer: JournalWriter, watch: WalWatch) -> None:
    """Commit until the `-wal` is above its bound: the same rows' documents again and again."""
    while not watch.is_above:
        body = str(time.monotonic_ns()).encode() * 2_000
        await writer.save_document("filler", body, T0)
        watch.look()


def test_before_the_disk_budget_takes_a_row_its_gap_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    gaps_before: list[list[tuple[str, int]]] = []

    def fail(self: Journal, sweep: Sweep) -> int:
        # As a kill or a full disk would: what has been stored by now is all there is.
        gaps_before.append(self.db.execute("SELECT kind, start FROM gap").fetchall())
        raise JournalWriteError("the disk is full", damaged=False)

    async def scenario(writer: JournalWriter) -> None:
        trim = Trimming(settings_of(path, 100_000), writer, WalWatch(path))
        monkeypatch.setattr(Journal, "sweep", fail)
        running = asyncio.create_task(trim.run(None))
        await until(lambda: gaps_before)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    run(path, scenario)
    assert gaps_before == [[("disk_budget_mark_price", T0)]]


def test_the_budget_takes_a_hundredth_a_turn_and_one_gap_tells_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    monkeypatch.setattr(trimming, "PAUSE", 0.0)
    turns: list[int] = []
    fresh = Sweep.__init__

    def counted(self: Sweep, *arguments: object) -> None:
        fresh(self, *arguments)  # type: ignore[arg-type]
        turns.append(self.before_ms - self.oldest_ms)

    async def scenario(writer: JournalWriter) -> None:
        budget = writer.bytes_used * 9 // 10
        trim = Trimming(settings_of(path, budget), writer, WalWatch(path))
        monkeypatch.setattr(Sweep, "__init__", counted)
        await trim.trim(None)
        assert writer.bytes_used <= budget
        assert oldest_ms(path) > T0
        (warning,) = trim.warnings()
        assert "mark prices" in warning
        assert "journal.retention.mark_price" in warning
        # A page that is free holds nothing: to delete more would be for nothing.
        before = oldest_ms(path)
        await trim.trim(None)
        assert oldest_ms(path) == before

    run(path, scenario)
    assert len(turns) > 3
    assert max(turns) <= STEPS * 3_000 // 100
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((kind, start, end),) = db.execute('SELECT kind, start, "end" FROM gap').fetchall()
    assert (kind, start) == ("disk_budget_mark_price", T0)
    assert oldest_ms(path) - 3_000 < end <= oldest_ms(path)


def test_what_a_budget_took_is_told_until_it_is_too_old_to_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        batch = Batch()
        batch.extend(MarkPrice(PAIRS[0], T0 + n * 3_000, 1.5, 1.25) for n in range(STEPS))
        journal.write(batch)
        sweep = retention.over_budget(journal, 1)
        assert sweep is not None
    # As after a restart: what tells of it is in the file.

    async def scenario(writer: JournalWriter) -> None:
        before_ms = T0 + HOUR_MS
        gap = "INSERT INTO gap VALUES (?, 0, ?, ?, 0, '', 'unresolvable', 1, NULL, NULL)"
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute(gap, ("disk_budget_mark_price", T0, before_ms))
        for kept, told in (("2d", 1), ("1h", 0)):
            trim = Trimming(settings_of(path, 10**9, mark_price=kept), writer, WalWatch(path))
            await trim.trim(None)
            assert len(trim.warnings()) == told

    run(path, scenario)


def test_the_loop_ends_where_deleting_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    monkeypatch.setattr(trimming, "PAUSE", 0.0)
    monkeypatch.setattr(retention, "used_pages", lambda db: 1_000)

    async def scenario(writer: JournalWriter) -> None:
        trim = Trimming(settings_of(path, 1), writer, WalWatch(path))
        await trim.trim(None)

    run(path, scenario)
    # A few turns of a hundredth: never down to the last hour.
    assert T0 < oldest_ms(path) <= T0 + trimming.FRUITLESS_TURNS * STEPS * 3_000 // 100


def test_commits_pass_between_the_slices_of_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    between: list[bool] = []

    async def scenario(writer: JournalWriter) -> None:
        trim = Trimming(settings_of(path, 10**9, mark_price="1h"), writer, WalWatch(path))
        trimming_task = asyncio.create_task(trim.trim(None))
        newest_ms = T0 + (STEPS - 1) * 3_000
        while not trimming_task.done():
            await writer.save_document("live", b"x", T0)
            between.append(oldest_ms(path) < newest_ms - HOUR_MS)
        await trimming_task
        assert oldest_ms(path) == newest_ms - HOUR_MS

    run(path, scenario)
    # Many commits saw a part of it deleted.
    assert sum(between) > 5


def test_a_fresh_file_in_the_place_of_a_damaged_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    sweep = Journal.sweep

    async def scenario(writer: JournalWriter) -> None:
        def then_another(self: Journal, one: Sweep) -> int:
            writer.generation += 1
            return sweep(self, one)

        monkeypatch.setattr(Journal, "sweep", then_another)
        trim = Trimming(settings_of(path, 1, mark_price="1h"), writer, WalWatch(path))
        await trim.trim(None)

    run(path, scenario)
    # The one slice that was under way, of eight pairs and three hours.
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM mark_price").fetchone()[0] > 7 * STEPS


def test_above_its_bound_the_wal_holds_up_all_deleting(tmp_path: Path) -> None:
    """A reader in a transaction, on a journal over its budget: no row goes before it has ended."""
    path = tmp_path / "journal.db"

    async def scenario(writer: JournalWriter) -> None:
        watch = WalWatch(path, bound_bytes=2_000_000)
        trim = Trimming(settings_of(path, writer.bytes_used // 2, mark_price="1h"), writer, watch)
        with reader_in_a_transaction(path):
            await grow_wal(writer, watch)
            await trim.trim(None)
            assert oldest_ms(path) == T0
            assert "2 MB" in trim.waits
        # It is folded back, and cut to its limit, by the commits that follow.
        await writer.call(lambda journal: journal.db.execute("PRAGMA journal_size_limit = 0"))
        while watch.is_above:
            await writer.save_document("filler", b"x", T0)
            watch.look()
        assert trim.waits == ""
        await trim.trim(None)
        assert oldest_ms(path) > T0

    run(path, scenario)


def test_a_reader_that_stays_costs_no_row_of_a_journal_just_below_its_budget(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"

    async def scenario(writer: JournalWriter) -> None:
        watch = WalWatch(path, bound_bytes=2_000_000)
        trim = Trimming(settings_of(path, writer.bytes_used * 101 // 100), writer, watch)
        with reader_in_a_transaction(path):
            for _ in range(3):
                await grow_wal(writer, watch)
                watch.bound_bytes *= 2
                # Neither when the -wal is large, nor when it is not called large.
                await trim.trim(None)
                watch.look()
                await trim.trim(None)
        assert oldest_ms(path) == T0

    run(path, scenario)


def test_a_slice_stops_in_the_middle_of_a_block_and_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        batch = Batch()
        batch.extend(
            MarkPrice(pair, T0 + n * 3_000, 1.5, 1.25) for pair in PAIRS for n in range(1_300)
        )
        journal.write(batch)
        (sweep,) = retention.expired(journal, {"mark_price": HOUR_MS})
        sizes: list[int] = []
        while not sweep.is_done:
            sweep._for_s, sweep._pairs_a_statement = 0.0, 1
            sizes.append(journal.sweep(sweep))
        # 1,300 steps of 3 s are 65 minutes: five of them go, pair by pair.
        assert [size for size in sizes if size] == [99] * len(PAIRS)
        assert sweep.rows == 99 * len(PAIRS)
        newest_ms = T0 + 1_299 * 3_000
        assert oldest_ms(path) >= newest_ms - HOUR_MS >= T0 + 4 * MINUTE_MS


def test_a_large_wal_is_a_reason_and_status_says_that_retention_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def scenario(writer: JournalWriter) -> None:
        clock = ExchangeClock()
        turns = Turns(Budget(1_200), clock)
        upkeep = Upkeep(settings_of(path, 10**9), clock, writer, turns)
        reporter = Reporter(("1m",), clock, CollectorCounters(), writer, turns, upkeep)
        upkeep.wal.bound_bytes = 2_000_000
        assert not [text for text in reporter.report().reasons if "-wal" in text]
        with reader_in_a_transaction(path):
            await grow_wal(writer, upkeep.wal)
            report = reporter.report()
            (reason,) = [text for text in report.reasons if "-wal" in text]
            assert "marketfeed check" in reason
            assert reason.endswith("(until it is folded back)")
            assert report.journal.wal_bytes > 2_000_000
            assert "nothing is deleted" in report.journal.retention_waits
            # This process is the one that holds it: seen at a second look.
            upkeep.wal.look()
            assert reporter.report().journal.wal_held_by == [wal.process(os.getpid())]

    run(path, scenario, steps=10)


def test_a_row_of_the_future_makes_no_other_row_old(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    far_ms = T0 | 1 << 41
    with Journal.open(path) as journal:
        batch = Batch()
        batch.extend(MarkPrice(PAIRS[0], T0 + n * 3_000, 1.5, 1.25) for n in range(STEPS))
        batch.extend([MarkPrice(PAIRS[0], far_ms, 1.5, 1.25)])
        journal.write(batch)
        now_ms = T0 + STEPS * 3_000
        assert retention.expired(journal, {"mark_price": DAY_MS}, None, now_ms) == []
        sweep = retention.over_budget(journal, 1, now_ms)
        assert sweep is not None
        assert sweep.before_ms < T0 + STEPS * 3_000 // 50

    async def scenario(writer: JournalWriter) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            # A key that is no number, too.
            db.execute("UPDATE mark_price SET time = 'x' WHERE time = ?", (T0 + 3_000,))
        trim = Trimming(
            settings_of(path, 10**9, mark_price="2d"), writer, WalWatch(path), lambda: now_ms
        )
        await trim.trim(None)
        assert oldest_ms(path) == T0
        (warning,) = trim.warnings()
        assert "mark_price from the future" in warning
        unsure = Trimming(settings_of(path, 1), writer, WalWatch(path), lambda: 0)
        await unsure.trim(None)
        assert oldest_ms(path) == T0

    run(path, scenario)


def test_a_budget_below_what_may_be_deleted_is_a_warning_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.db"

    async def scenario(writer: JournalWriter) -> None:
        # Half an hour of rows: none of them may go.
        trim = Trimming(settings_of(path, 1_000), writer, WalWatch(path))
        for _ in range(2):
            await trim.trim(None)
            (warning,) = trim.warnings()
            assert "journal.max_bytes (1,000 bytes)" in warning
        assert oldest_ms(path) == T0
        assert caplog.text.count("nothing of it may be deleted") == 1
        trim._settings = settings_of(path, 10**9)
        await trim.trim(None)
        assert trim.warnings() == []

    run(path, scenario, steps=600)
