"""A name is used again while a bucket's reader runs: no answer is of two lives, whoever tells of it first."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from both import Both
from influxd import Influxd
from lived import made
from stored import D1, H1, M1, PAIR, START_MS, candle, entry

from marketfeed import schema
from marketfeed.influxdb.line_protocol import coverage_text, escape_tag
from marketfeed.records import FundingSettled, MarkPrice, lives_text
from reader import MarketReader
from reader.stores.influx_http import InfluxHttp

LISTED_MS = START_MS - 400 * D1
END_MS = START_MS + D1 + 2 * H1
AGAIN_MS = END_MS + 5 * M1
NOW_MS = AGAIN_MS + 10 * M1
BEFORE = [(LISTED_MS, None)]
AFTER = [(LISTED_MS, END_MS), (AGAIN_MS, None)]
OLD_OPENS = range(END_MS - 30 * M1, END_MS, M1)
NEW_OPENS = range(AGAIN_MS, NOW_MS, M1)
Lives = Sequence[tuple[int, int | None]]


@pytest.fixture
def both(influxd: Influxd, database: str, tmp_path: Path) -> Both:
    return Both(influxd, database, tmp_path / "journal.db")


@pytest.fixture
def opened(both: Both, clock) -> Iterator[Callable[[], MarketReader]]:
    """Open another reader of the bucket."""
    readers: list[MarketReader] = []

    def made_one() -> MarketReader:
        readers.append(
            MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms)
        )
        return readers[-1]

    yield made_one
    for one in readers:
        one.close()


def tell(both: Both, lives: Lives, until_ms: int, collector: str = "new") -> None:
    """Tell of lives, as a collector does that has stored all up to `until_ms`."""
    line = coverage_text(
        escape_tag(PAIR),
        collector,
        {"1m": (OLD_OPENS[0], until_ms)},
        schema.floor_to(until_ms, H1),
        lives_text(made({PAIR: lives})[PAIR]),
    )
    both.influxd.write(both.database, [line])


def list_again(both: Both, listed_ms: int = AGAIN_MS) -> None:
    """Note the listing, as collectors of all versions do."""
    both.add(entry(PAIR, ("1m",), listed_ms=listed_ms, changed_ms=AGAIN_MS))


def trade_again(both: Both) -> None:
    both.add(
        [candle(ms, timeframe="1m") for ms in NEW_OPENS],
        [MarkPrice(PAIR, ms, 100.0, 100.0) for ms in range(AGAIN_MS, NOW_MS, 3_000)],
        FundingSettled(PAIR, AGAIN_MS + M1, 0.2, None),
    )


@pytest.fixture
def reader(both: Both, clock, opened) -> MarketReader:
    """A reader that has seen the first life, and has looked at what is told just now."""
    clock.ms = END_MS
    both.add(
        entry(PAIR, ("1m",), listed_ms=LISTED_MS),
        [candle(ms, timeframe="1m") for ms in OLD_OPENS],
        [MarkPrice(PAIR, ms, 1.0, 1.0) for ms in range(OLD_OPENS[0], END_MS, 3_000)],
        FundingSettled(PAIR, END_MS - 20 * M1, 0.1, None),
    )
    tell(both, BEFORE, END_MS)
    found = opened()
    assert opens(found) == [*OLD_OPENS]
    clock.ms = NOW_MS
    return found


def opens(reader: MarketReader, **asked: object) -> list[int]:
    frame = reader.get_ohlcv(PAIR, "1m", 500, max_age_s=None, **asked)
    return [at.value // 1_000_000 for at in frame["date"]]


def is_of_second(reader: MarketReader) -> None:
    """Each kind of answer is of the second life alone."""
    assert opens(reader) == [*NEW_OPENS]
    since_ms = LISTED_MS
    assert [
        at.value // 1_000_000
        for at in reader.get_ohlcv(PAIR, "5m", since=since_ms, max_age_s=None)["date"]
    ] == [AGAIN_MS, AGAIN_MS + 5 * M1]
    assert reader.get_mark_candles(PAIR, "1m", since=since_ms)["low"].tolist() == [100.0] * 10
    assert reader.get_funding_history(PAIR, since_ms)["rate"].tolist() == [0.2]


ASKS: dict[str, Callable[[MarketReader], bool]] = {
    "candles": lambda reader: opens(reader) == [*NEW_OPENS],
    "limited": lambda reader: opens(reader, since=END_MS - 3 * M1) == [*NEW_OPENS],
    "marks": lambda reader: (
        set(reader.get_mark_candles(PAIR, "1m", since=LISTED_MS)["low"]) == {100.0}
    ),
    "settled": lambda reader: reader.get_funding_history(PAIR, LISTED_MS)["rate"].tolist() == [0.2],
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_what_is_told_since_counts_for_the_first_answer_with_its_rows(
    both: Both, reader: MarketReader, ask: Callable[[MarketReader], bool]
) -> None:
    trade_again(both)
    tell(both, AFTER, NOW_MS)
    # It has looked a moment ago, and asks for what is told once a minute.
    assert ask(reader)
    is_of_second(reader)


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_an_older_collectors_rows_come_before_lives_are_told(
    both: Both, reader: MarketReader, ask: Callable[[MarketReader], bool]
) -> None:
    list_again(both)
    trade_again(both)
    assert ask(reader)
    is_of_second(reader)
    first, second = reader.lives(PAIR)
    assert (first.ended.value, second.listed.value) == (AGAIN_MS * 10**6, AGAIN_MS * 10**6)
    assert second.symbol == ""


def test_the_second_life_gets_its_name_when_it_is_told(
    both: Both, reader: MarketReader, opened
) -> None:
    list_again(both)
    trade_again(both)
    tell(both, AFTER, NOW_MS)
    for one in (reader, opened()):
        is_of_second(one)
        assert [life.symbol for life in one.lives(PAIR)] == ["BTCUSDT"] * 2
        assert one.lives(PAIR)[0].ended.value == END_MS * 10**6
        assert opens(one, until=END_MS) == [*OLD_OPENS]


def test_an_end_that_is_known_lets_a_listing_count_at_once(
    both: Both, clock, reader: MarketReader, opened
) -> None:
    tell(both, AFTER[:1], END_MS)
    list_again(both)
    trade_again(both)
    one = opened()
    is_of_second(one)
    assert one.lives(PAIR)[0].ended.value == END_MS * 10**6


def test_a_date_that_is_wrong_ends_nothing(both: Both, reader: MarketReader, opened) -> None:
    """The exchange names a later listing of a contract that goes on, as one tells who has seen it."""
    both.add([candle(ms, timeframe="1m") for ms in range(END_MS, NOW_MS, M1)])
    tell(both, BEFORE, NOW_MS)
    list_again(both)
    for one in (reader, opened()):
        assert opens(one) == [*range(OLD_OPENS[0], NOW_MS, M1)]
        assert len(one.lives(PAIR)) == 1


def test_a_listing_that_lies_ahead_ends_nothing(both: Both, reader: MarketReader, opened) -> None:
    both.add([candle(ms, timeframe="1m") for ms in range(END_MS, NOW_MS, M1)])
    list_again(both, NOW_MS + D1)
    for one in (reader, opened()):
        assert opens(one) == [*range(OLD_OPENS[0], NOW_MS, M1)]


def test_rows_without_a_word_of_anyone_are_taken_for_the_same_life(
    both: Both, reader: MarketReader
) -> None:
    """What no reader can know: an older collector's candles alone are there."""
    trade_again(both)
    assert opens(reader) == [*OLD_OPENS, *NEW_OPENS]
    # They are nobody's for one look at most: its listing comes.
    list_again(both)
    is_of_second(reader)


def test_nothing_more_is_asked_where_what_is_told_is_young(
    both: Both, clock, opened, reader: MarketReader, monkeypatch
) -> None:
    both.add([candle(ms, timeframe="1m") for ms in range(END_MS, NOW_MS, M1)])
    tell(both, BEFORE, NOW_MS - 3 * M1)
    one = opened()
    asked: list[int] = []
    ask = InfluxHttp.ask

    def counted(self, statements, parameters):
        asked.append(len(statements))
        return ask(self, statements, parameters)

    monkeypatch.setattr(InfluxHttp, "ask", counted)
    opens(one)
    young = len(asked)
    clock.ms = NOW_MS + 10 * M1
    both.add([candle(ms, timeframe="1m") for ms in range(NOW_MS, clock.ms, M1)])
    opens(one)
    assert len(asked) == 2 * young + 1
