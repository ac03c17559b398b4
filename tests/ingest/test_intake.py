"""Recorded frames read back with exactly their numbers; no order or repeat of frames changes them."""

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.counters import CollectorCounters
from marketfeed.errors import JournalWriteError
from marketfeed.grid import TimeRange
from marketfeed.ingest import intake as module
from marketfeed.ingest.freshness import Seen
from marketfeed.ingest.intake import Intake
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import CatalogEntry, RejectedFrame
from reader import MarketReader
from tests.waiting import until

T = TypeVar("T")
NOW_MS = 1_800_000_000_000
"""After everything recorded."""
DATA = Path(__file__).parents[1] / "data"
SYMBOLS = ("BTCUSDT", "SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT")
PAIRS = {symbol: f"{symbol.removesuffix('USDT')}/USDT:USDT" for symbol in SYMBOLS}


def recorded(name: str) -> list[bytes]:
    lines = (DATA / name).read_bytes().splitlines()
    return [re.sub(rb"^[\d.]+: ", b"", line) for line in lines if b"{" in line[:40]]


CLOSING = recorded("closing_frames.jsonl")
RECORDED = recorded("recorded_mainnet_2021-07.raw")


def kline(frame: bytes) -> dict[str, Any] | None:
    data = json.loads(frame)
    event = data.get("data", data)
    return event["k"] if event.get("e") == "kline" else None


def clock_at(now_ms: int) -> ExchangeClock:
    clock = ExchangeClock()
    clock.set_server_time(now_ms, 0.0)
    return clock


def take_in(path: Path, frames: Iterable[bytes], pauses: Sequence[int] = ()) -> CollectorCounters:
    """Run frames through a real intake into the journal at `path`; commits come after `pauses` too."""
    return take_in_with(JournalWriter(path), frames, pauses)


def take_in_with(
    writer: JournalWriter, frames: Iterable[bytes], pauses: Sequence[int] = ()
) -> CollectorCounters:
    counters = CollectorCounters()

    async def run() -> None:
        def note_catalog() -> None:
            for symbol, pair in PAIRS.items():
                intake.add(CatalogEntry(pair, symbol, ("1m", "3m"), 0, None, None, 0))

        async with writer:
            intake = Intake(
                writer,
                FrameDecoder(PAIRS),
                counters,
                clock_at(NOW_MS),
                60_000,
                note_catalog,
                retry_after_s=0.01,
            )
            note_catalog()
            committing = asyncio.create_task(intake.run())
            for number, frame in enumerate(frames):
                intake.on_frame(frame)
                if number in pauses:
                    commits = counters.commits
                    while intake.pending or counters.commits == commits:
                        await asyncio.sleep(0.001)
            intake.end()
            await committing

    asyncio.run(run())
    return counters


def stored(path: Path, pair: str, timeframe: str = "1m") -> dict[int, list[float]]:
    with MarketReader.connect(f"sqlite:///{path}") as reader:
        frame = reader.get_ohlcv(pair, timeframe, since=0, max_age_s=None)
    opens = [int(date.timestamp() * 1000) for date in frame["date"]]
    values = frame[["open", "high", "low", "close", "volume"]].to_numpy().tolist()
    return dict(zip(opens, values, strict=True))


@pytest.mark.parametrize("frames", [CLOSING, RECORDED], ids=["2026", "2021"])
def test_every_recorded_closing_frame_reads_back(tmp_path: Path, frames: list[bytes]) -> None:
    path = tmp_path / "journal.db"
    counters = take_in(path, frames)
    closed = [k for frame in frames if (k := kline(frame)) and k["x"] and k["s"] in PAIRS]
    assert len(closed) == (5 if frames is CLOSING else 4)
    for k in closed:
        assert stored(path, PAIRS[k["s"]])[k["t"]] == [float(k[name]) for name in "ohlcv"]
    with Journal.open(path) as journal:
        for k in closed:
            (candle,) = journal.candles(PAIRS[k["s"]], "1m", k["t"], k["t"] + 1)
            assert [candle.quote_volume, candle.taker_buy_volume] == [float(k["q"]), float(k["V"])]
            assert candle.trades == k["n"]
        assert journal.row_counts()["candle"] == len(closed)
    # The one of COIN-M; in the older recording nothing is of another market.
    assert counters.rejects["unknown_symbol"] == (1 if frames is CLOSING else 0)


def closing_and_open_frames() -> list[bytes]:
    """Open frames that lead to each of three closing frames, and one for a candle that goes on."""
    frames = []
    for number in range(4):
        template = json.loads(CLOSING[0])
        shift_ms = number * 60_000
        k = template["data"]["k"]
        k["t"] += shift_ms
        k["T"] += shift_ms
        for trades, high in ((3, "64970.8"), (150, "64970.85"), (194, "64970.90")):
            k["x"] = trades == 194 and number < 3
            template["data"]["E"] = k["t"] + (60_960 if k["x"] else trades * 10)
            frames.append(
                json.dumps(
                    template | {"data": template["data"] | {"k": k | {"n": trades, "h": high}}}
                ).encode()
            )
    return frames


FRAMES = closing_and_open_frames()


@given(
    st.permutations(FRAMES),
    st.lists(st.sampled_from(FRAMES), max_size=8),
    st.sets(st.integers(0, len(FRAMES)), max_size=3),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_order_or_repeat_of_frames_changes_a_closed_candle(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[bytes],
    repeated: list[bytes],
    pauses: set[int],
) -> None:
    path = tmp_path_factory.mktemp("order") / "journal.db"
    take_in(path, [*order, *repeated], pauses=sorted(pauses))
    start = json.loads(CLOSING[0])["data"]["k"]["t"]
    assert stored(path, PAIRS["BTCUSDT"]) == {
        start + n * 60_000: [64970.8, 64970.9, 64969.4, 64969.4, 9.09] for n in range(3)
    }


def test_bad_frames_are_counted_and_kept_and_disturb_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    garbage = [b"{", CLOSING[0].replace(b'"9.090"', b'"-1"'), b'{"result":null,"id":3}', CLOSING[5]]
    counters = take_in(path, [*garbage, *CLOSING])
    assert counters.rejects == {"not_json": 1, "bad_number": 1, "unknown_symbol": 2}
    assert counters.answers == 1
    assert counters.frames == len(garbage) + len(CLOSING)
    with Journal.open(path) as journal:
        counts = journal.row_counts()
    assert counts["candle"] == 5
    assert counts["dead_letter"] == 2


def test_a_flood_of_garbage_is_counted_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    counters = take_in(path, [b"{"] * 5_000)
    assert counters.rejects["not_json"] == 5_000
    with Journal.open(path) as journal:
        assert journal.row_counts()["dead_letter"] <= 200


class _Failing(JournalWriter):
    """A journal whose disk is full for the first three commits."""

    failures = 3

    async def call(self, function: Callable[[Journal], T]) -> T:
        if self.failures:
            self.failures -= 1
            raise JournalWriteError("disk full", damaged=False)
        return await super().call(function)


def test_rejected_frames_give_way_under_their_name() -> None:
    pending = Batch()
    pending.extend(RejectedFrame(n, "not_json: why", b"{%d" % n) for n in range(5))
    assert pending.shrink_to(2) == {"rejected_frame": 3}
    assert [item.received_ms for item in pending.rejected_frames] == [3, 4]


def test_a_disk_that_refuses_for_a_while_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    counters = take_in_with(_Failing(path), RECORDED, pauses=[5, 300])
    assert counters.commit_failures == 3
    assert counters.records_given_up == {}
    with Journal.open(path) as journal:
        assert journal.row_counts()["candle"] == 4


class _Damaged(JournalWriter):
    """A journal whose file is overwritten before the first commit, which then finds it damaged."""

    whole = True

    async def call(self, function: Callable[[Journal], T]) -> T:
        if not self.whole:
            return await super().call(function)
        self.whole = False
        # Closed first: the checkpoint at closing would mend what is overwritten here.
        await super().call(Journal.close)
        self.path.write_bytes(b"damaged" * 1_000)
        raise JournalWriteError("database disk image is malformed", damaged=True)


def test_a_file_damaged_while_running_is_set_aside_and_nothing_received_is_lost(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    writer = _Damaged(path)
    take_in_with(writer, CLOSING)
    assert len(stored(path, PAIRS["BTCUSDT"])) == 5
    (kept,) = tmp_path.glob("journal.db.corrupt-*")
    assert kept.read_bytes().startswith(b"damaged")
    assert writer.set_aside == kept


class Taking:
    """An intake over a real journal whose disk refuses when a test says so, with BTC's minutes promised."""

    key = PAIRS["BTCUSDT"], "1m"
    start_ms = json.loads(CLOSING[0])["data"]["k"]["t"]

    @contextlib.asynccontextmanager
    async def running(self, path: Path) -> AsyncIterator[None]:
        self.counters = CollectorCounters()
        async with JournalWriter(path) as writer:
            self.writer = writer
            made = Promise(*self.key, self.start_ms, 0)
            await writer.call(lambda journal: journal.promise([made]))
            self.intake = Intake(
                writer, FrameDecoder(PAIRS), self.counters, clock_at(NOW_MS), 60_000, lambda: None,
                retry_after_s=0.01,
            )  # fmt: skip
            committing = asyncio.create_task(self.intake.run())
            try:
                yield
            finally:
                self.intake.end()
                await committing

    async def refuse(self, word: str) -> None:
        """Whether the disk refuses: ON or OFF."""
        await self.writer.call(lambda journal: journal.db.execute(f"PRAGMA query_only = {word}"))

    async def failed_again(self) -> None:
        failures = self.counters.commit_failures
        await until(lambda: self.counters.commit_failures > failures)

    async def committed(self) -> None:
        await until(lambda: not self.intake.pending)
        await self.writer.call(lambda _: None)

    def holes(self) -> list[tuple[int, int]]:
        """First candle and the one after the last of each hole, as numbers from the first frame on."""
        return [
            ((one.start_ms - self.start_ms) // 60_000, (one.end_ms - self.start_ms) // 60_000)
            for one in self.writer.coverage[self.key].holes
        ]


def test_what_has_come_is_received_until_it_is_committed(tmp_path: Path) -> None:
    async def main() -> None:
        taking = Taking()
        async with taking.running(tmp_path / "journal.db"):
            await taking.refuse("ON")
            taking.intake.on_frame(CLOSING[0])
            assert taking.intake.received == {taking.key: {taking.start_ms}}
            # Open candles are none.
            taking.intake.on_frame(FRAMES[-1])
            await taking.failed_again()
            await taking.failed_again()
            assert taking.intake.received == {taking.key: {taking.start_ms}}
            await taking.refuse("OFF")
            await taking.committed()
            await until(lambda: not taking.intake.received)
            assert taking.holes() == []

    asyncio.run(main())


def test_what_is_given_up_from_memory_is_received_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_RECORDS", 2)

    async def main() -> None:
        taking = Taking()
        closed = [frame for frame in FRAMES if json.loads(frame)["data"]["k"]["x"]]
        async with taking.running(tmp_path / "journal.db"):
            await taking.refuse("ON")
            for frame in closed:
                taking.intake.on_frame(frame)
            await until(lambda: taking.counters.records_given_up["candle"])
            # The oldest went: it is due again.
            kept = {taking.start_ms + 60_000, taking.start_ms + 120_000}
            assert taking.intake.received == {taking.key: kept}
            await taking.refuse("OFF")
            await taking.committed()
            assert taking.holes() == [(0, 1)]

    asyncio.run(main())


def test_what_is_due_and_what_the_exchange_has_not_are_kept_while_the_disk_refuses(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        taking = Taking()
        at = [taking.start_ms + n * 60_000 for n in range(5)]
        async with taking.running(tmp_path / "journal.db"):
            await taking.refuse("ON")
            # The first two had not come in time; then one of them comes.
            taking.intake.expect(taking.key, Due(at[2], (TimeRange(at[0], at[2]),)))
            await taking.failed_again()
            taking.intake.on_frame(CLOSING[0])
            taking.intake.expect(taking.key, Due(at[4], (TimeRange(at[1], at[4]),)))
            taking.intake.answered_without(taking.key, TimeRange(at[1], at[3]))
            await taking.failed_again()
            await taking.refuse("OFF")
            await taking.committed()
            assert taking.holes() == [(1, 3), (3, 4)]
            asked, rest = taking.writer.coverage[taking.key].holes
            # By the time that is certain: that of the frame.
            stamp_ms = json.loads(CLOSING[0])["data"]["E"]
            assert asked.empty_1_ms is not None
            assert stamp_ms <= asked.empty_1_ms <= stamp_ms + 60_000
            assert rest.empty_1_ms is None

    asyncio.run(main())
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        gaps = db.execute("SELECT state FROM gap ORDER BY start").fetchall()
    # That it was late is recorded, though it came before the commit.
    assert gaps == [("healed",), ("found",), ("found",)]


def test_answers_give_way_before_everything_else() -> None:
    pending = Batch()
    for number in range(5):
        pending.absent.append((("X/USDT:USDT", "1m"), TimeRange(number, number + 1), number))
    pending.extend(RejectedFrame(n, "not_json: why", b"{%d" % n) for n in range(2))
    assert pending.shrink_to(3) == {"answer": 4}
    assert [at_ms for _, _, at_ms in pending.absent] == [4]
    assert len(pending.rejected_frames) == 2


def test_what_has_come_is_reported_once_stored_or_not(tmp_path: Path) -> None:
    intake = Intake(
        JournalWriter(tmp_path / "journal.db"),
        FrameDecoder(PAIRS),
        CollectorCounters(),
        clock_at(NOW_MS),
        60_000,
        lambda: None,
    )
    closed: list[tuple[str, str, int]] = []
    forming: dict[tuple[str, str], int] = {}
    for frame in RECORDED:
        intake.on_frame(frame)
        k = kline(frame)
        if k is not None and k["s"] in PAIRS:
            if k["x"]:
                closed.append((PAIRS[k["s"]], k["i"], k["t"]))
            else:
                forming[PAIRS[k["s"]], k["i"]] = k["t"]
    mark = {"e": "markPriceUpdate", "s": "BTCUSDT", "p": "1", "i": "1", "r": "0", "T": 9_000}
    for event_ms in (5_000, 8_000, 7_000):
        intake.on_frame(json.dumps({"stream": "x", "data": {**mark, "E": event_ms}}).encode())
    seen = intake.take_seen()
    assert seen.closed == closed
    assert seen.forming == forming
    assert forming
    assert set(seen.marks) == {PAIRS["BTCUSDT"]}
    assert intake.take_seen() == Seen()
