"""Downloads as Freqtrade makes them, answered out of a journal: the exchange's rows, or why not."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stored import D1, H1, M1, OTHER, PAIR, START_MS, Writer, candle, entry, row, store, url

from marketfeed import schema
from marketfeed.records import Candle, FundingSettled
from marketfeed.records import MarkPrice as MarkRecord
from reader import MarketReader, ReaderError, StaleDataError, StoreUnavailableError
from reader.feeder import FUNDING_RATE, FUTURES, MARK, Download, Feeder, NotStoredError

LIMIT = 20
NOW_MS = START_MS + 30 * M1 + 30_000
CURRENT_MS = START_MS + 30 * M1
LONG_AGO_MS = START_MS - 100 * D1
BOTH = (PAIR, OTHER)


def live(
    pair: str = PAIR, timeframe: str = "1m", kind: str = FUTURES, limit: int = LIMIT
) -> Download:
    return Download(pair, timeframe, kind, None, limit, LONG_AGO_MS)


def since(
    ms: int, kind: str = FUTURES, timeframe: str = "1m", listed_ms: int | None = LONG_AGO_MS
) -> Download:
    return Download(PAIR, timeframe, kind, ms, LIMIT, listed_ms)


def candles(first: int, end: int, pair: str = PAIR) -> list[Candle]:
    return [candle(START_MS + n * M1, pair, "1m") for n in range(first, end)]


def ticks(*found: Candle) -> list[list[float]]:
    return [[item.open_time_ms, *row(item)] for item in found]


@pytest.fixture
def feeder(connect, clock) -> Callable[..., Feeder]:
    clock.ms = NOW_MS

    def made(*records: object) -> Feeder:
        reader = connect(entry(PAIR, ("1m",)), entry(OTHER, ("1m", "1h")), *records)
        return Feeder(reader, clock.now_ms)

    return made


def one(feeder: Feeder, download: Download) -> list[list[float]]:
    (answer,) = feeder.answer([download])
    assert isinstance(answer, list), answer
    return answer


def problem(feeder: Feeder, download: Download) -> ReaderError:
    (answer,) = feeder.answer([download])
    assert isinstance(answer, ReaderError), answer
    return answer


# --- candles ----------------------------------------------------------------------------------------


def test_the_newest_rows_with_the_forming_candle_behind_them(feeder) -> None:
    forming = candle(CURRENT_MS, timeframe="1m", closed=False)
    rows = one(feeder(candles(0, 30), forming), live())
    assert rows == ticks(*candles(11, 30), forming)
    assert len(rows) == LIMIT
    # Whole numbers: pandas would date floats in another unit than Freqtrade's own frames have.
    assert all(type(tick[0]) is int for tick in rows)


def test_a_forming_candle_without_a_trade_is_as_the_exchange_shows_it(feeder) -> None:
    close = candles(29, 30)[0].close
    old = candle(CURRENT_MS - M1, timeframe="1m", closed=False)
    for records in ((candles(0, 30),), (candles(0, 29), old, candles(29, 30))):
        rows = one(feeder(*records), live())
        assert rows[-2:] == [
            *ticks(*candles(29, 30)),
            [CURRENT_MS, close, close, close, close, 0.0],
        ]


def test_the_last_state_of_a_candle_is_never_given_for_the_closed_one(feeder) -> None:
    """Freqtrade would take it for closed half a minute later."""
    forming = candle(CURRENT_MS - M1, timeframe="1m", closed=False)
    found = problem(feeder(candles(0, 29), forming), live())
    assert isinstance(found, StaleDataError)
    assert found.ages == {PAIR: 90.0}


def test_a_clock_behind_the_exchange_drops_what_it_takes_for_forming(feeder, clock) -> None:
    made = feeder(candles(0, 30))
    clock.ms = CURRENT_MS - 1
    rows = one(made, live())
    assert rows == ticks(*candles(10, 30))


def test_a_hole_is_not_stored(feeder) -> None:
    found = problem(feeder(candles(0, 20), candles(21, 30)), live())
    assert isinstance(found, NotStoredError)
    assert "1 of 19 candles, the first of 2026-01-01 00:20" in str(found)


def test_too_short_a_history_is_not_stored_unless_the_pair_is_new(feeder) -> None:
    made = feeder(candles(20, 30))
    assert isinstance(problem(made, live()), NotStoredError)
    # The first candle of a listing opens before it.
    new = live()._replace(listed_ms=START_MS + 20 * M1 + 55_000)
    assert one(made, new)[:-1] == ticks(*candles(20, 30))
    older = new._replace(listed_ms=START_MS + 20 * M1 - 5_000)
    assert isinstance(problem(made, older), NotStoredError)
    assert isinstance(problem(made, new._replace(listed_ms=None)), NotStoredError)


def test_what_is_not_collected_is_not_stored(feeder) -> None:
    made = feeder(candles(0, 30))
    for download in (
        live("SOL/USDT:USDT"),
        live("BTC/USDT"),
        live(timeframe="1s"),
        live(timeframe="1w"),
    ):
        assert isinstance(problem(made, download), NotStoredError)
    assert "no candle" not in str(problem(made, live(OTHER)))


def test_a_store_in_which_nothing_is_collected_is_stale_for_all(connect, clock) -> None:
    """Whoever takes NotStoredError for leave to ask the exchange would do so for the whole fleet."""
    clock.ms = NOW_MS
    made = Feeder(connect(candles(0, 30)), clock.now_ms)
    asked = [
        live(),
        since(0),
        live(timeframe="1h", kind=MARK),
        live(timeframe="1h", kind="futures"),
    ]
    with pytest.raises(StaleDataError, match="nothing is collected yet") as caught:
        made.answer(asked)
    assert caught.value.ages == {}


def test_one_bad_pair_does_not_spoil_the_others(feeder) -> None:
    made = feeder(candles(0, 30), candles(0, 25, OTHER))
    answers = made.answer(
        [live(OTHER), live(), live("SOL/USDT:USDT"), live(timeframe="5m", limit=5)]
    )
    assert [type(answer) for answer in answers] == [StaleDataError, list, NotStoredError, list]


def test_a_range_is_given_from_its_start(feeder) -> None:
    made = feeder(candles(0, 30))
    assert one(made, since(START_MS + 3 * M1)) == ticks(*candles(3, 23))
    assert one(made, since(START_MS + 3 * M1 - 1)) == ticks(*candles(3, 23))
    reaching_now = one(made, since(START_MS + 20 * M1))
    assert reaching_now[:-1] == ticks(*candles(20, 30))
    assert reaching_now[-1][0] == CURRENT_MS
    assert isinstance(problem(made, since(START_MS - M1)), NotStoredError)
    assert one(made, since(START_MS - M1, listed_ms=START_MS)) == ticks(*candles(0, 19))
    assert one(made, since(NOW_MS + H1)) == []


def test_when_a_pair_began_is_left_open(feeder) -> None:
    assert one(feeder(candles(0, 30)), since(0)) == []


def test_an_ended_pair_is_given_to_its_end(connect, clock) -> None:
    clock.ms = NOW_MS
    ended = entry(PAIR, ("1m",), ended_ms=START_MS + 25 * M1)
    made = Feeder(connect(ended, candles(0, 25)), clock.now_ms)
    assert one(made, live()) == ticks(*candles(6, 25))


def test_a_pair_whose_end_is_announced_is_given_as_any_other(connect, clock) -> None:
    """Until it has come: with the forming candle, and old settled rates are refused."""
    ended_ms = NOW_MS + 10 * D1
    made = Feeder(
        connect(
            entry(PAIR, ("1m",), ended_ms=ended_ms),
            entry(OTHER, ("1m",)),
            *(candles(0, 30, pair) for pair in BOTH),
            [candle(CURRENT_MS, pair, "1m", closed=False) for pair in BOTH],
            [FundingSettled(pair, START_MS, 0.1, 1.0) for pair in BOTH],
        ),
        clock.now_ms,
    )
    clock.ms = NOW_MS
    for asked in (live(), live(timeframe="5m", limit=5), since(START_MS + 20 * M1)):
        rows, others = made.answer([asked, asked._replace(pair=OTHER)])
        assert [tick[0] for tick in rows] == [tick[0] for tick in others]
        length_ms = schema.TIMEFRAMES_MS[asked.timeframe]
        assert rows[-1][0] == CURRENT_MS // length_ms * length_ms
    clock.ms = START_MS + 28 * H1
    rate = live(timeframe="1h", kind=FUNDING_RATE)
    assert isinstance(problem(made, rate), NotStoredError)
    clock.ms = ended_ms
    assert hours(one(made, rate)) == [0]


@pytest.mark.parametrize("kind", [FUTURES, FUNDING_RATE, MARK])
def test_of_a_pair_that_the_settings_have_dropped_nothing_old_is_given(
    connect, clock, kind: str
) -> None:
    clock.ms = NOW_MS
    dropped = entry(PAIR, ("1m",), ended_ms=START_MS + 25 * M1, dropped=True)
    made = Feeder(connect(dropped, candles(0, 25)), clock.now_ms)
    answer = problem(made, live(kind=kind))
    assert isinstance(answer, NotStoredError)
    assert "not collected" in str(answer)


def test_larger_candles_are_put_together(feeder) -> None:
    rows = one(feeder(candles(0, 30)), live(timeframe="5m", limit=6))
    assert [tick[0] for tick in rows] == [START_MS + n * 5 * M1 for n in range(1, 7)]
    assert rows[0][1] == candles(5, 6)[0].open


def test_nothing_but_the_store_being_down_is_raised(feeder, path: Path) -> None:
    made = feeder(candles(0, 30))
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StoreUnavailableError):
        made.answer([live()])


# --- candles that have just closed ------------------------------------------------------------------


class Running:
    """A clock that runs, from a moment of exchange time on."""

    def __init__(self, ms: int) -> None:
        self._ms = ms
        self._began_s = time.monotonic()

    def now_ms(self) -> int:
        return self._ms + int((time.monotonic() - self._began_s) * 1000)


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer(path) as process:
        process("open")
        yield process


def test_a_candle_that_has_just_closed_is_waited_for(writer: Writer, path: Path) -> None:
    writer(
        "write",
        [entry(PAIR, ("1m",)), entry(OTHER, ("1m",))],
        candles(0, 29),
        candles(0, 29, OTHER),
    )
    clock = Running(CURRENT_MS + 200)
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        made = Feeder(reader, clock.now_ms, late_s=50.0)

        def close() -> None:
            time.sleep(0.2)
            writer("write", candles(29, 30))
            time.sleep(0.2)
            writer("write", candles(29, 30, OTHER))

        closing = threading.Thread(target=close)
        closing.start()
        answers = made.answer([live(), live(OTHER)])
        closing.join()
    assert [answer[-2][0] for answer in answers] == [CURRENT_MS - M1] * 2


def test_one_that_does_not_come_is_stale_and_keeps_no_other_back(
    writer: Writer, path: Path
) -> None:
    writer(
        "write",
        [entry(PAIR, ("1m",)), entry(OTHER, ("1m",))],
        candles(0, 30),
        candles(0, 29, OTHER),
    )
    clock = Running(CURRENT_MS + 200)
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        answers = Feeder(reader, clock.now_ms, late_s=0.6).answer([live(), live(OTHER)])
    assert isinstance(answers[0], list)
    assert isinstance(answers[1], StaleDataError)


def test_a_pair_that_is_long_dead_is_not_waited_for(path: Path) -> None:
    store(path, entry(PAIR, ("1m",)), entry(OTHER, ("1m",)), candles(0, 30), candles(0, 20, OTHER))
    clock = Running(CURRENT_MS + 200)
    with MarketReader.connect(url(path), now_ms=clock.now_ms) as reader:
        answers = Feeder(reader, clock.now_ms, late_s=25.0).answer([live(), live(OTHER)])
    assert [type(answer) for answer in answers] == [list, StaleDataError]
    assert clock.now_ms() < CURRENT_MS + 25_000


# --- settled funding rates --------------------------------------------------------------------------


def settled(*hours: int) -> list[FundingSettled]:
    return [FundingSettled(PAIR, START_MS + h * H1, 0.0001 * (h + 50), 1.0) for h in hours]


def hours(rows: list[list[float]]) -> list[float]:
    return [(ms - START_MS) / H1 for ms, _ in rows]


def test_settled_rates(feeder) -> None:
    made = feeder(settled(-40, -32, -24, -16, -8, 0))
    rows = one(made, live(timeframe="1h", kind=FUNDING_RATE))
    assert hours(rows) == [-40, -32, -24, -16, -8, 0]
    assert rows[0][1] == 0.0001 * 10
    assert hours(one(made, live(timeframe="1h", kind=FUNDING_RATE, limit=2))) == [-8, 0]
    assert hours(one(made, since(START_MS - 20 * H1, FUNDING_RATE, "1h"))) == [-16, -8, 0]
    assert hours(one(made, since(START_MS - 40 * H1, FUNDING_RATE, "1h"))) == [
        -40,
        -32,
        -24,
        -16,
        -8,
        0,
    ]
    assert one(made, since(START_MS + 1, FUNDING_RATE, "1h")) == []


def test_settled_rates_that_lack_are_not_stored(feeder, clock) -> None:
    made = feeder(settled(-40, -24, -16, -8, 0))
    assert hours(one(made, live(timeframe="1h", kind=FUNDING_RATE))) == [-24, -16, -8, 0]
    assert isinstance(problem(made, since(START_MS - 40 * H1, FUNDING_RATE, "1h")), NotStoredError)
    assert hours(one(made, since(START_MS - 16 * H1, FUNDING_RATE, "1h"))) == [-16, -8, 0]
    new = since(START_MS - 90 * H1, FUNDING_RATE, "1h", listed_ms=START_MS - 26 * H1)
    assert isinstance(problem(made, since(START_MS - 90 * H1, FUNDING_RATE, "1h")), NotStoredError)
    assert isinstance(problem(made, new), NotStoredError)
    clock.ms = START_MS + 8 * H1 + 9 * M1
    assert hours(one(made, live(timeframe="1h", kind=FUNDING_RATE)))[-1] == 0
    clock.ms = START_MS + 8 * H1 + 11 * M1
    assert isinstance(problem(made, live(timeframe="1h", kind=FUNDING_RATE)), NotStoredError)


def test_settled_rates_of_a_new_pair(feeder) -> None:
    made = feeder(settled(-16, -8, 0))
    new = since(START_MS - 90 * H1, FUNDING_RATE, "1h", listed_ms=START_MS - 20 * H1)
    assert hours(one(made, new)) == [-16, -8, 0]
    assert isinstance(problem(feeder(), live(OTHER, "1h", FUNDING_RATE)), NotStoredError)


# --- mark candles -----------------------------------------------------------------------------------


def marks(first_minute: int, end_minute: int) -> list[MarkRecord]:
    return [
        MarkRecord(PAIR, START_MS + minute * M1, 100.0 + minute, 1.0)
        for minute in range(first_minute, end_minute)
    ]


def test_mark_candles(feeder) -> None:
    made = feeder(marks(-180, 31))
    rows = one(made, live(timeframe="1h", kind=MARK))
    assert [(tick[0] - START_MS) / H1 for tick in rows] == [-3, -2, -1, 0]
    assert rows[2] == [START_MS - H1, 40.0, 99.0, 40.0, 99.0, 0.0]
    assert one(made, since(START_MS - 2 * H1, MARK, "1h")) == rows[1:]
    assert one(made, since(NOW_MS, MARK, "1h")) == []
    assert isinstance(problem(made, since(START_MS - 4 * H1, MARK, "1h")), NotStoredError)
    assert one(made, since(START_MS - 4 * H1, MARK, "1h", START_MS - 200 * M1)) == rows


def test_mark_candles_that_lack(feeder, clock) -> None:
    made = feeder(marks(-180, -70), marks(-60, 31))
    rows = one(made, live(timeframe="1h", kind=MARK))
    assert [(tick[0] - START_MS) / H1 for tick in rows] == [-1, 0]
    assert isinstance(problem(made, since(START_MS - 3 * H1, MARK, "1h")), NotStoredError)
    # The collector is down: no exchange is to be asked by everybody at once.
    clock.ms = START_MS + H1 + 5 * M1
    assert isinstance(problem(made, live(timeframe="1h", kind=MARK)), StaleDataError)


def test_a_current_hour_that_began_without_mark_prices_is_not_stored(feeder) -> None:
    made = feeder(marks(-60, 0), marks(5, 31))
    assert isinstance(problem(made, live(timeframe="1h", kind=MARK)), NotStoredError)
