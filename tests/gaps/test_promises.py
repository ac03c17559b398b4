"""What is collected is promised: over restarts, other settings, replaced and older journals."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import pytest

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import JournalError
from marketfeed.gaps import promises as module
from marketfeed.gaps.holes import Holes
from marketfeed.gaps.promises import LOOK_CANDLES, NEW_FOR_MS, Promises, promises
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import HISTORY_GAP, NOT_DUE, Covered, Hole, Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap
from marketfeed.schema import APPLICATION_ID, DAY_MS, HOUR_MS, MINUTE_MS, TIMEFRAMES_MS
from tests import older_versions
from tests.waiting import until

PAIR: Final = "BTC/USDT:USDT"
OTHER: Final = "ETH/USDT:USDT"
BITCOIN: Final = Instrument("BTCUSDT", PAIR, "USDT", "TRADING", "PERPETUAL", 0, 0)
ETHER: Final = Instrument("ETHUSDT", OTHER, "USDT", "TRADING", "PERPETUAL", 0, 0)
ONE: Final = (PAIR, "1m")
T0: Final = 1_790_000_640_000
"""On the grid of 1m, 3m and 5m."""
NOW_MS: Final = T0 + 7_000


def at(number: int) -> int:
    return T0 + number * MINUTE_MS


def candles(numbers: Iterable[int], pair: str = PAIR) -> list[Candle]:
    return [Candle(pair, "1m", at(n), 1, 1, 1, 1, 1, 1, 1, 1, True, at(n + 1)) for n in numbers]


def store(path: Path, numbers: Iterable[int], pair: str = PAIR) -> None:
    with Journal.open(path) as journal:
        journal.write(Batch(candles=candles(numbers, pair)))


class Run:
    """One run of a collector's promises over the journal at `path`."""

    def __init__(self, path: Path, now_ms: int, keep_ms: int, timeframes: Sequence[str]) -> None:
        self.clock = ExchangeClock()
        self.clock.set_server_time(now_ms, 0.0)
        self.instruments = [BITCOIN]
        self.writer = JournalWriter(path)
        self.holes = Holes(lambda: self.writer.coverage, dict)
        self.turns = 0
        self.promises = Promises(
            self.writer, self.clock, lambda: self.instruments, timeframes, keep_ms, self._promised
        )

    def _promised(self) -> None:
        self.turns += 1

    async def turn(self, what: Callable[[], None]) -> None:
        """Do `what`, which wakes, and wait until all is promised and looked through."""
        turns = self.turns
        what()
        await until(lambda: self.turns > turns)

    def known(self, key: Key = ONE) -> Covered:
        return self.writer.coverage[key]

    def lacking(self, key: Key = ONE) -> list[int]:
        length_ms = TIMEFRAMES_MS[key[1]]
        return [
            (open_ms - T0) // MINUTE_MS
            for hole in self.holes.lacking(key, self.clock.now_ms())
            for open_ms in range(hole.start_ms, hole.end_ms, length_ms)
        ]


@contextlib.asynccontextmanager
async def running(
    path: Path,
    now_ms: int = NOW_MS,
    keep_ms: int = 0,
    timeframes: Sequence[str] = ("1m",),
    instruments: Sequence[Instrument] = (BITCOIN,),
) -> AsyncIterator[Run]:
    run = Run(path, now_ms, keep_ms, timeframes)
    run.instruments = list(instruments)
    async with run.writer:
        task = asyncio.create_task(run.promises.run())
        try:
            await until(lambda: run.turns or task.done())
            yield run
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def damage(journal: Journal) -> None:
    # Closed first: the checkpoint at closing would mend what is overwritten here.
    journal.close()
    journal.path.write_bytes(b"damaged" * 1_000)


def gaps(path: Path) -> list[tuple[str, int, int, str]]:
    with closing(sqlite3.connect(path)) as db:
        return [
            (kind, (start - T0) // MINUTE_MS, (end - T0) // MINUTE_MS, state)
            for kind, start, end, state in db.execute(
                """SELECT kind, start, "end", state FROM gap ORDER BY start"""
            )
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_first_start_without_history_promises_from_the_forming_candle_on(path: Path) -> None:
    async def main() -> None:
        async with running(path, timeframes=("1m", "1h")) as run:
            assert run.known().from_ms == T0
            assert run.known((PAIR, "1h")).from_ms == T0 // HOUR_MS * HOUR_MS
            assert run.lacking() == []
            run.clock.set_server_time(at(1) + 4_500, 0.0)
            assert run.lacking() == [0]

    asyncio.run(main())
    assert gaps(path) == []


def test_a_first_start_promises_history_as_a_first_filling(path: Path) -> None:
    async def main() -> None:
        async with running(path, keep_ms=60 * MINUTE_MS) as run:
            # The candle that the promise cuts is none of it.
            assert run.lacking() == list(range(-59, 0))
            assert all(hole.is_first for hole in run.known().holes)
            assert run.holes.count(run.clock.now_ms(), first=True) == {ONE: 59}

    asyncio.run(main())
    assert gaps(path) == [(f"{HISTORY_GAP}1m", -59, 0, "found")]


def test_nothing_is_promised_from_before_a_listing(path: Path) -> None:
    def from_ms(listed_ms: int, timeframe: str, keep_ms: int = DAY_MS) -> int:
        new = msgspec.structs.replace(BITCOIN, listed_ms=listed_ms)
        (one,) = promises([new], [timeframe], NOW_MS, keep_ms)
        with Journal.open(path.with_name(f"{listed_ms}-{timeframe}-{keep_ms}.db")) as journal:
            journal.promise([one])
            return journal.coverage[PAIR, timeframe].from_ms

    assert from_ms(at(-5), "1m") == at(-5)
    # The first candle opens before the listing.
    assert from_ms(at(-5) + 1, "1m") == at(-5)
    assert from_ms(at(-5) + 1, "1h") == at(-5) // HOUR_MS * HOUR_MS
    # What is to be listed is promised from the forming one on.
    assert from_ms(at(99), "1m") == T0
    # A new listing is promised from its first candle on, whatever is kept.
    assert from_ms(at(-5) + 1, "1m", 0) == at(-5)
    assert from_ms(at(-62) + 1, "1h", 0) == at(-62) // HOUR_MS * HOUR_MS
    assert from_ms(NOW_MS - NEW_FOR_MS - 1, "1m", 0) == T0


def test_a_restart_keeps_what_was_promised_and_finds_what_did_not_come(path: Path) -> None:
    async def main(now_ms: int) -> tuple[int, list[int]]:
        async with running(path, now_ms, keep_ms=HOUR_MS) as run:
            return run.known().from_ms, run.lacking()

    first = asyncio.run(main(NOW_MS))
    store(path, range(-59, 0))
    store(path, [0, 1, 3])
    # It does not move with the time.
    assert asyncio.run(main(at(60) + 7_000)) == (first[0], [2, *range(4, 60)])
    assert gaps(path) == [
        (f"{HISTORY_GAP}1m", -59, 0, "healed"),
        ("candle_1m", 2, 3, "found"),
        ("candle_1m", 4, 60, "found"),
    ]


def test_a_restart_right_after_a_close_finds_nothing_before_its_deadline(path: Path) -> None:
    async def main(now_ms: int) -> list[int]:
        async with running(path, now_ms) as run:
            return run.lacking()

    asyncio.run(main(NOW_MS))
    store(path, [0])
    assert asyncio.run(main(at(2) + 1_000)) == []
    assert gaps(path) == []
    assert asyncio.run(main(at(2) + 4_500)) == [1]
    assert gaps(path) == [("candle_1m", 1, 2, "found")]


def test_a_candle_in_flight_at_the_first_stop_is_due_to_the_next_run(path: Path) -> None:
    """Nothing is stored of the series: only what is promised tells of it."""
    key = PAIR, "3m"

    async def main(now_ms: int) -> tuple[int, list[int]]:
        async with running(path, now_ms, timeframes=("1m", "3m")) as run:
            return run.known(key).from_ms, run.lacking(key)

    assert asyncio.run(main(NOW_MS)) == (T0, [])
    store(path, [0, 1])
    assert asyncio.run(main(at(3) + 30_000)) == (T0, [0])
    with Journal.open(path) as journal:
        assert journal.newest_candles() == {ONE: at(1)}
        assert journal.coverage[key].holes == (Hole(T0, at(3)),)


def test_longer_history_is_promised_anew_and_shorter_drops_what_is_missing_below(
    path: Path,
) -> None:
    async def main(keep: int) -> Covered:
        async with running(path, keep_ms=keep * MINUTE_MS + 30_000) as run:
            return run.known()

    asyncio.run(main(10))
    store(path, range(-10, 0))
    assert asyncio.run(main(10)).holes == ()
    known = asyncio.run(main(30))
    assert (known.from_ms, known.holes) == (at(-30), (Hole(at(-30), at(-10), is_first=True),))
    store(path, range(-15, -10))
    # Less is asked for: what is stored stays promised.
    known = asyncio.run(main(20))
    assert (known.from_ms, known.holes) == (at(-20), (Hole(at(-20), at(-15), is_first=True),))
    known = asyncio.run(main(5))
    assert (known.from_ms, known.holes) == (at(-15), ())
    # A day later the same setting changes nothing.
    store(path, [0])
    known = asyncio.run(main(5))
    assert known.from_ms == at(-15)


def test_a_pair_that_joins_is_promised_and_others_are_left_alone(path: Path) -> None:
    async def main() -> None:
        async with running(path, keep_ms=10 * MINUTE_MS) as run:
            run.clock.set_server_time(at(100) + 7_000, 0.0)
            run.instruments.append(ETHER)
            assert run.promises.unpromised() == [(OTHER, "1m")]
            await run.turn(run.promises.wake)
            assert run.promises.unpromised() == []
            assert run.known((OTHER, "1m")).from_ms == at(91)
            assert run.known().from_ms == at(-9)
            # One that leaves is promised until its end: its last candles may be missing.
            run.instruments.remove(BITCOIN)
            await run.turn(run.promises.wake)
            assert ONE in run.writer.coverage
            # However often all is promised once more.
            await run.turn(run.promises.wake_anew)
            assert ONE in run.writer.coverage

    asyncio.run(main())


def test_a_pair_that_is_not_collected_any_more_is_released_at_the_next_start(path: Path) -> None:
    async def main(instruments: Sequence[Instrument], now_ms: int) -> dict[Key, Covered]:
        async with running(path, now_ms, DAY_MS, instruments=instruments) as run:
            return dict(run.writer.coverage)

    asyncio.run(main([BITCOIN, ETHER], NOW_MS))
    store(path, range(-9, 0), OTHER)
    assert list(asyncio.run(main([BITCOIN], at(5) + 7_000))) == [ONE]
    # Added again: from its newest row on, and no further back than is kept.
    known = asyncio.run(main([BITCOIN, ETHER], at(10) + 7_000))[OTHER, "1m"]
    assert (known.from_ms, known.end_ms) == (at(0), at(10))
    assert [hole.time_range for hole in known.holes] == [TimeRange(at(0), at(10))]
    asyncio.run(main([BITCOIN], at(11) + 7_000))
    days = 10 * 1_440
    known = asyncio.run(main([BITCOIN, ETHER], at(days) + 7_000))[OTHER, "1m"]
    assert known.from_ms == at(days - 1_440 + 1)


def test_what_is_older_than_is_kept_is_left_alone_where_nothing_was_promised(path: Path) -> None:
    store(path, [-40 * 1_440])
    # It was dropped: others were collected after it.
    store(path, [-1], OTHER)

    async def main() -> None:
        async with running(path, keep_ms=30 * DAY_MS) as run:
            assert run.known().from_ms == at(-30 * 1_440 + 1)
            assert len(run.lacking()) == 30 * 1_440 - 1

    asyncio.run(main())


def test_an_ended_pair_is_promised_up_to_its_end(path: Path) -> None:
    ended = msgspec.structs.replace(BITCOIN, delivery_ms=at(3) + 30_000)

    async def main(now_ms: int) -> Covered:
        async with running(path, now_ms, instruments=[ended]) as run:
            return run.known()

    asyncio.run(main(NOW_MS))
    assert asyncio.run(main(at(60))).holes == (Hole(at(0), at(3)),)
    assert gaps(path) == [("candle_1m", 0, 3, "found")]


def test_a_clock_that_was_ahead_leaves_no_hole_in_the_future(path: Path) -> None:
    async def main() -> None:
        async with running(path) as run:
            ahead = Batch()
            ahead.expect(ONE, Due(at(500_000), (TimeRange(at(0), at(500_000)),)))
            await run.writer.call(lambda journal: journal.write(ahead))
            assert run.known().end_ms == at(500_000)
            run.clock.set_server_time(at(2) + 7_000, 0.0)
            # Though the disk refuses at that time.
            await run.writer.call(lambda journal: journal.db.execute("PRAGMA query_only = ON"))
            run.promises.wake_anew()
            await until(lambda: run.promises._trouble)
            await run.writer.call(lambda journal: journal.db.execute("PRAGMA query_only = OFF"))
            await run.turn(run.promises.wake)
            assert run.known().holes == (Hole(at(0), at(2)),)
            # A close cuts nothing.
            before = gaps(path)
            await run.writer.call(lambda j: j.write(Batch(candles=candles([2]))))
            assert gaps(path) == before == [("candle_1m", 0, 2, "found")]

    asyncio.run(main())


def test_a_promise_that_was_made_by_a_clock_ahead_is_made_anew(path: Path) -> None:
    async def main(now_ms: int) -> Covered:
        async with running(path, now_ms, keep_ms=60 * MINUTE_MS) as run:
            return run.known()

    ahead = asyncio.run(main(NOW_MS + DAY_MS))
    assert ahead.from_ms > NOW_MS
    known = asyncio.run(main(NOW_MS))
    assert (known.from_ms, known.end_ms) == (at(-59), at(0))
    assert known.holes == (Hole(at(-59), at(0), is_first=True),)
    with closing(sqlite3.connect(path)) as db:
        told = db.execute("SELECT reason FROM gap WHERE start > ?", (NOW_MS,)).fetchall()
    assert told == [(NOT_DUE,)]


def test_a_journal_that_is_replaced_while_running_still_owes_the_newest(path: Path) -> None:
    async def main() -> None:
        async with running(path, keep_ms=0) as run:
            await run.writer.call(lambda j: j.write(Batch(candles=candles(range(1_000)))))
            run.clock.set_server_time(at(1_000) + 7_000, 0.0)
            await run.writer.call(damage)
            await run.writer.replace()
            assert run.writer.coverage == {}
            await run.turn(run.promises.wake)
            # As many as a feeder asks for; from this run's beginning on at most.
            known = run.known()
            assert known.from_ms == at(1_000 - TILE_CANDLES + 1)
            assert run.lacking() == list(range(1_000 - TILE_CANDLES + 1, 1_000))

    asyncio.run(main())


def test_a_journal_that_is_replaced_soon_owes_what_it_had_promised(path: Path) -> None:
    async def main() -> None:
        async with running(path, keep_ms=0) as run:
            run.clock.set_server_time(at(5) + 7_000, 0.0)
            await run.writer.call(damage)
            await run.writer.replace()
            await run.turn(run.promises.wake)
            assert run.lacking() == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_a_refusing_disk_is_tried_again_and_releases_nothing_for_that(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)

    async def main() -> None:
        async with running(path) as run:
            refuse = "PRAGMA query_only = "
            await run.writer.call(lambda journal: journal.db.execute(f"{refuse} ON"))
            run.instruments = [ETHER]
            run.promises.wake()
            await until(lambda: run.promises._trouble.failures >= 2)
            assert run.promises.unpromised() == [(OTHER, "1m")]
            await run.writer.call(lambda journal: journal.db.execute(f"{refuse} OFF"))
            await until(lambda: not run.promises.unpromised())
            assert not run.promises._trouble
            assert list(run.writer.coverage) == [ONE, (OTHER, "1m")]

    asyncio.run(main())


def test_a_journal_that_cannot_be_written_at_the_start_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)

    class Refusing(JournalWriter):
        refusals = 3

        async def call(self, function):  # type: ignore[no-untyped-def]
            if self.refusals:
                self.refusals -= 1
                raise JournalError("no room")
            return await super().call(function)

    async def main() -> None:
        run = Run(path, NOW_MS, HOUR_MS, ["1m"])
        run.writer = run.promises._writer = Refusing(path)
        async with run.writer:
            task = asyncio.create_task(run.promises.run())
            await until(lambda: run.turns)
            assert run.known().from_ms == at(-59)
            task.cancel()

    asyncio.run(main())


def test_rows_of_an_unknown_hand_are_looked_through_the_newest_first_in_steps(path: Path) -> None:
    async def main() -> None:
        async with running(path, keep_ms=14 * DAY_MS):
            pass

    asyncio.run(main())
    days = 14 * 1_440
    store(path, range(-days + 1, 0))
    # A hand takes some out, and an older writer fills some in.
    gone = (-12_000, -7_000, -400, -3)
    with closing(sqlite3.connect(path)) as db:
        for number in gone:
            db.execute("DELETE FROM candle WHERE open_time = ?", (at(number),))
        db.commit()
    with Journal.open(path) as journal:
        known = journal.coverage[ONE]
        assert (known.looked_ms, known.holes) == (known.end_ms, ())
        found: list[list[int]] = []
        while not (known := journal.coverage[ONE]).is_looked_through:
            candles_at_once = LOOK_CANDLES if found else TILE_CANDLES
            before_ms = known.looked_ms
            journal.look_through([ONE], candles_at_once)
            known = journal.coverage[ONE]
            assert before_ms - known.looked_ms <= candles_at_once * MINUTE_MS
            found.append([(hole.start_ms - T0) // MINUTE_MS for hole in known.holes])
        assert found == [
            [-400, -3],
            [-400, -3],
            [-7_000, -400, -3],
            [-12_000, -7_000, -400, -3],
            [-12_000, -7_000, -400, -3],
        ]


def test_a_start_looks_through_what_another_has_written(path: Path) -> None:
    async def main() -> tuple[Covered, list[int]]:
        async with running(path, keep_ms=DAY_MS) as run:
            return run.known(), run.lacking()

    asyncio.run(main())
    store(path, range(-1_439, 0))
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM candle WHERE open_time = ?", (at(-700),))
        db.commit()
    known, lacking = asyncio.run(main())
    assert known.is_looked_through
    assert lacking == [-700]
    # Another one brings it back, and counts its commit.
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            """INSERT INTO candle (pair_id, timeframe_ms, open_time, open, high, low, close, volume,
                quote_volume, taker_buy_volume, trades, seq)
               SELECT pair_id, timeframe_ms, ?, open, high, low, close,
                volume, quote_volume, taker_buy_volume, trades, seq FROM candle LIMIT 1""",
            (at(-700),),
        )
        db.execute("UPDATE sequence SET commits = commits + 1")
        db.commit()
    known, lacking = asyncio.run(main())
    assert lacking == []
    assert gaps(path)[-1] == (f"{HISTORY_GAP}1m", -700, -699, "healed")


def test_an_older_file_is_promised_in_memory_and_its_open_gaps_are_known(path: Path) -> None:
    older_versions.empty(path, "journal_version_2.sql", APPLICATION_ID, 2)
    left = Batch(candles=candles([n for n in range(-100, 0) if n not in (-50, -20)]))
    left.add(Gap("candle_1m", PAIR, at(-50), at(-49), "found", "did not come"))
    with Journal.open(path) as journal:
        journal.write(left)

    async def main(*fill: int) -> None:
        async with running(path, keep_ms=200 * MINUTE_MS) as run:
            assert run.writer.version == 2
            known = run.known()
            assert (known.from_ms, known.is_looked_through) == (at(-199), True)
            assert run.lacking() == [*range(-199, -100), -50, -20]
            assert [hole.is_first for hole in known.holes] == [True, False, True]
            await run.writer.call(lambda j: j.write(Batch(candles=candles(fill))))

    # It knows nothing of the run before, and finds the same.
    asyncio.run(main())
    asyncio.run(main(-50))
    # A first filling is no gap of such a file.
    assert gaps(path) == [("candle_1m", -50, -49, "healed")]
