"""Mark candles as a reader gives them: the exchange's own, or made of mark prices until they come."""

from pathlib import Path

import pytest
from covered import cover
from lived import symbol, tell
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
    assert [(at - START_MS) // H1 for at in frame.attrs["made"]] == [-1, 0]
    assert frame.attrs["absent"] == []
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[mark(-1)]))
    frame = filled.get_mark_candles(PAIR, since=START_MS - 3 * H1)
    assert frame["open"].tolist() == [97.0, 98.0, 99.0, 500.0]
    assert frame.attrs["made"] == [START_MS]


def test_longer_candles_are_made_of_hours(filled: MarketReader) -> None:
    frame = filled.get_mark_candles(PAIR, "4h", since=START_MS - 8 * H1)
    assert hours_of(frame) == [-8, -4, 0]
    assert frame.iloc[0, 1:].tolist() == [92.0, 97.0, 90.0, 96.0, 0.0]
    assert [(at - START_MS) // H1 for at in frame.attrs["made"]] == [-4, 0]
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
        assert frame.attrs["absent"] == [lacking.start_ms]
        # As from the exchange: the candles around it.
        (answer,) = feeder.answer([asked])
        assert isinstance(answer, list)
        assert len(answer) == 48


@pytest.mark.parametrize(
    ("lacking", "since", "limit"),
    [
        ((-30, -28), -30, 12),  # at the beginning of what is asked
        ((-30, -28), -40, 12),  # at its end
        ((-30, -18), -30, 12),  # all of it
        ((-30, -28), -48, 100),
    ],
)
def test_a_feeder_gets_what_there_is_around_hours_that_the_exchange_does_not_have(
    path: Path, clock, lacking: tuple[int, int], since: int, limit: int
) -> None:
    """A bot downloads in pieces: what the exchange does not have may lie at the edge of one."""
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    with Journal.open(path) as journal:
        there = [hour for hour in range(-48, 0) if not lacking[0] <= hour < lacking[1]]
        journal.write(Batch(candles=[mark(hour) for hour in there]))
    hole = TimeRange(START_MS + lacking[0] * H1, START_MS + lacking[1] * H1)
    cover(path, START_MS, 2 * D1, [KEY], [(KEY, hole)])
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        asked = Download(PAIR, "1h", MARK, START_MS + since * H1, limit, START_MS - 90 * D1)
        (answer,) = Feeder(reader, clock.now_ms).answer([asked])
        assert isinstance(answer, list), answer
        hours = [(row[0] - START_MS) // H1 for row in answer]
        assert hours == [hour for hour in (*there, 0) if since <= hour < since + limit]
        # Before the first row that is stored a bucket's expiry may have taken some: nothing is known of it.
        with Journal.open(path) as journal, journal.db:
            journal.db.execute("DELETE FROM mark_1h WHERE open_time < ?", (hole.start_ms,))
        frame = reader.get_mark_candles(PAIR, since=hole.start_ms)
        assert frame.attrs["absent"] == []


def test_nothing_is_asked_of_before_a_listing_that_the_exchange_alone_tells(
    path: Path, clock
) -> None:
    """As for candles: a bot downloads from its own beginning on, in pieces."""
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        asked = Download(PAIR, "1h", MARK, START_MS - 90 * D1, 499, START_MS - 2 * H1)
        assert Feeder(reader, clock.now_ms).answer([asked]) == [[]]
        (rows,) = Feeder(reader, clock.now_ms).answer([asked._replace(since_ms=START_MS - D1)])
        assert [(row[0] - START_MS) // H1 for row in rows] == [-2, -1, 0]


def test_an_hour_that_is_stored_while_it_is_read_is_not_absent(
    path: Path, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coverage, which is read after the rows, tells that the series is whole then."""
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",)), *points(-120, 2))
    with Journal.open(path) as journal:
        journal.write(Batch(candles=[mark(hour) for hour in range(-48, 0) if hour != -9]))
    cover(path, START_MS, 2 * D1, [KEY])
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        read = reader._store.mark_hours
        asked = []

        def then_stored(*question: object) -> object:
            rows = read(*question)
            if not asked:
                with Journal.open(path) as journal:
                    journal.write(Batch(candles=[mark(-9)]))
            asked.append(question)
            return rows

        monkeypatch.setattr(reader._store, "mark_hours", then_stored)
        frame = reader.get_mark_candles(PAIR, since=START_MS - 2 * D1)
        assert -9 not in hours_of(frame)
        assert reader._store.mark_coverage(PAIR) == (START_MS - 2 * D1, START_MS)
        assert frame.attrs["absent"] == []
        assert -9 in hours_of(reader.get_mark_candles(PAIR, since=START_MS - 2 * D1))


# --- a name that was used again -------------------------------------------------------------------

OLD = (START_MS - 60 * D1, START_MS - 30 * D1 + 10 * M1)
NEW = (START_MS - 5 * D1 + 30 * M1, None)
"""The current contract: listed half an hour into one."""


@pytest.fixture
def twice(path: Path, clock) -> MarketReader:
    """The hours of two contracts, the last ones not yet fetched, and mark prices around both turns."""
    clock.ms = NOW_MS
    store(path, entry(PAIR, ("1h",), listed_ms=NEW[0]), *points(-120, 2))
    old_minutes = range(-30 * 1440 - 120, -30 * 1440 + 10)
    new_minutes = range(-5 * 1440 + 30, -5 * 1440 + 120)
    more = [points(minute, minute + 1) for minute in (*old_minutes, *new_minutes)]
    store(path, *more)
    tell(path, {PAIR: [OLD, NEW]})
    with Journal.open(path) as journal:
        old = [mark(hour) for hour in range(-60 * 24, -30 * 24 - 1)]
        new = [mark(hour) for hour in range(-5 * 24 + 1, -1)]
        journal.write(Batch(candles=[*old, *new]))
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        yield reader


def lives_of(frame) -> list[list[object]]:
    return frame.attrs["lives"]


@pytest.mark.parametrize("days", [5, 20, 45, 90])
def test_hours_are_of_one_contract(twice: MarketReader, days: int) -> None:
    frame = twice.get_mark_candles(PAIR, since=START_MS - days * D1)
    assert hours_of(frame) == list(range(-5 * 24, 1))
    # The first hour is made of what is its own: it begins at the listing.
    assert frame.iloc[0, 1:3].tolist() == [500.0 - 5 * 1440 + 30, 500.0 - 5 * 1440 + 59]
    made = [(at - START_MS) // H1 for at in frame.attrs["made"]]
    assert made == [-5 * 24, -1, 0]
    ours = [*NEW, symbol(PAIR)]
    assert lives_of(frame) == ([[*OLD, symbol(PAIR)], ours] if days > 30 else [ours])


def test_an_older_contract_has_its_rows_with_until(twice: MarketReader) -> None:
    for until_ms in (NEW[0] - 30 * M1, OLD[1] + D1, OLD[1]):
        frame = twice.get_mark_candles(PAIR, since=START_MS - 90 * D1, until=until_ms)
        # The hour that its end cuts is nobody's; the last whole one is made of its own mark prices.
        assert hours_of(frame) == list(range(-60 * 24, -30 * 24))
        made = [(at - START_MS) // H1 for at in frame.attrs["made"]]
        assert made == [-30 * 24 - 1]
        assert frame.iloc[-1, 1] == 500.0 - 30 * 1440 - 60
        assert lives_of(frame) == [[*OLD, symbol(PAIR)]]
    longer = twice.get_mark_candles(PAIR, "4h", since=START_MS - 90 * D1)
    # Its first four hours have begun before the listing: they are those that it had.
    assert hours_of(longer) == list(range(-5 * 24, 1, 4))
    assert len(lives_of(longer)) == 2
    # Before all that is told of: no row is stored of then.
    empty = twice.get_mark_candles(PAIR, since=START_MS - 90 * D1, until=OLD[0])
    assert (len(empty), lives_of(empty)) == (0, [])


def test_a_break_is_named_of_candles_that_are_made_of_mark_prices_alone(
    twice: MarketReader, path: Path
) -> None:
    short = twice.get_mark_candles(PAIR, "15m", since=START_MS - 90 * D1)
    assert int(short["date"].iloc[0].timestamp() * 1000) == NEW[0]
    assert len(lives_of(short)) == 2
    near = twice.get_mark_candles(PAIR, "15m", since=START_MS - 20 * D1)
    assert len(near) == len(short)
    assert lives_of(near) == [[*NEW, symbol(PAIR)]]
    # As where the older contract's hours were never fetched.
    with Journal.open(path) as journal, journal.db:
        journal.db.execute("DELETE FROM mark_1h WHERE open_time < ?", (OLD[1],))
    frame = twice.get_mark_candles(PAIR, since=START_MS - 90 * D1)
    assert hours_of(frame) == list(range(-5 * 24, 1))
    assert len(lives_of(frame)) == 2


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
