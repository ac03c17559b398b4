"""What the supervisor finds missing is stored, however little time is left to tell of it."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import Instrument
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.deadlines import MARK_PRICE
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.supervisor import Supervisor
from marketfeed.grid import TimeRange
from marketfeed.ingest.intake import Intake
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.schema import DAY_MS, MINUTE_MS
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
BITCOIN: Final = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, 0)
START_MS: Final = 1_790_000_160_000


def closing_frame(open_ms: int) -> bytes:
    k = {
        "t": open_ms, "T": open_ms + MINUTE_MS - 1, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 2,
        "o": "1", "c": "1", "h": "1", "l": "1", "v": "1", "n": 2, "x": True, "q": "1", "V": "1",
        "Q": "1", "B": "0",
    }  # fmt: skip
    data = {"e": "kline", "E": open_ms + MINUTE_MS, "s": "BTCUSDT", "k": k}
    return json.dumps({"stream": "btcusdt@kline_1m", "data": data}).encode()


def mark_frame(event_ms: int) -> bytes:
    data = {
        "e": "markPriceUpdate", "E": event_ms, "s": "BTCUSDT", "p": "1", "i": "1", "r": "0.0001", "T": 0,
    }  # fmt: skip
    return json.dumps({"stream": "btcusdt@markPrice", "data": data}).encode()


class Watched:
    """A supervisor over a journal, without a feed: it looks around when a test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ExchangeClock()
        self.set_time(START_MS)
        self.counters = CollectorCounters()

    @contextlib.asynccontextmanager
    async def running(self, *promises: Promise) -> AsyncIterator[None]:
        async with JournalWriter(self.path) as writer:
            self.writer = writer
            await writer.call(lambda journal: journal.promise(promises))
            self.intake = Intake(
                writer, FrameDecoder({"BTCUSDT": PAIR}), self.counters, self.clock, MINUTE_MS,
                lambda: None,
            )  # fmt: skip
            self.holes = Holes(lambda: writer.coverage, lambda: self.intake.received)
            self.supervisor = Supervisor(
                self.intake, self.clock, self.counters, [BITCOIN], ["1m"], 3_000, self.holes
            )
            self.set_time(START_MS + 5_000)
            self.supervisor.start()
            committing = asyncio.create_task(self.intake.run())
            try:
                yield
            finally:
                self.intake.end()
                await committing

    def pass_s(self, seconds: float) -> None:
        """Let so many monotonic seconds pass at once."""
        self.clock._elapsed_s += seconds

    def set_time(self, now_ms: int) -> None:
        for _ in range(2):
            self.clock.set_server_time(now_ms, 0.0)

    async def look(self) -> None:
        self.supervisor._look()
        await until(lambda: not self.intake.pending)
        await self.writer.call(lambda _: None)

    def gaps(self) -> list[tuple[str, int, int, str]]:
        with closing(sqlite3.connect(self.path)) as db:
            return [
                (pair, (start - START_MS) // MINUTE_MS, (end - START_MS) // MINUTE_MS, state)
                for pair, start, end, state in db.execute(
                    """SELECT pair, start, "end", state FROM gap JOIN pair ON pair.id = pair_id
                       WHERE kind = 'candle_1m' ORDER BY pair, start"""
                )
            ]


def run(path: Path, check: Callable[[Watched], Awaitable[None]], *promises: Promise) -> Watched:
    async def main() -> Watched:
        watched = Watched(path)
        async with watched.running(*(promises or [promise()])):
            await check(watched)
        return watched

    return asyncio.run(main())


def promise(pair: str = PAIR) -> Promise:
    return Promise(pair, "1m", START_MS, 0)


def test_a_hole_is_committed_with_the_candle_behind_it(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.set_time(START_MS + 3 * MINUTE_MS)
        # Nobody looks around: there are commits only, as before a crash.
        for number in (0, 2):
            watched.intake.on_frame(closing_frame(START_MS + number * MINUTE_MS))
        await until(lambda: watched.counters.commits)
        assert watched.counters.commits == 1

    watched = run(tmp_path / "journal.db", check)
    assert watched.gaps() == [(PAIR, 1, 2, "found")]
    with closing(sqlite3.connect(watched.path)) as db:
        assert db.execute("SELECT count(*) FROM candle").fetchone() == (2,)


def test_what_is_due_and_did_not_come_is_stored_once(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.set_time(START_MS + MINUTE_MS + 3_000)
        await watched.look()
        assert watched.gaps() == []
        watched.set_time(START_MS + MINUTE_MS + 4_500)
        await watched.look()
        assert watched.gaps() == [(PAIR, 0, 1, "found")]
        commits = watched.counters.commits
        await watched.look()
        assert watched.counters.commits == commits
        # It comes late.
        watched.intake.on_frame(closing_frame(START_MS))
        await watched.look()
        assert watched.gaps() == [(PAIR, 0, 1, "healed")]

    run(tmp_path / "journal.db", check)


def test_what_has_come_and_waits_for_the_disk_is_not_stored_as_missing(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        await watched.writer.call(lambda journal: journal.db.execute("PRAGMA query_only = ON"))
        watched.set_time(START_MS + MINUTE_MS + 5_000)
        watched.intake.on_frame(closing_frame(START_MS))
        watched.supervisor._look()
        await until(lambda: watched.counters.commit_failures)
        watched.supervisor._look()
        await watched.writer.call(lambda journal: journal.db.execute("PRAGMA query_only = OFF"))
        await watched.look()
        # What is behind it did not come, and is.
        watched.set_time(START_MS + 2 * MINUTE_MS + 5_000)
        await watched.look()

    assert run(tmp_path / "journal.db", check).gaps() == [(PAIR, 1, 2, "found")]


def test_what_a_pair_lacks_until_its_end_is_missing_and_nothing_after(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.intake.on_frame(closing_frame(START_MS))
        watched.set_time(START_MS + 3 * MINUTE_MS)
        # The last one that was due counts, however soon the pair was let go.
        watched.supervisor.leave({PAIR: START_MS + 3 * MINUTE_MS - 20_000})
        watched.set_time(START_MS + 3 * MINUTE_MS + 5_000)
        await watched.look()
        assert watched.gaps() == [(PAIR, 1, 2, "found")]
        watched.set_time(START_MS + DAY_MS)
        await watched.look()
        assert watched.gaps() == [(PAIR, 1, 2, "found")]
        assert watched.supervisor.overdue == []
        # It is back, from where it had ended.
        watched.supervisor.join([BITCOIN])
        watched.set_time(START_MS + DAY_MS + MINUTE_MS)
        await watched.look()
        assert watched.holes.complete_until((PAIR, "1m"), watched.clock.now_ms()) == (
            START_MS + MINUTE_MS
        )

    watched = run(tmp_path / "journal.db", check)
    assert [row[3] for row in watched.gaps()] == ["found"]


def test_an_announced_end_cuts_what_is_due_and_may_be_taken_back(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.supervisor.expect_until(PAIR, START_MS + MINUTE_MS)
        watched.set_time(START_MS + 3 * MINUTE_MS + 5_000)
        await watched.look()
        assert watched.gaps() == [(PAIR, 0, 1, "found")]
        watched.supervisor.expect_until(PAIR, None)
        await watched.look()

    assert run(tmp_path / "journal.db", check).gaps() == [(PAIR, 0, 3, "found")]


def test_what_an_earlier_run_promised_and_this_one_does_not_collect_is_no_gap(
    tmp_path: Path,
) -> None:
    async def check(watched: Watched) -> None:
        watched.set_time(START_MS + 3 * MINUTE_MS + 5_000)
        await watched.look()

    watched = run(tmp_path / "journal.db", check, promise(), promise("OLD/USDT:USDT"))
    assert watched.gaps() == [(PAIR, 0, 3, "found")]


def test_a_clock_that_was_ahead_is_told_of(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        told: list[int] = []
        watched.supervisor.on_clock_back = lambda: told.append(watched.clock.now_ms())
        watched.set_time(START_MS + 60 * MINUTE_MS)
        await watched.look()
        assert told == []
        watched.set_time(START_MS + 2 * MINUTE_MS + 5_000)
        await watched.look()
        assert len(told) == 1
        # At once, and whatever the journal says.
        now_ms = watched.clock.now_ms()
        where = [hole.time_range for hole in watched.holes.lacking((PAIR, "1m"), now_ms)]
        assert where == [TimeRange(START_MS, START_MS + 2 * MINUTE_MS)]

    run(tmp_path / "journal.db", check)


def test_looks_and_joining_series_do_not_meet(tmp_path: Path) -> None:
    """The journal's thread changes what is known while the event loop goes through it."""

    async def check(watched: Watched) -> None:
        watched.set_time(START_MS + 3 * MINUTE_MS + 5_000)
        seen = watched.writer.coverage

        def join(journal: Journal, number: int) -> None:
            journal.promise([promise(f"X{number}/USDT:USDT")])

        overdue = watched.holes.overdue(watched.clock.now_ms())
        assert next(overdue)[0] == (PAIR, "1m")
        for number in range(20):
            await watched.writer.call(lambda journal, n=number: join(journal, n))
        # The mapping that was given is whole, a new one has the others, too.
        assert list(overdue) == []
        assert list(seen) == [(PAIR, "1m")]
        assert len(watched.writer.coverage) == 21

    run(tmp_path / "journal.db", check)


def test_a_pair_is_quiet_when_neither_marks_nor_candles_come(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        supervisor = watched.supervisor
        watched.intake.on_frame(mark_frame(START_MS + 5_000))
        watched.intake.on_frame(closing_frame(START_MS))
        await watched.look()
        marked_s = watched.clock.elapsed_s()
        watched.pass_s(9.0)
        await watched.look()
        assert supervisor.quiet_since_s == {}
        watched.pass_s(2.0)
        await watched.look()
        # Since its mark price was due.
        ((pair, since_s),) = supervisor.quiet_since_s.items()
        assert pair == PAIR
        assert marked_s + 9.0 < since_s <= marked_s + 10.1
        watched.pass_s(30.0)
        await watched.look()
        assert supervisor.quiet_since_s == {PAIR: pytest.approx(since_s)}
        # A candle: only the mark prices are silent.
        watched.set_time(START_MS + 2 * MINUTE_MS)
        watched.intake.on_frame(closing_frame(START_MS + MINUTE_MS))
        await watched.look()
        assert [item.series.channel for item in supervisor.overdue] == [MARK_PRICE]
        assert supervisor.quiet_since_s == {}
        # So it stays, as long as no mark price has come.
        watched.pass_s(300.0)
        await watched.look()
        assert supervisor.quiet_since_s == {}

    run(tmp_path / "journal.db", check)


def test_a_pair_that_has_ended_is_quiet_no_more(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.pass_s(11.0)
        await watched.look()
        assert list(watched.supervisor.quiet_since_s) == [PAIR]
        watched.supervisor.leave({PAIR: watched.clock.now_ms()})
        assert watched.supervisor.quiet_since_s == {}

    run(tmp_path / "journal.db", check)
