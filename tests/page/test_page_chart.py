"""What the chart is drawn from: the newest candles of a journal, with prices and rates of their time."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from marketfeed.errors import JournalError
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.view import Chart, JournalView
from marketfeed.records import Candle, FundingRate, FundingSettled, MarkPrice, Record

PAIR = "BTC/USDT:USDT"
OTHER = "ETH/USDT:USDT"
T0 = 1_791_360_000_000
MINUTE = 60_000


def candle(minute: int, close: float, *, pair: str = PAIR, closed: bool = True) -> Candle:
    at_ms = T0 + minute * MINUTE
    return Candle(
        pair, "1m", at_ms, 1.0, 9.0, 0.5, close, 3.0, 4.0, 1.0, 7, closed, at_ms + MINUTE - 1
    )


def mark(second: int, price: float, pair: str = PAIR) -> MarkPrice:
    return MarkPrice(pair, T0 + second * 1000, price, price)


def rate(second: int, value: float) -> FundingRate:
    return FundingRate(PAIR, T0 + second * 1000, value, T0 + 3_600_000)


def chart(path: Path, limit: int, records: Iterable[Record]) -> Chart:
    batch = Batch()
    for record in records:
        batch.add(record)
    with Journal.open(path) as journal:
        journal.write(batch)
    found = JournalView(path).chart(PAIR, "1m", limit)
    assert found is not None
    return found


def row(minute: int, close: float, price: float | None, value: float | None) -> tuple[object, ...]:
    return (T0 + minute * MINUTE, 1.0, 9.0, 0.5, close, 3.0, price, value)


def test_each_candle_has_the_last_price_and_rate_of_its_own_time(tmp_path: Path) -> None:
    found = chart(
        tmp_path / "journal.db",
        10,
        [
            *(candle(minute, 2.0 + minute) for minute in (0, 1, 3)),
            candle(4, 6.5, closed=False),
            candle(3, 99.0, pair=OTHER),
            *(mark(second, second / 10) for second in (-1, 0, 30, 59, 130, 241)),
            mark(58, 77.0, OTHER),
            rate(0, 0.0001),
            rate(185, 0.0002),
        ],
    )
    # Minute 2 is missing and its price is nobody's; minute 1 had none.
    assert found.candles == [
        row(0, 2.0, 5.9, 0.0001),
        row(1, 3.0, None, None),
        row(3, 5.0, None, 0.0002),
    ]
    assert found.forming == row(4, 6.5, 24.1, None)
    assert found.settled == []


def test_the_newest_are_taken_and_the_settlements_since_then(tmp_path: Path) -> None:
    settled = [(-60, "Regular", 0.1), (60, "Regular", 0.2), (120, "Regular", 0.3)]
    found = chart(
        tmp_path / "journal.db",
        2,
        [
            *(candle(minute, float(minute)) for minute in range(3)),
            *(
                FundingSettled(PAIR, T0 + second * 1000, value, None, kind)
                for second, kind, value in settled
            ),
        ],
    )
    assert [one[0] for one in found.candles] == [T0 + MINUTE, T0 + 2 * MINUTE]
    assert found.settled == [(T0 + MINUTE, 0.2), (T0 + 2 * MINUTE, 0.3)]


def test_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with pytest.raises(JournalError):
        JournalView(path).chart(PAIR, "1m", 10)
    assert not path.exists()
    chart(path, 1, [candle(0, 1.0)])
    assert JournalView(path).chart(OTHER, "1m", 10) is None
    assert JournalView(path).chart(PAIR, "1h", 10) == Chart([], None, [])
