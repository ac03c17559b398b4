"""Malformed frames: nothing is raised, no wrong row comes of them, and good frames beside them are kept.

`FRAMES=1000000` spoils a million, as `make proofs` does, `SEED` others.
"""

import asyncio
import itertools
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from garbage_frames import GOOD, SPOILT, recorded, simulated, symbol
from garbage_model import WrongRowError, must_give, read, require_published, require_sound
from hypothesis import given, settings
from hypothesis import strategies as st
from mutator import Mutator
from scoreboard import Row, Scoreboard

from marketfeed.binance.decode import Control, FrameDecoder, Reject
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.counters import CollectorCounters, rss_bytes
from marketfeed.ingest.intake import REJECTED_FRAMES_PER_COMMIT, Intake
from marketfeed.journal.rejected import REJECTED_FRAMES_KEPT
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, FundingRate, MarkPrice

FRAMES = int(os.environ.get("FRAMES", "200000"))
SEED = int(os.environ.get("SEED", "1"))
RECORDED_SYMBOLS = ("SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT", "XAUUSDT")
PAIRS = {symbol(pair): pair for pair in (*GOOD, *SPOILT)} | {
    name: f"{name.removesuffix('USDT')}/USDT:USDT" for name in RECORDED_SYMBOLS
}
DECODER = FrameDecoder(PAIRS)


def corpus() -> tuple[bytes, ...]:
    return (*recorded(), *simulated(SPOILT, 4)[::3])


def look(frame: bytes, *, at_refused: bool = True) -> tuple[Any, ...]:
    """Decode a frame, and compare what comes out with a second reading. Raises WrongRowError.

    Whether one of which nothing came was refused rightly is looked into unless `at_refused` is false.
    """
    items = DECODER.decode(frame)
    if not at_refused and all(isinstance(item, Reject) for item in items):
        return items
    document = read(frame)
    for item in items:
        if not isinstance(item, Reject | Control):
            require_sound(item)
            require_published(item, document, PAIRS)
    for record in must_give(frame, document, PAIRS):
        if record not in items:
            raise WrongRowError(f"{record} did not come out, but {items}")
    return items


@pytest.mark.long(10)
def test_no_spoilt_frame_raises_or_gives_a_wrong_row(scoreboard: Scoreboard) -> None:
    mutator = Mutator(corpus(), SEED)
    seen: Counter[str] = Counter()
    for number in range(FRAMES):
        frame = mutator.spoil()
        try:
            items = look(frame, at_refused=number % 4 == 0)
        except Exception as error:
            raise AssertionError(f"seed {SEED}: {frame!r}") from error
        for item in items:
            seen[item.reason if isinstance(item, Reject) else type(item).__name__] += 1
    # The frames were neither all garbage nor all good, and every way to refuse one was taken.
    if FRAMES >= 100_000:
        assert min(seen["Candle"], seen["MarkPrice"], seen["FundingRate"]) > FRAMES / 50
        assert seen["not_json"] > FRAMES / 4
        for reason in (
            "bad_shape", "bad_time", "bad_number", "bad_prices", "closed_early", "unknown_event",
            "unknown_symbol", "unknown_timeframe", "coin_m", "Control",
        ):  # fmt: skip
            assert seen[reason] > 0, reason
    print(dict(seen))  # noqa: T201 - for whoever runs it with -s
    scoreboard.add(
        Row(fault=f"{FRAMES:,} malformed frames", lost="nothing: 0 raised, 0 wrong rows")
    )


def test_how_a_frame_is_written_does_not_matter() -> None:
    frames = [frame for frame in corpus() if b"kline" in frame or b"markPriceUpdate" in frame]
    mutator = Mutator(frames, SEED)
    for _ in range(min(FRAMES, 20_000)):
        frame, rewritten = mutator.rewrite()
        assert DECODER.decode(rewritten) == DECODER.decode(frame), rewritten


def test_the_second_reading_tells_wrong_rows_from_right_ones() -> None:
    (frame,) = [f for f in simulated(SPOILT, 4) if b'"x":true' in f.replace(b" ", b"")][:1]
    (candle,) = DECODER.decode(frame)
    assert isinstance(candle, Candle)
    document = read(frame)
    assert must_give(frame, document, PAIRS) == [candle]
    for name, value in (
        ("high", candle.high * 1.1), ("trades", candle.trades + 1), ("pair", GOOD[0]),
        ("closed", False), ("open_time_ms", candle.open_time_ms - 60_000),
    ):  # fmt: skip
        changed = {field: getattr(candle, field) for field in candle.__struct_fields__} | {
            name: value
        }
        with pytest.raises(WrongRowError, match="does not say"):
            require_published(Candle(**changed), document, PAIRS)
    for name, value in (
        ("low", 0.0), ("high", candle.low / 2), ("volume", float("nan")), ("close", float("inf")),
        ("open_time_ms", candle.open_time_ms + 1), ("event_time_ms", candle.open_time_ms),
    ):  # fmt: skip
        changed = {field: getattr(candle, field) for field in candle.__struct_fields__} | {
            name: value
        }
        with pytest.raises(WrongRowError, match="no market"):
            require_sound(Candle(**changed))
    with pytest.raises(WrongRowError, match="no market"):
        require_sound(MarkPrice(GOOD[0], 1, 0.0, 1.0))


KEYS = st.sampled_from(
    [*"eEsktTiochlvnxqVpr", "stream", "data", "st", "result", "error", "id", "code"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["kline", "markPriceUpdate", "BTCUSDT", "1m", "1.5", "-1", "nan", "1e400", "true"]
    )
    | st.integers(1_790_000_000_000, 1_790_000_100_000).map(str)
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=8)
)


def candle_frame(changes: dict[str, Any], event_changes: dict[str, Any]) -> bytes:
    """A closing frame with some of its values replaced."""
    k = {
        "t": 1_790_000_040_000, "T": 1_790_000_099_999, "s": "BTCUSDT", "i": "1m", "o": "2.0",
        "c": "2.5", "h": "3.0", "l": "1.0", "v": "9", "n": 7, "x": True, "q": "20", "V": "4",
    }  # fmt: skip
    event = {"e": "kline", "E": 1_790_000_100_010, "s": "BTCUSDT", "k": k | changes} | event_changes
    return json.dumps({"stream": "btcusdt@kline_1m", "data": event}).encode()


@given(st.binary(max_size=300) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=300, deadline=None)
def test_any_bytes(frame: bytes) -> None:
    look(frame)


@given(JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None)
def test_any_json(frame: bytes) -> None:
    look(frame)


@given(
    st.dictionaries(st.sampled_from("tTsiochlvnxqV"), JSON, max_size=3),
    st.dictionaries(st.sampled_from("eEsk"), JSON, max_size=1),
)
@settings(max_examples=200, deadline=None)
def test_any_values_in_a_candle(changes: dict[str, Any], event_changes: dict[str, Any]) -> None:
    look(candle_frame(changes, event_changes))


@given(*[st.decimals("0.00000001", "1000000", places=8).map(str)] * 4, st.booleans())
@settings(max_examples=300, deadline=None)
def test_prices_in_any_order(first: str, second: str, third: str, fourth: str, sort: bool) -> None:
    o, h, low, c = first, second, third, fourth
    if sort:
        low, o, c, h = sorted((first, second, third, fourth), key=float)
    items = look(candle_frame({"o": o, "h": h, "l": low, "c": c}, {}))
    good = float(low) <= min(float(o), float(c)) and float(h) >= max(float(o), float(c))
    assert isinstance(items[0], Candle) == good


# --- beside good frames, through intake and journal ----------------------------------------------


def mixed(good: Iterable[bytes], spoilt: Iterator[bytes], each: int) -> Iterator[bytes]:
    """After every good frame `each` spoilt ones, none of which says anything of the good pairs."""
    names = frozenset(GOOD)
    for frame in good:
        yield frame
        for other in itertools.islice(spoilt, each):
            if not any(getattr(item, "pair", "") in names for item in DECODER.decode(other)):
                yield other


def take_in(path: Path, frames: Iterable[bytes]) -> tuple[CollectorCounters, int]:
    """Run frames through a real intake into the journal at `path`; returns also the most that waited."""
    counters = CollectorCounters()
    most = 0

    async def run() -> None:
        nonlocal most
        async with JournalWriter(path) as writer:
            clock = ExchangeClock()
            clock.set_server_time(simulated_until_ms(), 0.0)
            intake = Intake(writer, DECODER, counters, clock, 60_000, lambda: None)
            committing = asyncio.create_task(intake.run())
            for number, frame in enumerate(frames):
                intake.on_frame(frame)
                if number % 200 == 0:
                    most = max(most, intake.pending)
                    await asyncio.sleep(0)
            intake.end()
            await committing

    asyncio.run(run())
    return counters, most


def simulated_until_ms() -> int:
    return max(
        item.event_time_ms
        for item in DECODER.decode(simulated(GOOD, 4)[-1])
        if isinstance(item, Candle | MarkPrice | FundingRate)
    )


def rows_of_good_pairs(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    """All rows of the good pairs but their numbers, which depend on what else was stored."""
    marks = ",".join("?" * len(GOOD))
    found = {}
    with closing(sqlite3.connect(path)) as db:
        for table in ("candle", "forming", "mark_price", "funding_rate"):
            columns = [
                row[1]
                for row in db.execute(f"PRAGMA table_info({table})")
                if row[1] not in ("pair_id", "seq")
            ]
            found[table] = set(
                db.execute(
                    f"""SELECT pair.pair, {",".join(columns)} FROM {table}
                        JOIN pair ON pair.id = pair_id WHERE pair.pair IN ({marks})""",  # noqa: S608
                    GOOD,
                )
            )
    return found


def test_good_frames_between_spoilt_ones_are_all_stored(tmp_path: Path) -> None:
    good = simulated(GOOD, 4)
    mutator = Mutator((*recorded(), *simulated(SPOILT, 4)), SEED)
    spoilt = iter(mutator.spoil, None)
    take_in(tmp_path / "good.db", good)
    before_bytes = rss_bytes()
    started_s = time.monotonic()
    counters, most = take_in(tmp_path / "mixed.db", mixed(good, spoilt, 20))
    commits_due = (time.monotonic() - started_s) / 0.008
    expected, found = (
        rows_of_good_pairs(tmp_path / "good.db"),
        rows_of_good_pairs(tmp_path / "mixed.db"),
    )
    assert found == expected
    assert len(expected["candle"]) == len(GOOD) * (5 + 1)
    assert all(expected.values())
    assert counters.frames > len(good) * 15
    # Bounded: what waits, what is kept aside, and memory.
    assert most < 5_000
    assert counters.rejects.total() > REJECTED_FRAMES_KEPT
    with closing(sqlite3.connect(tmp_path / "mixed.db")) as db:
        (kept,) = db.execute("SELECT count(*) FROM dead_letter").fetchone()
    assert 0 < kept <= min(REJECTED_FRAMES_KEPT, REJECTED_FRAMES_PER_COMMIT * commits_due)
    assert rss_bytes() - before_bytes < 64 * 1024 * 1024


def test_a_stamp_far_ahead_does_not_become_the_newest_row(tmp_path: Path) -> None:
    good = simulated(GOOD, 4)
    # One digit is wrong: the year 2058, a time like any other to the decoder.
    ahead = [
        frame.replace(b'"E":1790', b'"E":2790') for frame in good if b"markPriceUpdate" in frame
    ][:50]
    assert all(isinstance(DECODER.decode(frame)[0], MarkPrice) for frame in ahead)
    take_in(tmp_path / "good.db", good)
    counters, _ = take_in(tmp_path / "mixed.db", [*ahead, *good, *ahead])
    assert counters.rejects["bad_time"] >= len(ahead) * 2
    assert rows_of_good_pairs(tmp_path / "mixed.db") == rows_of_good_pairs(tmp_path / "good.db")
