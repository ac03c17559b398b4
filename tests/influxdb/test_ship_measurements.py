"""Where measurements are acknowledged differently, as after one was added later, each gets what it lacks."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import uvloop
from endpoint import Server, serving, stored
from filled import MINUTE, PAIRS, QUICK, T0, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.outbox import ShipBatch
from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter, target_of
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap, MarkPrice
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.ranges import Acknowledged, Piece, Ranges
from tests.waiting import until

SMALL = Pace(
    max_lines=7,
    turn_s=0.01,
    backoff_first_s=0.01,
    backoff_cap_s=0.05,
    recheck_after_s=QUICK.recheck_after_s,
)


class Row(NamedTuple):
    """A row that is shipped: its measurement, number and point."""

    measurement: str
    seq: int
    point: tuple[str, str, int]


def wealth(path: Path) -> Path:
    """A journal with rows of every measurement; numbers of rows that have changed since are missing."""
    changed = Batch()
    for n in range(0, 10, 2):
        at_ms = T0 + n * MINUTE
        changed.add(
            Candle(PAIRS[1], "1m", at_ms, 1.5, 2.5, 1, 2.25, 3, 4, 1, 9, True, at_ms + MINUTE)
        )
        changed.add(MarkPrice(PAIRS[0], at_ms + 500, 7.5, 8.0))
        changed.add(Gap("candle_1m", PAIRS[n % 3], at_ms, at_ms + MINUTE, "found", "late"))
    with Journal.open(path) as journal:
        journal.write(fill(0, 5))
        journal.write(fill(5, 5))
        journal.write(changed)
        journal.write(fill(10, 3))
    return path


SOURCES = {
    "ohlcv": "SELECT seq, 'ohlcv_1m', pair_id, open_time FROM candle",
    schema.MARK_PRICE: "SELECT seq, 'mark_price', pair_id, time FROM mark_price",
    schema.FUNDING_RATE: "SELECT seq, 'funding_rate', pair_id, time FROM funding_rate",
    schema.FUNDING_SETTLED: "SELECT seq, 'funding_settled', pair_id, time FROM funding_settled",
    schema.FEED_GAP: "SELECT seq, 'feed_gap', pair_id, start FROM gap",
    schema.FEED_CATALOG: "SELECT seq, 'feed_catalog', pair_id, changed FROM catalog",
}


def rows_in(path: Path) -> list[Row]:
    """All rows, the newest first."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        pairs = {0: "*", **dict(db.execute("SELECT id, pair FROM pair").fetchall())}
        return sorted(
            (
                Row(measurement, seq, (name, pairs[pair_id], time_ms))
                for measurement, query in SOURCES.items()
                for seq, name, pair_id, time_ms in db.execute(query).fetchall()
            ),
            key=lambda row: -row.seq,
        )


def next_seq(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT next FROM sequence").fetchone()[0])


def point(line: str) -> tuple[str, str, int]:
    series, _, time = line.rsplit(" ", 2)
    name, *tags = series.split(",")
    (pair,) = (tag.removeprefix("pair=") for tag in tags if tag.startswith("pair="))
    return name, pair, int(time)


def lacking(rows: list[Row], acknowledged: Acknowledged) -> list[Row]:
    return [row for row in rows if row.seq not in acknowledged[row.measurement]]


def take(box: JournalOutbox, acknowledged: Acknowledged, max_lines: int) -> ShipBatch:
    """Take the newest, and note it as a shipper does."""
    ship_batch = box.newest(acknowledged, max_lines)
    for piece in ship_batch.covers:
        for name in piece.measurements:
            # Nothing that was acknowledged already is taken again, not even as part of a range.
            assert not any(
                number in acknowledged[name] for number in range(piece.first, piece.last + 1)
            )
        acknowledged.add(piece)
    return ship_batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wealth(tmp_path_factory.mktemp("outbox") / "journal.db")


@pytest.fixture
def box(whole: Path) -> Iterator[JournalOutbox]:
    opened = JournalOutbox(whole, "host")
    yield opened
    opened.close()


spans = st.lists(
    st.tuples(st.integers(1, 150), st.integers(0, 60)).map(lambda s: (s[0], s[0] + s[1])),
    max_size=5,
)
uneven = st.fixed_dictionaries(dict.fromkeys(KIND.measurements, spans))


@given(uneven, st.lists(st.integers(1, 200), min_size=1))
@settings(max_examples=25)
def test_the_newest_rows_of_each_measurement_come_once(
    whole: Path, noted: dict[str, list[tuple[int, int]]], sizes: list[int]
) -> None:
    acknowledged = Acknowledged({name: Ranges(ranges) for name, ranges in noted.items()})
    rows = rows_in(whole)
    expected = lacking(rows, acknowledged)
    box = JournalOutbox(whole, "host")
    for turn in range(len(expected) + 2):
        assert box.count_unshipped(acknowledged) == len(expected)
        size = sizes[turn % len(sizes)]
        found = [point(line) for line in take(box, acknowledged, size).lines]
        assert sorted(found) == sorted(row.point for row in expected[:size])
        expected = expected[size:]
        # What it says is everything of those numbers, and of no others.
        assert lacking(rows, acknowledged) == expected
        if len(found) < size:
            break
    assert not expected
    assert take(box, acknowledged, 9) == ShipBatch([], [])
    box.close()


@pytest.mark.parametrize("new", KIND.measurements)
def test_a_measurement_that_was_added_is_taken_from_its_first_row_on(
    whole: Path, box: JournalOutbox, new: str
) -> None:
    rows = rows_in(whole)
    end = next_seq(whole)
    everything = Ranges([(1, end - 1)])
    acknowledged = Acknowledged(
        {name: Ranges() if name == new else everything.copy() for name in KIND.measurements}
    )
    assert acknowledged.first_gap(end) == 1
    ship_batch = take(box, acknowledged, 1_000)
    assert [piece.measurements for piece in ship_batch.covers] == [(new,)]
    assert sorted(map(point, ship_batch.lines)) == sorted(
        row.point for row in rows if row.measurement == new
    )
    assert acknowledged.first_gap(end) == end


def test_rows_that_come_meanwhile_come_first(tmp_path: Path) -> None:
    path = wealth(tmp_path / "journal.db")
    acknowledged = Acknowledged.alike(KIND.measurements, Ranges([(20, 60)]))
    acknowledged.add(Piece(1, 100, (schema.MARK_PRICE,)))
    box = JournalOutbox(path, "host")
    for minute in range(13, 23):
        expected = lacking(rows_in(path), acknowledged)[:11]
        assert sorted(map(point, take(box, acknowledged, 11).lines)) == sorted(
            row.point for row in expected
        )
        with Journal.open(path) as journal:
            journal.write(fill(minute, 1))
    expected = lacking(rows_in(path), acknowledged)
    assert sorted(map(point, take(box, acknowledged, 1_000).lines)) == sorted(
        row.point for row in expected
    )
    box.close()


# --- the shipper -----------------------------------------------------------------------------------------

NOTED = {
    "ohlcv": [(1, 40), (60, 75)],
    schema.MARK_PRICE: [(1, 1), (30, 90)],
    schema.FUNDING_RATE: [],
    schema.FUNDING_SETTLED: [(1, 44)],
    schema.FEED_GAP: [(50, 100)],
    schema.FEED_CATALOG: [(1, 60), (62, 63), (65, 200)],
}
"""What a server has acknowledged; numbers after 200 have not been given."""


async def shipped_to(server: Server, path: Path, *, noting: bool) -> tuple[Acknowledged, int]:
    """Ship a journal until nothing lacks; returns what has been noted, and the next number."""
    options = InfluxSettings.model_validate({"url": server.url, "org": "fleet"})
    if noting:
        with Journal.open(path) as journal:
            ranges = [(name, *span) for name, spans_ in NOTED.items() for span in spans_]
            journal.note_shipped(target_of(options), ranges)
    async with aiohttp.ClientSession() as session, JournalWriter(path) as writer:
        shipper = Shipper(writer, InfluxWriter(options, session), SMALL)
        task = asyncio.create_task(shipper.run())
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        shipper.end()
        await task
        return await writer.call(
            lambda journal: (journal.shipped(target_of(options)), journal.next_seq)
        )


@pytest.mark.parametrize("failing", [False, True])
def test_a_shipper_ships_what_lacks_and_nothing_else(tmp_path: Path, failing: bool) -> None:
    async def main() -> None:
        path = wealth(tmp_path / "journal.db")
        noted = Acknowledged({name: Ranges(spans_) for name, spans_ in NOTED.items()})
        expected = sorted(row.point for row in lacking(rows_in(path), noted))
        async with serving() as server:
            if failing:
                server.answer = lambda lines: (
                    stored(lines) if len(server.requests) % 3 else (503, b"busy", {})
                )
            now, end = await shipped_to(server, path, noting=True)
            assert list(now.pieces(end)) == []
            taken = [
                line
                for number, lines in enumerate(server.requests, 1)
                for line in lines
                if not failing or number % 3
            ]
            assert sorted(map(point, taken)) == expected
            # The next start has nothing to ship.
            server.answer = stored
            before = len(server.requests)
            await shipped_to(server, path, noting=False)
            assert server.requests[before:] == []
        with contextlib.closing(sqlite3.connect(path)) as db:
            (rows,) = db.execute("SELECT count(*) FROM shipped").fetchone()
        # One range each; that of candles is noted twice.
        assert rows == len(KIND.measurements) + 1

    uvloop.run(main())
