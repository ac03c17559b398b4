"""Mark candles as a reader gives them: the exchange's own, or made of mark prices until they come."""

from pathlib import Path

import pytest
from covered import cover
from stored import D1, H1, M1, PAIR, START_MS, entry, store, url

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Candle
from marketfeed.records import MarkPrice as MarkRecord
from marketfeed.storage.database import convert
from reader import MarketReader
from reader.feeder import MARK, Download, Feeder, NotStoredError

KEY = (PAIR, schema.MARK_1H)
NOW_MS = START_MS + 90_000
"""A minute and a half into an hour: the last one may not be there yet."""


def mark(hour: int, close: float | None = None) -> Candle:
    x = 100.0 + hour
    return Candle(
        PAIR, schema.MARK_1H, START_MS + hour * H1, x, x + 2, x - 2, x + 1 if close is None else close,
        0, 0, 0, 0, True, START_MS + (hour + 1) * H1,
    )  # fmt: skip


def points(first_minute: int, end_minute: int) -> list[MarkRecord]:
    return [
        MarkRecord(PAIR, START_MS + minute * M1, 500.0 + minute, 1.0)
        for minute in range(first_minute, end_minute)
    ]


def hours_of(frame) -> list[int]:
    return [int(time.timestamp() * 1000 - START_MS) // H1 for time in frame["date"]]


@pytest.fixture
def filled(path: Path, clock) -> MarketReader:
    """Ten days of hours but the last one, and two hours of mark prices."""
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    cover(path, START_MS, 10 * D1, [KEY])
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[mark(hour) for hour in range(-240, -1)]))
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        yield reader


def test_hours_are_the_exchanges_and_the_newest_is_made_of_points(
    filled: MarketReader, path: Path
) -> None:
    frame = filled.get_mark_candles(PAIR, since=START_MS - 10 * D1)
    assert hours_of(frame) == list(range(-240, 1))
    assert frame.iloc[0, 1:].tolist() == [-140.0, -138.0, -142.0, -139.0, 0.0]
    # Of the hour before the last one there are mark prices, too: the exchange's own counts.
    assert frame.iloc[-3, 1:].tolist() == [98.0, 100.0, 96.0, 99.0, 0.0]
    assert frame.iloc[-2, 1:].tolist() == [440.0, 499.0, 440.0, 499.0, 0.0]
    assert [int(at.timestamp() * 1000 - START_MS) // H1 for at in frame.attrs["made"]] == [-1, 0]
    assert frame.attrs["absent"] == []
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[mark(-1)]))
    frame = filled.get_mark_candles(PAIR, since=START_MS - 3 * H1)
    assert frame["open"].tolist() == [97.0, 98.0, 99.0, 500.0]
    assert [int(at.timestamp() * 1000) for at in frame.attrs["made"]] == [START_MS]


def test_longer_candles_are_made_of_hours(filled: MarketReader) -> None:
    frame = filled.get_mark_candles(PAIR, "4h", since=START_MS - 8 * H1)
    assert hours_of(frame) == [-8, -4, 0]
    assert frame.iloc[0, 1:].tolist() == [92.0, 97.0, 90.0, 96.0, 0.0]
    assert [int(at.timestamp() * 1000 - START_MS) // H1 for at in frame.attrs["made"]] == [-4, 0]
    short = filled.get_mark_candles(PAIR, "30m", since=START_MS - H1)
    assert len(short) == len(short.attrs["made"]) == 3


def test_an_hour_that_the_exchange_does_not_have_is_named(path: Path, clock) -> None:
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    with Journal.open(path) as journal:
        journal.write(
            Batch(candles=[mark(hour) for hour in range(-48, 0) if hour not in (-30, -9)])
        )
    lacking = TimeRange(START_MS - 30 * H1, START_MS - 29 * H1)
    cover(path, START_MS, 2 * D1, [KEY], [(KEY, lacking)])
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        frame = reader.get_mark_candles(PAIR, since=START_MS - 2 * D1)
        assert hours_of(frame) == [hour for hour in range(-48, 1) if hour not in (-30, -9)]
        # Nothing is told of what lies before a hole.
        assert frame.attrs["absent"] == []
        feeder = Feeder(reader, clock.now_ms)
        asked = Download(PAIR, "1h", MARK, START_MS - 2 * D1, 100, START_MS - 90 * D1)
        (answer,) = feeder.answer([asked])
        assert isinstance(answer, NotStoredError)
        with Journal.open(path) as journal:
            journal.write(Batch(candles=[mark(-9)]))
        frame = reader.get_mark_candles(PAIR, since=START_MS - 2 * D1)
        assert [int(at.timestamp() * 1000) for at in frame.attrs["absent"]] == [lacking.start_ms]
        # As from the exchange: the candles around it.
        (answer,) = feeder.answer([asked])
        assert isinstance(answer, list)
        assert len(answer) == 48


def test_a_feeder_gets_them_from_before_the_stored_mark_prices(filled: MarketReader, clock) -> None:
    feeder = Feeder(filled, clock.now_ms)
    asked = Download(PAIR, "1h", MARK, START_MS - 10 * D1, 500, START_MS - 90 * D1)
    (rows,) = feeder.answer([asked])
    assert isinstance(rows, list)
    assert [row[0] for row in rows] == [START_MS + hour * H1 for hour in range(-240, 1)]
    (answer,) = feeder.answer([asked._replace(since_ms=START_MS - 11 * D1)])
    assert isinstance(answer, NotStoredError)


def test_a_journal_without_them_is_read_as_before(path: Path, clock) -> None:
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    convert(KIND, path, 2)
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        frame = reader.get_mark_candles(PAIR, since=START_MS - 10 * D1)
        assert hours_of(frame) == [-2, -1, 0]
        assert len(frame.attrs["made"]) == 3
