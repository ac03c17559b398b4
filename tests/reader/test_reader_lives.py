"""A name that was used again: no answer is of two contracts."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lived import symbol, tell
from stored import D1, H1, M15, OTHER, PAIR, START_MS, candle, entry, store, url

from marketfeed import schema
from marketfeed.records import Candle, FundingRate, FundingSettled, MarkPrice
from reader import GapError, Life, MarketReader, StaleDataError
from reader.arguments import timestamp as at
from reader.feeder import FUNDING_RATE, FUTURES, MARK, Download, Feeder, NotStoredError

CASE = Path(__file__).parents[1] / "data" / "02_reused_symbol.json"
H4 = 4 * H1
HALF_PAST_TEN = START_MS + 10 * H1 + H1 // 2
"""When the current contract of most tests was listed."""
OLD = (START_MS - 90 * D1 + 7 * H1, START_MS - 60 * D1 + 9 * H1 + 10 * 60_000)
"""The contract before it: when it was listed, and when it ended."""


def series(start_ms: int, end_ms: int, timeframe: str, pair: str = PAIR) -> list[Candle]:
    """Candles of a contract: from the one that is open at its listing up to the last whole one."""
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    first_ms = schema.floor_to(start_ms, length_ms)
    return [
        candle(ms, pair, timeframe) for ms in range(first_ms, end_ms - length_ms + 1, length_ms)
    ]


def opens(frame: pd.DataFrame) -> list[int]:
    return [time.value // 1_000_000 for time in frame["date"]]


@pytest.fixture
def told(path: Path, clock, connect) -> Callable[..., MarketReader]:
    """A reader of a journal with records and lives; by default the two of OLD and HALF_PAST_TEN."""

    def made(
        now_ms: int,
        *records: Any,
        lives: Sequence[tuple[int, int | None]] = (OLD, (HALF_PAST_TEN, None)),
    ) -> MarketReader:
        clock.ms = now_ms
        store(path, *records)
        tell(path, {PAIR: lives})
        return connect()

    return made


# --- the case that was reported -----------------------------------------------------------------------


def test_a_frame_is_of_one_contract(told) -> None:
    one, other = json.loads(CASE.read_text())
    lives = [(one["onboardDate"], one["deliveryDate"]), (other["onboardDate"], None)]
    pair = "ZZZ/USDT:USDT"
    now_ms = schema.floor_to(other["onboardDate"], D1) + 20 * D1
    old = series(*lives[0], "1d", pair)[-80:]
    new = series(other["onboardDate"], now_ms, "1d", pair)
    reader = told(now_ms, entry(pair, ("1d",), listed_ms=other["onboardDate"]), old, new, lives=[])
    tell(Path(reader._store._file.path), {pair: lives})
    frame = reader.get_ohlcv(pair, "1d", 100)
    assert opens(frame) == [one.open_time_ms for one in new]
    assert frame.attrs["short"] == "listed"
    assert frame.attrs["missing"] == []
    assert frame.attrs["lives"] == [[*life, "ZZZUSDT"] for life in lives]
    assert json.loads(json.dumps(frame.attrs["lives"])) == frame.attrs["lives"]
    with pytest.raises(GapError, match="another contract") as caught:
        reader.get_ohlcv(pair, "1d", 100, strict=True)
    assert caught.value.pair == pair
    assert caught.value.missing == []
    assert caught.value.lives == {pair: frame.attrs["lives"]}
    assert pickle.loads(pickle.dumps(caught.value)).lives == caught.value.lives  # noqa: S301
    # As many as it has are asked for: no other is in the question.
    frame = reader.get_ohlcv(pair, "1d", len(new), strict=True)
    assert frame.attrs["lives"] == [[*lives[1], "ZZZUSDT"]]
    # Up to a time before the second listing, the answer is of the first contract.
    for until_ms in (lives[0][1] - 5 * D1, lives[0][1], schema.floor_to(lives[1][0], D1)):
        frame = reader.get_ohlcv(pair, "1d", 100, until=until_ms)
        assert opens(frame) == [one.open_time_ms for one in old if one.open_time_ms < until_ms]
        assert frame.attrs["lives"] == [[*lives[0], "ZZZUSDT"]]
        assert frame.attrs["short"] == "history"
    assert reader.lives(pair) == [
        Life("ZZZUSDT", at(lives[0][0]), at(lives[0][1])),
        Life("ZZZUSDT", at(lives[1][0]), None),
    ]
    assert reader.ready(pair, "1d", 100)
    assert reader.newest("1d") == {pair: new[-1].open_time_ms}


# --- a listing off the grid ---------------------------------------------------------------------------


def test_all_daily_candles_of_a_listing_off_the_grid(told) -> None:
    listed_ms = START_MS + 17 * H1 + 55 * 60_000
    now_ms = START_MS + 116 * D1 + 20_000
    daily = series(listed_ms, now_ms, "1d")
    reader = told(
        now_ms, entry(PAIR, ("1d",), listed_ms=listed_ms), daily, lives=[(listed_ms, None)]
    )
    frame = reader.get_ohlcv(PAIR, "1d", 200, strict=True)
    assert len(frame) == 116
    assert opens(frame)[0] == START_MS
    assert (frame.attrs["short"], frame.attrs["missing"]) == ("listed", [])
    assert reader.ready(PAIR, "1d", 200)


@pytest.mark.parametrize("timeframe", ["15m", "1h", "4h", "1d"])
@pytest.mark.parametrize("older", [True, False])
def test_the_first_candle_begins_with_the_first_row(told, timeframe: str, older: bool) -> None:
    """Resampled from 15m, of a listing at 10:30: as the exchange's own 1h, 4h and 1d are."""
    now_ms = START_MS + 3 * D1
    rows = series(HALF_PAST_TEN, now_ms, "15m")
    lives = [OLD, (HALF_PAST_TEN, None)] if older else [(HALF_PAST_TEN, None)]
    before = series(OLD[0], OLD[1], "15m")[-200:] if older else []
    reader = told(now_ms, entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN), before, rows, lives=lives)
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    first_ms = schema.floor_to(HALF_PAST_TEN, length_ms)
    for frame in (
        reader.get_ohlcv(PAIR, timeframe, 500),
        reader.get_ohlcv(PAIR, timeframe, since=OLD[0]),
        reader.get_ohlcv_many([PAIR], timeframe, since=first_ms)[PAIR],
    ):
        assert opens(frame) == list(range(first_ms, now_ms, length_ms))
        assert frame.attrs["missing"] == []
        parts = [one for one in rows if one.open_time_ms < first_ms + length_ms]
        assert frame["open"][0] == parts[0].open
        assert frame["close"][0] == parts[-1].close
        assert frame["high"][0] == max(one.high for one in parts)
        assert frame["volume"][0] == pytest.approx(sum(one.volume for one in parts))
    assert reader.ready(PAIR, timeframe, 500)
    whole = reader.get_ohlcv(PAIR, timeframe, (now_ms - first_ms) // length_ms, strict=True)
    assert whole.attrs["short"] is None


def test_a_first_candle_that_lacks_a_part_is_left_out_and_named(told) -> None:
    now_ms = START_MS + D1
    rows = series(HALF_PAST_TEN, now_ms, "15m")
    del rows[1]
    reader = told(now_ms, entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN), rows)
    frame = reader.get_ohlcv(PAIR, "4h", 500)
    assert opens(frame)[0] == START_MS + 12 * H1
    assert frame.attrs["missing"] == [START_MS + 8 * H1]


def test_the_forming_candle_of_a_listing(told) -> None:
    """It begins with the first row as well, and is none of what an older contract has left."""
    now_ms = HALF_PAST_TEN + 40 * 60_000
    rows = series(HALF_PAST_TEN, now_ms, "15m")
    open_ms = schema.floor_to(now_ms, M15)
    reader = told(
        now_ms,
        entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN),
        series(*OLD, "15m")[-50:],
        rows,
        candle(open_ms, timeframe="15m", closed=False),
    )
    frame = reader.get_ohlcv(PAIR, "4h", 10, include_forming=True, max_age_s=None)
    assert opens(frame) == [START_MS + 8 * H1]
    assert frame.attrs["forming"]
    assert frame["open"][0] == rows[0].open


def test_a_forming_candle_of_an_older_contract_is_not_shown(told) -> None:
    left = candle(schema.floor_to(OLD[1], M15), timeframe="15m", closed=False)
    reader = told(
        HALF_PAST_TEN + 60_000,
        entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN),
        series(*OLD, "15m")[-50:],
        left,
    )
    frame = reader.get_ohlcv(PAIR, "15m", 10, include_forming=True, max_age_s=None)
    assert (len(frame), frame.attrs["forming"], frame.attrs["missing"]) == (0, False, [])
    with pytest.raises(StaleDataError, match="no candle yet"):
        reader.get_ohlcv(PAIR, "15m", 10)
    assert len(reader.get_ohlcv_many([PAIR], "15m", 10)[PAIR]) == 0
    assert reader.newest("15m") == {}
    assert not reader.ready(PAIR, "15m", 1)
    # What the end has cut is nobody's.
    frame = reader.get_ohlcv(PAIR, "4h", 10, until=OLD[1] + D1, include_forming=True)
    assert opens(frame)[-1] == schema.floor_to(OLD[1], H4) - H4
    assert not frame.attrs["forming"]


# --- waiting ------------------------------------------------------------------------------------------


def test_a_candle_of_before_the_listing_is_not_waited_for(told) -> None:
    reader = told(
        HALF_PAST_TEN + H1,
        entry(PAIR, ("15m",), listed_ms=OLD[0]),
        entry(OTHER, ("15m",)),
        series(HALF_PAST_TEN - H1, HALF_PAST_TEN + H1, "15m", OTHER),
    )
    assert reader.wait_closed("15m", HALF_PAST_TEN - M15, 0) == ()
    assert reader.wait_closed("15m", HALF_PAST_TEN, 0) == (PAIR,)


def test_a_life_that_is_over_is_not_waited_for_and_not_stale(told) -> None:
    now_ms = HALF_PAST_TEN + 10 * D1
    lives = [OLD, (HALF_PAST_TEN, HALF_PAST_TEN + D1)]
    rows = series(HALF_PAST_TEN, HALF_PAST_TEN + D1, "15m")
    # The row that the end cuts is nobody's.
    cut = candle(schema.floor_to(HALF_PAST_TEN + D1, M15), timeframe="15m")
    reader = told(
        now_ms,
        entry(PAIR, ("15m",)),
        rows,
        cut,
        entry(OTHER, ("15m",)),
        series(now_ms - H1, now_ms, "15m", OTHER),
        lives=lives,
    )
    frame = reader.get_ohlcv(PAIR, "15m", 10)
    assert opens(frame) == [one.open_time_ms for one in rows[-10:]]
    assert frame.attrs["missing"] == []
    assert reader.newest("15m")[PAIR] == rows[-1].open_time_ms
    assert reader.wait_closed("15m", schema.floor_to(now_ms, M15) - M15, 0) == ()


# --- what is told, and what is not ----------------------------------------------------------------------


@pytest.mark.parametrize("table", [True, False])
def test_without_a_statement_all_is_as_it_was(told, path: Path, clock, table: bool) -> None:
    now_ms = HALF_PAST_TEN + D1
    rows = [*series(*OLD, "15m")[-50:], *series(HALF_PAST_TEN, now_ms, "15m")]
    records = (entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN), rows)
    if table:
        reader = told(now_ms, *records, lives=())
    else:
        clock.ms = now_ms
        store(path, *records)
        reader = MarketReader.connect(url(path), now_ms=clock.now_ms)
    frame = reader.get_ohlcv(PAIR, "15m", 500)
    assert opens(frame) == [one.open_time_ms for one in rows]
    assert frame.attrs["lives"] == []
    assert opens(reader.get_ohlcv(PAIR, "4h", 3))[0] == START_MS + 20 * H1
    assert reader.get_ohlcv(PAIR, "4h", 3).attrs["missing"] == []
    assert reader.lives(PAIR) == []
    reader.close()


def test_rows_of_before_all_that_is_told_are_not_joined_either(told) -> None:
    """A collector on a new host knows of nothing before, and the bucket has rows of then."""
    now_ms = HALF_PAST_TEN + D1
    old = series(*OLD, "15m")[-50:]
    reader = told(
        now_ms,
        entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN),
        old,
        series(HALF_PAST_TEN, now_ms, "15m"),
        lives=[(HALF_PAST_TEN, None)],
    )
    frame = reader.get_ohlcv(PAIR, "15m", 500)
    assert opens(frame)[0] == HALF_PAST_TEN
    mine = [HALF_PAST_TEN, None, symbol(PAIR)]
    assert frame.attrs["lives"] == [[0, HALF_PAST_TEN, ""], mine]
    with pytest.raises(GapError):
        reader.get_ohlcv(PAIR, "15m", since=OLD[0], strict=True)
    frame = reader.get_ohlcv(PAIR, "15m", 500, until=HALF_PAST_TEN)
    assert opens(frame) == [one.open_time_ms for one in old]
    assert frame.attrs["lives"] == []


# --- mark prices and funding ------------------------------------------------------------------------------


def test_values_of_an_older_contract_are_none(told, path: Path) -> None:
    reader = told(
        HALF_PAST_TEN + 60_000,
        entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN),
        MarkPrice(PAIR, OLD[1] - 1000, 0.8, None),
        FundingRate(PAIR, OLD[1] - 60_000, 0.1, OLD[1]),
        FundingSettled(PAIR, OLD[1] - H1, 0.25, None),
    )
    for ask in (reader.get_mark_price, reader.get_funding_rate):
        with pytest.raises(StaleDataError, match="none yet"):
            ask(PAIR, max_age_s=None)
    assert reader.get_all_pairs_funding_rates(max_age_s=None) == {}
    store(
        path,
        MarkPrice(PAIR, HALF_PAST_TEN + 50_000, 3.0, None),
        FundingRate(PAIR, HALF_PAST_TEN, 0.2, HALF_PAST_TEN + H4),
    )
    assert reader.get_mark_price(PAIR) == 3.0
    assert reader.get_funding_rate(PAIR) == 0.2
    assert reader.get_funding_rate(PAIR).settled_rate is None
    store(path, FundingSettled(PAIR, HALF_PAST_TEN + H4, 0.5, None))
    assert reader.get_funding_rate(PAIR, max_age_s=None).settled_rate == 0.5


def test_settled_rates_are_of_one_contract(told) -> None:
    times = [OLD[0] + 8 * H1, schema.floor_to(OLD[1], 60_000), HALF_PAST_TEN + H4]
    times = [schema.floor_to(ms, 60_000) for ms in times]
    settled = [FundingSettled(PAIR, ms, n / 10, None) for n, ms in enumerate(times)]
    reader = told(HALF_PAST_TEN + D1, entry(PAIR, ("15m",)), settled)
    frame = reader.get_funding_history(PAIR)
    assert opens(frame) == times[2:]
    assert len(frame.attrs["lives"]) == 2
    frame = reader.get_funding_history(PAIR, HALF_PAST_TEN)
    assert opens(frame) == times[2:]
    assert frame.attrs["lives"] == [[HALF_PAST_TEN, None, symbol(PAIR)]]
    # The last one of a contract may be noted a moment after its end.
    frame = reader.get_funding_history(PAIR, until=HALF_PAST_TEN - D1)
    assert opens(frame) == times[:2]
    assert frame.attrs["lives"] == [[*OLD, symbol(PAIR)]]


def test_mark_candles_are_of_one_contract(told) -> None:
    def marks(start_ms: int, end_ms: int) -> list[MarkPrice]:
        return [MarkPrice(PAIR, ms, ms / 1e9, None) for ms in range(start_ms, end_ms, 60_000)]

    old = (START_MS + H1, START_MS + 8 * H1 + 600_000)
    now_ms = START_MS + 13 * H1
    reader = told(
        now_ms,
        entry(PAIR, ("15m",)),
        marks(*old),
        marks(HALF_PAST_TEN, now_ms),
        lives=[old, (HALF_PAST_TEN, None)],
    )
    frame = reader.get_mark_candles(PAIR, since=START_MS)
    assert opens(frame) == [START_MS + hour * H1 for hour in (10, 11, 12)]
    assert frame["open"][0] == HALF_PAST_TEN / 1e9
    frame = reader.get_mark_candles(PAIR, since=START_MS, until=START_MS + 10 * H1)
    assert opens(frame) == [START_MS + hour * H1 for hour in range(1, 8)]


# --- feeders ----------------------------------------------------------------------------------------------


def test_a_bot_gets_the_current_contract_alone(told) -> None:
    """It puts the answers to many downloads together."""
    now_ms = START_MS + 3 * D1
    rows = series(HALF_PAST_TEN, now_ms, "15m")
    reader = told(now_ms, entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN), series(*OLD, "15m"), rows)
    feeder = Feeder(reader, lambda: now_ms)
    for timeframe, listed_ms in (("15m", None), ("4h", HALF_PAST_TEN), ("1d", OLD[0])):
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        (newest,) = feeder.answer([Download(PAIR, timeframe, FUTURES, None, 499, listed_ms)])
        expected = range(schema.floor_to(HALF_PAST_TEN, length_ms), now_ms + 1, length_ms)
        assert [row[0] for row in newest] == list(expected)[-499:]
        got: list[float] = []
        since_ms = OLD[0]
        while since_ms < now_ms:
            (chunk,) = feeder.answer([Download(PAIR, timeframe, FUTURES, since_ms, 300, listed_ms)])
            assert not isinstance(chunk, Exception), chunk
            got += [row[0] for row in chunk]
            since_ms += 300 * length_ms
        assert got == list(expected)


def test_a_bot_gets_rates_and_mark_prices_of_the_current_contract_alone(told) -> None:
    now_ms = HALF_PAST_TEN + 10 * H1
    times = [schema.floor_to(OLD[0], H4) + n * H4 for n in range(1, 40)]
    times += [START_MS + hour * H1 for hour in (12, 16, 20)]
    marks = range(HALF_PAST_TEN, now_ms, 60_000)
    reader = told(
        now_ms,
        entry(PAIR, ("15m",), listed_ms=HALF_PAST_TEN),
        [FundingSettled(PAIR, ms, 0.1, None) for ms in times],
        [MarkPrice(PAIR, ms, 1.0, None) for ms in marks],
        [MarkPrice(PAIR, ms, 9.0, None) for ms in range(OLD[1] - H4, OLD[1], 60_000)],
    )
    feeder = Feeder(reader, lambda: now_ms)
    for since_ms in (None, OLD[0], OLD[1] - H1):
        rates, prices = feeder.answer(
            [
                Download(PAIR, "1h", FUNDING_RATE, since_ms, 1000, HALF_PAST_TEN),
                Download(PAIR, "1h", MARK, since_ms, 5000 if since_ms else 8, HALF_PAST_TEN),
            ]
        )
        assert [row[0] for row in rates] == times[-3:]
        assert {row[1] for row in prices} == {1.0}
    (prices,) = feeder.answer([Download(PAIR, "1h", MARK, OLD[0], 24, HALF_PAST_TEN)])
    assert prices == []


def test_a_hole_in_the_current_contract_is_still_one(told) -> None:
    now_ms = START_MS + D1
    rows = series(HALF_PAST_TEN, now_ms, "15m")
    reader = told(now_ms, entry(PAIR, ("15m",)), series(*OLD, "15m")[-9:], rows[1:])
    feeder = Feeder(reader, lambda: now_ms)
    (answer,) = feeder.answer([Download(PAIR, "4h", FUTURES, START_MS, 5)])
    assert isinstance(answer, NotStoredError)
